"""Requests and answers of HTTP/1.1 as values, for a proxy that changes them."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """A request; its headers' names are lower case.

    Attributes:
        arrived: When its head was read, on the monotonic clock; the body may have come much later.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    arrived: float

    def head(self, headers: dict[str, str]) -> bytes:
        """The request line and headers."""
        return _head(f"{self.method} {self.target} HTTP/1.1", headers)


@dataclass(frozen=True)
class Answer:
    """An answer; its headers' names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def error(cls, status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
        """An error as registries write it."""
        body = json.dumps({"errors": [{"code": code, "message": f"a {code}"}]}).encode()
        return cls(status, {"content-type": "application/json", **(headers or {})}, body)

    def to_bytes(self, *, with_body: bool) -> bytes:
        """As it is sent; the length is added where no header says one."""
        headers = {"content-length": str(len(self.body)), **self.headers}
        line = f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, 'Unknown')}"
        return _head(line, headers) + (self.body if with_body else b"")


async def read_request(reader: asyncio.StreamReader) -> Message | None:
    """The next request; None where the client has gone."""
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    arrived = time.monotonic()
    method, target, _ = lines[0].split(" ")
    headers = _headers(lines[1:])
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Message(method, target, headers, body, arrived)


async def read_answer(reader: asyncio.StreamReader, *, has_body: bool) -> Answer:
    """An answer on a connection that ends with it; a body in chunks is put together."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = _headers(lines[1:])
    headers.pop("connection", None)
    body = await reader.read() if has_body else b""
    if headers.pop("transfer-encoding", "") == "chunked":
        body = _joined(body)
    return Answer(int(lines[0].split(" ")[1]), headers, body)


def _head(line: str, headers: dict[str, str]) -> bytes:
    return "".join(
        [f"{line}\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]
    ).encode()


def _headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in lines if line)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def _joined(body: bytes) -> bytes:
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        content, body = content + rest[:length], rest[length + 2 :]
        if not length:
            break
    return content
