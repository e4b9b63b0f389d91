"""On the way to every server, the proxy that is the trouble is named, or SSL_CERT_FILE."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from conda_packages import Entry, Package
from envbuild.conda.fetch import fetch_package
from envbuild.conda.link import PythonTarget
from envbuild.conda.solve import SolveRequest, solve
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import ChannelError, Unavailable
from envbuild.oci.breaker import CircuitOpen
from envbuild.oci.client import tls_context
from envbuild.oci.open import Settings
from envbuild.oci.probe import Prober
from envbuild.oci.proxies import said_hint
from envbuild.pip.resolve import PipRequest, resolve
from envbuild.platform import LINUX_AMD64
from envbuild.reference import Repository, Tag
from envbuild.spec.channel import Channel
from envbuild.spec.conda import CondaSection
from envbuild.spec.match import MatchSpec
from envbuild.spec.pip import PipSection
from envbuild.spec.virtual import VirtualPackages
from parts.certificates import Certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PACKAGE = Package((Entry("share/x", b"x" * 5000),))
CONTENT = PACKAGE.write_conda()


def solves(url: str, cache: Path) -> None:
    section = CondaSection((Channel.parse(url),), dependencies=(MatchSpec.parse("thing"),))
    request = SolveRequest(section, LINUX_AMD64, VirtualPackages(glibc="2.36"), "strict", None)
    solve(request, cache_dir=cache, deadline=NO_DEADLINE)


def fetches(url: str, cache: Path) -> None:
    record = PACKAGE.record(CONTENT, f"{url}/linux-64/{PACKAGE.stem}.conda")
    fetch_package(record, deadline=Deadline.after(60), folder=cache.parent).close()


def resolves(url: str, cache: Path) -> None:
    section = PipSection.from_requirements(f"--index-url {url}\nthing\n".encode(), "requirements.txt", None)
    request = PipRequest(section, LINUX_AMD64, PythonTarget("3.11.4", "lib"), "2.36")
    resolve(request, cache_dir=cache, deadline=NO_DEADLINE)


asking = pytest.mark.parametrize("ask", [solves, fetches, resolves])


@asking
def test_a_proxy_that_is_down_is_named_without_its_login(
    ask: Callable[[str, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envbuild.conda.fetch._BACKOFF", 0.01)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "other.example.com")
    with pytest.raises(ChannelError) as caught:
        ask("https://channel.example.com/tiny", tmp_path / "cache")
    assert caught.value.hint is not None
    assert "it is asked through the proxy http://127.0.0.1:1: " in caught.value.hint
    assert caught.value.retryable
    assert "secret" not in f"{caught.value}{caught.value.hint}"


@pytest.fixture(scope="module")
def leaf(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("leaf"), authority=False)


@pytest.fixture
def secure(leaf: Certificate) -> Iterator[str]:
    """The URL of a server with a certificate that nobody trusts; it has the package and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path.endswith(".conda")
            self.send_response(200 if there else 404)
            self.send_header("Content-Length", str(len(CONTENT) if there else 0))
            self.end_headers()
            self.wfile.write(CONTENT if there else b"")

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Refused handshakes are what is tested."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf.path, leaf.key_path)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_port}/tiny"
        server.shutdown()


@pytest.fixture
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


@asking
@pytest.mark.usefixtures("_forgotten")
def test_a_certificate_of_an_unknown_authority_names_ssl_cert_file(
    ask: Callable[[str, Path], None],
    secure: str,
    certificate: Certificate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ChannelError) as caught:
        ask(secure, tmp_path / "cache")
    assert "name the file of its certificates in SSL_CERT_FILE" in str(caught.value.hint)
    assert not caught.value.retryable
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    tls_context.cache_clear()
    with pytest.raises(ChannelError) as caught:
        ask(secure, tmp_path / "cache")
    assert f"SSL_CERT_FILE={certificate.path} lacks the authority" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
@pytest.mark.usefixtures("_forgotten")
def test_packages_come_from_a_server_whose_certificate_is_trusted(
    secure: str, leaf: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(leaf.path))
    fetches(secure, tmp_path / "cache")
    monkeypatch.setenv(name, str(tmp_path / "gone"))
    tls_context.cache_clear()
    with pytest.raises(Unavailable, match=f"{name}=.*gone cannot be read"):
        fetches(secure, tmp_path / "cache")


def test_packages_come_through_the_proxy_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str | None]] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Proxy-Authorization"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{server.server_port}")
        monkeypatch.delenv("REQUEST_METHOD", raising=False)
        fetches("http://channel.example.com/tiny", tmp_path / "cache")
        server.shutdown()
    path = f"http://channel.example.com/tiny/linux-64/{PACKAGE.stem}.conda"
    assert seen == [(path, "Basic dXNlcjpwQHNz")]


def test_a_server_that_answers_is_no_trouble_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    said = "HTTP status server error (503 Service Unavailable) for url (https://channel.example.com/x)"
    assert said_hint(said) is None
    said = "error sending request for url (https://channel.example.com/x)\nCaused by: client error (Connect)"
    assert said_hint(said) is not None


def test_an_outage_of_a_registry_behind_a_proxy_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "other.example.com")
    with Prober(Settings(patience=0.2)) as prober, pytest.raises(Unavailable, match="refused") as caught:
        prober.probe(Repository.parse("registry.example.com/envs"), Tag("v1"), Deadline.after(20))
    assert isinstance(caught.value, CircuitOpen)
    assert "it is asked through the proxy http://127.0.0.1:1: " in str(caught.value.hint)
    assert "secret" not in f"{caught.value}{caught.value.hint}"
