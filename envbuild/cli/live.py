"""The live display: lines that stay, and under them a few that say what is being done right now."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.spinner import Spinner
from rich.text import Text

from envbuild.cli.lines import describe
from envbuild.cli.tally import Tally

if TYPE_CHECKING:
    from rich.console import RenderableType

    from envbuild.progress import Event


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
        lines = (Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in details)
        return Group(self._spinner, *lines)
