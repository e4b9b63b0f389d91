"""The match specs that nearly all definitions hold, read in one step.

Each form here gives exactly what the full grammar in ``match`` gives; what looks in any way uncommon is left
to it. A test compares the two.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from envbuild.spec.channel import DEFAULTS, NODEFAULTS, Channel

if TYPE_CHECKING:
    from typing import TypeAlias

    from envbuild.spec.node import Mark

    Fields: TypeAlias = tuple[tuple[str, str], ...]
    _Members: TypeAlias = tuple[str, str | None, Fields, str, Channel | None, str | None, Mark | None]

# Versions that are spelled as the canonical spelling has them, but for zeros at the ends of their parts.
_PART = "(?:0|[1-9][0-9]{0,17}+)(?>(?:[a-z]++(?:0|[1-9][0-9]{0,17}+))*)[a-z]*+"
_VERSION = rf"{_PART}(?>(?:\.{_PART})*)"
_NAME = r"(?![0-9.]++(?![a-z_-]))[a-z0-9_][a-z0-9_.-]*+"
_PLACE = r"(?>(?:([A-Za-z0-9_][A-Za-z0-9_.-]*+)::)?)"
_OPERATOR = "==?|>=?|<=?|!=|~="
_BOUND = rf"([<>]=?) *+({_VERSION})"
_ONE = re.compile(
    rf"{_PLACE}({_NAME})(?:"
    rf"(?: *+({_OPERATOR}) *+| ++)({_VERSION})(\.\*)?(?:=(\*?[a-z0-9_.+-]++\*?)| *+, *+{_BOUND})?"
    r")?"
)
_TERM = rf"(?:{_OPERATOR}) *+{_VERSION}(?:\.\*)?"
# These are compiled when they are first used: many definitions need none of them.
_SEVERAL = rf"{_PLACE}({_NAME}) *+({_TERM}(?>(?: *+, *+{_TERM})+))"
_EITHER = (
    rf"{_PLACE}({_NAME})(?: *+(?={_OPERATOR})| ++)((?:{_OPERATOR}|) *+{_VERSION}(?:\.\*)?"
    rf"(?>(?: *+\| *+(?:{_OPERATOR}|) *+{_VERSION}(?:\.\*)?)+))"
)
_TERMS = rf"({_OPERATOR}|) *+({_VERSION})(\.\*)?"
_ZERO = r"(?<=[a-z])0(?=\.|\Z)"
_MAX_LENGTH = 200
_EXACT = frozenset({None, "=", "=="})
_DEFAULTS = frozenset({DEFAULTS, NODEFAULTS})
_RANK = {"==": 0, "=": 1, ">=": 3, ">": 4, "<=": 5, "<": 6, "!=": 7, "!=*": 8}


_compiled = functools.cache(re.compile)


def read_short(text: str, mark: Mark | None) -> _Members | None:
    """The members of a ``MatchSpec``; None where the full grammar must read it. Hot path."""
    if len(text) > _MAX_LENGTH:
        return None
    if not (match := _ONE.fullmatch(text)):
        return _read_more(text, mark)
    place, name, operator, written, star, build, other, bound = match.groups()
    if written is None:
        version = None
    elif build is not None:
        version = f"=={shortest(written)}" if not star and operator in _EXACT else None
    elif other is not None:
        version = _range(operator, written, star, other, bound)
    else:
        version = _one(operator, written, star)
    if version is None and written is not None:
        return None
    if place is None and build is None:
        return name, version, (), name if version is None else f"{name} {version}", None, None, mark
    return _with_fields(place, name, version, build, mark)


def read_short_constraint(text: str) -> str | None:
    """The spelling of a constraint that stands between brackets; None where the full grammar must read it."""
    if len(text) > _MAX_LENGTH or (match := _compiled(_TERMS).fullmatch(text)) is None:
        return None
    operator, version, star = match.groups("")
    return _either([(operator, version, star)])


def _with_fields(
    place: str | None, name: str, version: str | None, build: str | None, mark: Mark | None
) -> _Members | None:
    if place in _DEFAULTS:
        return None
    base = name if version is None else f"{name} {version}"
    if place is None:
        fields: Fields = (("build", build),) if build is not None else ()
        return name, version, fields, f'{base}[build="{build}"]' if fields else base, None, None, mark
    if build is None:
        fields = (("channel", place),)
        return name, version, fields, f'{base}[channel="{place}"]', Channel(place), None, mark
    fields = (("build", build), ("channel", place))
    return name, version, fields, spell(name, version, fields), Channel(place), None, mark


def _read_more(text: str, mark: Mark | None) -> _Members | None:
    """The same for constraints of several terms."""
    if match := _compiled(_SEVERAL).fullmatch(text):
        version = _several(_compiled(_TERMS).findall(match[3]))
    elif match := _compiled(_EITHER).fullmatch(text):
        version = _either(_compiled(_TERMS).findall(match[3]))
    else:
        return None
    return _with_fields(match[1], match[2], version, None, mark) if version is not None else None


def spell(name: str, version: str | None, fields: Fields) -> str:
    """The one spelling of a match spec, of its parts in theirs."""
    base = name if version is None else f"{name} {version}"
    if not fields:
        return base
    inner = ",".join([f'{key}="{value}"' for key, value in fields])
    return f"{base}[{inner}]"


def _range(operator: str | None, lower: str, star: str | None, other: str, upper: str) -> str | None:
    """The spelling of two terms, the second a bound."""
    if not star and operator and operator[0] in "<>" and operator[0] != other[0]:
        first, second = operator + shortest(lower), other + shortest(upper)
        return f"{first},{second}" if first[0] == ">" else f"{second},{first}"
    return _several([(operator, lower, star or ""), (other, upper, "")]) if operator else None


def _either(terms: list[tuple[str, str, str]]) -> str | None:
    """The spelling of single terms of which one must hold; None where the full grammar must judge."""
    found: set[str] = set()
    for operator, version, star in terms:
        if operator == "~=":
            return None
        spelled = _one(operator or None, version, star)
        if spelled is None:
            return None
        found.add(spelled)
    return "|".join(sorted(found))


def shortest(version: str) -> str:
    """A version without the zeros that the order ignores."""
    end = len(version)
    while version.endswith(".0", 0, end):
        end -= 2
    version = version[:end]
    return _compiled(_ZERO).sub("", version) if version.islower() else version


def _one(operator: str | None, version: str, star: str | None) -> str | None:
    """The spelling of one term behind a name; None where the full grammar must judge."""
    if not star:
        if operator == "=":
            return f"{version}.*"
        if operator != "~=":
            return (operator or "==") + shortest(version)
    elif operator in _EXACT:
        return f"{version}.*"
    return _several([(operator, version, star or "")]) if operator else None


def _several(terms: list[tuple[str, str, str]]) -> str | None:
    """The spelling of terms that all hold; None where the full grammar must judge."""
    found: set[tuple[int, str]] = set()
    for operator, version, star in terms:
        if operator == "~=":
            series = version.rpartition(".")[0]
            if star or not series:
                return None
            found |= {(1, f"{series}.*"), (3, f">={shortest(version)}")}
        elif operator == "=" or (star and operator == "=="):
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
    bounds = [(rank - 1) // 2 for rank, _ in ordered if 3 <= rank <= 6]
    if len(bounds) > len(set(bounds)):
        return None  # one of two lower, or of two upper bounds may be redundant
    return ",".join([text for _, text in ordered])
