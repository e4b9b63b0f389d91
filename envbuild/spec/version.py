"""Conda versions.

Grammar and order are those of Conda's ``VersionOrder`` as py-rattler implements them (the solver decides with
them): an epoch, segments of numbers and words, a local part; ``dev`` sorts below everything, ``post`` above,
missing parts count as zero. The spelling is part of the key: it never changes within a key scheme.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import Self

from envbuild.errors import SpecError

Component = tuple[int, int | str]
"""A rank and a value: ``dev``, ``_``, words, numbers and ``post`` in rising order."""
Segment = tuple[Component, ...]

_DEV, _UNDERSCORE, _WORD, _NUMBER, _POST = range(5)
_ZERO: Component = (_NUMBER, 0)
_MAX_NUMBER = (1 << 64) - 1

_SEGMENT = r"[0-9a-z]+"
# A dash at the end is refused: the solver takes it for a version of its own, against its own order.
_PART = rf"{_SEGMENT}(?:[._-]{_SEGMENT})*(?:[._]?_)?"
_VERSION = re.compile(rf"(?:([0-9]+)!)?({_PART})(?:\+({_PART}))?")
_PLAIN = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})*")
_COMPONENT = re.compile(r"[0-9]+|[a-z]+")


@dataclass(frozen=True, slots=True)
class Version:
    """A Conda version. Most callers want :meth:`parse`.

    Attributes:
        epoch: The number before ``!``, else 0.
        segments: The parts between the dots, underscores and dashes.
        local: The same for the part after ``+``.
    """

    epoch: int
    segments: tuple[Segment, ...]
    local: tuple[Segment, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a version as ``1.2``, ``1!2.0rc1.post2`` or ``2026_06+local``.

        Raises:
            SpecError: It is not one.
        """
        if _PLAIN.fullmatch(text):
            return cls(0, tuple([((_NUMBER, int(part)),) for part in text.split(".")]))
        match = _VERSION.fullmatch(text.lower())
        if match is None or not text.isascii() or ("_" in text and "-" in text):
            raise SpecError(
                f"{text!r} is not a version: expected numbers and words joined by '.', '_' or '-'",
                hint="write it as 1.26.4, or as 1.26.* for all versions below 1.26",
            )
        epoch, main, local = match.groups()
        return cls(_number(epoch) if epoch else 0, _segments(main), _segments(local) if local else ())

    def stripped(self) -> Version:
        """The shortest version that is equal in Conda's order: without zeros at the ends of its parts."""
        return Version(self.epoch, _strip(self.segments) or ((_ZERO,),), _strip(self.local))

    def __str__(self) -> str:
        epoch = f"{self.epoch}!" if self.epoch else ""
        local = f"+{_spell(self.local)}" if self.local else ""
        return f"{epoch}{_spell(self.segments)}{local}"

    def compare(self, other: Version) -> int:
        """-1, 0 or 1 as this version is older than, equal to or newer than the other."""
        if self.epoch != other.epoch:
            return -1 if self.epoch < other.epoch else 1
        return _compare(self.segments, other.segments) or _compare(self.local, other.local)


def shortest(version: str) -> str:
    """A version of numbers alone, without the zeros at its end that the order ignores."""
    end = len(version)
    while version.endswith(".0", 0, end):
        end -= 2
    return version[:end]


def _number(digits: str) -> int:
    # The length first: Python refuses to convert thousands of digits with an error of its own.
    if len(digits.lstrip("0")) > 20 or (number := int(digits)) > _MAX_NUMBER:
        raise SpecError(
            f"the number {digits[:24]}… in a version is too large, expected at most {_MAX_NUMBER}"
        )
    return number


def _component(text: str) -> Component:
    if text.isdigit():
        return _NUMBER, _number(text)
    return {"dev": (_DEV, text), "post": (_POST, text)}.get(text, (_WORD, text))


def _segments(text: str) -> tuple[Segment, ...]:
    tail = text[-1] == "_"
    parts = re.split(r"[._-]", text[:-1] if tail else text)
    own_segment = parts[-1] == ""  # a separator stands before the last underscore
    segments = [_segment(part) for part in parts if part]
    if tail:
        underscore = (_UNDERSCORE, "_")
        if own_segment:
            segments.append((_ZERO, underscore))
        else:
            segments[-1] = (*segments[-1], underscore)
    return tuple(segments)


def _segment(text: str) -> Segment:
    components = tuple(_component(part) for part in _COMPONENT.findall(text))
    # A word at the start stands behind an unwritten zero.
    return components if components[0][0] == _NUMBER else (_ZERO, *components)


def _strip(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    kept = [_strip_segment(segment) for segment in segments]
    while kept and kept[-1] == (_ZERO,):
        kept.pop()
    return tuple(kept)


def _strip_segment(segment: Segment) -> Segment:
    end = len(segment)
    while end > 1 and segment[end - 1] == _ZERO:
        end -= 1
    return segment[:end]


def _spell(segments: tuple[Segment, ...]) -> str:
    return ".".join(["".join([str(value) for _, value in segment]) for segment in segments])


def _compare(left: tuple[Segment, ...], right: tuple[Segment, ...]) -> int:
    for ours, theirs in zip_longest(left, right, fillvalue=(_ZERO,)):
        for a, b in zip_longest(ours, theirs, fillvalue=_ZERO):
            if a != b:
                return -1 if a < b else 1  # equal ranks hold values of one type
    return 0
