"""Deleting all that the cache folder holds: the index, locks, what is kept of channels and wheels and so on.

Nothing else in the folder is touched, and no lock that somebody holds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Final

from envbuild.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.index import Index

KEPT: Final = ("repodata", "uv", "wheels", "pythons", "engine-images")
"""The folders of what was fetched or made once."""
PASSING: Final = ("spool", "pip")
"""The folders of what is on its way; what a killed process left there is older than any call."""
_LOCKS: Final = "locks"
_TRASH: Final = "trash-"
_PASSED_SECONDS: Final = 7200.0


def clear_cache(index: Index) -> int:
    """Delete what a cache folder holds; a call that is under way elsewhere may have to fetch again.

    Args:
        index: The folder's index.

    Returns:
        How many bytes that freed.

    Raises:
        StorageError: Something cannot be deleted; all that can be is gone.
    """
    folder = index.folder
    before = _size(folder)
    failures = list(_failures(folder))
    index.clear()
    if failures:
        raise failures[0]
    return max(before - _size(folder), 0)


def _failures(folder: Path) -> Iterator[StorageError]:
    for path in _leavings(folder):
        try:
            _delete(folder, path)
        except OSError as error:
            yield StorageError(
                f"{path} cannot be deleted: {error.strerror}",
                hint="check who owns the folder and whether its disk is mounted read-only",
            )


def _leavings(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in KEPT if os.path.lexists(folder / name))
    yield from folder.glob("engine-images.*")
    yield from folder.glob(f"{_TRASH}*")
    for name in (_LOCKS, *PASSING):
        if (folder / name).is_symlink():  # what it leads to is nobody's cache
            yield folder / name
            continue
        if name == _LOCKS:
            yield from (folder / name).glob("*.lock")
            continue
        for path in (folder / name).glob("*"):
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _PASSED_SECONDS:
                    yield path


def _delete(folder: Path, path: Path) -> None:
    if path.suffix == ".lock":
        _delete_lock(path)
    elif path.is_dir() and not path.is_symlink():
        # Renamed first: who looks meanwhile finds all of it or nothing.
        trash = folder / f"{_TRASH}{os.urandom(8).hex()}"
        path.rename(trash)
        shutil.rmtree(trash)
    else:
        path.unlink(missing_ok=True)


def _delete_lock(path: Path) -> None:
    """Delete a lock's file unless it is held; who waits for one that was deleted makes a new one."""
    import filelock

    lock = filelock.FileLock(path, mode=0o600)
    with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=0):
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    """The bytes of the files under a folder; one that cannot be read counts as empty."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - many files
    return total
