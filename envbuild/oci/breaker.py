"""A circuit breaker for each host, and what else all users of the same settings share of a host.

A host that fails is in an outage from its first failure on until it answers somebody. While that lasts, one
caller at a time asks it, on trial and at growing intervals; the others wait for the outcome, each until its
own time is up. Requests that were under way together and fail together are one failure. A host that never
answered yet is asked by one caller first, so that many jobs that start while it is down do not all find
that out for themselves.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from envbuild.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.deadline import Deadline

FAILURES: Final = 2
"""Failures in a row after which a host that answered before is asked on trial only."""
PAUSES: Final = (0.1, 0.6, 2.0, 4.6, 4.6, 4.6, 4.6, 4.6, 4.6)
"""Seconds before each trial: whoever waits learns within 5 s of the end of an outage of 1 to 30 s."""
LONGEST_PAUSE: Final = 15.0
MOST_TRIALS, WINDOW = 10, 60.0
"""A host in an outage is asked at most so often in so many seconds."""
PATIENCE: Final = 61.0
"""Seconds for which a call without a deadline waits an outage out: a minute, and the trial after it."""
STRANGERS: Final = 1
"""Requests at once to a host that never answered yet, or failed just now."""
TOLD_AFTER, TOLD_EVERY = 1.0, 10.0
"""Seconds of an outage after which people are told that it is waited out, and between two such lines."""
_JITTER: Final = 0.05
_SPREAD: Final = 0.2
"""Seconds over which those who waited spread their requests when the host is back."""
_LONGEST_ATTEMPT: Final = 30.0


class CircuitOpen(Unavailable):
    """A host was not asked, because it is in an outage that lasted too long for the caller."""


@dataclass(slots=True)
class Outcome:
    """How a guarded request went.

    Attributes:
        answered: Whether the host answered, be it with an error of the caller's making; None if that cannot
            be said.
        reason: What went wrong, in words.
        pause: Seconds for which the host asks to be left alone.
        way: What to look at on the way to the host, in words, or None.
    """

    answered: bool | None = None
    reason: str = ""
    pause: float = 0.0
    way: str | None = None


class _Ticket(NamedTuple):
    """A request under way: which failure it would be, since when, and what it was let in as."""

    number: int
    entered: float
    is_trial: bool = False
    is_stranger: bool = False


def ignore(text: str) -> None:
    """Tell nobody."""


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
        self._has_answered = False
        self._is_known = False
        self._strangers = 0
        self._failures = 0
        self._since = 0.0
        self._next = 0.0
        self._on_trial = False
        self._asked: deque[float] = deque(maxlen=MOST_TRIALS)
        self._reason = ""
        self._way: str | None = None
        self._told = -math.inf

    @contextlib.contextmanager
    def guard(
        self, deadline: Deadline, patience: float | None = None, tell: Callable[[str], None] = ignore
    ) -> Iterator[Outcome]:
        """One request to the host, which tells the outcome; in an outage it waits for its turn.

        Args:
            deadline: When the call ends.
            patience: Seconds of an outage that are waited out at most; None for as long as the deadline
                allows, or :data:`PATIENCE` where there is none.
            tell: Told what is waited for.

        Raises:
            CircuitOpen: The outage lasts longer than the caller waits.
            DeadlineExceeded: The time ran out while others found out whether the host answers.
        """
        ticket = self._enter(deadline, patience, tell)
        outcome = Outcome()
        try:
            yield outcome
        finally:
            self._leave(outcome, ticket)

    def waits(self, deadline: Deadline, patience: float | None) -> bool:
        """Whether the host is in an outage that a caller waits out; arguments as :meth:`guard`."""
        with self._changed:
            return self._is_open() and self._left(deadline, patience) > 0

    def tell(self, text: str, tell: Callable[[str], None]) -> None:
        """Tell people something of this host, though not too often."""
        with self._changed:
            now = time.monotonic()
            if now - self._told < TOLD_EVERY:
                return
            self._told = now
        tell(text)

    def _enter(self, deadline: Deadline, patience: float | None, tell: Callable[[str], None]) -> _Ticket:
        waited = False
        while True:
            with self._changed:
                ticket = self._admit()
                if ticket is None:
                    waited = waited or self._is_open()
                    self._wait(deadline, patience)
                    outage = self._clock() - self._since if self._is_open() else 0.0
                    left = self._left(deadline, patience)
            if ticket is not None:
                break
            if outage >= TOLD_AFTER:
                self.tell(f"{self._why()} (for up to {left:.0f} s more)", tell)
        if waited and not ticket.is_trial:  # those who waited together do not come together
            deadline.sleep(random.uniform(0, _SPREAD))  # noqa: S311
        return ticket

    def _admit(self) -> _Ticket | None:
        """Let a request in, or say that it must wait; the lock is held."""
        now = self._clock()
        if self._is_open():
            if self._on_trial or now < self._next:
                return None
            self._on_trial = True
            self._asked.append(now)
            return _Ticket(self._failures, now, is_trial=True)
        if self._is_known:
            return _Ticket(self._failures, now)
        if self._strangers >= STRANGERS:
            return None
        self._strangers += 1
        self._asked.append(now)
        return _Ticket(self._failures, now, is_stranger=True)

    def _wait(self, deadline: Deadline, patience: float | None) -> None:
        """Wait until something may have changed; the lock is held."""
        if not self._is_open():
            deadline.check(f"waiting for {self._host} to answer others")
            self._changed.wait(deadline.slice())
            return
        left = self._left(deadline, patience)
        if left <= 0:
            raise self._refusal()
        turn = math.inf if self._on_trial else max(self._next - self._clock(), 0.0)
        self._changed.wait(min(left, turn, deadline.slice()))

    def _is_open(self) -> bool:
        """Whether the host is in an outage; the lock is held."""
        return self._failures >= (FAILURES if self._has_answered else 1)

    def _left(self, deadline: Deadline, patience: float | None) -> float:
        """Seconds for which a caller still waits for the host; the lock is held."""
        if patience is None:
            patience = PATIENCE if deadline.remaining() == math.inf else math.inf
        return min(deadline.remaining(), self._since + patience - self._clock())

    def _leave(self, outcome: Outcome, ticket: _Ticket) -> None:
        with self._changed:
            self._strangers -= ticket.is_stranger
            self._on_trial = self._on_trial and not ticket.is_trial
            if outcome.answered:
                self._has_answered = self._is_known = True
                self._failures = 0
                self._asked.clear()
            elif outcome.answered is False or ticket.is_trial:
                self._fail(outcome, ticket)
            self._changed.notify_all()

    def _fail(self, outcome: Outcome, ticket: _Ticket) -> None:
        """Count a failure, unless it belongs to one that was counted; the lock is held."""
        if ticket.number != self._failures:
            return
        now = self._clock()
        if not self._failures:
            self._since = max(ticket.entered, now - _LONGEST_ATTEMPT)
        self._reason, self._way = outcome.reason or self._reason, outcome.way or self._way
        self._is_known = False
        self._failures += 1
        if self._is_open():
            done = self._failures - (FAILURES if self._has_answered else 1)
            pause = max(PAUSES[done] if done < len(PAUSES) else LONGEST_PAUSE, min(outcome.pause, WINDOW))
            # Processes that share nothing must not come back together either.
            self._next = now + pause * random.uniform(1, 1 + _JITTER)  # noqa: S311
            if len(self._asked) == MOST_TRIALS:
                self._next = max(self._next, self._asked[0] + WINDOW)

    def _why(self) -> str:
        """The last failure, for a sentence that names the host already."""
        return self._reason.removeprefix(f"{self._host} could not be asked: ")

    def _refusal(self) -> CircuitOpen:
        lasted = max(self._clock() - self._since, 0.0)
        way = self._way or "check the network and the registry"
        return CircuitOpen(
            f"{self._host} has been in trouble for {lasted:.0f} s: {self._why()}",
            hint=f"{way}; --timeout says how long to wait for it",
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
