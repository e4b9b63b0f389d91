"""What is going on, on standard error: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Self

import click

from envbuild.cli.options import amount
from envbuild.progress import silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.cli.options import Common
    from envbuild.progress import Event, Progress


@contextlib.contextmanager
def shown(options: Common) -> Iterator[Progress]:
    """The progress that fits the options and what standard error is."""
    if options.quiet:
        yield silent
    elif sys.stderr.isatty():
        with _Live() as live:
            yield live
    else:
        yield _Plain()


class _Plain:
    """One line an event that matters."""

    def __init__(self) -> None:
        self._guard = threading.Lock()

    def __call__(self, event: Event) -> None:
        line = describe(event)
        if line is not None:
            with self._guard:
                click.echo(line, err=True)


class _Live:
    """A line that says what is being done, under the lines that stay; begun with the first event."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[str] = set()
        self._status: object | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, event: Event) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.status import Status

        with self._guard:
            if self._status is None:
                status = Status("", console=Console(stderr=True))
                self._status = self._stack.enter_context(status)
            assert isinstance(self._status, Status)  # noqa: S101
            if event.state == "start":
                self._running.add(event.subject)
            elif event.state in {"done", "reused"}:
                self._running.discard(event.subject)
            line = describe(event)
            if line is not None and event.state != "start":
                self._status.console.print(line, markup=False, highlight=False)
            names = ", ".join(sorted(self._running)[:4])
            more = f" and {len(self._running) - 4} more" if len(self._running) > 4 else ""
            self._status.update(escape(f"{names}{more}"))


def describe(event: Event) -> str | None:
    """An event as a line for people, or None if they need not know."""
    if event.state == "output":
        return f"{event.phase} {event.subject}: {event.text}"
    done = amount(event.done)
    lines = {
        ("resolve", "start"): f"{event.subject[:12]}: {event.text}",
        ("solve", "start"): f"solving {event.total} dependencies",
        ("solve", "done"): f"solved: {event.done} packages",
        ("layer", "done"): f"layer {event.subject}: made, {done}",
        ("step", "start"): f"step {event.subject}",
    }
    return lines.get((event.phase, event.state))
