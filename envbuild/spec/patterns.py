"""Path patterns as Docker reads them: globs of COPY and ADD, and ``.dockerignore``.

Sources: Go's ``path/filepath.Match``; the ".dockerignore file" section of Docker's build reference and the
behaviour of the matcher that the engine and BuildKit share. Git's ignore rules differ in anchoring, in
trailing slashes and in what ``!`` can bring back, so a library for those cannot be used here.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_WILDCARD = re.compile(r"[*?\[]")
_ESCAPED = re.compile(r"\\[A-Za-z0-9]")
_STAR: Final = "[^/]*"
_FOLDERS: Final = "(?:.*/)?"
_ALL: Final = ".*"
_LOOPS: Final = frozenset({_STAR, _FOLDERS, _ALL})
_MAX_LOOPS: Final = 2
"""A regular expression goes back over a path once for each of its stars, so it may have no more of them."""


class BadPatternError(ValueError):
    """A pattern that Go's ``filepath.Match`` refuses, or whose meaning engines do not agree on."""


def has_wildcard(source: str) -> bool:
    """Whether a COPY or ADD source is a glob."""
    return _WILDCARD.search(source) is not None


def glob(pattern: str) -> Callable[[str], object]:
    """A test for one path component or path, by the rules of Go's ``filepath.Match``.

    Raises:
        BadPatternError: The pattern is malformed.
    """
    pieces: list[str] = []
    position = 0
    while position < len(pattern):
        piece, position = _piece(pattern, position)
        pieces.append(piece)
    return _test_of(pieces)


def _test_of(pieces: list[str]) -> Callable[[str], object]:
    """A test of regular expressions that match one character each, and of loops."""
    pieces = [
        piece
        for each, piece in enumerate(pieces)
        if piece not in _LOOPS or pieces[each - 1 : each] != [piece]
    ]
    if sum(piece in _LOOPS for piece in pieces) > _MAX_LOOPS:
        return _Automaton(pieces)
    return re.compile("".join(pieces), re.DOTALL).fullmatch


class _Automaton:
    """The same test for many stars: all places of the pattern that a path could have reached, as bits.

    Its time is that of the path's length times the pattern's, the latter in machine words.
    """

    def __init__(self, pieces: list[str]) -> None:
        self._end = 1 << len(pieces)
        self._tests = [None if piece in _LOOPS else re.compile(piece, re.DOTALL) for piece in pieces]
        self._star, self._folders, self._all = (
            _bits(piece == loop for piece in pieces) for loop in (_STAR, _FOLDERS, _ALL)
        )
        self._moves: dict[str, int] = {}

    def __call__(self, path: str) -> bool:
        """Whether the pattern matches a path."""
        reached = self._skipped(1)
        for letter in path:
            stays = self._all | (self._star if letter != "/" else 0)
            arrived = (reached & self._moving(letter)) << 1 | (reached & stays)
            reached = self._skipped(arrived) | (reached & self._folders)
        return bool(reached & self._end)

    def _moving(self, letter: str) -> int:
        """The places that a letter leads one further from."""
        if letter not in self._moves:
            found = _bits(test is not None and test.fullmatch(letter) is not None for test in self._tests)
            self._moves[letter] = found | (self._folders if letter == "/" else 0)
        return self._moves[letter]

    def _skipped(self, reached: int) -> int:
        """With the places behind loops that repeat nothing: a carry runs through each row of loops."""
        loops = self._star | self._folders | self._all
        return reached | ((loops + (reached & loops)) ^ loops)


def _bits(flags: Iterable[bool]) -> int:
    """A number whose bits are these, the lowest first."""
    return int("".join("01"[flag] for flag in flags)[::-1] or "0", 2)


def _piece(pattern: str, position: int) -> tuple[str, int]:
    character = pattern[position]
    if character == "*":
        return _STAR, position + 1
    if character == "?":
        return "[^/]", position + 1
    if character == "[":
        return _class(pattern, position + 1)
    if character == "\\":
        escaped, position = _character(pattern, position)
        return re.escape(escaped), position
    return re.escape(character), position + 1


