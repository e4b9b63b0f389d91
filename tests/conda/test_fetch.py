"""Packages are fetched whole and verified, or an error says what is wrong."""

from __future__ import annotations

import base64
import errno
import os
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

import envbuild.conda.fetch as fetch_module
from conda_packages import Entry, Package
from envbuild.conda.fetch import IN_MEMORY, Connections, fetch_package
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.digest import Digest
from envbuild.errors import (
    BuildError,
    ChannelError,
    DeadlineExceeded,
    EnvbuildError,
    IntegrityError,
    StorageFull,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envbuild.lock import PackageRecord

PACKAGE = Package((Entry("share/x", b"x" * 5000),))
CONTENT = PACKAGE.write_conda()


@dataclass
class Channel:
    """A channel whose answers a test writes: one after the other, the last for ever."""

    url: str
    answers: list[Any] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def record(self, **changes: Any) -> PackageRecord:
        """The package's record in this channel."""
        record = PACKAGE.record(CONTENT, f"{self.url}/linux-64/{PACKAGE.stem}.conda")
        return replace(record, **changes)

    def take(self) -> Callable[[BaseHTTPRequestHandler], None]:
        """The next answer."""
        answer: Callable[[BaseHTTPRequestHandler], None] = self.answers[0]
        if len(self.answers) > 1:
            del self.answers[0]
        return answer


@contextmanager
def serving() -> Iterator[Channel]:
    """A channel on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.requests.append((self.path, dict(self.headers)))
            with suppress(ConnectionError):
                served.take()(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Channel(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def channel() -> Iterator[Channel]:
    with serving() as each:
        yield each


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_BACKOFF", 0.01)


def body(content: bytes, status: int = 200, claimed: int | None = None, **headers: str) -> Any:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content) if claimed is None else claimed))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content)
        if claimed is not None and claimed != len(content):
            request.close_connection = True

    return answer


def drip(request: BaseHTTPRequestHandler) -> None:
    """One byte every 50 ms, for ever."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(CONTENT)))
    request.end_headers()
    try:
        for at in range(200):
            request.wfile.write(CONTENT[at : at + 1])
            request.wfile.flush()
            time.sleep(0.05)
    except OSError:
        request.close_connection = True


def stall(request: BaseHTTPRequestHandler) -> None:
    """Headers, and then nothing."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(CONTENT)))
    request.end_headers()
    time.sleep(3)
    request.close_connection = True


def test_a_file_is_opened_where_it_is(tmp_path: Path) -> None:
    record = PACKAGE.put(tmp_path / "a channel")
    assert "%20" in record.url
    with fetch_package(record, deadline=NO_DEADLINE) as stream:
        assert stream.read() == CONTENT
        place = tmp_path / "a channel" / "linux-64" / record.file_name
        assert os.path.samestat(os.fstat(stream.fileno()), place.stat())


def test_a_missing_file_names_package_and_channel(tmp_path: Path) -> None:
    record = PACKAGE.put(tmp_path)
    (tmp_path / "linux-64" / record.file_name).unlink()
    with pytest.raises(
        BuildError, match=rf"thing-1.0-0.conda is not in the channel file://{tmp_path}/linux-64"
    ):
        fetch_package(record, deadline=NO_DEADLINE)


@pytest.mark.parametrize("change", [b"", CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"?"])
def test_a_file_that_is_another_is_refused(tmp_path: Path, change: bytes) -> None:
    record = PACKAGE.put(tmp_path)
    (tmp_path / "linux-64" / record.file_name).write_bytes(change)
    for size in (record.size, None):
        with pytest.raises(IntegrityError, match=r"thing-1\.0-0"):
            fetch_package(replace(record, size=size), deadline=NO_DEADLINE)


def test_other_protocols_are_refused() -> None:
    record = PACKAGE.record(CONTENT, "ftp://host/linux-64/thing-1.0-0.conda")
    with pytest.raises(BuildError, match=r"its scheme is .ftp., expected file or http or https"):
        fetch_package(record, deadline=NO_DEADLINE)


def test_a_package_comes_over_http(channel: Channel) -> None:
    channel.answers = [body(CONTENT)]
    seen: list[int] = []
    connections = Connections()
    for _ in range(2):
        with fetch_package(
            channel.record(), deadline=NO_DEADLINE, connections=connections, seen=seen.append
        ) as stream:
            assert stream.seekable()
            assert stream.read() == CONTENT
    assert sum(seen) == 2 * len(CONTENT)
    assert connections.to(channel.url).connection_from_url(channel.url).num_connections == 1
    connections.close()


def test_a_large_package_leaves_no_file_behind(
    channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(IN_MEMORY + 1)
    channel.answers = [body(content)]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    record = channel.record(sha256=Digest.of(content), size=len(content))
    with fetch_package(record, deadline=NO_DEADLINE) as stream:
        assert stream._rolled  # type: ignore[attr-defined]
        assert not list(tmp_path.iterdir())
        assert Digest.of(stream.read()) == record.sha256


def reset(request: BaseHTTPRequestHandler) -> None:
    request.connection.close()
    request.close_connection = True


@pytest.mark.parametrize(
    "fault",
    [
        body(b"", 500),
        body(b"", 503, Retry_After="0"),
        body(b"", 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        body(CONTENT[:100], claimed=len(CONTENT)),
        body(b"z" * len(CONTENT)),
        body(CONTENT + b"more"),
        reset,
    ],
    ids=["500", "503", "429", "cut", "wrong", "long", "reset"],
)
def test_what_passes_is_tried_again(channel: Channel, fault: Any) -> None:
    channel.answers = [fault, body(CONTENT)]
    with fetch_package(channel.record(), deadline=NO_DEADLINE) as stream:
        assert stream.read() == CONTENT
    assert len(channel.requests) == 2


def test_a_channel_that_gives_other_bytes_is_refused(channel: Channel) -> None:
    channel.answers = [body(b"z" * len(CONTENT))]
    with pytest.raises(IntegrityError, match=f"expected {Digest.of(CONTENT).hex}"):
        fetch_package(channel.record(), deadline=NO_DEADLINE)
    assert len(channel.requests) == 2


def test_a_body_without_end_is_not_read_to_its_end(channel: Channel) -> None:
    channel.answers = [body(bytes(1 << 22))]
    with pytest.raises(IntegrityError, match=f"more than the {len(CONTENT)} bytes"):
        fetch_package(channel.record(), deadline=NO_DEADLINE)


def test_a_channel_in_trouble_is_given_up_and_may_be_retried(channel: Channel) -> None:
    channel.answers = [body(b"", 503)]
    with pytest.raises(ChannelError, match="5 attempts: the channel answered 503") as caught:
        fetch_package(channel.record(), deadline=NO_DEADLINE)
    assert caught.value.retryable
    assert len(channel.requests) == 5


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, BuildError, r"thing-1.0-0.conda is not in the channel http://127.0.0.1:\d+/linux-64"),
        (401, ChannelError, "does not give out thing-1.0-0.conda"),
        (403, ChannelError, "does not give out thing-1.0-0.conda"),
        (418, BuildError, "answered 418"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(
    channel: Channel, status: int, kind: type[EnvbuildError], message: str
) -> None:
    channel.answers = [body(b"", status)]
    with pytest.raises(kind, match=message) as caught:
        fetch_package(channel.record(), deadline=NO_DEADLINE)
    assert not caught.value.retryable
    assert len(channel.requests) == 1


@pytest.mark.parametrize("slow", [drip, stall], ids=["drip", "stall"])
def test_the_deadline_ends_a_slow_answer(channel: Channel, slow: Any) -> None:
    channel.answers = [slow]
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        fetch_package(channel.record(), deadline=Deadline.after(0.4))
    assert time.monotonic() - start < 5


def test_a_pause_that_would_pass_the_deadline_is_not_made(channel: Channel) -> None:
    channel.answers = [body(b"", 429, Retry_After="36000")]
    start = time.monotonic()
    with pytest.raises(ChannelError, match="answered 429"):
        fetch_package(channel.record(), deadline=Deadline.after(20))
    assert time.monotonic() - start < 5


def test_credentials_go_to_their_host_alone(channel: Channel) -> None:
    with serving() as elsewhere:
        elsewhere.answers = [body(CONTENT)]
        record = channel.record()
        channel.answers = [body(b"", 302, Location=f"{elsewhere.url}/blob")]
        url = record.url.replace("http://", "http://jane:p%40ss@").replace("/linux-64", "/t/to-ken/linux-64")
        with fetch_package(record, urls=[url], deadline=NO_DEADLINE) as stream:
            assert stream.read() == CONTENT
    path, headers = channel.requests[0]
    assert path.startswith("/t/to-ken/linux-64/")
    sent = {name.lower(): value for name, value in headers.items()}
    assert sent["authorization"] == "Basic " + base64.b64encode(b"jane:p@ss").decode()
    assert not [name for name in elsewhere.requests[0][1] if name.lower() in {"authorization", "referer"}]


@pytest.mark.parametrize(
    "fault", [body(b"", 404), body(b"", 403), body(b"", 500), body(b"z" * len(CONTENT)), reset, "refused"]
)
def test_a_mirror_that_has_not_the_package_is_left_for_the_channel(channel: Channel, fault: Any) -> None:
    channel.answers = [body(CONTENT)]
    with serving() as mirror:
        mirror.answers = [fault]
        there = "http://127.0.0.1:1" if fault == "refused" else mirror.url
        record = channel.record()
        urls = [record.url.replace(channel.url, there), record.url]
        with fetch_package(record, urls=urls, deadline=NO_DEADLINE) as stream:
            assert stream.read() == CONTENT
    assert len(channel.requests) == 1
    assert len(mirror.requests) == (fault != "refused")


def test_a_mirror_serves_alone_where_the_channel_cannot_be_reached(channel: Channel, tmp_path: Path) -> None:
    channel.answers = [body(b"", 503), body(CONTENT)]
    record = channel.record()
    gone = record.url.replace(channel.url, "http://127.0.0.1:1")
    with fetch_package(record, urls=[record.url, gone], deadline=NO_DEADLINE) as stream:
        assert stream.read() == CONTENT
    assert len(channel.requests) == 2
    folder = PACKAGE.put(tmp_path).url
    with fetch_package(record, urls=[folder, gone], deadline=NO_DEADLINE) as stream:
        assert stream.read() == CONTENT
    with pytest.raises(ChannelError, match=r"in 5 attempts: the connection to 127\.0\.0\.1 failed"):
        fetch_package(record, urls=[f"{folder}.gone", gone], deadline=NO_DEADLINE)


@pytest.mark.parametrize("answer", [body(b"", 404), body(b"", 503), body(b"x"), body(b"", 418), reset])
def test_credentials_are_in_no_message(channel: Channel, answer: Any) -> None:
    channel.answers = [answer]
    record = channel.record()
    url = record.url.replace("http://", "http://jane:hidden@").replace("/linux-64", "/t/hidden/linux-64")
    with pytest.raises((BuildError, ChannelError, IntegrityError)) as caught:
        fetch_package(record, urls=[url], deadline=NO_DEADLINE)
    assert "hidden" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


def test_a_full_disk_is_told(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(tempfile.SpooledTemporaryFile):  # type: ignore[type-arg]
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Full)
    channel.answers = [body(CONTENT)]
    with pytest.raises(StorageFull, match="no room"):
        fetch_package(channel.record(), deadline=NO_DEADLINE)
