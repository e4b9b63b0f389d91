"""What the events of a call come to: counts, what is under way, and when it will be done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from envbuild.cli.lines import under_way
from envbuild.cli.options import amount
from envbuild.errors import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.progress import Event

_ENDED: Final = {"done", "reused"}
_SHOWN: Final = 4
"""How many things under way are named."""

_DOING: Final = {
    "resolve": "building",
    "solve": "solving",
    "fetch": "making layers",
    "layer": "making layers",
    "step": "running steps",
    "push": "sending",
    "load": "loading into the engine",
}
_UNDER_WAY: Final = {"fetch", "layer", "step", "push"}
_COST: Final = {"fetch": 1, "layer": 2, "push": 1}
"""What a byte of a package costs in each phase, about, compared with fetching it."""

_LEAST_SECONDS: Final = 1.0
_LEAST_SHARE: Final = 0.03
"""Before so many seconds, and so much of the work, nobody knows when it will be done."""


@dataclass
class _Work:
    """Bytes of packages on their way to being layers that were sent.

    Attributes:
        total: Bytes of the packages to fetch.
        began: When that was known.
        done: By phase, the bytes of what has passed it.
        partly: By phase and subject, how far it is.
    """

    total: int = 0
    began: float = 0.0
    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COST, 0))
    partly: dict[tuple[str, str], float] = field(default_factory=dict)

    def share(self) -> float:
        """How much is done, from 0 to 1."""
        if not self.total:
            return 0.0
        cost: float = sum(_COST[phase] * size for phase, size in self.done.items())
        cost += sum(_COST[phase] * size for (phase, _), size in self.partly.items())
        return min(1.0, cost / (self.total * sum(_COST.values())))


class Tally:
    """What the events so far come to.

    Args:
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._work = _Work(began=self._started)
        self._sizes: dict[str, int] = {}
        self.doing = ""
        self.packages = 0
        self.made = 0
        self.reused = 0
        self.bytes_made = 0
        self.bytes_sent = 0
        self.running: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, event: Event) -> None:
        """Count an event."""
        thing = (event.phase, event.subject)
        if event.phase == "plan":
            self._plan(event)
        elif event.state in {"start", "progress"}:
            self.doing = _DOING.get(event.phase, event.phase)
            if event.phase in _UNDER_WAY:
                self.running[thing] = (event.done, event.total)
                self._advance(event)
        elif event.state in _ENDED:
            self.running.pop(thing, None)
            self._count(event)

    def _plan(self, event: Event) -> None:
        if event.subject == "packages":
            self._work = _Work(event.total, self._clock())

    def _advance(self, event: Event) -> None:
        """How far a package is in its phase, in bytes of the package."""
        if event.phase == "layer" and event.state == "start":
            self._sizes[event.subject] = event.total
        if event.phase in _COST and event.total:
            size = self._sizes.get(event.subject, 0) if event.phase == "push" else event.total
            self._work.partly[event.phase, event.subject] = size * event.done / event.total

    def _count(self, event: Event) -> None:
        if event.phase in _COST and event.state == "done":
            self._work.partly.pop((event.phase, event.subject), None)
            whole = self._sizes.get(event.subject, 0) if event.phase == "push" else event.total
            self._work.done[event.phase] += whole
        if event.phase == "solve":
            self.packages += event.done
        elif event.phase == "push" and event.state == "done":
            self.bytes_sent += event.done
        elif event.phase == "layer":
            self.doing = _DOING["layer"]
            self.made += event.state == "done"
            self.reused += event.state == "reused"
            self.bytes_made += event.done if event.state == "done" else 0

    def left(self) -> float | None:
        """Seconds until the layers are made and sent, about; None where nobody can say."""
        share, passed = self._work.share(), self._clock() - self._work.began
        if passed < _LEAST_SECONDS or not _LEAST_SHARE <= share < 1:
            return None
        return passed * (1 - share) / share

    def headline(self) -> str:
        """One line: what, how far, since when, for how long."""
        parts = [self.doing or "looking"]
        if self.made or self.reused:
            parts.append(f"{self.made + self.reused} of {counted(self.packages, 'package')}")
            parts.append(f"{self.made} made, {self.reused} known")
        if self.bytes_sent:
            parts.append(f"{amount(self.bytes_sent)} sent")
        parts.append(_clocked(self._clock() - self._started))
        if (left := self.left()) is not None:
            parts.append(f"about {_clocked(left)} left")
        return " · ".join(parts)

    def details(self) -> list[str]:
        """What is under way, a line each, the biggest first."""
        found = sorted(self.running.items(), key=lambda each: (-each[1][1], each[0]))
        lines = [under_way(*thing, *how_far) for thing, how_far in found[:_SHOWN]]
        return [*lines, f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else lines


def _clocked(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02}"
