from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.digest import Descriptor, Digest
from envbuild.errors import IntegrityError
from envbuild.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    ImageIndex,
    Manifest,
    encode,
    is_manifest,
    parse_descriptor,
    parse_manifest,
)
from envbuild.platform import LINUX_AMD64, Platform

CONFIG = Descriptor.of(b"{}", OCI_CONFIG)
LAYER = Descriptor.of(b"layer", OCI_LAYER_GZIP)
GOOD = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": CONFIG.to_json(),
    "layers": [LAYER.to_json()],
}
GOOD_INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [LAYER.to_json()]}


def parse(document: object, media_type: str | None = None) -> Manifest | ImageIndex:
    return parse_manifest(json.dumps(document).encode(), media_type, "the manifest")


def test_build_and_parse_are_each_other_s_inverse() -> None:
    built = Manifest.build(
        CONFIG, (LAYER,), {"b": "2", "a": "é"}, subject=Descriptor.of(b"x", OCI_MANIFEST), artifact_type="a/b"
    )
    assert parse_manifest(built.raw, OCI_MANIFEST, "it") == built
    assert built.descriptor == Descriptor(OCI_MANIFEST, Digest.of(built.raw), len(built.raw))


def test_index_build_and_parse_are_each_other_s_inverse() -> None:
    entry = Descriptor(OCI_MANIFEST, LAYER.digest, 5, {"k": "v"}, Platform("linux", "arm64", "v8"))
    built = ImageIndex.build((entry,), {"a": "b"})
    assert parse_manifest(built.raw, OCI_INDEX, "it") == built


def test_equal_arguments_give_equal_bytes() -> None:
    one = Manifest.build(CONFIG, (LAYER,), {"a": "1", "b": "2"})
    two = Manifest.build(CONFIG, (LAYER,), {"b": "2", "a": "1"})
    assert one.raw == two.raw
    assert one.raw == (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":'
        + encode(CONFIG.to_json())
        + b',"layers":['
        + encode(LAYER.to_json())
        + b'],"annotations":{"a":"1","b":"2"}}'
    )


def test_raw_bytes_are_kept() -> None:
    raw = b"  " + json.dumps(GOOD, indent=2).encode() + b"\n"
    assert parse_manifest(raw, None, "it").raw == raw


def test_blobs_are_config_first_and_each_once() -> None:
    other = Descriptor.of(b"other", OCI_LAYER_GZIP)
    built = Manifest.build(CONFIG, (LAYER, other, LAYER), {})
    assert built.blobs == (CONFIG, LAYER, other)
    assert len(built.layers) == 3


@pytest.mark.parametrize(
    ("transport", "declared", "expected"),
    [
        (OCI_MANIFEST, OCI_MANIFEST, OCI_MANIFEST),
        (f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST, OCI_MANIFEST),
        (OCI_MANIFEST.upper(), OCI_MANIFEST, OCI_MANIFEST),
        (DOCKER_MANIFEST, None, DOCKER_MANIFEST),
        (None, DOCKER_MANIFEST, DOCKER_MANIFEST),
        (None, None, OCI_MANIFEST),
        ("application/octet-stream", OCI_MANIFEST, OCI_MANIFEST),
    ],
)
def test_media_type_comes_from_whoever_says_it(
    transport: str | None, declared: str | None, expected: str
) -> None:
    document = {**GOOD, "mediaType": declared} if declared else {k: GOOD[k] for k in GOOD if k != "mediaType"}
    assert parse(document, transport).media_type == expected


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_INDEX, None])
def test_index_media_types(media_type: str | None) -> None:
    document: dict[str, Any] = {"schemaVersion": 2, "manifests": []}
    if media_type:
        document["mediaType"] = media_type
    seen = parse(document)
    assert isinstance(seen, ImageIndex)
    assert seen.media_type == (media_type or OCI_INDEX)


@pytest.mark.parametrize(
    "document",
    [
        [],
        None,
        1,
        "manifest",
        {},
        {"schemaVersion": 1},
        {"schemaVersion": "2"},
        {**GOOD, "manifests": []},
        {**GOOD_INDEX, "layers": []},
        {**GOOD_INDEX, "config": None},
        {**GOOD, "mediaType": OCI_INDEX},
        {**GOOD_INDEX, "mediaType": OCI_MANIFEST},
        {**GOOD, "mediaType": "text/plain"},
        {**GOOD, "mediaType": ["application/json"]},
        {**GOOD, "mediaType": {"a": 1}},
        {**GOOD, "mediaType": 7},
        {**GOOD, "config": None},
        {**GOOD, "config": []},
        {**GOOD, "layers": {}},
        {**GOOD, "layers": [1]},
        {**GOOD, "layers": [None]},
        {**GOOD, "annotations": {"a": 1}},
        {**GOOD, "annotations": ["a"]},
        {**GOOD, "annotations": {"a": "\ud800"}},
        {**GOOD, "subject": 1},
        {**GOOD, "layers": [{**LAYER.to_json(), "digest": "sha256:../../../etc/passwd"}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "digest": "sha256:" + "A" * 64}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "digest": "sha512:" + "a" * 128}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "digest": "a" * 64}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "digest": None}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "size": -1}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "size": 1.0}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "size": True}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "size": "5"}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "mediaType": None}]},
        {**GOOD, "layers": [{**LAYER.to_json(), "annotations": {"a": []}}]},
    ],
)
def test_hostile_documents_are_refused(document: object) -> None:
    with pytest.raises(IntegrityError, match="the manifest"):
        parse(document)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        json.dumps(GOOD).encode("utf-16"),
        json.dumps(GOOD).encode("utf-32-le"),
        b"[" * 100_000,
        b'{"schemaVersion":' + b"2" * 5000 + b"}",
        json.dumps(GOOD).encode() + b" " * MAX_MANIFEST,
        json.dumps(GOOD).encode() + b"{}",
    ],
)
def test_hostile_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError, match="the manifest"):
        parse_manifest(raw, OCI_MANIFEST, "the manifest")


