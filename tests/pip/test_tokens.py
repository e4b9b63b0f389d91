"""Tokens in the paths of indexes open them, and are in no key, lock or message."""

from __future__ import annotations

import hashlib
import http.server
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuild.conda.link import PythonTarget
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import EnvbuildError, SpecError
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.resolve import PipRequest, PipSolution, resolve
from envbuild.pip.sources import Sources
from envbuild.platform import LINUX_AMD64
from envbuild.spec.pip import PipSection
from tiny_wheels import TinyWheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "S3cret-Canary"
CONTENT = TinyWheel("tiny").to_bytes()
NAME = "tiny-1.0-py3-none-any.whl"


def section(*lines: str) -> PipSection:
    return PipSection.from_requirements("\n".join(lines).encode(), "requirements.txt", None)


def solve(tmp_path: Path, *lines: str, bound: str = "") -> PipSolution:
    python = PythonTarget("3.11.4", "lib/python3.11/site-packages")
    request = PipRequest(section(*lines), LINUX_AMD64, python, "2.36", pypi="http://127.0.0.1:1/simple")
    request = replace(request, variables={"PYPI_TOKEN": (bound,)} if bound else {})
    return resolve(request, cache_dir=tmp_path / "cache", deadline=NO_DEADLINE)


@pytest.fixture
def server() -> Iterator[str]:
    """A server that gives an index, a page and a wheel to who has the token, wherever in the path that is."""
    digest = hashlib.sha256(CONTENT).hexdigest()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            head, found, path = self.path.partition(f"/t/{TOKEN}/")
            link = f'<a href="{head}/t/{TOKEN}/files/{NAME}#sha256={digest}">{NAME}</a>'.encode()
            pages = {"simple/tiny/": link, "links.html": link, f"files/{NAME}": CONTENT}
            there = pages.get(path if found else "")
            self.send_response(404 if there is None else 200)
            self.send_header("Content-Type", "text/html" if there == link else "application/zip")
            self.send_header("Content-Length", str(len(there or b"")))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(there or b"")

        do_HEAD = do_GET  # noqa: N815 - the base class names it

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("folder", ["", "/api"])
@pytest.mark.parametrize("token", [TOKEN, "${PYPI_TOKEN}"])
@pytest.mark.parametrize(
    "lines",
    [
        ("--index-url {}/simple", "tiny"),
        ("--no-index", "--find-links {}/links.html", "tiny"),
        ("--no-index", "tiny @ {}/files/tiny-1.0-py3-none-any.whl"),
    ],
)
def test_a_token_solves_and_fetches_and_is_nowhere(
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    lines: tuple[str, ...],
    token: str,
    folder: str,
) -> None:
    monkeypatch.setenv("PYPI_TOKEN", TOKEN)
    written = [line.format(f"{server}{folder}/t/{token}") for line in lines]
    assert (
        section(*written).canonical()
        == section(*(line.format(server + folder) for line in lines)).canonical()
    )
    solution = solve(tmp_path, *written, bound=server)
    (wheel,) = solution.distributions
    assert TOKEN not in repr(wheel) + repr(solution)
    assert wheel.url == f"{server}{folder}/files/{NAME}"
    with fetch_wheel(wheel, url=solution.urls[wheel.url], deadline=NO_DEADLINE) as stream:
        assert stream.read() == CONTENT
    again = Sources.of(  # as from a lock
        section(*written), "http://127.0.0.1:1/simple", NO_DEADLINE, {"PYPI_TOKEN": (server,)}
    )
    assert again.fetch_url(wheel.url) == solution.urls[wheel.url]


def test_messages_do_not_show_it(tmp_path: Path, server: str) -> None:
    with pytest.raises(EnvbuildError) as caught:
        solve(tmp_path, f"--index-url http://127.0.0.1:1/t/{TOKEN}/simple", "tiny")
    assert "/t/***/simple" in str(caught.value)
    assert TOKEN not in f"{caught.value}{caught.value.hint}"
    with pytest.raises(EnvbuildError) as caught:
        solve(tmp_path, "--no-index", f"tiny @ {server}/t/{TOKEN}/gone/{NAME}")
    assert TOKEN not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://pypi.example/a/t/nightly/simple",
        "--find-links https://pypi.example/t/nightly/links.html",
        "x @ https://pypi.example/t/nightly/x-1-py3-none-any.whl",
        "https://pypi.example/a/t/v2/x-1-py3-none-any.whl",
    ],
)
def test_what_may_be_a_folder_is_refused(line: str) -> None:
    with pytest.raises(SpecError, match=r"behind /t/ in '.*/t/\*\*\*.*' may be a token or a folder"):
        section(line)


def test_an_index_of_a_token_alone_is_refused() -> None:
    with pytest.raises(SpecError, match="nothing stands behind the token") as caught:
        section(f"--index-url https://pypi.example/t/{TOKEN}")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "x @ https://pypi.example/t/x-1-py3-none-any.whl",
        "x @ https://pypi.example/%74/nightly/x-1-py3-none-any.whl",
        "x @ git+https://git.example/t/project",
        "x @ https://pypi.example/x-1-py3-none-any.whl?path=/t/a/b",
    ],
)
def test_what_is_no_token_stays(line: str) -> None:
    assert section(line).requirements[0].url == line.removeprefix("x @ ")
