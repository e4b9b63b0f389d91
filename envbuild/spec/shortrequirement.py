"""The pip requirements that nearly all definitions hold, read in one step and without ``packaging``.

Each gives exactly what the full grammar in ``requirement`` gives; what looks in any way uncommon is left to
it. A test compares the two.
"""

from __future__ import annotations

import re

from envbuild.spec.version import shortest

_NUMBER = "(?:0|[1-9][0-9]{0,17}+)"
# PEP 440's normal form, without an epoch and a local part.
_RELEASE = rf"{_NUMBER}(?>(?:\.{_NUMBER})*)"
_TAIL = rf"(?>(?:(?:a|b|rc){_NUMBER})?)(?>(?:\.post{_NUMBER})?)(?>(?:\.dev{_NUMBER})?)"
_OPERATOR = "==|>=|<=|!=|<|>"
_TERM = rf"(?:{_OPERATOR}) *+{_RELEASE}{_TAIL}"
_NAME = "[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
# Without dots, so that no file's name is among them.
_ONE = re.compile(
    rf"({_NAME})(?:\[({_NAME}(?>(?:, *+{_NAME})*))\])? *+"
    rf"(?:({_OPERATOR}) *+({_RELEASE})({_TAIL})((?>(?: *+, *+{_TERM})*)))?"
)
_TERMS = re.compile(rf"({_OPERATOR}) *+({_RELEASE})({_TAIL})")
_RUN = re.compile(r"[-_]+")
_MAX_LENGTH = 200


def read_short_requirement(text: str) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """Name, extras and specifiers of a requirement; None where the full grammar must read it."""
    if len(text) > _MAX_LENGTH or (match := _ONE.fullmatch(text)) is None:
        return None
    name, extras, operator, release, tail, more = match.groups()
    specifiers: tuple[str, ...] = (operator + shortest(release) + tail,) if operator else ()
    if more:
        found = {operator + shortest(release) + tail for operator, release, tail in _TERMS.findall(more)}
        specifiers = tuple(sorted({*specifiers, *found}))
    named = tuple(sorted({_name(each.strip()) for each in extras.split(",")})) if extras else ()
    return _name(name), named, specifiers


def _name(text: str) -> str:
    text = text.lower()
    return _RUN.sub("-", text) if "_" in text or "--" in text else text
