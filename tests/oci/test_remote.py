"""The remote back end: the contract on real registries, then what only a network can do wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from oci_contract import RegistryContract, put_image
from parts.registry_server import PASSWORD, USERNAME, RegistryServer

from envbuild.errors import IntegrityError, NotFound, Unavailable
from envbuild.oci.auth import Credentials
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Tag

if TYPE_CHECKING:
    from envbuild.digest import Digest
    from envbuild.oci.registry import Registry


class ServerBackend:
    """Repositories on one server."""

    def __init__(self, server: RegistryServer, credentials: Credentials | None = None) -> None:
        self._server = server
        self._credentials = credentials

    def repository(self) -> Registry:
        return RemoteRegistry(self._server.repository("contract"), credentials=self._credentials)

    def overwrite_blob(self, _registry: Registry, digest: Digest, content: bytes) -> None:
        blobs = self._server.folder / "data/docker/registry/v2/blobs/sha256"
        (blobs / digest.hex[:2] / digest.hex / "data").write_bytes(content)

    overwrite_manifest = overwrite_blob


class _Contract(RegistryContract):
    def test_blob_is_not_a_manifest(self, registry: Registry) -> None:
        """Distribution answers 500 to this question, which nobody can tell from an outage."""
        manifest = put_image(registry, "image")
        registry.put_manifest(manifest, Tag("image"))
        for blob in manifest.blobs:
            with pytest.raises((NotFound, Unavailable, IntegrityError)):
                registry.get_manifest(blob.digest)


class TestAnonymous(_Contract):
    @pytest.fixture
    def backend(self, second_registry: RegistryServer) -> ServerBackend:
        return ServerBackend(second_registry)


class TestPassword(_Contract):
    @pytest.fixture
    def backend(self, htpasswd_registry: RegistryServer) -> ServerBackend:
        return ServerBackend(htpasswd_registry, Credentials(USERNAME, PASSWORD))
