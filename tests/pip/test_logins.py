"""The user's own logins: for solving and for fetching, and for their own host alone."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import envbuild.pip.uv
from envbuild.conda.link import PythonTarget
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import ChannelError, DeadlineExceeded, EnvbuildError, SpecError
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.logins import Logins
from envbuild.pip.resolve import PipRequest, PipSolution, resolve
from envbuild.pip.sources import Sources
from envbuild.platform import LINUX_AMD64
from envbuild.spec.pip import PipSection
from tiny_wheels import TinyWheel, index

USER = "me:hush-canary"
PASSWORD = USER.partition(":")[2]
WHEEL = TinyWheel("tiny")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without logins, and a search path of its own."""
    (tmp_path / "home/bin").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'home/bin'}:/usr/bin:/bin")
    for name in ("NETRC", "PIP_KEYRING_PROVIDER", "UV_KEYRING_PROVIDER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def solve(tmp_path: Path, *lines: str, deadline: Deadline = NO_DEADLINE) -> PipSolution:
    section = PipSection.from_requirements("\n".join([*lines, "tiny"]).encode(), "r.txt", None)
    python = PythonTarget("3.11.4", "lib/python3.11/site-packages")
    request = PipRequest(section, LINUX_AMD64, python, "2.36", pypi="http://127.0.0.1:1/simple")
    return resolve(request, cache_dir=tmp_path / "cache", deadline=deadline)


def fetched(solution: PipSolution) -> bytes:
    (wheel,) = solution.distributions
    assert PASSWORD not in repr(solution) + wheel.url
    with fetch_wheel(wheel, url=solution.urls[wheel.url], deadline=NO_DEADLINE) as stream:
        return stream.read()


def keyring(home: Path, logins: dict[str, str], *, old: bool = False) -> Path:
    """A program ``keyring`` that knows ``USER:PASSWORD`` by service; it writes down what it is asked."""
    program, asked = home / "bin/keyring", home / "asked"
    known = json.dumps(logins)
    program.write_text(
        f"#!/usr/bin/env python3\nimport json, sys\nknown, words = json.loads({known!r}), sys.argv[1:]\n"
        f"open({str(asked)!r}, 'a').write(' '.join(words) + '\\n')\n"
        f"creds = '--mode=creds' in words or '--mode' in words\n"
        f"if creds and {old}: sys.exit(2)\n"
        "words = words[words.index('get') + 1:]\n"
        "user, _, password = known.get(words[0], '').partition(':')\n"
        "if not user or words[1:] not in ([], [user]) or (not words[1:] and not creds): sys.exit(1)\n"
        "print(json.dumps({'username': user, 'password': password}) if creds else password)\n"
    )
    program.chmod(0o755)
    return asked


@pytest.mark.parametrize("place", [".netrc", "NETRC"])
def test_the_login_of_a_netrc_solves_and_fetches(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = home / place
    path.write_text(f"machine 127.0.0.1 login me password {PASSWORD}\n")
    path.chmod(0o600)
    if place == "NETRC":
        monkeypatch.setenv("NETRC", str(path))
    with index([WHEEL], user=USER) as server:
        assert fetched(solve(tmp_path, f"-i {server.url}/simple")) == WHEEL.to_bytes()


def test_the_login_of_an_index_goes_before_that_of_a_netrc(tmp_path: Path, home: Path) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login me password wrong\n")
    with index([WHEEL], user=USER) as server:
        url = server.url.replace("//", f"//{USER}@")
        assert fetched(solve(tmp_path, f"-i {url}/simple")) == WHEEL.to_bytes()


@pytest.mark.parametrize("variable", ["PIP_KEYRING_PROVIDER", "UV_KEYRING_PROVIDER"])
@pytest.mark.parametrize("old", [False, True])
def test_the_login_of_a_keyring_solves_and_fetches_where_it_is_asked_for(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, old: bool
) -> None:
    with index([WHEEL], user=USER) as server:
        asked = keyring(home, {f"{server.url}/simple": USER}, old=old)
        named = f"-i {server.url.replace('//', '//me@')}/simple"
        with pytest.raises(ChannelError, match="refused to answer"):
            solve(tmp_path, named)
        assert not asked.exists(), "nobody asked for the keyring"
        monkeypatch.setenv(variable, "subprocess")
        assert fetched(solve(tmp_path, named)) == WHEEL.to_bytes()
        assert PASSWORD not in asked.read_text()


def test_a_keyring_may_know_the_user_and_only_the_host(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_KEYRING_PROVIDER", "auto")
    with index([WHEEL], user=USER) as server:
        keyring(home, {urlsplit(server.url).netloc: USER})
        assert fetched(solve(tmp_path, f"-i {server.url}/simple")) == WHEEL.to_bytes()


def test_a_keyring_that_hangs_ends_with_the_deadline(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_KEYRING_PROVIDER", "subprocess")
    (home / "bin/keyring").write_text("#!/bin/sh\nexec sleep 60\n")
    (home / "bin/keyring").chmod(0o755)
    with index([WHEEL], user=USER) as server, pytest.raises(DeadlineExceeded):
        solve(tmp_path, f"-i {server.url}/simple", deadline=Deadline.after(1))


def test_a_login_is_for_its_own_origin() -> None:
    logins = Logins(
        ("https://me:secret@a.example/x/simple", "https://you:other@a.example/y/simple"), NO_DEADLINE
    )
    assert logins.fill("https://a.example/y/files/z.whl") == "https://you:other@a.example/y/files/z.whl"
    assert logins.fill("https://a.example:443/x/z.whl") == "https://me:secret@a.example/x/z.whl"
    for other in ("http://a.example/x/z.whl", "https://a.example:8443/x/z.whl", "https://b.example/x/z.whl"):
        assert logins.fill(other) == other
    assert logins.fill("file:///x/z.whl") == "file:///x/z.whl"


@contextmanager
def redirecting(to: str) -> Iterator[tuple[str, list[str | None]]]:
    """A server that sends everybody elsewhere, and what logins it saw."""
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(302)
            self.send_header("Location", to + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_login_does_not_follow_a_redirection_to_another_origin(tmp_path: Path) -> None:
    with index([WHEEL]) as server:
        solution = solve(tmp_path, f"-i {server.url}/simple")
        (wheel,) = solution.distributions
        with redirecting(server.url) as (first, seen):
            path = urlsplit(wheel.url).path
            url = f"{first.replace('//', f'//{USER}@')}{path}"
            with fetch_wheel(wheel, url=url, deadline=NO_DEADLINE) as stream:
                assert stream.read() == WHEEL.to_bytes()
            assert [bool(each) for each in seen] == [True]
        assert server.logins[-1] is None


@pytest.mark.parametrize("asked_for", [False, True])
def test_variables_in_the_metadata_of_a_wheel_are_of_nobody(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked_for: bool
) -> None:
    """Uv fills variables in wherever it reads a URL; it is given none that holds a secret."""
    secrets = dict.fromkeys(("UPLOAD_TOKEN", "AWS_SECRET_ACCESS_KEY"), "canary")
    secrets |= dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY"), "proxy-canary:1")
    for name, text in secrets.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if asked_for:
        keyring(home, {})
        monkeypatch.setenv("PIP_KEYRING_PROVIDER", "subprocess")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Everything) as evil:
        threading.Thread(target=evil.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        place = f"http://127.0.0.1:{evil.server_port}"
        for name in secrets:
            wheel = TinyWheel("tiny", requires=(f"other @ {place}/${{{name}}}/other-1.0-py3-none-any.whl",))
            Everything.wheel, Everything.seen = wheel.to_bytes(), []
            with pytest.raises(EnvbuildError) as caught:
                solve(tmp_path / name, f"tiny @ {place}/tiny-1.0-py3-none-any.whl")
            assert "canary" not in f"{caught.value}"
            assert any("/other-1.0" in path for path in Everything.seen)
            assert not [path for path in Everything.seen if "canary" in path]
        evil.shutdown()


class Everything(http.server.BaseHTTPRequestHandler):
    """A server that has one wheel, and remembers what else it was asked."""

    wheel = b""
    seen: list[str]

    def do_GET(self) -> None:
        """Answer."""
        self.seen.append(self.path)
        there = "tiny" in self.path
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(len(self.wheel) if there else 0))
        self.end_headers()
        if there and self.command == "GET":
            self.wfile.write(self.wheel)

    do_HEAD = do_GET  # noqa: N815 - the base class names it

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def named_plain(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of this machine under which it is nobody's loopback: what plain HTTP to it would be in clear."""
    monkeypatch.setattr("envbuild.pip.uv.is_loopback", lambda host: not host.startswith("127.0.0.1"))
    monkeypatch.setattr("envbuild.conda.logins.is_loopback", lambda host: not host.startswith("127.0.0.1"))
    return "127.0.0.1"


@pytest.mark.parametrize("place", ["index", "direct"])
@pytest.mark.parametrize("kind", ["netrc", "keyring"])
def test_the_users_own_logins_go_nowhere_in_clear(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, named_plain: str, place: str, kind: str
) -> None:
    if kind == "netrc":
        (home / ".netrc").write_text(f"machine {named_plain} login me password {PASSWORD}\n")
    with index([WHEEL]) as server:
        if kind == "keyring":
            monkeypatch.setenv("PIP_KEYRING_PROVIDER", "subprocess")
            keyring(home, {f"{server.url}/simple": USER, urlsplit(server.url).netloc: USER})
        lines = {
            "index": [f"-i {server.url}/simple"],
            "direct": [f"tiny @ {server.url}/files/{WHEEL.file_name}"],
        }[place]
        assert fetched(solve(tmp_path, *lines)) == WHEEL.to_bytes()
        assert server.logins
        assert set(server.logins) == {None}


def test_a_login_for_every_host_is_for_none(tmp_path: Path, home: Path) -> None:
    machine = "machine a.example.com login me password x"
    (home / ".netrc").write_text(f"{machine}\ndefault login me password {PASSWORD}\n")
    with index([WHEEL]) as server:
        assert fetched(solve(tmp_path, f"-i {server.url}/simple")) == WHEEL.to_bytes()
        assert set(server.logins) == {None}
    with index([WHEEL], user=USER) as server, pytest.raises(ChannelError):
        solve(tmp_path, f"-i {server.url}/simple")


def test_a_host_that_need_not_prove_itself_gets_no_login(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".netrc").write_text(f"machine a.example login me password {PASSWORD}\n")
    assert Logins((), NO_DEADLINE).fill("https://a.example/x") == f"https://{USER}@a.example/x"
    for trusted in ("a.example", "a.example:443"):
        url = "https://a.example:443/x"
        assert Logins((), NO_DEADLINE, (trusted,)).fill(url) == url
    monkeypatch.setenv("TOKEN", PASSWORD)
    section = PipSection.from_requirements(
        b"--trusted-host a.example\n-i https://me:${TOKEN}@a.example/simple\n", "r.txt", None
    )
    with pytest.raises(SpecError, match="--trusted-host lets be anybody"):
        Sources.of(section, "https://pypi.example.com", NO_DEADLINE, {"TOKEN": ("https://a.example",)})


class Leading(http.server.BaseHTTPRequestHandler):
    """An index whose page leads where it likes; as a proxy it is every server, and wants logins."""

    link = ""
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        """Answer."""
        login = self.headers.get("Authorization")
        self.seen.append((self.path, login))
        is_page = self.path.endswith("/simple/tiny/")
        content = f'<a href="{self.link}">tiny</a>'.encode() if is_page else WHEEL.to_bytes()
        if not is_page and login is None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic realm=all")
            content = b""
        else:
            self.send_response(200)
        self.send_header("Content-Type", "text/html" if is_page else "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the base class names it

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@contextmanager
def leading(monkeypatch: pytest.MonkeyPatch, link: str) -> Iterator[str]:
    """An index that leads to a link, and the proxy that plain HTTP goes through."""
    for name in ("all_proxy", "https_proxy", "no_proxy", "ALL_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    digest = hashlib.sha256(WHEEL.to_bytes()).hexdigest()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Leading) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        Leading.link = f"{link.format(port=server.server_port)}/{WHEEL.file_name}#sha256={digest}"
        Leading.seen = []
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()


@pytest.mark.parametrize("user", ["", "me@"])
@pytest.mark.parametrize("kind", ["netrc", "keyring"])
def test_no_page_has_the_users_own_logins_sent_in_clear(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str, user: str
) -> None:
    """Uv finds logins by the host alone, and a page may lead to that host over plain HTTP."""
    monkeypatch.setitem(envbuild.pip.uv._NO_PLAIN_HTTP, "UV_HTTP_RETRIES", "0")
    if kind == "netrc":
        (home / ".netrc").write_text(f"machine good.example login me password {PASSWORD}\n")
    else:
        keyring(home, {"http://good.example": USER, "good.example": USER})
        monkeypatch.setenv("PIP_KEYRING_PROVIDER", "subprocess")
    with leading(monkeypatch, f"http://{user}good.example") as page:
        with pytest.raises(ChannelError, match=r"refuse|does not give out"):
            fetched(solve(tmp_path, f"-i {page}"))
        assert any("//good.example/" in path for path, _ in Leading.seen), "it is asked without a login"
        sent = [login for _, login in Leading.seen if login is not None]
        assert [login for login in sent if login != "Basic bWU6"] == [], "at most the page's own `me:`"


def test_a_keyring_knows_the_hosts_that_a_page_leads_to(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leading(monkeypatch, "http://me@127.0.0.1:{port}/files") as page:
        keyring(home, {urlsplit(page).netloc: USER})
        monkeypatch.setenv("PIP_KEYRING_PROVIDER", "subprocess")
        assert len(solve(tmp_path, f"-i {page}").distributions) == 1
        assert any(login is not None and path.startswith("/files/") for path, login in Leading.seen)


@pytest.mark.parametrize("odd", ["", "/x/..%2F.."])
def test_no_page_has_a_file_of_this_machine_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    folder = tmp_path / "elsewhere"
    (folder / "x").mkdir(parents=True)
    (folder / WHEEL.file_name).write_bytes(WHEEL.to_bytes())
    with leading(monkeypatch, f"file://{folder}{odd}") as page:
        with pytest.raises(EnvbuildError, match=r"names no file of this machine|could not be resolved"):
            solve(tmp_path, f"-i {page}")
        links = tmp_path / "links/page"
        links.mkdir(parents=True)
        with pytest.raises(EnvbuildError, match=r"names no file of this machine|could not be resolved"):
            solve(tmp_path / "other", f"-i {page}", f"--find-links {links.as_uri()}")


def test_an_index_on_this_machine_has_files_beside_it(tmp_path: Path) -> None:
    digest = hashlib.sha256(WHEEL.to_bytes()).hexdigest()
    page = tmp_path / "shelf/simple/tiny/index.html"
    page.parent.mkdir(parents=True)
    (tmp_path / "shelf/files").mkdir()
    (tmp_path / "shelf/files" / WHEEL.file_name).write_bytes(WHEEL.to_bytes())
    page.write_text(f'<a href="../../files/{WHEEL.file_name}#sha256={digest}">tiny</a>')
    assert fetched(solve(tmp_path, f"-i file://{tmp_path}/shelf/simple")) == WHEEL.to_bytes()


@pytest.mark.parametrize("where", ["index", "page"])
def test_a_user_is_no_option_of_the_keyring(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("PIP_KEYRING_PROVIDER", "subprocess")
    asked = keyring(home, {})
    user = "--keyring-backend=evil.Backend@"
    with leading(monkeypatch, f"http://{user if where == 'page' else ''}127.0.0.1:{{port}}/files") as page:
        named = page.replace("//", f"//{user}") if where == "index" else page
        with suppress(EnvbuildError):
            fetched(solve(tmp_path, f"-i {named}"))
    assert "evil" not in (asked.read_text() if asked.exists() else "")
