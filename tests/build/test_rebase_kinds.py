"""Rebasing what has wheels, several platforms or signatures; and what is attached to the result."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import conda_oracle
from conda_packages import Entry, Package
from envbuild import attach
from envbuild.build.needs import pip_needs
from envbuild.build.rebase import Rebased, Rebaser
from envbuild.build.recipe import RECIPE_ANNOTATION, Recipe, recipe_tag
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import BuildError, IntegrityError, SolveError, SpecError
from envbuild.lockfile.document import LockFile
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.oci.registry import publish
from envbuild.platform import Platform
from envbuild.reference import ImageReference, Repository, Tag, TaggedReference
from envbuild.resolver import ResolvedImage, Resolver, Source
from envbuild.trust import Rule, Trust, check
from envbuild.verify import verify
from test_trust import pem, public
from tiny import LIBC, World, make_base
from tiny_wheels import TinyWheel
from wheel_world import put, requirements, spec, wheel_world

PYTHON = {"lib/libc.so.6": LIBC, "usr/bin/python3.11": b"elf"}


def bases_of(world: World) -> Repository:
    return Repository.parse(f"oci:{world.root}/bases")


def base(world: World, tag: str) -> TaggedReference:
    return bases_of(world).tagged(Tag(tag))


def resolve(config: Config, path: Path) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(path)


def rebase(config: Config, image: ImageReference, new: TaggedReference) -> Rebased:
    with Resolver(config) as resolver:
        return rebaser(resolver).rebase(image, new, NO_DEADLINE)


def rebaser(resolver: Resolver) -> Rebaser:
    return Rebaser(
        resolver.config, resolver.index, resolver.registries, resolver.progress, bases=resolver.bases
    )


def attached(image: ImageReference) -> dict[str, bytes]:
    registry = LayoutRegistry(image.repository)
    found = {}
    for entry in referrers(registry, image.digest):
        manifest = registry.get_manifest(entry.digest)
        assert isinstance(manifest, Manifest)
        found[str(entry.artifact_type)] = read_artifact(registry, manifest)
    return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel, wheels, a base with python and new bases."""
    world = wheel_world(tmp_path)
    make_base(bases_of(world), "new", {"lib/libc.so.6": LIBC, "x": b"x"}, Env=["PATH=/bin:/new", "NEW=1"])
    return world


def expected(world: World, path: Path, tag: str) -> ResolvedImage:
    apart = Repository.parse(f"oci:{world.root}/apart")
    return resolve(world.other_machine(base=str(base(world, tag)), workspace=apart), path)


# Wheels


@pytest.mark.parametrize("lines", [("top", "small"), ("top", "dep>=2")])
def test_wheels_above_condas_python_go_along(world: World, lines: tuple[str, ...]) -> None:
    path = spec(world, *lines, conda=("python", "dep"))
    image = resolve(world.config, path)
    nothing = world.other_machine(channel_alias=(world.root / "nowhere").as_uri())
    (world.root / "links").rename(world.root / "away")
    done = rebase(nothing, image.reference, base(world, "new"))
    (world.root / "away").rename(world.root / "links")
    wanted = expected(world, path, "new")
    assert (done.key, done.lock_key) == (wanted.key, wanted.lock_key)
    assert done.reference.digest == wanted.reference.digest
    lock = LockFile.parse(attached(done.reference)[attach.LOCK_TYPE], "the lock")
    assert {each.name for each in lock.entries[0].pip} >= {"top"}
    assert not any(each.url.startswith("file:") for each in lock.entries[0].pip)


def test_wheels_over_the_bases_python_go_to_a_base_with_the_same(world: World) -> None:
    path = requirements(world, "top")
    world.config = replace(world.config, base=str(base(world, "python")))
    image = resolve(world.config, path)
    make_base(bases_of(world), "python-new", {**PYTHON, "x": b"x"}, Env=["PATH=/usr/bin", "NEW=1"])
    done = rebase(world.other_machine(), image.reference, base(world, "python-new"))
    assert done.reference.digest == expected(world, path, "python-new").reference.digest
    make_base(bases_of(world), "other", {"lib/libc.so.6": LIBC, "usr/bin/python3.12": b"elf"})
    with pytest.raises(BuildError, match=r"python /usr/bin/python3\.11 3\.11, and this base has .*3\.12"):
        rebase(world.other_machine(), image.reference, base(world, "other"))
    with pytest.raises(BuildError, match="python"):
        rebase(world.other_machine(), image.reference, base(world, "new"))


