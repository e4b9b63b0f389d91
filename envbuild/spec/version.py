"""Conda versions and version constraints, in one canonical spelling.

Grammar and order are those of Conda's ``VersionOrder`` as py-rattler implements them (the solver decides with
them): an epoch, segments of numbers and words, a local part; ``dev`` sorts below everything, ``post`` above,
missing parts count as zero.

A constraint is brought into a disjunction of conjunctions of simple terms. Equal meanings that this finds:
order, repetition, brackets, ``a,(b|c)`` against ``a,b|a,c``, bounds and alternatives that another one makes
redundant, zeros that the order ignores, ``~=1.2.3`` against ``>=1.2.3,1.2.*``. The spelling is part of the
key: it never changes within a key scheme.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import NamedTuple, Self

from envbuild.errors import SpecError

Component = tuple[int, int | str]
"""A rank and a value: ``dev``, ``_``, words, numbers and ``post`` in rising order."""
Segment = tuple[Component, ...]

_DEV, _UNDERSCORE, _WORD, _NUMBER, _POST = range(5)
_ZERO: Component = (_NUMBER, 0)
_MAX_NUMBER = (1 << 64) - 1
_MAX_ALTERNATIVES = 64
_MAX_NESTING = 16

_SEGMENT = r"[0-9a-z]+"
# A dash at the end is refused: the solver takes it for a version of its own, against its own order.
_PART = rf"{_SEGMENT}(?:[._-]{_SEGMENT})*(?:[._]?_)?"
_VERSION = re.compile(rf"(?:([0-9]+)!)?({_PART})(?:\+({_PART}))?")
_PLAIN = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})*")
_CANONICAL = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.(?:0|[1-9][0-9]{0,17}))*")
_COMPONENT = re.compile(r"[0-9]+|[a-z]+")
_TOKEN = re.compile(r"\s*(?:([(),|])|([<>=!~]*)\s*([A-Za-z0-9!_.*+-]+))")
_STAR = re.compile(r"(?:\*|\.\*)(?:\.\*)*")


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
    while version.endswith(".0"):
        version = version[:-2]
    return version


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


_ORDER = {"==": 0, "=": 1, "~=": 2, ">=": 3, ">": 4, "<=": 5, "<": 6, "!=": 7, "!=*": 8}


class Term(NamedTuple):
    """One operator and one version, spelled; ``=`` means "starts with", ``!=*`` "does not start with"."""

    operator: str
    version: str

    def __str__(self) -> str:
        if self.operator == "=":
            return f"{self.version}.*"
        if self.operator == "!=*":
            return f"!={self.version}.*"
        return f"{self.operator}{self.version}"


Conjunction = frozenset[Term]
Alternatives = frozenset[Conjunction]
_ANY: Alternatives = frozenset({frozenset()})


def canonical_constraint(text: str) -> str | None:
    """The canonical spelling of a version constraint as it stands between brackets (``version='…'``).

    Returns:
        The spelling, or None where every version is allowed.

    Raises:
        SpecError: The text is not a version constraint.
    """
    alternatives, end = parse_constraint(text)
    if text[end:].strip():
        raise SpecError(f"{text[end:].strip()!r} stands behind the version constraint {text[:end].strip()!r}")
    return spell_constraint(alternatives)


def parse_constraint(text: str) -> tuple[Alternatives, int]:
    """Parse a version constraint from the start of a text.

    Returns:
        What it allows, and where it ends in the text.

    Raises:
        SpecError: There is no constraint, or it is malformed.
    """
    reader = _Reader(text)
    return reader.any_of(0), reader.position


def spell_constraint(alternatives: Alternatives) -> str | None:
    """Spell alternatives canonically; None where every version is allowed."""
    conjunctions = {_tightened(conjunction) for conjunction in alternatives}
    if frozenset() in conjunctions:
        return None
    if len(conjunctions) > 1:
        conjunctions = {one for one in conjunctions if not any(other < one for other in conjunctions)}
    return "|".join(sorted([_spell_conjunction(one) for one in conjunctions]))


def _spell_conjunction(conjunction: Conjunction) -> str:
    terms = sorted([(_ORDER[term.operator], str(term)) for term in conjunction])
    return ",".join([text for _, text in terms])


def _tightened(conjunction: Conjunction) -> Conjunction:
    """Without the bounds that a closer bound makes redundant."""
    if len(conjunction) < 2:
        return conjunction
    lower = _closest([term for term in conjunction if term.operator in {">=", ">"}], 1)
    upper = _closest([term for term in conjunction if term.operator in {"<=", "<"}], -1)
    return frozenset(term for term in conjunction if term.operator[0] not in "<>") | lower | upper


def _closest(bounds: list[Term], sign: int) -> Conjunction:
    if len(bounds) < 2:
        return frozenset(bounds)

    def compare(left: Term, right: Term) -> int:
        # Of two bounds at one version, the one that leaves the version itself out is closer.
        return sign * Version.parse(left.version).compare(Version.parse(right.version)) or len(
            right.operator
        ) - len(left.operator)

    return frozenset({max(bounds, key=functools.cmp_to_key(compare))})


class _Reader:
    """Recursive descent over ``a,b|(c,d)``; a comma binds closer than a bar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.position = 0

    def any_of(self, depth: int) -> Alternatives:
        result = self._all_of(depth)
        while self._accept("|"):
            result |= self._all_of(depth)
            _check_count(len(result))
        return result

    def _all_of(self, depth: int) -> Alternatives:
        result = self._one(depth)
        while self._accept(","):
            other = self._one(depth)
            _check_count(len(result) * len(other))
            result = frozenset(left | right for left, right in product(result, other))
        return result

    def _one(self, depth: int) -> Alternatives:
        if depth > _MAX_NESTING:
            raise SpecError(f"brackets in {self._text[:40]!r}… are nested deeper than {_MAX_NESTING} levels")
        if self._accept("("):
            result = self.any_of(depth + 1)
            if not self._accept(")"):
                raise SpecError(f"a bracket in {self._text!r} is not closed")
            return result
        match = _TOKEN.match(self._text, self.position)
        if match is None or match[1]:
            seen = self._text[self.position :].strip()
            where = f"found {seen!r}" if seen else "found nothing"
            raise SpecError(f"a version is missing in {self._text!r}: {where}", hint="write it as >=1.26,<2")
        self.position = match.end()
        return _simple(match[2], match[3])

    def _accept(self, symbol: str) -> bool:
        if self.position == len(self._text):
            return False
        match = _TOKEN.match(self._text, self.position)
        if match is None or match[1] != symbol:
            return False
        self.position = match.end()
        return True


