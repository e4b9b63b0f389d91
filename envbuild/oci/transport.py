"""Speaking to registries: where they are, what their answers mean, when to try again.

Thin on purpose: the hit path imports this. Sources: OCI Distribution Specification 1.1 ("Error Codes"),
RFC 9110 (``Retry-After``), "Exponential Backoff And Jitter" for the pauses.
"""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from envbuild.digest import Digest
from envbuild.errors import (
    DeadlineExceeded,
    EnvbuildError,
    IntegrityError,
    NotFound,
    RegistryError,
    Unauthorized,
    Unavailable,
)
from envbuild.oci.breaker import Breakers
from envbuild.oci.manifest import ACCEPT, MAX_MANIFEST, parse_manifest
from envbuild.oci.shared import Shared
from envbuild.progress import Event, silent
from envbuild.url import UrlError, read_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envbuild.deadline import Deadline
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.progress import Progress
    from envbuild.reference import Repository, Tag

DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_SERVER: Final = "registry-1.docker.io"
MAX_REDIRECTS: Final = 5
BUNDLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Who names authorities; the solvers read the first alone."""
MANIFEST_HEADERS: Final = {"Accept": ", ".join(ACCEPT), "Accept-Encoding": "identity"}
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]+)?")
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_OUTAGES = frozenset({502, 503, 504})
_LONGEST_WAIT = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Settings:
    """How registries are spoken to.

    Attributes:
        insecure_hosts: Hosts (``name[:port]``) that are spoken to in plain HTTP, as loopback hosts are.
        secure_hosts: Hosts that are spoken to in HTTPS although they are on loopback.
        connect_timeout: Seconds for a connection to stand.
        read_timeout: Seconds in which an answer must begin, and its next bytes must arrive; what stores
            something may take four times as long to be answered.
        retries: How often a request that failed for a passing reason is tried again while the host answers
            others; 0 for never, whatever the reason.
        patience: Seconds of an outage that are waited out at most; None for as long as the deadline allows,
            or a minute where there is none.
        chunk: Bytes of a blob that are sent at once; larger blobs go in pieces, and on where they broke off.
        breakers: What is known of the hosts' health, shared by all that use these settings.
        connections: The connections to each host, shared in the same way.
        progress: Told of hosts that are waited for.
    """

    insecure_hosts: frozenset[str] = frozenset()
    secure_hosts: frozenset[str] = frozenset()
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    retries: int = 4
    patience: float | None = None
    chunk: int = 32 << 20
    breakers: Breakers = field(default_factory=Breakers, repr=False, compare=False)
    connections: Shared = field(default_factory=Shared, repr=False, compare=False)
    progress: Progress = field(default=silent, repr=False, compare=False)

    def base_url(self, host: str, *, insecure: bool | None = None) -> str:
        """The URL in front of ``/v2/`` for a repository's host.

        Args:
            host: The host as a repository names it.
            insecure: Plain HTTP or not; None to decide by the host.
        """
        if host == DOCKER_HUB:
            return f"https://{DOCKER_HUB_SERVER}"
        if insecure is None:
            insecure = host in self.insecure_hosts or (is_loopback(host) and host not in self.secure_hosts)
        return f"{'http' if insecure else 'https'}://{host}"

    def connect_within(self, deadline: Deadline) -> float:
        """Seconds that a connection may take to stand, never zero."""
        return max(deadline.remaining(self.connect_timeout), 0.001)

    def read_within(self, deadline: Deadline) -> float:
        """Seconds that the next bytes may take, never zero."""
        return max(deadline.remaining(self.read_timeout), 0.001)

    def tell(self, host: str, text: str) -> None:
        """Tell people what is the matter with a host that is waited for."""
        self.breakers[host].tell(text, lambda text: self.progress(Event("wait", host, "output", text=text)))


def is_loopback(host: str) -> bool:
    """Whether a host (``name[:port]``) is this machine by its very name."""
    return _LOOPBACK.fullmatch(host) is not None


class Trouble(Unavailable):
    """A failure that may pass by itself.

    Attributes:
        retry_after: Seconds that the registry asked to wait, or None.
        outage: Whether nobody answered, or only somebody in front of the registry.
        way: What to look at on the way to the registry, or None where nothing is known of it.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        hint: str | None = None,
        outage: bool = False,
    ) -> None:
        super().__init__(message, hint=hint or "check the network and the registry, then try again")
        self.retry_after = retry_after
        self.outage = outage
        self.way = hint


