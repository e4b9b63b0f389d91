"""Locks made from real channels, and resolves that are held to them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conda_oracle
from conda_packages import Entry, Package
from envbuild.config import Config
from envbuild.diff import compare, nearest
from envbuild.digest import Digest
from envbuild.errors import ChannelError, IntegrityError, SolveError, SpecError
from envbuild.key import CanonicalForm
from envbuild.lock import Lock
from envbuild.lockfile import FILE_NAME, LockPolicy, load
from envbuild.lockfile.document import LockFile
from envbuild.locking import make_lock
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.registry import publish
from envbuild.platform import LINUX_AMD64
from envbuild.progress import Event
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from tiny import LIBC, World, make_base


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def write_lock(world: World, spec: Path, config: Config | None = None) -> LockFile:
    with Resolver(config or world.config) as resolver:
        lock = make_lock(resolver, load(spec), spec.parent)
    (spec.parent / FILE_NAME).write_bytes(lock.to_bytes())
    return lock


def resolve(config: Config, spec: Path, policy: LockPolicy | None = None, **options: Any) -> ResolvedImage:
    with Resolver(config, locks=policy) as resolver:
        return resolver.resolve(spec, **options)


def spoil_channel(world: World) -> None:
    """Nothing can be solved from now on; packages are still there."""
    for path in (world.root / "channels").rglob("repodata*"):
        path.unlink()


def layer_titles(image: ResolvedImage) -> str:
    registry = LayoutRegistry(image.reference.repository)
    manifest = registry.get_manifest(image.reference.digest)
    with registry.open_blob(manifest.config) as stream:  # type: ignore[union-attr]
        return stream.read().decode()


def test_a_lock_holds_what_a_solve_gives(world: World) -> None:
    spec = world.spec("pyth", "thing")
    lock = write_lock(world, spec)
    assert lock.definition == "environment.yml"
    (entry,) = lock.entries
    assert entry.base == "oci:bases:minimal"
    assert [package.name for package in entry.lock.packages] == ["pyth", "python", "thing"]
    assert all(package.size and package.md5 and package.url for package in entry.lock.packages)
    built = resolve(world.config, spec)
    assert built.key == entry.key
    assert built.lock_key == resolve(world.other_machine(), spec, LockPolicy(ignored=True)).lock_key
    assert LockFile.parse(lock.to_bytes(), "x") == lock


def test_two_machines_write_the_same_lock(world: World) -> None:
    spec = world.spec("pyth", "thing")
    first = write_lock(world, spec)
    assert write_lock(world, spec, world.other_machine()).to_bytes() == first.to_bytes()


def test_with_a_lock_nothing_is_solved(world: World) -> None:
    spec = world.spec("pyth", "thing", "tool")
    lock = write_lock(world, spec)
    spoil_channel(world)
    fresh = world.other_machine()
    with pytest.raises(ChannelError):
        resolve(fresh, spec, LockPolicy(ignored=True))
    image = resolve(fresh, spec, LockPolicy(required=True))
    assert image.source is Source.BUILT
    assert image.key == lock.entries[0].key
    assert "tool-2.0" in layer_titles(image)


def test_a_lock_keeps_what_was_newest(world: World) -> None:
    spec = world.spec("tool")
    write_lock(world, spec)
    newer = Package((Entry("share/tool/data", b"three"),), name="tool", version="3.0")
    newer.put(world.root / "channels" / "tiny")
    asyncio.run(conda_oracle.index(world.root / "channels" / "tiny"))
    assert "tool-2.0" in layer_titles(resolve(world.other_machine(), spec))
    away = world.other_machine(workspace=Repository.parse(f"oci:{world.root}/apart"))
    assert "tool-3.0" in layer_titles(resolve(away, spec, LockPolicy(ignored=True)))


def test_a_lock_keeps_the_base_where_its_tag_has_moved(world: World) -> None:
    spec = world.spec("tool")
    lock = write_lock(world, spec)
    bases = LayoutRegistry(Repository.parse(f"oci:{world.root}/bases"))
    moved = make_base(bases.repository, "moved", {"lib/libc.so.6": LIBC, "moved": b"x"})
    bases.put_manifest(bases.get_manifest(moved), Tag("minimal"))
    image = resolve(world.other_machine(), spec)
    assert image.key == lock.entries[0].key
    assert resolve(world.other_machine(), spec, LockPolicy(ignored=True)).key != image.key


def test_the_key_of_a_locked_definition_needs_no_registry(world: World) -> None:
    spec = world.spec("tool")
    lock = write_lock(world, spec)
    (world.root / "bases").rename(world.root / "away")
    with Resolver(world.other_machine()) as resolver:
        assert resolver.key(spec) == lock.entries[0].key


def test_a_stale_lock_is_told_and_not_used(world: World) -> None:
    write_lock(world, world.spec("tool=1"))
    spec = world.spec("tool=2")
    events: list[Event] = []
    with Resolver(world.config, progress=events.append) as resolver:
        image = resolver.resolve(spec)
    assert "tool-2.0" in layer_titles(image)
    (told,) = [event.text for event in events if event.text and "stale" in event.text]
    assert "tool: tool 1.* -> tool 2.*" in told
    with pytest.raises(SpecError, match="stale"):
        resolve(world.config, spec, LockPolicy(required=True))


def test_a_lock_is_a_definition(world: World) -> None:
    spec = world.spec("pyth", "thing", variables={"A": "1"})
    write_lock(world, spec)
    first = resolve(world.config, spec)
    in_place = resolve(world.other_machine(), world.root / FILE_NAME)
    assert (in_place.key, in_place.source) == (first.key, Source.WORKSPACE)
    spoil_channel(world)
    apart = world.other_machine(workspace=Repository.parse(f"oci:{world.root}/apart"))
    built = resolve(apart, world.root / FILE_NAME)
    assert (built.source, built.reference.digest) == (Source.BUILT, first.reference.digest)


def test_a_damaged_lock_stops_the_resolve(world: World) -> None:
    spec = world.spec("tool")
    write_lock(world, spec)
    path = world.root / FILE_NAME
    path.write_bytes(path.read_bytes().replace(b'"version": "2.0"', b'"version": "1.0"'))
    with pytest.raises(SpecError, match="seal") as caught:
        resolve(world.config, spec)
    assert caught.value.line is not None


def test_a_package_that_is_not_what_the_lock_says_is_refused(world: World) -> None:
    spec = world.spec("tool")
    lock = write_lock(world, spec)
    (entry,) = lock.entries
    (package,) = entry.lock.packages
    wrong = Lock(entry.lock.platform, (replace(package, sha256=Digest("0" * 64)),))
    forged = replace(entry, lock=wrong)
    (world.root / FILE_NAME).write_bytes(LockFile.of(lock.definition, [forged]).to_bytes())
    with pytest.raises(IntegrityError, match=r"tool-2\.0"):
        resolve(world.config, spec)


def test_a_definition_without_packages_has_a_lock_too(world: World) -> None:
    spec = world.root / "envbuild.yaml"
    spec.write_text("base: scratch\nvariables: {A: '1'}\n")
    lock = write_lock(world, spec)
    assert lock.entries[0].base == "scratch"
    assert lock.entries[0].lock.packages == ()
    assert resolve(world.config, spec, LockPolicy(required=True)).key == lock.entries[0].key


def test_an_unsolvable_definition_has_no_lock(world: World) -> None:
    with pytest.raises(SolveError), Resolver(world.config) as resolver:
        make_lock(resolver, load(world.spec("nothing-of-that-name")), world.root)


# Explaining misses


def test_what_was_resolved_is_known_by_its_form(world: World) -> None:
    spec = world.spec("tool=1")
    image = resolve(world.config, spec)
    with Resolver(world.config) as resolver:
        form = resolver.form(spec)
        assert resolver.index.form(str(image.key)) == form.fields
        asked = resolver.form(world.spec("tool=2", name="other.yml"))
        found = nearest(asked.fields, resolver.index.forms().items())
    assert found is not None
    assert found[0] == str(image.key)
    assert [str(change) for change in found[1]] == ["dependency tool: tool 1.* -> tool 2.*"]


def test_forms_of_hits_elsewhere_are_remembered(world: World) -> None:
    spec = world.spec("tool=1")
    image = resolve(world.config, spec)
    other = world.other_machine()
    resolve(other, spec)
    with Resolver(other) as resolver:
        assert list(resolver.index.forms()) == [str(image.key)]
        resolver.index.clear()
        assert resolver.index.forms() == {}
        assert resolver.index.form(str(image.key)) is None


def test_very_large_forms_are_not_remembered(world: World) -> None:
    with Resolver(world.config) as resolver:
        resolver.index.put_form("a" * 64, {"variables": {"A": "x" * 300_000}})
        assert resolver.index.forms() == {}


def test_a_form_from_the_index_is_the_form(world: World) -> None:
    spec = world.spec("pyth", "thing", variables={"A": "ß"})
    image = resolve(world.config, spec)
    with Resolver(world.config) as resolver:
        known = resolver.index.form(str(image.key))
    assert known is not None
    assert CanonicalForm(known).key == image.key
    assert compare(known, json.loads(json.dumps(known))) == ()
    assert Tag(f"k1-{image.key}") in set(world.layout().tags())


def test_a_base_pinned_by_an_index_keeps_its_key_through_the_lock(world: World) -> None:
    bases = LayoutRegistry(Repository.parse(f"oci:{world.root}/bases"))
    image = replace(bases.get_manifest(Tag("minimal")).descriptor, platform=LINUX_AMD64)
    index = ImageIndex.build((image,), {})
    publish(bases, index, Tag("several"))
    config = replace(world.config, base=f"{bases.repository}@{index.descriptor.digest}")
    spec = world.spec("tool=1")
    with Resolver(config) as resolver:
        key = resolver.key(spec)
    (entry,) = write_lock(world, spec, config).entries
    assert entry.form.key == key
    held = resolve(config, spec, LockPolicy(required=True))
    again = resolve(replace(config, base=None), spec.parent / FILE_NAME)
    assert (held.key, held.source) == (key, Source.BUILT)
    assert (again.key, again.reference) == (key, held.reference)
