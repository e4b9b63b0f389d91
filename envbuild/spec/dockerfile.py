"""The grammar of Dockerfile instructions: text to frozen values and back.

Source: the parser and the reference page of BuildKit's Dockerfile front end (version 1). Where engines of
different age read one text in different ways, the text is refused, so that what was keyed is what is built.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envbuild.errors import SpecError
from envbuild.spec.arguments import read_arguments
from envbuild.spec.document import Mark, fail, refuse
from envbuild.spec.files import check_time
from envbuild.spec.flags import take_flags, unknown
from envbuild.spec.instruction import COMMANDS, LISTS, Heredoc, Instruction
from envbuild.spec.quoting import split_words, unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEYWORDS = (
    COMMANDS
    | LISTS
    | {"ARG", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "SHELL", "STOPSIGNAL", "USER", "WORKDIR"}
)
_WITH_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})
_NO_FROM = ("FROM cannot stand in steps", "name the base image in the definition's 'base'")
_REFUSED = {
    "ONBUILD": (
        "ONBUILD acts only in images that are built from this one, so it has no place in steps",
        "write the instruction itself, or leave it out",
    ),
}
MAX_INSTRUCTION = (1 << 17) - 1
"""Linux passes no longer command to a shell."""
MAX_MISTAKES = 20
MAX_INSTRUCTIONS = 2000

_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_ODD_SPACE = re.compile(r"[^\S \t\n]")
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
_OPEN_HEREDOC = ("<<", "<<-")
_HEREDOC = re.compile(r"[0-9]*<<(-?)([^<]+)")


def parse_instructions(
    text: str, mark: Mark, *, why_no_from: tuple[str, str] = _NO_FROM
) -> tuple[Instruction, ...]:
    """Parse Dockerfile instructions without FROM.

    Args:
        text: The instructions.
        mark: Where the first character of the text stands; all lines start in that column.
        why_no_from: What to say of a FROM, and what to do instead.

    Raises:
        SpecError: The text is not by the grammar, or holds what steps may not hold.
    """
    return tuple(_Parser(_lines(text, mark), mark, why_no_from).instructions())


def read_preamble(text: str, mark: Mark) -> tuple[list[tuple[str, str, Mark]], int]:
    """The instructions of a Dockerfile up to its first FROM, that one included, as keyword and rest.

    Args:
        text: The Dockerfile.
        mark: Where its first character stands.

    Returns:
        The instructions, and how many lines of the text they take.

    Raises:
        SpecError: A line is malformed, or holds a parser directive.
    """
    parser = _Parser(_lines(text, mark), mark, _NO_FROM)
    found: list[tuple[str, str, Mark]] = []
    for line, place in parser.logical_lines():
        keyword, _, rest = line.replace("\t", " ").partition(" ")
        found.append((keyword.upper(), rest.strip(), place))
        if keyword.upper() == "FROM":
            break
    return found, parser.position


def _lines(text: str, mark: Mark) -> list[str]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = text.split("\n")
    for number, line in enumerate(lines if _UNSAFE.search(text) else ()):
        if found := _UNSAFE.search(line):
            place = Mark(mark.source, mark.line + number, mark.column + found.start())
            fail(place, f"control or invisible character U+{ord(found[0]):04X} in steps", "remove it")
    return lines


class _Parser:
    """Walks over physical lines; ``_next`` is the next line that nobody has read."""

    def __init__(self, lines: list[str], mark: Mark, why_no_from: tuple[str, str]) -> None:
        self._lines = lines
        self._mark = mark
        self._refused = {**_REFUSED, "FROM": why_no_from}
        self._next = 0

    @property
    def position(self) -> int:
        """How many lines have been read."""
        return self._next

    def instructions(self) -> Iterator[Instruction]:
        mistakes: list[SpecError] = []
        for count, (text, mark) in enumerate(self.logical_lines()):
            if count == MAX_INSTRUCTIONS:
                fail(mark, f"there are more than {MAX_INSTRUCTIONS} instructions", "join some of them")
            check_time(f"reading {mark.source}")
            try:
                found = self._instruction(text, mark)
            except SpecError as error:
                mistakes.append(error)
                if "<<" in text or len(mistakes) == MAX_MISTAKES:
                    break  # what follows may be the text of a heredoc
            else:
                yield found
        refuse(mistakes)

    def logical_lines(self) -> Iterator[tuple[str, Mark]]:
        """Instructions as text; reading one leaves its heredocs, so the next comes when they are read."""
        while self._next < len(self._lines):
            first = self._lines[self._next]
            column = self._mark.column + len(first) - len(first.lstrip(" \t"))
            mark = Mark(self._mark.source, self._mark.line + self._next, column)
            if text := self._logical_line():
                yield text, mark

    def _here(self) -> Mark:
        return Mark(self._mark.source, self._mark.line + self._next, self._mark.column)

    def _logical_line(self) -> str:
        """Join a line with its continuations; comments and blank lines between them are dropped."""
        pieces: list[str] = []
        size, first, continued = 0, True, True
        while continued and self._next < len(self._lines):
            line = self._lines[self._next]
            stripped = line.lstrip(" \t")
            if stripped.startswith("#"):
                self._comment(stripped)
            elif stripped:
                kept, continued = self._without_escape(stripped if first else line)
                pieces.append(kept)
                size += len(line) + 1
                first = False
            if size > MAX_INSTRUCTION:
                fail(
                    self._here(),
                    f"an instruction has more than {MAX_INSTRUCTION} characters",
                    "put it into a file",
                )
            self._next += 1
            if first:
                break
        joined = "".join(pieces)
        if odd := _ODD_SPACE.search(joined):
            self._next -= 1
            fail(self._here(), f"white space U+{ord(odd[0]):04X} in an instruction", "use an ordinary space")
        joined = joined.strip(" \t")
        if joined.endswith("\\"):
            self._next -= 1
            fail(self._here(), "an instruction ends in a backslash", "take it away, or put it into quotes")
        return joined

    def _without_escape(self, line: str) -> tuple[str, bool]:
        """The line without the backslash that continues it, and whether there is one."""
        end = line.rstrip(" \t")
        if not end.endswith("\\"):
            return line, False
        if end.endswith("\\\\"):
            fail(
                self._here(),
                "a line ends in two backslashes, which engines read differently",
                "end it in one backslash to continue it, or put the text into quotes",
            )
        return end[:-1], True

    def _comment(self, text: str) -> None:
        if found := _DIRECTIVE.match(text):
            fail(
                self._here(),
                f"the parser directive '# {found[1].lower()}=' is not allowed, the front end is given",
                "remove the line",
            )

    def _instruction(self, text: str, mark: Mark) -> Instruction:
        keyword, _, rest = re.sub(r"[ \t]+", " ", text, count=1).partition(" ")
        keyword = keyword.upper()
        if keyword in self._refused:
            fail(mark, *self._refused[keyword])
        if keyword not in _KEYWORDS:
            unknown(mark, "instruction", keyword, _KEYWORDS)
        flags, body = take_flags(rest, keyword, mark)
        if not body:
            fail(mark, f"{keyword} has no arguments", f"write something after {keyword}, or remove the line")
        arguments, exec_form, is_json = read_arguments(keyword, body, mark)
        heredocs: tuple[Heredoc, ...] = ()
        if keyword in _WITH_HEREDOCS and not is_json and "<<" in body:
            heredocs = tuple(self._heredocs(body, mark))
        return Instruction(keyword, flags, arguments, exec_form, heredocs, mark)

    def _heredocs(self, body: str, mark: Mark) -> Iterator[Heredoc]:
        words = split_words(body)
        if words is None:
            if any(_HEREDOC.fullmatch(word) for word in body.split()):
                fail(mark, "a heredoc beside an unbalanced quote", "close the quote")
            return
        named = any(map(_HEREDOC.fullmatch, words))
        for word in words:
            if word.endswith(_OPEN_HEREDOC) and (word != "<<<" or named):
                fail(
                    mark,
                    f"{word[:40]!r} ends in <<, which engines read differently",
                    "write the heredoc's name right behind it, or put the text into quotes",
                )
            if found := _HEREDOC.fullmatch(word):
                name = unquote(found[2])
                if not name.strip() or "$" in name or "\\" in name:
                    fail(mark, f"{word!r} is no heredoc name", "name it with letters, as <<EOF")
                yield self._heredoc(name, name == found[2], found[1] == "-", mark)

    def _heredoc(self, name: str, expand: bool, strip_tabs: bool, mark: Mark) -> Heredoc:
        content: list[str] = []
        while self._next < len(self._lines):
            line = self._lines[self._next]
            self._next += 1
            if (line.lstrip("\t") if strip_tabs else line) == name:
                break
            content.append(line + "\n")
        else:
            fail(mark, f"the heredoc {name!r} has no end", f"add a line that holds only {name}")
        return Heredoc(name, "".join(content), expand, strip_tabs)
