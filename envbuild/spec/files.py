"""The one place where a file that a definition names is opened, and the bounds that hold while one is read.

Only regular files are read: no FIFO, device or socket, and nothing that the kernel makes up under ``/proc``
and ``/sys``. With ``confine`` a definition names nothing outside of its folder. The bounds are kept beside
the call and not handed from reader to reader, so that no reader that is written later can leave them out.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import SpecError
from envbuild.url import FILE, Url, UrlError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.spec.document import Mark

_CHUNK: Final = 1 << 20
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MADE_UP: Final = ("/proc", "/sys")
_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What holds while a definition is read.

    Attributes:
        confined: Whether its files are kept in ``folder``.
        folder: The definition's folder, without links; None where it has none, and then names no file.
        deadline: When to give up.
    """

    confined: bool = False
    folder: str | None = None
    deadline: Deadline = NO_DEADLINE


_NONE: Final = Bounds()
_bounds: ContextVar[Bounds] = ContextVar("bounds", default=_NONE)


class OutsideError(PermissionError):
    """A path is outside of the folder that a definition is confined to."""


@contextlib.contextmanager
def within(folder: Path | None, *, confine: bool, deadline: Deadline = NO_DEADLINE) -> Iterator[None]:
    """Read a definition within bounds.

    Args:
        folder: Its folder; None for one from standard input.
        confine: Whether it is kept to that.
        deadline: When to give up.
    """
    place = os.path.realpath(folder) if folder is not None and confine else None
    token = _bounds.set(Bounds(confine, place, deadline))
    try:
        yield
    finally:
        _bounds.reset(token)


@contextlib.contextmanager
def unconfined() -> Iterator[None]:
    """Read what the caller names in the midst of a definition: it is not kept to that one's folder."""
    token = _bounds.set(replace(_bounds.get(), confined=False, folder=None))
    try:
        yield
    finally:
        _bounds.reset(token)


def check_time(doing: str) -> None:
    """Raise DeadlineExceeded where the time for reading a definition is up."""
    _bounds.get().deadline.check(doing)


def require(path: Path | str, mark: Mark | None) -> str | None:
    """Refuse a path that a confined definition may not name, before it is looked at.

    Returns:
        The path without links, where a definition is confined.

    Raises:
        SpecError: There is such a bound, and the path leads out of it.
    """
    try:
        return _inside(path)
    except OutsideError as error:
        source, line, column = mark if mark is not None else (None, None, None)
        raise SpecError(
            f"{error.filename} {error.strerror}",
            source=source,
            line=line,
            column=column,
            hint="move it into the folder of the definition, or read the definition without `confine`",
        ) from None


def require_url(url: str, mark: Mark | None) -> None:
    """The same for a URL, which names a path where it is a ``file:`` URL."""
    scheme, _, rest = url.partition(":")
    if _bounds.get().confined and scheme.lower().rpartition("+")[2] == "file":
        try:
            path = unquote(Url.parse(f"file:{rest}", FILE).path)
        except UrlError:
            path = unquote(rest)
        require(path, mark)
        if "+" in scheme:  # of version control, a revision may follow
            require(path.rpartition("@")[0] or path, mark)


def read_file(path: Path | str, most: int) -> bytes:
    """The content of a regular file, and no more than one byte above a limit.

    Raises:
        OSError: It cannot be read, is no regular file, or is out of bounds.
        DeadlineExceeded: The time ran out.
    """
    handle = opened(path)
    try:
        return read_up_to(handle, most, path)
    finally:
        os.close(handle)


def read_up_to(handle: int, most: int, path: Path | str) -> bytes:
    """What an open file holds from where it stands, and no more than one byte above a limit."""
    chunks, left = [], most + 1
    while left and (chunk := os.read(handle, min(left, _CHUNK))):
        check_time(f"reading {path}")
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def open_below(folder: str | bytes, parts: Sequence[str | bytes]) -> int:
    """Open a regular file below a folder, by names none of which may be a link when it is opened.

    Raises:
        OSError: It cannot be opened, is no regular file, or a name on the way is a link by now.
    """
    top = _bounds.get().folder
    if top is not None and os.fsdecode(folder) != top:  # it may have become a link, too
        below = os.path.relpath(os.fsdecode(folder), top).split("/")
        folder, parts = top, [*below, *map(os.fsdecode, parts)]
    here = os.open(folder, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in parts[:-1]:
            deeper = os.open(part, _FOLDER, dir_fd=here)
            os.close(here)
            here = deeper
        name = parts[-1]
        _require_file(os.stat(name, dir_fd=here, follow_symlinks=False), os.fsdecode(name))
        return _checked(os.open(name, _FLAGS, dir_fd=here), os.fsdecode(name))
    finally:
        os.close(here)


def opened(path: Path | str) -> int:
    """The descriptor of a regular file.

    Raises:
        OSError: It cannot be opened, is no regular file, or is out of bounds.
    """
    if (real := _inside(path)) is not None:
        folder = _bounds.get().folder or "/"
        return open_below(folder, os.path.relpath(real, folder).split("/"))
    _require_file(os.stat(path), str(path))  # noqa: PTH116 - opening a device may do something
    return _checked(os.open(path, _FLAGS & ~os.O_NOFOLLOW), str(path))


def _inside(path: Path | str) -> str | None:
    """The path without links, where a definition is confined; None where it is not."""
    bounds = _bounds.get()
    if not bounds.confined:
        return None
    if bounds.folder is None:
        raise OutsideError(
            errno.EPERM, "is a file, and `confine` lets a definition without a folder name none", str(path)
        )
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:  # a link went away meanwhile; or no path can be that
        raise OutsideError(errno.EPERM, f"cannot be told from one outside: {error}", str(path)) from None
    if real != bounds.folder and not real.startswith(bounds.folder.rstrip("/") + "/"):
        raise OutsideError(
            errno.EPERM, f"is outside of {bounds.folder}, where `confine` keeps the definition", str(path)
        )
    return real


def _checked(handle: int, name: str) -> int:
    """The descriptor, if it is that of a regular file."""
    try:
        _require_file(os.fstat(handle), name)
    except OSError:
        os.close(handle)
        raise
    return handle


def _require_file(seen: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(seen.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(seen.st_mode):
        kind = _KINDS.get(stat.S_IFMT(seen.st_mode), "no file")
        raise PermissionError(errno.EPERM, f"it is {kind}, expected a file", name)
    if seen.st_dev in _made_up():
        raise PermissionError(errno.EPERM, "the kernel makes it up, expected a file on a disk", name)


@functools.cache
def _made_up() -> frozenset[int]:
    """The devices of the file systems whose files are made up as they are read."""
    return frozenset(os.stat(place).st_dev for place in _MADE_UP if os.path.ismount(place))  # noqa: PTH116
