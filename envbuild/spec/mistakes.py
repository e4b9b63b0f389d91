"""What a person most likely got wrong in a document that is not YAML, and where.

A parser gives up where it can read no further, which is often lines behind the mistake. What is looked for
here are the mistakes that people make in definitions; what is none of them is left to the parser's own words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from envbuild.spec import forms

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
_TABBED: Final = re.compile(r"\s*-(?=\t)")
_KEY: Final = re.compile(r"""\s*(?:- +)*(?:[\w.$/-]+|"[^"]*"|'[^']*')\s*:(?: |$)""")
_TIGHT_KEY: Final = re.compile(r"\s*([A-Za-z_]\w*):(?=[^\s:/])")
_WORD: Final = re.compile(r"\s*[A-Za-z_]\w*\s*$")
_BOUND: Final = re.compile(r"\s*+(-?) *+([A-Za-z0-9_][\w.-]*+)\s*+:\s++([<>=!~](?:.*\S)?)\s*$")
_NAMELESS: Final = re.compile(r"\s*+- ++(>[=0-9](?:.*\S)?)\s*$")
_OPENED: Final = re.compile(r"""\s*(?:- +)*(?:[\w.$/-]+\s*:\s+)?(["'])""")
_VALUED: Final = re.compile(r"\s*[\w.$/-]+\s*:\s+[^\s#|>].*$")


class Mistake(NamedTuple):
    """A mistake and its place.

    Attributes:
        line: Line, from 1.
        column: Column in characters, from 1.
        message: What is wrong.
        hint: What to write instead.
        instead: How the lines around which more can be read are read, by their numbers; None where what is
            meant cannot be told, so that nothing behind the mistake can be judged.
    """

    line: int
    column: int
    message: str
    hint: str
    instead: dict[int, str] | None


def likely_mistake(lines: list[str], error: yaml.MarkedYAMLError) -> Mistake | None:
    """The mistake that a parser most likely gave up about.

    Args:
        lines: The document.
        error: What the parser says.
    """
    if len(lines) > _MOST_LINES or max(map(len, lines)) > _LONGEST_LINE:
        return None  # nobody wrote this by hand
    prose = _inside_blocks(lines)
    anywhere = _marker(lines) or _template(lines, prose) or _tab(lines, prose)
    return anywhere or _where_it_gave_up(lines, error, prose)


def _where_it_gave_up(lines: list[str], error: yaml.MarkedYAMLError, prose: frozenset[int]) -> Mistake | None:
    """A mistake in the line where the parser gave up, or above it."""
    place, opened, context = error.problem_mark or error.context_mark, error.context_mark, f"{error.context}"
    reached = min(place.line + 1, len(lines)) if place else len(lines)
    if opened is not None and opened.line >= len(lines):
        opened = None
    if opened is not None and ("flow sequence" in context or "flow mapping" in context):
        return _open_bracket(lines, opened.line, opened.column)
    if place is not None and "flow node" in context:
        brackets = [each for each in range(reached) if lines[each].rstrip().endswith(("[", "{"))]
        if brackets:
            return _open_bracket(lines, brackets[-1], len(lines[brackets[-1]].rstrip()) - 1)
    above = ""  # the last item or key
    for number in range(reached):
        if number not in prose and (found := _in_line(lines, number, above)) is not None:
            return found
        above = lines[number] if _ITEM.match(lines[number]) or _KEY.match(lines[number]) else above
    if opened is not None and "quoted scalar" in context:
        return _open_quote(lines, opened.line, opened.column)
    if place is not None and place.line < len(lines) and "expected" in f"{error.problem}":
        return _out_of_line(lines, place.line, prose)
    return None


def _marker(lines: list[str]) -> Mistake | None:
    found = [number for number, line in enumerate(lines, 1) if CONFLICT.match(line)]
    if not found:
        return None
    message = f"a merge left the conflict marker {lines[found[0] - 1][:7]!r} here"
    hint = "decide for one side and delete the lines with markers"
    return Mistake(found[0], 1, message, hint, dict.fromkeys(found, ""))


def _template(lines: list[str], prose: frozenset[int]) -> Mistake | None:
    found = [
        number for number, line in enumerate(lines, 1) if number - 1 not in prose and TEMPLATE.search(line)
    ]
    if not found:
        return None
    seen = TEMPLATE.search(lines[found[0] - 1])
    assert seen is not None  # noqa: S101 - the line was chosen by it
    message = f"{seen.group()!r} belongs to a template, and templates are not evaluated"
    return Mistake(found[0], seen.start() + 1, message, TEMPLATE_HINT, dict.fromkeys(found, ""))


