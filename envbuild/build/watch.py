"""Ends work that does not end by itself: a build in an engine, a subprocess, a stream that stands still."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self

from envbuild.deadline import Deadline
from envbuild.errors import BuildLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_GRACE: float = 5.0


@dataclass(slots=True)
class Watch:
    """A context manager that calls what it was given when the time is up. Made by :meth:`over`.

    Attributes:
        deadline: The call's deadline.
        limit: The build's own limit, as a moment.
        seconds: The limit in seconds, for the message.
        doing: What is going on, for the message.
        expired: Whether the time was up while the work was going on.
    """

    deadline: Deadline
    limit: Deadline
    seconds: float | None
    doing: str
    expired: bool = False
    _stops: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _timer: threading.Timer | None = None

    @classmethod
    def over(cls, deadline: Deadline, seconds: float | None, doing: str) -> Self:
        """A watch over a call that has a deadline and, maybe, a limit of its own from now on."""
        return cls(deadline, Deadline.after(seconds), seconds, doing)

    def __enter__(self) -> Self:
        self.check()
        left = min(self.deadline.remaining(), self.limit.remaining())
        if left < math.inf:
            self._timer = threading.Timer(min(left, threading.TIMEOUT_MAX), self._expire)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        while (left := min(self.deadline.remaining(), self.limit.remaining())) > 0:
            time.sleep(left)  # a timer may be early by a little, and check() must not disagree with it
        with self._lock:
            self.expired = True
            stops, self._stops = self._stops, []
        for stop in stops:
            with contextlib.suppress(Exception):
                stop()

    def on_expiry(self, stop: Callable[[], None]) -> None:
        """Have something called when the time is up; at once if it is."""
        with self._lock:
            if not self.expired:
                self._stops.append(stop)
                return
        stop()

    def check(self) -> None:
        """Raise if the time is up.

        Raises:
            BuildLimit: The build's own limit was reached.
            DeadlineExceeded: The call's deadline passed.
        """
        now = time.monotonic()
        if now >= self.limit.at and self.limit.at <= self.deadline.at:
            raise BuildLimit(
                f"the limit of {self.seconds:g} seconds passed while {self.doing}",
                hint="raise the limit, or make the steps do less",
            )
        self.deadline.check(self.doing)

    def timeout(self, connect: float) -> tuple[float, float | None]:
        """Time-outs for a request: to connect, and between two reads."""
        left = min(self.deadline.remaining(), self.limit.remaining())
        return (max(min(connect, left), 0.1), None if left == math.inf else left + _GRACE)

    def each(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks; raises between two of them when the time is up."""
        for chunk in chunks:
            self.check()
            yield chunk


class _Watched(io.RawIOBase):
    def __init__(self, stream: Any, watch: Watch) -> None:
        super().__init__()
        self._stream, self._watch = stream, watch

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._watch.check()
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def watched(stream: Any, watch: Watch) -> IO[bytes]:
    """The same stream; reading raises when the time is up."""
    return io.BufferedReader(_Watched(stream, watch), 1 << 20)
