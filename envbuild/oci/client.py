"""A thin HTTP client for the hit path: kept connections, one deadline, bounded answers.

``http.client`` rather than urllib3: 38 ms of import time against 83 ms, and a hit is one request.
"""

from __future__ import annotations

import functools
import http.client
import io
import os
import select
import socket
import ssl
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from envbuild.errors import Unavailable
from envbuild.oci.names import connect
from envbuild.oci.transport import BUNDLES, Trouble, origin

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message

    from envbuild.deadline import Deadline
    from envbuild.oci.transport import Settings

_KEPT: Final = 16
"""Idle connections that are kept for one host."""
_STALE: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
USER_AGENT: Final = "envbuild"
_CHALLENGE: Final = "Www-Authenticate"
_BUFFER: Final = 64 << 10
"""Bytes that are received at once: most manifests with their answer's head."""
PATIENCE: Final = 5.0
"""Seconds without a byte after which people are told what is waited for."""
SLOW_SECONDS: Final = 60.0
SLOW_BYTES: Final = 1 << 12
"""An answer that has begun gives more in so many seconds of waiting; a modem gives a hundred times more."""
_NO_DATA: Final = getattr(socket, "EAI_NODATA", socket.EAI_NONAME)
_STORES: Final = frozenset({"POST", "PUT", "PATCH"})
_SLOWER: Final = 4
"""How much longer a registry may take to answer what stores something: it may copy a blob before it does."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, its headers and the first bytes of its body."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Pace:
    """Gives up an answer that trickles for ever: a timeout starts anew with each byte.

    Only waiting counts, from the first byte on: whoever reads may take their time, and so may a server before
    it answers.
    """

    def __init__(self) -> None:
        self._waited = 0.0
        self._received = 0

    def keep(self, waited: float, size: int) -> None:
        """Take in for how many seconds some bytes were waited for.

        Raises:
            TimeoutError: Too few came in too long a time.
        """
        self._waited += waited
        self._received += size
        if self._waited < SLOW_SECONDS:
            return
        if size and self._received < SLOW_BYTES:
            raise TimeoutError(f"only {self._received} bytes came in {self._waited:.0f} s")
        self._waited, self._received = 0.0, 0


class _TimedStream(io.RawIOBase):
    """What a socket receives, each wait bounded and, where it is long, told to people.

    One byte a second does not outlive the deadline.
    """

    def __init__(
        self, raw: io.RawIOBase, sock: socket.socket, settings: Settings, deadline: Deadline, host: str
    ) -> None:
        super().__init__()
        self._raw, self._sock, self._settings, self._deadline = raw, sock, settings, deadline
        self._host = host
        self.slower = 1
        self._pace = Pace()
        self._has_begun = False

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer``; a timeout at the deadline."""
        began = time.monotonic()
        self._wait()
        waited = time.monotonic() - began if self._has_begun else 0.0
        self._sock.settimeout(self._settings.read_within(self._deadline))
        size = self._raw.readinto(buffer) or 0
        self._has_begun = True
        self._pace.keep(waited, size)
        return size

    def _wait(self) -> None:
        """Wait for bytes.

        Raises:
            TimeoutError: None came in time.
        """
        began, told = time.monotonic(), PATIENCE
        limit = self._settings.read_timeout * self.slower
        while True:
            if self._deadline.remaining() <= 0:
                raise TimeoutError("the deadline passed")
            waited = time.monotonic() - began
            if waited >= limit:
                raise TimeoutError(f"no answer for {waited:.0f} s")
            if self._has_bytes(max(min(limit - waited, self._deadline.slice()), 0.001)):
                return
            if (waited := time.monotonic() - began) >= told:
                told *= 2
                left = self._deadline.remaining(limit - waited)
                self._settings.tell(self._host, f"no answer for {waited:.0f} s (for up to {left:.0f} s more)")

    def _has_bytes(self, seconds: float) -> bool:
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        return bool(waiting.poll(seconds * 1000))

    def close(self) -> None:
        """Close the stream under it."""
        if not self.closed:
            self._raw.close()
        super().close()


