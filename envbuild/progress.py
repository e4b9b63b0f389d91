"""What is going on, told to whoever wants to show it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Final

TELL_EVERY: Final = 0.2
"""Seconds between two events of one thing under way."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during a call.

    Attributes:
        phase: What envbuild is doing: ``resolve``, ``solve``, ``plan``, ``fetch``, ``layer``, ``step``,
            ``push``, ``load``, ``output`` or ``wait`` (for a registry that does not answer).
        subject: What it is doing it to: a key, a package, a repository, a Dockerfile step.
        state: ``start``, ``progress``, ``output``, ``reused`` or ``done``.
        done: Bytes (or items) handled so far.
        total: Bytes (or items) in all; 0 where it is not known.
        text: A line of output or a remark; may be empty.
    """

    phase: str
    subject: str
    state: str
    done: int = 0
    total: int = 0
    text: str = ""


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The progress of a caller who does not want to know."""


class Meter:
    """Tells how far one thing is, now and then.

    Args:
        progress: Is told.
        phase: The phase of its events.
        subject: The subject of its events.
        total: Bytes in all; 0 where it is not known.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        progress: Progress,
        phase: str,
        subject: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._phase = phase
        self._subject = subject
        self._total = total
        self._clock = clock
        self._told = clock()
        self.done = 0

    def __call__(self, size: int) -> None:
        """So many bytes more are done."""
        self.done += size
        now = self._clock()
        if now - self._told >= TELL_EVERY:
            self._told = now
            self._progress(Event(self._phase, self._subject, "progress", self.done, self._total))


class Metered(io.RawIOBase):
    """A stream whose bytes are counted as they are read; closing it closes the stream.

    Args:
        stream: The stream.
        meter: Counts.
    """

    def __init__(self, stream: IO[bytes], meter: Callable[[int], None]) -> None:
        super().__init__()
        self._stream = stream
        self._meter = meter

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """As the stream."""
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As the stream."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """As the stream."""
        return self._stream.tell()

    def read(self, size: int = -1, /) -> bytes:
        """As the stream."""
        content = self._stream.read(size)
        self._meter(len(content))
        return content

    def readinto(self, buffer: Any, /) -> int:
        """As the stream."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the stream too."""
        self._stream.close()
        super().close()
