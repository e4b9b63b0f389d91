"""Regular expressions that every Python reads in the same way."""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import envbuild.spec

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = sorted(each.name for each in pkgutil.iter_modules(envbuild.spec.__path__, "envbuild.spec."))


def patterns(module: str) -> Iterator[str]:
    """Those of a module, and the parts that they are made of."""
    for value in vars(importlib.import_module(module)).values():
        if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
            yield value.pattern
        elif isinstance(value, str):
            yield value


def possessive_groups(pattern: str) -> int:
    """How many groups of a pattern are repeated possessively, as in ``(?:ab)*+``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parsed: Any = re._parser.parse(pattern)  # type: ignore[attr-defined]
        except re.error:
            return 0
    return _count(parsed)


def _count(parsed: Any) -> int:
    found = 0
    for code, argument in parsed:
        if str(code) == "POSSESSIVE_REPEAT":
            found += len(argument[2]) != 1 or str(argument[2][0][0]) not in {
                "IN",
                "LITERAL",
                "ANY",
                "NOT_LITERAL",
            }
        stack = [argument]
        while stack:
            part = stack.pop()
            if isinstance(part, re._parser.SubPattern):  # type: ignore[attr-defined]
                found += _count(part)
            elif isinstance(part, list | tuple):
                stack.extend(part)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_group_is_repeated_possessively(module: str) -> None:
    """Python before 3.11.5 goes on behind a group that matched in part: gh-106052."""
    assert [each for each in patterns(module) if possessive_groups(each)] == []


def test_possessive_groups_are_seen() -> None:
    assert possessive_groups("a(?:bc)*+") == possessive_groups("(x(?:(a)b)?+)") == 1
    assert possessive_groups("[ab]*+a++(?>(?:bc)*)") == 0
