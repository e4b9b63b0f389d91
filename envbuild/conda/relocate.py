"""Replacing the prefix that a package was built with by the one it is installed under.

The rules, and so the bytes, are those of rattler 0.28 (Conda's, and the draft CEP on prefix offsets for
paths in wide characters).
"""

from __future__ import annotations

import functools
import heapq
import operator
import re
from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import BuildError, IntegrityError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

    from envbuild.deadline import Deadline

_ENCODINGS: Final = (("utf-8", 1), ("utf-16-le", 2), ("utf-16-be", 2), ("utf-32-le", 4), ("utf-32-be", 4))
_SHEBANG: Final = re.compile(r"#! *+(/(?>(?:\\ |[^ \n\r\t])*))(.*)")
_PYTHON: Final = re.compile(r"python(?:\d+(?:\.\d+)?)?")
_MAX_SHEBANG: Final = 127
_MAX_LINE: Final = 1 << 20
"""The longest first line of a script that is looked at."""
_PIECE: Final = 1 << 20
_SMALL: Final = 1 << 14
_WINDOW: Final = 64 << 20
_TICKS: Final = 1 << 12
_FREE_EDITS: Final = 1 << 16
_TRIES: Final = 64
_BLOCK: Final = 1 << 16


class FileMode(StrEnum):
    """How a prefix stands in a file."""

    TEXT = "text"
    BINARY = "binary"

    @property
    def spacing(self) -> int:
        """In a large file the old prefix stands at most once in so many bytes, on average.

        Builders use prefixes of 80 to 255 characters. One of a letter stands everywhere, and has a file grow.
        """
        return 64 if self is FileMode.TEXT else 256


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The two prefixes in one encoding."""

    old: bytes
    new: bytes
    unit: int


@dataclass(frozen=True, slots=True)
class _CString:
    """A string in a binary: where the old prefix starts first in it, and where it ends.

    Attributes:
        start: Where the old prefix starts.
        end: Where the string ends.
        prefix: The prefix in the string's encoding.
        rank: The lower, the surer it is that this is a string.
    """

    start: int
    end: int
    prefix: _Prefix
    rank: int


@dataclass(slots=True)
class _Edits:
    """What is replaced in a file, from its start to its end: a few bytes for each, as there may be many."""

    starts: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    kinds: array[int] = field(default_factory=lambda: array("Q"))
    news: dict[bytes, int] = field(default_factory=dict)
    growth: int = 0

    def replace(self, start: int, length: int, new: bytes) -> None:
        """Put new bytes in the place of a stretch, which begins behind all that was given before."""
        self._add(start, length, 2 * self.news.setdefault(new, len(self.news)) + 1)
        self.growth += len(new) - length

    def fill(self, start: int, zeros: int) -> None:
        """Insert zeros."""
        self._add(start, 0, 2 * zeros)
        self.growth += zeros

    def _add(self, start: int, length: int, kind: int) -> None:
        self.starts.append(start)
        self.lengths.append(length)
        self.kinds.append(kind)

    def __iter__(self) -> Iterator[tuple[int, int, bytes, int]]:
        """Where a stretch starts, where it ends, the new bytes, and the number of zeros after them."""
        news = list(self.news)
        for start, length, kind in zip(self.starts, self.lengths, self.kinds, strict=True):
            yield start, start + length, news[kind // 2] if kind % 2 else b"", 0 if kind % 2 else kind // 2


@dataclass(slots=True)
class _Work:
    """What may still be done for one file."""

    left: int
    deadline: Deadline
    what: str

    def look(self) -> None:
        """Now and then: see whether there is still time, and work that may be done.

        Raises:
            IntegrityError: The prefix stands in the file far too often.
        """
        if self.left < 0:
            raise IntegrityError(
                f"{self.what} has the prefix it was built with more often than a real one can stand in it",
                hint="look at the package: it may be an attack on whoever installs it",
            )
        self.check()

    def check(self) -> None:
        """Raise :class:`DeadlineExceeded` if the time is up."""
        self.deadline.check(f"replacing the prefix in {self.what}")


@dataclass(frozen=True, slots=True)
class Relocated:
    """A file's new content: stretches of the old one, and new bytes between them.

    Attributes:
        content: The old content.
        size: The new content's size in bytes.
    """

    content: bytes | mmap.mmap
    size: int
    _edits: _Edits
    _work: _Work

    def chunks(self) -> Iterator[bytes]:
        """The new content, in pieces of about 1 MiB at most."""
        pieces: list[bytes] = []
        held = 0
        for piece in self._pieces():
            if len(piece) < _SMALL:
                pieces.append(piece)
                held += len(piece)
            if held >= _PIECE or len(piece) >= _SMALL:
                self._work.check()
                yield b"".join(pieces)
                pieces, held = [], 0
            if len(piece) >= _SMALL:
                yield piece
        if held:
            yield b"".join(pieces)

    def _pieces(self) -> Iterator[bytes]:
        at = 0
        for start, end, new, zeros in (*self._edits, (len(self.content), 0, b"", 0)):
            for place in range(at, start, _PIECE):
                yield self.content[place : min(place + _PIECE, start)]
            yield new
            for place in range(0, zeros, _PIECE):
                yield bytes(min(_PIECE, zeros - place))
            at = end


def relocate(
    content: bytes | mmap.mmap,
    mode: FileMode,
    old: str,
    new: str,
    *,
    what: str = "a file",
    deadline: Deadline = NO_DEADLINE,
) -> Relocated:
    """Replace the prefix ``old`` by ``new``.

    Args:
        content: The file as it stands in the package.
        mode: How the prefix stands in it.
        old: The prefix that the package was built with; empty changes nothing.
        new: The prefix to install under; without blanks.
        what: The file, for messages.
        deadline: When to give up, also when the new content is read.

    Raises:
        BuildError: A binary has no room for the new prefix.
        IntegrityError: The old prefix stands in it far more often than a real one can.
    """
    edits = _Edits()
    work = _Work(2 * (_FREE_EDITS + len(content) // mode.spacing), deadline, what)
    prefixes = list(_present(content, old, new, work)) if old else []
    if mode is FileMode.TEXT:
        _relocate_text(content, prefixes, (old, new), edits, work)
    else:
        _relocate_binary(content, prefixes, (old, new), edits, work)
    return Relocated(content, len(content) + edits.growth, edits, work)


def long_shebang(executable: str, options: str) -> str:
    """The first lines of a Python script whose interpreter's path is too long for the kernel."""
    return f"#!/bin/sh\n'''exec' \"{executable}\"{options} \"$0\" \"$@\" #'''"


