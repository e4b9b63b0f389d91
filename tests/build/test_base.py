"""Bases: read whole or refused, and what glibc they have."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from envbuild.build.base import BaseImage, decompressed, glibc_version, read_all
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor
from envbuild.errors import IntegrityError, NotFound, SpecError
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    ImageIndex,
    Manifest,
    encode,
)
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.reference import Repository, Tag
from tiny import LIBC, make_base

ARM = Platform("linux", "arm64")


@pytest.fixture
def bases(tmp_path: Path) -> Repository:
    return Repository.parse(f"oci:{tmp_path}/bases")


def glibc(base: BaseImage, known: dict[str, str]) -> str | None:
    return glibc_version(base, known.get, known.__setitem__, NO_DEADLINE)


def test_a_tag_a_digest_and_an_index_give_the_same_base(bases: Repository) -> None:
    digest = make_base(bases, "one", {"f": b"1"})
    registry = LayoutRegistry(bases)
    manifest = registry.get_manifest(digest)
    entry = Descriptor(manifest.media_type, digest, len(manifest.raw), {}, LINUX_AMD64)
    registry.put_manifest(ImageIndex.build((entry,), {}), Tag("many"))
    for name in (Tag("one"), digest, Tag("many")):
        base = BaseImage.read(registry, name, LINUX_AMD64)
        assert base.digest == digest
        assert len(base.diff_ids) == 1
    with pytest.raises(SpecError, match="no image for linux/arm64") as caught:
        BaseImage.read(registry, Tag("many"), ARM)
    assert "linux/amd64" in str(caught.value.hint)


def test_a_base_of_another_platform_is_refused(bases: Repository) -> None:
    make_base(bases, "one", {"f": b"1"})
    with pytest.raises(SpecError, match="linux/amd64, not for linux/arm64"):
        BaseImage.read(LayoutRegistry(bases), Tag("one"), ARM)


def test_a_missing_base_is_not_found(bases: Repository) -> None:
    make_base(bases, "one", {"f": b"1"})
    with pytest.raises(NotFound):
        BaseImage.read(LayoutRegistry(bases), Tag("two"), LINUX_AMD64)


@pytest.mark.parametrize(
    "config", [b"[]", b"nothing", encode({"os": "linux"}), encode({"rootfs": {"diff_ids": []}})]
)
def test_a_config_that_is_none_is_refused(bases: Repository, config: bytes) -> None:
    make_base(bases, "one", {"f": b"1"})
    registry = LayoutRegistry(bases)
    good = registry.get_manifest(Tag("one"))
    assert isinstance(good, Manifest)
    described = Descriptor.of(config, OCI_CONFIG)
    registry.put_blob(described, lambda: io.BytesIO(config))
    registry.put_manifest(Manifest.build(described, good.layers, {}), Tag("bad"))
    with pytest.raises(IntegrityError):
        BaseImage.read(registry, Tag("bad"), LINUX_AMD64)


def test_glibc_is_read_once_and_remembered_by_the_layer(bases: Repository) -> None:
    make_base(bases, "libc", {"usr/lib/libc.so.6": LIBC})
    make_base(bases, "none", {"usr/lib/ld-musl.so": b"musl"})
    known: dict[str, str] = {}
    registry = LayoutRegistry(bases)
    assert glibc(BaseImage.read(registry, Tag("libc"), LINUX_AMD64), known) == "2.36"
    assert glibc(BaseImage.read(registry, Tag("none"), LINUX_AMD64), known) is None
    assert sorted(known.values()) == ["2.36", "none"]
    base = BaseImage.read(registry, Tag("libc"), LINUX_AMD64)
    (bases.folder / "blobs" / "sha256" / base.manifest.layers[0].digest.hex).unlink()
    assert glibc(base, known) == "2.36"
    assert glibc(BaseImage.scratch(LINUX_AMD64), known) is None


def test_a_base_that_names_a_layer_of_others_wrongly_tells_nothing_of_theirs(bases: Repository) -> None:
    make_base(bases, "libc", {"usr/lib/libc.so.6": LIBC})
    registry = LayoutRegistry(bases)
    good = registry.get_manifest(Tag("libc"))
    assert isinstance(good, Manifest)
    wrongly = replace(good.layers[0], media_type="application/vnd.oci.image.layer.v1.tar")
    registry.put_manifest(Manifest.build(good.config, (wrongly,), {}), Tag("wrong"))
    known: dict[str, str] = {}
    with contextlib.suppress(IntegrityError):
        assert glibc(BaseImage.read(registry, Tag("wrong"), LINUX_AMD64), known) is None
    assert glibc(BaseImage.read(registry, Tag("libc"), LINUX_AMD64), known) == "2.36"


def test_a_damaged_layer_tells_nothing_of_its_glibc(bases: Repository) -> None:
    make_base(bases, "libc", {"usr/lib/libc.so.6": LIBC, "z": b"z" * 100})
    base = BaseImage.read(LayoutRegistry(bases), Tag("libc"), LINUX_AMD64)
    blob = bases.folder / "blobs" / "sha256" / base.manifest.layers[0].digest.hex
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)
    known: dict[str, str] = {}
    with pytest.raises(IntegrityError):
        glibc(base, known)
    assert known == {}


@pytest.mark.parametrize(
    ("media_type", "pack"),
    [
        (OCI_LAYER_GZIP, lambda raw: gzip.compress(raw[:500]) + gzip.compress(raw[500:])),
        (OCI_LAYER_ZSTD, lambda raw: zstandard.compress(raw[:500]) + zstandard.compress(raw[500:])),
        (OCI_LAYER, lambda raw: raw),
    ],
)
def test_layers_of_several_members_are_read_to_their_end(media_type: str, pack: Any) -> None:
    raw = bytes(range(256)) * 8
    assert b"".join(decompressed(io.BytesIO(pack(raw)), media_type)) == raw


@pytest.mark.parametrize("media_type", [OCI_LAYER_GZIP, OCI_LAYER_ZSTD])
def test_what_is_not_compressed_is_refused(media_type: str) -> None:
    with pytest.raises(IntegrityError, match="cannot be decompressed"):
        list(decompressed(io.BytesIO(b"plain text"), media_type))


def test_read_all_stops_at_its_limit() -> None:
    assert read_all(io.BytesIO(b"x" * 10), 10, "it") == b"x" * 10
    with pytest.raises(IntegrityError, match="more than 9 bytes"):
        read_all(io.BytesIO(b"x" * 10), 9, "it")


@pytest.mark.parametrize(
    "odd",
    [
        {"history": 7}, {"created": [1]}, {"config": "x"}, {"config": {"Env": 7}}, {"config": {"Env": [7]}},
        {"config": {"Labels": ["x"]}}, {"config": {"Labels": {"a": 7}}}, {"author": "\ud800"},
    ],
)  # fmt: skip
def test_a_base_whose_config_has_odd_members_is_refused(odd: dict[str, Any]) -> None:
    """The config goes into the image's own, which nobody could write, or run."""
    scratch = BaseImage.scratch(LINUX_AMD64)
    scratch.check(LINUX_AMD64)
    raw = json.dumps({**scratch.config, **odd}).encode()
    with pytest.raises(IntegrityError, match="not an image's"):
        replace(scratch, raw_config=raw).check(LINUX_AMD64)
