"""Words, quotes and variables as Dockerfile instructions have them.

Source: the "Environment replacement" section of the Dockerfile reference and BuildKit's ``shell`` lexer. The
escape character is always the backslash, because steps may not change it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envbuild.budget import Budget
from envbuild.spec.document import fail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.spec.document import Mark

_TOKEN = r"(?:\\.|\"(?:\\.|[^\"\\])*\"|'[^']*'|[^\s\"'\\])"  # noqa: S105 - a token of a grammar
_WORD = re.compile(rf"(?>{_TOKEN}+)")
_LINE = re.compile(rf"(?>(?:\s|{_TOKEN})*)")
_PLAIN = re.compile(r"[^\"'$\\]++")
_QUOTED = re.compile(r"\\(.)|\"((?:\\.|[^\"\\])*)\"|'([^']*)'")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]"
_VARIABLE = re.compile(rf"\$(?:({_NAME})|\{{({_NAME})((?:[:+?#%/-][^{{}}\"'\\]*)?)\}})")
_DEFAULT = re.compile(r"(:?[-+])(.*)")


def split_words(text: str) -> list[str] | None:
    """Split at white space outside quotes; quotes and escapes stay. None where a quote is not closed."""
    return _WORD.findall(text) if _LINE.fullmatch(text) else None


def unquote(word: str) -> str:
    """Take quotes and escapes away; variables stay as they are."""

    def plain(found: re.Match[str]) -> str:
        if found[1] is not None:
            return found[1]
        return re.sub(r'\\([\\"$])', r"\1", found[2]) if found[2] is not None else found[3]

    return _QUOTED.sub(plain, word)


def quote_value(raw: str, mark: Mark, *, whole: bool = False) -> str:
    """One spelling for a value of ENV, LABEL or ARG: double quotes, ``${NAME}``, the fewest escapes.

    Values with quotes, escapes or braces inside ``${…}`` keep the spelling they have.

    Args:
        raw: The value with its quotes and escapes.
        mark: The place for errors.
        whole: Whether the value is the rest of a line (``ENV NAME VALUE``), so that it may hold spaces.

    Raises:
        SpecError: A whole line that has no spelling as a word.
    """
    pieces: list[str] = []
    position = 0
    quoted = False
    while position < len(raw):
        piece, position, quoted = _piece(raw, position, quoted)
        if piece is None:
            if whole:
                fail(mark, "quotes or braces inside ${…} in the form 'NAME VALUE'", "write NAME=VALUE")
            return raw
        pieces.append(piece)
    return f'"{"".join(pieces)}"'


def expand(word: str, values: Mapping[str, str | None], budget: Budget | None = None) -> str | None:
    """The text that a word stands for; None where it needs a variable that is not known.

    Args:
        word: A word with its quotes and escapes.
        values: What is known: the text of a variable, or None for one whose text only the build knows. A
            variable that is missing here may come from the base image, so it is not known either.
        budget: Pays for the text; None for one of its own.

    Raises:
        OverBudgetError: The text would be too long.
    """
    budget = budget or Budget()
    pieces: list[str] = []
    position = 0
    quoted = False
    while position < len(word):
        found = _VARIABLE.match(word, position)
        if found is not None:
            value = _variable(found, values, budget)
            position = found.end()
        else:
            value, position, quoted = _piece(word, position, quoted)
            value = None if value is None else re.sub(r"\\(.)", r"\1", value)
        if value is None:
            return None
        budget.spend(len(value))
        pieces.append(value)
    return "".join(pieces)


def _variable(found: re.Match[str], values: Mapping[str, str | None], budget: Budget) -> str | None:
    value = values.get(found[1] or found[2])
    modifier = _DEFAULT.fullmatch(found[3] or "")
    if value is None or (found[3] and modifier is None):
        return None
    if modifier is None:
        return value
    is_set = bool(value) or not modifier[1].startswith(":")
    if modifier[1].endswith("-"):
        return value if is_set else expand(modifier[2], values, budget)
    return expand(modifier[2], values, budget) if is_set else ""


def _piece(raw: str, position: int, quoted: bool) -> tuple[str | None, int, bool]:
    """A variable, or a run of plain or quoted text, escaped for double quotes; None where there is no way."""
    character = raw[position]
    following = raw[position + 1 : position + 2]
    if character == "$":
        if found := _VARIABLE.match(raw, position):
            return f"${{{found[1] or found[2]}{found[3] or ''}}}", found.end(), quoted
        return (None if following == "{" else "\\$"), position + 1, quoted
    if character == '"':
        return "", position + 1, not quoted
    if character == "'" and not quoted:
        end = raw.find("'", position + 1)
        return (None if end < 0 else _escape(raw[position + 1 : end])), end + 1, quoted
    if character == "\\":
        kept = "\\" if quoted and following not in {'"', "$", "\\"} else ""
        return _escape(kept + following), position + 2, quoted
    end = found.end() if (found := _PLAIN.match(raw, position)) else position + 1
    return raw[position:end], end, quoted


def _escape(text: str) -> str:
    return re.sub(r'([\\"$])', r"\\\1", text)
