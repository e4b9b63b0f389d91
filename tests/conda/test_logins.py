"""The user's own logins: where they are looked for, whom they are sent to, and that nobody else sees them."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import socket
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from envbuild.conda import logins
from envbuild.conda.fetch import fetch_package
from envbuild.conda.logins import Login, authorised, find_login
from envbuild.conda.origins import Origins, channel_urls
from envbuild.conda.solve import Solution, SolveRequest, solve
from envbuild.conda.variables import fill_variables
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import ChannelError, SpecError
from envbuild.platform import Platform
from envbuild.spec.channel import Channel
from envbuild.spec.conda import CondaSection
from envbuild.spec.match import MatchSpec
from envbuild.spec.virtual import VirtualPackages
from tiny import make_channel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SECRET = "C4nary-s3cret"
BASIC = "Basic " + base64.b64encode(f"jane:{SECRET}".encode()).decode()
BEARER = f"Bearer {SECRET}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without any login, and a PATH without a keyring."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("RATTLER_AUTH_FILE", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    logins._in_keyring.cache_clear()
    yield folder
    logins._in_keyring.cache_clear()


def keyring(home: Path, entries: Mapping[str, Any]) -> Path:
    """A program ``keyring`` with some entries of the service ``rattler``; it counts how often it is asked."""
    program = home / "keyring"
    cases = "".join(
        f"'get rattler {host}') echo '{json.dumps(entry)}';;\n" for host, entry in entries.items()
    )
    program.write_text(f'#!/bin/sh\necho "$*" >> {home}/asked\ncase "$*" in\n{cases}*) exit 1;;\nesac\n')
    program.chmod(0o755)
    return home / "asked"


def auth_file(home: Path, monkeypatch: pytest.MonkeyPatch, entries: Mapping[str, Any]) -> None:
    (home / "auth.json").write_text(json.dumps(entries))
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(home / "auth.json"))


def pair(password: str) -> dict[str, Any]:
    return {"BasicHTTP": {"username": "jane", "password": password}}


def passwords(url: str) -> str | None:
    """The password that a login has for a URL."""
    login = find_login(url)
    return None if login is None else base64.b64decode((login.header or "").split(" ")[1]).decode()


# Where logins are looked for


def test_a_login_goes_over_plain_http_to_this_machine_alone(home: Path) -> None:
    """A definition chooses the scheme: with http:// it would have a password go out in clear."""
    hosts = ("conda.example.com", "127.0.0.1", "localhost")
    (home / ".netrc").write_text("".join(f"machine {host} login jane password own\n" for host in hosts))
    for url in ("https://conda.example.com/c", "http://127.0.0.1:8080/c", "http://LOCALHOST/c"):
        assert passwords(url) == "jane:own"
    for url in ("http://conda.example.com/c", "http://conda.example.com:443/c", "HTTP://conda.example.com/c"):
        assert find_login(url) is None


def test_the_places_in_their_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://conda.example.com/c"
    assert find_login(url) is None
    (home / ".netrc").write_text("machine conda.example.com\n login jane\n password four\n")
    assert passwords(url) == "jane:four"
    (home / ".rattler").mkdir()
    (home / ".rattler/credentials.json").write_text(json.dumps({"conda.example.com": pair("three")}))
    assert passwords(url) == "jane:three"
    asked = keyring(home, {"conda.example.com": pair("two")})
    assert passwords(url) == passwords(f"{url}/noarch/repodata.json") == "jane:two"
    assert asked.read_text() == "get rattler conda.example.com\n"
    auth_file(home, monkeypatch, {"conda.example.com": pair("one")})
    assert passwords(url) == "jane:one"


def test_a_file_that_netrc_names_is_read_in_place_of_the_usual_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".netrc").write_text("machine a.example.com login jane password usual")
    (home / "other").write_text("machine b.example.com login jane password other")
    monkeypatch.setenv("NETRC", str(home / "other"))
    assert find_login("https://a.example.com/c") is None
    assert passwords("https://b.example.com/c") == "jane:other"
    (home / "other").write_text("machine b.example.com login jane password changed-it")
    assert passwords("https://b.example.com/c") == "jane:changed-it"
    monkeypatch.setenv("NETRC", str(home / "gone"))
    assert find_login("https://b.example.com/c") is None


