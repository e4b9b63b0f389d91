"""Fetching a package: into memory, or an unlinked file where it is large, and verified."""

from __future__ import annotations

import errno
import hashlib
import random
import ssl
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

from envbuild.conda.logins import authorised, find_login
from envbuild.conda.redaction import redact_logs
from envbuild.errors import (
    BuildError,
    ChannelError,
    IntegrityError,
    RegistryError,
    StorageError,
    StorageFull,
)
from envbuild.oci.client import Pace, tls_context
from envbuild.oci.proxies import causes, private_proxy_for, way_hint
from envbuild.oci.transport import MAX_REDIRECTS, REDIRECTS, parse_retry_after, redirected, same_origin
from envbuild.spec.channel import redact
from envbuild.spec.files import opened
from envbuild.url import FETCHED, Url, UrlError, read_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import urllib3

    from envbuild.conda.logins import Login
    from envbuild.deadline import Deadline
    from envbuild.lock import PackageRecord

IN_MEMORY: Final = 8 << 20
"""Packages up to this size in bytes are held in memory."""

_CHUNK: Final = 1 << 18
_MAX_SIZE: Final = 64 << 30
_ATTEMPTS: Final = 5
_CONNECT: Final = 10.0
_READ: Final = 60.0
_BACKOFF: Final = 0.5
_MAX_BACKOFF: Final = 10.0
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
LOGIN_HINT: Final = (
    "check the login: in the channel's URL, or, for HTTPS, in RATTLER_AUTH_FILE, in the keyring or in netrc"
)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def fetch_package(
    record: PackageRecord,
    *,
    urls: Sequence[str] = (),
    login: Callable[[str], Login | None] = find_login,
    deadline: Deadline,
    connections: Connections | None = None,
    seen: Callable[[int], None] | None = None,
    folder: Path | None = None,
) -> IO[bytes]:
    """Get a package's bytes; they are those of the record's sha256.

    Args:
        record: What to fetch.
        urls: Where it is, mirrors first, maybe with credentials; the record's own URL where there is none.
        login: Gives the user's login for a URL that holds no credentials.
        deadline: When to give up.
        connections: Connections to use, for many fetches; its own where it is None.
        seen: Told the number of bytes of each piece that arrives.
        folder: Where large packages wait, in a file without a name; the system's folder where it is None.

    Returns:
        A seekable stream at its start, to be closed by the caller; it leaves no file behind.

    Raises:
        BuildError: The package is not there.
        ChannelError: The package may not be read, or (``retryable``) its channel is in trouble.
        SpecError: A file of logins cannot be read.
        IntegrityError: What the channel gives is not the package.
        DeadlineExceeded: The time ran out.
        StorageFull: There is no room for the package.
    """
    sources = tuple(urls) or (record.url,)
    download = _Download(record, login, deadline, seen or _unseen, str(folder or tempfile.gettempdir()))
    if connections is not None:
        return download.run(sources, connections)
    own = Connections()
    try:
        return download.run(sources, own)
    finally:
        own.close()


class Connections:
    """Connections for many fetches, which threads may share; none is made before the first is wanted."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, str | None], urllib3.PoolManager] = {}
        self._guard = threading.Lock()

    def to(self, url: str) -> urllib3.PoolManager:
        """Those to a URL's server: through the proxy that the environment names for it, if any.

        Raises:
            Unavailable: The authorities that the environment names cannot be read.
        """
        import urllib3

        from envbuild.oci.pools import POOLS

        redact_logs()
        way = read_url(url).scheme, private_proxy_for(url)
        with self._guard:
            if way not in self._pools:
                context = tls_context() if way[0] == "https" else None
                settings: dict[str, Any] = {"num_pools": 8, "maxsize": 16, "ssl_context": context}
                if (proxy := way[1]) is None:
                    self._pools[way] = urllib3.PoolManager(**settings)
                else:
                    place = proxy if "://" in proxy else f"http://{proxy}"
                    settings["proxy_headers"] = _proxy_login(place)
                    self._pools[way] = urllib3.ProxyManager(place, **settings)
                self._pools[way].pool_classes_by_scheme = POOLS
            return self._pools[way]

    def get(
        self, url: str, login: Mapping[str, str], deadline: Deadline, headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Ask for what is at a URL, wherever that leads; its body is not read.

        The login goes to the URL's own origin alone, and nobody is told where a redirect came from: a token
        may stand in the URL.

        Args:
            url: Where it is.
            login: The headers that carry the login.
            deadline: When to give up.
            headers: More headers.

        Raises:
            ChannelError: It leads from HTTPS to plain HTTP, to no place on the web, or on and on.
            urllib3.exceptions.HTTPError: There was no answer.
        """
        import urllib3

        place = url
        for _ in range(MAX_REDIRECTS + 1):
            left = deadline.remaining()
            own = login if same_origin(place, url) else {}
            response = self.to(place).request(
                "GET",
                place,
                headers={"User-Agent": "envbuild", "Accept-Encoding": "identity", **(headers or {}), **own},
                preload_content=False,
                decode_content=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=min(_CONNECT, left), read=min(_READ, left)),
                retries=urllib3.Retry(total=None, connect=0, read=0, redirect=0, status=0, other=0),
            )
            if response.status not in REDIRECTS:
                return response
            location = response.headers.get("Location")
            response.close()
            what = f"{read_url(place).scheme}://{read_url(place).netloc}"
            try:
                place = redirected(place, location, what)
            except RegistryError as error:
                raise ChannelError(redact(error.message).replace("the registry", "the server")) from None
        raise ChannelError(f"{read_url(url).netloc} redirects more than {MAX_REDIRECTS} times")

    def close(self) -> None:
        """Close them."""
        for pool in self._pools.values():
            pool.clear()


