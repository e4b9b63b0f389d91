"""Copies of what channels with a token list: fetched once, kept while unchanged, and refused where odd."""

from __future__ import annotations

import http.server
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import zstandard

from envbuild.conda import copies as module
from envbuild.conda.copies import Copies
from envbuild.conda.stand_ins import StandIn
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import ChannelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATH = "noarch/repodata.json"
CONTENT = b'{"packages": {}}\n'


@dataclass
class Server:
    """Answers with what it is given for each path; says 404 to all else.

    Attributes:
        host: Its name and port.
        files: Status, headers and content by path.
        asked: What was asked for, and under which condition.
    """

    host: str = ""
    files: dict[str, list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def read(self, cache: Path, period: int = 0, path: str = PATH) -> Path:
        """Have a copy made; returns where it is."""
        place = f"http://{self.host}/t/S3cret/c"
        stand_in = StandIn(f"http://{self.host}/c", place)
        assert stand_in.has_token
        url = Copies(cache).read(stand_in, (path,), period, NO_DEADLINE)
        assert url.startswith(cache.as_uri())
        assert "S3cret" not in url + repr(stand_in)
        return cache / url.removeprefix(f"{cache.as_uri()}/") / path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_PAUSE", 0.001)
    made = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/t/S3cret/c/")
            made.asked.append((path, self.headers.get("If-None-Match")))
            answers = made.files.get(path) or [(404, {}, b"")]
            status, headers, content = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, text in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        made.host = f"127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        listening.shutdown()


def test_a_list_is_fetched_compressed_and_again_only_where_it_changed(server: Server, tmp_path: Path) -> None:
    packed = zstandard.compress(CONTENT)
    server.files[f"{PATH}.zst"] = [(200, {"ETag": '"1"'}, packed), (304, {}, b""), (200, {}, packed)]
    for _ in range(3):
        assert server.read(tmp_path).read_bytes() == CONTENT
    assert server.asked == [(f"{PATH}.zst", None), (f"{PATH}.zst", '"1"'), (f"{PATH}.zst", '"1"')]
    del server.files[f"{PATH}.zst"]
    assert not server.read(tmp_path).exists()


def test_what_was_read_is_not_asked_for_again_in_its_period(server: Server, tmp_path: Path) -> None:
    server.files[PATH] = [(200, {}, CONTENT)]
    copies = Copies(tmp_path)
    stand_in = StandIn(f"http://{server.host}/c", f"http://{server.host}/t/S3cret/c")
    for period in (1, 1, 2, 2):
        copies.read(stand_in, (PATH,), period, NO_DEADLINE)
    assert [path for path, _ in server.asked] == [f"{PATH}.zst", PATH] * 2


def test_trouble_that_passes_is_waited_out(server: Server, tmp_path: Path) -> None:
    server.files[f"{PATH}.zst"] = [(503, {}, b""), (500, {}, b""), (200, {}, zstandard.compress(CONTENT))]
    assert server.read(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        (PATH, (200, {}, b'{"packages": {'), "ended in its middle"),
        (PATH, (200, {"Content-Length": "99"}, CONTENT), "could not be read"),
        (f"{PATH}.zst", (200, {}, zstandard.compress(CONTENT)[:-6]), "ended in its middle|could not be read"),
        (f"{PATH}.zst", (200, {}, CONTENT), "could not be read"),
        (f"{PATH}.zst", (200, {}, zstandard.compress(bytes(1 << 22))), "more than 1048576 bytes"),
        (PATH, (401, {}, b""), "401 Unauthorized"),
        (PATH, (403, {}, b""), "403 Forbidden"),
        (PATH, (418, {}, b""), "answered 418"),
        (PATH, (500, {}, b""), "answered 500"),
        (PATH, (302, {"Location": "http://127.0.0.1:1/t/S3cret"}, b""), "could not be asked"),
    ],
)
def test_what_is_no_list_is_refused_and_not_kept(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    answer: tuple[int, dict[str, str], bytes],
    words: str,
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1 << 20)
    server.files[path] = [answer]
    with pytest.raises(ChannelError, match=words) as caught:
        server.read(tmp_path)
    assert "S3cret" not in str(caught.value)
    assert [file for file in tmp_path.rglob("repodata*") if file.is_file()] == []


@pytest.mark.parametrize("path", ["%2e%2e/%2e%2e/x", "noarch/..%2f..%2fx", "/etc/x", "a%00b"])
def test_a_path_leads_out_of_no_folder(server: Server, tmp_path: Path, path: str) -> None:
    with pytest.raises(ChannelError, match="no path of a file"):
        server.read(tmp_path, path=path)
