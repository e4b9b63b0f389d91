"""Locks of other tools as definitions: the same packages, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from envbuild.config import Config
from envbuild.errors import SpecError
from envbuild.foreign import load
from envbuild.lock import PackageRecord
from envbuild.locking import make_lock
from envbuild.platform import Platform
from envbuild.resolver import ResolvedImage, Resolver, Source
from tiny import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def packages(world: World, *dependencies: str) -> tuple[PackageRecord, ...]:
    with Resolver(world.config) as resolver:
        lock = make_lock(resolver, load(world.spec(*dependencies)), world.root)
    return lock.entries[0].lock.packages


def pixi(world: World, records: tuple[PackageRecord, ...], name: str = "pixi.lock") -> Path:
    lines = ["version: 6", "environments:", "  default:", "    channels:"]
    lines += [f"    - url: {world.config.channel_alias}/tiny", "    packages:", "      linux-64:"]
    lines += [f"      - conda: {record.url}" for record in records]
    lines += ["packages:"]
    for record in records:
        lines += [f"- conda: {record.url}", f"  sha256: {record.sha256.hex}", f"  md5: {record.md5}"]
        lines += [f"  subdir: {record.subdir}", f"  depends: {json.dumps(record.depends)}"]
    path = world.root / name
    path.write_text("\n".join(lines) + "\n")
    return path


def conda_lock(world: World, records: tuple[PackageRecord, ...], name: str = "conda-lock.yml") -> Path:
    document = ["# made by hand", "version: 1", "metadata:", "  content_hash: {linux-64: abc}", "  channels:"]
    document += [f"  - url: {world.config.channel_alias}/tiny", "    used_env_vars: []"]
    document += ["  platforms: [linux-64]", "  sources: [environment.yml]", "package:"]
    for record in records:
        document += [f"- name: {record.name}", f"  version: '{record.version}'", "  manager: conda"]
        document += ["  platform: linux-64", "  dependencies: {}", f"  url: {record.url}"]
        document += [f"  hash: {{md5: {record.md5}, sha256: {record.sha256.hex}}}"]
        document += ["  category: main", "  optional: false"]
    path = world.root / name
    path.write_text("\n".join(document) + "\n")
    return path


def explicit(world: World, records: tuple[PackageRecord, ...], name: str = "explicit.txt") -> Path:
    path = world.root / name
    lines = [f"{record.url}#{record.md5}" for record in records]
    path.write_text("\n".join(["# platform: linux-64", "@EXPLICIT", *lines]) + "\n")
    return path


def resolve(config: Config, spec: Path) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(spec)


@pytest.mark.parametrize("write", [pixi, conda_lock, explicit])
def test_the_same_packages_share_the_image(world: World, write: object) -> None:
    records = packages(world, "pyth", "thing", "tool=1")
    own = resolve(world.config, world.spec("pyth", "thing", "tool=1"))
    assert callable(write)
    path = write(world, records)
    image = resolve(world.other_machine(), path)
    assert (image.source, image.lock_key) == (Source.BUILT, own.lock_key)
    assert (image.layers_made, image.bytes_uploaded) == (0, 0)
    assert resolve(world.other_machine(), path).source is Source.WORKSPACE


def test_order_does_not_count_and_packages_do(world: World) -> None:
    records = packages(world, "pyth", "thing", "tool=1")
    with Resolver(world.config) as resolver:
        key = resolver.key(explicit(world, records))
        assert resolver.key(explicit(world, records[::-1])) == key
        assert resolver.key(explicit(world, records[1:])) != key
        assert resolver.key(pixi(world, records)) == resolver.key(conda_lock(world, records))


def test_a_lock_is_for_its_platform(world: World) -> None:
    records = packages(world, "tool=1")
    arm64 = (Platform.parse("linux/arm64"),)
    with pytest.raises(SpecError, match="the lock is for linux-64, and linux-aarch64"):
        load(pixi(world, records), platforms=arm64)
    with pytest.raises(SpecError, match="the list is for linux/amd64, and linux/arm64"):
        load(explicit(world, records), platforms=arm64)
    assert str(load(explicit(world, records), platforms="linux-64").platforms[0]) == "linux/amd64"


def test_a_base_and_steps_can_be_given_and_a_moment_cannot(world: World) -> None:
    records = packages(world, "tool=1")
    (world.root / "steps").write_text("RUN a\n")
    spec = load(pixi(world, records), base="debian:12", steps=world.root / "steps")
    assert str(spec.base) == "docker.io/library/debian:12"
    assert spec.steps is not None
    with pytest.raises(SpecError, match="as_of"):
        load(pixi(world, records), as_of="2026-01-01")


def test_python_distributions_are_refused_by_name(world: World) -> None:
    path = pixi(world, packages(world, "tool=1"))
    wheel = "pypi: https://e.com/x-1-py3-none-any.whl"
    text = path.read_text().replace("      linux-64:\n", f"      linux-64:\n      - {wheel}\n")
    path.write_text(f"{text}- {wheel}\n  name: x\n  version: '1'\n  sha256: {'0' * 64}\n")
    with pytest.raises(SpecError, match="Python indexes, as x"):
        load(path)


MIXED = "@EXPLICIT\n" + "".join(
    f"https://e.com/c/{subdir}/a-1-0.conda#{'0' * 32}\n" for subdir in ("linux-64", "osx-64")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 6\nenvironments: 3\n", "cannot be read"),
        ("version: 99\nenvironments: {}\npackages: []\n", "cannot be read"),
        ("version: 6\nenvironments: {}\npackages: []\n", "several environments"),
        ("@EXPLICIT\nhttps://e.com/c/linux-64/a-1-0.conda\n", "URL with its digest"),
        ("@EXPLICIT\nnumpy\n", "URL with its digest"),
        (MIXED, "mixes linux-64, osx-64"),
    ],
)
def test_what_is_no_such_lock_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "some.lock"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        load(path)
    assert caught.value.source == str(path)


def test_everything_else_is_read_as_ever(world: World) -> None:
    assert load(world.spec("tool")).conda is not None
    with pytest.raises(SpecError):
        load(world.root / "missing.yml")