def test_a_wheels_need_of_glibc_is_held_against_the_new_base(world: World) -> None:
    put(world, TinyWheel("built", tag="cp311-cp311-manylinux_2_28_x86_64"))
    image = resolve(world.config, spec(world, "built"))
    assert rebase(world.other_machine(), image.reference, base(world, "new")).made
    make_base(bases_of(world), "old", {"libc": b"GNU C Library (x) stable release version 2.17."})
    with pytest.raises(SolveError, match=r"has glibc 2\.17, .* need __glibc >=2\.28"):
        rebase(world.other_machine(), image.reference, base(world, "old"))


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("a-1-py3-none-any.whl", ()),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", (">=2.28",)),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", (">=2.17",)),
        ("a-1-cp311-cp311-manylinux2010_x86_64.manylinux_2_28_x86_64.whl", (">=2.12",)),
        ("a-1-1-cp311-abi3-manylinux1_x86_64.whl", (">=2.5",)),
        ("a-1-cp311-cp311-linux_x86_64.whl", ()),
    ],
)
def test_what_a_wheels_name_says_of_glibc(name: str, needs: tuple[str, ...]) -> None:
    wheel = replace(TinyWheel("a").distribution(), file_name=name)
    assert pip_needs((wheel,)) == needs


# Several platforms


@pytest.fixture
def both(tmp_path: Path) -> World:
    """A machine with a package and bases for two platforms."""
    world = World.make(tmp_path)
    folder = tmp_path / "channels" / "tiny"
    arm = {"subdir": "linux-aarch64"}
    Package((Entry("share/tool/data", b"arm"),), name="tool", version="2.0", index=arm).put(folder)
    asyncio.run(conda_oracle.index(folder))
    layout = LayoutRegistry(bases_of(world))
    for name in ("old", "new"):
        entries = []
        for architecture in ("amd64", "arm64"):
            content = {"lib/libc.so.6": LIBC, name: architecture.encode()}
            digest = make_base(bases_of(world), f"{name}-{architecture}", content, architecture=architecture)
            platform = Platform("linux", architecture)
            entries.append(replace(layout.get_manifest(digest).descriptor, platform=platform))
        publish(layout, ImageIndex.build(tuple(entries), {}), Tag(name))
    world.config = replace(world.config, base=f"oci:{tmp_path}/bases:old")
    return world


def several(world: World) -> Path:
    path = world.root / "envbuild.yaml"
    conda = {"channels": ["tiny"], "dependencies": ["tool"]}
    path.write_text(json.dumps({"platforms": ["linux/amd64", "linux/arm64"], "conda": conda}))
    return path


def test_an_index_is_rebased_with_its_images(both: World) -> None:
    image = resolve(both.config, several(both))
    done = rebase(both.other_machine(), image.reference, base(both, "new"))
    wanted = expected(both, several(both), "new")
    assert (done.reference.digest, done.key) == (wanted.reference.digest, wanted.key)
    assert done.made
    lock = LockFile.parse(attached(done.reference)[attach.LOCK_TYPE], "the lock")
    assert [str(entry.lock.platform) for entry in lock.entries] == ["linux/amd64", "linux/arm64"]
    found = resolve(both.other_machine(base=str(base(both, "new"))), several(both))
    assert (found.source, found.reference) == (Source.WORKSPACE, done.reference)
    assert not rebase(both.other_machine(), image.reference, base(both, "new")).made


