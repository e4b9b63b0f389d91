"""Files on this machine: the private cache folder, a lock for each key, files written whole or not at all."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import stat
from typing import IO, TYPE_CHECKING

from envbuild.errors import StorageError, StorageFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import filelock

    from envbuild.deadline import Deadline

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TEMPORARY = ".envbuild-tmp-"
_unfinished: dict[str, int] = {}


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can use, or check that it is one.

    Raises:
        StorageError: It is a symbolic link, belongs to somebody else, or cannot be made.
        StorageFull: There is no room for it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = folder.lstat()
    except OSError as error:
        kind = StorageFull if error.errno in FULL else StorageError
        hint = "free some space, or " if kind is StorageFull else ""
        raise kind(
            f"the cache folder {folder} cannot be used: {error.strerror}",
            hint=f"{hint}give a folder of your own with --cache-dir or ENVBUILD_CACHE_DIR",
        ) from None
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
        what = "is a symbolic link" if stat.S_ISLNK(seen.st_mode) else "does not belong to you"
        raise StorageError(
            f"the cache folder {folder} {what}", hint="remove it, or choose another with --cache-dir"
        )
    if stat.S_IMODE(seen.st_mode) & 0o077:
        with contextlib.suppress(OSError):
            folder.chmod(0o700)
    return folder


def is_own(seen: os.stat_result) -> bool:
    """Whether a file of the cache is one that only we can have written.

    A folder that is private now may have been open to others: what they left there is no file of ours, as are
    a link, another name of a file elsewhere, and what others may write.
    """
    is_ours = stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid()
    return is_ours and seen.st_nlink == 1 and not stat.S_IMODE(seen.st_mode) & 0o022


def read_own(path: Path) -> bytes:
    """The content of a file of the cache.

    Raises:
        OSError: It cannot be read; or it is not our own, as :func:`is_own` has it.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not is_own(os.fstat(handle)):
            raise PermissionError(errno.EPERM, "it belongs to somebody else, or is a link", str(path))
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


@contextlib.contextmanager
def local_errors() -> Iterator[None]:
    """Raise the operating system's errors as envbuild's own.

    Raises:
        StorageFull: A disk is full.
        StorageError: Anything else, as that there is no folder for temporary files.
    """
    try:
        yield
    except ConnectionError:  # as of a pipe that nobody reads any more
        raise
    except OSError as error:
        raise local_error(error) from error


def local_error(error: OSError) -> StorageError:
    """An error of the operating system as one of envbuild's."""
    where = f"{error.filename}: " if error.filename is not None else ""
    said = f"{where}{error.strerror or error}"
    if error.errno in FULL:
        return StorageFull(said, hint="free some space; --cache-dir and TMPDIR name folders on another disk")
    if isinstance(error, FileNotFoundError) and "temporary directory" in said:
        return StorageError(said.lower(), hint="name a folder for temporary files in TMPDIR")
    return StorageError(said)


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
    try:
        acquire(lock, deadline, f"another process was building {key}", poll=0.02)
    except OSError as error:
        full = error.errno in FULL
        raise (StorageFull if full else StorageError)(
            f"the lock {lock.lock_file} cannot be used: {error.strerror}",
            hint="free some space, or give another folder with --cache-dir" if full else None,
        ) from None
    try:
        yield
    finally:
        lock.release()


def acquire(lock: filelock.BaseFileLock, deadline: Deadline, doing: str, *, poll: float) -> None:
    """Take a lock's file, looking every ``poll`` seconds whether it is free.

    Raises:
        DeadlineExceeded: Others held it until the deadline.
    """
    import filelock

    while True:
        try:
            lock.acquire(timeout=deadline.slice(), poll_interval=poll)
        except filelock.Timeout:
            deadline.check(doing)
        else:
            return


@contextlib.contextmanager
def unfinished(folder: int) -> Iterator[str]:
    """A name for a file in the making, which is removed at the end unless it was renamed by then.

    Where an interrupt keeps that from happening, as one between two lines of a ``finally`` does, the file is
    removed when Python ends.

    Args:
        folder: The descriptor of its folder.
    """
    name = TEMPORARY + os.urandom(8).hex()
    _unfinished[name] = os.dup(folder)
    try:
        yield name
    finally:
        _remove(name)


@contextlib.contextmanager
def written_whole(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file that takes its name when all of it is on the disk; nothing is left where that fails.

    Args:
        path: The file.
        mode: Who may read and write it, less what the umask takes away.

    Raises:
        OSError: The file cannot be written.
    """
    with contextlib.ExitStack() as opened:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        opened.callback(os.close, folder)
        name = opened.enter_context(unfinished(folder))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(name, flags, mode, dir_fd=folder), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)


def _remove(name: str) -> None:
    folder = _unfinished[name]
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)
    del _unfinished[name]
    os.close(folder)


@atexit.register
def remove_unfinished() -> None:
    """Remove the files in the making, whose makers will not end."""
    for name in list(_unfinished):
        with contextlib.suppress(KeyError, OSError):
            _remove(name)


os.register_at_fork(after_in_child=_unfinished.clear)
