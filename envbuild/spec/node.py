"""What a document is made of: texts, lists and mappings, each with its place."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Mark(NamedTuple):
    """A place in a file.

    Attributes:
        source: The file's name as the user wrote it.
        line: Line, from 1.
        column: Column in characters, from 1.
    """

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"


class Scalar(NamedTuple):
    """A text.

    Attributes:
        value: The text, quotes and escapes resolved.
        mark: Where it stands.
        plain: Whether it was written without quotes and not as a block.
        content: Where the first line of a text written as a block (``|`` or ``>``) starts; where the second
            line of a text of several lines without quotes starts; else None.
    """

    value: str
    mark: Mark
    plain: bool
    content: Mark | None = None

    def __repr__(self) -> str:
        return f"Scalar({str(self.mark)!r})"  # the text may be a URL with a login


class Sequence(NamedTuple):
    """A list.

    Attributes:
        items: Its items, in order.
        mark: Where it starts.
    """

    items: tuple[Node, ...]
    mark: Mark


class Mapping(NamedTuple):
    """A mapping; no key stands twice.

    Attributes:
        entries: Keys and values, in the order of the file.
        mark: Where it starts.
    """

    entries: tuple[tuple[Scalar, Node], ...]
    mark: Mark

    def get(self, name: str) -> Node | None:
        """The value under a key, or None where the key is missing."""
        for key, value in self.entries:
            if key.value == name:
                return value
        return None


Node: TypeAlias = Scalar | Sequence | Mapping