def _relocate_text(
    content: bytes | mmap.mmap, prefixes: list[_Prefix], names: tuple[str, str], edits: _Edits, work: _Work
) -> None:
    at = 0
    if names[0] and content[:2] == b"#!":
        newline = content.find(b"\n")
        at = newline if newline >= 0 else len(content)
        if at > _MAX_LINE:
            raise IntegrityError(f"{work.what} has a first line of {at} bytes, expected that of a script")
        line = content[:at].decode("utf-8", "replace")
        edits.replace(0, at, _shebang(line.replace(*names)).encode())
    end = 0
    found_in = [zip(_occurrences(content, each, work), repeat(each)) for each in prefixes]
    for found, prefix in (
        heapq.merge(*found_in, key=operator.itemgetter(0)) if len(found_in) > 1 else chain(*found_in)
    ):
        if found < end:
            continue
        end = found + len(prefix.old)
        if found >= at:
            edits.replace(found, len(prefix.old), prefix.new)


def _present(content: bytes | mmap.mmap, old: str, new: str, work: _Work) -> Iterator[_Prefix]:
    """The prefix in those encodings in which the file has it."""
    for name, unit in _ENCODINGS:
        prefix = old.encode(name)
        if content.find(prefix) >= 0:
            yield _Prefix(prefix, new.encode(name), unit)
        work.check()


