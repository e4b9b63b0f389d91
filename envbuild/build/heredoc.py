"""Heredocs of RUN for engines whose built-in Dockerfile front end does not know them (before Engine 23).

BuildKit's newer front end gives the shell either the heredoc's content (where that is the whole command) or
the command with the heredocs behind it. Both are the shell plus one argument, so an exec form says the same.
Source: ``dispatchRun`` in BuildKit's ``dockerfile2llb``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from envbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEFAULT_SHELL: Final = ("/bin/sh", "-c")
_HEREDOC: Final = re.compile(r"(?:^|(?<=\s))[0-9]*<<(-?)(['\"]?)([A-Za-z_][A-Za-z0-9_.]*)\2(?=\s|$|[;|&)])")
_INSTRUCTION: Final = re.compile(r"(RUN|COPY|ADD)((?:\s+--\S+)*)\s+(.*)", re.IGNORECASE)
_SHELL: Final = re.compile(r"SHELL\s+(\[.*\])\s*", re.IGNORECASE)


def lower_heredocs(dockerfile: str, shell: Sequence[str] = DEFAULT_SHELL) -> str:
    """The same Dockerfile with the heredocs of RUN written as exec forms.

    Args:
        dockerfile: Instructions of one line each, apart from heredocs, as steps are rendered.
        shell: The shell of the base image's config.

    Raises:
        BuildError: A heredoc of COPY or ADD, or one that begins with ``#!``: there is no older spelling.
    """
    return "".join(f"{line}\n" for line in _lowered(iter(dockerfile.splitlines()), list(shell)))


def _lowered(lines: Iterator[str], shell: list[str]) -> Iterator[str]:
    for line in lines:
        if changed := _SHELL.fullmatch(line):
            shell = json.loads(changed[1])
        found = _INSTRUCTION.fullmatch(line)
        docs = list(_HEREDOC.finditer(found[3])) if found and not found[3].startswith("[") else []
        if found is None or not docs:
            yield line
            continue
        bodies = [(doc, _body(lines, doc)) for doc in docs]
        if found[1].upper() != "RUN":
            raise _too_old(f"{found[1].upper()} with a heredoc")
        argument = _argument(found[3].strip(), bodies)
        yield f"RUN{found[2]} {json.dumps([*shell, argument], ensure_ascii=False)}"


def _argument(command: str, bodies: list[tuple[re.Match[str], list[str]]]) -> str:
    (doc, body), *more = bodies
    if more or doc[0] != command:
        return "\n".join([command, *("\n".join([*body, doc[3]]) for doc, body in bodies)])
    if body and body[0].startswith("#!"):
        raise _too_old("a heredoc that begins with '#!'")
    return "".join(f"{line.lstrip(chr(9)) if doc[1] else line}\n" for line in body)


def _body(lines: Iterator[str], doc: re.Match[str]) -> list[str]:
    body: list[str] = []
    for line in lines:
        if (line.lstrip("\t") if doc[1] else line) == doc[3]:
            return body
        body.append(line)
    raise BuildError(f"the heredoc {doc[3]!r} has no end")


def _too_old(what: str) -> BuildError:
    return BuildError(
        f"this Docker Engine does not know {what}",
        hint="use Docker Engine 23 or newer, or write the step without it",
    )
