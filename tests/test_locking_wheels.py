"""Locks of definitions with a pip section, and builds that are held to them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from envbuild.build.assemble import STEPS_ANNOTATION
from envbuild.build.base import BaseImage
from envbuild.build.wheel_lock import _needs_python
from envbuild.config import Config
from envbuild.digest import Digest
from envbuild.errors import BuildError, IntegrityError, SolveError, SpecError
from envbuild.key import steps_key
from envbuild.lock import PackageRecord
from envbuild.lockfile import FILE_NAME, LockPolicy, load
from envbuild.lockfile.document import LockFile
from envbuild.locking import make_lock
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.oci.registry import publish
from envbuild.platform import LINUX_AMD64
from envbuild.progress import Event
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from tiny import World, make_base
from tiny_wheels import TinyWheel, index
from wheel_world import put, requirements, spec, wheel_world

REQUIRED = LockPolicy(required=True)
IGNORED = LockPolicy(ignored=True)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel, bases and wheels."""
    return wheel_world(tmp_path)


def write_lock(config: Config, path: Path) -> LockFile:
    with Resolver(config) as resolver:
        lock = make_lock(resolver, load(path), path.parent)
    lock.write(path.parent / FILE_NAME)
    return lock


def resolve(config: Config, path: Path, policy: LockPolicy = REQUIRED) -> ResolvedImage:
    with Resolver(config, locks=policy) as resolver:
        return resolver.resolve(path)


def content(image: ResolvedImage) -> tuple[object, ...]:
    """Config and layers."""
    manifest = LayoutRegistry(image.reference.repository).get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    return manifest.config, manifest.layers


def wheels(lock: LockFile) -> list[str]:
    return [str(wheel) for entry in lock.entries for wheel in entry.pip]


def apart(world: World, name: str) -> Config:
    """The settings of a machine that has seen nothing, with a workspace of its own."""
    return world.other_machine(workspace=Repository.parse(f"oci:{world.root}/{name}"))


def test_a_lock_holds_the_wheels_and_builds_nothing(world: World) -> None:
    lock = write_lock(world.config, spec(world, "top", "small"))
    assert wheels(lock) == ["dep 2.0", "small 1.0", "top 1.0"]
    assert lock.entries[0].pip[0].url == "links/dep-2.0-py3-none-any.whl"
    assert all(wheel.size for wheel in lock.entries[0].pip)
    assert LockFile.read(world.root / FILE_NAME) == lock
    assert not world.config.workspace.folder.exists()


@pytest.mark.parametrize(
    ("lines", "locked"),
    [(("top",), ["top 1.0"]), (("top", "dep>=2"), ["dep 2.0", "top 1.0"]), (("dep",), [])],
)
def test_what_conda_will_install_is_kept_or_replaced_as_without_a_lock(
    world: World, lines: tuple[str, ...], locked: list[str]
) -> None:
    path = spec(world, *lines, conda=("python", "dep"))
    assert wheels(write_lock(world.config, path)) == locked
    with_lock = resolve(world.config, path)
    without = resolve(apart(world, "elsewhere"), path, IGNORED)
    assert with_lock.source is without.source is Source.BUILT
    assert with_lock.lock_key == without.lock_key
    assert content(with_lock) == content(without)


def test_every_machine_writes_the_same_lock_whatever_it_has_seen(world: World) -> None:
    path = spec(world, "top", conda=("python", "dep"))
    first = write_lock(world.config, path).to_bytes()
    resolve(world.config, path)
    assert write_lock(world.config, path).to_bytes() == first
    assert write_lock(world.other_machine(), path).to_bytes() == first
    assert write_lock(apart(world, "elsewhere"), path).to_bytes() == first


def test_a_package_is_fetched_once_and_not_where_its_layer_is_known(world: World) -> None:
    path = spec(world, "top", conda=("python", "dep"))
    first = write_lock(world.config, path).to_bytes()
    seen = world.other_machine()
    resolve(seen, path)
    for package in (world.root / "channels").rglob("dep-*"):
        package.unlink()
    assert write_lock(world.config, path).to_bytes() == first
    assert write_lock(seen, path).to_bytes() == first
    assert write_lock(world.other_machine(), path).to_bytes() == first
    with pytest.raises(BuildError):
        write_lock(apart(world, "elsewhere"), path)


