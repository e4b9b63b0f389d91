"""Locks of other tools as definitions: ``pixi.lock``, ``conda-lock.yml`` and ``@EXPLICIT`` lists of URLs.

Each package becomes a match spec that only it satisfies, so that the key is that of the solution. What a file
is is told by what it holds, wherever it comes from and whatever its name.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from envbuild import lockfile
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import SpecError, counted
from envbuild.platform import Platform
from envbuild.spec import environment, fields
from envbuild.spec.environment import EnvironmentSpec
from envbuild.spec.files import read_file, require, unconfined, within
from envbuild.spec.reading import MAX_BYTES, is_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.deadline import Deadline
    from envbuild.spec.conda import CondaSection

MAX_LOCK: Final = 64 << 20
"""The largest lock that is read, in bytes."""
_KEY: Final = rb"""(?m)^([ ]*)(["']?)([A-Za-z_][A-Za-z0-9_.-]*)\2[ \t]*:(?=[ \t\r\n]|\Z)"""
_EXPLICIT: Final = re.compile(rb"(?m)^[ \t]*@EXPLICIT[ \t]*\r?$")
_OWN: Final = "envbuild_lock"
_LOCKS: Final = (lockfile.FILE_NAME, "conda-lock.yml", "pixi.lock")
"""What a folder without a definition may hold."""


class Format(NamedTuple):
    """A kind of lock.

    Attributes:
        keys: The members at its top.
        read: Gives the packages for a platform, and the platform; arguments as of :func:`solved_section`.
    """

    keys: frozenset[str]
    read: Callable[[bytes, str, Platform | None], tuple[CondaSection, Platform]]


def load(
    source: str | Path, *, confine: bool = False, deadline: Deadline = NO_DEADLINE, **overrides: Any
) -> EnvironmentSpec:
    """Read a definition, a lock, or another tool's lock.

    Args:
        source: As :func:`envbuild.spec.environment.load` takes it.
        confine: Whether it may name no path outside of its folder; from standard input, none at all.
        deadline: When to give up.
        overrides: The other arguments of :func:`envbuild.spec.environment.load`.

    Raises:
        SpecError: It cannot be understood.
        DeadlineExceeded: The time ran out.
    """
    with within(environment.folder_of(source), confine=confine, deadline=deadline):
        return _loaded(source, **overrides)


def _loaded(source: str | Path, **overrides: Any) -> EnvironmentSpec:
    if overrides.get("form") is not None:  # the caller says what it is, and that it is no lock
        return environment.load(source, **overrides)
    name, content = _read(source)
    if content is None:
        return environment.load(name, **overrides)
    keys = _top_keys(content)
    if _OWN in keys:
        return lockfile.definition(content, _shown(name), **overrides)
    if (found := _format(content, keys)) is None:
        known = content if str(name) == environment.STANDARD_INPUT or len(content) <= MAX_BYTES else None
        return environment.load(name, content=known, **overrides)
    overrides.pop("form", None)
    return _solved(found, content, _shown(name), **overrides)


def solved_section(content: bytes, source: str, platform: Platform | None) -> tuple[CondaSection, Platform]:
    """The packages of another tool's lock, each as a match spec that only it satisfies.

    Args:
        content: The lock.
        source: Its name for messages.
        platform: The platform; None is that of the packages, or ``linux/amd64`` in a lock for several.

    Returns:
        The packages, and the platform that they are for.

    Raises:
        SpecError: The lock cannot be read, or is not for the platform.
    """
    found = _format(content, _top_keys(content))
    if found is None:
        raise SpecError("this is no lock of another tool", source=source)
    return found.read(content, source, platform)


def _solved(
    found: Format, content: bytes, source: str, *, platforms: Any = None, as_of: Any = None, **overrides: Any
) -> EnvironmentSpec:
    """Another tool's lock as a definition."""
    one = (platforms,) if isinstance(platforms, (str, Platform)) else platforms
    wanted = fields.platforms(one) if one else ()
    if len(wanted) > 1:
        raise SpecError(
            f"{', '.join(map(str, wanted))} are asked for: a solved list of packages is for one platform",
            source=source,
            hint="name one platform, or the definition that the lock was made from",
        )
    conda, platform = found.read(content, source, wanted[0] if wanted else None)
    spec = EnvironmentSpec(source=source, has_base=False, conda=conda, platforms=(platform,))
    if as_of is not None:
        raise SpecError("as_of cannot be laid over solved packages", source=source)
    return _overridden(spec, **overrides)


def _overridden(
    spec: EnvironmentSpec, *, base: str | None = None, steps: str | Path | None = None
) -> EnvironmentSpec:
    with unconfined():
        spec = spec.with_base(base) if base is not None else spec
        return replace(spec, steps=fields.steps_file(Path(steps), None)) if steps is not None else spec


def _read(source: str | Path) -> tuple[str | Path, bytes | None]:
    """What to read, and its bytes, which are read once; None where that is no file that can be read."""
    if str(source) == environment.STANDARD_INPUT:
        return source, environment.standard_input(MAX_LOCK)
    path = Path(source)
    if is_folder(path):
        path = environment.file_in(path, _LOCKS)
    require(path, None)
    try:
        if path.is_fifo():
            with path.open("rb") as file:
                return path, file.read(MAX_LOCK + 1)
        return path, read_file(path, MAX_LOCK)
    except (OSError, ValueError):
        return path, None


def _shown(name: str | Path) -> str:
    return environment.STANDARD_INPUT_NAME if str(name) == environment.STANDARD_INPUT else str(name)


def _top_keys(content: bytes) -> frozenset[str]:
    """The names of a document's members at the top, in any order; of YAML without reading all of it."""
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            # A lock of ours that a hand has damaged is still one.
            return frozenset({_OWN}) if content.startswith(lockfile.START) else frozenset()
        return frozenset(document) if isinstance(document, dict) else frozenset()
    first, found = None, set()
    for match in re.finditer(_KEY, content.removeprefix(b"\xef\xbb\xbf")):
        indent, _, name = match.groups()
        first = indent if first is None else first
        if indent == first:
            found.add(name.decode())
    return frozenset(found)


def _format(content: bytes, keys: frozenset[str]) -> Format | None:
    """What another tool's lock is read by; None for what is none."""
    if (found := next((each for each in _FORMATS if each.keys <= keys), None)) is not None:
        return found
    return _LIST if _EXPLICIT.search(content) else None


def _pixi(content: bytes, source: str, platform: Platform | None) -> tuple[CondaSection, Platform]:
    from envbuild.conda.locks import read_pixi
    from envbuild.foreign.solved import section_of

    packages, others, found = read_pixi(content, source, platform)
    if others:
        raise SpecError(
            f"the lock has {counted(len(others), 'package')} from Python indexes, as {others[0]}: "
            "only Conda's are read",
            source=source,
            hint="name the definition that it was made from",
        )
    return section_of(packages), found


def _conda_lock(content: bytes, source: str, platform: Platform | None) -> tuple[CondaSection, Platform]:
    from envbuild.foreign.condalock import read

    return read(content, source, platform)


def _explicit(content: bytes, source: str, platform: Platform | None) -> tuple[CondaSection, Platform]:
    from envbuild.foreign.explicit import read

    return read(content, source, platform)


_FORMATS: Final = (
    Format(frozenset({"version", "environments"}), _pixi),
    Format(frozenset({"version", "metadata", "package"}), _conda_lock),
)
_LIST: Final = Format(frozenset(), _explicit)
