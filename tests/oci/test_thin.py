"""Small requests over the thin client; the contract of registries is run in ``test_remote_contract``."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from envbuild.deadline import Deadline
from envbuild.digest import Descriptor
from envbuild.errors import DeadlineExceeded, IntegrityError, Unauthorized, Unavailable
from envbuild.oci.auth import Keychain
from envbuild.oci.client import Client
from envbuild.oci.manifest import OCI_LAYER, Manifest
from envbuild.oci.registries import Registries
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.thin import SMALL, ThinRegistry
from envbuild.oci.transport import Settings
from envbuild.reference import Repository, Tag
from oci_contract import put_image
from parts.fault_server import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from parts.fault_server import Asked, Call
    from parts.ocimem import OcimemServer
    from parts.registry_server import RegistryServer

QUICK = Settings(connect_timeout=2, read_timeout=2, retries=1, patience=1.0)


def test_an_image_goes_to_the_second_registry(ocimem: OcimemServer) -> None:
    registries = Registries(frozenset())
    registry = registries.open(ocimem.repository("thin"))
    manifest = put_image(registry, "image")
    registry.put_manifest(manifest, Tag("image"))
    assert registry.get_manifest(Tag("image")) == manifest
    assert registry.referrers(manifest.descriptor.digest) == ()
    registries.close()


def test_a_small_blob_and_a_manifest_are_three_requests(registry: RegistryServer) -> None:
    registries = Registries(frozenset())
    target = registries.open(registry.repository("thin"))
    before = len(registry.requests)
    blob = Descriptor.of(b"small", OCI_LAYER)
    target.put_blob(blob, lambda: io.BytesIO(b"small"), ask=False)
    target.put_manifest(Manifest.build(blob, (blob,), {}), Tag("small"))
    registries.close()
    asked = [line.partition(" ")[0] for line in registry.requests[before:]]
    assert asked == ["POST", "PUT", "PUT"]


def test_a_large_blob_goes_the_usual_way(registry: RegistryServer) -> None:
    registries = Registries(frozenset())
    target = registries.open(registry.repository("thin"))
    content = b"x" * (SMALL + 1)
    large = Descriptor.of(content, OCI_LAYER)
    assert target.put_blob(large, lambda: io.BytesIO(content))
    with target.open_blob(large) as stream:
        assert stream.read() == content
    registries.close()


def test_a_layout_has_no_thin_way(tmp_path: Path) -> None:
    registries = Registries(frozenset())
    layout = Repository.parse(f"oci:{tmp_path}/layout")
    assert registries.open(layout) is registries.open(layout)
    registries.close()


def test_bytes_that_are_not_the_descriptors_are_not_stored(registry: RegistryServer) -> None:
    registries = Registries(frozenset())
    target = registries.open(registry.repository("thin"))
    blob = Descriptor.of(b"right", OCI_LAYER)
    with pytest.raises(IntegrityError):
        target.put_blob(blob, lambda: io.BytesIO(b"wrong"), ask=False)
    assert not target.has_blob(blob.digest)
    registries.close()


@pytest.fixture
def broken(request: pytest.FixtureRequest) -> Iterator[ThinRegistry]:
    def handle(call: Call, _: Asked) -> None:
        call.answer(request.param, b"{}", {"WWW-Authenticate": 'Basic realm="x"'})

    with serving(handle) as server:
        repository, client = Repository.parse(f"{server.host}/team/envs"), Client(QUICK)
        yield ThinRegistry(
            repository, lambda: RemoteRegistry(repository, settings=QUICK), client, QUICK, Keychain()
        )
        client.close()


@pytest.mark.parametrize(
    ("broken", "error"), [(503, Unavailable), (401, Unauthorized), (403, Unauthorized)], indirect=["broken"]
)
def test_what_goes_wrong_is_typed(broken: ThinRegistry, error: type[Exception]) -> None:
    blob = Descriptor.of(b"small", OCI_LAYER)
    with pytest.raises(error):
        broken.put_manifest(Manifest.build(blob, (blob,), {}), Tag("t"))
    with pytest.raises(error):
        broken.put_blob(blob, lambda: io.BytesIO(b"small"), ask=False)
    with pytest.raises(DeadlineExceeded):
        broken.by(Deadline.after(0)).has_blob(blob.digest)
