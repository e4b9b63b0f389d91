"""HTTPS: only a server whose certificate is trusted for its name is spoken to, by both clients."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import pytest

from envbuild.errors import Unavailable
from envbuild.oci.client import tls_context
from envbuild.oci.manifest import OCI_MANIFEST, encode
from envbuild.oci.open import Settings
from envbuild.oci.probe import Prober
from envbuild.oci.proxies import way_hint
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from parts.certificates import Certificate
from parts.fault_server import Asked, Call, FaultServer, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{'0' * 64}", "size": 2}
RAW = encode({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": []})


@pytest.fixture
def server(certificate: Certificate) -> Iterator[FaultServer]:
    def script(call: Call, _: Asked) -> None:
        call.answer(200, RAW, {"Content-Type": OCI_MANIFEST})

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.path, certificate.key_path)
    with serving(script) as running:
        # The handshake belongs to the connection's own thread, so that a refused one stops nobody.
        running.socket = context.wrap_socket(running.socket, server_side=True, do_handshake_on_connect=False)
        yield running


@pytest.fixture(params=["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def _trusted(
    request: pytest.FixtureRequest, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setenv(request.param, str(certificate.path))
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


@pytest.fixture(params=["thin", "full"])
def read_manifest(request: pytest.FixtureRequest, server: FaultServer) -> Callable[[str], bytes]:
    """Reads the manifest from the server under a host name."""

    def read(name: str) -> bytes:
        host = f"{name}:{server.server_port}"
        repository = Repository.parse(f"{host}/team/envs")
        settings = Settings(secure_hosts=frozenset({host}), retries=3, connect_timeout=5, read_timeout=5)
        if request.param == "thin":
            with Prober(settings) as prober:
                return prober.probe(repository, Tag("v1")).raw
        remote = RemoteRegistry(repository, settings=settings)
        try:
            return remote.get_manifest(Tag("v1")).raw
        finally:
            remote.close()

    return read


@pytest.mark.usefixtures("_trusted")
def test_trusted(read_manifest: Callable[[str], bytes]) -> None:
    assert read_manifest("localhost") == RAW


@pytest.mark.usefixtures("_trusted")
def test_other_name(read_manifest: Callable[[str], bytes], server: FaultServer) -> None:
    with pytest.raises(Unavailable, match="certificate verify failed") as caught:
        read_manifest("127.0.0.1")
    assert not caught.value.retryable
    assert server.asked == []


def test_untrusted(read_manifest: Callable[[str], bytes], server: FaultServer) -> None:
    with pytest.raises(Unavailable, match="certificate verify failed") as caught:
        read_manifest("localhost")
    assert not caught.value.retryable
    assert "SSL_CERT_FILE" in str(caught.value.hint)
    assert server.failures <= 1
    assert server.asked == []


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authorities_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None
) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(name, str(path))
    tls_context.cache_clear()
    with pytest.raises(Unavailable, match=f"{name}={re.escape(str(path))} cannot be read") as caught:
        tls_context()
    assert name in str(caught.value.hint)
    assert not caught.value.retryable


def test_a_proxy_that_is_the_trouble_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:1")
    hint = way_hint("https://registry.example.com", OSError("refused"))
    assert hint is not None
    assert "through the proxy http://127.0.0.1:1:" in hint
    assert "secret" not in hint
