"""Locks that rattler reads and writes: ``pixi.lock``, and ``conda-lock.yml``, which it only reads."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

from envbuild.conda.solve import package_record
from envbuild.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import rattler

    from envbuild.lock import Lock, PackageRecord
    from envbuild.platform import Platform

_ENVIRONMENT = "default"


def read_lock(path: Path, platform: Platform) -> tuple[list[PackageRecord], list[str]]:
    """Read a ``pixi.lock`` or ``conda-lock.yml``.

    Returns:
        The Conda packages for the platform, and the names of what is none (Python distributions).

    Raises:
        SpecError: It is no such lock, or is not for the platform.
        ChannelError: A package has no sha256.
    """
    import rattler
    from rattler.exceptions import ParseCondaLockError
    from rattler.lock import CondaLockedPackage

    try:
        environments = dict(rattler.LockFile.from_path(path).environments())
    except ParseCondaLockError as error:
        raise SpecError(f"the lock cannot be read: {error}", source=str(path)) from None
    environment = environments.get(_ENVIRONMENT) or (
        environments.popitem()[1] if len(environments) == 1 else None
    )
    if environment is None:
        raise SpecError(f"the lock has several environments and no `{_ENVIRONMENT}`", source=str(path))
    found = next((each for each in environment.platforms() if str(each.name) == platform.subdir), None)
    if found is None:
        names = ", ".join(sorted(str(each.name) for each in environment.platforms()))
        raise SpecError(f"the lock is for {names}, and {platform.subdir} is asked for", source=str(path))
    others = [
        each.name for each in environment.packages(found) or () if not isinstance(each, CondaLockedPackage)
    ]
    records = environment.conda_repodata_records_for_platform(found) or []
    return [package_record(record) for record in records], others


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
