"""Row 29: two hundred hostile manifests. All are refused; the host that some of them name hears nothing.

An index may name others, and those others: what it makes us ask for is bounded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from envbuild.config import Config
from envbuild.deadline import Deadline
from envbuild.digest import Digest
from envbuild.errors import IntegrityError, NotFound
from envbuild.index import Index
from envbuild.key import KEY_ANNOTATION, Key
from envbuild.lookup import Lookup
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
)
from envbuild.oci.open import Settings
from envbuild.oci.registries import Registries
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository
from parts.fault_server import Asked, Call, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY: Final = Key("a" * 64)
DIGEST: Final = f"sha256:{'1' * 64}"


@dataclass(frozen=True)
class Hostile:
    """A manifest as a registry answers it.

    Attributes:
        name: What is wrong with it.
        body: Its bytes.
        kind: The ``Content-Type``.
        headers: Further headers.
        parses: Whether it is well-formed, and only what it names is not there.
    """

    name: str
    body: bytes
    kind: str = OCI_MANIFEST
    headers: dict[str, str] = field(default_factory=dict)
    parses: bool = False


def blob(
    digest: Any = DIGEST, size: Any = 10, media_type: Any = OCI_LAYER_GZIP, **more: Any
) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size, **more}


def manifest(**changes: Any) -> dict[str, Any]:
    """A good one, but for the changes; a change to ... leaves the field out."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(media_type=OCI_CONFIG),
        "layers": [blob(f"sha256:{'2' * 64}")],
        "annotations": {KEY_ANNOTATION: str(KEY)},
        **changes,
    }
    return {name: value for name, value in document.items() if value is not ...}


def index(**changes: Any) -> dict[str, Any]:
    entries = [blob(media_type=OCI_MANIFEST)]
    return manifest(mediaType=OCI_INDEX, config=..., layers=..., manifests=entries) | changes


def encoded(name: str, document: Any, kind: str = OCI_MANIFEST, **more: Any) -> Hostile:
    return Hostile(name, json.dumps(document).encode(), kind, **more)


DIGESTS: Final = (
    "sha256:../../../../etc/passwd",
    "sha256:" + "../" * 21 + "a",
    "../" + "1" * 64,
    f"sha256:{'1' * 63}",
    f"sha256:{'1' * 65}",
    f"sha256:{'g' * 64}",
    f"sha256:{'A' * 64}",
    f"SHA256:{'1' * 64}",
    f"sha256:{'1' * 64}\n",
    f" sha256:{'1' * 64}",
    f"sha256:{'1' * 64}/../x",
    f"sha256:{'1' * 32}/{'1' * 31}",
    f"sha256:{'1' * 64}?x=y",
    f"sha256:{'1' * 64}#x",
    f"sha256:{'1' * 63}\0",
    "sha256:" + "\uff11" * 64,
    f"sha512:{'1' * 128}",
    f"md5:{'1' * 32}",
    "sha256:",
    ":",
    "",
    "1" * 64,
    f"sha256+b64:{'1' * 64}",
    "http://canary/blob",
    None,
    7,
    [DIGEST],
    {"sha256": "1" * 64},
)
SIZES: Final = (-1, -(1 << 63), 1 << 63, 10**30, 1.5, 10.0, True, "10", None, [10], {"size": 10}, "")
KINDS: Final[tuple[Any, ...]] = (None, 7, [OCI_LAYER_GZIP], {})
MANIFEST_KINDS: Final[tuple[Any, ...]] = (
    "text/html",
    "application/json",
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    OCI_CONFIG,
    OCI_MANIFEST.upper(),
    7,
    [OCI_MANIFEST],
    {},
)
NOT_LISTS: Final[tuple[Any, ...]] = ({}, "x", 7, True, {"0": blob()}, [None], ["x"], [7], [[blob()]], [{}])
BYTES: Final = (
    b"",
    b"null",
    b"[]",
    b'"manifest"',
    b"{",
    b"{}",
    b"<html></html>",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf" + json.dumps(manifest()).encode(),
    json.dumps(manifest()).encode("utf-16"),
    json.dumps(manifest()).encode("utf-32"),
    json.dumps(manifest()).encode() + b"{}",
    json.dumps(manifest()).encode() + b"\0",
    json.dumps(manifest()).encode()[:-1],
    b"[" * 100_000,
    b'{"a":' * 50_000,
    json.dumps(manifest()).replace("2", "NaN", 1).encode(),
    json.dumps(manifest()).replace('"size": 10', '"size": Infinity', 1).encode(),
    json.dumps(manifest(extra=1)).replace('"extra": 1', '"extra": NaN').encode(),
    b'{"schemaVersion":2,"x":"\\ud800",' + json.dumps(manifest()).encode()[1:],
    b'{"layers":[],' + json.dumps(manifest()).encode()[1:],
    b'{"config":{},' + json.dumps(manifest()).encode()[1:],
    b'{"annotations":{},' + json.dumps(manifest()).encode()[1:],
    b'{"mediaType":"x",' + json.dumps(manifest()).encode()[1:],
    json.dumps(manifest()).replace('"size": 10', '"size": 10, "size": 11').encode(),
    json.dumps(manifest()).replace('"digest"', f'"digest": "{DIGEST}", "digest"', 1).encode(),
)


