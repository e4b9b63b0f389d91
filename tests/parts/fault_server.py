"""A server on loopback that answers as a test tells it, wrongly too, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def authorization(self) -> str | None:
        """The ``Authorization`` header."""
        return self.headers.get("authorization")


class Call(BaseHTTPRequestHandler):
    """One connection; a script answers each of its requests."""

    protocol_version = "HTTP/1.1"
    server: FaultServer

    def handle_any(self) -> None:
        """Read the request, remember it, have it answered."""
        with contextlib.suppress(ConnectionError):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            self.server.asked.append(asked)
            self.server.script(self, asked)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """A whole answer; headers replace the usual ones."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str = "UNKNOWN", headers: dict[str, str] | None = None) -> None:
        """An error as registries write it."""
        body = json.dumps({"errors": [{"code": code, "message": f"a {code}"}]}).encode()
        self.answer(status, body, {"Content-Type": "application/json", **(headers or {})})

    def hang_up(self) -> None:
        """Close the connection without another byte."""
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


Script = Callable[[Call, Asked], None]


class FaultServer(ThreadingHTTPServer):
    """The server. ``ended`` is set when the test is over: scripts that stall wait for it."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.script = script
        self.asked: list[Asked] = []
        self.ended = threading.Event()
        self.failures = 0

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Count a connection that failed, a refused handshake for one."""
        self.failures += 1

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://{self.host}"


@contextlib.contextmanager
def serving(script: Script) -> Iterator[FaultServer]:
    """A running server."""
    server = FaultServer(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