def test_all_images_of_a_base_are_rebased_and_their_indexes(both: World) -> None:
    image = resolve(both.config, several(both))
    other = resolve(replace(both.config, base="scratch"), several(both))
    with Resolver(both.other_machine()) as resolver:
        worker = rebaser(resolver)
        old = worker.digests(base(both, "old"), NO_DEADLINE)
        done = list(worker.rebase_all(old, base(both, "new"), NO_DEADLINE))
    assert all(isinstance(each, Rebased) and each.made for each in done)
    sources = [each.source for each in done if isinstance(each, Rebased)]
    assert len(sources) == 3
    assert sources[-1] == image.reference
    assert other.reference not in sources


def test_a_new_base_without_a_platform_is_refused(both: World) -> None:
    image = resolve(both.config, several(both))
    with pytest.raises(SpecError, match="linux/arm64"):
        rebase(both.other_machine(), image.reference, base(both, "new-amd64"))


def test_an_index_of_others_is_refused(both: World) -> None:
    layout = LayoutRegistry(bases_of(both))
    index = layout.get_manifest(Tag("old"))
    with pytest.raises(SpecError, match="no image that envbuild made"):
        rebase(both.config, bases_of(both).at(index.descriptor.digest), base(both, "new"))


# What is attached, and trust


def test_what_is_attached_says_where_it_came_from(world: World) -> None:
    image = resolve(world.config, spec(world, "top"))
    done = rebase(world.config, image.reference, base(world, "new"))
    found = attached(done.reference)
    lock = LockFile.parse(found[attach.LOCK_TYPE], "the lock")
    assert lock.entries[0].key == done.key
    before = LockFile.parse(attached(image.reference)[attach.LOCK_TYPE], "the lock")
    assert lock.entries[0].lock == before.entries[0].lock
    assert lock.entries[0].pip == before.entries[0].pip
    statement: dict[str, Any] = json.loads(found[attach.IN_TOTO_TYPE])
    assert statement["subject"][0]["digest"]["sha256"] == done.reference.digest.hex
    definition = statement["predicate"]["buildDefinition"]
    assert definition["internalParameters"] == {"rebasedFrom": str(image.reference)}
    named = {each["name"]: each["digest"]["sha256"] for each in definition["resolvedDependencies"]}
    assert named["envbuild.lock"] == Digest.of(found[attach.LOCK_TYPE]).hex
    report = verify(LayoutRegistry(done.reference.repository), done.reference.digest, full=True)
    assert report.passed
    assert next(each for each in report.checks if each.name == "definition").passed


def test_a_rebased_image_is_signed_and_an_unsigned_one_is_not_rebased(world: World, tmp_path: Path) -> None:
    ours = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(pem(ours))
    trust = Trust(Rule(True, (public(ours),)), sign_key=str(tmp_path / "key.pem"))
    unsigned = resolve(world.config, spec(world, "small"))
    with pytest.raises(IntegrityError):
        rebase(replace(world.config, trust=trust), unsigned.reference, base(world, "new"))
    shutil.rmtree(world.config.workspace.folder)
    shutil.rmtree(world.config.cache_dir)
    image = resolve(replace(world.config, trust=trust), spec(world, "small"))
    done = rebase(replace(world.config, trust=trust), image.reference, base(world, "new"))
    layout = world.layout()
    check(layout, layout.get_manifest(done.reference.digest), [public(ours)])


def test_a_recipe_with_layers_that_the_image_has_not_is_refused(world: World) -> None:
    image = resolve(world.config, spec(world, "small"))
    layout = world.layout()
    found = layout.get_manifest(recipe_tag(image.key))
    assert isinstance(found, Manifest)
    document = json.loads(
        Recipe.parse(found.annotations[RECIPE_ANNOTATION], image.key, "the recipe").to_json()
    )
    document["layers"][0][1] = str(Digest.of(b"evil"))
    evil = Manifest.build(found.config, found.layers, {RECIPE_ANNOTATION: json.dumps(document)})
    layout.put_manifest(evil, recipe_tag(image.key))
    with pytest.raises(IntegrityError, match="layers that the image has not"):
        rebase(world.config, image.reference, base(world, "new"))