class _WholeLines(io.BufferedReader):
    """Lines of an answer's head, which must not end in its middle: ``http.client`` would not mind."""

    in_head = True
    _has_begun = False

    def readline(self, size: int | None = -1, /) -> bytes:
        """The next line; a connection that ends before any line gives an empty one."""
        line = super().readline(size)
        if self.in_head and not line.endswith(b"\n") and len(line) != size and (line or self._has_begun):
            raise http.client.IncompleteRead(line)
        self._has_begun = True
        return line


class _TimedResponse(http.client.HTTPResponse):
    def __init__(
        self, sock: socket.socket, *args: Any, settings: Settings, deadline: Deadline, host: str, **named: Any
    ) -> None:
        super().__init__(sock, *args, **named)
        self._stream = _TimedStream(self.fp.detach(), sock, settings, deadline, host)
        self._stream.slower = _SLOWER if named.get("method") in _STORES else 1
        self.fp = self._lines = _WholeLines(self._stream, _BUFFER)

    def begin(self) -> None:
        """Read the status and the headers."""
        super().begin()
        self._lines.in_head, self._stream.slower = False, 1


class _Connection(http.client.HTTPConnection):
    """Head and body of a request go out in one piece, which is one system call instead of two."""

    _held: bytes | None = None

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._create_connection = connect

    def request(self, *args: Any, **named: Any) -> None:
        """Send a request."""
        self._held = b""
        try:
            super().request(*args, **named)
            whole = self._held
        finally:
            self._held = None
        super().send(whole)

    def send(self, data: Any) -> None:
        """Send bytes, or hold them until the request is whole."""
        if self._held is None:
            super().send(data)
        else:
            self._held += data


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same with TLS."""


def timed_response(settings: Settings, deadline: Deadline, host: str) -> Any:
    """A ``response_class`` for ``http.client`` whose every wait ends by the deadline."""
    return functools.partial(_TimedResponse, settings=settings, deadline=deadline, host=host)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Trusts the authorities of ``SSL_CERT_FILE`` and ``REQUESTS_CA_BUNDLE``, else the machine's.

    Raises:
        Unavailable: One of them cannot be read, or holds no certificate.
    """
    named = {name: os.environ.get(name) for name in BUNDLES}
    bundles = {name: bundle for name, bundle in named.items() if bundle}
    paths = ssl.get_default_verify_paths()
    if not (bundles or paths.cafile or (paths.capath and any(Path(paths.capath).iterdir()))):
        import certifi  # a slim image has no authorities of its own

        bundles = {"certifi": certifi.where()}
    context: ssl.SSLContext | None = None
    for name, bundle in bundles.items():
        try:
            if context is None:
                context = ssl.create_default_context(cafile=bundle)
            else:
                context.load_verify_locations(bundle)
        except OSError as error:
            why = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise Unavailable(
                f"the authorities of {name}={bundle} cannot be read: {why}",
                hint=f"correct {name}, or unset it to trust the machine's authorities",
                retryable=False,
            ) from None
    return context or ssl.create_default_context()


