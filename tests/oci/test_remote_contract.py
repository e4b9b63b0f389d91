"""The contract of registries on real servers: each kind of access, and two implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envbuild.digest import Descriptor, Digest
from envbuild.errors import IntegrityError, NotFound, Unauthorized, Unavailable
from envbuild.oci.auth import Credentials
from envbuild.oci.client import Client, tls_context
from envbuild.oci.manifest import OCI_CONFIG, Manifest
from envbuild.oci.registry import find_manifest
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.thin import ThinRegistry
from envbuild.oci.transport import MissingContent, Settings
from envbuild.reference import Tag
from oci_contract import ABSENT, RegistryContract, put, put_image
from parts.registry_server import PASSWORD, USERNAME, RegistryServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.oci.registry import Registry
    from parts.certificates import Certificate
    from parts.ocimem import OcimemServer
    from parts.server_process import ServerProcess
    from parts.token_server import TokenServer

ALICE = Credentials(USERNAME, PASSWORD)


class _Backend:
    """Repositories on one server."""

    def __init__(self, server: ServerProcess, credentials: Credentials | None = None) -> None:
        self._server, self._credentials = server, credentials
        self._settings = Settings(
            secure_hosts=frozenset({server.host} if server.scheme == "https" else ()),
        )

    def repository(self) -> Registry:
        """A new one."""
        return RemoteRegistry(
            self._server.repository("contract"), credentials=self._credentials, settings=self._settings
        )


class DistributionBackend(_Backend):
    """CNCF Distribution, whose storage is a folder."""

    def overwrite_blob(self, _registry: Registry, digest: Digest, content: bytes) -> None:
        """Write over the file."""
        blobs = self._server.folder / "data/docker/registry/v2/blobs/sha256"
        (blobs / digest.hex[:2] / digest.hex / "data").write_bytes(content)

    overwrite_manifest = overwrite_blob


class OcimemBackend(_Backend):
    """ocimem, whose storage is its memory."""

    _server: OcimemServer

    def overwrite_blob(self, _registry: Registry, digest: Digest, content: bytes) -> None:
        """Ask the server to forget what it had."""
        self._server.spoil(digest, content)

    overwrite_manifest = overwrite_blob


class _OfDistribution(RegistryContract):
    def test_blob_is_not_a_manifest(self, registry: Registry) -> None:
        """Distribution answers 500 to this question, which nobody can tell from an outage."""
        manifest = put_image(registry, "image")
        registry.put_manifest(manifest, Tag("image"))
        for blob in manifest.blobs:
            with pytest.raises((NotFound, Unavailable, IntegrityError)):
                registry.get_manifest(blob.digest)


class TestAnonymous(_OfDistribution):
    @pytest.fixture
    def backend(self, second_registry: RegistryServer) -> DistributionBackend:
        return DistributionBackend(second_registry)


class TestPassword(_OfDistribution):
    @pytest.fixture
    def backend(self, htpasswd_registry: RegistryServer) -> DistributionBackend:
        return DistributionBackend(htpasswd_registry, ALICE)


class TestTls(_OfDistribution):
    @pytest.fixture
    def backend(
        self, tls_registry: RegistryServer, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[DistributionBackend]:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
        tls_context.cache_clear()
        yield DistributionBackend(tls_registry)
        tls_context.cache_clear()


class TestToken(_OfDistribution):
    @pytest.fixture
    def backend(self, token_registry: RegistryServer) -> DistributionBackend:
        return DistributionBackend(token_registry, ALICE)


class _ThinBackend(DistributionBackend):
    """Distribution, written to over the thin client."""

    def __init__(self, server: ServerProcess, credentials: Credentials | None = None) -> None:
        super().__init__(server, credentials)
        self.client = Client(self._settings)

    def repository(self) -> Registry:
        """A new one."""
        full = super().repository()
        return ThinRegistry(full.repository, lambda: full, self.client, self._settings, self._credentials)


class TestThin(_OfDistribution):
    @pytest.fixture
    def backend(self, second_registry: RegistryServer) -> Iterator[_ThinBackend]:
        backend = _ThinBackend(second_registry)
        yield backend
        backend.client.close()


class TestThinToken(_OfDistribution):
    @pytest.fixture
    def backend(self, token_registry: RegistryServer) -> Iterator[_ThinBackend]:
        backend = _ThinBackend(token_registry, ALICE)
        yield backend
        backend.client.close()


class TestOcimem(RegistryContract):
    @pytest.fixture
    def backend(self, ocimem: OcimemServer) -> OcimemBackend:
        return OcimemBackend(ocimem)

    @pytest.mark.parametrize("lost", ["config", "layer"])
    def test_manifest_with_a_missing_blob_is_refused(self, registry: Registry, lost: str) -> None:
        """It refuses as it must, and does not say which blob it lacks."""
        whole = put_image(registry, "image")
        config = Descriptor.of(b'{"lost":true}', OCI_CONFIG) if lost == "config" else whole.config
        layers = whole.layers if lost == "config" else (*whole.layers, ABSENT)
        manifest = Manifest.build(config, layers, {})
        with pytest.raises(MissingContent, match="lacks something that it names") as caught:
            registry.put_manifest(manifest, Tag("partial"))
        assert caught.value.missing == ()
        for reference in (Tag("partial"), manifest.descriptor.digest):
            assert find_manifest(registry, reference) is None

    def test_delete_takes_every_tag(self, registry: Registry) -> None:
        """A tag whose manifest is gone leads nowhere, and stays in the list."""
        manifest = put_image(registry, "image")
        registry.put_manifest(manifest, Tag("one"))
        registry.delete_manifest(manifest.descriptor.digest)
        for reference in (Tag("one"), manifest.descriptor.digest):
            with pytest.raises(NotFound):
                registry.get_manifest(reference)
        with pytest.raises(NotFound):
            registry.delete_manifest(manifest.descriptor.digest)
        assert list(registry.tags()) == [Tag("one")]


class TestTokens:
    """What only a registry with a token server can do wrong."""

    def test_nobody_reads_and_does_not_write(self, token_registry: RegistryServer) -> None:
        repository = token_registry.repository()
        target = RemoteRegistry(repository, credentials=ALICE)
        descriptor = put(target, b"for all")
        anonymous = RemoteRegistry(repository)
        assert anonymous.has_blob(descriptor.digest)
        with pytest.raises(Unauthorized):
            put(anonymous, b"from nobody")
        with pytest.raises(Unauthorized):
            RemoteRegistry(repository, credentials=Credentials(USERNAME, "wrong")).has_blob(ABSENT.digest)

    def test_one_token_for_many_requests(
        self, token_registry: RegistryServer, token_server: TokenServer
    ) -> None:
        target = RemoteRegistry(token_registry.repository(), credentials=ALICE)
        before = len(token_server.granted)
        for number in range(5):
            put(target, f"blob {number}".encode())
        granted = token_server.granted[before:]
        path = target.repository.path
        assert {user for user, _ in granted} == {USERNAME}
        assert len(granted) <= 2, "one token to read, one to write"
        assert all(f"repository:{path}:" in scope for _, scopes in granted for scope in scopes)

    def test_an_identity_token_instead_of_a_password(
        self, token_registry: RegistryServer, token_server: TokenServer
    ) -> None:
        credentials = Credentials("", "", identity_token=token_server.refresh_token("robot"))
        target = RemoteRegistry(token_registry.repository(), credentials=credentials)
        put(target, b"from a robot")
        assert token_server.granted[-1][0] == "robot"
