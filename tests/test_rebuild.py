"""Building again what was built: equal where it should be, else told, and nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envbuild.attach import LOCK_TYPE
from envbuild.checks import Check
from envbuild.lockfile.document import LockFile
from envbuild.oci.manifest import Manifest
from envbuild.oci.referrers import Artifact, attach, fallback_tag, read_artifact, referrers
from envbuild.rebuild import Rebuild
from envbuild.reference import Repository, parse_reference
from envbuild.resolver import ResolvedImage, Resolver
from tiny import LIBC, World, make_base
from tiny_wheels import TinyWheel, index
from wheel_world import spec, wheel_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A machine with a channel and wheels, whose temporary folder is empty in the end."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    yield wheel_world(tmp_path)
    assert not list(temporary.iterdir())


def resolve(world: World, path: Path, **changes: Any) -> ResolvedImage:
    with Resolver(replace(world.config, **changes)) as resolver:
        return resolver.resolve(path)


def checks(world: World, image: ResolvedImage, base: str | None = None, **changes: Any) -> dict[str, Check]:
    registry = world.layout()
    again = Rebuild(replace(world.config, **changes), registry, parse_reference(base) if base else None)
    return {check.name: check for check in again.checks(registry.get_manifest(image.reference.digest))}


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_an_image_is_built_again_alike(world: World, compression: str) -> None:
    image = resolve(world, world.spec("pyth", "thing", variables={"A": "1"}), compression=compression)
    before = {path.name for path in world.config.workspace.folder.rglob("*")}
    found = checks(world, image)
    assert found["packages"].passed
    assert found["rebuild"].passed, found["rebuild"].detail
    assert str(image.reference.digest) in found["rebuild"].detail
    assert {path.name for path in world.config.workspace.folder.rglob("*")} == before


def test_wheels_are_built_again_alike(world: World) -> None:
    with index([TinyWheel("far")]) as served:
        path = spec(world, f"--index-url={served.url}/simple", "far", local=False)
        image = resolve(world, path)
        assert checks(world, image)["rebuild"].passed


def test_what_cannot_be_fetched_any_more_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envbuild.conda.fetch._BACKOFF", 0.01)
    with index([TinyWheel("far")]) as served:
        image = resolve(world, spec(world, f"--index-url={served.url}/simple", "far", local=False))
    found = checks(world, image)["rebuild"]
    assert found.passed is None
    assert found.detail.startswith("cannot be built again: far 1.0 ")
    assert "could not be fetched" in found.detail


def test_layers_are_made_again_and_compared(world: World) -> None:
    image = resolve(world, world.spec("thing", "tool"))
    found = checks(world, image, max_layers=3)
    assert found["rebuild"].passed is False
    assert "of 4 layers alike" in found["rebuild"].detail


def test_a_base_that_went_elsewhere_can_be_named(world: World) -> None:
    image = resolve(world, world.spec("tool"))
    (world.root / "bases").rename(world.root / "moved")
    assert checks(world, image)["rebuild"].passed is None
    assert checks(world, image, f"oci:{world.root}/moved:minimal")["rebuild"].passed


def test_what_a_lock_cannot_tell_is_told(world: World) -> None:
    image = resolve(world, spec(world, "small"))
    found = checks(world, image)["rebuild"]
    assert found.passed is None
    assert "read files" in found.detail
    bare = resolve(world, world.spec("tool", name="bare.yml"), attach=False)
    found = checks(world, bare)["rebuild"]
    assert found.passed is False
    assert found.detail.startswith("no lock is attached")


def test_the_lock_of_another_image_is_refused(world: World, tmp_path: Path) -> None:
    image, other = (resolve(world, world.spec(name, name=f"{name}.yml")) for name in ("tool", "thing"))
    registry = world.layout()
    (entry,) = referrers(registry, other.reference.digest, LOCK_TYPE)
    manifest = registry.get_manifest(entry.digest)
    assert isinstance(manifest, Manifest)
    content = read_artifact(registry, manifest)
    assert LockFile.parse(content, "it").entries[0].key == other.key
    listed = registry.get_manifest(fallback_tag(image.reference.digest))
    registry.delete_manifest(listed.descriptor.digest)
    subject = registry.get_manifest(image.reference.digest).descriptor
    attach(registry, subject, [Artifact(LOCK_TYPE, LOCK_TYPE, content, {})], locks=tmp_path)
    found = checks(world, image)
    assert found["rebuild"].passed is False
    assert "is not that of the key" in found["rebuild"].detail


def test_each_image_of_an_index_is_built_again(world: World) -> None:
    path = world.root / "envbuild.yaml"
    conda = {"channels": ["tiny"], "dependencies": []}
    path.write_text(json.dumps({"platforms": ["linux/amd64", "linux/arm64"], "conda": conda}))
    make_base(Repository.parse(f"oci:{world.root}/bases"), "amd", {"lib/libc.so.6": LIBC})
    image = resolve(world, path, base="scratch")
    found = checks(world, image)
    assert found["linux/amd64 rebuild"].passed
    assert found["linux/arm64 rebuild"].passed
