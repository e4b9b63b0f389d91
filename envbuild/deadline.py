"""One deadline a call, shared by everything that the call does."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from envbuild.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock after which a call must end.

    Attributes:
        at: Seconds on :func:`time.monotonic`'s clock; infinity for no deadline.
    """

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """A deadline so many seconds from now; None means none."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    def remaining(self, at_most: float = math.inf) -> float:
        """Seconds left, never below zero and never above ``at_most``."""
        return min(max(self.at - time.monotonic(), 0.0), at_most)

    def check(self, doing: str) -> None:
        """Raise :class:`DeadlineExceeded` if the time is up while ``doing`` something."""
        if time.monotonic() >= self.at:
            raise DeadlineExceeded(
                f"the deadline passed while {doing}",
                hint="raise --timeout, or try again: finished work is kept",
            )


NO_DEADLINE = Deadline()
