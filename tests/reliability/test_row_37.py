"""Row 37: every grammar and reader, on generated repeats of its own alphabet, at a size and at twice that.

Patterns are found by themselves (``patterns``). A reader is a line in ``readers``: of text, with the modules
whose tokens its input is made from; of anything else, with what makes it.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from reliability import growth
from reliability.patterns import Found, find, hard_texts, modules, using
from reliability.readers import READERS, Reader

if TYPE_CHECKING:
    from collections.abc import Callable

ALL: Final = find(list(modules()))
PARTS: Final = 8
MADE_AT_RUN_TIME: Final = {
    "envbuild.build.steps_build": "of an engine's own names, by fullmatch",
    "envbuild.conda.interpreter": "of paths of a solution, by fullmatch",
    "envbuild.lint.pip": "from a table of hexadecimal digits of a fixed number",
    "envbuild.pip.venv": "of a version, by fullmatch",
    "envbuild.spec.patterns": "with two loops at the most, else the automaton reads it",
    "envbuild.spec.matchgrammar": "compiled to see that it can be, and never searched with",
}
"""Patterns that are made of what others wrote, and why they are safe."""


BOUNDED: Final = {"envbuild.spec.shortmatch:_TERMS": 200}
"""Patterns that get only texts of so many letters, which takes no time at all."""


def faults(read: Callable[[Any], object], inputs: Any, size: int, *, most: int = 1) -> list[str]:
    """What grows too fast, the first few."""
    found: list[str] = []
    with growth.bounds():
        for name, make in inputs:
            if (fault := growth.fault(read, make, size)) is not None:
                found.append(f"{name}: {fault}")
                if len(found) == most:
                    break
    return found


def check_patterns(part: list[Found], *, pairs: bool) -> None:
    found: list[str] = []
    for one in part:
        hard = [(f"{each}", each.of) for each in hard_texts(one.pattern, pairs=pairs)]
        for method in one.methods:
            read = using(one.pattern, method)
            if limit := BOUNDED.get(one.name):
                with growth.bounds():
                    assert max(growth.seconds_of(read, make(limit), tries=2) for _, make in hard) < 0.01
            else:
                found += (f"{one.name}.{method} on {fault}" for fault in faults(read, hard, 4000))
    assert found == []


@pytest.mark.parametrize("part", range(PARTS))
def test_patterns(part: int) -> None:
    check_patterns(ALL[0][part::PARTS], pairs=False)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(PARTS))
def test_patterns_on_pairs(part: int) -> None:
    check_patterns(ALL[0][part::PARTS], pairs=True)


def check_reader(reader: Reader, pairs: int, size: int) -> None:
    with growth.most_memory() as grown:
        found = faults(reader.read, reader.inputs(pairs), size, most=3)
    assert found == []
    assert grown[0] < growth.MOST_MEMORY


@pytest.mark.parametrize("reader", READERS, ids=lambda each: each.name)
def test_readers(reader: Reader) -> None:
    check_reader(reader, 5, reader.size)


@pytest.mark.nightly
@pytest.mark.parametrize("reader", READERS, ids=lambda each: each.name)
def test_readers_on_pairs_and_on_more(reader: Reader) -> None:
    check_reader(reader, 1000, reader.size)
    check_reader(reader, 0, 16 * reader.size)


def test_a_pattern_that_is_made_at_run_time_has_a_reason() -> None:
    assert {place.partition(":")[0] for place in ALL[1]} <= MADE_AT_RUN_TIME.keys()


def test_a_grammar_of_definitions_has_a_reader() -> None:
    read = {f"envbuild.{name}" for reader in READERS for name in reader.modules}
    found = {re.split(r"\.[^a-z]|:", one.name)[0] for one in ALL[0]}
    assert {each for each in found if each.startswith("envbuild.spec.")} - read == set(), (
        "name the module in the entry of readers.READERS that reads its grammar, or add one"
    )


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"(?:a+)+b", "match"),
        (r"\s*x|\s*y", "search"),
        (r"\s*,?\s*=\s*;", "match"),
        (r"<[^<]*?x[^<]*?>", "search"),
        (r"(?:a|ab|b)*c", "fullmatch"),
        (r"(?<=t)[^/]*@", "sub"),
    ],
)
def test_a_pattern_that_goes_back_is_seen(pattern: str, method: str) -> None:
    made = re.compile(pattern)
    hard = [(f"{each}", each.of) for each in hard_texts(made, pairs=False)]
    assert faults(using(made, method), hard, 4000) != []


def test_a_reader_that_goes_back_or_grows_is_seen() -> None:
    def counting(text: str) -> int:
        return sum(len(text[:at].split("x")) for at in range(len(text)))

    def doubling(text: str) -> None:
        functools.reduce(lambda kept, _: (kept + kept)[: 1 << 30], text, "x")

    assert faults(counting, [("", "x".__mul__)], 4000) != []
    assert faults(sorted, [("", "x".__mul__)], 4000) == []
    with growth.most_memory() as grown:
        doubling("x" * 30)
    assert grown[0] > growth.MOST_MEMORY
