"""What is going on, on standard error: a live display on a terminal, plain or JSON lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Protocol

import click

from envbuild.cli.lines import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.cli.options import Common
    from envbuild.progress import Event


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
    """One line an event that matters."""

    def __init__(self) -> None:
        self._guard = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Print the event's line, if it has one."""
        line = describe(event)
        if line is not None:
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
