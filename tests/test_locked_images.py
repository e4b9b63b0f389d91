"""What is locked is known by its lock key: it is never the answer of a key, nor a key its answer."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conda_oracle
from conda_packages import Entry, Package
from envbuild.build.rebase import Failed, Rebased, Rebaser
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import CacheMiss, IntegrityError, SpecError
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.lockfile import FILE_NAME, LockPolicy, load
from envbuild.lockfile.document import LockFile
from envbuild.locking import make_lock
from envbuild.lockkey import LockKey
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.registry import publish
from envbuild.platform import Platform
from envbuild.promote import Promotion
from envbuild.rebuild import Rebuild
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from envbuild.restore import attached_lock
from tiny import LIBC, World, make_base
from wheel_world import spec as wheel_spec
from wheel_world import wheel_world

UNLOCKED = LockPolicy(ignored=True)
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def write_lock(world: World, spec: Path, name: str = FILE_NAME, **options: Any) -> Path:
    with Resolver(world.other_machine()) as resolver:
        lock = make_lock(resolver, load(spec, **options), spec.parent)
    path = spec.parent / name
    path.write_bytes(lock.to_bytes())
    return path


def newer_tool(world: World) -> None:
    folder = world.root / "channels" / "tiny"
    Package((Entry("share/tool/data", b"three"),), name="tool", version="3.0").put(folder)
    asyncio.run(conda_oracle.index(folder))


def resolve(config: Config, spec: Path, lock: Path | None = None, **options: Any) -> ResolvedImage:
    policy = UNLOCKED if lock is None else LockPolicy(lock, required=True)
    with Resolver(config, locks=policy) as resolver:
        return resolver.resolve(spec, **options)


def manifest_of(image: ResolvedImage) -> Manifest | ImageIndex:
    return LayoutRegistry(image.reference.repository).get_manifest(image.reference.digest)


def packages(image: ResolvedImage) -> set[str]:
    registry, manifest = LayoutRegistry(image.reference.repository), manifest_of(image)
    assert isinstance(manifest, Manifest)
    with registry.open_blob(manifest.config) as stream:
        history = json.load(stream)["history"]
    return {step["created_by"].removeprefix("envbuild ") for step in history} - {"the base", "history"}


def tags(repository: Repository, *prefixes: str) -> set[str]:
    return {tag.name for tag in LayoutRegistry(repository).tags() if tag.name.startswith(prefixes)}


@pytest.fixture
def two(world: World) -> tuple[Path, Path, Path]:
    """A definition, and two locks of it: the channel got a newer version between them."""
    spec = world.spec("tool")
    old = write_lock(world, spec, "old.lock")
    newer_tool(world)
    return spec, old, write_lock(world, spec, "new.lock")


def test_two_locks_of_one_definition_live_side_by_side(world: World, two: tuple[Path, Path, Path]) -> None:
    spec, old, new = two
    first = resolve(world.config, spec, old)
    second = resolve(world.other_machine(), spec, new)
    assert (packages(first), packages(second)) == ({"tool-2.0-0"}, {"tool-3.0-0"})
    assert first.key == second.key
    for lock, image in ((old, first), (new, second)):
        for config in (world.config, world.other_machine()):
            again = resolve(config, spec, lock, build=False)
            assert (again.reference, again.lock_key, again.locked) == (image.reference, image.lock_key, True)
            assert resolve(config, lock, lock, build=False).reference == image.reference
    assert tags(world.config.workspace, "k1-", "l1-") == {f"l1-{first.lock_key}", f"l1-{second.lock_key}"}


def test_what_was_locked_never_answers_a_key(world: World, two: tuple[Path, Path, Path]) -> None:
    spec, old, _ = two
    locked = resolve(world.config, spec, old)
    with pytest.raises(CacheMiss):
        resolve(world.config, spec, build=False)
    free = resolve(world.config, spec)
    assert (free.source, packages(free)) == (Source.BUILT, {"tool-3.0-0"})
    assert resolve(world.config, spec, old).reference == locked.reference
    assert resolve(world.config, spec).reference == free.reference
    assert KEY_ANNOTATION not in manifest_of(locked).annotations


def test_a_key_never_answers_what_is_locked(world: World, two: tuple[Path, Path, Path]) -> None:
    spec, old, new = two
    free = resolve(world.config, spec)
    with pytest.raises(CacheMiss, match="l1-"):
        resolve(world.config, spec, old, build=False)
    assert packages(resolve(world.config, spec, old)) == {"tool-2.0-0"}
    same = resolve(world.config, spec, new, build=False)
    assert same.reference == free.reference, "one solution, one image: it carries the lock key"


def test_a_build_of_a_lock_is_that_of_the_lock(world: World, two: tuple[Path, Path, Path]) -> None:
    spec, old, new = two
    resolve(world.config, spec, new)
    with Resolver(world.other_machine(), locks=LockPolicy(old)) as resolver:
        built = resolver.build(spec)
        again = resolver.build(spec)
    assert (packages(built), built.locked) == ({"tool-2.0-0"}, True)
    assert again.reference == built.reference
    assert not tags(world.config.workspace, "k1-")


def test_a_definition_with_a_locked_solution_gets_its_own_key(world: World) -> None:
    locked = resolve(world.config, spec := world.spec("tool"), write_lock(world, spec))
    free = resolve(world.config, spec)
    assert (free.layers_made, free.lock_key) == (0, locked.lock_key)
    assert tags(world.config.workspace, "k1-", "l1-") == {f"k1-{free.key}", f"l1-{free.lock_key}"}
    assert resolve(world.other_machine(), spec, world.root / FILE_NAME).reference == locked.reference


def test_a_tag_of_a_lock_key_must_name_that_solution(world: World, two: tuple[Path, Path, Path]) -> None:
    spec, old, new = two
    first, second = resolve(world.config, spec, old), resolve(world.config, spec, new)
    world.layout().put_manifest(manifest_of(second), Tag(f"l1-{first.lock_key}"))
    with pytest.raises(IntegrityError, match="carries the lock key"):
        resolve(world.other_machine(), spec, old)


def test_the_name_is_what_is_looked_for_and_needs_no_registry(world: World) -> None:
    spec = world.spec("tool")
    lock = write_lock(world, spec)
    shutil.move(world.root / "bases", world.root / "away")
    with Resolver(world.other_machine(), locks=LockPolicy(lock)) as resolver:
        name = resolver.name(spec)
    assert isinstance(name, LockKey)
    shutil.move(world.root / "away", world.root / "bases")
    image = resolve(world.config, spec, lock)
    assert image.lock_key == str(name)
    assert world.layout().get_manifest(name.tag).descriptor.digest == image.reference.digest


@pytest.mark.parametrize(
    ("lines", "conda"),
    [(("top", "dep>=2"), ("python", "dep")), (("dep",), ("python", "dep")), (("top",), ())],
)
def test_wheels_are_in_the_lock_key_before_they_are_installed(
    tmp_path: Path, lines: tuple[str, ...], conda: tuple[str, ...]
) -> None:
    world = wheel_world(tmp_path)
    if not conda:
        world.config = replace(world.config, base=f"oci:{tmp_path}/bases:python")
    path = wheel_spec(world, *lines, conda=conda)
    free = resolve(world.config, path)
    with Resolver(world.other_machine(), locks=LockPolicy(write_lock(world, path))) as resolver:
        assert str(resolver.name(path)) == free.lock_key
        assert resolver.resolve(path, build=False).reference == free.reference


def test_a_base_that_is_pinned_to_an_index_is_known_from_the_lock(world: World) -> None:
    bases = Repository.parse(f"oci:{world.root}/bases")
    layout = LayoutRegistry(bases)
    entry = replace(layout.get_manifest(Tag("minimal")).descriptor, platform=AMD64)
    index = publish(layout, ImageIndex.build((entry,), {}), Tag("multi"))
    world.config = replace(world.config, base=f"{bases}@{index.descriptor.digest}")
    spec = world.spec("tool")
    built = resolve(world.config, spec)
    lock = write_lock(world, spec, base=world.config.base)
    (locked,) = LockFile.read(lock).entries
    assert locked.manifest == entry.digest
    older = world.root / "older.lock"
    older.write_bytes(LockFile.of("environment.yml", [replace(locked, manifest=None)]).to_bytes())
    assert resolve(world.other_machine(), spec, older, build=False).reference == built.reference
    shutil.move(world.root / "bases", world.root / "away")
    assert resolve(world.other_machine(), spec, lock, build=False).reference == built.reference


def test_promotion_of_what_is_locked_writes_no_key(world: World) -> None:
    spec = world.spec("tool")
    lock = write_lock(world, spec)
    free = resolve(world.config, spec)
    mine = Repository.parse(f"oci:{world.root}/mine")
    other = world.other_machine(workspace=mine, global_=world.config.workspace, promote=True)
    found = resolve(other, spec, lock)
    assert (found.source, found.reference) == (Source.GLOBAL, mine.at(free.reference.digest))
    assert tags(mine, "k1-", "l1-") == {f"l1-{free.lock_key}"}
    with pytest.raises(CacheMiss):
        resolve(world.other_machine(workspace=mine), spec, build=False)


def test_a_locked_image_is_promoted_under_its_lock_key(world: World) -> None:
    spec = world.spec("tool")
    image = resolve(world.config, spec, write_lock(world, spec))
    target = LayoutRegistry(Repository.parse(f"oci:{world.root}/shared"))
    promotion = Promotion(world.layout(), target, world.config)
    done = promotion.promote(image.reference.digest, with_referrers=True)
    assert done.tags == (Tag(f"l1-{image.lock_key}"),)
    assert {tag.name for tag in target.tags()} >= {f"l1-{image.lock_key}", f"f1-{image.lock_key}"}


def several(world: World) -> Path:
    folder = world.root / "channels" / "tiny"
    Package((), name="tool", version="2.0", index={"subdir": "linux-aarch64"}).put(folder)
    asyncio.run(conda_oracle.index(folder))
    layout = LayoutRegistry(Repository.parse(f"oci:{world.root}/bases"))
    make_base(layout.repository, "arm64", {"lib/libc.so.6": LIBC}, architecture="arm64")
    entries = tuple(
        replace(layout.get_manifest(Tag(tag)).descriptor, platform=platform)
        for tag, platform in (("minimal", AMD64), ("arm64", ARM64))
    )
    publish(layout, ImageIndex.build(entries, {}), Tag("multi"))
    path = world.root / "envbuild.yaml"
    definition = {
        "base": f"oci:{world.root}/bases:multi",
        "platforms": ["linux/amd64", "linux/arm64"],
        "conda": {"channels": ["tiny"], "dependencies": ["tool"]},
    }
    path.write_text(json.dumps(definition))
    return path


def test_several_platforms_that_are_locked_have_an_index_of_their_own(world: World) -> None:
    spec = several(world)
    lock = write_lock(world, spec)
    locked = resolve(world.config, spec, lock)
    free = resolve(world.config, spec)
    assert (locked.key, locked.locked, free.locked) == (free.key, True, False)
    assert locked.reference != free.reference
    assert tags(world.config.workspace, "k1-") >= {f"k1-{free.key}"}
    index = manifest_of(locked)
    assert index.annotations == {LOCK_ANNOTATION: locked.lock_key}
    assert world.layout().get_manifest(Tag(f"l1-{locked.lock_key}")).descriptor == index.descriptor
    again = resolve(world.other_machine(), spec, lock, build=False)
    assert (again.source, again.reference) == (Source.WORKSPACE, locked.reference)


def test_an_index_over_locked_and_free_images_answers_no_key(world: World) -> None:
    spec = several(world)
    lock = write_lock(world, spec, platforms="linux/amd64")
    assert len(LockFile.read(lock).entries) == 1
    with Resolver(world.config, locks=LockPolicy(lock)) as resolver:
        mixed = resolver.resolve(spec)
        assert mixed.lock_key == str(resolver.name(spec))
    assert tags(world.config.workspace, f"l1-{mixed.lock_key}")
    assert not tags(world.config.workspace, f"k1-{mixed.key}")
    both = write_lock(world, spec, "both.lock")
    assert resolve(world.config, spec, both).lock_key != mixed.lock_key


@pytest.fixture
def moved(world: World) -> Repository:
    """The repository of bases, with a new one."""
    bases = Repository.parse(f"oci:{world.root}/bases")
    make_base(bases, "new", {"lib/libc.so.6": LIBC, "new": b"x"})
    return bases


def rebaser(resolver: Resolver) -> Rebaser:
    return Rebaser(
        resolver.config, resolver.index, resolver.registries, resolver.progress, bases=resolver.bases
    )


def test_a_locked_image_is_rebased_under_its_lock_key(
    world: World, two: tuple[Path, Path, Path], moved: Repository
) -> None:
    spec, old, _ = two
    image = resolve(world.config, spec, old)
    with Resolver(world.other_machine()) as resolver:
        done = rebaser(resolver).rebase(image.reference, moved.tagged(Tag("new")), NO_DEADLINE)
        again = rebaser(resolver).rebase(image.reference, moved.tagged(Tag("new")), NO_DEADLINE)
        back = rebaser(resolver).rebase(done.reference, moved.tagged(Tag("minimal")), NO_DEADLINE)
    assert (done.made, again.made, again.reference) == (True, False, done.reference)
    assert (back.made, back.reference, back.lock_key) == (False, image.reference, image.lock_key)
    assert tags(world.config.workspace, "k1-", "l1-") == {f"l1-{image.lock_key}", f"l1-{done.lock_key}"}
    found = world.layout().get_manifest(done.reference.digest)
    assert KEY_ANNOTATION not in found.annotations


def test_all_images_of_a_base_are_rebased_locked_ones_too(
    world: World, two: tuple[Path, Path, Path], moved: Repository
) -> None:
    spec, old, new = two
    free = resolve(world.config, spec)
    locked = resolve(world.config, spec, old)
    resolve(world.config, spec, new)  # answered with the image that was built without a lock
    with Resolver(world.other_machine()) as resolver:
        worker = rebaser(resolver)
        was = worker.digests(moved.tagged(Tag("minimal")), NO_DEADLINE)
        done = list(worker.rebase_all(was, moved.tagged(Tag("new")), NO_DEADLINE))
    assert not [each for each in done if isinstance(each, Failed)]
    found = {str(each.name.tag)[:3]: each for each in done if isinstance(each, Rebased)}
    assert len(done) == len(found) == 2
    assert (found["k1-"].source, found["l1-"].source) == (free.reference, locked.reference)


def test_a_locked_image_without_a_recipe_is_told(
    world: World, two: tuple[Path, Path, Path], moved: Repository
) -> None:
    spec, old, _ = two
    image = resolve(world.config, spec, old)
    recipe = world.layout().get_manifest(Tag(f"f1-{image.lock_key}"))
    world.layout().delete_manifest(recipe.descriptor.digest)
    with Resolver(world.other_machine()) as resolver:
        worker = rebaser(resolver)
        was = worker.digests(moved.tagged(Tag("minimal")), NO_DEADLINE)
        (failed,) = worker.rebase_all(was, moved.tagged(Tag("new")), NO_DEADLINE)
    assert isinstance(failed, Failed)
    assert "no recipe" in str(failed.error)


def test_a_lock_must_have_the_lock_key_that_is_asked_for(world: World) -> None:
    spec = world.spec("tool")
    lock = write_lock(world, spec)
    with (
        Resolver(world.config, locks=LockPolicy(lock, lock_key="0" * 64)) as resolver,
        pytest.raises(IntegrityError, match="lock key"),
    ):
        resolver.resolve(lock)
    assert not world.config.workspace.folder.exists()


def test_what_is_no_lock_key_is_refused() -> None:
    with pytest.raises(SpecError, match="not a lock key"):
        LockKey("../x")


def test_no_build_writes_to_no_repository(world: World) -> None:
    spec = several(world)
    resolve(world.config, spec)
    mine = Repository.parse(f"oci:{world.root}/mine")
    other = world.other_machine(workspace=mine, global_=world.config.workspace, promote=True)
    found = resolve(other, spec, build=False)
    assert (found.source, found.reference.repository) == (Source.GLOBAL, world.config.workspace)
    assert not mine.folder.exists()
    promoted = resolve(other, spec)
    assert promoted.reference == mine.at(found.reference.digest), (
        "a look does not keep it from being promoted"
    )


def test_no_build_puts_no_index_over_images_that_are_there(world: World) -> None:
    spec = several(world)
    for platform in ("linux/amd64", "linux/arm64"):
        with Resolver(world.config) as resolver:
            resolver.resolve(load(spec, platforms=platform))
    before = {path: path.read_bytes() for path in world.config.workspace.folder.rglob("*") if path.is_file()}
    with pytest.raises(CacheMiss, match="k1-"):
        resolve(world.config, spec, build=False)
    after = {path: path.read_bytes() for path in world.config.workspace.folder.rglob("*") if path.is_file()}
    assert after == before
    image = resolve(world.config, spec)
    assert (image.source, image.layers_made) == (Source.WORKSPACE, 0)


def test_the_lock_of_a_locked_image_is_that_lock(world: World) -> None:
    spec = world.spec("tool", "pyth")
    lock = write_lock(world, spec)
    image = resolve(world.config, spec, lock)
    assert attached_lock(world.layout(), image.reference.digest).to_bytes() == lock.read_bytes()


def test_a_locked_image_is_built_again_alike(
    world: World, two: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.root)  # which bases that are layouts are named from
    spec, old, _ = two
    image = resolve(world.config, spec, old)
    checks = {each.name: each for each in Rebuild(world.config, world.layout()).checks(manifest_of(image))}
    assert (checks["packages"].passed, checks["rebuild"].passed) == (True, True)
