"""A proxy in front of a real registry that makes the faults of networks and servers, one operation at a time.

A repository's first path component is the name of a case; each case has its own fault, and remembers what it
was asked. The proxy is the registry's token server as well: it wants a token for every request, which it
gives to ``USERNAME`` and ``PASSWORD``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import socket
import ssl
import struct
import threading
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from parts.fault_case import (
    BASIC,
    FAULTS,
    OPERATIONS,
    PASSWORD,
    TRANSIENT,
    USERNAME,
    Case,
    case_of,
    operation_of,
)
from parts.http_messages import Answer, Message, read_answer, read_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

__all__ = ["BASIC", "FAULTS", "OPERATIONS", "TRANSIENT", "Case", "FaultProxy", "proxying"]


class Broken(Exception):  # noqa: N818
    """The connection is of no more use."""


class FaultProxy:
    """The proxy, on a loopback port of its own, in a thread of its own; a second port speaks TLS.

    Args:
        upstream: The port of the registry.
        canary: The host that redirects lead to.
        context: For the second port.
    """

    def __init__(self, upstream: int, canary: str, context: ssl.SSLContext | None = None) -> None:
        self._upstream = upstream
        self._canary = canary
        self._context = context
        self._cases: dict[str, Case] = {}
        self._tokens: dict[str, float] = {}
        self._clients: dict[int, asyncio.StreamWriter] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.seconds_a_byte = 0.25
        self.password = PASSWORD
        self.port = self.tls_port = 0

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self.port}"

    @property
    def tls_host(self) -> str:
        """``localhost:PORT`` of the port that speaks TLS."""
        return f"localhost:{self.tls_port}"

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        """End every connection and the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def add(self, name: str, case: Case) -> Case:
        """Have a case's faults made from here on."""
        self._cases[name] = case
        return case

    async def _listen(self) -> None:
        plain = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20)
        self.port = plain.sockets[0].getsockname()[1]
        self._servers = [plain]
        if self._context is not None:
            inner = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 20, ssl=self._context)
            self._inner = inner.sockets[0].getsockname()[1]
            outer = await asyncio.start_server(
                lambda reader, writer: self._accept(reader, writer, self._pass_on), "127.0.0.1", 0
            )
            self.tls_port = outer.sockets[0].getsockname()[1]
            self._servers += [inner, outer]

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        mine = asyncio.current_task()
        while others := [task for task in asyncio.all_tasks() if task is not mine]:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=1)
        for writer in self._writers:  # of connections that came too late for their task to begin
            writer.close()
        await asyncio.sleep(0.1)  # transports close in the loop's next turns

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay the bytes of a TLS connection, so that foreign bytes can be put between them."""
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._inner)
        name = inner_writer.get_extra_info("sockname")[1]
        self._clients[name] = writer
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the end of the test
                await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        finally:
            del self._clients[name]
            for each in (writer, inner_writer):
                each.close()
            self._writers.discard(writer)

    def _accept(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        talk: Callable[..., Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._writers.add(writer)
        task = self._loop.create_task((talk or self._serve)(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await read_request(reader)) is not None:
                await self._answer(request, _Client(self, reader, writer))
        except (Broken, OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _answer(self, request: Message, client: _Client) -> None:
        case = self._cases.setdefault(case_of(request.target), Case())
        operation = operation_of(request)
        case.asked.append((operation, request.target))
        if case.cut_after is not None and len(case.asked) > case.cut_after:
            client.reset()
        if case.strikes(operation):
            await _Fault(self, case, request, client).make()
            return
        answer = await self.honest(request, case)
        case.answers.append((operation, request.target, answer.status))
        await client.send(request, answer)

    async def honest(self, request: Message, case: Case) -> Answer:
        """What the registry, or its token server, says."""
        if urlsplit(request.target).path == "/token":
            return self._token(request, case)
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._tokens.get(bearer, 0.0) < request.arrived:
            return self.challenge(request)
        return await self._ask(request)

    def challenge(self, request: Message) -> Answer:
        """A 401 that names the token server."""
        host = request.headers.get("host", self.host)
        scheme = "https" if host == self.tls_host else "http"
        value = f'Bearer realm="{scheme}://{host}/token",service="tests"'
        return Answer.error(401, "UNAUTHORIZED", {"www-authenticate": value})

    def redirect_to_canary(self, request: Message) -> Answer:
        """Somewhere else."""
        return Answer(307, {"location": f"http://{self._canary}{request.target}"}, b"")

    def garble(self, writer: asyncio.StreamWriter) -> None:
        """Put bytes that are no TLS record of theirs into a TLS connection."""
        name = writer.get_extra_info("peername")
        client = self._clients.get(name[1]) if name else None
        if client is not None:
            client.write(b"\x17\x03\x03\x00\x20" + secrets.token_bytes(32))
            client.close()

    def _token(self, request: Message, case: Case) -> Answer:
        basic = "Basic " + base64.b64encode(f"{USERNAME}:{self.password}".encode()).decode()
        if request.headers.get("authorization") != basic:
            return Answer.error(401, "UNAUTHORIZED")
        token = secrets.token_hex(16)
        self._tokens[token] = time.monotonic() + case.token_seconds
        body = json.dumps({"token": token, "expires_in": case.token_seconds}).encode()
        return Answer(200, {"content-type": "application/json"}, body)

    async def _ask(self, request: Message) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream, limit=1 << 20)
        try:
            headers = {name: value for name, value in request.headers.items() if name != "authorization"}
            if headers.get("host") == self.tls_host:
                headers["x-forwarded-proto"] = "https"
            writer.write(request.head(headers | {"connection": "close"}) + request.body)
            return await read_answer(reader, has_body=request.method != "HEAD")
        finally:
            writer.close()


class _Client:
    """One client's connection, for one answer."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self.writer = writer

    async def send(self, request: Message, answer: Answer) -> None:
        self.writer.write(answer.to_bytes(with_body=request.method != "HEAD"))
        await self.writer.drain()

    def reset(self) -> None:
        """RST instead of an answer."""
        raw = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        raise Broken

    async def send_slowly(self, content: bytes, seconds: float) -> None:
        for position in range(len(content)):
            self.writer.write(content[position : position + 1])
            await self.writer.drain()
            await asyncio.sleep(seconds)
            if self._reader.at_eof():
                raise Broken

    async def wait_for_its_end(self) -> None:
        """Until the client gives up."""
        await self._reader.read()
        raise Broken

    def garble(self) -> None:
        self._proxy.garble(self.writer)
        raise Broken


