"""The match specs that nearly all definitions hold, read in one step.

Each form here gives exactly what the full grammar in ``match`` gives; what looks in any way uncommon is left
to it. A test compares the two.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envbuild.spec.channel import DEFAULTS, NODEFAULTS, Channel
from envbuild.spec.version import shortest as _without_zeros

if TYPE_CHECKING:
    from typing import TypeAlias

    Fields: TypeAlias = tuple[tuple[str, str], ...]

# Versions that are spelled as the canonical spelling has them, but for zeros at the ends of their parts.
_PART = "(?:0|[1-9][0-9]{0,17}+)(?:[a-z]++(?:0|[1-9][0-9]{0,17}+))*+[a-z]*+"
_VERSION = rf"{_PART}(?:\.{_PART})*+"
_NAME = r"[a-z0-9_][a-z0-9_.-]*+"
_PLACE = r"(?:([A-Za-z0-9_][A-Za-z0-9_.-]*+)::)?+"
_OPERATOR = "==?|>=?|<=?|!=|~="
_ONE = re.compile(
    rf"{_PLACE}({_NAME})"
    rf"(?:(?: *+({_OPERATOR}) *+| ++)({_VERSION})(\.\*)?(?:=(\*?[a-z0-9_.+-]++\*?))?)?"
)
_RANGE = re.compile(rf"{_PLACE}({_NAME}) *+(>=?|<=?) *+({_VERSION}) *+, *+(>=?|<=?) *+({_VERSION})")
_TERM = rf"(?:{_OPERATOR}) *+{_VERSION}(?:\.\*)?"
_SEVERAL = re.compile(rf"{_PLACE}({_NAME}) *+({_TERM}(?: *+, *+{_TERM})++)")
_EITHER = re.compile(
    rf"{_PLACE}({_NAME})(?: *+(?={_OPERATOR})| ++)((?:{_OPERATOR}|) *+{_VERSION}(?:\.\*)?"
    rf"(?: *+\| *+(?:{_OPERATOR}|) *+{_VERSION}(?:\.\*)?)++)"
)
_TERMS = re.compile(rf"({_OPERATOR}|) *+({_VERSION})(\.\*)?")
_ZERO = re.compile(r"(?<=[a-z])0(?=\.|\Z)")
_MAX_LENGTH = 200
_EXACT = frozenset({None, "=", "=="})
_PLAIN = frozenset({">=", ">", "<=", "<", "!=", "=="})
_RANK = {"==": 0, "=": 1, ">=": 3, ">": 4, "<=": 5, "<": 6, "!=": 7, "!=*": 8}


def read_short(text: str) -> tuple[str, str | None, Fields, Channel | None] | None:
    """Name, version, fields and channel of a match spec; None where the full grammar must read it."""
    if len(text) > _MAX_LENGTH:
        return None
    if match := _ONE.fullmatch(text):
        place, name, operator, written, star, build = match.groups()
        version = None
        if build is not None:
            if star or operator not in _EXACT:
                return None
            version = f"=={shortest(written)}"
        elif written is not None:
            version = _one(operator, written, star)
            if version is None:
                return None
        if place is None:
            return name, version, (("build", build),) if build else (), None
        return _placed(place, name, version, build)
    return _read_more(text)


def _read_more(text: str) -> tuple[str, str | None, Fields, Channel | None] | None:
    """The same for constraints of more than one term."""
    if (match := _RANGE.fullmatch(text)) and match[3][0] != match[5][0]:
        first, second = match[3] + shortest(match[4]), match[5] + shortest(match[6])
        version: str | None = f"{first},{second}" if first[0] == ">" else f"{second},{first}"
    elif match := _SEVERAL.fullmatch(text):
        version = _several(_TERMS.findall(match[3]))
    elif match := _EITHER.fullmatch(text):
        version = _either(_TERMS.findall(match[3]))
    else:
        return None
    if version is None or match[1] is None:
        return (match[2], version, (), None) if version is not None else None
    return _placed(match[1], match[2], version)


def _either(terms: list[tuple[str, str, str]]) -> str | None:
    """The spelling of single terms of which one must hold; None where the full grammar must judge."""
    found: set[str] = set()
    for operator, version, star in terms:
        if operator == "~=" or (star and operator == "=="):
            return None
        spelled = _one(operator or None, version, star)
        if spelled is None:
            return None
        found.add(spelled)
    return "|".join(sorted(found))


def shortest(version: str) -> str:
    """A version without the zeros that the order ignores."""
    version = _without_zeros(version)
    return _ZERO.sub("", version) if version.islower() else version


def _placed(
    place: str, name: str, version: str | None, build: str | None = None
) -> tuple[str, str | None, Fields, Channel | None] | None:
    if place in {DEFAULTS, NODEFAULTS}:
        return None
    fields = (("channel", place),)
    return name, version, (("build", build), *fields) if build else fields, Channel(place)


def _one(operator: str | None, version: str, star: str | None) -> str | None:
    """The spelling of one term behind a name; None where the full grammar must judge."""
    if operator == "=" or (star and (operator is None or operator == "==")):
        return f"{version}.*"
    if operator is None:
        return f"=={shortest(version)}"
    if not star and operator in _PLAIN:
        return operator + shortest(version)
    return _several([(operator, version, star or "")])


def _several(terms: list[tuple[str, str, str]]) -> str | None:
    """The spelling of terms that all hold; None where the full grammar must judge."""
    found: set[tuple[int, str]] = set()
    for operator, version, star in terms:
        if operator == "~=":
            series = version.rpartition(".")[0]
            if star or not series:
                return None
            found |= {(1, f"{series}.*"), (3, f">={shortest(version)}")}
        elif operator == "=":
            found.add((1, f"{version}.*"))
        elif not star:
            found.add((_RANK[operator], operator + shortest(version)))
        elif operator == "!=":
            found.add((8, f"!={version}.*"))
        elif operator in {">=", "<", "<="}:
            found.add((_RANK[operator], operator + shortest(version)))
        else:
            return None
    ordered = sorted(found)
    ranks = [rank for rank, _ in ordered]
    if sum(rank in {3, 4} for rank in ranks) > 1 or sum(rank in {5, 6} for rank in ranks) > 1:
        return None  # one of the bounds may be redundant
    return ",".join([text for _, text in ordered])
