"""A Dockerfile instruction as a value, and its text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from envbuild.spec.document import Mark

COMMANDS = frozenset({"RUN", "CMD", "ENTRYPOINT"})
LISTS = frozenset({"ADD", "COPY", "VOLUME"})

_FLAG_SPECIAL = re.compile(r"[^A-Za-z0-9_.,:=/@%+-]")
_FOLD = re.compile(r"(?<=[A-Za-z0-9])(?=[A-Za-z0-9])")
_LINE_LIMIT = 32_000  # BuildKit's scanner gives up at 65,536 bytes a line; four bytes a character at most


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A text that follows its instruction up to a line that holds only its name.

    Attributes:
        name: The closing line, without quotes.
        content: The lines between, each with its line feed.
        expand: Whether variables are replaced in it (the name stood without quotes).
        strip_tabs: Whether leading tabs are dropped (``<<-``).
    """

    name: str
    content: str
    expand: bool
    strip_tabs: bool

    def to_json(self) -> dict[str, Any]:
        """The heredoc's part of a canonical form."""
        return {
            "content": self.content,
            "expand": self.expand,
            "name": self.name,
            "stripTabs": self.strip_tabs,
        }


@dataclass(frozen=True, slots=True)
class Instruction:
    """One Dockerfile instruction in canonical spelling; two are equal when they mean the same by the grammar.

    Attributes:
        keyword: Upper case, as ``RUN``.
        flags: ``name=value``, sorted by name; repeated ones (``mount``, ``exclude``) keep their order.
        arguments: The command line in one piece (shell form), or its words.
        exec_form: Whether a command was given as a JSON array.
        heredocs: The heredocs, in order.
        mark: Where the instruction stands; no part of equality.
    """

    keyword: str
    flags: tuple[str, ...]
    arguments: tuple[str, ...]
    exec_form: bool = False
    heredocs: tuple[Heredoc, ...] = ()
    mark: Mark = field(default=Mark("", 1, 1), compare=False, repr=False)

    def flag(self, name: str) -> str | None:
        """The value of a flag that is given at most once."""
        return next(iter(self.flag_values(name)), None)

    def flag_values(self, name: str) -> tuple[str, ...]:
        """All values of a flag, in order."""
        return tuple(value for key, _, value in (flag.partition("=") for flag in self.flags) if key == name)

    def to_json(self) -> dict[str, Any]:
        """The instruction's part of a canonical form."""
        return {
            "arguments": list(self.arguments),
            "exec": self.exec_form,
            "flags": list(self.flags),
            "heredocs": [heredoc.to_json() for heredoc in self.heredocs],
            "keyword": self.keyword,
        }

    def render(self) -> str:
        """Dockerfile text, ending in a line feed, that parses back to an equal instruction."""
        flags = ["--" + _FLAG_SPECIAL.sub(r"\\\g<0>", flag) for flag in self.flags]
        body = self._body()
        guard = ["--"] if body.startswith("--") else []
        line = _fold(" ".join([self.keyword, *flags, *guard, body]))
        return "".join([line, "\n", *(f"{doc.content}{doc.name}\n" for doc in self.heredocs)])

    def _body(self) -> str:
        if self.keyword == "HEALTHCHECK":
            return " ".join([self.arguments[0], self._command(self.arguments[1:])]).rstrip()
        if self.keyword in COMMANDS:
            return self._command(self.arguments)
        if self.keyword == "SHELL" or (self.keyword in LISTS and not self.heredocs):
            return json.dumps(self.arguments)
        return " ".join(self.arguments)

    def _command(self, arguments: tuple[str, ...]) -> str:
        return json.dumps(arguments) if self.exec_form else "".join(arguments)


def _fold(line: str) -> str:
    """Break an over-long line where the break cannot change its meaning."""
    pieces: list[str] = []
    while len(line) > _LINE_LIMIT and (cut := _FOLD.search(line, _LINE_LIMIT // 2)):
        pieces.append(line[: cut.start()] + "\\\n")
        line = line[cut.start() :]
    return "".join([*pieces, line])