class MissingContent(NotFound):
    """A manifest was refused because the repository lacks something that it names.

    Attributes:
        missing: What the registry says is missing; some registries name only the first, or nothing.
    """

    def __init__(self, message: str, missing: tuple[Digest, ...]) -> None:
        super().__init__(message, hint="put every blob and manifest that it names, then put it again")
        self.missing = missing


def retrying(
    operation: Callable[[], _Result], host: str, settings: Settings, deadline: Deadline, doing: str
) -> _Result:
    """The operation's result, tried again after :class:`Trouble` with growing random pauses.

    Trouble of this request alone is tried again a few times; an outage of the host is waited out.

    Raises:
        DeadlineExceeded: The time is up.
        Unavailable: It failed once too often, or the registry asks to wait longer than there is time, or the
            outage lasts longer than is waited.
    """
    attempt, patience = 0, settings.patience if settings.retries else 0.0
    while True:
        deadline.check(doing)
        try:
            return _guarded(operation, host, settings, deadline, patience)
        except Trouble as error:
            deadline.check(doing)
            waits = error.outage and settings.breakers[host].waits(deadline, patience)
            is_last = not error.retryable or (attempt >= settings.retries and not waits)
            if is_last or not _pause(attempt, error, deadline):
                raise
        attempt += 1


def _guarded(
    operation: Callable[[], _Result],
    host: str,
    settings: Settings,
    deadline: Deadline,
    patience: float | None,
) -> _Result:
    """One attempt, whose outcome the host's circuit breaker is told."""

    def tell(text: str) -> None:
        settings.progress(Event("wait", host, "output", text=text))

    with settings.breakers[host].guard(deadline, patience, tell) as outcome:
        try:
            result = operation()
        except Trouble as error:
            outcome.answered, outcome.reason = False, error.message
            outcome.pause, outcome.way = error.retry_after or 0.0, error.way
            raise
        except EnvbuildError as error:
            outcome.answered = None if isinstance(error, DeadlineExceeded) else True
            raise
        outcome.answered = True
        return result


def _pause(attempt: int, error: Trouble, deadline: Deadline) -> bool:
    """Wait before the next attempt; False if that would be too long."""
    # Full jitter: many clients that failed together must not come back together.
    seconds = random.uniform(0, min(_FIRST_PAUSE * 2 ** min(attempt, 9), _LONGEST_PAUSE))  # noqa: S311
    if error.outage:  # the circuit breaker has its own pauses
        seconds = min(seconds, _FIRST_PAUSE)
    if error.retry_after is not None:
        if error.retry_after > _LONGEST_WAIT:
            return False
        seconds += error.retry_after
    if seconds >= deadline.remaining():
        return False
    deadline.sleep(seconds)
    return True


def failure(status: int, headers: Mapping[str, str], body: bytes, what: str) -> EnvbuildError:
    """The error that an answer means; ``what`` names the request and the repository."""
    said = f"{what}: the registry answered {status}{_said(body)}"
    if status == 404:
        return NotFound(said)
    if status in {401, 403}:
        return Unauthorized(said, hint="log in with `docker login HOST`, or check what the account may do")
    if status in _BUSY or status > 504:
        wait = parse_retry_after(headers.get("Retry-After"))
        return Trouble(said, retry_after=wait, outage=status in _OUTAGES)
    if status == 405:
        return RegistryError(said, hint="the registry does not allow this operation; its settings may")
    return RegistryError(said, hint="this is not an answer that envbuild knows; check the registry's address")


