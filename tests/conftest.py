"""Fixtures that start real parts: registries, a Docker Engine. Nothing here skips: what is missing fails."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from parts.certificates import Certificate
from parts.docker_engine import DockerEngine
from parts.ocimem import OcimemServer
from parts.podman_engine import PodmanEngine
from parts.registry_server import PASSWORD, USERNAME, RegistryServer
from parts.token_server import TokenServer, giving_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["fixtures_channel"]

_SETTINGS = ("ENVBUILD_", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR")


def pytest_configure() -> None:
    """Interrupts reach the programs that tests start, also under a shell that ignores them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests see neither the credentials nor the settings of whoever runs them."""
    import os

    for name in list(os.environ):
        if name.startswith(_SETTINGS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path_factory.getbasetemp() / "no-docker-config"))


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry that anybody may read and write."""
    yield from _serve(tmp_path_factory, "registry", authenticated=False)


@pytest.fixture(scope="session")
def second_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """Another one, on another port and so on another host."""
    yield from _serve(tmp_path_factory, "second", authenticated=False)


@pytest.fixture(scope="session")
def htpasswd_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry that asks for ``registry_server.USERNAME`` and ``PASSWORD``."""
    yield from _serve(tmp_path_factory, "htpasswd", authenticated=True)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for ``localhost``, signed by itself."""
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def tls_registry(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[RegistryServer]:
    """A registry that speaks HTTPS with a certificate that only who is told to trusts."""
    server = RegistryServer(tmp_path_factory.mktemp("tls"), certificate=certificate)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def token_server(certificate: Certificate) -> Iterator[TokenServer]:
    """Who gives out the tokens for ``token_registry``."""
    with giving_tokens(certificate, {USERNAME: PASSWORD}) as server:
        yield server


@pytest.fixture(scope="session")
def token_registry(
    tmp_path_factory: pytest.TempPathFactory, token_server: TokenServer
) -> Iterator[RegistryServer]:
    """A registry that asks for tokens of ``token_server``; anybody gets one to read."""
    server = RegistryServer(tmp_path_factory.mktemp("token"), tokens=token_server)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ocimem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OcimemServer]:
    """A registry of the second implementation, which has the referrers API."""
    server = OcimemServer(tmp_path_factory.mktemp("ocimem"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def stoppable_registry(tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry of the test's own, which it may stop and start."""
    server = RegistryServer(tmp_path / "stoppable-registry")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DockerEngine:
    """A Docker Engine: the one that ``DOCKER_HOST`` names, else one that this session starts and ends."""
    if (given := DockerEngine.given()) is not None:
        return given
    own = DockerEngine.in_folder(_shared_folder(tmp_path_factory) / "engine")
    with FileLock(_shared_folder(tmp_path_factory) / "engine.lock"):
        if not own.answers():
            own.start()
    return own


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> PodmanEngine:
    """Podman's service, which this session starts and ends."""
    own = PodmanEngine.in_folder(_shared_folder(tmp_path_factory) / "podman")
    with FileLock(_shared_folder(tmp_path_factory) / "podman.lock"):
        if not own.answers():
            own.start()
    return own


@pytest.fixture
def buildx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A docker command that has buildx."""
    from engine_bases import buildx_plugin

    cache = Path(__file__).parents[1] / ".cache"
    with FileLock(cache / "test-bases.lock"):
        plugin = buildx_plugin(cache / "test-bases/buildx")
    (tmp_path / "docker/cli-plugins").mkdir(parents=True)
    (tmp_path / "docker/cli-plugins/docker-buildx").symlink_to(plugin)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the engines that workers of this session started, once all workers are done."""
    if hasattr(session.config, "workerinput"):
        return
    factory = getattr(session.config, "_tmp_path_factory", None)
    if factory is not None and (folder := factory.getbasetemp() / "engine").exists():
        DockerEngine.in_folder(folder).stop()
    if factory is not None and (folder := factory.getbasetemp() / "podman").exists():
        PodmanEngine.in_folder(folder).stop()


def _shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder that all workers of the session have in common."""
    base = factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def _serve(factory: pytest.TempPathFactory, name: str, *, authenticated: bool) -> Iterator[RegistryServer]:
    server = RegistryServer(factory.mktemp(name), authenticated=authenticated)
    server.start()
    yield server
    server.stop()
