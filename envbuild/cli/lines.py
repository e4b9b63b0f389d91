"""What an event looks like as a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuild.cli.options import amount

if TYPE_CHECKING:
    from envbuild.progress import Event


def describe(event: Event) -> str | None:
    """An event as a line for people, or None if they need not know."""
    if event.state == "output":
        return f"{event.phase} {event.subject}: {event.text}"
    lines = {
        ("resolve", "start"): f"{event.subject[:12]}: {event.text}",
        ("solve", "start"): f"solving {event.total} {'dependency' if event.total == 1 else 'dependencies'}",
        ("solve", "done"): f"solved: {event.done} packages",
        ("layer", "done"): f"layer {event.subject}: made, {amount(event.done)}",
        ("step", "start"): f"step {event.subject}",
        ("step", "reused"): f"steps: known to {event.subject}",
        ("load", "start"): f"loading {event.subject} into the engine",
    }
    return lines.get((event.phase, event.state))