def hostile(canary: str) -> Iterator[Hostile]:
    """All of them."""
    for number, digest in enumerate(DIGESTS):
        yield encoded(f"config digest {number}", manifest(config=blob(digest, media_type=OCI_CONFIG)))
        yield encoded(f"layer digest {number}", manifest(layers=[blob(), blob(digest)]))
        yield encoded(f"entry digest {number}", index(manifests=[blob(digest)]), OCI_INDEX)
    for number, size in enumerate(SIZES):
        yield encoded(f"config size {number}", manifest(config=blob(size=size)))
        yield encoded(f"layer size {number}", manifest(layers=[blob(size=size)]))
    for number, kind in enumerate(KINDS):
        yield encoded(f"layer type {number}", manifest(layers=[blob(media_type=kind)]))
    for number, kind in enumerate(MANIFEST_KINDS):
        yield encoded(f"media type {number}", manifest(mediaType=kind))
    for number, value in enumerate(NOT_LISTS):
        yield encoded(f"layers {number}", manifest(layers=value))
        yield encoded(f"manifests {number}", index(manifests=value), OCI_INDEX)
    for number, raw in enumerate(BYTES):
        yield Hostile(f"bytes {number}", raw)
    yield from _two_ways()
    yield from _annotations()
    yield from _lies()
    yield from _foreign(canary)
    yield from _families()


def _two_ways() -> Iterator[Hostile]:
    """What could be read as one thing or as another (CVE-2021-41190)."""
    entries = [blob(media_type=OCI_MANIFEST)]
    for kind in (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX):
        yield encoded(f"both, {kind}", manifest(mediaType=kind, manifests=entries), kind)
        yield encoded(f"both without a type, {kind}", manifest(mediaType=..., manifests=entries), kind)
    yield encoded("an index with a config", index(config=blob()), OCI_INDEX)
    yield encoded("an index that is called a manifest", index(mediaType=OCI_MANIFEST))
    yield encoded("a manifest that is called an index", manifest(mediaType=OCI_INDEX), OCI_INDEX)
    yield encoded("the registry says index", manifest(), OCI_INDEX)
    yield encoded("the registry says manifest", index(), OCI_MANIFEST)
    yield encoded("the registry says Docker", manifest(), DOCKER_MANIFEST)
    for name in ("Layers", "LAYERS", "Config", "Manifests", "MediaType", "Annotations", "layerS"):
        yield encoded(f"{name} too", manifest() | {name: [blob(f"sha256:{'9' * 64}")]})
    versions: tuple[Any, ...] = (1, 3, "2", None, ..., [2])
    for version in versions:
        yield encoded(f"schema version {version}", manifest(schemaVersion=version))
    yield encoded("no config", manifest(config=...))


def _annotations() -> Iterator[Hostile]:
    for number, value in enumerate(([], "x", 7, {KEY_ANNOTATION: 7}, {KEY_ANNOTATION: None}, {"x": {}})):
        yield encoded(f"annotations {number}", manifest(annotations=value))
    for number, key in enumerate(("", "b" * 64, str(KEY).upper(), f"{KEY}\n", f"{KEY} ", f"k1-{KEY}")):
        yield encoded(f"key {number}", manifest(annotations={KEY_ANNOTATION: key}))
    yield encoded("no key", manifest(annotations={}))
    yield encoded("an odd lock", manifest(annotations={KEY_ANNOTATION: str(KEY), "io.envbuild.lock": "../x"}))
    yield encoded("128 layers", manifest(layers=[blob(f"sha256:{n:064x}") for n in range(128)]))


def _lies() -> Iterator[Hostile]:
    """Of the size, and of the digest."""
    good = json.dumps(manifest()).encode()
    yield Hostile("another digest", good, headers={"Docker-Content-Digest": f"sha256:{'7' * 64}"})
    yield Hostile("no digest", good, headers={"Docker-Content-Digest": "sha256:x"})
    padded = good[:-1] + b" " * (100 << 20) + b"}"
    yield Hostile("100 MiB", padded)
    yield Hostile("a byte too many", good[:-1] + b" " * (MAX_MANIFEST - len(good) + 1) + b"}")