class _Fault:
    """Makes one fault."""

    def __init__(self, proxy: FaultProxy, case: Case, request: Message, client: _Client) -> None:
        self._proxy = proxy
        self._case = case
        self._request = request
        self._client = client

    async def make(self) -> None:
        """Answer wrongly, or not at all."""
        await self._makers()[self._case.fault]()

    def _makers(self) -> dict[str, Callable[[], Awaitable[None]]]:
        soon = formatdate(time.time() + 1.5, usegmt=True)
        return {
            "429 seconds": lambda: self._error(429, {"retry-after": "1"}),
            "429 date": lambda: self._error(429, {"retry-after": soon}),
            "429": lambda: self._error(429),
            "429 10 h": lambda: self._error(429, {"retry-after": "36000"}),
            "500": lambda: self._error(500),
            "503": lambda: self._error(503),
            "reset": self._reset,
            "truncated": self._truncated,
            "one byte a second": self._slow,
            "stall": self._client.wait_for_its_end,
            "corrupt": self._corrupt,
            "other body": self._other_body,
            "wrong length": self._wrong_length,
            "401 once": self._challenge,
            "401 loop": self._challenge,
            "redirect to another host": self._elsewhere,
            "redirect loop": self._round,
            "404 to 200": self._yes,
            "200 to 404": lambda: self._error(404),
            "tls": self._tls,
        }

    async def _real(self) -> Answer:
        return await self._proxy.honest(self._request, self._case)

    async def _send(self, answer: Answer) -> None:
        await self._client.send(self._request, answer)

    async def _error(self, status: int, headers: dict[str, str] | None = None) -> None:
        await self._send(Answer.error(status, "TOOMANYREQUESTS" if status == 429 else "UNKNOWN", headers))

    async def _reset(self) -> None:
        if self._case.random.random() < 0.5:  # the request had its effect, and nobody hears of it
            await self._real()
        self._client.reset()

    async def _tls(self) -> None:
        if self._case.random.random() < 0.5:
            await self._real()
        self._client.garble()

    async def _truncated(self) -> None:
        content = (await self._real()).to_bytes(with_body=self._request.method != "HEAD")
        self._client.writer.write(content[: self._case.random.randrange(len(content))])
        await self._client.writer.drain()
        raise Broken

    async def _slow(self) -> None:
        content = (await self._real()).to_bytes(with_body=self._request.method != "HEAD")
        await self._client.send_slowly(content, self._proxy.seconds_a_byte)

    async def _corrupt(self) -> None:
        answer = await self._real()
        body = bytearray(answer.body)
        if body:
            body[self._case.random.randrange(len(body))] ^= 1 << self._case.random.randrange(8)
        await self._send(Answer(answer.status, answer.headers, bytes(body)))

    async def _other_body(self) -> None:
        """Headers that promise the right bytes, the digest too."""
        answer = await self._real()
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        await self._send(Answer(answer.status, headers, self._case.foreign))

    async def _wrong_length(self) -> None:
        answer = await self._real()
        wrong = len(answer.body) + 10 if self._case.random.random() < 0.5 else len(answer.body) // 2
        content = Answer(answer.status, answer.headers | {"content-length": str(wrong)}, answer.body)
        self._client.writer.write(content.to_bytes(with_body=self._request.method != "HEAD"))
        await self._client.writer.drain()
        if wrong > len(answer.body):
            raise Broken

    async def _challenge(self) -> None:
        await self._send(self._proxy.challenge(self._request))

    async def _elsewhere(self) -> None:
        await self._send(self._proxy.redirect_to_canary(self._request))

    async def _round(self) -> None:
        await self._send(Answer(307, {"location": self._request.target}, b""))

    async def _yes(self) -> None:
        """The registry says that all is well, and has done nothing."""
        status = {"POST": 202, "PUT": 201, "PATCH": 202}.get(self._request.method, 200)
        await self._send(Answer(status, {}, b"" if self._request.method == "HEAD" else self._case.foreign))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def proxying(upstream: int, canary: str, context: ssl.SSLContext | None = None) -> Iterator[FaultProxy]:
    """A running proxy."""
    proxy = FaultProxy(upstream, canary, context)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