def test_the_login_of_every_host_is_for_none(home: Path) -> None:
    (home / ".netrc").write_text("machine a.example.com login j password p\ndefault login jane password x\n")
    assert find_login("https://b.example.com/c") is None


@pytest.mark.parametrize(
    ("names", "url", "expected"),
    [
        (["example.com", "*.example.com"], "https://example.com/c", "example.com"),
        (["*.example.com"], "https://example.com/c", "*.example.com"),
        (["*.example.com", "*.conda.example.com"], "https://a.conda.example.com/c", "*.conda.example.com"),
        (["*.example.com"], "https://deep.conda.example.com:8443/c", "*.example.com"),
        (["*.com", "*", "example.com"], "https://conda.example.com/c", None),
        (["*.example.com"], "https://badexample.com/c", None),
        (["*.0.0.1"], "http://127.0.0.1/c", None),
        (["127.0.0.1"], "http://127.0.0.1:8080/c", "127.0.0.1"),
        (["127.0.0.1"], "file:///127.0.0.1/c", None),
        (["a.example.com", "a.example.com:8443"], "https://a.example.com:8443/c", "a.example.com:8443"),
        (["a.example.com:8443"], "https://a.example.com/c", None),
        (["a.example.com:8443"], "https://a.example.com:8444/c", None),
        (["a-example.com", "A.example.com", "a.example.com."], "https://a.example.com/c", None),
    ],
)
def test_which_host_a_login_is_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], url: str, expected: str | None
) -> None:
    auth_file(home, monkeypatch, {name: pair(name) for name in names})
    assert passwords(url) == (f"jane:{expected}" if expected else None)


def test_what_is_no_login_for_http_is_passed_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = [{"S3Credentials": {}}, {"BasicHTTP": {"username": 1}}, {"BearerToken": "a\r\nb"}, "x", None, []]
    for entry in odd:
        auth_file(home, monkeypatch, {"a.example.com": entry})
        assert find_login("https://a.example.com/c") is None


@pytest.mark.parametrize("content", ["{", "[]", '"x"', f'{{"a": {SECRET}}}', None])
def test_a_file_of_logins_that_cannot_be_read_is_named_and_not_quoted(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content is not None:
        (home / "auth.json").write_text(content)
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(home / "auth.json"))
    said = "are not there" if content is None else "are not a JSON object|cannot be read: it is not JSON"
    with pytest.raises(SpecError, match=rf"auth\.json: the logins ({said})") as caught:
        find_login("https://a.example.com/c")
    assert SECRET not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


def test_a_netrc_that_cannot_be_read_is_named_with_its_line_and_not_quoted(home: Path) -> None:
    (home / ".netrc").write_text(f"machine a\n{SECRET} {SECRET}\n")
    with pytest.raises(SpecError, match=r"\.netrc:2: the logins cannot be read: it is malformed") as caught:
        find_login("https://a.example.com/c")
    assert SECRET not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "kill -9 $$", "sleep 60"])
def test_a_keyring_that_is_locked_or_broken_has_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(logins, "_KEYRING_SECONDS", 0.3)
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")
    (home / "keyring").write_text(f"#!/bin/sh\nexec >&1; {script}\n")
    (home / "keyring").chmod(0o755)
    assert find_login("https://conda.example.com/c") is None


def test_credentials_of_a_url_win(home: Path) -> None:
    (home / ".netrc").write_text("machine a.example.com login jane password x")
    own = authorised("https://me:p%40@a.example.com/c")
    assert own == ("https://a.example.com/c", {"Authorization": "Basic bWU6cEA="})
    token = Login(token="to/ken")
    assert authorised("https://a.example.com/c", lambda _: token) == (
        "https://a.example.com/t/to%2Fken/c",
        {},
    )
    written = "https://a.example.com/t/own/c"
    assert authorised(written, lambda _: token) == (written, {})
    assert "to/ken" not in repr(token)


# Solving and fetching


