"""What an HTTP library raises becomes our errors; which call a thread is making, for connections to know."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Final

from envbuild.errors import DeadlineExceeded
from envbuild.oci.transport import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.deadline import Deadline
    from envbuild.oci.transport import Settings

_FAILURES: Final = (OSError, http.client.HTTPException)
"""What http.client and requests raise when a connection fails; every error of requests is an OSError."""


class _Current(threading.local):
    """The call that this thread is making."""

    settings: Settings | None = None
    deadline: Deadline | None = None


CURRENT: Final = _Current()


def failures() -> tuple[type[Exception], ...]:
    """What is raised when a connection fails; urllib3 is not loaded for the sake of its name alone."""
    urllib3 = sys.modules.get("urllib3.exceptions")
    return _FAILURES if urllib3 is None else (*_FAILURES, urllib3.HTTPError)


@contextlib.contextmanager
def call(settings: Settings, deadline: Deadline) -> Iterator[None]:
    """Requests of this thread inside the block belong to a call with that deadline."""
    before = CURRENT.settings, CURRENT.deadline
    CURRENT.settings, CURRENT.deadline = settings, deadline
    try:
        yield
    finally:
        CURRENT.settings, CURRENT.deadline = before


@contextlib.contextmanager
def translated(host: str, deadline: Deadline) -> Iterator[None]:
    """Failures of the connection inside the block become our errors.

    Raises:
        DeadlineExceeded: It failed because the time is up.
        Trouble: It failed for another reason.
    """
    try:
        yield
    except failures() as error:
        if deadline.remaining() <= 0:
            raise DeadlineExceeded(
                f"the deadline passed while waiting for {host}",
                hint="raise --timeout, or try again: finished work is kept",
            ) from None
        trouble = Trouble(f"{host} could not be asked: {_cause(error)}")
        trouble.retryable = not _is_tls(error) and not _is_untrusted(error)
        raise trouble from None


def _cause(error: BaseException) -> str:
    """The innermost reason, in words."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException) and inner is not error:
            return _cause(inner)
    if isinstance(error.__cause__, OSError):  # urllib3 names its connection object before what happened
        return str(error.__cause__)
    return str(error) or type(error).__name__


def _is_tls(error: BaseException) -> bool:
    """Whether urllib3 gave TLS up; what is but the reason of another error may pass, as garbled bytes do."""
    urllib3 = sys.modules.get("urllib3.exceptions")
    return urllib3 is not None and isinstance(error, urllib3.SSLError)


def _is_untrusted(error: BaseException) -> bool:
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    inner = [
        each for each in (getattr(error, "reason", None), *error.args) if isinstance(each, BaseException)
    ]
    return any(_is_untrusted(each) for each in inner if each is not error)
