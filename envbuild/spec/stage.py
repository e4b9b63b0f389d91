"""A Dockerfile with one stage, split into its base and what runs on it.

Source: the Dockerfile reference ("FROM", "Understand how ARG and FROM interact", "Here-documents").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuild.budget import Budget, OverBudgetError
from envbuild.errors import SpecError
from envbuild.spec.dockerfile import parse_instructions, read_preamble
from envbuild.spec.document import Mark, Scalar, fail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.spec.instruction import Instruction

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*+)|\{([A-Za-z_]\w*+)(:?-|\}))")
_SEVERAL = (
    "a second FROM: the Dockerfile has several stages, expected one",
    "build it with your engine and name the image as the base",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """The one stage of a Dockerfile.

    Attributes:
        base: The image after ``FROM``, its build arguments filled in.
        instructions: What follows ``FROM``.
        mark: Where that starts.
        args: The arguments before ``FROM`` that the stage takes up with an ``ARG`` of its own.
    """

    base: Scalar
    instructions: tuple[Instruction, ...]
    mark: Mark
    args: dict[str, str]


def split_stage(content: bytes, source: str) -> Stage:
    """Split a Dockerfile after its ``FROM``.

    Raises:
        SpecError: The Dockerfile has no stage or several, a parser directive, or a base that is not known.
    """
    try:
        whole = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"byte {error.start} is not UTF-8, expected a Dockerfile in UTF-8", source=source
        ) from error
    preamble, count = read_preamble(whole, Mark(source, 1, 1))
    args: dict[str, str] = {}
    budget = Budget()
    for keyword, rest, mark in preamble:
        if keyword == "FROM":
            return _stage(_base(rest, args, mark, budget), whole, Mark(source, count + 1, 1), args)
        if keyword != "ARG":
            from difflib import get_close_matches

            if get_close_matches(keyword, ["FROM"]):
                fail(mark, f"unknown instruction {keyword!r}", "did you mean FROM?")
            fail(mark, f"{keyword} stands before FROM", "only ARG may stand there")
        _take_arguments(rest, args, mark, budget)
    raise SpecError("there is no FROM, expected one", source=source, hint="name the base with FROM IMAGE")


def _stage(base: Scalar, whole: str, mark: Mark, args: dict[str, str]) -> Stage:
    text = "\n".join(whole.replace("\r\n", "\n").split("\n")[mark.line - 1 :])
    instructions = parse_instructions(text, mark, why_no_from=_SEVERAL)
    return Stage(base, instructions, mark, _taken_up(instructions, args))


def _base(rest: str, args: dict[str, str], mark: Mark, budget: Budget) -> Scalar:
    words = rest.split()
    if words and words[0].startswith("--"):
        fail(mark, f"FROM has the flag {words[0]}", "take it out; the platform is chosen with --platform")
    if len(words) not in {1, 3} or (len(words) == 3 and words[1].upper() != "AS"):
        fail(mark, f"FROM {rest!r} is not understood, expected FROM IMAGE [AS NAME]")
    return Scalar(_substitute(words[0], args, mark, budget), mark, plain=False)


def _substitute(word: str, args: dict[str, str], mark: Mark, budget: Budget) -> str:
    pieces: list[str] = []
    at, last = 0, word.rfind("}")
    for found in _VARIABLE.finditer(word):
        start, end, default = found.start(), found.end(), None
        if start < at or (found[3] in {"-", ":-"} and end > last):
            continue  # a part of a default; or a brace that nothing closes, which is text
        if found[3] in {"-", ":-"}:
            default, end = word[end : word.index("}", end)], word.index("}", end) + 1
        name = found[1] or found[2]
        filled = args.get(name) or default
        if filled is None:
            fail(mark, f"{found[0]} has no value", f"give it a default: ARG {name}=VALUE before FROM")
        try:
            budget.spend(len(filled))
        except OverBudgetError as error:
            fail(mark, f"the Dockerfile: {error}", "write the values themselves, or fewer ARGs")
        pieces += word[at:start], filled
        at = end
    return "".join([*pieces, word[at:]])


def _take_arguments(rest: str, known: dict[str, str], mark: Mark, budget: Budget) -> None:
    """Add what an ARG in front of FROM sets."""
    for word in rest.split():
        name, equals, value = word.partition("=")
        if equals:
            known[name] = _substitute(value.strip("\"'"), known, mark, budget)


def _taken_up(instructions: Iterable[Instruction], args: dict[str, str]) -> dict[str, str]:
    """An ARG without a default of its own takes that of the ARG before FROM."""
    declared = {
        word for one in instructions if one.keyword == "ARG" for word in one.arguments if "=" not in word
    }
    return {name: value for name, value in args.items() if name in declared}