def _check_count(count: int) -> None:
    if count > _MAX_ALTERNATIVES:
        raise SpecError(
            f"a version constraint has more than {_MAX_ALTERNATIVES} alternatives",
            hint="write a range instead",
        )


def _simple(operator: str, text: str) -> Alternatives:
    if operator and operator not in _ORDER:
        known = ", ".join(name for name in _ORDER if not name.endswith("*"))
        raise SpecError(
            f"{operator!r} is not a version operator in {operator + text!r}", hint=f"use one of {known}"
        )
    if text in {"*", "*.*"}:
        if operator not in {"", "=", "==", ">="}:
            raise SpecError(f"{operator + text!r} says nothing: expected a version behind {operator!r}")
        return _ANY
    if operator not in {"=", "~="} and _CANONICAL.fullmatch(text):
        return frozenset((frozenset((Term(operator or "==", shortest(text)),)),))
    star = _STAR.search(text)
    if star is None:
        return _compared(operator or "==", Version.parse(text))
    if star.end() != len(text):
        raise SpecError(
            f"{text!r} has a '*' inside the version, expected it only at the end",
            hint="write 1.26.* or a range",
        )
    return _starred(operator, Version.parse(text[: star.start()]), text)


def _compared(operator: str, version: Version) -> Alternatives:
    if operator == "=":
        return _term("=", version)
    if operator == "~=" and version.local:
        raise SpecError(f"'~={version}' has a local part", hint=f"write {version} or a range")
    if operator == "~=" and len(version.segments) > 1:
        series = Version(version.epoch, version.segments[:-1], version.local)
        return frozenset({frozenset({Term(">=", str(version.stripped())), Term("=", str(series))})})
    return _term(operator, version.stripped())


def _starred(operator: str, version: Version, text: str) -> Alternatives:
    """``1.26.*`` behind an operator, where Conda and the solver agree on what it means."""
    if operator in {"", "="}:
        return _term("=", version)
    if operator == "!=":
        return _term("!=*", version)
    if operator in {">=", "<", "<="}:
        return _term(operator, version.stripped())
    raise SpecError(
        f"{operator + text!r} is ambiguous: '*' does not go with {operator!r}",
        hint=f"write {operator}{version}, or ={version} for all versions below {version}",
    )


def _term(operator: str, version: Version) -> Alternatives:
    return frozenset((frozenset((Term(operator, str(version)),)),))