@dataclass
class Server:
    """Gives what is in ``folder`` to who is let in, and remembers paths and ``Authorization``."""

    folder: Path
    url: str = ""
    header: str | None = None
    token: str | None = None
    elsewhere: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: object) -> None:
        self.of = server
        super().__init__(*arguments)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        return str(self.of.folder / path.removeprefix(f"/t/{self.of.token}").removeprefix("/"))

    def send_head(self):  # type: ignore[no-untyped-def]
        server, given = self.of, self.headers.get("Authorization")
        server.asked.append((self.path, given))
        del self.headers["If-Modified-Since"]
        if given != server.header or (server.token and not self.path.startswith(f"/t/{server.token}/")):
            return self.send_error(401)
        if server.elsewhere is not None:
            self.send_response(302)
            self.send_header("Location", server.elsewhere + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two servers of one channel, ``tiny``."""
    make_channel(tmp_path / "channels")
    made = Server(tmp_path / "channels"), Server(tmp_path / "channels")
    running = []
    for each in made:
        listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, each))
        each.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((listening, thread))
    yield made
    for listening, thread in running:
        listening.shutdown()
        thread.join()
        listening.server_close()


def solved(
    cache: Path,
    channel: str,
    mirrors: Mapping[str, tuple[str, ...]] | None = None,
    variables: Mapping[str, tuple[str, ...]] | None = None,
) -> Solution:
    section = CondaSection((Channel.parse(channel),), dependencies=(MatchSpec.parse("tool"),))
    request = SolveRequest(
        section,
        Platform.parse("linux/amd64"),
        VirtualPackages(glibc="2.36"),
        "strict",
        None,
        mirrors or {},
        variables or {},
    )
    return solve(request, cache_dir=cache, deadline=NO_DEADLINE)


def fetched(solution: Solution) -> None:
    for record in solution.lock.packages:
        fetch_package(record, urls=solution.urls[record.url], deadline=NO_DEADLINE).close()


def leaks(cache: Path) -> list[Path]:
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files
    forms = (SECRET.encode(), BASIC.removeprefix("Basic ")[:12].encode())
    return [path for path in files if any(form in path.read_bytes() + str(path).encode() for form in forms)]


def log_in(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry: dict[str, Any] = {"bearer": {"BearerToken": SECRET}, "token": {"CondaToken": SECRET}}.get(
        kind, pair(SECRET)
    )
    if kind == "netrc":
        (home / ".netrc").write_text(f"machine 127.0.0.1 login jane password {SECRET}\n")
    elif kind == "keyring":
        keyring(home, {"127.0.0.1": entry})
    else:
        auth_file(home, monkeypatch, {"127.0.0.1": entry})


@pytest.mark.parametrize("kind", ["netrc", "keyring", "basic", "bearer", "token"])
def test_a_private_channel_is_solved_and_fetched_with_the_users_own_login(
    servers: tuple[Server, Server], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    server, other = servers
    for each in servers:
        each.header = {"bearer": BEARER, "token": None}.get(kind, BASIC)
        each.token = SECRET if kind == "token" else None
    with pytest.raises(ChannelError, match="401 Unauthorized") as caught:
        solved(tmp_path / "cache", f"{other.url}/tiny")
    assert "RATTLER_AUTH_FILE" in (caught.value.hint or "")
    assert not caught.value.retryable
    log_in(kind, home, monkeypatch)
    solution = solved(tmp_path / "cache", f"{server.url}/tiny")
    fetched(solution)
    assert {given for _, given in server.asked} == {server.header}
    (record,) = solution.lock.packages
    assert record.url == f"{server.url}/tiny/linux-64/{record.file_name}"
    assert SECRET not in f"{solution.lock!r}{solution.urls}"
    assert leaks(tmp_path / "cache") == []


def test_a_wrong_login_is_told_without_it(
    servers: tuple[Server, Server], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = servers
    server.header = "Basic other"
    log_in("netrc", home, monkeypatch)
    with pytest.raises(
        ChannelError, match=f"refuses to be read: .*401 Unauthorized.*{server.url}/tiny"
    ) as caught:
        solved(tmp_path / "cache", f"{server.url}/tiny")
    assert caught.value.exit_code == 4
    assert SECRET not in f"{caught.value!r}{caught.value}{caught.value.hint}{caught.value.__context__}"


def test_a_login_is_dropped_where_a_channel_leads_elsewhere(
    servers: tuple[Server, Server], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, other = servers
    server.header, server.elsewhere = BASIC, other.url
    log_in("netrc", home, monkeypatch)
    fetched(solved(tmp_path / "cache", f"{server.url}/tiny"))
    assert {given for _, given in server.asked} == {BASIC}
    assert {given for _, given in other.asked} == {None}


# Variables


def test_a_channel_may_take_its_credentials_from_variables_that_are_allowed(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, other = servers
    server.header = BASIC
    monkeypatch.setenv("CONDA_USER", "jane")
    monkeypatch.setenv("CONDA_WORD", SECRET)
    written = server.url.replace("://", "://${CONDA_USER}:${CONDA_WORD}@") + "/tiny"
    solution = solved(
        tmp_path / "cache", written, variables=dict.fromkeys(("CONDA_USER", "CONDA_WORD"), (server.url,))
    )
    fetched(solution)
    assert SECRET not in repr(solution.lock)
    assert leaks(tmp_path / "cache") == []
    with pytest.raises(SpecError, match="the variable CONDA_WORD may not be sent to http") as caught:
        solved(
            tmp_path / "cache", written, variables={"CONDA_USER": (server.url,), "CONDA_WORD": (other.url,)}
        )
    assert f'ENVBUILD_LOGIN_VARIABLES="CONDA_WORD={server.url}"' in (caught.value.hint or "")


@pytest.mark.parametrize(
    "url",
    [
        "https://u:${P}@evil.example.com/c",
        "http://u:${P}@conda.example.com/c",
        "https://u:${P}@conda.example.com:8443/c",
        "https://u:${P}@conda.example.com.evil.example.com/c",
        "https://conda.example.com:${P}@evil.example.com/c",
        "https://evil.example.com/t/${P}/conda.example.com",
        "https://u:${Q}@conda.example.com/c",
    ],
)
def test_a_variable_is_sent_to_the_servers_alone_that_it_is_bound_to(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    for name in ("P", "Q"):
        monkeypatch.setenv(name, SECRET)
    bound = {"P": ("https://conda.example.com",), "Q": ("https://other.example.com",)}
    with pytest.raises(SpecError, match="may not be sent to"):
        fill_variables(url, bound)
    for good in ("https://u:${P}@conda.example.com/c", "https://CONDA.example.com:443/t/${P}/c"):
        assert SECRET in fill_variables(good, bound)


def test_a_variable_is_in_no_spelling_that_keys_hold() -> None:
    for written in ("https://${U}:${P}@conda.example.com/c", "https://conda.example.com/t/${TOKEN}/c"):
        assert Channel.parse(written) == Channel.parse("https://conda.example.com/c")
        assert Channel.parse(written).canonical == "https://conda.example.com/c"
        assert MatchSpec.parse(f"{written}::x").canonical() == 'x[channel="https://conda.example.com/c"]'
    with pytest.raises(SpecError):
        Channel.parse("https://conda.example.com/${TEAM}/c")


def test_what_a_variable_holds_stays_in_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P", "a@evil.example.com/b?c#d%20")
    filled = fill_variables("https://u:${P}@conda.example.com/c", {"P": ("https://conda.example.com",)})
    assert filled == "https://u:a%40evil.example.com%2Fb%3Fc%23d%20@conda.example.com/c"
    monkeypatch.setenv("P", "")
    with pytest.raises(SpecError, match=r"the variable P in a URL of conda\.example\.com is not set"):
        fill_variables("https://u:${P}@conda.example.com/c", {"P": ("https://conda.example.com",)})


# Mirrors


def test_a_mirror_is_read_in_place_of_a_channel_and_nothing_remembers_it(
    servers: tuple[Server, Server], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, _ = servers
    mirror.header = BASIC
    log_in("netrc", home, monkeypatch)
    solution = solved(
        tmp_path / "cache",
        "https://tom:own-word@origin.invalid/deep/tiny",
        {"https://origin.invalid/deep": (mirror.url,)},
    )
    (record,) = solution.lock.packages
    assert record.url == f"https://origin.invalid/deep/tiny/linux-64/{record.file_name}"
    assert solution.urls[record.url] == (
        f"{mirror.url}/tiny/linux-64/{record.file_name}",
        f"https://tom:own-word@origin.invalid/deep/tiny/linux-64/{record.file_name}",
    )
    fetched(solution)
    assert {given for _, given in mirror.asked} == {BASIC}


@pytest.mark.parametrize("state", ["gone", "refused", "empty"])
def test_a_mirror_in_trouble_is_left_for_the_channel(
    servers: tuple[Server, Server], tmp_path: Path, state: str
) -> None:
    origin, mirror = servers
    mirror.header = "Basic x" if state == "refused" else None
    there = {"gone": "http://127.0.0.1:1/tiny", "empty": f"{mirror.url}/none"}.get(
        state, f"{mirror.url}/tiny"
    )
    channel = f"{origin.url}/tiny"
    solution = solved(tmp_path / "cache", channel, {channel: (there, f"file://{tmp_path}/none")})
    assert [record.url.startswith(f"{channel}/") for record in solution.lock.packages] == [True]
    fetched(solution)
    assert origin.asked
    assert bool(mirror.asked) == (state != "gone")


def test_a_mirror_that_never_answers_is_left_for_the_channel(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, _ = servers
    channel = f"{origin.url}/tiny"
    monkeypatch.setattr("envbuild.conda.solve._MIRROR", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        there = f"http://127.0.0.1:{silent.getsockname()[1]}/tiny"
        assert solved(tmp_path / "cache", channel, {channel: (there,)}).lock.packages
        monkeypatch.setattr("envbuild.conda.solve._CHANNEL", 1.0)
        with pytest.raises(ChannelError, match=f"'{there}/' gave no answer within 1 s") as caught:
            solved(tmp_path / "cache", there)
    assert caught.value.retryable


def test_all_places_that_failed_are_told(servers: tuple[Server, Server], tmp_path: Path) -> None:
    mirror, _ = servers
    mirror.header = "Basic x"
    channel = "http://127.0.0.1:1/tiny"
    with pytest.raises(ChannelError) as caught:
        solved(tmp_path / "cache", channel, {channel: (f"{mirror.url}/tiny", "file:///no/such/mirror")})
    first, *others = [
        line for line in str(caught.value).splitlines() if "channel" in line or "mirror" in line
    ]
    assert first.startswith(f"a channel could not be read: error sending request for url ({channel}/")
    assert others[0].startswith(f"its mirror {mirror.url}/tiny failed before: HTTP status client error (401")
    assert others[1].startswith("its mirror file:///no/such/mirror failed before: could not find subdir")
    assert caught.value.retryable


def test_a_folder_is_a_mirror(servers: tuple[Server, Server], tmp_path: Path) -> None:
    server, _ = servers
    channel, folder = "https://origin.invalid/tiny", (server.folder / "tiny").as_uri()
    solution = solved(tmp_path / "cache", channel, {channel: (folder,)})
    assert [record.url.startswith(f"{channel}/linux-64/") for record in solution.lock.packages] == [True]
    fetched(solution)


def test_places() -> None:
    section = CondaSection(
        (Channel.parse("https://me:pw@conda.example.com/c/"), Channel.parse("named")),
        dependencies=(MatchSpec.parse("https://you:word@conda.example.com/d::x"),),
    )
    mirrors = {
        "https://conda.example.com": ("https://m.example.com/all/",),
        "https://conda.example.com/d": (),
    }
    origins = Origins.of(channel_urls(section), mirrors)
    assert origins.places("https://conda.example.com/c/noarch/x-1-0.conda") == (
        "https://m.example.com/all/c/noarch/x-1-0.conda",
        "https://me:pw@conda.example.com/c/noarch/x-1-0.conda",
    )
    assert origins.places("https://conda.example.com/d") == ("https://you:word@conda.example.com/d",)
    other = "https://conda.example.community/c/x.conda"
    assert origins.places(other) == (other,)
    assert "pw" not in repr(origins)
    assert channel_urls(None) == []
