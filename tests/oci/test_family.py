"""Indexes that name each other, or far too much: few reads, and a typed error."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from envbuild.config import Config
from envbuild.digest import Descriptor, Digest
from envbuild.errors import IntegrityError
from envbuild.oci.copy import copy_image
from envbuild.oci.family import MAX_MANIFESTS, entries, family
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, ImageIndex, Manifest
from envbuild.oci.registry import Registry
from envbuild.oci.whole import missing
from envbuild.promote import Promotion
from envbuild.reference import Repository, Tag


class Counting:
    """A registry that counts the manifests that are read."""

    def __init__(self, registry: LayoutRegistry) -> None:
        self.registry = registry
        self.reads = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.registry, name)

    def by(self, _deadline: object) -> Counting:
        return self

    def get_manifest(self, reference: Tag | Digest) -> Manifest | ImageIndex:
        self.reads += 1
        return self.registry.get_manifest(reference)


def read_all(registry: Registry, index: ImageIndex, folder: Path) -> object:
    return list(family(registry, index))


def copied(registry: Registry, index: ImageIndex, folder: Path) -> object:
    return copy_image(registry, LayoutRegistry(Repository.parse(f"oci:{folder}/target")), index)


def looked_for(registry: Registry, index: ImageIndex, folder: Path) -> object:
    return missing(registry, index)


WAYS = pytest.mark.parametrize("read", [read_all, copied, looked_for])


@pytest.fixture
def registry(tmp_path: Path) -> Counting:
    return Counting(LayoutRegistry(Repository.parse(f"oci:{tmp_path}/source")))


def image(registry: Counting) -> Manifest:
    config = Descriptor.of(b"{}", OCI_CONFIG)
    registry.registry.put_blob(config, lambda: io.BytesIO(b"{}"))
    manifest = Manifest.build(config, (), {})
    registry.registry.put_manifest(manifest)
    return manifest


@WAYS
def test_indexes_that_name_each_other_twice_are_not_read_for_each_way(
    registry: Counting, tmp_path: Path, read: Callable[[Counting, ImageIndex, Path], object]
) -> None:
    below: Manifest | ImageIndex = image(registry)
    for level in range(15):
        twice = (below.descriptor, below.descriptor.annotated(again=str(level)))
        below = ImageIndex.build(twice, {})
        registry.registry.put_manifest(below)
    with pytest.raises(IntegrityError, match="nested more than 4 deep"):
        read(registry, below, tmp_path)  # type: ignore[arg-type]
    assert registry.reads < 20


@WAYS
def test_an_index_of_thousands_is_read_only_so_far(
    registry: Counting, tmp_path: Path, read: Callable[[Counting, ImageIndex, Path], object]
) -> None:
    config = image(registry).config
    named = []
    blobs = tmp_path / "source/blobs/sha256"
    for number in range(MAX_MANIFESTS + 10):
        each = Manifest.build(config, (), {"n": str(number)})
        (blobs / each.descriptor.digest.hex).write_bytes(each.raw)
        named.append(each.descriptor)
    index = ImageIndex.build(tuple(named), {})
    registry.registry.put_manifest(index)
    with pytest.raises(IntegrityError, match="names more than 1024 manifests"):
        read(registry, index, tmp_path)
    assert registry.reads < 3 * MAX_MANIFESTS
    with pytest.raises(IntegrityError, match="names more than 1024 manifests"):
        entries(index, "it")


@pytest.mark.parametrize("nested", [True, False])
def test_only_an_index_over_some_images_is_promoted(registry: Counting, tmp_path: Path, nested: bool) -> None:
    entry = image(registry).descriptor
    inner = ImageIndex.build((entry,), {})
    registry.registry.put_manifest(inner)
    index = ImageIndex.build((inner.descriptor,) if nested else (entry,) * 65, {})
    registry.registry.put_manifest(index)
    target = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/target"))
    promotion = Promotion(registry, target, Config(workspace=target.repository, cache_dir=tmp_path))  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="expected an image" if nested else "at most 64 go along"):
        promotion.promote(index.descriptor.digest)
    assert registry.reads <= 2
    assert not target.repository.folder.exists()


def test_what_is_named_twice_is_read_once(registry: Counting) -> None:
    one = image(registry)
    index = ImageIndex.build((one.descriptor,) * 500, {})
    assert list(family(registry, index)) == [one, index]  # type: ignore[arg-type]
    assert registry.reads == 1
    assert entries(index, "it") == (one.descriptor,)


def test_what_is_absent_is_told_where_it_is_asked_for(registry: Counting) -> None:
    lost = Descriptor(OCI_MANIFEST, Digest("0" * 64), 10)
    raw = ImageIndex.build((lost, image(registry).descriptor), {})
    assert raw.media_type == OCI_INDEX
    assert missing(registry, raw) == (lost,)  # type: ignore[arg-type]
