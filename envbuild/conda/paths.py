"""What a package's metadata says of its files and commands.

Source: CEP 34 (contents of Conda packages) and conda-build's older ``info/files``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from envbuild.conda.relocate import FileMode
from envbuild.conda.tar import safe_path
from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_COMMANDS: Final = 10_000
"""The most commands that a package or wheel may ask for; each becomes a file."""
_OLD_PLACEHOLDER: Final = "/opt/anaconda1anaconda2anaconda3"
"""The prefix of packages whose ``has_prefix`` names only paths."""
_MAX_VALUES: Final = 3_000_000
"""Values in a file of JSON: 400,000 paths have so many. An empty list is three bytes, and sixty parsed."""
_MAX_LINE: Final = 4 * 4096
"""A line of ``has_prefix``: a prefix, a mode and a path."""


class PathType(StrEnum):
    """How a path is to be installed."""

    HARDLINK = "hardlink"
    SOFTLINK = "softlink"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class PathEntry:
    """What a package says of one of its paths.

    Attributes:
        path: Where it is in the package.
        path_type: How it is to be installed; None in old packages, where the archive alone tells.
        placeholder: The prefix that stands in it, or None.
        file_mode: How the prefix stands in it; None without one.
        sha256: The content's digest as 64 hex digits, or None.
        size: The content's size in bytes, or None.
        no_link: Whether the builder asked for a copy.
    """

    path: str
    path_type: PathType | None
    placeholder: str | None = None
    file_mode: FileMode | None = None
    sha256: str | None = None
    size: int | None = None
    no_link: bool = False


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """A command that calls a Python function.

    Attributes:
        command: The command's name.
        module: The module to import.
        function: The function in it, maybe of a class.
    """

    command: str
    module: str
    function: str

    @classmethod
    def parse(cls, text: str, what: str) -> Self:
        """Parse ``command = module:function``.

        Raises:
            IntegrityError: It has another form, or the command is a path.
        """
        command, equals, call = (part.strip() for part in text.partition("="))
        module, colon, function = (part.strip() for part in call.partition(":"))
        if not (equals and colon and module and function) or "\n" in text:
            raise IntegrityError(f"{what} has the entry point {text!r}, expected 'command = module:function'")
        if "/" in safe_path(command, what):
            raise IntegrityError(f"{what} has the entry point {command!r}, expected a name without '/'")
        return cls(command, module, function)


def read_object(info: dict[str, bytes], name: str, what: str) -> dict[str, Any]:
    """A metadata file that is a JSON object.

    Raises:
        IntegrityError: It is not there, or is something else.
        ValueError: It is not JSON.
    """
    if name not in info:
        raise IntegrityError(f"{what} has no {name}")
    if sum(info[name].count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
        raise IntegrityError(f"{what} has a {name} of more than {_MAX_VALUES} values")
    document = json.loads(info[name])
    if not isinstance(document, dict):
        raise IntegrityError(f"{what} has a {name} that is not a JSON object")
    return document


def read_noarch(index: dict[str, Any], what: str) -> str | None:
    """``python``, ``generic`` or None, also from the older spellings.

    Raises:
        IntegrityError: It is something else.
    """
    noarch = index.get("noarch")
    if not noarch:
        return None
    if noarch is True:
        return "generic"
    if noarch not in ("python", "generic"):
        raise IntegrityError(f"{what} has noarch {noarch!r}, expected 'python' or 'generic'")
    return str(noarch)


def read_paths(info: dict[str, bytes], what: str) -> dict[str, PathEntry]:
    """What a package says of its paths, by path: from ``paths.json``, or from what there was before it.

    Raises:
        IntegrityError: It says nothing, or something that is no list of paths inside the package.
        ValueError: A file is not JSON.
    """
    if "info/paths.json" in info:
        listed = read_object(info, "info/paths.json", what).get("paths")
        if not isinstance(listed, list):
            raise IntegrityError(f"{what} has an info/paths.json without a list of paths")
        entries = [_path_entry(each, what) for each in listed]
    else:
        entries = list(_old_entries(info, what))
    paths = {entry.path: entry for entry in entries}
    if len(paths) != len(entries):
        raise IntegrityError(f"{what} lists a path twice")
    return paths


def _path_entry(entry: Any, what: str) -> PathEntry:
    try:
        placeholder = entry.get("prefix_placeholder")
        str(placeholder).encode()  # half a surrogate pair is no text
        mode = FileMode(entry.get("file_mode", "text")) if placeholder is not None else None
        parsed = PathEntry(
            safe_path(entry["_path"], what),
            PathType(entry.get("path_type", "hardlink")),
            placeholder,
            mode,
            entry.get("sha256"),
            entry.get("size_in_bytes"),
            bool(entry.get("no_link", False)),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise IntegrityError(f"{what} has an entry in info/paths.json that is not one: {entry!r}") from None
    texts = (parsed.placeholder, parsed.sha256)
    if not all(isinstance(text, str | None) for text in texts) or not isinstance(parsed.size, int | None):
        raise IntegrityError(f"{what} has an entry in info/paths.json of the wrong types: {entry!r}")
    return parsed


def _old_entries(info: dict[str, bytes], what: str) -> Iterator[PathEntry]:
    """Entries from the files that packages without ``paths.json`` have."""
    if "info/files" not in info:
        raise IntegrityError(f"{what} has neither info/paths.json nor info/files")
    prefixes = dict(_old_prefix(line, what) for line in _lines(info, "info/has_prefix"))
    copies = {*_lines(info, "info/no_link"), *_lines(info, "info/no_softlink")}
    for line in _lines(info, "info/files"):
        path = safe_path(line, what)
        placeholder, mode = prefixes.get(path, (None, None))
        yield PathEntry(path, None, placeholder, mode, no_link=path in copies)


def _old_prefix(line: str, what: str) -> tuple[str, tuple[str, FileMode]]:
    """A line of ``has_prefix``: a path alone, or prefix, mode and path, each maybe in quotes."""
    import shlex

    if len(line) > _MAX_LINE:  # to take it apart costs the square of its length
        raise IntegrityError(f"{what} has a line of {len(line)} characters in info/has_prefix")
    parts = shlex.split(line, posix=True)
    if len(parts) == 3 and parts[1] in set(FileMode):
        return parts[2], (parts[0], FileMode(parts[1]))
    if len(parts) != 1 and any(mode in parts for mode in FileMode):
        raise IntegrityError(f"{what} has the line {line!r} in info/has_prefix")
    return line, (_OLD_PLACEHOLDER, FileMode.TEXT)


def _lines(info: dict[str, bytes], name: str) -> list[str]:
    return [line for each in info.get(name, b"").decode().splitlines() if (line := each.strip())]


def read_entry_points(info: dict[str, bytes], what: str) -> tuple[EntryPoint, ...]:
    """The commands that ``link.json`` lists; none where there is no such file.

    Raises:
        IntegrityError: One of them is no entry point.
        ValueError: The file is not JSON.
    """
    if "info/link.json" not in info:
        return ()
    noarch = read_object(info, "info/link.json", what).get("noarch")
    listed = noarch.get("entry_points", []) if isinstance(noarch, dict) else []
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise IntegrityError(f"{what} has entry points in info/link.json that are not strings")
    if len(listed) > MAX_COMMANDS:
        raise IntegrityError(f"{what} has {len(listed)} commands, expected at most {MAX_COMMANDS}")
    "".join(listed).encode()  # half a surrogate pair is no text
    return tuple(EntryPoint.parse(each, what) for each in listed)
