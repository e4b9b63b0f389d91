"""The plainest block YAML, read line by line: what nearly all definitions are written in.

It gives exactly the nodes that the full reader in ``document`` gives, in half the time, or nothing: what it
does not know (flow mappings, block texts, escapes, anchors, odd indentation, faults) is left to the full
reader. A test compares the two.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envbuild.spec.node import Mapping, Mark, Scalar, Sequence

if TYPE_CHECKING:
    from envbuild.spec.node import Node

# A plain text has no indicator at its start, no ': ' and no ' #'.
_PLAIN = r"[A-Za-z0-9_][!-9;-~]*+(?>(?:(?::(?=[!-~])| ++(?=[!\"$-~]))[!-9;-~]*+)*)"
_WORD = r"[A-Za-z0-9_][A-Za-z0-9_./-]*+"
_LINE = re.compile(
    r"^( *+)(- ++)?(?:([A-Za-z_][A-Za-z0-9_]{0,99}+)(:(?: ++|$)))?"
    rf"(?:({_PLAIN})|(\"[ !#-\[\]-~]*+\"|'[ -&(-~]*+'|\[{_WORD}(?>(?:, *+{_WORD})*)\]))?"
    r" *+(?:(?<![^ \n])#.*)?$",
    re.MULTILINE,
)
_WORDS = re.compile(_WORD)
_MAKE = tuple.__new__
"""Makes a named tuple of a tuple, without the arguments' passing: most of what is made here is one."""
_MAX_LINES = 10_000
_MAX_DEPTH = 8


class _NotPlainError(Exception):
    """Something that the full reader must judge."""


def read_plain(content: bytes, source: str) -> Mapping | None:
    """Read a document whose root is a mapping; None where the full reader must do it.

    Args:
        content: ASCII without control characters but tabs and line ends.
        source: The file's name for marks.
    """
    if b"\r" in content or not content.isascii():
        return None
    text = content.decode("ascii")
    count = text.count("\n") + 1
    if count > _MAX_LINES or len(lines := _LINE.findall(text)) != count:
        return None
    try:
        return _Reader(lines, source).root()
    except _NotPlainError:
        return None


class _Reader:
    """Walks over lines of (indentation, dash, key, colon, plain text, other value)."""

    def __init__(self, lines: list[tuple[str, str, str, str, str, str]], source: str) -> None:
        self._lines = lines
        self._source = source
        self._at = 0

    def root(self) -> Mapping:
        first = self._peek()
        if first is None or first[0]:
            raise _NotPlainError
        node = self._mapping(0, 0)
        if self._peek() is not None:
            raise _NotPlainError
        return node

    def _peek(self) -> tuple[str, str, str, str, str, str] | None:
        """The next line that is neither blank nor a comment."""
        lines, at = self._lines, self._at
        while at < len(lines):
            line = lines[at]
            if line[1] or line[2] or line[4] or line[5]:
                self._at = at
                return line
            at += 1
        self._at = at
        return None

    def _mapping(self, indent: int, depth: int) -> Mapping:
        if depth > _MAX_DEPTH:
            raise _NotPlainError
        start = self._at + 1
        entries: list[tuple[object, object]] = []
        names: set[str] = set()
        while (line := self._peek()) is not None and len(line[0]) >= indent:
            spaces, dash, key, colon, plain, other = line
            if dash or not key or len(spaces) > indent or key in names:
                raise _NotPlainError
            names.add(key)
            self._at += 1
            name = _MAKE(Scalar, (key, _MAKE(Mark, (self._source, self._at, indent + 1)), True, None))
            column = indent + len(key) + len(colon) + 1
            raw = plain or other
            entries.append((name, self._value(raw, column) if raw else self._block(indent, depth)))
        return Mapping(tuple(entries), Mark(self._source, start, indent + 1))  # type: ignore[arg-type]

    def _block(self, indent: int, depth: int) -> Node:
        """The list or mapping under a key."""
        line = self._peek()
        if line is not None and line[1] and len(line[0]) >= indent:
            return self._sequence(len(line[0]), depth + 1)
        if line is not None and not line[1] and line[2] and len(line[0]) > indent:
            return self._mapping(len(line[0]), depth + 1)
        raise _NotPlainError

    def _sequence(self, indent: int, depth: int) -> Sequence:
        """Hot path: texts in place, all else by the other methods."""
        make, source, lines, at = _MAKE, self._source, self._lines, self._at
        start, end, prefix, behind = at + 1, len(lines), " " * indent, indent + 1
        items: list[Node] = []
        while at < end:
            spaces, dash, key, _, plain, other = lines[at]
            at += 1
            if plain and dash and not key and spaces == prefix:
                items.append(make(Scalar, (plain, make(Mark, (source, at, behind + len(dash))), True, None)))
            elif dash and spaces == prefix:
                self._at = at
                items.append(self._item(key, plain or other, indent + len(dash), depth))
                at = self._at
            elif dash or key or plain or other:
                at -= 1
                break
        self._at = at
        return Sequence(tuple(items), make(Mark, (source, start, indent + 1)))

    def _item(self, key: str, raw: str, column: int, depth: int) -> Node:
        """A text in quotes, a list of words, or a mapping of one key to a list."""
        if not key:
            if not raw:
                raise _NotPlainError
            return self._value(raw, column + 1)
        mark = Mark(self._source, self._at, column + 1)
        line = self._peek()
        if raw or depth > _MAX_DEPTH or line is None or not line[1] or len(line[0]) < column:
            raise _NotPlainError
        entry = (Scalar(key, mark, True), self._sequence(len(line[0]), depth + 1))
        return Mapping((entry,), mark)

    def _value(self, raw: str, column: int) -> Node:
        mark = _MAKE(Mark, (self._source, self._at, column))
        if raw[0] == "[":
            items = [
                Scalar(found[0], Mark(self._source, self._at, column + found.start()), True)
                for found in _WORDS.finditer(raw)
            ]
            return Sequence(tuple(items), mark)
        if raw[0] in "\"'":
            return _MAKE(Scalar, (raw[1:-1], mark, False, None))
        return _MAKE(Scalar, (raw, mark, True, None))
