"""What an event looks like as a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from envbuild.cli.options import amount
from envbuild.errors import counted

if TYPE_CHECKING:
    from envbuild.progress import Event

DOING: Final = {"fetch": "fetching", "layer": "making", "push": "sending", "step": "running"}
"""What is done to something under way, by phase."""


def describe(event: Event) -> str | None:
    """An event as a line for people, or None if they need not know."""
    if event.phase == "wait":
        return f"waiting for {event.subject}: {event.text}"
    if event.state == "output":
        return f"{event.phase} {event.subject}: {event.text}"
    if event.phase == "plan":
        return _planned(event)
    lines = {
        ("resolve", "start"): f"{event.subject[:12]}: {event.text}",
        ("solve", "start"): f"solving {counted(event.total, 'dependency', 'dependencies')}",
        ("solve", "done"): f"solved: {counted(event.done, 'package')}",
        ("layer", "done"): f"layer {event.subject}: made, {amount(event.done)}",
        ("step", "start"): f"step {event.subject}",
        ("step", "reused"): f"steps: known to {event.subject}",
        ("load", "start"): f"loading {event.subject} into the engine",
    }
    return lines.get((event.phase, event.state))


def under_way(phase: str, subject: str, done: int, total: int) -> str:
    """Something under way, and how far it is."""
    doing = f"{DOING.get(phase, phase)} {subject}"
    if not total:
        return doing
    return f"{doing}: {amount(done)} of {amount(total)}" if done else f"{doing}: {amount(total)}"


def _planned(event: Event) -> str | None:
    if event.subject == "layers" and event.total:
        made = event.total - event.done
        return f"{counted(event.total, 'layer')}: {event.done} known, {made} to make"
    if event.subject == "reused" and event.done:
        return f"reused: {amount(event.done)} of layers, {amount(event.total)} of packages need no fetching"
    return None
