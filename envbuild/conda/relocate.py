"""Replacing the prefix that a package was built with by the one it is installed under.

The rules, and so the bytes, are those of rattler 0.28 (Conda's, and the draft CEP on prefix offsets for
paths in wide characters).
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from envbuild.errors import BuildError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Iterator

_ENCODINGS: Final = (("utf-8", 1), ("utf-16-le", 2), ("utf-16-be", 2), ("utf-32-le", 4), ("utf-32-be", 4))
_SHEBANG: Final = re.compile(r"#! *(/(?:\\ |[^ \n\r\t])*)(.*)")
_PYTHON: Final = re.compile(r"python(?:\d+(?:\.\d+)?)?")
_MAX_SHEBANG: Final = 127
_PIECE: Final = 1 << 20


class FileMode(StrEnum):
    """How a prefix stands in a file."""

    TEXT = "text"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The two prefixes in one encoding."""

    old: bytes
    new: bytes
    unit: int


@dataclass(frozen=True, slots=True)
class _CString:
    """A string in a binary: where the old prefix starts in it, and where it ends."""

    starts: tuple[int, ...]
    end: int
    prefix: _Prefix


@dataclass(frozen=True, slots=True)
class Relocated:
    """A file's new content: stretches of the old one, and new bytes between them.

    Attributes:
        content: The old content.
        parts: New bytes, or start and end of a stretch of ``content``.
    """

    content: bytes | mmap.mmap
    parts: tuple[bytes | tuple[int, int], ...]

    @property
    def size(self) -> int:
        """The new content's size in bytes."""
        return sum(len(part) if isinstance(part, bytes) else part[1] - part[0] for part in self.parts)

    def chunks(self) -> Iterator[bytes]:
        """The new content, in pieces of at most 1 MiB."""
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
                continue
            for at in range(*part, _PIECE):
                yield self.content[at : min(at + _PIECE, part[1])]


def relocate(content: bytes | mmap.mmap, mode: FileMode, old: str, new: str) -> Relocated:
    """Replace the prefix ``old`` by ``new``.

    Args:
        content: The file as it stands in the package.
        mode: How the prefix stands in it.
        old: The prefix that the package was built with; empty changes nothing.
        new: The prefix to install under; without blanks.

    Raises:
        BuildError: A binary has no room for the new prefix.
    """
    prefixes = [_Prefix(old.encode(name), new.encode(name), unit) for name, unit in _ENCODINGS if old]
    patch = _relocate_text if mode is FileMode.TEXT else _relocate_binary
    return Relocated(content, tuple(_tidy(patch(content, prefixes, old, new))))


def long_shebang(executable: str, options: str) -> str:
    """The first lines of a Python script whose interpreter's path is too long for the kernel."""
    return f"#!/bin/sh\n'''exec' \"{executable}\"{options} \"$0\" \"$@\" #'''"


def _tidy(parts: Iterable[bytes | tuple[int, int]]) -> Iterator[bytes | tuple[int, int]]:
    return (part for part in parts if (part if isinstance(part, bytes) else part[0] < part[1]))


def _relocate_text(
    content: bytes | mmap.mmap, prefixes: list[_Prefix], old: str, new: str
) -> Iterator[bytes | tuple[int, int]]:
    at = 0
    if prefixes and content[:2] == b"#!":
        newline = content.find(b"\n")
        at = newline if newline >= 0 else len(content)
        line = content[:at].decode("utf-8", "replace")
        yield _shebang(line.replace(old, new)).encode()
    start, end = at, 0
    for found, prefix in sorted(_occurrences(content, prefixes), key=lambda occurrence: occurrence[0]):
        if found < end:
            continue
        end = found + len(prefix.old)
        if found >= start:
            yield (at, found)
            yield prefix.new
            at = end
    yield (at, len(content))


def _occurrences(content: bytes | mmap.mmap, prefixes: list[_Prefix]) -> Iterator[tuple[int, _Prefix]]:
    for prefix in prefixes:
        at = content.find(prefix.old)
        while at >= 0:
            yield at, prefix
            at = content.find(prefix.old, at + len(prefix.old))


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
    content: bytes | mmap.mmap, prefixes: list[_Prefix], old: str, new: str
) -> Iterator[bytes | tuple[int, int]]:
    at = 0
    for string in _disjoint(list(_strings(content, prefixes))):
        prefix = string.prefix
        room = len(prefix.old) - len(prefix.new)
        if room < 0:
            raise BuildError(f"a binary was built for the prefix {old!r}, which has no room for {new!r}")
        for start in string.starts:
            yield (at, start)
            yield prefix.new
            at = start + len(prefix.old)
        yield (at, string.end)
        yield bytes(room * len(string.starts))
        at = string.end
    yield (at, len(content))


def _strings(content: bytes | mmap.mmap, prefixes: list[_Prefix]) -> Iterator[tuple[int, _CString]]:
    """Every string with the prefix in it, and its rank: the lower, the surer."""
    for prefix in prefixes:
        covered = [0] * prefix.unit
        for first, _ in _occurrences(content, [prefix]):
            shift = first % prefix.unit
            if first < covered[shift]:
                continue
            end = _string_end(content, first + len(prefix.old), prefix.unit)
            stop = len(content) if end is None else end
            covered[shift] = stop
            starts = []
            at = first
            while at >= 0:
                starts.append(at)
                at = content.find(prefix.old, at + len(prefix.old), stop)
            rank = 0 if prefix.unit == 1 else 1 + 2 * (shift != 0) + (end is None)
            yield rank, _CString(tuple(starts), stop, prefix)


def _string_end(content: bytes | mmap.mmap, start: int, unit: int) -> int | None:
    """The first zero character at a whole number of characters after ``start``, or None."""
    at = content.find(bytes(unit), start)
    while at >= 0 and (at - start) % unit:
        at = content.find(bytes(unit), at + 1)
    return at if at >= 0 else None


def _disjoint(candidates: list[tuple[int, _CString]]) -> list[_CString]:
    """The surest strings that do not overlap; an encoding's bytes are another's, shifted by one."""
    if all(string.prefix.unit == 1 for _, string in candidates):
        return [string for _, string in candidates]
    kept: dict[int, _CString] = {}
    starts: list[int] = []
    for _, string in sorted(candidates, key=lambda each: (each[0], each[1].starts[0])):
        start = string.starts[0]
        place = bisect.bisect_right(starts, start)
        clear_before = place == 0 or start >= kept[starts[place - 1]].end
        if clear_before and (place == len(starts) or starts[place] >= string.end):
            starts.insert(place, start)
            kept[start] = string
    return [kept[start] for start in starts]
