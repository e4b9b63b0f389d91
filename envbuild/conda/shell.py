"""The words of a shell script that does no more than set variables; all else is not understood.

Source: POSIX.1-2017, "Shell Command Language", 2.2 (quoting), 2.3 (tokens), 2.6.2 (parameters).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPACE: Final = re.compile(r"(?:[ \t\r]|\\\n)+")
_OPERATOR: Final = re.compile(r"&&|\|\||[;\n]")
_PLAIN: Final = re.compile(r"[^\s'\"\\$`;&|<>(){}*?~#]+|#")
_IN_QUOTES: Final = re.compile(r'[^"\\$`]+')
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_DEPTH: Final = 10


class NotUnderstood(Exception):  # noqa: N818 - an answer, no error
    """A script does more than set variables; the text says what."""


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that stand for themselves."""

    text: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """A variable's value.

    Attributes:
        name: The variable.
        operator: Nothing, ``-`` or ``:-`` (a word instead), ``+`` or ``:+`` (a word if it is there).
        word: That word.
        quoted: Whether it stands in double quotes.
    """

    name: str
    operator: str
    word: Word
    quoted: bool


Word = tuple["Text | Parameter", ...]
Token = Word | str
"""A word, or an operator: ``;``, a line's end, ``&&`` or ``||``."""


def tokens(script: str) -> Iterator[Token]:
    """The words and operators of a script.

    Raises:
        NotUnderstood: There is something else in it.
    """
    at = 0
    while at < len(script):
        if space := _SPACE.match(script, at):
            at = space.end()
        elif script[at] == "#":
            end = script.find("\n", at)
            at = len(script) if end < 0 else end
        elif operator := _OPERATOR.match(script, at):
            yield operator[0]
            at = operator.end()
        else:
            reader = _Reader(script, at)
            yield reader.word()
            at = reader.at


class _Reader:
    def __init__(self, script: str, at: int) -> None:
        self.script = script
        self.at = at

    def word(self) -> Word:
        """A word up to what ends it."""
        parts: list[Text | Parameter] = []
        while self.at < len(self.script) and not self._ends():
            parts += self._part()
        return tuple(parts)

    def _ends(self) -> bool:
        ending = _SPACE.match(self.script, self.at) or _OPERATOR.match(self.script, self.at)
        return ending is not None

    def _part(self) -> Word:
        letter = self.script[self.at]
        if letter == "'":
            return (Text(self._until("'"), quoted=True),)
        if letter == '"':
            self.at += 1
            return self._quoted('"', 0)
        if letter == "$":
            return (self._parameter(0, quoted=False),)
        if letter == "\\" and self.at + 1 < len(self.script):
            self.at += 2
            return (Text(self.script[self.at - 1], quoted=True),)
        plain = _PLAIN.match(self.script, self.at)
        if plain is None:
            raise NotUnderstood(f"{letter!r} in line {self.script.count(chr(10), 0, self.at) + 1}")
        self.at = plain.end()
        return (Text(plain[0], quoted=False),)

    def _until(self, end: str) -> str:
        stop = self.script.find(end, self.at + 1)
        if stop < 0:
            raise NotUnderstood(f"a {end} that is not closed")
        text = self.script[self.at + 1 : stop]
        self.at = stop + 1
        return text

    def _quoted(self, end: str, depth: int) -> Word:
        """What stands up to ``end``, as in double quotes."""
        parts: list[Text | Parameter] = [Text("", quoted=True)]
        while self.at < len(self.script):
            letter = self.script[self.at]
            if letter == end:
                self.at += 1
                return tuple(parts)
            if letter == "$" and self.script[self.at + 1 : self.at + 2] in {'"', " ", "", end}:
                self.at += 1
                parts.append(Text("$", quoted=True))
            elif letter == "$":
                parts.append(self._parameter(depth, quoted=True))
            elif letter == "\\":
                parts.append(Text(self._escaped(), quoted=True))
            elif end == "}" and letter in "'\"":
                raise NotUnderstood("quotes inside of ${…}")
            else:
                parts.append(Text(self._run(end), quoted=True))
        raise NotUnderstood(f"a {end} that is missing")

    def _run(self, end: str) -> str:
        plain = _IN_QUOTES.match(self.script, self.at)
        text = plain[0].partition(end)[0] if plain else ""
        if not text:
            raise NotUnderstood(f"{self.script[self.at]!r} in quotes")
        self.at += len(text)
        return text

    def _escaped(self) -> str:
        following = self.script[self.at + 1 : self.at + 2]
        self.at += 2
        if following == "\n":
            return ""
        return following if following in set('$`"\\') else f"\\{following}"

    def _parameter(self, depth: int, *, quoted: bool) -> Parameter:
        if depth > _MAX_DEPTH:
            raise NotUnderstood("variables in variables")
        self.at += 1
        braced = self.script[self.at : self.at + 1] == "{"
        name = _NAME.match(self.script, self.at + braced)
        if name is None:
            raise NotUnderstood(f"'${self.script[self.at : self.at + 8]}'")
        self.at = name.end()
        if not braced:
            return Parameter(name[0], "", (), quoted)
        operator = re.compile(r":?[-+]|(?=\})").match(self.script, self.at)
        if operator is None:
            raise NotUnderstood(f"'${{{name[0]}{self.script[self.at : self.at + 8]}'")
        self.at = operator.end()
        return Parameter(name[0], operator[0], self._quoted("}", depth + 1), quoted)
