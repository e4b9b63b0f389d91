"""A Dockerfile with one stage, split into its base and what runs on it.

Source: the Dockerfile reference ("FROM", "Understand how ARG and FROM interact", "Here-documents").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuild.errors import SpecError
from envbuild.spec.dockerfile import parse_instructions, read_preamble
from envbuild.spec.document import Mark, Scalar, fail

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.spec.instruction import Instruction

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?-([^}]*))?\})")
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
    for keyword, rest, mark in preamble:
        if keyword == "FROM":
            return _stage(_base(rest, args, mark), whole, Mark(source, count + 1, 1), args)
        if keyword != "ARG":
            from difflib import get_close_matches

            if get_close_matches(keyword, ["FROM"]):
                fail(mark, f"unknown instruction {keyword!r}", "did you mean FROM?")
            fail(mark, f"{keyword} stands before FROM", "only ARG may stand there")
        args.update(_arguments(rest, args, mark))
    raise SpecError("there is no FROM, expected one", source=source, hint="name the base with FROM IMAGE")


def _stage(base: Scalar, whole: str, mark: Mark, args: dict[str, str]) -> Stage:
    text = "\n".join(whole.replace("\r\n", "\n").split("\n")[mark.line - 1 :])
    instructions = parse_instructions(text, mark, why_no_from=_SEVERAL)
    return Stage(base, instructions, mark, _taken_up(instructions, args))


def _base(rest: str, args: dict[str, str], mark: Mark) -> Scalar:
    words = rest.split()
    if words and words[0].startswith("--"):
        fail(mark, f"FROM has the flag {words[0]}", "take it out; the platform is chosen with --platform")
    if len(words) not in {1, 3} or (len(words) == 3 and words[1].upper() != "AS"):
        fail(mark, f"FROM {rest!r} is not understood, expected FROM IMAGE [AS NAME]")
    return Scalar(_substitute(words[0], args, mark), mark, plain=False)


def _substitute(word: str, args: dict[str, str], mark: Mark) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        filled = args.get(name) or match[3]
        if filled is None:
            fail(mark, f"{match[0]} has no value", f"give it a default: ARG {name}=VALUE before FROM")
        return filled

    return _VARIABLE.sub(value, word)


def _arguments(rest: str, known: dict[str, str], mark: Mark) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in rest.split():
        name, equals, value = word.partition("=")
        if equals:
            found[name] = _substitute(value.strip("\"'"), {**known, **found}, mark)
    return found


def _taken_up(instructions: Iterable[Instruction], args: dict[str, str]) -> dict[str, str]:
    """An ARG without a default of its own takes that of the ARG before FROM."""
    declared = {
        word for one in instructions if one.keyword == "ARG" for word in one.arguments if "=" not in word
    }
    return {name: value for name, value in args.items() if name in declared}