class Client:
    """Sends requests. May be used by several threads; each takes a kept connection or makes one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: defaultdict[tuple[str, str, int], list[http.client.HTTPConnection]] = defaultdict(list)
        self._guard = threading.Lock()
        self._process = os.getpid()

    def request(
        self,
        url: str,
        headers: Mapping[str, str],
        deadline: Deadline,
        *,
        body: bytes | None = None,
        limit: int = 1 << 20,
        method: str | None = None,
    ) -> Answer:
        """Send a request and read at most ``limit`` + 1 bytes of the answer.

        Without a ``method`` it is a GET, or a POST if there is a body. A request that stores something is
        sent again over another connection only if a kept one was found closed.

        Raises:
            Trouble: There was no whole answer.
        """
        where = origin(url)
        while True:
            deadline.check(f"asking {where[1]}")
            connection, kept = self._take(where, deadline)
            try:
                asked = method or ("GET" if body is None else "POST")
                return self._exchange(connection, asked, url, headers, body, limit, deadline)
            except _STALE as error:
                connection.close()
                if not kept:  # a kept connection may have been closed meanwhile: that says nothing
                    raise _trouble(where, error) from None
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise _trouble(where, error) from None
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Close the kept connections."""
        with self._guard:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        limit: int,
        deadline: Deadline,
    ) -> Answer:
        if connection.sock is None:
            self._connect(connection, deadline)
        connection.response_class = timed_response(self._settings, deadline, _name(origin(url)))
        target = url.partition("://")[2]
        target = target[target.find("/") :] if "/" in target else "/"
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        connection.request(method, target.partition("#")[0], body, sent)
        response = connection.getresponse()
        content = response.read(limit + 1)
        seen = Headers.of(response.headers)
        if len(content) <= limit and response.length:  # read(n) itself says nothing of a body cut short
            raise http.client.IncompleteRead(content, response.length)
        if response.isclosed() and not response.will_close:
            self._give_back(origin(url), connection)
        else:
            response.close()
            connection.close()
        return Answer(response.status, seen, content)

    def _connect(self, connection: http.client.HTTPConnection, deadline: Deadline) -> None:
        """Connect; where that takes long, people are told and it is begun anew, in half of the time each."""
        limit = self._settings.connect_within(deadline)
        connection.timeout = min(limit, PATIENCE)
        try:
            connection.connect()
        except TimeoutError:
            if limit <= PATIENCE:
                raise
            name = _name(("", connection.host, connection.port))
            self._settings.tell(name, f"no connection for {PATIENCE:.0f} s")
            connection.close()
            connection.timeout = max(deadline.remaining(limit - PATIENCE), 0.001)
            connection.connect()

    def _take(
        self, where: tuple[str, str, int], deadline: Deadline
    ) -> tuple[http.client.HTTPConnection, bool]:
        with self._guard:
            if self._process != os.getpid():  # after a fork the sockets belong to the parent
                self._process = os.getpid()
                self._idle.clear()
            if self._idle[where]:
                connection = self._idle[where].pop()
                if connection.sock is not None:
                    connection.sock.settimeout(self._settings.read_within(deadline))
                return connection, True
        scheme, host, port = where
        timeout = self._settings.connect_within(deadline)
        if scheme == "https":
            return _SecureConnection(host, port, timeout=timeout, context=tls_context()), False
        return _Connection(host, port, timeout=timeout), False

    def _give_back(self, where: tuple[str, str, int], connection: http.client.HTTPConnection) -> None:
        with self._guard:
            if len(self._idle[where]) < _KEPT:
                self._idle[where].append(connection)
                return
        connection.close()


class Headers(dict[str, str]):
    """Headers by name, whatever the name's case."""

    @classmethod
    def of(cls, message: Message) -> Self:
        """Of an answer: several challenges become one, of others that stand twice the last counts."""
        seen = cls()
        for name, value in message.items():
            title = name.title()
            twice = title == _CHALLENGE and title in seen
            seen[title] = f"{seen[title]}, {value}" if twice else value
        return seen

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a header, or the default."""
        return super().get(name.title(), default)


def _trouble(where: tuple[str, str, int], error: Exception) -> Trouble:
    said = str(error) or type(error).__name__
    hint = None
    if isinstance(error, ssl.SSLError):
        from envbuild.oci.proxies import way_hint

        hint = way_hint(f"https://{where[1]}", error)
    trouble = Trouble(f"{_name(where)} could not be asked: {said}", hint=hint, outage=is_outage(error))
    trouble.retryable = not isinstance(error, ssl.SSLCertVerificationError) and not is_unknown_host(error)
    return trouble


def is_outage(error: BaseException) -> bool:
    """Whether nobody answered, and not somebody who speaks no HTTP, or no TLS: that will not pass."""
    if isinstance(error, ConnectionError | ssl.SSLEOFError):
        return True
    return not isinstance(error, ssl.SSLError | http.client.BadStatusLine | http.client.UnknownProtocol)


def is_unknown_host(error: BaseException) -> bool:
    """Whether DNS answered that there is no such host: to ask again would not help."""
    return isinstance(error, socket.gaierror) and error.errno in {socket.EAI_NONAME, _NO_DATA}


def _name(where: tuple[str, str, int]) -> str:
    """A host as people write it."""
    scheme, host, port = where
    host = f"[{host}]" if ":" in host else host
    return host if port == {"https": 443, "http": 80}.get(scheme) else f"{host}:{port}"
