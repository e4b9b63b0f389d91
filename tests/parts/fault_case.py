"""What can go wrong between envbuild and a registry, by name; and a case in which one of it does."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from parts.http_messages import Message

USERNAME: Final = "alice"
PASSWORD: Final = "correct horse"
BASIC: Final = "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
"""The header that holds both."""

OPERATIONS: Final = (
    "auth",
    "get tag",
    "get manifest",
    "head blob",
    "get blob",
    "start upload",
    "patch upload",
    "put upload",
    "mount",
    "put manifest",
    "put tag",
    "referrers",
)
"""What registries are asked. envbuild never sends HEAD for a manifest: tags and digests are told apart."""

FAULTS: Final = (
    "429 seconds",
    "429 date",
    "429",
    "429 10 h",
    "500",
    "503",
    "reset",
    "truncated",
    "one byte a second",
    "stall",
    "corrupt",
    "other body",
    "wrong length",
    "401 once",
    "401 loop",
    "redirect to another host",
    "redirect loop",
    "404 to 200",
    "200 to 404",
    "tls",
)
TRANSIENT: Final = frozenset(
    {"429 seconds", "429 date", "429", "500", "503", "reset", "truncated", "stall", "401 once", "tls"}
)
"""Those that a repetition heals."""
WRONG: Final = frozenset({"corrupt", "other body", "wrong length"})
"""Bodies that are wrong: of a blob, one such answer is healed."""


@dataclass
class Case:
    """What happens to the requests for one case's repositories.

    Attributes:
        operation: Which of :data:`OPERATIONS` fails; empty for none.
        fault: How, one of :data:`FAULTS`.
        times: How often; None for always.
        skip: How many requests of the operation are answered as they should be before.
        random: Decides what a fault leaves open.
        foreign: An answer's body that belongs to something else.
        cut_after: Every connection is reset from this request on, before the registry sees it.
        token_seconds: How long a token holds.
        asked: What was asked, as operation and path, in order.
        failed: How often the fault was made.
    """

    operation: str = ""
    fault: str = ""
    times: int | None = None
    skip: int = 0
    random: Random = field(default_factory=lambda: Random(0))
    foreign: bytes = b"{}"
    cut_after: int | None = None
    token_seconds: float = 300.0
    asked: list[tuple[str, str]] = field(default_factory=list)
    answers: list[tuple[str, str, int]] = field(default_factory=list)
    failed: int = 0

    def strikes(self, operation: str) -> bool:
        """Whether this request fails; counts it."""
        if operation != self.operation or (self.times is not None and self.failed >= self.times):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.failed += 1
        return True


def operation_of(request: Message) -> str:
    """Which of :data:`OPERATIONS` a request is."""
    path = urlsplit(request.target).path
    if path == "/token":
        return "auth"
    if "/referrers/" in path or "/manifests/sha256-" in path:
        return "referrers"
    if "/manifests/" in path:
        kind = "manifest" if "/manifests/sha256:" in path else "tag"
        return f"{request.method.lower()} {kind}"
    if "/blobs/uploads/" in path:
        if request.method == "POST":
            return "mount" if "mount=" in request.target else "start upload"
        return f"{request.method.lower()} upload"
    return f"{request.method.lower()} {'blob' if '/blobs/' in path else 'other'}"


def case_of(target: str) -> str:
    """The first path component of the repository that a request is about."""
    parts = urlsplit(target)
    if parts.path == "/token":
        scopes = parse_qs(parts.query).get("scope", [""])
        return scopes[0].partition(":")[2].partition("/")[0]
    return parts.path.removeprefix("/v2/").partition("/")[0]
