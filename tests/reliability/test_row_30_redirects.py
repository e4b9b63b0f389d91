"""Row 30, on the wire: a login goes to its own server, and nothing of it to where that one leads."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from envbuild.conda.fetch import fetch_package
from envbuild.conda.link import PythonTarget
from envbuild.conda.solve import SolveRequest, solve
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import ChannelError, EnvbuildError
from envbuild.oci.client import Client
from envbuild.oci.credentials import Credentials
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.thin import ThinRegistry
from envbuild.oci.transport import Settings
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.resolve import PipRequest, resolve
from envbuild.platform import LINUX_AMD64
from envbuild.reference import Repository, Tag
from envbuild.spec.channel import Channel
from envbuild.spec.conda import CondaSection
from envbuild.spec.match import MatchSpec
from envbuild.spec.pip import PipSection
from envbuild.spec.virtual import VirtualPackages
from tiny import make_channel
from tiny_wheels import TinyWheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET: Final = "S3cretCanary9"
USER: Final = "UserCanary7"
WHEEL: Final = TinyWheel("tiny")


@dataclass
class Server:
    """A server that answers from a folder, or leads everybody to another one.

    Attributes:
        name: Its host and port.
        folder: What it serves.
        onward: The server that it leads to.
        heard: Each request, with all of its headers.
    """

    folder: Path
    name: str = ""
    onward: str = ""
    heard: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        """The requests that hold a secret in any form."""
        words = (SECRET, USER)
        pairs = [f"{USER}:{SECRET}", f"x:{SECRET}"]
        forms = [*words, *(base64.b64encode(pair.encode()).decode()[:16] for pair in pairs)]
        return [line for line in self.heard if any(form in line for form in forms)]


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: object) -> None:
        self.of = server
        super().__init__(*arguments)  # type: ignore[arg-type]

    def send_head(self):  # type: ignore[no-untyped-def]
        self.of.heard.append(f"{self.command} {self.path}\n{self.headers}")
        if not self.of.onward:
            return super().send_head()
        self.send_response(307)
        parts = self.path.split("/")
        at = parts.index("t") if "t" in parts else len(parts)
        self.send_header("Location", f"http://{self.of.onward}{'/'.join(parts[:at] + parts[at + 2 :])}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def translate_path(self, path: str) -> str:
        return str(self.of.folder.joinpath(*urllib.parse.unquote(path).split("/")[1:]))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Say nothing."""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """One that people have logins for, and one on another origin that it leads to."""
    folder = tmp_path / "served"
    make_channel(folder / "channels")
    (folder / "simple/tiny").mkdir(parents=True)
    content = WHEEL.to_bytes()
    (folder / WHEEL.file_name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    link = f'<a href="/{WHEEL.file_name}#sha256={digest}">{WHEEL.file_name}</a>'
    (folder / "simple/tiny/index.html").write_text(link)
    pair = Server(folder), Server(folder)
    running = []
    for each, host in zip(pair, ("127.0.0.1", "localhost"), strict=True):
        listening = http.server.ThreadingHTTPServer((host, 0), functools.partial(Handler, each))
        each.name = f"{host}:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(listening)
    pair[0].onward = pair[1].name
    yield pair
    for listening in running:
        listening.shutdown()
        listening.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without logins."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("NETRC", "RATTLER_AUTH_FILE", "PIP_KEYRING_PROVIDER", "UV_KEYRING_PROVIDER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def log_in(how: str, host: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a login known; returns the server as a definition names it."""
    if how == "in the URL":
        return f"http://{USER}:{SECRET}@{host}"
    if how == "a token in the URL":
        return f"http://{host}/t/{SECRET}"
    if how == "a token deep in the URL":
        return f"http://{host}/api/t/{SECRET}"
    if how == "netrc":
        (home / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {SECRET}\n")
    else:
        entry = {"CondaToken": SECRET} if how == "a token of one's own" else {"BearerToken": SECRET}
        (home / "auth.json").write_text(json.dumps({"127.0.0.1": entry}))
        monkeypatch.setenv("RATTLER_AUTH_FILE", str(home / "auth.json"))
    return f"http://{host}"


WAYS: Final = ("in the URL", "a token in the URL", "a token deep in the URL", "netrc")


@pytest.mark.parametrize("how", [*WAYS, "a token of one's own", "bearer"])
@pytest.mark.parametrize("by_url", [False, True])
def test_channels(
    servers: tuple[Server, Server],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    by_url: bool,
) -> None:
    first, other = servers
    if "deep" in how:
        (other.folder / "api").symlink_to(other.folder)
    channel = f"{log_in(how, first.name, home, monkeypatch)}/channels/tiny"
    package = next((first.folder / "channels/tiny/linux-64").glob("tool-*.conda"))
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    wanted = f"{channel}/linux-64/{package.name}#sha256:{sha256}" if by_url else "tool"
    section = CondaSection((Channel.parse(channel),), dependencies=(MatchSpec.parse(wanted),))
    request = SolveRequest(section, LINUX_AMD64, VirtualPackages(glibc="2.36"), "strict", None)
    solution = solve(request, cache_dir=tmp_path / "cache", deadline=NO_DEADLINE)
    for record in solution.lock.packages:
        assert record.url.startswith(f"http://{first.name}/")
        fetch_package(record, urls=solution.urls[record.url], deadline=NO_DEADLINE).close()
    assert first.told()
    assert len(other.heard) >= 2
    assert other.told() == []
    assert not [line for line in other.heard if "referer" in line.lower() and "/t/" in line]


@pytest.mark.parametrize("how", WAYS)
def test_indexes(
    servers: tuple[Server, Server], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    first, other = servers
    if "deep" in how:
        (other.folder / "api").symlink_to(other.folder)
    place = log_in(how, first.name, home, monkeypatch)
    section = PipSection.from_requirements(f"-i {place}/simple\ntiny\n".encode(), "r.txt", None)
    python = PythonTarget("3.11.4", "lib/python3.11/site-packages")
    request = PipRequest(section, LINUX_AMD64, python, "2.36", pypi="http://127.0.0.1:1/simple")
    solution = resolve(request, cache_dir=tmp_path / "cache", deadline=NO_DEADLINE)
    for wheel in solution.distributions:
        direct = f"{place}/{WHEEL.file_name}"
        for url in (solution.urls[wheel.url], direct):
            with fetch_wheel(wheel, url=url, deadline=NO_DEADLINE) as stream:
                assert stream.read() == WHEEL.to_bytes()
    assert first.told()
    assert len(other.heard) >= 3
    assert other.told() == []


@pytest.mark.parametrize("kind", ["thin", "full"])
def test_registries(servers: tuple[Server, Server], kind: str) -> None:
    first, other = servers
    repository = Repository.parse(f"{first.name}/team/envs")
    login = Credentials(USER, SECRET)
    full = RemoteRegistry(repository, credentials=login)
    settings = Settings(retries=0)
    client = Client(settings)
    thin = ThinRegistry(repository, lambda: full, client, settings, login)
    first.heard.clear()
    registry = thin if kind == "thin" else full
    with pytest.raises(EnvbuildError):
        registry.get_manifest(Tag("latest"))
    full.close()
    client.close()
    assert len(other.heard) == 1
    assert other.told() == []


@pytest.mark.parametrize("onward", [f"[/t/{SECRET}", f"/t/{SECRET}", f"a b/t/{SECRET}"])
def test_a_redirect_to_nowhere_is_told_without_the_token(
    servers: tuple[Server, Server], tmp_path: Path, onward: str
) -> None:
    first, _ = servers
    first.onward = onward
    channel = f"http://{first.name}/t/{SECRET}/channels/tiny"
    section = CondaSection((Channel.parse(channel),), dependencies=(MatchSpec.parse("tool"),))
    request = SolveRequest(section, LINUX_AMD64, VirtualPackages(glibc="2.36"), "strict", None)
    with pytest.raises(ChannelError) as caught:
        solve(request, cache_dir=tmp_path / "cache", deadline=NO_DEADLINE)
    assert SECRET not in f"{caught.value!r}{caught.value}{caught.value.hint}{caught.value.__context__}"
