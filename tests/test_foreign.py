"""Locks of other tools as definitions: the same packages, and what does not fit is refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from envbuild.config import Config
from envbuild.errors import SpecError
from envbuild.foreign import load
from envbuild.lock import PackageRecord
from envbuild.lockfile import LockPolicy
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


WITHOUT_DIGEST = """version: 1
metadata: {}
package:
- {name: a, platform: linux-64, manager: conda, url: "https://e.com/c/linux-64/a-1-0.conda", hash: {}}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 6\nenvironments: 3\n", "cannot be read"),
        ("version: 99\nenvironments: {}\npackages: []\n", "cannot be read"),
        ("version: 6\nenvironments: {}\npackages: []\n", "has no environment"),
        ("metadata: {}\npackage: []\nversion: 9\n", "its version is '9'"),
        ("version: 1\nmetadata: 3\npackage: []\n", "expected `metadata`"),
        ("version: 1\nmetadata: &a {}\npackage: [*a]\n", "an alias"),
        (f"version: 1\nmetadata: {{}}\npackage: {'[' * 30}\n", "nested too deep"),
        ("version: 1\nmetadata: {}\npackage: [\n", "cannot be read"),
        ("version: 1\nmetadata: {platforms: [osx-64]}\npackage: []\n", "for osx-64, and linux-64 is asked"),
        (WITHOUT_DIGEST, "no package URL with its digest"),
        ("# pip torch @ https://e.com/torch-1-py3-none-any.whl#sha256=0\n@EXPLICIT\n", "indexes, as torch"),
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


def turned(text: str) -> str:
    """A document with its members at the top in the other order."""
    blocks = re.split(r"(?m)^(?=[a-z]+:)", text)
    return blocks[0] + "".join(reversed(blocks[1:]))


@pytest.mark.parametrize("write", [pixi, conda_lock, explicit])
@pytest.mark.parametrize("name", ["environment.yml", "x", "a.txt", "requirements.txt"])
def test_what_a_file_is_is_told_by_what_it_holds(world: World, write: Any, name: str) -> None:
    path = write(world, packages(world, "pyth", "tool=1"))
    expected = load(path).conda
    other = world.root / "other" / name
    other.parent.mkdir()
    other.write_text(turned(path.read_text()) if write is not explicit else path.read_text())
    assert load(other).conda == expected
    assert load(other.parent if name == "environment.yml" else other).conda == expected


@pytest.mark.parametrize("write", [pixi, conda_lock, explicit])
def test_a_lock_on_standard_input_is_that_of_a_file(
    world: World, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    path = write(world, packages(world, "pyth", "tool=1"))
    from_file = load(path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    from_input = load("-")
    assert (from_input.conda, from_input.platforms) == (from_file.conda, from_file.platforms)
    assert from_input.source == "<stdin>"


def test_a_lock_of_ours_on_standard_input_is_held_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Resolver(world.config) as resolver:
        lock = make_lock(resolver, load(world.spec("tool=1")), world.root).to_bytes()
    path = world.root / "some.lock"
    path.write_bytes(lock)
    expected = resolve(world.config, path)
    monkeypatch.chdir(world.root)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lock)))
    with Resolver(world.config, locks=LockPolicy(required=True)) as resolver:
        found = resolver.resolve(load("-"))
    assert (found.locked, found.reference) == (True, expected.reference)


def test_a_folder_without_a_definition_may_hold_a_lock(world: World) -> None:
    folder = world.root / "folder"
    folder.mkdir()
    with pytest.raises(SpecError, match="holds none of"):
        load(folder)
    path = conda_lock(world, packages(world, "tool=1")).rename(folder / "conda-lock.yml")
    assert load(folder).conda == load(path).conda
    (folder / "environment.yml").write_text("channels: [tiny]\ndependencies: [thing]\n")
    assert load(folder).source.endswith("environment.yml")


