"""The flags of Dockerfile instructions, as ``--mount`` of RUN, in one spelling."""

from __future__ import annotations

import itertools
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn

from envbuild.spec.document import fail
from envbuild.spec.quoting import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.spec.document import Mark

_FLAGS: dict[str, frozenset[str]] = {
    "RUN": frozenset({"mount", "network", "security"}),
    "COPY": frozenset({"chmod", "chown", "exclude", "from", "link", "parents"}),
    "ADD": frozenset({"checksum", "chmod", "chown", "exclude", "keep-git-dir", "link", "unpack"}),
    "HEALTHCHECK": frozenset({"interval", "retries", "start-interval", "start-period", "timeout"}),
}
_SWITCHES = frozenset({"keep-git-dir", "link", "parents", "unpack"})
_MOUNT_NAMES = {
    "destination": "target",
    "dst": "target",
    "src": "source",
    "ro": "readonly",
    "rw": "readwrite",
}
_MOUNT_SWITCHES = frozenset({"readonly", "readwrite", "required"})
_REPEATED = frozenset({"exclude", "mount"})
_FLAG_WORD = re.compile(r"(?>(?:\\.|\"[^\"\\]*\"|'[^'\\]*'|[^\s\"'\\])+)(?=\s|\Z)")

_BLANKS = re.compile(r"[ \t]*+")


def unknown(mark: Mark, what: str, name: str, known: Iterable[str]) -> NoReturn:
    """Refuse a name, with the nearest that is known.

    Raises:
        SpecError: Always.
    """
    near = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    fail(mark, f"unknown {what} {name[:40]!r}", hint)


def take_flags(rest: str, keyword: str, mark: Mark) -> tuple[tuple[str, ...], str]:
    """Split off the leading ``--flag`` words, with their quotes and escapes taken away.

    Args:
        rest: What stands behind the keyword.
        keyword: The instruction's keyword, in upper case.
        mark: Where the instruction stands.

    Returns:
        The flags as ``name=value``, sorted by name, and what stands behind them.

    Raises:
        SpecError: A flag is not known to the instruction, malformed or given twice.
    """
    flags: list[tuple[str, str]] = []
    rest, at = rest.strip(" \t"), 0
    while rest.startswith("--", at):
        if not (found := _FLAG_WORD.match(rest, at)):
            fail(
                mark,
                f"a flag of {keyword} has an open quote, or a backslash inside quotes",
                "quote it simply",
            )
        at = _BLANKS.match(rest, found.end()).end()  # type: ignore[union-attr]
        word = unquote(found[0])
        if word == "--":
            break
        flags.append(_flag(word, keyword, mark))
    kept = sorted((flag for flag in flags if flag[1]), key=lambda flag: flag[0])
    _no_repeats(kept, keyword, mark)
    return tuple(f"{name}={value}" for name, value in kept), rest[at:]


def _flag(word: str, keyword: str, mark: Mark) -> tuple[str, str]:
    """One flag as name and value; a value that says the default is empty."""
    name, equals, value = word[2:].partition("=")
    known = _FLAGS.get(keyword, frozenset())
    if name not in known:
        unknown(mark, f"flag of {keyword}", f"--{name}", {f"--{flag}" for flag in known})
    if not value.isascii() or "<" in value:
        fail(mark, f"--{name} of {keyword} holds '<' or characters outside ASCII", "use plain ASCII")
    if name in _SWITCHES:
        if value not in {"", "true", "false"} or (equals and not value):
            fail(mark, f"--{name} is {value!r}", f"write --{name} or --{name}=false")
        # unpack has no default of its own: archives are unpacked by their place, so both answers count
        return name, "" if value == "false" and name != "unpack" else value or "true"
    if not value:
        fail(mark, f"--{name} of {keyword} has no value", f"write --{name}=VALUE")
    if name == "mount":
        return name, _mount(value, mark)
    return name, "" if (name, value) in {("network", "default"), ("security", "sandbox")} else value


def _mount(value: str, mark: Mark) -> str:
    """The fields of a mount, sorted, under their first names."""
    fields: dict[str, str] = {}
    for part in value.split(","):
        name, equals, content = part.partition("=")
        name = _MOUNT_NAMES.get(name.lower(), name.lower())
        if not name or '"' in part or (not equals and name not in _MOUNT_SWITCHES):
            fail(
                mark, f"--mount field {part[:40]!r}", "write NAME=VALUE, separated by commas, without quotes"
            )
        if name in fields:
            fail(mark, f"--mount has {name} twice", "keep one")
        fields[name] = content if equals else "true"
    fields.setdefault("type", "bind")
    return ",".join(f"{name}={content}" for name, content in sorted(fields.items()))


def _no_repeats(flags: list[tuple[str, str]], keyword: str, mark: Mark) -> None:
    for (name, _), (following, _) in itertools.pairwise(flags):
        if name == following and name not in _REPEATED:
            fail(mark, f"--{name} of {keyword} is given twice", "keep one")
