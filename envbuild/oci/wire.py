"""What an HTTP library raises becomes our errors; which call a thread is making, for connections to know."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Final

from envbuild.errors import DeadlineExceeded
from envbuild.oci.client import is_outage, is_unknown_host
from envbuild.oci.transport import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        from envbuild.oci.proxies import way_hint

        said = f"{host} could not be asked: {_cause(error)}"
        hint = way_hint(f"https://{host}", error)
        trouble = Trouble(said, hint=hint, outage=not _any(error, _is_foreign))
        trouble.retryable = not (_is_tls(error) or _any(error, _is_final))
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


def _is_final(error: BaseException) -> bool:
    """Whether it will be the same the next time: a certificate that is not trusted, an unknown host."""
    return isinstance(error, ssl.SSLCertVerificationError) or is_unknown_host(error)


def _is_foreign(error: BaseException) -> bool:
    """Whether it comes of somebody who speaks another protocol."""
    return isinstance(error, OSError | http.client.HTTPException) and not is_outage(error)


def _any(error: BaseException, test: Callable[[BaseException], bool]) -> bool:
    """Whether an error, or one that it was raised for, is of a kind."""
    if test(error):
        return True
    inner = (getattr(error, "reason", None), error.__cause__, *error.args)
    return any(_any(each, test) for each in inner if isinstance(each, BaseException) and each is not error)
