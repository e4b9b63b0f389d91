"""Layers that others made are found and taken over; whatever is wrong with them costs time alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conda_oracle
from conda_packages import Entry, Package
from envbuild.admission import Admission
from envbuild.build.known import (
    DIFF_ID_ANNOTATION,
    LAYER_ANNOTATION,
    SharedLayers,
    describe,
    layer_tag,
    layers_repository,
    parse,
)
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor, Digest
from envbuild.errors import IntegrityError
from envbuild.index import LayerEntry
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_LAYER_GZIP, ImageIndex, Manifest
from envbuild.oci.registries import Registries
from envbuild.oci.remote import RemoteRegistry
from envbuild.progress import Event
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from parts.registry_server import RegistryServer
from tiny import World

KEY = "a" * 64


def entry(**changes: Any) -> LayerEntry:
    layer = Descriptor(OCI_LAYER_GZIP, Digest.of(b"layer"), 5)
    made = LayerEntry(layer, Digest.of(b"tar"), b"12345678", b"", Repository("host", "layers"))
    return replace(made, **changes)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def on(registry: RegistryServer, world: World) -> Config:
    return world.other_machine(workspace=registry.repository("envs"))


def resolve(config: Config, spec: Path) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(spec)


def without_packages(world: World) -> None:
    """Keep the channel's index and lose its packages, so that a fetch fails."""
    for package in (world.root / "channels").rglob("*.conda"):
        package.unlink()


def layers_of(image: ResolvedImage) -> tuple[Descriptor, ...]:
    repository = image.reference.repository
    registry = LayoutRegistry(repository) if repository.is_layout else RemoteRegistry(repository)
    manifest = registry.get_manifest(image.reference.digest)
    registry.close()
    assert isinstance(manifest, Manifest)
    return manifest.layers


def test_layers_are_shared_beside_the_workspace() -> None:
    assert str(layers_repository(Repository.parse("a.example/team/envs"))) == "a.example/team/envs/layers"
    assert str(layers_repository(Repository.parse("team/envs"))) == "docker.io/team/envs-layers"
    layout = Repository.parse("oci:/tmp/x")
    assert layers_repository(layout) == layout


def test_what_is_described_is_what_is_read() -> None:
    for made in (
        entry(),
        entry(files=b"", folders=bytes(80)),
        entry(activation='{"conda-meta/state": "{}"}'),
    ):
        manifest = describe(KEY, made)
        assert parse(KEY, manifest, made.repository) == made
        assert manifest.raw == describe(KEY, made).raw


def test_a_manifest_of_something_else_is_no_layer() -> None:
    good = describe(KEY, entry())
    two = Manifest.build(good.config, (*good.layers, *good.layers), good.annotations)
    other = Manifest.build(good.config, (Descriptor("text/plain", Digest.of(b"x"), 1),), good.annotations)
    silent = {name: text for name, text in good.annotations.items() if name != DIFF_ID_ANNOTATION}
    wrong: list[Manifest | ImageIndex] = [
        describe("b" * 64, entry()),
        two,
        other,
        Manifest.build(good.config, good.layers, silent),
        Manifest.build(good.config, good.layers, {**good.annotations, DIFF_ID_ANNOTATION: "md5:0"}),
        Manifest.build(good.config, good.layers, {**good.annotations, "io.envbuild.files": "?"}),
        ImageIndex.build((), {LAYER_ANNOTATION: KEY}),
    ]
    for manifest in wrong:
        with pytest.raises(IntegrityError):
            parse(KEY, manifest, entry().repository)


def test_a_fresh_machine_fetches_no_package_that_others_have(registry: RegistryServer, world: World) -> None:
    config = on(registry, world)
    first = resolve(config, world.spec("pyth", "thing", "tool"))
    assert first.layers_made == 4
    without_packages(world)
    before = len(registry.requests)
    fresh = replace(config, cache_dir=world.root / "fresh")
    second = resolve(fresh, world.spec("pyth", "thing", name="other.yml"))
    assert second.source is Source.BUILT
    assert (second.layers_made, second.layers_reused) == (0, 3)
    assert set(layers_of(second)[:-1]) < set(layers_of(first))
    asked = registry.requests[before:]
    assert sum("/manifests/l-" in line for line in asked) == 3
    heads = [line for line in asked if line.startswith("HEAD")]
    known = [layer.digest.hex for layer in layers_of(second)[:-1]]
    assert not [line for line in heads if any(digits in line for digits in known)], "not asked for one by one"


def test_a_fresh_machine_of_a_layout_does_so_too(world: World) -> None:
    first = resolve(world.config, world.spec("pyth", "thing", "tool"))
    without_packages(world)
    second = resolve(world.other_machine(), world.spec("pyth", "thing", name="other.yml"))
    assert second.source is Source.BUILT
    assert (second.layers_made, second.layers_reused) == (0, 3)
    assert set(layers_of(second)[:-1]) < set(layers_of(first))


def test_layers_of_the_global_repository_are_taken_over(
    registry: RegistryServer, second_registry: RegistryServer, world: World
) -> None:
    published = on(registry, world)
    resolve(published, world.spec("pyth", "thing", "tool"))
    without_packages(world)
    for workspace in (second_registry.repository("mine"), registry.repository("mine")):
        mine = world.other_machine(workspace=workspace, global_=published.workspace)
        seen = resolve(mine, world.spec("pyth", "thing", name="other.yml"))
        assert (seen.source, seen.layers_made) == (Source.BUILT, 0)
        assert seen.reference.repository == workspace
        own = RemoteRegistry(layers_repository(workspace))
        assert sum(tag.name.startswith("l-") for tag in own.tags()) == 3, "what was brought is shared on"
        own.close()