def _character(pattern: str, position: int) -> tuple[str, int]:
    """One character, escaped or not."""
    if pattern[position : position + 1] == "\\":
        position += 1
    if position >= len(pattern):
        raise BadPatternError(f"the pattern {pattern!r} ends too early")
    return pattern[position], position + 1


def _class(pattern: str, position: int) -> tuple[str, int]:
    """A character class; ``position`` is behind its opening bracket."""
    negated = pattern[position : position + 1] == "^"
    position += negated
    ranges: list[str] = []
    while not ranges or pattern[position : position + 1] != "]":
        if pattern[position : position + 1] in {"-", "]", "[", "/", ""}:
            raise BadPatternError(f"the pattern {pattern!r} has a bad character class")
        low, position = _character(pattern, position)
        high = low
        if pattern[position : position + 1] == "-":
            if pattern[position + 1 : position + 2] in {"-", "]", ""}:
                raise BadPatternError(f"the pattern {pattern!r} has a bad character class")
            high, position = _character(pattern, position + 1)
        if high < low:
            raise BadPatternError(f"the pattern {pattern!r} has a range that runs backwards")
        ranges.append(f"{re.escape(low)}-{re.escape(high)}")
    return f"[{'^' if negated else ''}{''.join(ranges)}]", position + 1


@dataclass(frozen=True, slots=True)
class _Rule:
    matches: Callable[[str], object]
    brings_back: bool


class IgnoreRules:
    """The patterns of a ``.dockerignore`` file, in order; the last one that matches decides."""

    def __init__(self, rules: Sequence[_Rule] = ()) -> None:
        self._rules = tuple(rules)
        self.brings_back = any(rule.brings_back for rule in self._rules)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the file's text.

        Raises:
            BadPatternError: A pattern is malformed; the message names its line.
        """
        rules: list[_Rule] = []
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
            pattern = line.strip()
            if line.startswith("#") or not pattern:
                continue
            try:
                rules.append(_rule(pattern))
            except BadPatternError as error:
                raise BadPatternError(f"line {number}: {error}") from None
        return cls(rules)

    def ignores(self, path: str) -> bool:
        """Whether a path, or a folder above it, is left out; ``/`` between names, no leading slash."""
        parts = path.split("/")
        above = [False] * len(self._rules)
        ignored = False
        for depth in range(1, len(parts) + 1):
            ignored, above = self._test("/".join(parts[:depth]), above)
        return ignored

    def _test(self, path: str, above: list[bool]) -> tuple[bool, list[bool]]:
        """Whether a path is ignored, and which rules matched it; ``above`` says so for the folder it is in.

        A rule that could change nothing is not tried, and then does not hold for what is below either.
        """
        ignored = False
        matched: list[bool] = []
        for rule, inherited in zip(self._rules, above, strict=True):
            found = inherited or (rule.brings_back == ignored and bool(rule.matches(path)))
            matched.append(found)
            if found:
                ignored = not rule.brings_back
        return ignored, matched


def _rule(pattern: str) -> _Rule:
    brings_back = pattern.startswith("!")
    if brings_back:
        pattern = pattern[1:].strip()
    if not pattern:
        raise BadPatternError("'!' stands alone")
    cleaned = posixpath.normpath(pattern)
    cleaned = cleaned.lstrip("/") or "/"
    glob(cleaned)  # every pattern must be good for filepath.Match too
    return _Rule(_matcher(cleaned), brings_back)


def _matcher(pattern: str) -> Callable[[str], object]:
    """A matcher with ``**``, which is any number of folders, also none."""
    if not re.search(r"[*?\[\]\\]", pattern):
        return pattern.__eq__
    if re.fullmatch(r"\*\*[^*?\[\]\\/][^*?\[\]\\]*", pattern):
        return lambda path: path.endswith(pattern[2:])  # only here '**' may end inside a name
    pieces: list[str] = []
    position = 0
    while position < len(pattern):
        if pattern.startswith("**", position):
            position += 3 if pattern.startswith("**/", position) else 2
            pieces.append(_FOLDERS if position < len(pattern) else _ALL)
        else:
            if _ESCAPED.match(pattern, position):
                raise BadPatternError(f"the pattern {pattern!r} has a backslash before a letter or digit")
            piece, position = _piece(pattern, position)
            pieces.append(piece)
    return _test_of(pieces)