def _tab(lines: list[str], prose: frozenset[int]) -> Mistake | None:
    indents = {number: line[: len(line) - len(line.lstrip())] for number, line in enumerate(lines, 1)}
    found = [number for number, indent in indents.items() if "\t" in indent and number - 1 not in prose]
    if not found:
        return None
    more = f", and {len(found) - 1} more below" if len(found) > 1 else ""
    column = indents[found[0]].index("\t") + 1
    return Mistake(found[0], column, f"a tab indents this line{more}", "indent with spaces", None)


def _open_bracket(lines: list[str], number: int, column: int) -> Mistake:
    line = lines[number]
    bracket = line[column : column + 1]
    alone = not line[column + 1 :].strip() or line.rstrip().endswith(",")
    instead = None if alone else {number + 1: line + ("]" if bracket == "[" else "}")}
    message = f"the {bracket!r} that opens here is not closed"
    return Mistake(number + 1, column + 1, message, "close it", instead)


def _inside_blocks(lines: list[str]) -> frozenset[int]:
    """The numbers, from 0, of lines that belong to texts written as blocks, or are blank or comments."""
    inside: set[int] = set()
    block: int | None = None
    for number, line in enumerate(lines):
        stripped = line.strip()
        indent = _indent(line)
        if block is not None and stripped and indent <= block:
            block = None
        if block is not None or not stripped or stripped.startswith(("#", "---", "%")):
            inside.add(number)
        elif _BLOCK.search(line):
            block = indent
    return frozenset(inside)


def _in_line(lines: list[str], number: int, above: str) -> Mistake | None:
    """A mistake that a line shows by itself, or beside the lines around it."""
    line = lines[number]
    indent = _indent(line)
    if (bound := _BOUND.match(line)) and not _BLOCK.search(line):
        return _bound(number, line, bound)
    if (dash := _dash(number, line, indent)) is not None:
        return dash
    opening = _OPENED.match(line)
    if opening is not None:
        return _open_quote(lines, number, opening.end() - 1)
    if not _ITEM.match(line) and not _KEY.match(line) and line.strip()[0] not in "[]{},":
        return _neither(lines, number, above)
    return _under_a_value(lines, number, indent)


def _dash(number: int, line: str, indent: int) -> Mistake | None:
    """A '-' with something else behind it than a space and a value."""
    if nameless := _NAMELESS.match(line):
        message = f"there is no name of a package in front of {nameless[1]!r}"
        hint = f"write it as `- NAME{nameless[1]}`"
        return Mistake(number + 1, nameless.start(1) + 1, message, hint, {number + 1: ""})
    if _DASHED.match(line):
        text = line.strip()
        right = f"- {text}" if re.match(r"-[a-z] ", text) else f"- {text[1:]}"
        message = "there is no space behind the '-'"
        return Mistake(
            number + 1, indent + 1, message, f"write it as `{right}`", {number + 1: " " * indent + right}
        )
    if tabbed := _TABBED.match(line):
        right = f"{tabbed[0]} {line[tabbed.end() :].lstrip()}"
        message = "a tab stands behind the '-'"
        return Mistake(number + 1, tabbed.end() + 1, message, "put a space there", {number + 1: right})
    return None


def _bound(number: int, line: str, bound: re.Match[str]) -> Mistake:
    """A name with a ':' and a bound behind it."""
    dash, name, value = bound.groups()
    right = f"- {name}{value}"
    missing = "" if dash else "a '- ' in front, and "
    return Mistake(
        number + 1,
        line.index(name) + 1,
        f"{name!r} has a ':' behind it",
        f"write {missing}no ':', as `{right}`",
        {number + 1: " " * _indent(line) + right},
    )


def _neither(lines: list[str], number: int, above: str) -> Mistake | None:
    """A line that is neither a key nor an item, unless it goes on with a text that starts above it."""
    line, indent, text = lines[number], _indent(lines[number]), lines[number].strip()
    open_key = _KEY.match(above) is not None and above.rstrip().endswith(":")
    if above and indent > _indent(above) and not open_key:
        return None
    if tight := _TIGHT_KEY.match(line):
        right = f"{tight[1]}: {line[tight.end() :].strip()}"
        message = f"there is no space behind the ':' of `{tight[1]}`"
    elif _WORD.match(line) and _is_owner(lines, number):
        right = f"{text}:"
        message = f"there is no ':' behind `{text}`"
    else:
        right = text.replace("=", ": ", 1) if above.strip() == "variables:" else f"- {text}"
        message = "the line is neither a key nor an item"
    return Mistake(
        number + 1, indent + 1, message, f"write it as `{right}`", {number + 1: " " * indent + right}
    )


