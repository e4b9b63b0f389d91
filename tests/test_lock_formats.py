"""Locks as other tools have them: what is written is read again as the same packages, by us and by them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rattler
import uv
from filelock import FileLock
from rattler.explicit_environment import ExplicitEnvironmentSpec

import conda_oracle
from conda_packages import Entry, Package
from envbuild.errors import SpecError
from envbuild.foreign import load
from envbuild.foreign.write import Format, render
from envbuild.lock import PackageRecord
from envbuild.lockfile.document import LockFile
from envbuild.locking import make_lock
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.resolver import Resolver
from fixtures_channel import Bases, ChannelFolder
from tiny import World

FOREIGN = [form for form in Format if form is not Format.ENVBUILD]
ROOT = Path(__file__).resolve().parent.parent
OWN_VENV = ROOT / ".cache" / "programs" / "conda-lock"
READ_WITH_CONDA_LOCK = """
import json, pathlib, sys
from conda_lock.lockfile import parse_conda_lock_file
lock = parse_conda_lock_file(pathlib.Path(sys.argv[1]))
print(json.dumps({
    "platforms": lock.metadata.platforms,
    "channels": [channel.url for channel in lock.metadata.channels],
    "packages": [[p.name, p.version, p.platform, p.url, p.hash.sha256, p.dependencies] for p in lock.package],
}))
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def locked(world: World, spec: Path, **overrides: Any) -> LockFile:
    with Resolver(world.config) as resolver:
        return make_lock(resolver, load(spec, **overrides), world.root)


def write(world: World, lock: LockFile, form: Format) -> Path:
    path = world.root / form.file_name
    path.write_bytes(render(lock, form, laid_over={"base"}))
    return path


def records(lock: LockFile, platform: Platform = LINUX_AMD64) -> tuple[PackageRecord, ...]:
    entry = lock.entry(platform)
    assert entry is not None
    return entry.lock.packages


def lock_key(world: World, spec: Path, **overrides: Any) -> str | None:
    with Resolver(world.other_machine()) as resolver:
        return resolver.resolve(load(spec, **overrides)).lock_key


@pytest.mark.parametrize("form", FOREIGN)
def test_what_is_written_is_read_as_the_same_solution(world: World, form: Format) -> None:
    spec = world.spec("pyth", "thing", "tool=1")
    lock = locked(world, spec)
    path = write(world, lock, form)
    assert records(locked(world, path)) == records(lock)
    assert lock_key(world, path) == lock_key(world, spec) is not None
    assert write(world, lock, form).read_bytes() == path.read_bytes()


def test_a_real_environment(channel: ChannelFolder, bases: Bases, world: World) -> None:
    world.config = replace(world.config, base=f"oci:{bases.minimal}:latest", channel_alias=channel.alias)
    spec = load(ROOT / "fixtures/envs/scientific/environment.yml")
    with Resolver(world.config) as resolver:
        lock = make_lock(resolver, replace(spec, variables=()), world.root)
    assert len(records(lock)) == 74
    for form in FOREIGN:
        assert records(locked(world, write(world, lock, form))) == records(lock)


@pytest.mark.parametrize("form", FOREIGN)
def test_each_package_keeps_its_channel(world: World, form: Format) -> None:
    folder = world.root / "channels" / "second"
    Package((Entry("share/tool/data", b"other"),), name="tool", version="3.0").put(folder)
    Package((Entry("share/extra", b"e"),), name="extra", version="1.0").put(folder)
    asyncio.run(conda_oracle.index(folder))
    spec = world.spec("extra", "tool=1", channels=["second", "tiny"], name="mixed.yaml")
    spec.write_text(json.dumps({"conda": json.loads(spec.read_text()), "channel_priority": "disabled"}))
    lock = locked(world, spec)
    assert [record.channel.rpartition("/")[2] for record in records(lock)] == ["second", "tiny"]
    assert records(locked(world, write(world, lock, form))) == records(lock)


def two_platforms(world: World) -> LockFile:
    arm = {"subdir": "linux-aarch64"}
    folder = world.root / "channels" / "tiny"
    Package((Entry("share/tool/data", b"arm"),), name="tool", version="2.0", index=arm).put(folder)
    asyncio.run(conda_oracle.index(folder))
    path = world.root / "envbuild.yaml"
    conda = {"channels": ["tiny"], "dependencies": ["tool"]}
    path.write_text(
        json.dumps({"platforms": ["linux/amd64", "linux/arm64"], "base": "scratch", "conda": conda})
    )
    return locked(world, path)


@pytest.mark.parametrize("form", [Format.PIXI, Format.CONDA_LOCK])
def test_several_platforms_in_one_file(world: World, form: Format) -> None:
    lock = two_platforms(world)
    path = write(world, lock, form)
    for entry in lock.entries:
        platform = entry.lock.platform
        assert (
            records(locked(world, path, base="scratch", platforms=platform), platform) == entry.lock.packages
        )
    with pytest.raises(SpecError, match="for one platform"):
        load(path, platforms=("linux/amd64", "linux/arm64"))


def test_a_list_of_urls_is_for_one_platform(world: World) -> None:
    with pytest.raises(SpecError, match="for one platform"):
        write(world, two_platforms(world), Format.EXPLICIT)