def _foreign(canary: str) -> Iterator[Hostile]:
    """Layers that are said to be elsewhere (CVE-2020-15157): where they are said to be is of no interest."""
    for number, url in enumerate((f"http://{canary}/layer", f"https://{canary}/layer", f"//{canary}/x")):
        kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        for name, layer in (("foreign", blob(urls=[url], media_type=kind)), ("urls", blob(urls=[url]))):
            yield encoded(f"{name} {number}", manifest(layers=[layer]), parses=True)
        yield encoded(f"config {number}", manifest(config=blob(urls=[url])), parses=True)
        yield encoded(f"entry {number}", index(manifests=[blob(urls=[url])]), OCI_INDEX, parses=True)


def _families() -> Iterator[Hostile]:
    """What an index names, and what a manifest says that it is attached to."""
    for number, digest in enumerate(DIGESTS):
        if digest is not None:
            yield encoded(f"subject {number}", manifest(subject=blob(digest, media_type=OCI_MANIFEST)))
    for number, value in enumerate(NOT_LISTS[1:]):
        yield encoded(f"subject that is none {number}", manifest(subject=value))
    for number, value in enumerate(
        ("linux/amd64", 7, [], {"os": 7}, {"os": ["linux"]}, {"architecture": {}})
    ):
        entries = [blob(media_type=OCI_MANIFEST, platform=value)]
        yield encoded(f"platform {number}", index(manifests=entries), OCI_INDEX, parses=True)
    entry = blob(media_type=OCI_MANIFEST)
    yield encoded("one image a thousand times", index(manifests=[entry] * 1000), OCI_INDEX, parses=True)
    yield encoded("an index in it", index(manifests=[blob(media_type=OCI_INDEX)]), OCI_INDEX, parses=True)
    many = [blob(f"sha256:{number:064x}", media_type=OCI_MANIFEST) for number in range(5000)]
    yield encoded("5,000 images", index(manifests=many), OCI_INDEX, parses=True)


def test_hostile_manifests(tmp_path: Path) -> None:
    shown: list[Hostile] = []

    def script(call: Call, asked: Asked) -> None:
        if "/manifests/" not in asked.path:
            call.fail(404, "BLOB_UNKNOWN")
            return
        current = shown[-1]
        call.answer(200, current.body, {"Content-Type": current.kind, **current.headers})

    with serving(lambda call, _: call.answer(200)) as canary, serving(script) as server:
        config = Config(
            workspace=Repository.parse(f"{server.host}/envs"), cache_dir=tmp_path / "cache", deep=True
        )
        documents = list(hostile(canary.host))
        wrong = []
        for each in documents:
            shown.append(each)
            wrong += [f"{each.name}: {problem}" for problem in judge(config, each)]
        assert wrong == []
        assert canary.asked == []
    assert len({each.name for each in documents}) == len(documents) >= 200


def judge(config: Config, document: Hostile) -> Iterator[str]:
    """What is wrong with how a document is received: by a lookup, and by a copy."""
    registries, index = Registries(frozenset()), Index(config.cache_dir)
    told: list[str] = []
    lookup = Lookup(config, index, registries, lambda event: told.append(event.text))
    try:
        found = lookup.find(KEY, Deadline.after(30))
        if found is not None:
            yield "a hit"
        elif not document.parses or not any(text.startswith("not used") for text in told):
            yield "taken for a miss"
    except IntegrityError:
        pass
    finally:
        registries.close()
        index.close()
    target = LayoutRegistry(Repository.parse(f"oci:{config.cache_dir}/copies"))
    source = RemoteRegistry(config.workspace, settings=Settings(retries=0))
    try:
        copy_image(source, target, source.get_manifest(KEY.tag))
        yield "copied"
    except (IntegrityError, NotFound):
        pass
    finally:
        source.close()


def test_indexes_that_name_each_other_are_asked_for_few_times(tmp_path: Path) -> None:
    """Two on each of 15 levels, each of which names both below it: some kB, and 32,767 ways through them."""
    shown = [encoded("an image", manifest()), encoded("another", manifest(artifactType="x"))]
    held = {f"{Digest.of(each.body)}": each for each in shown}
    for level in range(15):
        below = [blob(f"{Digest.of(each.body)}", len(each.body), each.kind) for each in shown]
        shown = [encoded(f"{level}", index(manifests=order), OCI_INDEX) for order in (below, below[::-1])]
        held |= {f"{Digest.of(each.body)}": each for each in shown}
    held[KEY.tag.name] = shown[0]
    asked: list[str] = []

    def script(call: Call, request: Asked) -> None:
        asked.append(request.path)
        found = held.get(request.path.rpartition("/manifests/")[2])
        if found is None:
            call.fail(404, "MANIFEST_UNKNOWN")
        else:
            call.answer(200, found.body, {"Content-Type": found.kind})

    with serving(script) as server:
        workspace = Repository.parse(f"{server.host}/envs")
        config = Config(workspace=workspace, cache_dir=tmp_path / "cache", deep=True)
        assert list(judge(config, replace(shown[0], parses=True))) == []
    assert len(asked) < 100