def _is_owner(lines: list[str], number: int) -> bool:
    """Whether a line at the margin has what looks like its list or mapping below it."""
    below = next((each for each in lines[number + 1 :] if each.strip()), "")
    return _indent(lines[number]) == 0 and (_ITEM.match(below) is not None or _indent(below) > 0)


def _open_quote(lines: list[str], number: int, column: int) -> Mistake | None:
    """A quote that nothing closes, on its line or on those with which its text may go on."""
    quote, rest = lines[number][column], lines[number][column + 1 :]
    for line in lines[number + 1 :]:
        if _ITEM.match(line) or _KEY.match(line):
            break
        rest += line
    rest = rest.replace("\\" + quote, "") if quote == '"' else rest.replace("''", "")
    if quote in rest:
        return None
    message = f"the quote {quote} that opens here is not closed on its line"
    whole = lines[number].rstrip()
    right = f"{whole[:-1]}{quote}:" if whole.endswith(":") else whole + quote
    return Mistake(number + 1, column + 1, message, "close it", {number + 1: right})


def _under_a_value(lines: list[str], number: int, indent: int) -> Mistake | None:
    """A key that is indented below a key which has a value on its own line already."""
    if number == 0 or _ITEM.match(lines[number]):
        return None
    above = lines[number - 1]
    if _VALUED.match(above) and indent > _indent(above):
        name, owner = lines[number].strip().partition(":")[0], above.strip().partition(":")[0]
        message = f"`{name}` is indented below `{owner}`, which has a value already"
        right = " " * _indent(above) + lines[number].strip()
        return Mistake(number + 1, indent + 1, message, f"indent it like `{owner}`", {number + 1: right})
    return None


def _out_of_line(lines: list[str], number: int, prose: frozenset[int]) -> Mistake | None:
    """An item in another column than those above it, or a key among items."""
    line, indent = lines[number], _indent(lines[number])
    above = [each for each in range(number) if each not in prose]
    items = [_indent(lines[each]) for each in above if _ITEM.match(lines[each])]
    if number in prose or not above:
        return None
    if _KEY.match(line) and not _ITEM.match(line) and indent < _indent(lines[above[0]]):
        message = f"this key is indented, and `{line.strip().partition(':')[0]}` in line {number + 1} is not"
        return Mistake(above[0] + 1, 1, message, "start all keys in one column", None)
    if _ITEM.match(line) and items and indent not in items:
        message = "this item stands in another column than those above it"
        hint = "start it in the column of the items of its list"
        return Mistake(number + 1, indent + 1, message, hint, _moved(lines, number, items, above[-1]))
    if _KEY.match(line) and indent > 0 and indent in items:
        return _key_among_items(line, number)
    return None


def _moved(lines: list[str], number: int, items: list[int], above: int) -> dict[int, str] | None:
    """An item and those that follow in its column, in that of the items above; None where that is unclear."""
    indent = _indent(lines[number])
    columns = {each for each in items if abs(each - indent) <= 2}
    if len(columns) != 1 or lines[above].rstrip().endswith(":"):
        return None
    right = " " * columns.pop()
    instead = {}
    for each in range(number, len(lines)):
        if _indent(lines[each]) == indent and _ITEM.match(lines[each]):
            instead[each + 1] = right + lines[each].strip()
        elif lines[each].strip():
            break
    return instead


def _key_among_items(line: str, number: int) -> Mistake:
    name, indent = line.strip().partition(":")[0], _indent(line)
    if name in forms.CONDA_KEYS | forms.ENVBUILD_KEYS and name != "pip":
        message = f"`{name}:` is indented like the items above it"
        return Mistake(number + 1, indent + 1, message, "start it in the column of the other keys", None)
    right = f"- {line.strip()}"
    message = f"`{name}:` stands among items and has no '- ' in front"
    instead = {number + 1: " " * indent + right}
    return Mistake(number + 1, indent + 1, message, f"write it as `{right}`", instead)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
