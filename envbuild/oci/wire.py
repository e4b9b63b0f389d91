"""urllib3's connections as :mod:`envbuild.oci.remote` uses them: every wait bounded, every failure typed."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from typing import TYPE_CHECKING, Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.exceptions import SSLError as TLSError

from envbuild.errors import DeadlineExceeded
from envbuild.oci.client import timed_response
from envbuild.oci.transport import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.deadline import Deadline
    from envbuild.oci.transport import Settings

FAILURES: Final = (HTTPError, OSError, http.client.HTTPException)
"""What urllib3 and requests raise when a connection fails; every error of requests is an OSError."""


class _Current(threading.local):
    """The call that this thread is making."""

    settings: Settings | None = None
    deadline: Deadline | None = None


_CURRENT = _Current()


@contextlib.contextmanager
def call(settings: Settings, deadline: Deadline) -> Iterator[None]:
    """Requests of this thread inside the block belong to a call with that deadline."""
    before = _CURRENT.settings, _CURRENT.deadline
    _CURRENT.settings, _CURRENT.deadline = settings, deadline
    try:
        yield
    finally:
        _CURRENT.settings, _CURRENT.deadline = before


@contextlib.contextmanager
def translated(host: str, deadline: Deadline) -> Iterator[None]:
    """Failures of the connection inside the block become our errors.

    Raises:
        DeadlineExceeded: It failed because the time is up.
        Trouble: It failed for another reason.
    """
    try:
        yield
    except FAILURES as error:
        if deadline.remaining() <= 0:
            raise DeadlineExceeded(
                f"the deadline passed while waiting for {host}",
                hint="raise --timeout, or try again: finished work is kept",
            ) from None
        trouble = Trouble(f"{host} could not be asked: {_cause(error)}")
        trouble.retryable = not isinstance(error, TLSError) and not _is_untrusted(error)
        raise trouble from None


def _cause(error: BaseException) -> str:
    """The innermost reason, in words."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException) and inner is not error:
            return _cause(inner)
    if isinstance(error.__cause__, OSError):  # urllib3 names its connection object before what happened
        return str(error.__cause__)
    return str(error) or type(error).__name__


def _is_untrusted(error: BaseException) -> bool:
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    inner = [
        each for each in (getattr(error, "reason", None), *error.args) if isinstance(each, BaseException)
    ]
    return any(_is_untrusted(each) for each in inner if each is not error)


def _bounded(connection: Any) -> None:
    """Waits for the answer end by the deadline of the thread's call."""
    if _CURRENT.settings is not None and _CURRENT.deadline is not None:
        connection.response_class = timed_response(_CURRENT.settings, _CURRENT.deadline)


def _patient(connection: Any) -> None:
    """Sending may take as long as reading: the time for connecting is over once the connection stands."""
    if _CURRENT.settings is not None and _CURRENT.deadline is not None and connection.sock is not None:
        connection.sock.settimeout(_CURRENT.settings.read_within(_CURRENT.deadline))


class _Plain(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _patient(self)

    def getresponse(self) -> Any:
        _bounded(self)
        return super().getresponse()


class _Secure(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _patient(self)

    def getresponse(self) -> Any:
        _bounded(self)
        return super().getresponse()


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


POOLS: Final = {"http": _PlainPool, "https": _SecurePool}
"""For ``PoolManager.pool_classes_by_scheme``."""