def _proxy_login(proxy: str) -> dict[str, str]:
    import urllib3

    login = proxy.rpartition("@")[0].rpartition("://")[2]
    return urllib3.make_headers(proxy_basic_auth=unquote(login)) if login else {}


def _unseen(size: int) -> None:
    """Tell nobody."""


class _Transient(Exception):  # noqa: N818 - never leaves this module
    """What may be better at the next attempt."""

    def __init__(self, reason: str, pause: float = 0.0, hint: str | None = None) -> None:
        super().__init__(reason)
        self.pause = pause
        self.hint = hint


@dataclass(frozen=True)
class _Download:
    """One package on its way."""

    record: PackageRecord
    login: Callable[[str], Login | None] = field(repr=False)
    deadline: Deadline
    seen: Callable[[int], None]
    folder: str

    def run(self, urls: tuple[str, ...], connections: Connections) -> IO[bytes]:
        """Try until the package is there, or there is no hope.

        A place that answers for certain that it has not the package is asked no more; one in trouble is asked
        again after all others were.
        """
        left = list(urls)
        wrong: set[str] = set()
        for attempt in range(_ATTEMPTS):
            for url in tuple(left):
                try:
                    return self._get(url, connections)
                except _Transient as caught:
                    trouble = caught
                    self.deadline.check(f"fetching {self.record}: {trouble}")
                except IntegrityError as error:
                    # A proxy may have cut or mixed up one answer; two wrong ones are the channel's own.
                    if url in wrong and left == [url]:
                        raise
                    trouble = _Transient(str(error))
                    left = [each for each in left if each != url or url not in wrong]
                    wrong.add(url)
                except (BuildError, ChannelError):
                    if left == [url]:
                        raise
                    left.remove(url)
            if attempt + 1 < _ATTEMPTS:
                self._pause(attempt, trouble)
        raise ChannelError(
            f"{self.record} could not be fetched from {self.record.url} in {_ATTEMPTS} attempts: {trouble}",
            hint=trouble.hint or "try again later; finished layers are kept",
            retryable=True,
        )

    def _get(self, url: str, connections: Connections) -> IO[bytes]:
        try:
            place = Url.parse(url, FETCHED)
        except UrlError as error:
            raise BuildError(
                f"{self.record} is at {redact(self.record.url)[:200]!r}, no URL: {error}"
            ) from None
        if place.scheme == "file":
            return _open_file(self.record, unquote(place.path), self.deadline, self.seen)
        return self._attempt(str(replace(place, fragment=None)), connections)

    def _pause(self, attempt: int, trouble: _Transient) -> None:
        most = min(_MAX_BACKOFF, _BACKOFF * 2**attempt)
        pause = max(trouble.pause, random.uniform(0, most))  # noqa: S311 - jitter, no secret
        if pause >= self.deadline.remaining():
            raise ChannelError(
                f"{self.record} could not be fetched from {self.record.url} in time: {trouble}",
                hint=trouble.hint or "raise --timeout, or try again later",
                retryable=True,
            ) from None
        self.deadline.sleep(pause)

    def _attempt(self, url: str, connections: Connections) -> IO[bytes]:
        import urllib3

        self.deadline.check(f"fetching {self.record}")
        place, login = authorised(url, self.login)
        try:
            response = connections.get(place, login, self.deadline)
        except urllib3.exceptions.HTTPError as error:
            raise self._trouble(place, error) from None
        with _released(response), self._cut_at_deadline(response):
            self._check_status(response)
            return self._receive(place, response)

    def _receive(self, place: str, response: urllib3.BaseHTTPResponse) -> IO[bytes]:
        import urllib3

        spool = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=self.folder)  # noqa: SIM115 - handed on
        try:
            check = _Check(self.record)
            pace, began = Pace(), time.monotonic()
            while chunk := self._read(response):
                pace.keep(time.monotonic() - began, len(chunk))
                check.update(chunk)
                with _storage(self.folder):
                    spool.write(chunk)
                self.seen(len(chunk))
                began = time.monotonic()
            check.finish()
            spool.seek(0)
        except (urllib3.exceptions.HTTPError, TimeoutError) as error:
            spool.close()
            raise self._trouble(place, error) from None
        except BaseException:
            spool.close()
            raise
        return cast("IO[bytes]", spool)

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        self.deadline.check(f"fetching {self.record}")
        read1 = getattr(response, "read1", None)
        chunk: bytes = read1(_CHUNK) if read1 is not None else response.read(1 << 14)
        return chunk

    @contextmanager
    def _cut_at_deadline(self, response: urllib3.BaseHTTPResponse) -> Iterator[None]:
        """End a read that waits, once the time is up: a timeout alone starts anew with every byte."""
        left = self.deadline.remaining()
        if left == float("inf"):
            yield
            return
        timer = threading.Timer(left, _shut_down, (response,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _check_status(self, response: urllib3.BaseHTTPResponse) -> None:
        status, record = response.status, self.record
        channel = record.url.rpartition("/")[0]
        if status == 200:
            return
        if status in _TRANSIENT:
            pause = parse_retry_after(response.headers.get("Retry-After")) or 0.0
            raise _Transient(f"the channel answered {status}", pause)
        if status in {404, 410}:
            raise BuildError(
                f"{record.file_name} is not in the channel {channel} (status {status})",
                hint="solve again: the channel may have withdrawn the package",
            )
        if status in {401, 403}:
            raise ChannelError(
                f"the channel {channel} does not give out {record.file_name} (status {status})",
                hint=LOGIN_HINT,
            )
        raise BuildError(f"the channel {channel} answered {status} for {record.file_name}, expected 200")

    def _trouble(self, place: str, error: Exception) -> _Transient:
        """The error without its text, which may hold a URL with a token.

        Raises:
            ChannelError: It would be the same the next time: the server's certificate is not trusted.
        """
        reason = getattr(error, "reason", None)
        kind = type(reason if isinstance(reason, Exception) else error).__name__
        said, hint = f"the connection to {read_url(place).hostname} failed ({kind})", way_hint(place, error)
        untrusted = next(
            (each for each in causes(error) if isinstance(each, ssl.SSLCertVerificationError)), None
        )
        if untrusted is not None:
            why = untrusted.verify_message
            raise ChannelError(f"{self.record} could not be fetched: {said}: {why}", hint=hint) from None
        return _Transient(said, hint=hint)


class _Check:
    """The size and the digest of a package that arrives."""

    def __init__(self, record: PackageRecord) -> None:
        self._record = record
        self._hash = hashlib.sha256()
        self._size = 0

    def update(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._size += len(chunk)
        if self._size > (_MAX_SIZE if self._record.size is None else self._record.size):
            raise IntegrityError(
                f"{self._record} from {self._record.url} has more than the {self._record.size} bytes expected"
            )

    def finish(self) -> None:
        digest = self._hash.hexdigest()
        if digest != self._record.sha256.hex:
            raise IntegrityError(
                f"{self._record} from {self._record.url} has sha256 {digest} and {self._size} bytes, "
                f"expected {self._record.sha256.hex}",
                hint="solve again: the channel, a mirror or a proxy gives other bytes than its index says",
            )


def _open_file(
    record: PackageRecord, path: str, deadline: Deadline, seen: Callable[[int], None]
) -> IO[bytes]:
    try:
        file = open(path, "rb", opener=lambda name, _: opened(name))  # noqa: SIM115 - handed to the caller
    except FileNotFoundError:
        channel = record.url.rpartition("/")[0]
        raise BuildError(
            f"{record.file_name} is not in the channel {channel}",
            hint="index the channel's folder again, or put the package back",
        ) from None
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}") from error
    try:
        check = _Check(record)
        while chunk := file.read(1 << 20):
            deadline.check(f"reading {record}")
            check.update(chunk)
            seen(len(chunk))
        check.finish()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def _released(response: urllib3.BaseHTTPResponse) -> Iterator[None]:
    """Give the connection back when the answer was read whole, and close it otherwise."""
    try:
        yield
    except BaseException:
        response.close()
        raise
    response.release_conn()


def _shut_down(response: Any) -> None:
    shutdown = getattr(response, "shutdown", response.close)
    try:
        shutdown()
    except (OSError, ValueError, RuntimeError):
        return


@contextmanager
def _storage(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                f"there is no room for a package in {folder}",
                hint="free space there, or name another folder in TMPDIR or with --cache-dir",
            ) from error
        raise StorageError(f"{folder} cannot hold a package: {error.strerror}") from error
