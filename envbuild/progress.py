"""What is going on, told to whoever wants to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during a call.

    Attributes:
        phase: ``resolve``, ``solve``, ``layer``, ``step``, ``push``: what envbuild is doing.
        subject: What it is doing it to: a key, a package, a repository, a Dockerfile step.
        state: ``start``, ``progress``, ``output``, ``reused`` or ``done``.
        done: Bytes (or items) handled so far.
        total: Bytes (or items) in all; 0 where it is not known.
        text: A line of output or a remark; may be empty.
    """

    phase: str
    subject: str
    state: str
    done: int = 0
    total: int = 0
    text: str = ""


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """The progress of a caller who does not want to know."""
