"""One deadline a call, shared by everything that the call does, in all its threads."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envbuild.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Deadline:
    """A moment on the monotonic clock after which a call must end; an interrupted call ends before.

    Attributes:
        at: Seconds on :func:`time.monotonic`'s clock; infinity for no deadline.
    """

    at: float = math.inf
    _ended: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """A deadline so many seconds from now; None means none."""
        deadline = cls() if seconds is None else cls(time.monotonic() + seconds)
        _running[id(deadline)] = deadline
        return deadline

    def remaining(self, at_most: float = math.inf) -> float:
        """Seconds left, never below zero and never above ``at_most``."""
        if self._ended.is_set():
            return 0.0
        return min(max(self.at - time.monotonic(), 0.0), at_most)

    def check(self, doing: str) -> None:
        """Raise :class:`DeadlineExceeded` if the time is up, or the call ended, while ``doing`` something."""
        if self._ended.is_set():
            raise DeadlineExceeded(f"the call was interrupted while {doing}", hint=_HINT)
        if time.monotonic() >= self.at:
            raise DeadlineExceeded(f"the deadline passed while {doing}", hint=f"raise --timeout, or {_HINT}")

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the call goes on."""
        self._ended.wait(self.remaining(seconds))

    def slice(self) -> float:
        """How long to wait for something before :meth:`check` is called again."""
        return self.remaining(_POLL_SECONDS)

    def end(self) -> None:
        """Have every thread of the call end at its next :meth:`check`: who waits for it was interrupted."""
        if self is not NO_DEADLINE:
            self._ended.set()


_HINT = "try again: finished work is kept"
_running: weakref.WeakValueDictionary[int, Deadline] = weakref.WeakValueDictionary()
NO_DEADLINE = Deadline()


def end_all() -> None:
    """End all calls that are under way in this process; those that begin later go on."""
    for deadline in list(_running.values()):
        deadline.end()


_cleaning: list[None] = []


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """What an interrupted process may take a little longer for: a container would stay, or a build go on."""
    _cleaning.append(None)
    try:
        yield
    finally:
        _cleaning.pop()


def is_cleaning_up() -> bool:
    """Whether some thread does."""
    return bool(_cleaning)