def test_with_a_lock_no_index_is_asked_for_versions(world: World) -> None:
    old, new = TinyWheel("small", "1.0"), TinyWheel("small", "2.0")
    with index([old]) as server:
        path = spec(world, f"--index-url {server.url}/simple", "small", local=False)
        assert wheels(write_lock(world.config, path)) == ["small 1.0"]
        server.kept[new.file_name] = new
        server.asked.clear()
        locked = resolve(world.other_machine(), path)
        assert server.asked == [f"GET /files/{old.file_name}"]
        fresh = resolve(apart(world, "elsewhere"), path, IGNORED)
        assert locked.key == fresh.key
        assert locked.lock_key != fresh.lock_key
        assert wheels(write_lock(world.config, path)) == ["small 2.0"]


def test_another_wheel_under_the_locked_name_is_refused(world: World) -> None:
    with index([TinyWheel("small")]) as server:
        path = spec(world, f"--index-url {server.url}/simple", "small", local=False)
        write_lock(world.config, path)
        changed = TinyWheel("small", files={"small/__init__.py": b"evil = 1\n"})
        server.kept[changed.file_name] = changed
        with pytest.raises(IntegrityError, match="small"):
            resolve(world.config, path)


def test_credentials_come_from_the_definition_and_are_not_in_the_lock(world: World) -> None:
    with index([TinyWheel("small")], user="me:secret") as server:
        private = server.url.replace("http://", "http://me:secret@")
        path = spec(world, f"--index-url {private}/simple", "small", local=False)
        write_lock(world.config, path)
        assert b"secret" not in (world.root / FILE_NAME).read_bytes()
        server.asked.clear()
        assert resolve(world.config, path).source is Source.BUILT
        assert server.asked == [f"GET /files/{TinyWheel('small').file_name}"]


def test_a_lock_moves_with_its_definition_and_its_wheels(world: World) -> None:
    here, there = world.root / "here", world.root / "there"
    here.mkdir()
    (world.root / "links").rename(here / "links")
    path = spec(world, "top", "./links/small-1.0-py3-none-any.whl").rename(here / "environment.yml")
    lock = write_lock(world.config, path)
    assert wheels(lock) == ["dep 2.0", "small 1.0", "top 1.0"]
    shutil.copytree(here, there)
    shutil.rmtree(here)
    image = resolve(world.other_machine(), there / "environment.yml")
    assert image.key == lock.entries[0].key


def test_a_changed_requirement_or_wheel_makes_the_lock_stale(world: World) -> None:
    write_lock(world.config, spec(world, "top"))
    with pytest.raises(SpecError, match=r"is stale: .*small"):
        resolve(world.config, spec(world, "top", "small"))
    assert resolve(world.config, spec(world, "top")).source is Source.BUILT
    put(world, TinyWheel("dep", "3.0"))
    with pytest.raises(SpecError, match="is stale"):
        resolve(world.config, spec(world, "top"))
    events: list[Event] = []
    with Resolver(world.config, progress=events.append) as resolver:
        resolver.resolve(spec(world, "top"))
    assert any("is stale" in event.text for event in events)


def test_requirements_alone_are_locked_for_the_bases_python(world: World) -> None:
    config = replace(world.config, base=f"oci:{world.root}/bases:python")
    path = requirements(world, "top", "small")
    lock = write_lock(config, path)
    assert wheels(lock) == ["dep 2.0", "small 1.0", "top 1.0"]
    assert lock.definition == "requirements.txt"
    locked = resolve(config, path)
    config = replace(apart(world, "elsewhere"), base=config.base)
    assert resolve(config, path, IGNORED).lock_key == locked.lock_key
    with pytest.raises(BuildError, match="no python"):
        write_lock(world.config, path)


