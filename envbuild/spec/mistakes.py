"""What a person most likely got wrong in a document that is not YAML, and where.

A parser gives up where it can read no further, which is often lines behind the mistake. What is looked for
here are the mistakes that people make in definitions; what is none of them is left to the parser's own words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import yaml

CONFLICT: Final = re.compile(r"(?:<{7}|={7}|>{7}|\|{7})(?: |$)")
TEMPLATE: Final = re.compile(r"\{\{|\{%|\{#")
TEMPLATE_HINT: Final = "render the template first, and name what comes out"

_MOST_LINES: Final = 2000
_LONGEST_LINE: Final = 2000
_BLOCK: Final = re.compile(r"(?:^|[:\-] )\s*[|>][-+0-9]*\s*(?: #.*)?$")
_ITEM: Final = re.compile(r"\s*-(?: |$)")
_DASHED: Final = re.compile(r"\s*-(?=[A-Za-z0-9_])")
_KEY: Final = re.compile(r"""\s*(?:- +)*(?:[\w.$/-]+|"[^"]*"|'[^']*')\s*:(?: |$)""")
_BOUND: Final = re.compile(r"\s*(-?) *([A-Za-z0-9_][\w.-]*)\s*:\s+([<>=!~].*?)\s*$")
_OPENED: Final = re.compile(r"""\s*(?:- +)*(?:[\w.$/-]+\s*:\s+)?(["'])""")
_VALUED: Final = re.compile(r"\s*[\w.$/-]+\s*:\s+[^\s#|>].*$")


class Mistake(NamedTuple):
    """A mistake and its place.

    Attributes:
        line: Line, from 1.
        column: Column in characters, from 1.
        message: What is wrong.
        hint: What to write instead.
        others: Further lines with the same mistake, which is reported once.
    """

    line: int
    column: int
    message: str
    hint: str
    others: tuple[int, ...] = ()


def likely_mistake(lines: list[str], error: yaml.MarkedYAMLError) -> Mistake | None:
    """The mistake that a parser most likely gave up about.

    Args:
        lines: The document.
        error: What the parser says.
    """
    if len(lines) > _MOST_LINES or max(map(len, lines)) > _LONGEST_LINE:
        return None  # nobody wrote this by hand
    anywhere = _marker(lines) or _template(lines) or _tab(lines)
    if anywhere is not None:
        return anywhere
    place = error.problem_mark or error.context_mark
    reached = min(place.line + 1, len(lines)) if place else len(lines)
    opened = error.context_mark
    if opened is not None and opened.line >= len(lines):
        opened = None
    if opened is not None and ("flow sequence" in f"{error.context}" or "flow mapping" in f"{error.context}"):
        bracket = lines[opened.line][opened.column : opened.column + 1]
        return Mistake(
            opened.line + 1, opened.column + 1, f"the {bracket!r} that opens here is not closed", "close it"
        )
    prose = _inside_blocks(lines)
    for number in range(reached):
        if number not in prose and (found := _in_line(lines, number)) is not None:
            return found
    if opened is not None and "quoted scalar" in f"{error.context}":
        return _open_quote(lines, opened.line, opened.column)
    return None


def _marker(lines: list[str]) -> Mistake | None:
    found = [number for number, line in enumerate(lines, 1) if CONFLICT.match(line)]
    if not found:
        return None
    message = f"a merge left the conflict marker {lines[found[0] - 1][:7]!r} here"
    hint = "decide for one side and delete the lines with markers"
    return Mistake(found[0], 1, message, hint, tuple(found[1:]))


def _template(lines: list[str]) -> Mistake | None:
    found = [
        number
        for number, line in enumerate(lines, 1)
        if TEMPLATE.search(line) and not line.lstrip().startswith("#")
    ]
    if not found:
        return None
    seen = TEMPLATE.search(lines[found[0] - 1])
    assert seen is not None  # noqa: S101 - the line was chosen by it
    message = f"{seen.group()!r} belongs to a template, and templates are not evaluated"
    return Mistake(found[0], seen.start() + 1, message, TEMPLATE_HINT, tuple(found[1:]))


def _tab(lines: list[str]) -> Mistake | None:
    for number, line in enumerate(lines, 1):
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent and line.strip():
            return Mistake(number, indent.index("\t") + 1, "a tab indents this line", "indent with spaces")
    return None


def _inside_blocks(lines: list[str]) -> frozenset[int]:
    """The numbers, from 0, of lines that belong to texts written as blocks, or are blank or comments."""
    inside: set[int] = set()
    block: int | None = None
    for number, line in enumerate(lines):
        stripped = line.strip()
        indent = len(line) - len(line.lstrip(" "))
        if block is not None and stripped and indent <= block:
            block = None
        if block is not None or not stripped or stripped.startswith(("#", "---", "%")):
            inside.add(number)
        elif _BLOCK.search(line):
            block = indent
    return frozenset(inside)


def _in_line(lines: list[str], number: int) -> Mistake | None:
    """A mistake that a line shows by itself, or beside the line before it."""
    line = lines[number]
    indent = len(line) - len(line.lstrip())
    if (bound := _BOUND.match(line)) and not _BLOCK.search(line):
        dash, name, value = bound.groups()
        spec = f"{name}{value}" if value[0] in "<>=!~" else f"{name}={value}"
        missing = "" if dash else "a '- ' in front, and "
        return Mistake(
            number + 1,
            line.index(name) + 1,
            f"{name!r} has a ':' behind it",
            f"write {missing}no ':', as `- {spec}`",
        )
    if _DASHED.match(line):
        text = line.strip()
        right = f"- {text}" if re.match(r"-[a-z] ", text) else f"- {text[1:]}"
        return Mistake(number + 1, indent + 1, "there is no space behind the '-'", f"write it as `{right}`")
    opening = _OPENED.match(line)
    if opening is not None:
        return _open_quote(lines, number, opening.end() - 1)
    if not _ITEM.match(line) and not _KEY.match(line) and line.strip()[0] not in "[]{},":
        return Mistake(
            number + 1, indent + 1, "the line is neither a key nor an item", f"write it as `- {line.strip()}`"
        )
    return _under_a_value(lines, number, indent)


def _open_quote(lines: list[str], number: int, column: int) -> Mistake | None:
    """A quote that nothing on its line closes."""
    quote, rest = lines[number][column], lines[number][column + 1 :]
    rest = rest.replace("\\" + quote, "") if quote == '"' else rest.replace("''", "")
    if quote in rest:
        return None
    return Mistake(
        number + 1, column + 1, f"the quote {quote} that opens here is not closed on its line", "close it"
    )


def _under_a_value(lines: list[str], number: int, indent: int) -> Mistake | None:
    """A key that is indented below a key which has a value on its own line already."""
    if number == 0 or _ITEM.match(lines[number]):
        return None
    above = lines[number - 1]
    if _VALUED.match(above) and indent > len(above) - len(above.lstrip()):
        name, owner = lines[number].strip().partition(":")[0], above.strip().partition(":")[0]
        message = f"`{name}` is indented below `{owner}`, which has a value already"
        return Mistake(number + 1, indent + 1, message, f"indent it like `{owner}`")
    return None
