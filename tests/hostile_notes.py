"""JSON documents and annotations as an attacker writes them: some value replaced by another, or gone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1.5, 10**30, "", "\n", "\0", "../..", "a\nFROM evil", "\ud800", "x" * 70_000,
    [], {}, [[]], [None], {"": None}, {"../x": "y"}, "{", "sha256:" + "0" * 64, "0" * 64,
)  # fmt: skip
"""What may stand in place of any value."""


def mutants(document: Any, random: Random, count: int) -> Iterator[Any]:
    """Documents that differ from one in one place, or in two."""
    for number in range(count):
        changed = copy.deepcopy(document)
        for _ in range(1 + number % 2):
            _change(changed, random)
        yield changed


def _change(document: Any, random: Random) -> None:
    holder, name = random.choice(list(_places(document)))
    match random.randrange(8):
        case 0:
            del holder[name]
        case 1 if isinstance(holder, list):
            holder.append(copy.deepcopy(holder[name]))
        case 2 if isinstance(holder, dict):
            holder[random.choice(["", "x", "../x", "a=b"])] = holder[name]
        case _:
            holder[name] = copy.deepcopy(random.choice(ODD))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for name, below in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, name
            yield from _places(below)
