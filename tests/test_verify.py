"""Verification: each lie about an image is found by the check that is about it."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envbuild.digest import Descriptor, Digest
from envbuild.errors import IntegrityError, NotFound
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, Manifest, encode
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver, Source
from envbuild.verify import verify
from oci_contract import flipped, put, put_image, put_index
from tiny import World

KEY, LOCK = "a" * 64, "b" * 64


def archive(name: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as written:
        written.addfile(tarfile.TarInfo(name))
    return content.getvalue()


TARS = archive("one"), archive("two")


@pytest.fixture
def registry(tmp_path: Path) -> LayoutRegistry:
    return LayoutRegistry(Repository.parse(f"oci:{tmp_path}/images"))


def image(registry: LayoutRegistry, config: Any, annotations: dict[str, str] | None = None) -> Manifest:
    """An image of two layers whose config is as given."""
    layers = tuple(put(registry, gzip.compress(tar)) for tar in TARS)
    content = config if isinstance(config, bytes) else encode(config)
    manifest = Manifest.build(
        put(registry, content, OCI_CONFIG),
        layers,
        {KEY_ANNOTATION: KEY, LOCK_ANNOTATION: LOCK, "io.envbuild.scheme": "1", **(annotations or {})},
    )
    registry.put_manifest(manifest, Tag(f"k1-{KEY}"))
    return manifest


def config(**changes: Any) -> dict[str, Any]:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {LOCK_ANNOTATION: LOCK, "io.envbuild.scheme": "1"}},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in TARS]},
    }
    return document | changes


def failed(registry: LayoutRegistry, tag: str = f"k1-{KEY}", **options: Any) -> set[str]:
    report = verify(registry, Tag(tag), **options)
    names = {check.name for check in report.checks if check.passed is False}
    assert report.passed is (not names)
    return names


def test_a_good_image_passes_every_check(registry: LayoutRegistry) -> None:
    image(registry, config())
    report = verify(registry, Tag(f"k1-{KEY}"), full=True)
    assert report.passed
    assert {check.name: check.passed for check in report.checks} == {
        "manifest": True,
        "key": True,
        "lock key": True,
        "config": True,
        "platform": True,
        "layers": True,
        "history": None,
        "labels": True,
        "blobs": True,
        "archives": True,
        "attached": None,
        "definition": None,
        "lock": None,
        "recipe": None,
        "signature": None,
    }


@pytest.mark.parametrize(
    ("content", "annotations", "name"),
    [
        (config(), {KEY_ANNOTATION: "c" * 64}, "key"),
        (config(), {KEY_ANNOTATION: "short"}, "key"),
        (config(), {"io.envbuild.scheme": "9"}, "key"),
        (config(), {LOCK_ANNOTATION: "B" * 64}, "lock key"),
        (config(os=""), {}, "platform"),
        (config(architecture=None), {}, "platform"),
        (config(rootfs={"diff_ids": [f"sha256:{'1' * 64}"]}), {}, "layers"),
        (config(rootfs=None), {}, "layers"),
        (config(rootfs={"diff_ids": ["md5:1", "md5:2"]}), {}, "layers"),
        (config(config={"Labels": {LOCK_ANNOTATION: "c" * 64}}), {}, "labels"),
        (b"not JSON", {}, "config"),
        (b"[]", {}, "config"),
    ],
)
def test_a_lie_is_found(
    registry: LayoutRegistry, content: Any, annotations: dict[str, str], name: str
) -> None:
    image(registry, content, annotations)
    assert name in failed(registry)


def test_blobs_are_looked_for_or_read(registry: LayoutRegistry) -> None:
    manifest = image(registry, config())
    path = registry.repository.folder / "blobs/sha256" / manifest.layers[0].digest.hex
    good = path.read_bytes()
    path.write_bytes(flipped(good))
    assert failed(registry) == set()
    assert failed(registry, full=True) == {"blobs"}
    path.unlink()
    assert failed(registry) == {"blobs"}
    (path.parent / manifest.config.digest.hex).unlink()
    assert failed(registry) == {"blobs", "config"}


def test_an_index_is_looked_into(registry: LayoutRegistry) -> None:
    index = put_index(registry, "both")
    registry.put_manifest(index, Tag("v1"))
    names = [check.name for check in verify(registry, Tag("v1")).checks]
    assert {"linux/amd64 blobs", "linux/arm64 blobs"} <= set(names)
    (registry.repository.folder / "blobs/sha256" / index.manifests[1].digest.hex).unlink()
    assert "linux/arm64 manifest" in failed(registry, "v1")


def test_what_is_missing_is_not_found(registry: LayoutRegistry) -> None:
    with pytest.raises(NotFound):
        verify(registry, Tag("v1"))


def test_an_image_without_our_keys_is_checked_for_the_rest(registry: LayoutRegistry) -> None:
    registry.put_manifest(put_image(registry, "plain", layers=0), Tag("v1"))
    report = verify(registry, Tag("v1"))
    assert report.passed
    assert next(check for check in report.checks if check.name == "key").passed is None


# Hits


def lose(world: World, digest_of: Callable[[Manifest], Descriptor], key: str) -> Manifest:
    manifest = world.layout().get_manifest(Tag(f"k1-{key}"))
    assert isinstance(manifest, Manifest)
    lost = digest_of(manifest).digest.hex
    (world.config.workspace.folder / "blobs/sha256" / lost).unlink()
    return manifest


@pytest.mark.parametrize("what", ["config", "lowest layer", "highest layer"])
def test_deep_mode_gives_no_dead_reference(tmp_path: Path, what: str) -> None:
    world = World.make(tmp_path)
    spec = world.spec("first", "second")
    deep = replace(world.config, deep=True)
    with Resolver(world.config) as resolver:
        built = resolver.resolve(spec)
    blobs: dict[str, Callable[[Manifest], Descriptor]] = {
        "config": lambda manifest: manifest.config,
        "lowest layer": lambda manifest: manifest.layers[0],
        "highest layer": lambda manifest: manifest.layers[-1],
    }
    lose(world, blobs[what], str(built.key))
    with Resolver(world.config) as resolver:
        assert resolver.resolve(spec).source is Source.INDEX
    with Resolver(deep) as resolver:
        again = resolver.resolve(spec)
        assert again.source is Source.BUILT
        assert verify(world.layout(), again.reference.digest, full=True).passed
        assert resolver.resolve(spec).source is Source.INDEX


def test_a_hit_with_a_malformed_lock_key_or_too_many_layers_is_refused(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    spec = world.spec("first")
    with Resolver(world.config) as resolver:
        key = str(resolver.resolve(spec).key)
    registry = world.layout()
    manifest = registry.get_manifest(Tag(f"k1-{key}"))
    assert isinstance(manifest, Manifest)
    bad = Manifest.build(manifest.config, manifest.layers, {KEY_ANNOTATION: key, LOCK_ANNOTATION: "../x"})
    high = Manifest.build(manifest.config, manifest.layers[:1] * 128, {KEY_ANNOTATION: key})
    for each in (bad, high):
        registry.put_manifest(each, Tag(f"k1-{key}"))
        with Resolver(world.other_machine()) as resolver, pytest.raises(IntegrityError):
            resolver.resolve(spec)
