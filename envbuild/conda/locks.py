"""Locks that rattler reads and writes: ``pixi.lock``."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from envbuild.conda.panics import panics_told
from envbuild.conda.solve import package_record
from envbuild.errors import SpecError
from envbuild.platform import LINUX_AMD64, Platform

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    import rattler
    from rattler.lock import LockPlatform

    from envbuild.lock import Lock, PackageRecord

_ENVIRONMENT: Final = "default"
_MAX_DEPTH: Final = 256
_WHICH: Final = "say which with --platform, or name the definition that it was made from"


def read_pixi(
    content: bytes, source: str, platform: Platform | None
) -> tuple[list[PackageRecord], list[str], Platform]:
    """Read a ``pixi.lock`` of version 4 or later.

    Args:
        content: The lock.
        source: Its name for messages.
        platform: The platform; None is ``linux/amd64``, or the one Linux that the lock is for.

    Returns:
        The Conda packages for the platform, the names of what is none (Python distributions), the platform.

    Raises:
        SpecError: It is no such lock, or is not for the platform, or for several that differ.
        ChannelError: A package has no sha256.
    """
    _require_shallow(content, source)
    with panics_told(lambda said: SpecError(f"the lock breaks its reader: {said}", source=source)):
        return _read_pixi(content, source, platform)


def _require_shallow(content: bytes, source: str) -> None:
    """Refuse brackets in brackets in brackets: rattler takes time by the square of their number."""
    depth = 0
    for found in re.finditer(rb"[\[\]{}]", content):
        depth = depth + 1 if found[0] in b"[{" else max(depth - 1, 0)
        if depth > _MAX_DEPTH:
            raise SpecError("the lock cannot be read: it is nested too deep", source=source)


def _read_pixi(
    content: bytes, source: str, platform: Platform | None
) -> tuple[list[PackageRecord], list[str], Platform]:
    import rattler
    from rattler.exceptions import ParseCondaLockError
    from rattler.lock import CondaLockedPackage

    try:
        with tempfile.NamedTemporaryFile(prefix="envbuild-lock-") as file:
            file.write(content)
            file.flush()
            lock = rattler.LockFile.from_path(Path(file.name))
            environments = dict(lock.environments())
    except ParseCondaLockError as error:
        raise SpecError(f"the lock cannot be read: {error}", source=source) from None
    if not environments:
        raise SpecError("the lock has no environment", source=source)
    environment = environments.get(_ENVIRONMENT) or (
        environments.popitem()[1] if len(environments) == 1 else None
    )
    if environment is None:
        raise SpecError(f"the lock has several environments and no `{_ENVIRONMENT}`", source=source)
    # An environment without packages may be listed without platforms; the lock may still say which it is for.
    named = environment.platforms() or lock.platforms()
    chosen = solved_platform({str(each.subdir) for each in named}, platform, source)
    if not environment.platforms():
        return [], [], chosen
    found = _of_subdir(environment, chosen.subdir, source)
    others = [
        each.name for each in environment.packages(found) or () if not isinstance(each, CondaLockedPackage)
    ]
    records = environment.conda_repodata_records_for_platform(found) or []
    return [package_record(record) for record in records], others, chosen


def _of_subdir(environment: rattler.Environment, subdir: str, source: str) -> LockPlatform:
    """The platform of a subdir, whatever its name: the one that is named so, else the only one there is.

    Several differ in what they offer beside it, as a driver: where their packages differ too, nothing says
    which are meant.
    """
    found = [each for each in environment.platforms() if str(each.subdir) == subdir]
    plain = [each for each in found if str(each.name) == subdir]
    contents = {frozenset(str(one.location) for one in environment.packages(each) or ()) for each in found}
    if not plain and len(contents) > 1:
        names = ", ".join(sorted(str(each.name) for each in found))
        raise SpecError(
            f"the lock has {names} for {subdir}, with other packages each, and none that is named {subdir}",
            source=source,
            hint="name the definition that it was made from",
        )
    return (plain or found)[0]


def solved_platform(subdirs: Collection[str], wanted: Platform | None, source: str) -> Platform:
    """The platform that a lock is read for.

    Args:
        subdirs: Those that it is for; none where it does not say.
        wanted: The one that is asked for; None for ``linux/amd64``, or the one Linux that it is for.
        source: Its name for messages.

    Raises:
        SpecError: It is not for that platform.
    """
    own = [each for each in _platforms(subdirs) if wanted in {None, each}]
    if not subdirs or (wanted is None and LINUX_AMD64 in own):
        return wanted or LINUX_AMD64
    if len(own) != 1:
        asked = f"{(wanted or LINUX_AMD64).subdir} is asked for"
        raise SpecError(
            f"the lock is for {', '.join(sorted(subdirs))}, and {asked}", source=source, hint=_WHICH
        )
    return own[0]


def _platforms(subdirs: Iterable[str]) -> Iterator[Platform]:
    """Those of some subdirs that images are built for."""
    for subdir in sorted(subdirs):
        with contextlib.suppress(SpecError):
            yield Platform.parse(subdir)


def write_pixi(path: Path, locks: Iterable[Lock], channels: Sequence[str]) -> None:
    """Write a ``pixi.lock`` of one environment, ``default``, in the version that rattler writes.

    Args:
        path: The file.
        locks: One a platform.
        channels: URLs of channels in order of priority, without credentials.
    """
    import rattler
    from rattler.lock import LockChannel, LockPlatform

    platforms = {lock.platform.subdir: (LockPlatform(lock.platform.subdir), lock) for lock in locks}
    file = rattler.LockFile([platform for platform, _ in platforms.values()])
    file.set_channels(_ENVIRONMENT, [LockChannel(channel) for channel in channels])
    for platform, lock in platforms.values():
        for package in lock.packages:
            file.add_conda_package(_ENVIRONMENT, platform, _record(package))
    file.to_path(path)


def _record(package: PackageRecord) -> rattler.RepoDataRecord:
    import rattler

    record = rattler.PackageRecord(
        package.name,
        package.version,
        rattler.BuildString(package.build),
        package.build_number,
        package.subdir,
        noarch=rattler.NoArchType(package.noarch) if package.noarch is not None else None,
        depends=list(package.depends),
        sha256=bytes.fromhex(package.sha256.hex),
        md5=bytes.fromhex(package.md5) if package.md5 is not None else None,
        size=package.size,
        python_site_packages_path=package.python_site_packages_path,
    )
    said = json.loads(package.metadata or "{}")
    for name in said.keys() - {"timestamp", "purls", "track_features"}:
        setattr(record, name, said[name])
    if "timestamp" in said:
        record.timestamp = dt.datetime.fromtimestamp(said["timestamp"] / 1000, dt.UTC)
    record.track_features = said.get("track_features", "").split()
    return rattler.RepoDataRecord(record, package.file_name, package.url, package.channel)
