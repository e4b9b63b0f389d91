"""A circuit breaker for each host, and what else all users of the same settings share of a host.

A host that failed several times in a row is left alone for a while, and is then asked by one caller on trial.
A host that never answered yet is asked by few callers at once, so that many jobs that start while it is
down do not all find that out for themselves.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envbuild.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.deadline import Deadline

FAILURES: Final = 5
"""Failures in a row after which a host is left alone."""
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 60.0
"""Seconds before the first trial; doubled after each trial that fails."""
STRANGERS: Final = 2
"""Requests at once to a host that never answered yet."""


class CircuitOpen(Unavailable):
    """A host was not asked, because it failed several times just before."""


@dataclass(slots=True)
class Outcome:
    """How a guarded request went.

    Attributes:
        answered: Whether the host answered, be it with an error of the caller's making; None if that cannot
            be said.
        reason: What went wrong, in words.
    """

    answered: bool | None = None
    reason: str = ""


class Breaker:
    """The circuit breaker of one host. May be used by several threads.

    Args:
        host: The host's name, for messages.
        clock: Seconds that only grow.
    """

    def __init__(self, host: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._clock = clock
        self._changed = threading.Condition()
        self._known = False
        self._strangers = 0
        self._failures = 0
        self._pause = 0.0
        self._until = 0.0
        self._on_trial = False
        self._reason = ""

    @contextlib.contextmanager
    def guard(self, deadline: Deadline) -> Iterator[Outcome]:
        """One request to the host, which tells the outcome.

        Raises:
            CircuitOpen: The host is left alone for now.
            DeadlineExceeded: The time ran out while others found out whether the host answers.
        """
        trial, stranger = self._enter(deadline)
        outcome = Outcome()
        try:
            yield outcome
        finally:
            self._leave(outcome, trial=trial, stranger=stranger)

    def _enter(self, deadline: Deadline) -> tuple[bool, bool]:
        with self._changed:
            while True:
                if self._failures >= FAILURES:
                    if self._on_trial or self._clock() < self._until:
                        raise self._refusal()
                    self._on_trial = True
                    return True, False
                if self._known:
                    return False, False
                if self._strangers < STRANGERS:
                    self._strangers += 1
                    return False, True
                deadline.check(f"waiting for {self._host} to answer others")
                self._changed.wait(deadline.slice())

    def _leave(self, outcome: Outcome, *, trial: bool, stranger: bool) -> None:
        with self._changed:
            self._strangers -= stranger
            self._on_trial = self._on_trial and not trial
            if outcome.answered:
                self._known, self._failures, self._pause = True, 0, 0.0
            elif outcome.answered is False or trial:
                self._fail(outcome.reason, trial=trial)
            self._changed.notify_all()

    def _fail(self, reason: str, *, trial: bool) -> None:
        self._reason = reason or self._reason
        self._failures += 1
        # Requests that were on their way when the host was given up say nothing new.
        if trial or self._failures == FAILURES:
            self._pause = min(2 * self._pause, LONGEST_PAUSE) or FIRST_PAUSE
            self._until = self._clock() + self._pause

    def _refusal(self) -> CircuitOpen:
        left = max(self._until - self._clock(), 0.0)
        return CircuitOpen(
            f"{self._host} was not asked: it failed {self._failures} times in a row, the last time so: "
            f"{self._reason}",
            hint=f"it is asked again in {left:.0f} s; check the network and the registry",
        )


class Breakers:
    """The circuit breakers of all hosts. May be used by several threads.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._breakers: dict[str, Breaker] = {}

    def __getitem__(self, host: str) -> Breaker:
        with self._guard:
            if host not in self._breakers:
                self._breakers[host] = Breaker(host, self._clock)
            return self._breakers[host]
