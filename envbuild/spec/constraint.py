"""Constraints on Conda versions, in one canonical spelling.

A constraint is brought into a disjunction of conjunctions of simple terms. Equal meanings that this finds:
order, repetition, brackets, ``a,(b|c)`` against ``a,b|a,c``, bounds and alternatives that another one makes
redundant, zeros that the order ignores, ``~=1.2.3`` against ``>=1.2.3,1.2.*``. The spelling is part of the
key: it never changes within a key scheme.
"""

from __future__ import annotations

import functools
import re
from itertools import product
from typing import NamedTuple

from envbuild.errors import SpecError
from envbuild.spec.version import Version, shortest

_MAX_ALTERNATIVES = 64
_MAX_NESTING = 16
_CANONICAL = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.(?:0|[1-9][0-9]{0,17}))*")
_TOKEN = re.compile(r"\s*+(?:([(),|])|([<>=!~]*+)\s*+([A-Za-z0-9!_.*+-]++))")
_STAR = re.compile(r"(?:\*|\.\*)(?:\.\*)*")
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
    """``1.26.*`` behind an operator, where its meaning is certain.

    ``==1.26.*`` is the series wherever it stands, as libmamba and PEP 440 have it. The solver reads it so
    behind the name alone, and elsewhere as ``==1.26``: it is given ``1.26.*``, which it reads in one way.
    """
    if operator in {"", "=", "=="}:
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