def refused_manifest(status: int, headers: Mapping[str, str], body: bytes, what: str) -> EnvbuildError:
    """The error that an answer to putting a manifest means."""
    unknown = [error for error in _errors(body) if str(error.get("code", "")).endswith("_UNKNOWN")]
    unknown = [error for error in unknown if error["code"] != "NAME_UNKNOWN"]
    if status == 404 and not unknown:
        return RegistryError(
            f"{what}: there is no such repository", hint="make the repository in the registry first"
        )
    if status not in {400, 404} or not unknown:
        return failure(status, headers, body, what)
    found = re.findall(r"sha256:([0-9a-f]{64})", json.dumps([error.get("detail") for error in unknown]))
    missing = tuple(Digest(digits) for digits in dict.fromkeys(found))
    names = ", ".join(str(digest) for digest in missing) or "something that it names"
    return MissingContent(f"{what}: the repository lacks {names}", missing)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, given in seconds or as a date; None if it says nothing."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    from email.utils import parsedate_to_datetime

    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _errors(body: bytes) -> list[dict[str, Any]]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return []
    errors = document.get("errors") if isinstance(document, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


def _said(body: bytes) -> str:
    """The registry's own words, made harmless for a terminal and a log."""
    words = "; ".join(
        " ".join(str(error[name]) for name in ("code", "message") if error.get(name))
        for error in _errors(body)
    )
    words = "".join(letter if letter.isprintable() else " " for letter in words)[:300]
    return f" ({words})" if words else ""


def redirected(url: str, location: str | None, what: str) -> str:
    """The URL that a redirect leads to.

    Raises:
        RegistryError: It leads nowhere, where some readers find another server than others do, or from
            HTTPS to plain HTTP.
    """
    here, location = read_url(url), location or ""
    try:
        seen = here.join(location)
    except UrlError as error:
        raise RegistryError(
            f"{what}: the registry redirects to {location[:200]!r}, which is no place on the web: {error}"
        ) from None
    if not location:
        raise RegistryError(f"{what}: the registry redirects, and does not say where to")
    if here.scheme == "https" and seen.scheme != "https":
        raise RegistryError(
            f"{what}: the registry redirects from HTTPS to plain HTTP at {seen.netloc}; refused"
        )
    return str(seen)


def same_origin(url: str, base_url: str) -> bool:
    """Whether a URL is on the very scheme, host and port; credentials never go anywhere else."""
    return origin(url) == origin(base_url)


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL that was read before."""
    return read_url(url).origin


def manifest_url(base_url: str, repository: Repository, reference: Tag | Digest) -> str:
    """Where a manifest is."""
    return f"{base_url}/v2/{repository.path}/manifests/{reference}"


def name_of(repository: Repository, reference: Tag | Digest) -> str:
    """How people write it: ``repository@sha256:…`` or ``repository:tag``."""
    return f"{repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"


def checked_manifest(
    raw: bytes, headers: Mapping[str, str], reference: Tag | Digest, what: str
) -> Manifest | ImageIndex:
    """The manifest in an answer's body, hashed and compared.

    Raises:
        IntegrityError: It is too large, is no manifest, or has another digest than was asked for or promised.
    """
    if len(raw) > MAX_MANIFEST:
        raise IntegrityError(f"{what} has more than {MAX_MANIFEST} bytes, which no manifest needs")
    if isinstance(reference, Digest):
        reference.verify(raw, what)
    promised = headers.get("Docker-Content-Digest", "")
    if promised.startswith("sha256:") and promised != str(seen := Digest.of(raw)):
        raise IntegrityError(f"{what} has digest {seen}, the registry says {promised[:80]!r}")
    return parse_manifest(raw, headers.get("Content-Type"), what)