def named_platforms(world: World, platforms: dict[str, tuple[str, tuple[PackageRecord, ...]]]) -> Path:
    """A ``pixi.lock`` of version 7, whose platforms have names."""
    lines = ["version: 7", "platforms:"]
    for name, (subdir, _) in platforms.items():
        lines += [f"- name: {name}", *([f"  subdir: {subdir}"] if subdir != name else [])]
    lines += ["environments:", "  default:", "    channels:", f"    - url: {world.config.channel_alias}/tiny"]
    lines += ["    packages:"]
    for name, (_, records) in platforms.items():
        lines += [f"      {name}:", *(f"      - conda: {record.url}" for record in records)]
    lines += ["packages:"]
    for record in {record for _, records in platforms.values() for record in records}:
        lines += [f"- conda: {record.url}", f"  sha256: {record.sha256.hex}", f"  md5: {record.md5}"]
        lines += [f"  subdir: {record.subdir}", f"  depends: {json.dumps(record.depends)}"]
    path = world.root / "named.lock"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_subdir_of_a_named_platform_decides(world: World) -> None:
    one, other = packages(world, "pyth", "tool=1"), packages(world, "thing")
    expected = load(pixi(world, one)).conda
    assert load(named_platforms(world, {"p1": ("linux-64", one), "osx": ("osx-64", other)})).conda == expected
    assert load(named_platforms(world, {"p1": ("linux-64", one), "p2": ("linux-64", one)})).conda == expected
    both = {"gpu": ("linux-64", other), "linux-64": ("linux-64", one)}
    assert load(named_platforms(world, both)).conda == expected
    arm = named_platforms(world, {"only": ("linux-aarch64", one)})
    assert str(load(arm).platforms[0]) == "linux/arm64", "the one Linux that it is for"
    with pytest.raises(SpecError, match="is for linux-aarch64, and linux-64 is asked for"):
        load(arm, platforms="linux/amd64")
    with pytest.raises(SpecError, match="has p1, p2 for linux-64, with other packages"):
        load(named_platforms(world, {"p1": ("linux-64", one), "p2": ("linux-64", other)}))


EMPTY = {
    "pixi.lock of version 6": "version: 6\nenvironments:\n  default:\n    channels: []\n    packages: {}\n"
    "packages: []\n",
    "pixi.lock of version 7": "version: 7\nplatforms:\n- name: p1\n  subdir: linux-64\nenvironments:\n"
    "  default:\n    channels: []\n    packages:\n      p1: []\npackages: []\n",
    "conda-lock.yml": "metadata:\n  platforms: [linux-64]\npackage: []\nversion: 1\n",
    "@EXPLICIT": "# platform: linux-64\n@EXPLICIT\n",
}


@pytest.mark.parametrize("kind", EMPTY)
def test_a_lock_without_packages_is_an_empty_environment(world: World, kind: str) -> None:
    path = world.root / "empty.lock"
    path.write_text(EMPTY[kind])
    with Resolver(world.config) as resolver:
        assert resolver.form(path).fields["conda"] is None
        image = resolver.resolve(path)
    assert (image.source, image.layers_made) == (Source.BUILT, 0)
    if kind != "pixi.lock of version 6":  # which says nowhere what it is for
        with pytest.raises(SpecError, match="linux"):
            load(path, platforms="linux/arm64")


def test_what_conda_lock_does_not_install_is_left_out(world: World) -> None:
    records = packages(world, "pyth", "thing")
    path = conda_lock(world, records)
    text = path.read_text()
    path.write_text(text.replace("category: main", "category: docs", 1))
    assert load(path).conda != (whole := load(conda_lock(world, records)).conda)
    path.write_text(text.replace("category: main", "category: dev", 1))
    assert load(path).conda == whole


def test_dependencies_that_yaml_takes_for_numbers_do_not_matter(world: World) -> None:
    path = conda_lock(world, packages(world, "tool=1"))
    expected = load(path).conda
    path.write_text(path.read_text().replace("dependencies: {}", "dependencies: {python: 3.10, a: null}"))
    assert load(path).conda == expected


def test_a_list_without_a_subdir_is_for_the_platform_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    url = f"https://e.com/c/noarch/a-1-0.conda#{'0' * 32}"
    path.write_text(f"# platform: linux-aarch64\n@EXPLICIT\n{url}\n")
    assert str(load(path).platforms[0]) == "linux/arm64"


def test_everything_else_is_read_as_ever(world: World) -> None:
    assert load(world.spec("tool")).conda is not None
    with pytest.raises(SpecError):
        load(world.root / "missing.yml")
