"""How the time and the memory of a reader grow with what it is given.

A reader is called in this process, under an alarm on CPU time: regular expressions look at signals while they
search, so that even an exponential one comes back.
"""

from __future__ import annotations

import contextlib
import gc
import re
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_GROWTH: Final = 2.5
"""How many times longer something of twice the size may take."""
MOST_MEMORY: Final = 200 << 20
_QUICK: Final = 0.003
"""Seconds of CPU time that are no sign of anything."""
_MEASURED: Final = 0.05
_LARGEST: Final = 1 << 17
"""What takes no measurable time at this size grows slowly enough."""
_ALARM: Final = 2.0
_SIZES: Final = (20, 40, 250)
"""Sizes at which what grows exponentially is seen, before anything larger is tried."""


class TooLongError(Exception):
    """A call took longer than any linear one does, or more memory."""


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Stop calls that go far beyond their time, and have those fail that take far too much memory."""

    def ring(_number: int, _frame: object) -> None:
        raise TooLongError

    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, ring)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 4 * MOST_MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, before)


def seconds_of(read: Callable[[Any], object], given: Any, *, tries: int = 1) -> float:
    """The CPU time of a call, the least of several; a refusal is an answer. Call it under :func:`bounds`.

    Raises:
        KeyboardInterrupt: The call was stopped.
    """
    least = float("inf")
    for _ in range(tries):
        re.purge()  # or what is compiled of a pattern once would make the second call a quick one
        gc.disable()
        signal.setitimer(signal.ITIMER_PROF, _ALARM)
        start = time.process_time()
        try:
            with contextlib.suppress(Exception):
                _call(read, given)
        finally:
            least = min(least, time.process_time() - start)
            signal.setitimer(signal.ITIMER_PROF, 0)
            gc.enable()
    return least


def _call(read: Callable[[Any], object], given: Any) -> None:
    """Call a reader. What it is stopped by is no answer, and must pass all who suppress errors."""
    try:
        read(given)
    except (TooLongError, MemoryError) as error:
        raise KeyboardInterrupt from error


def fault(read: Callable[[Any], object], make: Callable[[int], Any], size: int) -> str | None:
    """What is wrong with how a reader's time grows; None if nothing is.

    Args:
        read: The reader.
        make: Gives it something of about a size.
        size: The size at which it is tried.
    """
    try:
        return _fault(read, make, size)
    except KeyboardInterrupt:
        return (
            f"stopped: over {_ALARM} s of CPU time, or {MOST_MEMORY * 4} bytes, for less than size {2 * size}"
        )


def _fault(read: Callable[[Any], object], make: Callable[[int], Any], size: int) -> str | None:
    for small in (*(each for each in _SIZES if each < size), size // 4):
        before = seconds_of(read, make(small))
    if (after := seconds_of(read, make(size))) < 5 * before + _QUICK:
        return None
    before, after = (seconds_of(read, make(each), tries=3) for each in (size // 4, size))
    if after < 5 * before + _QUICK:
        return None
    while after < _MEASURED:
        if (size := 2 * size) > _LARGEST:
            return None
        after = seconds_of(read, make(size))
    found = ""
    for _ in range(3):  # other processes share the caches of this one's core
        once, twice = (seconds_of(read, make(each), tries=1) for each in (size, 2 * size))
        if twice <= MOST_GROWTH * once + _QUICK:
            return None
        found = f"{once:.4f} s for size {size}, {twice:.4f} s for twice that"
        if twice > 3.4 * once:
            break
    return found


@contextlib.contextmanager
def most_memory() -> Iterator[list[int]]:
    """The bytes by which this process grows at the most meanwhile; the list holds them afterwards."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, grown = _memory("VmRSS"), [0]
    try:
        yield grown
    finally:
        grown[0] = _memory("VmHWM") - before


def _memory(field: str) -> int:
    found = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(found[0].split()[1]) << 10
