"""Bases by tag and digest: which one is read, and what is remembered of it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from envbuild.build.bases import Bases
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import SpecError
from envbuild.index import BaseEntry, Index
from envbuild.oci.registries import Registries
from envbuild.platform import Platform
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver, Source
from tiny import LIBC, World, make_base

AMD64 = Platform("linux", "amd64")


@pytest.fixture
def folder(tmp_path: Path) -> Repository:
    return Repository.parse(f"oci:{tmp_path}/layout")


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    return Bases(Registries(frozenset()), Index(tmp_path / "cache"), 3600.0)


def test_a_tag_that_moved_after_it_was_resolved_does_not_matter(bases: Bases, folder: Repository) -> None:
    first = make_base(folder, "v1", {"a": b"1"})
    named = folder.tagged(Tag("v1"))
    assert bases.digest(named, AMD64, NO_DEADLINE) == first
    second = make_base(folder, "v2", {"a": b"2"})
    registry = bases.registries.open(folder)
    registry.put_manifest(registry.get_manifest(second), Tag("v1"))
    assert bases.digest(named, AMD64, NO_DEADLINE) == first, "within its time"
    assert bases.image(named, AMD64, NO_DEADLINE, first).digest == first
    assert bases.image(named, AMD64, NO_DEADLINE).digest == second


def test_a_definition_is_built_on_the_base_that_its_key_names(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    bases = Repository.parse(f"oci:{tmp_path}/bases")
    with Resolver(world.config) as resolver:
        key = resolver.key(world.spec("python"))
        moved = make_base(bases, "moved", {"lib/libc.so.6": LIBC, "x": b"new"})
        layout = resolver.registries.open(bases)
        layout.put_manifest(layout.get_manifest(moved), Tag("minimal"))
        image = resolver.resolve(world.spec("python"))
    assert (image.key, image.source) == (key, Source.BUILT)
    seen = world.layout().get_manifest(image.reference.digest).annotations
    assert seen["org.opencontainers.image.base.digest"] != str(moved)


def test_manifest_and_config_are_read_once(bases: Bases, folder: Repository) -> None:
    digest = make_base(folder, "v1", {"a": b"1"})
    first = bases.image(folder.at(digest), AMD64, NO_DEADLINE)
    shutil.rmtree(folder.path)
    again = bases.image(folder.at(digest), AMD64, NO_DEADLINE)
    assert (again.manifest.raw, again.raw_config) == (first.manifest.raw, first.raw_config)
    assert again.reference == first.reference


def test_what_is_remembered_wrongly_is_read_anew(bases: Bases, folder: Repository) -> None:
    digest = make_base(folder, "v1", {"a": b"1"})
    first = bases.image(folder.at(digest), AMD64, NO_DEADLINE)
    name = f"base {folder}@{digest} {AMD64}"
    media_type, raw, config = json.loads(bases.index.fact(name) or "")
    for wrong in ("", "[]", "[1, 2, 3]", json.dumps([media_type, raw, config.replace("amd64", "arm64")])):
        bases.index.put_fact(name, wrong)
        assert bases.image(folder.at(digest), AMD64, NO_DEADLINE).raw_config == first.raw_config


def test_a_tag_whose_image_is_gone_is_asked_for_again(bases: Bases, folder: Repository) -> None:
    named = folder.tagged(Tag("v1"))
    gone = make_base(folder, "v1", {"a": b"1"})
    assert bases.digest(named, AMD64, NO_DEADLINE) == gone
    bases.index.clear()
    bases.index.put_base(f"{named} {AMD64}", BaseEntry(gone, time.time()))
    bases.registries.open(folder).delete_manifest(gone)
    second = make_base(folder, "v1", {"a": b"2"})
    assert bases.digest(named, AMD64, NO_DEADLINE) == gone
    with pytest.raises(SpecError, match="does not exist"):
        bases.image(named, AMD64, NO_DEADLINE, gone)
    assert bases.digest(named, AMD64, NO_DEADLINE) == second
