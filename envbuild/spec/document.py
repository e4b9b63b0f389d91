"""YAML read as strings, with the place of each value.

A definition is data of three shapes: text, lists and mappings. Nothing is guessed from the looks of a value,
so ``3.10``, ``NO`` and ``12:30`` stay what was written. Everything in YAML that can surprise is refused:
repeated keys, anchors, aliases, merge keys, tags, more than one document, invisible characters, and sizes
that no definition needs. JSON is YAML too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from envbuild.errors import SpecError
from envbuild.spec.node import Mapping, Mark, Node, Scalar, Sequence
from envbuild.spec.plainyaml import read_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    import yaml

__all__ = [
    "Mapping",
    "Mark",
    "Node",
    "Scalar",
    "Sequence",
    "fail",
    "is_null",
    "load_document",
    "refuse",
    "understand",
]

T = TypeVar("T")

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000
_MOST_MISTAKES = 10
_TOO_DEEP = f"values are nested deeper than {MAX_DEPTH} levels"

_ASCII_TEXT = bytes([9, 10, 13, *range(32, 127)])
# Control characters, surrogates, line separators, bidirectional marks, invisible formatting characters.
_HIDDEN = (
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_LONE_RETURN = re.compile(b"\r(?!\n)")
_BLOCKS = frozenset({"|", ">"})
NULLS = frozenset({"", "~", "null", "Null", "NULL"})


def is_null(node: Node | None) -> bool:
    """Whether nothing was written: a missing key, an empty value, ``null`` or ``~`` without quotes."""
    return node is None or (isinstance(node, Scalar) and node.plain and node.value in NULLS)


def fail(mark: Mark | None, message: str, hint: str | None = None) -> NoReturn:
    """Refuse what stands at a place.

    Raises:
        SpecError: Always; with the place, where there is one.
    """
    if mark is None:
        raise SpecError(message, hint=hint)
    raise SpecError(message, source=mark.source, line=mark.line, column=mark.column, hint=hint)


def refuse(mistakes: list[SpecError]) -> None:
    """Refuse what holds mistakes, so that a person sees all of them at once; nothing where there are none.

    Raises:
        SpecError: The first mistake, which carries the others.
    """
    if mistakes:
        raise SpecError.together(mistakes) from None


def describe(character: str) -> str:
    """A character as its code point and Unicode name, for messages about ones that cannot be seen."""
    import unicodedata

    return f"U+{ord(character):04X} {unicodedata.name(character, 'control character')}"


def load_document(content: bytes, source: str) -> Node:
    """Read one YAML (or JSON) document.

    Args:
        content: UTF-8, with or without a byte order mark, at most 1 MiB.
        source: The file's name for messages.

    Raises:
        SpecError: The content is not YAML, or uses what definitions may not use.
    """
    return understand(content, source, lambda node: node)


def understand(content: bytes, source: str, reader: Callable[[Node], T]) -> T:
    """What a reader makes of a document.

    Where the document is no YAML, but can be read without its mistakes, so is what it says: a person sees all
    that is wrong at once.

    Args:
        content: As for :func:`load_document`.
        source: As for :func:`load_document`.
        reader: Understands the document, or refuses it with a ``SpecError``.

    Raises:
        SpecError: The content is not YAML, or the reader refuses it; all mistakes that were found are in one.
    """
    content = _checked_bytes(content, source)
    if (plain := read_plain(content, source)) is not None:
        return reader(plain)
    mistakes: list[SpecError] = []
    node = _load(content, source, mistakes)
    if node is None or not mistakes:
        refuse(mistakes)
        assert node is not None  # noqa: S101 - where nothing can be read, a mistake was found and refused
        return reader(node)
    told = {(each.source, each.line) for each in mistakes}
    try:
        reader(node)
    except SpecError as error:
        found, error.others = (error, *error.others), ()
        mistakes += [each for each in found if (each.source, each.line) not in told]
    raise SpecError.together(mistakes) from None


def _load(content: bytes, source: str, mistakes: list[SpecError]) -> Node | None:
    """Read content of any kind. PyYAML is imported here and below: plain definitions do without it.

    A line that is no YAML is read without what is wrong with it, if that can be told; None if it cannot.
    """
    import yaml

    for _ in range(_MOST_MISTAKES):
        parser = _parser(content)
        try:
            return _Builder(source, content).build(parser.get_event)
        except yaml.MarkedYAMLError as error:
            mended = _mended(error, content, source, mistakes)
            if mended is None:
                return None
            content = mended
        except yaml.YAMLError as error:
            raise SpecError(f"this is not YAML: {error}", source=source, line=1, column=1) from error
        finally:
            parser.dispose()
    return None


def _mended(
    error: yaml.MarkedYAMLError, content: bytes, source: str, mistakes: list[SpecError]
) -> bytes | None:
    """Report what is wrong; the content without that, or None where it cannot be told from the rest."""
    from envbuild.spec.mistakes import likely_mistake

    if "nesting depth" in f"{error.problem}{error.context}":  # a limit of newer parsers, far above ours
        place = error.problem_mark or error.context_mark
        fail(Mark(source, place.line + 1, place.column + 1) if place else None, _TOO_DEEP)
    lines = [line.removesuffix("\r") for line in content.decode("utf-8").split("\n")]
    mistake = likely_mistake(lines, error)
    if mistake is not None:
        mistakes.append(
            SpecError(
                mistake.message, source=source, line=mistake.line, column=mistake.column, hint=mistake.hint
            )
        )
        if mistake.instead is None:
            return None
        for number, line in mistake.instead.items():
            lines[number - 1] = line
        return "\n".join(lines).encode()
    if not mistakes:  # else it may come from what was left out
        mistakes.append(_syntax(error, source))
    return None


def _parser(content: bytes) -> Any:
    try:
        from yaml.cyaml import CParser  # type: ignore[attr-defined]
    except ImportError:  # PyYAML without libyaml
        from yaml import BaseLoader

        return BaseLoader(content)
    return CParser(content)


def _checked_bytes(content: bytes, source: str) -> bytes:
    if len(content) > MAX_BYTES:
        raise SpecError(
            f"the document has {len(content)} bytes, expected at most {MAX_BYTES}",
            source=source,
            line=1,
            column=1,
            hint="a definition is a small text file; is this the right one?",
        )
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\x00" in content[:4]:
        fail(Mark(source, 1, 1), "the document is UTF-16 or UTF-32, expected UTF-8", "save the file as UTF-8")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.translate(None, _ASCII_TEXT):
        _check_text(content, source)
    if b"\r" in content and (lone := _LONE_RETURN.search(content)):
        _refuse_character(content[: lone.start()].decode("utf-8", "replace"), "\r", source)
    return content


def _check_text(content: bytes, source: str) -> None:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8")
        fail(
            _end_of(before, source),
            f"byte 0x{content[error.start]:02x} is not UTF-8",
            "save the file as UTF-8",
        )
    if found := re.search(_HIDDEN, text):
        _refuse_character(text[: found.start()], found.group(), source)


def _refuse_character(before: str, character: str, source: str) -> NoReturn:
    fail(_end_of(before, source), *_hidden(character))


def _hidden(character: str) -> tuple[str, str]:
    message = f"the character {describe(character)} is not allowed in a definition"
    return message, "delete it: it is invisible, or it changes how the text around it looks"


def _end_of(text: str, source: str) -> Mark:
    return Mark(source, text.count("\n") + 1, len(text) - text.rfind("\n"))


def _syntax(error: yaml.MarkedYAMLError, source: str) -> SpecError:
    """What the parser says, where it gave up."""
    place = error.problem_mark or error.context_mark
    line, column = (place.line + 1, place.column + 1) if place else (1, 1)
    problem = error.problem or "unknown problem"
    context = f" {error.context}" if error.context else ""
    hint = "check the indentation, and quotes and brackets that are not closed"
    if "cannot start any token" in problem:
        hint = "quote a value that starts with @, ` or %"
    elif "mapping values are not allowed" in problem:
        hint = "quote a value that holds ': ', and keep one indentation for the keys of a mapping"
    elif "scanning an alias" in context or "scanning an anchor" in context:
        hint = "quote a value that starts with * or &"
    elif "unknown escape" in problem:
        hint = r"write \\ for a backslash between double quotes, or use single quotes"
    return SpecError(
        f"this is not YAML: {problem}{context}", source=source, line=line, column=column, hint=hint
    )


class _Builder:
    """Turns a parser's events into nodes, without recursion."""

    def __init__(self, source: str, content: bytes) -> None:
        self._source = source
        self._content = content
        self._escapes = b"\\" in content
        self._split: list[str] | None = None

    def build(self, get_event: Callable[[], Any]) -> Node:
        import yaml

        get_event()  # the stream's start
        start = get_event()
        if isinstance(start, yaml.StreamEndEvent):
            fail(Mark(self._source, 1, 1), "the document is empty", "write the definition into it")
        if start.tags:
            fail(self._mark(start), "%TAG is not allowed in a definition", "delete the line")
        root = self._root(get_event)
        get_event()  # the document's end
        if not isinstance(after := get_event(), yaml.StreamEndEvent):
            fail(
                self._mark(after),
                "a second document starts here, expected one",
                "delete it, or split the file",
            )
        return root

    def _root(self, get_event: Callable[[], Any]) -> Node:
        """Hot path: one pass, plain tuples, marks made in place."""
        import yaml

        source, escapes, make, scalar = self._source, self._escapes, tuple.__new__, yaml.ScalarEvent
        top: list[Any] = []
        children, count = top, 0
        stack: list[tuple[list[Any], Mark]] = []
        while True:
            event = get_event()
            kind = type(event)
            if kind is scalar:
                count += 1
                place = event.start_mark
                mark = make(Mark, (source, place.line + 1, place.column + 1))
                if event.tag is not None or event.anchor is not None or (escapes and event.style == '"'):
                    self._check(event)
                block = self._block(event) if event.style in _BLOCKS else None
                if not event.style and event.end_mark.line != place.line:
                    block = self._continued(event)
                children.append(make(Scalar, (event.value, mark, not event.style, block)))
            elif kind is yaml.SequenceEndEvent or kind is yaml.MappingEndEvent:
                finished, (children, mark) = children, stack.pop()
                close = self._mapping if kind is yaml.MappingEndEvent else _sequence
                children.append(close(finished, mark))
            else:
                count += 1
                self._check(event)
                stack.append((children, self._mark(event)))
                children = []
                if len(stack) > MAX_DEPTH:
                    fail(self._mark(event), _TOO_DEEP)
            if count > MAX_NODES:
                fail(self._mark(event), f"there are more than {MAX_NODES} values", "split the definition")
            if not stack:
                return top[0]  # type: ignore[no-any-return]

    def _mark(self, event: Any) -> Mark:
        place = event.start_mark
        return Mark(self._source, place.line + 1, place.column + 1)

    def _lines(self, start: int, end: int) -> list[str]:
        if self._split is None:
            self._split = self._content.decode().split("\n")
        return self._split[start:end]

    def _block(self, event: Any) -> Mark:
        """Where a block's text starts, told by its first line that holds anything."""
        first = event.start_mark.line + 1
        for line in self._lines(first, event.end_mark.line + 1):
            if stripped := line.strip():
                own = next((each for each in event.value.split("\n") if each.strip()), "")
                inside = len(own) - len(own.lstrip(" "))
                return Mark(self._source, first + 1, line.index(stripped[0]) - inside + 1)
        return Mark(self._source, first + 1, 1)

    def _continued(self, event: Any) -> Mark | None:
        """Where a text without quotes goes on behind its first line."""
        first = event.start_mark.line + 1
        for number, line in enumerate(self._lines(first, event.end_mark.line + 1)):
            if stripped := line.strip():
                return Mark(self._source, first + number + 1, line.index(stripped[0]) + 1)
        return None

    def _check(self, event: Any) -> None:
        import yaml

        mark = self._mark(event)
        if isinstance(event, yaml.AliasEvent):
            fail(mark, f"the alias *{event.anchor} is not allowed in a definition", "write the value out")
        if event.anchor is not None:
            fail(mark, f"the anchor &{event.anchor} is not allowed in a definition", "delete it")
        if event.tag is not None:
            fail(mark, f"the tag {event.tag} is not allowed in a definition", "delete it")
        if isinstance(event, yaml.ScalarEvent) and (found := re.search(_HIDDEN, event.value)):
            fail(mark, *_hidden(found.group()))

    def _mapping(self, children: list[Any], mark: Mark) -> Mapping:
        keys, values = children[::2], children[1::2]
        seen: dict[str, Scalar] = {}
        for key in keys:
            if type(key) is not Scalar:
                fail(key.mark, "a list or mapping stands as a key, expected text", "quote it")
            if key.value in seen:
                first = seen[key.value].mark
                fail(
                    key.mark,
                    f"the key {key.value!r} stands twice, first in line {first.line}",
                    "delete one of them, or join their values",
                )
            if key.value == "<<" and key.plain:
                fail(key.mark, "the merge key << is not allowed in a definition", "write the entries out")
            seen[key.value] = key
        return Mapping(tuple(zip(keys, values, strict=True)), mark)


def _sequence(children: list[Any], mark: Mark) -> Sequence:
    return Sequence(tuple(children), mark)
