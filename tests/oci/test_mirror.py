"""Mirrors: read by digest, verified, passed over where they fail, and never given another host's password."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING

import pytest

from envbuild.config import Config
from envbuild.digest import Descriptor
from envbuild.errors import IntegrityError, NotFound
from envbuild.oci.auth import Credentials
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_LAYER_GZIP, Manifest
from envbuild.oci.mirror import on_mirror
from envbuild.oci.open import open_registry
from envbuild.oci.registries import Registries
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from oci_contract import Source, put, put_image, read
from parts.fault_server import Asked, Call, FaultServer, serving
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.oci.registry import Registry
    from parts.registry_server import RegistryServer

BIG = Random(0).randbytes((8 << 20) + 10)


@pytest.fixture
def origin(registry: RegistryServer) -> Iterator[RemoteRegistry]:
    opened = RemoteRegistry(registry.repository("origin"))
    yield opened
    opened.close()


def mirrored(origin: RemoteRegistry, *places: str) -> Registry:
    return Registries(frozenset(), {origin.repository.host: places}).open(origin.repository)


def blob_reads(server: RegistryServer, path: str) -> list[str]:
    return [each for each in server.requests if path in each and each.startswith("GET") and "sha256:" in each]


def test_content_comes_from_the_mirror(
    registry: RegistryServer, second_registry: RegistryServer, origin: RemoteRegistry
) -> None:
    image = put_image(origin, "image")
    origin.put_manifest(image, Tag("v1"))
    place = f"{second_registry.host}/below"
    mirror = RemoteRegistry(on_mirror(place, origin.repository))
    copy_image(origin, mirror, image)
    both, before = mirrored(origin, place), len(blob_reads(registry, origin.repository.path))
    assert both.repository == origin.repository
    assert both.get_manifest(Tag("v1")).raw == image.raw
    assert both.get_manifest(image.descriptor.digest).raw == image.raw
    for blob in image.blobs:
        read(both, blob)
    assert len(blob_reads(registry, origin.repository.path)) == before
    assert len(blob_reads(second_registry, mirror.repository.path)) >= 1 + len(image.blobs)
    both.close()
    mirror.close()


def test_a_mirror_is_not_written_and_not_believed_about_what_is_there(
    second_registry: RegistryServer, origin: RemoteRegistry
) -> None:
    mirror = RemoteRegistry(on_mirror(second_registry.host, origin.repository))
    old = put_image(mirror, "old")
    mirror.put_manifest(old, Tag("v1"))
    both = mirrored(origin, second_registry.host)
    with pytest.raises(NotFound):
        both.get_manifest(Tag("v1"))
    assert not both.has_blob(old.config.digest)
    new = put_image(both, "new")
    both.put_manifest(new, Tag("v2"))
    assert origin.get_manifest(Tag("v2")).raw == new.raw
    assert list(both.tags()) == [Tag("v2")]
    assert both.referrers(new.descriptor.digest) is None
    assert not any(mirror.has_blob(blob.digest) for blob in new.blobs)
    both.delete_manifest(new.descriptor.digest)
    both.close()
    mirror.close()


@pytest.mark.parametrize("trouble", ["404", "500", "401", "429", "hang up", "gone", "wrong", "short"])
def test_a_mirror_in_trouble_is_passed_over(origin: RemoteRegistry, trouble: str) -> None:
    image = put_image(origin, "image")
    origin.put_manifest(image)

    def script(call: Call, asked: Asked) -> None:
        if trouble.isdigit():
            call.fail(int(trouble))
        elif trouble == "hang up":
            call.hang_up()
        else:
            call.answer(200, b"wrong" if trouble == "wrong" else image.raw[:10])

    with serving(script) as server:
        host = server.host
        if trouble != "gone":
            check(mirrored(origin, host), image, server)
    if trouble == "gone":
        check(mirrored(origin, host), image, server)


def check(both: Registry, image: Manifest, server: FaultServer) -> None:
    for _ in range(3):
        assert both.get_manifest(image.descriptor.digest).raw == image.raw
        for blob in image.blobs:
            read(both, blob)
    assert not any("/manifests/v" in asked.path for asked in server.asked)
    both.close()


def test_a_wrong_mirror_is_asked_once(origin: RemoteRegistry) -> None:
    descriptor = put(origin, b"right")
    with serving(lambda call, _: call.answer(200, b"wrong")) as server:
        both = mirrored(origin, server.host)
        for _ in range(3):
            assert read(both, descriptor) == b"right"
        assert len(server.asked) == 1
        both.close()


def test_a_large_blob_that_is_wrong_fails_once(origin: RemoteRegistry) -> None:
    """What was given out cannot be taken back, but the next reader gets it from elsewhere."""
    descriptor = Descriptor.of(BIG, OCI_LAYER_GZIP)
    origin.put_blob(descriptor, Source(BIG))
    with serving(lambda call, _: call.answer(200, BIG[:-1] + b"?")) as server:
        both = mirrored(origin, server.host)
        with pytest.raises(IntegrityError) as caught:
            read(both, descriptor)
        assert caught.value.retryable
        assert read(both, descriptor) == BIG
        both.close()


def test_credentials_stay_with_their_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_blob = Descriptor.of(b"content", OCI_LAYER_GZIP)
    ours, theirs = Credentials("alice", "of the origin"), Credentials("bob", "of the mirror")

    def asks(call: Call, asked: Asked) -> None:
        if asked.authorization is None:
            call.fail(401, headers={"WWW-Authenticate": "Basic realm=x"})
        else:
            call.answer(404 if call.server is mirror else 200, b"content")

    with serving(asks) as server, serving(asks) as mirror:
        auths = {
            host: {"username": each.username, "password": each.password}
            for host, each in ((server.host, ours), (mirror.host, theirs))
        }
        (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        both = open_registry(Repository.parse(f"{server.host}/x"), mirrors=(mirror.host,))
        assert read(both, image_blob) == b"content"
        assert {asked.authorization for asked in mirror.asked} <= {None, theirs.basic}
        assert theirs.basic in {asked.authorization for asked in mirror.asked}
        assert {asked.authorization for asked in server.asked} <= {None, ours.basic}
        both.close()


def test_a_base_is_read_from_a_mirror(
    tmp_path: Path, registry: RegistryServer, second_registry: RegistryServer
) -> None:
    world = World.make(tmp_path)
    layout = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/bases"))
    base = layout.get_manifest(Tag("minimal"))
    origin = RemoteRegistry(registry.repository("base"))
    mirror = RemoteRegistry(on_mirror(second_registry.host, origin.repository))
    for each in (origin, mirror):
        copy_image(layout, each, base)
        each.put_manifest(base, Tag("minimal"))
    mirrors = {registry.host: (second_registry.host,)}
    config: Config = world.other_machine(base=f"{origin.repository}:minimal", registries=mirrors)
    with Resolver(config) as resolver:
        image = resolver.resolve(world.spec("tool==1.0"))
    assert world.layout().get_manifest(image.reference.digest).descriptor.digest == image.reference.digest
    assert not [each for each in blob_reads(registry, origin.repository.path) if "/blobs/" in each]
    assert [each for each in blob_reads(second_registry, mirror.repository.path) if "/blobs/" in each]
    origin.close()
    mirror.close()