def test_a_machine_that_knows_layers_shares_them_with_a_new_workspace(
    registry: RegistryServer, second_registry: RegistryServer, world: World
) -> None:
    config = on(registry, world)
    spec = world.spec("pyth", "thing")
    resolve(config, spec)
    moved = replace(config, workspace=second_registry.repository("moved"))
    assert resolve(moved, spec).layers_made == 0
    without_packages(world)
    stranger = replace(moved, cache_dir=world.root / "stranger")
    assert resolve(stranger, world.spec("thing", name="other.yml")).layers_made == 0


def test_a_layer_under_a_wrong_name_is_made_instead(world: World) -> None:
    spec = world.spec("tool=1")
    first = resolve(world.config, spec)
    layout = world.layout()
    names = [tag for tag in layout.tags() if tag.name.startswith("l-")]
    assert len(names) == 1
    poison = describe(KEY, replace(entry(), descriptor=layers_of(first)[0], repository=layout.repository))
    blob = poison.config
    assert layout.has_blob(blob.digest)
    layout.put_manifest(poison, names[0])
    fresh = world.other_machine()
    said: list[Event] = []
    with Resolver(fresh, progress=said.append) as resolver:
        again = resolver.build(spec)
    assert again.layers_made == 0, "the image is there already"
    with Resolver(fresh, progress=said.append) as resolver:
        other = resolver.build(world.spec("tool=1", "thing", name="other.yml"))
    assert other.layers_made == 2
    assert any("done without shared layers" in event.text for event in said)
    assert layout.get_manifest(names[0]).annotations[LAYER_ANNOTATION] == names[0].name.removeprefix("l-")


def test_registries_in_trouble_are_done_without(tmp_path: Path) -> None:
    said: list[Event] = []
    registries = Registries(frozenset())
    nowhere = Repository.parse("127.0.0.1:1/envs")
    admission = Admission(Config(workspace=nowhere), said.append)
    shared = SharedLayers(registries, admission, nowhere, None, 4, NO_DEADLINE, said.append)
    assert shared.find([KEY, "b" * 64]) == {}
    shared.share(KEY, entry(repository=nowhere))
    assert shared.find([KEY]) == {}
    assert shared.note(Tag(f"m-{KEY}"), "io.envbuild.record", lambda _: describe(KEY, entry())) is None
    registries.close()
    assert len(said) == 1, "said once"


def test_a_shared_layer_is_an_artifact_that_says_what_is_in_it(
    registry: RegistryServer, world: World
) -> None:
    config = on(registry, world)
    image = resolve(config, world.spec("tool"))
    with Resolver(config) as resolver:
        known = resolver.registries.open(layers_repository(config.workspace))
        (tag,) = known.tags()
        manifest = known.get_manifest(tag)
    assert isinstance(manifest, Manifest)
    assert tag == layer_tag(manifest.annotations[LAYER_ANNOTATION])
    assert manifest.layers == layers_of(image)[1:2]
    assert manifest.artifact_type == "application/vnd.envbuild.layer.v1+json"
    assert json.loads(manifest.raw)["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"


def test_image_manifests_say_nothing_of_layers(world: World) -> None:
    image = resolve(world.config, world.spec("tool"))
    manifest = world.layout().get_manifest(Tag(f"k1-{image.key}"))
    assert isinstance(manifest, Manifest)
    assert not any(layer.annotations for layer in manifest.layers)
    assert LAYER_ANNOTATION not in manifest.annotations


def test_a_known_layer_activates_without_its_package(registry: RegistryServer, world: World) -> None:
    Package(
        (
            Entry("etc/conda/activate.d/a.sh", b'export WHERE="$CONDA_PREFIX/x"\nexport MINE=theirs\n'),
            Entry("etc/conda/activate.d/b.sh", b"uname\n"),
        ),
        name="active",
    ).put(world.root / "channels" / "tiny")
    asyncio.run(conda_oracle.index(world.root / "channels" / "tiny"))
    said: list[Event] = []
    config = on(registry, world)
    with Resolver(config, progress=said.append) as resolver:
        first = resolver.resolve(world.spec("active", variables={"MINE": "mine"}))
    assert [event.subject for event in said if "not part of the image's variables" in event.text] == [
        "etc/conda/activate.d/b.sh"
    ]
    without_packages(world)
    fresh = replace(config, cache_dir=world.root / "fresh")
    second = resolve(fresh, world.spec("active", name="other.yml", variables={"OTHER": "1"}))
    assert second.layers_made == 0
    assert {"WHERE=/opt/env/x", "MINE=mine"} <= set(environment_of(first))
    assert {"WHERE=/opt/env/x", "MINE=theirs", "OTHER=1"} <= set(environment_of(second))


def environment_of(image: ResolvedImage) -> list[str]:
    registry = RemoteRegistry(image.reference.repository)
    manifest = registry.get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    with registry.open_blob(manifest.config) as stream:
        variables: list[str] = json.load(stream)["config"]["Env"]
    registry.close()
    return variables
