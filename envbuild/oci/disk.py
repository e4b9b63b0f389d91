"""Files of a layout on disk: written whole or not at all, never through a symbolic link.

A new file is written beside its place under a temporary name and renamed. Its writer holds an ``flock`` on
it, so that the leftovers of killed writers can be told from files in the making and swept.

Temporary files are not flushed to the disk unless the caller asks: a killed process loses nothing that way,
and what a power cut tears is found by its size or digest. Only ``index.json`` has neither and is flushed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuild.errors import StorageError, StorageFull, Unavailable
from envbuild.storage import TEMPORARY, unfinished

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_STALE_SECONDS = 60  # covers the moment between a temporary file's making and its flock


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Raise the operating system's errors as envbuild's own.

    Args:
        doing: What is being done to what, as ``writing oci:/srv/images``.

    Raises:
        StorageFull: The disk, the quota or the largest file's size is exhausted.
        Unavailable: Anything else; retryable unless it is a matter of permissions.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = "free some space, or choose another disk; what was stored before is intact"
            raise StorageFull(f"{doing}: {error.strerror}", hint=hint, retryable=True) from error
        if error.errno in _FORBIDDEN:
            hint = "check who owns the folder and whether its disk is mounted read-only"
            raise Unavailable(f"{doing}: {error.strerror}", hint=hint, retryable=False) from error
        raise Unavailable(f"{doing}: {error.strerror or error}") from error


@contextlib.contextmanager
def open_folder(name: str | Path, parent: int | None = None, *, make: bool = True) -> Iterator[int]:
    """A folder's descriptor; under a ``parent`` it is made, if ``make`` says so, and must not be a link.

    Raises:
        StorageError: There is a symbolic link or a file in its place.
        OSError: It cannot be made or opened.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY
    if parent is not None:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=parent)
        flags |= os.O_NOFOLLOW
    try:
        descriptor = os.open(name, flags, dir_fd=parent)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise
        raise StorageError(
            f"{str(name)!r} is a symbolic link or a file, expected a folder",
            hint="envbuild reads layouts with links inside, but writes through none",
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Temporary:
    """A file in the making. Its methods raise what :func:`storage_errors` raises.

    Attributes:
        root: The descriptor of the folder that it is in.
        name: Its temporary name.
        descriptor: Open for writing.
        doing: What is being written, for messages.
    """

    root: int
    name: str
    descriptor: int
    doing: str

    def write(self, content: bytes) -> None:
        """Append bytes, all of them."""
        view = memoryview(content)
        with storage_errors(self.doing):
            while view:
                view = view[os.write(self.descriptor, view) :]

    def commit(self, folder: int, name: str, *, flush: bool = False) -> None:
        """Put the file in its place, over whatever is there."""
        with storage_errors(self.doing):
            if flush:
                os.fsync(self.descriptor)
            os.replace(self.name, name, src_dir_fd=self.root, dst_dir_fd=folder)


@contextlib.contextmanager
def temporary(root: int, doing: str) -> Iterator[Temporary]:
    """A new file in the folder ``root``; gone at the end unless it was committed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with unfinished(root) as name:
        with storage_errors(doing):
            descriptor = os.open(name, flags, 0o644, dir_fd=root)
        try:
            with storage_errors(doing):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Temporary(root, name, descriptor, doing)
        finally:
            os.close(descriptor)


def write_file(root: int, place: tuple[int, str], content: bytes, doing: str, *, flush: bool = False) -> None:
    """Write a small file.

    Args:
        root: The folder that takes the temporary file, on the same disk.
        place: The folder and name that the file gets in the end.
        content: All of its bytes.
        doing: What is being written, for messages.
        flush: Whether it must survive a power cut.
    """
    with temporary(root, doing) as made:
        made.write(content)
        made.commit(*place, flush=flush)


def link_file(source: int, folder: int, name: str) -> None:
    """Give an open file a second name in ``folder``, over whatever is there.

    Linking what is open, not what a path names now, keeps checks on ``source`` valid.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    with contextlib.suppress(FileExistsError):
        os.link(f"/proc/self/fd/{source}", name, dst_dir_fd=folder, follow_symlinks=True)


def sweep(root: int) -> None:
    """Remove the temporary files of writers that were killed."""
    for name in os.listdir(root):
        if name.startswith(TEMPORARY):
            with contextlib.suppress(OSError):
                _remove_stale(root, name)


def _remove_stale(root: int, name: str) -> None:
    if time.time() - os.stat(name, dir_fd=root, follow_symlinks=False).st_mtime < _STALE_SECONDS:
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(name, dir_fd=root)
    finally:
        os.close(descriptor)
