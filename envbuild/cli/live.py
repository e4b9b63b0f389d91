"""The live display: lines that stay, and under them a few that say what is being done right now."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.spinner import Spinner
from rich.text import Text

from envbuild.cli.lines import describe
from envbuild.cli.options import amount

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from envbuild.progress import Event

_ENDED: Final = {"done", "reused"}
_SHOWN: Final = 4
"""How many things under way are named."""


class Tally:
    """What the events so far come to.

    Args:
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self.doing = ""
        self.packages = 0
        self.made = 0
        self.reused = 0
        self.bytes_made = 0
        self.bytes_sent = 0
        self.running: dict[str, int] = {}

    def add(self, event: Event) -> None:
        """Count an event."""
        if event.state == "start":
            self.doing = _DOING.get(event.phase, event.phase)
            if event.phase in {"layer", "step"}:
                self.running[event.subject] = event.total
        elif event.state in _ENDED:
            self.running.pop(event.subject, None)
            self._count(event)

    def _count(self, event: Event) -> None:
        if event.phase == "solve":
            self.packages += event.done
        elif event.phase == "push" and event.state == "done":
            self.bytes_sent += event.done
        elif event.phase == "layer":
            self.doing = _DOING["layer"]
            self.made += event.state == "done"
            self.reused += event.state == "reused"
            self.bytes_made += event.done

    def headline(self) -> str:
        """One line: what, how far, since when."""
        parts = [self.doing or "looking"]
        if self.made or self.reused:
            parts.append(f"{self.made + self.reused} of {self.packages} packages")
            parts.append(f"{self.made} made, {self.reused} known")
        if self.bytes_sent:
            parts.append(f"{amount(self.bytes_sent)} sent")
        seconds = int(self._clock() - self._started)
        parts.append(f"{seconds // 60}:{seconds % 60:02}")
        return " · ".join(parts)

    def details(self) -> str:
        """What is under way, the biggest first."""
        names = sorted(self.running, key=lambda name: (-self.running[name], name))
        shown = [f"{name} ({amount(size)})" if (size := self.running[name]) else name for name in names]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return ", ".join(shown[:_SHOWN]) + more


_DOING: Final = {
    "resolve": "building",
    "solve": "solving",
    "layer": "making layers",
    "step": "running steps",
    "push": "sending",
    "load": "loading into the engine",
}


class Live:
    """The display on a terminal; begun with the first event, and again with the next one after a pause.

    Args:
        console: Where to draw; standard error if None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._guard = threading.RLock()
        self._screen: Screen | None = None
        self._spinner = Spinner("dots")
        self._tally = Tally()

    def __call__(self, event: Event) -> None:
        """Count the event; one that matters leaves a line."""
        with self._guard:
            if self._screen is None:
                self._tally = Tally()
                self._screen = Screen(
                    get_renderable=self._render, console=self._console, transient=True, refresh_per_second=8
                )
                self._screen.start()
            self._tally.add(event)
            line = None if event.state == "start" and event.phase != "step" else describe(event)
            if line is not None:
                self._print(line)

    def note(self, text: str) -> None:
        """Leave a line."""
        with self._guard:
            self._print(text)

    def pause(self) -> None:
        """Take away what moves."""
        with self._guard:
            if self._screen is not None:
                self._screen.stop()
                self._screen = None

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def _render(self) -> RenderableType:
        tally = self._tally
        self._spinner.update(text=Text(tally.headline(), no_wrap=True, overflow="ellipsis"))
        details = tally.details()
        if not details:
            return self._spinner
        return Group(self._spinner, Text(f"  {details}", style="dim", no_wrap=True, overflow="ellipsis"))