def test_wheels_that_no_longer_fit_the_python_of_the_steps_are_refused(world: World) -> None:
    path = world.root / "envbuild.yaml"
    path.write_text("steps: [RUN install]\npip: ['--no-index', '--find-links ./links', tagged]\n")
    put(world, TinyWheel("tagged", tag="cp311-none-any"))
    libc = b"\x7fELF...GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n..."
    steps_image(world, path, {"lib/libc.so.6": libc, "usr/bin/python3.11": b"elf"})
    assert wheels(write_lock(world.config, path)) == ["tagged 1.0"]
    world.config.workspace.folder.rename(world.root / "old")
    steps_image(world, path, {"lib/libc.so.6": libc, "usr/bin/python3.12": b"elf"})
    with pytest.raises(SolveError, match=r"does not fit python 3\.12"):
        resolve(world.config, path)
    with pytest.raises(SolveError, match="tagged"):
        write_lock(world.config, path)


def test_a_lock_with_wheels_is_a_definition(world: World) -> None:
    with index([TinyWheel("small")]) as server:
        path = spec(world, f"--index-url {server.url}/simple", "small", local=False)
        write_lock(world.config, path)
        server.asked.clear()
        image = resolve(world.config, world.root / FILE_NAME)
        assert server.asked == [f"GET /files/{TinyWheel('small').file_name}"]
        assert resolve(world.config, path).reference == image.reference


def test_what_cannot_be_installed_cannot_be_locked(world: World) -> None:
    with pytest.raises(BuildError, match="version control"):
        write_lock(world.config, spec(world, "git+https://example.org/x.git"))
    with pytest.raises(SolveError, match="pip section"):
        write_lock(world.config, spec(world, "missing"))


def steps_image(world: World, path: Path, files: dict[str, bytes]) -> None:
    """Publish an image as that of a definition's steps."""
    loaded = load(path)
    assert loaded.steps is not None
    bases = LayoutRegistry(Repository.parse(f"oci:{world.root}/bases"))
    base = BaseImage.read(bases, Tag("minimal"), LINUX_AMD64)
    name = steps_key(base.digest, loaded.steps, LINUX_AMD64)
    registry = LayoutRegistry(world.config.workspace)
    manifest = registry.get_manifest(make_base(world.config.workspace, "made", files))
    assert isinstance(manifest, Manifest)
    publish(
        registry,
        Manifest.build(manifest.config, manifest.layers, {STEPS_ANNOTATION: name}),
        Tag(f"s1-{name}"),
    )


def test_the_glibc_and_python_of_known_steps_count(world: World) -> None:
    path = world.root / "envbuild.yaml"
    text = "steps: [RUN install]\npip: ['--no-index', '--find-links ./links', small]\n"
    path.write_text(text)
    with pytest.raises(BuildError, match="were not run yet"):
        write_lock(world.config, path)
    libc = b"\x7fELF...GNU C Library (Debian GLIBC 2.99-1) stable release version 2.99.\n..."
    steps_image(world, path, {"lib/libc.so.6": libc, "usr/bin/python3.11": b"elf"})
    assert wheels(write_lock(world.config, path)) == ["small 1.0"]


def test_conda_is_solved_for_the_glibc_of_known_steps(world: World) -> None:
    path = world.root / "envbuild.yaml"
    path.write_text("steps: [RUN install]\nconda: {channels: [tiny], dependencies: [newer]}\n")
    with pytest.raises(SolveError, match="glibc"):
        write_lock(world.config, path)
    libc = b"\x7fELF...GNU C Library (Debian GLIBC 2.99-1) stable release version 2.99.\n..."
    steps_image(world, path, {"lib/libc.so.6": libc})
    (package,) = write_lock(world.config, path).entries[0].lock.packages
    assert package.name == "newer"


@pytest.mark.parametrize(
    ("depends", "needs"),
    [
        (("python >=3.11,<3.12.0a0",), True),
        (("libc", "python"), True),
        (("python>=3",), True),
        (("python_abi 3.11.* *_cp311",), True),
        (("conda-forge::python 3.11.*",), True),
        (("python-dateutil", "pythonnet >=1", "libpython"), False),
        ((), False),
    ],
)
def test_packages_that_need_python(depends: tuple[str, ...], needs: bool) -> None:
    url = "https://example.org/c/linux-64/x-1-0.conda"
    record = PackageRecord("x", "1", "0", 0, "linux-64", url, Digest("0" * 64), depends=depends)
    assert _needs_python(record) is needs
    assert _needs_python(replace(record, noarch="python"))
