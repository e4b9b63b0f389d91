"""A Dockerfile with one stage, split into its base and what runs on it.

Source: the Dockerfile reference ("FROM", "Understand how ARG and FROM interact", "Here-documents").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuild.errors import SpecError
from envbuild.spec.document import Mark, Scalar, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
_HEREDOC = re.compile(r"<<-?([\"']?)([A-Za-z_][A-Za-z0-9_.]*)\1")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?-([^}]*))?\})")
_HEREDOC_KEYWORDS = frozenset({"RUN", "COPY", "ADD"})


@dataclass(frozen=True, slots=True)
class Stage:
    """The one stage of a Dockerfile.

    Attributes:
        base: The image after ``FROM``, its build arguments filled in.
        text: What follows ``FROM``.
        mark: Where ``text`` starts.
        args: The arguments before ``FROM`` that the stage takes up with an ``ARG`` of its own.
    """

    base: Scalar
    text: str
    mark: Mark
    args: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Logical:
    keyword: str
    rest: str
    mark: Mark
    next_line: int


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
    lines = whole.replace("\r\n", "\n").split("\n")
    instructions = list(_logical_lines(lines, source))
    args: dict[str, str] = {}
    for position, one in enumerate(instructions):
        if one.keyword == "FROM":
            return _stage(one, instructions[position + 1 :], lines, args)
        if one.keyword != "ARG":
            fail(one.mark, f"{one.keyword} stands before FROM", "only ARG may stand there")
        args.update(_arguments(one, args))
    raise SpecError("there is no FROM, expected one", source=source, hint="name the base with FROM IMAGE")


def _stage(first: _Logical, others: list[_Logical], lines: list[str], args: dict[str, str]) -> Stage:
    for one in others:
        if one.keyword == "FROM":
            fail(
                one.mark,
                "a second FROM: the Dockerfile has several stages, expected one",
                "build it with your engine and name the image as the base",
            )
    return Stage(
        base=_base(first, args),
        text="\n".join(lines[first.next_line - 1 :]),
        mark=Mark(first.mark.source, first.next_line, 1),
        args=_taken_up(others, args),
    )


def _base(first: _Logical, args: dict[str, str]) -> Scalar:
    words = first.rest.split()
    if words and words[0].startswith("--"):
        fail(
            first.mark, f"FROM has the flag {words[0]}", "take it out; the platform is chosen with --platform"
        )
    if len(words) not in {1, 3} or (len(words) == 3 and words[1].upper() != "AS"):
        fail(first.mark, f"FROM {first.rest!r} is not understood, expected FROM IMAGE [AS NAME]")
    return Scalar(_substitute(words[0], args, first.mark), first.mark, plain=False)


def _substitute(word: str, args: dict[str, str], mark: Mark) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        filled = args.get(name) or match[3]
        if filled is None:
            fail(mark, f"{match[0]} has no value", f"give it a default: ARG {name}=VALUE before FROM")
        return filled

    return _VARIABLE.sub(value, word)


def _arguments(one: _Logical, known: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in one.rest.split():
        name, equals, value = word.partition("=")
        if equals:
            found[name] = _substitute(value.strip("\"'"), {**known, **found}, one.mark)
    return found


def _taken_up(others: list[_Logical], args: dict[str, str]) -> dict[str, str]:
    declared = {
        word for one in others if one.keyword == "ARG" for word in one.rest.split() if "=" not in word
    }
    return {name: value for name, value in args.items() if name in declared}


def _logical_lines(lines: list[str], source: str) -> Iterator[_Logical]:
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        start = at
        at += 1
        if not line or line.startswith("#"):
            _refuse_directive(line, Mark(source, start + 1, 1))
            continue
        while line.endswith("\\") and at < len(lines):
            following = lines[at].strip()
            at += 1
            if following and not following.startswith("#"):
                line = line[:-1] + " " + following
        keyword, _, rest = line.partition(" ")
        keyword = keyword.upper()
        if keyword in _HEREDOC_KEYWORDS:
            at = _after_heredocs(lines, at, rest)
        column = len(lines[start]) - len(lines[start].lstrip()) + 1
        yield _Logical(keyword, rest.strip().rstrip("\\").strip(), Mark(source, start + 1, column), at + 1)


def _refuse_directive(line: str, mark: Mark) -> None:
    directive = _DIRECTIVE.match(line)
    if directive:
        fail(mark, f"{line!r} is a parser directive", "take the line out: envbuild chooses the frontend")


def _after_heredocs(lines: list[str], at: int, rest: str) -> int:
    for match in _HEREDOC.finditer(rest):
        while at < len(lines) and lines[at].strip("\t") != match[2]:
            at += 1
        at += 1
    return min(at, len(lines))
