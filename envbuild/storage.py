"""The folder of the local cache: private, and with one lock a key."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from envbuild.errors import DeadlineExceeded, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.deadline import Deadline


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can use, or check that it is one.

    Raises:
        StorageError: It is a symbolic link, belongs to somebody else, or cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = folder.lstat()
    except OSError as error:
        hint = "give a folder of your own with --cache-dir or ENVBUILD_CACHE_DIR"
        raise StorageError(f"the cache folder {folder} cannot be used: {error}", hint=hint) from None
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
        kind = "is a symbolic link" if stat.S_ISLNK(seen.st_mode) else "does not belong to you"
        raise StorageError(
            f"the cache folder {folder} {kind}", hint="remove it, or choose another with --cache-dir"
        )
    if stat.S_IMODE(seen.st_mode) & 0o077:
        with contextlib.suppress(OSError):
            folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def key_lock(folder: Path, key: str, deadline: Deadline) -> Iterator[None]:
    """Hold the one lock that a key has on this machine; the kernel frees it when its holder dies.

    Raises:
        DeadlineExceeded: Another process held it until the deadline.
        StorageError: The lock's file cannot be used.
    """
    import filelock

    locks = private_folder(folder / "locks")
    lock = filelock.FileLock(locks / f"{key}.lock", mode=0o600)
    remaining = deadline.remaining()
    try:
        lock.acquire(timeout=-1 if remaining == float("inf") else remaining, poll_interval=0.02)
    except filelock.Timeout:
        raise DeadlineExceeded(
            f"the deadline passed while another process was building {key}",
            hint="raise --timeout; the other build goes on",
        ) from None
    except OSError as error:
        raise StorageError(f"the lock {lock.lock_file} cannot be used: {error}") from None
    try:
        yield
    finally:
        lock.release()