@pytest.mark.parametrize(
    ("transport", "document"),
    [(DOCKER_MANIFEST, GOOD), (OCI_INDEX, GOOD), (OCI_MANIFEST, GOOD_INDEX), (DOCKER_INDEX, GOOD_INDEX)],
)
def test_transport_and_document_must_agree(transport: str, document: object) -> None:
    with pytest.raises(IntegrityError, match="says"):
        parse(document, transport)


def test_urls_of_foreign_layers_are_ignored() -> None:
    entry = {**LAYER.to_json(), "urls": ["https://evil.example.com/layer"]}
    seen = parse({**GOOD, "layers": [entry]})
    assert isinstance(seen, Manifest)
    assert seen.layers == (LAYER,)


def test_odd_platforms_are_no_platform() -> None:
    odds: list[object] = [1, [], {"os": "linux"}, {"os": 1, "architecture": "amd64"}]
    for odd in odds:
        assert parse_descriptor({**LAYER.to_json(), "platform": odd}, "it").platform is None


def test_for_platform() -> None:
    def entry(text: str, platform: Platform | None) -> Descriptor:
        seen = Descriptor.of(text.encode(), OCI_MANIFEST)
        return Descriptor(seen.media_type, seen.digest, seen.size, platform=platform)

    unknown = entry("attestation", Platform("unknown", "unknown"))
    amd64, v8 = entry("amd64", LINUX_AMD64), entry("arm64", Platform("linux", "arm64", "v8"))
    v6, v7 = (entry(name, Platform("linux", "arm", name)) for name in ("v6", "v7"))
    index = ImageIndex.build((entry("none", None), unknown, amd64, v8, v6, v7), {})
    assert index.for_platform(LINUX_AMD64) == amd64
    assert index.for_platform(Platform("linux", "arm64")) == v8
    assert index.for_platform(Platform("linux", "arm", "v7")) == v7
    assert index.for_platform(Platform("linux", "arm", "v8")) == v7
    assert index.for_platform(Platform("linux", "arm", "v5")) is None
    assert index.for_platform(Platform("linux", "s390x")) is None
    assert index.for_platform(Platform("windows", "amd64")) is None


@pytest.mark.parametrize(
    ("asked", "offered", "expected"),
    [
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64/v1"], 2),
        ("linux/amd64", ["linux/amd64/v2"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v3"], 1),
        ("linux/arm64", ["linux/arm64/v9", "linux/arm64/v8"], 1),
        ("linux/arm64", ["linux/arm64/v8.2", "linux/arm64"], 1),
        ("linux/arm64/v8.2", ["linux/arm64/v8", "linux/arm64/v8.1"], 1),
        ("linux/arm64", ["unknown/unknown", "linux/aarch64"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64/v1"], 0),
        ("linux/amd64", ["linux/amd64/best", "linux/x86_64"], 1),
        ("linux/riscv64", ["linux/riscv64/rva23", "linux/riscv64"], 1),
        ("linux/riscv64", ["linux/riscv64/rva23"], None),
        ("linux/amd64", ["windows/amd64"], None),
    ],
)
def test_the_best_entry_that_a_variant_allows(asked: str, offered: list[str], expected: int | None) -> None:
    entries = tuple(
        replace(Descriptor.of(str(place).encode(), OCI_MANIFEST), platform=Platform(*text.split("/")))
        for place, text in enumerate(offered)
    )
    found = ImageIndex.build(entries, {}).for_platform(Platform(*asked.split("/")))
    assert found == (entries[expected] if expected is not None else None)


def test_is_manifest() -> None:
    assert is_manifest(json.dumps(GOOD).encode())
    assert is_manifest(json.dumps(GOOD_INDEX).encode())
    for raw in (b"", b"{}", b"[]", b"\x1f\x8b\x08", b'{"schemaVersion":1}', b"[" * 100_000):
        assert not is_manifest(raw)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "schemaVersion", "mediaType", "config", "layers", "manifests",
    "annotations", "subject", "artifactType", "platform", "digest", "size",
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    base=st.sampled_from([GOOD, GOOD_INDEX]),
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    inner=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3),
    transport=st.sampled_from([None, OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, "text/html"]) | st.text(),
)
def test_nothing_but_integrity_errors(
    base: dict[str, Any], changes: dict[str, Any], inner: dict[str, Any], transport: str | None
) -> None:
    """Whatever a registry sends, parsing ends with a value or the one error."""
    document = {**base, **changes}
    for name in ("layers", "manifests"):
        if name in base:
            document.setdefault(name, [{**LAYER.to_json(), **inner}])
            if name not in changes:
                document[name] = [{**LAYER.to_json(), **inner}]
    raw = json.dumps(document).encode()
    try:
        seen = parse_manifest(raw, transport, "it")
    except IntegrityError:
        return
    assert seen.raw == raw
    hash(seen)
    encode({"annotations": dict(seen.annotations)})


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_manifest(raw, None, "it")
    assert not is_manifest(raw)