def _occurrences(
    content: bytes | mmap.mmap, prefix: _Prefix, work: _Work, start: int = 0, end: int | None = None
) -> Iterator[int]:
    """Where the old prefix stands in a stretch; one that starts in another is left out."""
    size = len(prefix.old)
    end = len(content) if end is None else end
    while start < end:
        window = min(start + _WINDOW, end)
        at = content.find(prefix.old, start, window)
        if at < 0:
            work.check()
            start = window - size + 1 if window < end else end
            continue
        work.left -= 1
        if work.left % _TICKS == 0 or work.left < 0:
            work.look()
        yield at
        start = at + size


def _shebang(line: str) -> str:
    """A shebang that the kernel takes: at most 127 bytes, else through ``env`` or ``sh``."""
    if len(line.encode()) <= _MAX_SHEBANG or not (parts := _SHEBANG.fullmatch(line)):
        return line
    executable, options = parts.groups()
    name = executable.rpartition("/")[2]
    if _PYTHON.fullmatch(name):
        return long_shebang(executable, options)
    return f"#!/usr/bin/env {name}{options}"


def _relocate_binary(
    content: bytes | mmap.mmap, prefixes: list[_Prefix], names: tuple[str, str], edits: _Edits, work: _Work
) -> None:
    for string in _disjoint(list(_strings(content, prefixes, work))):
        prefix = string.prefix
        room = len(prefix.old) - len(prefix.new)
        if room < 0:
            raise BuildError(
                f"a binary was built for the prefix {names[0]!r}, which has no room for {names[1]!r}"
            )
        zeros = 0
        for start in _occurrences(content, prefix, work, string.start, string.end):
            edits.replace(start, len(prefix.old), prefix.new)
            zeros += room
        edits.fill(string.end, zeros)


def _strings(content: bytes | mmap.mmap, prefixes: list[_Prefix], work: _Work) -> Iterator[_CString]:
    """Every string with the prefix in it; those of one encoding in the order of their places."""
    for prefix in prefixes:
        covered = [0] * prefix.unit
        for first in _occurrences(content, prefix, work):
            shift = first % prefix.unit
            if first < covered[shift]:
                continue
            end = _string_end(content, first + len(prefix.old), prefix.unit, work)
            stop = len(content) if end is None else end
            covered[shift] = stop
            rank = 0 if prefix.unit == 1 else 1 + 2 * (shift != 0) + (end is None)
            yield _CString(first, stop, prefix, rank)


def _string_end(content: bytes | mmap.mmap, start: int, unit: int, work: _Work) -> int | None:
    """The first zero character at a whole number of characters after ``start``, or None."""
    at = content.find(bytes(unit), start)
    for _ in range(_TRIES):
        if at < 0 or (at - start) % unit == 0:
            return at if at >= 0 else None
        at = content.find(bytes(unit), at + 1)
    if at < 0:
        return None
    # Zeros between characters everywhere: all characters of a piece are looked at together.
    for begin in range(at - (at - start) % unit, len(content), _BLOCK * unit):
        work.check()
        piece = content[begin : begin + _BLOCK * unit]
        size = len(piece) // unit
        parts = (int.from_bytes(piece[shift : size * unit : unit]) for shift in range(unit))
        if (found := functools.reduce(operator.or_, parts).to_bytes(size).find(0)) >= 0:
            return begin + found * unit
    return None


def _disjoint(candidates: list[_CString]) -> list[_CString]:
    """The surest strings that do not overlap; an encoding's bytes are another's, shifted by one."""
    if all(string.prefix.unit == 1 for string in candidates):
        return candidates
    kept: list[_CString] = []
    for rank in sorted({string.rank for string in candidates}):
        new: list[_CString] = []
        after = 0  # of those that are kept, the first that starts behind the string
        for string in sorted(
            (each for each in candidates if each.rank == rank), key=operator.attrgetter("start")
        ):
            while after < len(kept) and kept[after].start <= string.start:
                after += 1
            before = max(kept[after - 1].end if after else 0, new[-1].end if new else 0)
            if before <= string.start and (after == len(kept) or kept[after].start >= string.end):
                new.append(string)
        kept = list(heapq.merge(kept, new, key=operator.attrgetter("start")))
    return kept
