"""What is going on, on standard error: a live display on a terminal, plain or JSON lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.cli.options import Common
    from envbuild.progress import Event

PATIENCE: Final = 10.0
"""Seconds without a line after which plain output says what is under way."""


class Display(Protocol):
    """Shows events. May be called by several threads."""

    def __call__(self, event: Event) -> None:
        """Show an event, or note it."""
        ...

    def note(self, text: str) -> None:
        """Say something to a person."""
        ...

    def pause(self) -> None:
        """Clear the screen of what moves, so that a result can be printed; the next event brings it back."""
        ...


@contextlib.contextmanager
def shown(options: Common) -> Iterator[Display]:
    """The display that fits the options and what standard error is."""
    display = _choose(options)
    try:
        yield display
    finally:
        display.pause()


def _choose(options: Common) -> Display:
    if options.quiet:
        return Quiet()
    if options.as_json:
        return JsonLines()
    if is_live():
        from envbuild.cli.live import Live

        return Live()
    return Plain()


def is_live() -> bool:
    """Whether standard error is a terminal on which lines can be drawn again."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM", "dumb") != "dumb"


class Quiet:
    """Shows nothing."""

    def __call__(self, event: Event) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def pause(self) -> None:
        """Nothing."""


class Plain:
    """One line an event that matters, and now and then one of what takes long.

    Args:
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._guard = threading.Lock()
        self._clock = clock
        self._told = clock()

    def __call__(self, event: Event) -> None:
        """Print the event's line, if it has one."""
        from envbuild.cli.lines import describe, under_way  # a hit has no events

        line = describe(event)
        if line is None and event.state == "progress" and self._clock() - self._told >= PATIENCE:
            line = under_way(event.phase, event.subject, event.done, event.total)
        if line is not None:
            self._told = self._clock()
            self.note(line)

    def note(self, text: str) -> None:
        """Print a line."""
        with self._guard:
            click.echo(text, err=True)

    def pause(self) -> None:
        """Nothing moves here."""


class JsonLines(Quiet):
    """One JSON object an event."""

    def __init__(self) -> None:
        self._guard = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Print the event."""
        document: dict[str, Any] = {
            "event": event.phase,
            "subject": event.subject,
            "state": event.state,
            "done": event.done,
            "total": event.total,
            "text": event.text,
        }
        with self._guard:
            click.echo(json.dumps(document, ensure_ascii=False), err=True)