def test_rattler_reads_a_pixi_lock(world: World) -> None:
    said = {"constrains": ["other <2"], "license": "MIT", "timestamp": 1700000000000, "features": "f"}
    world.patch("linux-64", "thing", **said, track_features="a b", license_family="X")
    lock = locked(world, world.spec("pyth", "thing"))
    environment = rattler.LockFile.from_path(write(world, lock, Format.PIXI)).default_environment()
    assert environment is not None
    (platform,) = environment.platforms()
    assert platform.name == "linux-64"
    assert [str(each) for each in environment.channels()] == [f"{world.config.channel_alias}/tiny"]
    seen = environment.conda_repodata_records_for_platform(platform) or []
    expected = {(each.url, each.sha256.hex, each.depends, each.size, each.noarch) for each in records(lock)}
    kinds = {record.url: record.noarch for record in seen}
    thing = json.loads(next(record for record in seen if record.name.normalized == "thing").to_json())
    assert {name: thing[name] for name in said} == said, "who installs it records what the channel says"
    assert thing["track_features"] == "a b"
    assert {
        (
            record.url,
            (record.sha256 or b"").hex(),
            tuple(record.depends),
            record.size,
            "python" if kinds[record.url].python else "generic" if kinds[record.url].generic else None,
        )
        for record in seen
    } == expected


def test_rattler_reads_a_list_of_urls_and_each_stands_behind_what_it_needs(world: World) -> None:
    lock = locked(world, world.spec("pyth", "thing"))
    path = write(world, lock, Format.EXPLICIT)
    read = ExplicitEnvironmentSpec.from_path(path)
    assert str(read.platform) == "linux-64"
    assert {each.url.partition("#")[0] for each in read.packages} == {each.url for each in records(lock)}
    names = [line.rpartition("/")[2].partition("-")[0] for line in path.read_text().splitlines()[2:]]
    assert names.index("python") < names.index("pyth")


def test_conda_lock_reads_a_conda_lock_file(world: World) -> None:
    lock = two_platforms(world)
    path = write(world, lock, Format.CONDA_LOCK)
    done = subprocess.run(
        [conda_lock_python(), "-c", READ_WITH_CONDA_LOCK, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["platforms"] == ["linux-64", "linux-aarch64"]
    assert seen["channels"] == [f"{world.config.channel_alias}/tiny"]
    assert sorted(each[:5] for each in seen["packages"]) == sorted(
        [each.name, each.version, entry.lock.platform.subdir, each.url, each.sha256.hex]
        for entry in lock.entries
        for each in entry.lock.packages
    )


def conda_lock_python() -> str:
    """The Python of a venv of conda-lock's own: it brings forty packages, some older than ours."""
    OWN_VENV.parent.mkdir(parents=True, exist_ok=True)
    python = OWN_VENV / "bin" / "python"
    with FileLock(f"{OWN_VENV}.lock"):
        if not (OWN_VENV / "complete").exists():
            tool = uv.find_uv_bin()
            subprocess.run([tool, "venv", "-q", "--clear", "-p", sys.executable, OWN_VENV], check=True)
            subprocess.run([tool, "pip", "install", "-q", "-p", python, "conda-lock>=4,<5"], check=True)
            (OWN_VENV / "complete").touch()
    return str(python)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base": "scratch"}, "has a base"),
        ({"steps": "RUN true"}, "has Docker steps,"),
        ({"steps_after": "RUN true"}, "has Docker steps after"),
        ({"variables": {"A": "b"}}, "has variables"),
    ],
)
def test_what_the_formats_cannot_hold_is_refused(world: World, more: dict[str, Any], message: str) -> None:
    path = world.root / "envbuild.yaml"
    path.write_text(json.dumps({"conda": {"channels": ["tiny"], "dependencies": ["tool"]}, **more}))
    lock = locked(world, path)
    laid_over = set() if "base" in more else {"base"}
    for form in FOREIGN:
        with pytest.raises(SpecError, match=message) as caught:
            render(lock, form, laid_over=laid_over)
        assert "--format" in (caught.value.hint or "")


def test_no_packages_are_no_lock(world: World) -> None:
    lock = locked(world, world.spec())
    for form in FOREIGN:
        with pytest.raises(SpecError, match="there are no packages"):
            write(world, lock, form)


def with_package(lock: LockFile, **changes: Any) -> LockFile:
    (entry,) = lock.entries
    (package,) = entry.lock.packages
    changed = replace(entry.lock, packages=(replace(package, **changes),))
    return replace(lock, entries=(replace(entry, lock=changed),))


def test_a_package_that_would_be_read_as_another_is_refused(world: World) -> None:
    lock = locked(world, world.spec("tool"))
    odd = with_package(lock, url=records(lock)[0].url.replace("tool-2.0-", "tool-9.0-"))
    with pytest.raises(SpecError, match="read as other packages: tool"):
        write(world, odd, Format.EXPLICIT)


def test_conda_lock_needs_md5_sums(world: World) -> None:
    lock = with_package(locked(world, world.spec("tool")), md5=None)
    with pytest.raises(SpecError, match="needs MD5 sums, and the channel of tool-2"):
        write(world, lock, Format.CONDA_LOCK)
    assert write(world, lock, Format.PIXI).exists()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("pixi.lock", Format.PIXI),
        ("conda-lock.yml", Format.CONDA_LOCK),
        ("train.conda-lock.yaml", Format.CONDA_LOCK),
        ("linux-64.txt", Format.EXPLICIT),
        ("envbuild.lock", Format.ENVBUILD),
        ("other", Format.ENVBUILD),
    ],
)
def test_the_name_says_the_format(name: str, form: Format) -> None:
    assert Format.of_name(name) is form
