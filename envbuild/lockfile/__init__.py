"""Locks in use: which lock belongs to a definition, whether it still matches, and a lock as a definition."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from envbuild.errors import SpecError
from envbuild.reference import LAYOUT_SCHEME, ImageReference, TaggedReference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.diff import Change
    from envbuild.lockfile.document import LockEntry
    from envbuild.platform import Platform
    from envbuild.spec.environment import EnvironmentSpec

FILE_NAME: Final = "envbuild.lock"
START: Final = b'{\n "envbuild_lock": '
_UPDATE: Final = "write it again with `envbuild lock`"


class LockPolicy(NamedTuple):
    """Which locks are used.

    Attributes:
        file: The lock; None for the one that stands beside the definition.
        required: Whether a definition without a lock that matches is refused.
        ignored: Whether locks are not looked at; the file that is named is.
        lock_key: The lock key that the lock must have, 64 hex digits; None for any.
    """

    file: Path | None = None
    required: bool = False
    ignored: bool = False
    lock_key: str | None = None


class Locked(NamedTuple):
    """A definition and what its lock says.

    Attributes:
        spec: The definition; its base is pinned where a lock matches.
        entry: What it was solved to; None where no lock matches.
        note: What a person should know, as that the lock is stale; or None.
    """

    spec: EnvironmentSpec
    entry: LockEntry | None = None
    note: str | None = None


def apply(spec: EnvironmentSpec, platform: Platform, policy: LockPolicy, *, confine: bool = False) -> Locked:
    """Find the lock of a definition and hold the definition to it.

    Args:
        spec: The definition, with its base.
        platform: The platform to build for.
        policy: Which locks are used.
        confine: Whether a lock beside the definition is read only where it is no link out of its folder.

    Raises:
        SpecError: The lock is damaged; or it is required, and missing or stale.
    """
    own = spec.lock if policy.file is None and not policy.ignored else None
    path = policy.file or (Path(spec.source) if own is not None else None if policy.ignored else beside(spec))
    if path is None:
        return _unlocked(spec, policy, f"there is no {FILE_NAME} beside the definition", tell=False)
    from envbuild.lockfile.document import LockFile
    from envbuild.spec.files import within

    with within(path.parent, confine=confine and policy.file is None):
        file = LockFile.read(path) if own is None else LockFile.parse(own, spec.source)
    if policy.file is None and own is None and file.definition != Path(spec.source).name:
        return _unlocked(
            spec, policy, f"{path} is the lock of {file.definition or 'something else'}", tell=False
        )
    entry = file.entry(platform)
    if entry is None:
        return _unlocked(spec, policy, f"{path} is not for {platform}")
    if changes := differences(entry, spec, path.parent):
        shown = "; ".join(map(str, changes[:3])) + (f"; and {len(changes) - 3} more" if changes[3:] else "")
        return _unlocked(spec, policy, f"{path} is stale: {shown}")
    digest = entry.digest
    if isinstance(spec.base, TaggedReference) and digest is not None:
        spec = replace(spec, base=spec.base.repository.at(digest))
    return Locked(spec, entry)


def _unlocked(spec: EnvironmentSpec, policy: LockPolicy, why: str, *, tell: bool = True) -> Locked:
    if policy.required:
        raise SpecError(f"{why}, and a lock is required", source=spec.source, hint=_UPDATE)
    return Locked(spec, None, f"{why}; it is not used: {_UPDATE}" if tell else None)


def beside(spec: EnvironmentSpec) -> Path | None:
    """The lock in the definition's folder, or None."""
    source = Path(spec.source)
    path = source.parent / FILE_NAME
    return path if source.is_file() and path.is_file() else None


def differences(entry: LockEntry, spec: EnvironmentSpec, folder: Path) -> tuple[Change, ...]:
    """What is different in a definition since it was locked; what its base's tag names now is not asked.

    Args:
        entry: What the lock says for the platform.
        spec: The definition.
        folder: The lock's folder.
    """
    from envbuild.diff import Change, compare
    from envbuild.digest import Digest
    from envbuild.key import CanonicalForm

    scratch = spec.require_base() is None
    digest = entry.digest if scratch == (entry.digest is None) else None if scratch else Digest("0" * 64)
    form = CanonicalForm.of(spec, digest, entry.lock.platform)
    changes = compare(_solved_for(entry.form.fields), _solved_for(form.fields))
    found = [change for change in changes if change.part != "base"]
    now = base_text(spec, folder)
    if now not in {entry.base, _pinned(entry)} and not _is_same_layout(entry, spec, folder):
        found.insert(0, Change("base", "changed", before=entry.base, after=now))
    return tuple(found)


def _solved_for(form: Mapping[str, Any]) -> dict[str, Any]:
    """A form without what is done with packages once they are chosen."""
    from envbuild.key import BUILT_WITH

    return {name: value for name, value in form.items() if name not in BUILT_WITH}


def _is_same_layout(entry: LockEntry, spec: EnvironmentSpec, folder: Path) -> bool:
    """Whether two names of a layout lead to one folder, as through links, and to one image there."""
    from envbuild.spec.fields import reference

    before, now = reference(entry.base, folder.resolve(), None), spec.base
    if before is None or now is None or not (before.repository.is_layout and now.repository.is_layout):
        return False
    same = before.repository.folder.resolve() == now.repository.folder.resolve()
    if isinstance(now, ImageReference):
        return same and now.digest == entry.digest
    return same and isinstance(before, TaggedReference) and before.tag == now.tag


def _pinned(entry: LockEntry) -> str:
    """The base of an entry with its digest in place of the tag."""
    name = entry.base.rpartition("@")[0] or entry.base.rpartition(":")[0]
    return f"{name}@{entry.digest}"


def base_text(spec: EnvironmentSpec, folder: Path) -> str:
    """A definition's base as a lock in a folder names it: layouts by their real path from there."""
    base = spec.require_base()
    if base is None:
        return "scratch"
    if not base.repository.is_layout:
        return str(base)
    tail = f"@{base.digest}" if isinstance(base, ImageReference) else f":{base.tag}"
    place = Path(base.repository.path)
    path = os.path.relpath(place.parent.resolve() / place.name, folder.resolve())
    return f"{LAYOUT_SCHEME}{Path(path).as_posix()}{tail}"


def load(source: str | Path, **overrides: Any) -> EnvironmentSpec:
    """Read a definition, or a lock as one; arguments as :func:`envbuild.spec.environment.load`.

    Raises:
        SpecError: It cannot be understood; or something is laid over a lock.
    """
    from envbuild.spec import environment

    if not is_lock(source):
        return environment.load(source, **overrides)
    from envbuild.lockfile.document import read_bytes

    return definition(read_bytes(Path(source)), str(source), **overrides)


def definition(content: bytes, source: str, *, platforms: Any = None, **overrides: Any) -> EnvironmentSpec:
    """A lock that was read as a definition, which is held to it; arguments and errors as of :func:`load`."""
    from envbuild.lockfile import revive

    given = sorted(name for name, value in overrides.items() if value is not None)
    if given:
        raise SpecError(
            f"{', '.join(given)} cannot be laid over a lock",
            source=source,
            hint="name the definition that it was made from",
        )
    return revive.definition(content, Path(source), platforms)


def is_lock(source: str | Path) -> bool:
    """Whether a file starts as a lock does."""
    try:
        with Path(source).open("rb") as file:
            return file.read(len(START)) == START
    except (OSError, ValueError):
        return False
