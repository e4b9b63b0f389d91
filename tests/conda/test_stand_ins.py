"""Channels with credentials: they are used, and no file and no message of the solver's has them."""

from __future__ import annotations

import base64
import functools
import http.server
import shutil
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import rattler.networking

from envbuild.conda.solve import Solution, SolveRequest, solve
from envbuild.conda.stand_ins import StandIns
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import ChannelError, SolveError
from envbuild.platform import Platform
from envbuild.spec.channel import Channel
from envbuild.spec.conda import CondaSection
from envbuild.spec.match import MatchSpec
from envbuild.spec.virtual import VirtualPackages
from tiny import make_channel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "C4nary%2Fs3cret"
PLAIN = "C4nary/s3cret"
HEADER = "Basic " + base64.b64encode(f"dave:{PLAIN}".encode()).decode()
FORMS = (SECRET.encode(), PLAIN.encode(), HEADER.removeprefix("Basic ")[:16].encode())


@dataclass
class Server:
    """Serves ``/private`` to who has the password, ``/t/<token>/private`` to everybody, and counts.

    Attributes:
        host: Its name and port.
        folder: What it serves below ``/private``; below ``/t/<token>/private`` what ``tokens`` says.
        tokens: The folder of each token.
        broken: Whether it answers 500 to everything.
        asked: The paths and the ``Authorization`` of each request.
    """

    folder: Path
    host: str = ""
    tokens: dict[str, Path] = field(default_factory=dict)
    broken: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: object) -> None:
        self.of = server
        super().__init__(*arguments)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        parts = path.removeprefix("/conda/api").split("/")
        if parts[1] == "t":
            return str(self.of.tokens.get(parts[2], self.of.folder / "none").joinpath(*parts[4:]))
        return str(self.of.folder.joinpath(*parts[2:]))

    def send_head(self):  # type: ignore[no-untyped-def]
        authorization = self.headers.get("Authorization")
        del self.headers[
            "If-Modified-Since"
        ]  # the solver asks that 304 repeats the date, which ours does not
        self.of.asked.append((self.path, authorization))
        if self.of.broken:
            return self.send_error(500)
        if "/t/" not in self.path and authorization != HEADER:
            return self.send_error(401)
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    make_channel(tmp_path / "channels")
    made = Server(tmp_path / "channels/tiny")
    made.tokens[SECRET] = made.folder
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, made)) as listening:
        made.host = f"127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        listening.shutdown()
        thread.join()


def solved(
    cache: Path, channel: str, *dependencies: str, alias: str = "https://alias.example.com"
) -> Solution:
    section = CondaSection(
        channels=(Channel.parse(channel),), dependencies=tuple(map(MatchSpec.parse, dependencies))
    ).under(alias)
    platform = Platform.parse("linux/amd64")
    request = SolveRequest(section, platform, VirtualPackages(glibc="2.36"), "strict", None)
    return solve(request, cache_dir=cache, deadline=NO_DEADLINE)


def leaks(cache: Path) -> list[Path]:
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    named = [path for path in files if any(form.decode() in str(path) for form in FORMS)]
    return named + [path for path in files if any(form in path.read_bytes() for form in FORMS)]


@pytest.mark.parametrize("shards", [True, False])
@pytest.mark.parametrize("place", [f"dave:{SECRET}@HOST", f"HOST/t/{SECRET}", f"HOST/conda/api/t/{SECRET}"])
def test_what_the_solver_keeps_has_no_secret(
    server: Server, tmp_path: Path, place: str, shards: bool
) -> None:
    if not shards:
        for path in server.folder.rglob("repodata_shards*"):
            path.unlink()
    channel = f"http://{place.replace('HOST', server.host)}/private"
    public = f"http://{server.host}{'/conda/api' if 'api' in place else ''}/private"
    package = Digest.of((server.folder / "linux-64/tool-1.0-0.conda").read_bytes())
    for dependencies in (
        ("tool", "thing"),
        (f"{channel}::first",),
        (f"{public}::tool", "first"),
        (f"{channel}/linux-64/tool-1.0-0.conda#sha256:{package.hex}",),
    ):
        solution = solved(tmp_path / "cache", channel, *dependencies)
        assert [package.url for package in solution.lock.packages] == list(solution.urls)
        for url, private in solution.urls.items():
            assert url.startswith(f"{public}/linux-64/")
            assert private == (url.replace(public, channel),)
    assert server.asked
    assert {given for _, given in server.asked} == {HEADER if "@" in place else None}
    assert leaks(tmp_path / "cache") == []


