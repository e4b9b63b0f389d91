"""Values of a JSON text that know where they stand; the place is looked for only when something is wrong."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from envbuild.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

AGAIN: Final = "write it again with `envbuild lock`"
LINE: Final = re.compile(r"[^\x00-\x1f\x7f]+")

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_DECODER: Final = json.JSONDecoder()


class Node(NamedTuple):
    """A value of a JSON document, its path, and the document's text and name, for errors that say where."""

    value: Any
    path: tuple[str | int, ...]
    all: str
    source: str

    def __repr__(self) -> str:
        return f"<{self.name} of {self.source}>"  # a value may hold a login

    def fail(self, message: str, hint: str | None = None) -> NoReturn:
        """Refuse the value.

        Raises:
            SpecError: Always; with line and column.
        """
        line, column = line_and_column(self.all, offset_of(self.all, self.path))
        raise SpecError(message, source=self.source, line=line, column=column, hint=hint or AGAIN)

    @property
    def name(self) -> str:
        """The path, for messages."""
        return ".".join(map(str, self.path)) or "the lock"

    def at(self, step: str | int, value: Any) -> Node:
        """A value in this one."""
        return Node(value, (*self.path, step), self.all, self.source)

    def check(self, known: Collection[str] | None = None) -> None:
        """Refuse what is no object, and a member that is not known."""
        if type(self.value) is not dict:
            self.fail(f"{self.name} is {self.value!r:.60}, expected an object")
        for name in self.value:
            if known is not None and name not in known:
                self.at(name, self.value[name]).fail(f"{name!r} is not a member of {self.name}")

    def mapping(self, known: Collection[str] | None = None) -> list[Node]:
        """The members; those that are not known are refused."""
        self.check(known)
        return [self.at(name, value) for name, value in self.value.items()]

    def get(self, name: str) -> Node:
        """A member that must be there."""
        if name not in self.value:
            self.fail(f"{self.name} has no {name!r}")
        return self.at(name, self.value[name])

    def find(self, name: str) -> Node | None:
        """A member, or None."""
        return self.at(name, self.value[name]) if name in self.value else None

    def texts(self, pattern: re.Pattern[str] | None = LINE) -> tuple[str, ...]:
        """The items of a list, each a text that fits a pattern."""
        items = self.value
        if type(items) is list and all(
            type(item) is str and (pattern is None or pattern.fullmatch(item)) for item in items
        ):
            return tuple(items)
        return tuple([item.text(pattern) for item in self.items()])

    def items(self) -> list[Node]:
        """The items of a list."""
        if type(self.value) is not list:
            self.fail(f"{self.name} is {self.value!r:.60}, expected a list")
        return [self.at(number, value) for number, value in enumerate(self.value)]

    def text(self, pattern: re.Pattern[str] | None = LINE) -> str:
        """A text that fits a pattern; without one, any."""
        value = self.value
        if type(value) is not str:
            self.fail(f"{self.name} is {value!r:.60}, expected text")
        if pattern is not None and not pattern.fullmatch(value):
            self.fail(f"{self.name} is {value[:60]!r}, which it cannot be")
        return value

    def number(self) -> int:
        """A whole number, 0 or more."""
        if type(self.value) is not int or self.value < 0:
            self.fail(f"{self.name} is {self.value!r:.60}, expected a whole number, 0 or more")
        return self.value

    def optional(self, name: str, read: Callable[[Node], Any]) -> Any:
        """What a reader makes of a member; None where it is not there."""
        return read(node) if (node := self.find(name)) is not None else None


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Line and column, both from 1, of a character."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def offset_of(text: str, path: Sequence[str | int]) -> int:
    """Where the value at a path starts in a valid JSON text; the nearest value around it if it is missing.

    Args:
        text: The JSON.
        path: Names of members and numbers of items, from the outermost value inwards.
    """
    offset = _skip(text, 0)
    for step in path:
        found = _member(text, offset, step) if isinstance(step, str) else _item(text, offset, step)
        if found is None:
            break
        offset = found
    return offset


def _skip(text: str, offset: int) -> int:
    found = _SPACE.match(text, offset)
    return found.end() if found else offset


def _end(text: str, offset: int) -> int:
    """Where the value that starts at an offset ends."""
    return _DECODER.raw_decode(text, offset)[1]


def _member(text: str, offset: int, name: str) -> int | None:
    """Where the last member of that name has its value: the one that readers take."""
    if text[offset] != "{":
        return None
    found = None
    offset = _skip(text, offset + 1)
    while text[offset] != "}":
        key, after = _DECODER.raw_decode(text, offset)
        value = _skip(text, _skip(text, after) + 1)
        found = value if key == name else found
        offset = _skip(text, _end(text, value))
        if text[offset] == ",":
            offset = _skip(text, offset + 1)
    return found


def _item(text: str, offset: int, number: int) -> int | None:
    if text[offset] != "[":
        return None
    offset = _skip(text, offset + 1)
    for _ in range(number):
        if text[offset] == "]":
            return None
        offset = _skip(text, _end(text, offset))
        if text[offset] == ",":
            offset = _skip(text, offset + 1)
    return offset if text[offset] != "]" else None
