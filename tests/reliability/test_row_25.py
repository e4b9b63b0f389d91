"""Row 25: what an index hit names is deleted. It is evicted and built again; deep mode sees all."""

from __future__ import annotations

import http.client
import shutil
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Final

import pytest

from envbuild.oci.manifest import Manifest
from envbuild.oci.registry import find_manifest
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.whole import missing
from envbuild.resolver import Resolver, Source
from tiny import World

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.reference import Tag
    from parts.registry_server import RegistryServer

VICTIMS: Final = ("tag", "manifest", "config", "layer", "all layers")


def delete(server: RegistryServer, registry: RemoteRegistry, image: Manifest, tag: Tag, victim: str) -> None:
    """Delete a part of an image, as registries and their garbage collectors do."""
    path = registry.repository.path
    if victim == "tag":
        tags = server.folder / "data/docker/registry/v2/repositories" / path / "_manifests/tags"
        shutil.rmtree(tags / tag.name)
    elif victim == "manifest":
        registry.delete_manifest(image.descriptor.digest)
    else:
        blobs = {"config": (image.config,), "layer": image.layers[-1:], "all layers": image.layers}[victim]
        for blob in blobs:
            connection = http.client.HTTPConnection(server.host)
            connection.request("DELETE", f"/v2/{path}/blobs/{blob.digest}")
            assert connection.getresponse().status == 202
            connection.close()


def lose(world: World, server: RegistryServer, times: int) -> dict[str, int]:
    """Delete something behind an index hit and resolve again, over and over; what was seen."""
    random = Random(25)
    seen: dict[str, int] = {}
    spec = world.spec("tool==1.0")
    for turn in range(times):
        victim, deep = VICTIMS[turn % len(VICTIMS)], turn // len(VICTIMS) % 2 == 0
        if turn % (2 * len(VICTIMS)) == 0:
            config = world.other_machine(workspace=server.repository("lost"), attach=False, index_ttl=0)
            with Resolver(config) as resolver:
                resolver.resolve(spec)
        # A hit that must be confirmed; in deep mode even a fresh one must.
        machine = replace(config, deep=deep, index_ttl=random.choice((0, 600)) if deep else 0)
        registry = RemoteRegistry(machine.workspace)
        with Resolver(machine) as resolver:
            first = resolver.resolve(spec)
            image = registry.get_manifest(first.reference.digest)
            assert isinstance(image, Manifest)
            delete(server, registry, image, first.key.tag, victim)
            entry = resolver.index.image(str(first.key), machine.workspace)
            assert entry is not None
            again = resolver.resolve(spec)
        note = f"{victim}{', deep' if deep else ''}: {again.source.value}"
        seen[note] = seen.get(note, 0) + 1
        assert again.reference.digest == first.reference.digest, note
        found = find_manifest(registry, again.reference.digest)
        assert found is not None, f"{note}: a dead reference"
        if deep:
            assert missing(registry, found) == (), f"{note}: a dead reference"
        if victim == "manifest" or (deep and victim != "tag"):
            assert again.source is Source.BUILT, note
            assert find_manifest(registry, first.key.tag) is not None
        else:
            assert again.source is Source.INDEX, note
            restore(machine, world)
        registry.close()
    return seen


def restore(config: object, world: World) -> None:
    """Build what was lost again, for the next turn."""
    from envbuild.config import Config

    assert isinstance(config, Config)
    with Resolver(replace(config, deep=True, cache_dir=world.other_machine().cache_dir)) as resolver:
        resolver.resolve(world.spec("tool==1.0"))


def test_what_is_deleted_behind_a_hit(tmp_path: Path, registry: RegistryServer) -> None:
    print(lose(World.make(tmp_path), registry, 10))  # noqa: T201


@pytest.mark.nightly
def test_what_is_deleted_behind_a_hit_500_times(tmp_path: Path, registry: RegistryServer) -> None:
    print(lose(World.make(tmp_path), registry, 500))  # noqa: T201
