"""Bases by tag and digest: which one is read, and what is remembered of it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envbuild.build.bases import Bases
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import SpecError
from envbuild.index import BaseEntry, Index
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.registries import Registries
from envbuild.oci.registry import publish
from envbuild.platform import Platform
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver, Source
from tiny import LIBC, World, make_base

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


def put_index(folder: Repository, tag: str, *entries: tuple[str, Platform]) -> ImageIndex:
    """An index over images of a layout, each named by its tag and said to be for a platform."""
    layout = LayoutRegistry(folder)
    described = [
        replace(layout.get_manifest(Tag(name)).descriptor, platform=platform) for name, platform in entries
    ]
    index = ImageIndex.build(tuple(described), {})
    publish(layout, index, Tag(tag))
    return index


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
    bases.index.put_base(str(named), BaseEntry(gone, time.time()))
    bases.registries.open(folder).delete_manifest(gone)
    second = make_base(folder, "v1", {"a": b"2"})
    with pytest.raises(SpecError, match="does not exist"):
        bases.image(named, AMD64, NO_DEADLINE, gone)
    assert bases.digest(named, AMD64, NO_DEADLINE) == second


def test_an_index_gives_the_plain_image_though_a_variant_stands_first(
    bases: Bases, folder: Repository
) -> None:
    newer = make_base(folder, "v3", {"a": b"3"})
    plain = make_base(folder, "plain", {"a": b"1"})
    third = Platform("linux", "amd64", "v3")
    put_index(folder, "multi", ("v3", third), ("plain", AMD64))
    tagged = folder.tagged(Tag("multi"))
    assert bases.digest(tagged, AMD64, NO_DEADLINE) == plain
    assert bases.image(tagged, third, NO_DEADLINE).digest == newer
    alone = put_index(folder, "alone", ("v3", third))
    with pytest.raises(SpecError, match="has no image for linux/amd64") as error:
        bases.image(folder.at(alone.descriptor.digest), AMD64, NO_DEADLINE)
    assert "it has linux/amd64/v3" in str(error.value.hint)


def test_all_platforms_of_a_definition_come_from_one_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag moves after each question, and no answer is believed for any time."""
    world = World.make(tmp_path)
    folder = Repository.parse(f"oci:{tmp_path}/bases")
    seen = []
    for number in range(3):
        for platform in (AMD64, ARM64):
            make_base(
                folder,
                f"{platform.architecture}-{number}",
                {"a": b"%d" % number},
                architecture=platform.architecture,
            )
        names = [(f"{each.architecture}-{number}", each) for each in (AMD64, ARM64)]
        seen.append(put_index(folder, f"multi-{number}", *names))
    publish(LayoutRegistry(folder), seen[0], Tag("multi"))
    ask, asked = LayoutRegistry.get_manifest, []

    def moving(self: LayoutRegistry, reference: Any) -> Any:
        found = ask(self, reference)
        if reference == Tag("multi"):
            asked.append(reference)
            self.put_manifest(seen[len(asked)], Tag("multi"))
        return found

    monkeypatch.setattr(LayoutRegistry, "get_manifest", moving)
    spec = tmp_path / "envbuild.yaml"
    spec.write_text(
        f"{{base: 'oci:{tmp_path}/bases:multi', platforms: [linux/amd64, linux/arm64], variables: {{A: b}}}}"
    )
    with Resolver(replace(world.config, base_ttl=0.0)) as resolver:
        image = resolver.resolve(spec)
    assert len(asked) == 1
    index = world.layout().get_manifest(image.reference.digest)
    assert isinstance(index, ImageIndex)
    on = [
        world.layout().get_manifest(entry.digest).annotations["org.opencontainers.image.base.digest"]
        for entry in index.manifests
    ]
    assert on == [str(entry.digest) for entry in seen[0].manifests]