@pytest.mark.parametrize("place", ["dave:wrong@HOST", f"dave:{SECRET}@HOST", f"HOST/conda/api/t/{SECRET}"])
def test_what_fails_is_told_by_the_channels_own_name(server: Server, tmp_path: Path, place: str) -> None:
    channel = f"http://{place.replace('HOST', server.host)}/private"
    with pytest.raises(ChannelError if "wrong" in place else SolveError) as caught:
        solved(tmp_path / "cache", channel, "no-such-package")
    assert not caught.value.retryable
    told = f"{caught.value!r} {caught.value} {caught.value.hint} {caught.value.__context__}"
    assert ".invalid" not in str(caught.value)
    assert not any(form.decode() in told for form in FORMS)
    if "wrong" in place:
        assert f"http://{server.host}/private" in str(caught.value)


def test_two_tokens_of_one_server_are_two_channels(server: Server, tmp_path: Path) -> None:
    shutil.copytree(server.folder, tmp_path / "other")
    for path in (tmp_path / "other").rglob("*repodata*"):
        path.unlink()
    server.tokens["another"] = tmp_path / "other"
    url = f"http://{server.host}/t/{{}}/private"
    assert solved(tmp_path / "cache", url.format(SECRET), "tool").lock.packages
    with pytest.raises(ChannelError, match="noarch"):
        solved(tmp_path / "cache", url.format("another"), "tool")
    assert solved(tmp_path / "cache", url.format(SECRET), "tool").lock.packages


def test_a_channel_in_trouble_stays_in_trouble_and_is_never_missing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = rattler.networking.RetryMiddleware
    monkeypatch.setattr(rattler.networking, "RetryMiddleware", lambda _: once(0))
    server.broken = True
    for _ in range(6):
        with pytest.raises(ChannelError, match="500 Internal Server Error") as caught:
            solved(tmp_path / "cache", f"http://dave:{SECRET}@{server.host}/private", "tool")
        assert caught.value.retryable
    server.broken = False
    assert solved(tmp_path / "cache", f"http://dave:{SECRET}@{server.host}/private", "tool").lock.packages


def test_a_channel_of_a_dependency_stands_under_the_alias(server: Server, tmp_path: Path) -> None:
    for alias in (f"http://dave:{SECRET}@{server.host}", server.folder.parent.as_uri()):
        name = "private" if "@" in alias else "tiny"
        solution = solved(tmp_path / "cache", name, f"{name}::tool", "thing", alias=alias)
        assert {package.name for package in solution.lock.packages} == {"tool", "thing"}


def test_stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine four.example.com login jane password lo-gin")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    public = ["file:///a/b", "https://one.example.com/a", "https://one.example.com:444/b/c"]
    public += ["https://two.example.com/a", "https://three.example.com/x", "https://four.example.com/y"]
    public += ["https://five.example.com/deep/z"]
    places = ["file:///a/b", "https://one.example.com/a", "https://u:p%40@one.example.com:444/b/c"]
    places += [
        "https://two.example.com/t/tok/a",
        "https://mirror.example.com/deep/x",
        "https://four.example.com/y",
        "https://five.example.com/deep/t/tok/z",
    ]
    stand_ins = StandIns.of(zip(public, places, strict=True))
    names = [stand_ins.named(url) for url in public]
    assert names[:2] == public[:2]
    assert [stand_ins.public(name) for name in names] == public
    assert stand_ins.public(f"see {places[6]}/noarch") == f"see {public[6]}/noarch"
    assert stand_ins.named("https://two.example.com/a/noarch/x.conda") == f"{names[3]}/noarch/x.conda"
    assert stand_ins.named("https://two.example.com/abc") == "https://two.example.com/abc"
    sent = {each.public: stand_ins.headers(each.host, "/") for each in stand_ins.all}
    assert sent == {
        public[2]: {"Authorization": "Basic dTpwQA=="},
        public[3]: None,
        public[4]: None,
        public[5]: {"Authorization": "Basic amFuZTpsby1naW4="},
        public[6]: None,
    }
    assert stand_ins.headers("one.example.com", "/") is stand_ins.headers("four.example.com", "/") is None
    went = {key: set(there) for key, there in stand_ins.mirrors().items()}
    assert went == {
        f"{names[2]}/": {"https://one.example.com:444/b/c/"},
        f"{names[3]}/": {"https://two.example.com/t/tok/a/"},
        f"{names[4]}/": {"https://mirror.example.com/deep/x/"},
        f"{names[5]}/": {"https://four.example.com/y/"},
        f"{names[6]}/": {"https://five.example.com/deep/t/tok/z/"},
    }
    assert not any(word in f"{stand_ins!r}{stand_ins.all!r}" for word in ("tok", "p%40", "lo-gin", "amFuZ"))
    other = StandIns.of([(public[2], "https://u:q@one.example.com:444/b/c")])
    assert other.named(public[2]) not in names


def test_a_folder_stands_for_a_channel_as_it_is() -> None:
    stand_ins = StandIns.of([("https://one.example.com/a", "file:///mirror/a")])
    assert stand_ins.named("https://one.example.com/a/noarch") == "file:///mirror/a/noarch"
    assert stand_ins.public("in 'file:///mirror/a/noarch'") == "in 'https://one.example.com/a/noarch'"
    assert stand_ins.mirrors() == {}
