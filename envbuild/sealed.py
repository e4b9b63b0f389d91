"""A table of sealed rows in one SQLite file, for hints that may be lost at any time.

A seal is a hash over the row, so that a flipped bit is a row that is not there and never a wrong answer. No
call fails for the file's sake: one that cannot be read is set aside and a new one is begun; where nothing can
be written, rows are not kept, and that is told once.

SQLite writes ahead (WAL) only where its library does that safely: before 3.51.3 (3.50.7, 3.44.6) it can
corrupt a file when it begins the log anew (https://sqlite.org/wal.html). Debian 12 carries 3.40.1.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from envbuild.errors import StorageError
from envbuild.storage import is_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

SCHEMA: Final = 2
BUSY_SECONDS: Final = 5.0
"""How long another process may hold the file before a call goes on without it."""
_REST_SECONDS: Final = 30.0
"""How long a file that was held for too long is left alone."""
_ATTEMPTS: Final = 3
_JOURNALS: Final = ("-wal", "-shm", "-journal")
_SELECT: Final = "SELECT body, seal FROM entry WHERE kind = ? AND name = ?"
_T = TypeVar("_T")


class SealedFile:
    """JSON values by kind and name. Safe for many threads and processes, forked ones too.

    Args:
        path: The file.
        patience: Seconds for which to wait for other processes.
        warn: Told once why nothing is kept.
    """

    def __init__(
        self, path: Path, *, patience: float = BUSY_SECONDS, warn: Callable[[str], None] | None = None
    ) -> None:
        self.path = path
        self._patience = patience
        self._warn = warn
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._rests_until = 0.0
        _files.add(self)

    def get(self, kind: str, name: str) -> Any:
        """The value of a kind and name, or None."""
        row = self._run(
            lambda connection: connection.execute(_SELECT, (kind, _stored(name))).fetchone(),
            None,
        )
        return None if row is None else _unseal(kind, _stored(name), *row)

    def all(self, kind: str, most: int = -1) -> dict[str, Any]:
        """Values of a kind by name; at most so many, -1 for all."""
        rows: list[tuple[Any, Any, Any]] = self._run(
            lambda connection: connection.execute(
                "SELECT name, body, seal FROM entry WHERE kind = ? LIMIT ?", (kind, most)
            ).fetchall(),
            [],
        )
        found = {name: _unseal(kind, name, body, seal) for name, body, seal in rows if isinstance(name, str)}
        return {_named(name): value for name, value in found.items() if value is not None}

    def counts(self) -> dict[str, int]:
        """How many values there are of each kind."""
        rows: list[tuple[str, int]] = self._run(
            lambda connection: connection.execute(
                "SELECT kind, count(*) FROM entry GROUP BY kind"
            ).fetchall(),
            [],
        )
        return dict(rows)

    def put(self, kind: str, values: Iterable[tuple[str, Any]]) -> bool:
        """Keep values by name, all or none, in place of what was there. Whether they are kept."""
        sealed = []
        for name, value in dict(values).items():
            body = json.dumps(value, separators=(",", ":"))
            sealed.append((kind, _stored(name), body, _seal(kind, _stored(name), body)))

        def put(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", sealed)
            for row in sealed:
                # Pages that were damaged may take a row in and not give it back, with no error.
                if connection.execute(_SELECT, row[:2]).fetchone() != row[2:]:
                    raise sqlite3.DatabaseError("a row that was written is not there")

        return self._write(put)

    def delete(self, kind: str, name: str) -> bool:
        """Forget one value. Whether it is gone."""
        return self._write(
            lambda connection: connection.execute(
                "DELETE FROM entry WHERE kind = ? AND name = ?", (kind, _stored(name))
            )
        )

    def clear(self) -> None:
        """Delete the file, and those that were set aside.

        Raises:
            StorageError: They cannot be deleted; those that are left hold what they held.
        """
        with self._lock, _alone(self.path.parent):
            self.close()
            try:
                for path in (self.path, *self._journals(), *self._set_aside()):
                    _remove(path)
            except OSError as error:
                raise StorageError(
                    f"{error.filename} cannot be deleted: {error.strerror}",
                    hint="check who owns the folder and whether its disk is mounted read-only",
                ) from None

    def close(self) -> None:
        """Close the file. It is opened again when it is used again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _write(self, action: Callable[[sqlite3.Connection], object]) -> bool:
        def transaction(connection: sqlite3.Connection) -> bool:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                action(connection)
            return True

        return self._run(transaction, False, writing=True)

    def _run(self, action: Callable[[sqlite3.Connection], _T], default: _T, *, writing: bool = False) -> _T:
        with self._lock:
            if time.monotonic() < self._rests_until:
                return default
            for _ in range(_ATTEMPTS):
                try:
                    return action(self._current())
                # A broken file may come up in any way: SQLite's own messages are no UTF-8 then.
                except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
                    if not self._recovers(error, writing=writing):
                        break
        return default

    def _recovers(self, error: Exception, *, writing: bool) -> bool:
        """Whether another attempt is worth it after ``error``."""
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if code is not None else None
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            self.close()
            return True
        if primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            self._rests_until = time.monotonic() + _REST_SECONDS
            self._tell(f"another process held it for {self._patience:.0f} s")
            return False
        no_room = primary == sqlite3.SQLITE_FULL or (writing and primary == sqlite3.SQLITE_IOERR)
        if no_room or (primary in _NOT_OPEN and not self._is_in_the_way(primary)):
            self._tell(str(error))
            self.close()
            return False
        return self._set_it_aside()

    def _tell(self, reason: str) -> None:
        if self._warn is not None:
            self._warn(f"{self.path} keeps nothing new: {reason}")
            self._warn = None

    def _is_in_the_way(self, code: int) -> bool:
        """Whether it is for what stands under the name that SQLite cannot open it, or write to it."""
        try:
            os.close(os.open(self.path, os.O_RDWR))
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(mode=0o700)  # it was deleted; SQLite makes the file alone
                return True
            return False
        except OSError as error:
            return code == sqlite3.SQLITE_CANTOPEN and error.errno in _IN_THE_WAY
        return code == sqlite3.SQLITE_READONLY  # the file says so of itself

    def _current(self) -> sqlite3.Connection:
        if self._connection is not None and _identity(self.path) != self._opened:
            self.close()  # another process set the file aside, or cleared the cache
        return self._connection or self._connect()

    def _connect(self) -> sqlite3.Connection:
        self._opened = _identity(self.path)
        self._require_own()
        connection = sqlite3.connect(
            self.path, timeout=self._patience, isolation_level=None, check_same_thread=False
        )
        try:
            # Power-loss durability is not promised: a torn file is set aside and begun anew.
            connection.execute("PRAGMA synchronous = OFF")
            # A journal that is made and deleted for each write costs more than the write.
            mode = "WAL" if writes_ahead_safely(sqlite3.sqlite_version_info) else "TRUNCATE"
            connection.execute(f"PRAGMA journal_mode = {mode}")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                _create(connection)
            elif version != SCHEMA:
                raise sqlite3.DatabaseError(f"schema {version}, expected {SCHEMA}")  # noqa: TRY301
        except BaseException:
            connection.close()
            raise
        self._opened = _identity(self.path)
        self._connection = connection
        return connection

    def _require_own(self) -> None:
        """Refuse a file, or a journal that SQLite would play back into it, which others can have written."""
        for path in (self.path, *(self.path.with_name(self.path.name + end) for end in _JOURNALS)):
            with contextlib.suppress(OSError):  # SQLite says what is wrong with what cannot be asked
                if not is_own(os.lstat(path)):
                    if self._warn is not None:
                        self._warn(f"{path} is not used: it is a link, or others can have written it")
                    raise sqlite3.DatabaseError(f"{path} is not our own")

    def _set_it_aside(self) -> bool:
        """Rename the file, unless another process did so already; the last one that was set aside is kept."""
        self.close()
        try:
            with _alone(self.path.parent):
                if _identity(self.path) == self._opened:
                    for path in (*self._set_aside(), *self._journals()):
                        _remove(path)
                    with contextlib.suppress(FileNotFoundError):
                        self.path.replace(self.path.with_suffix(f".broken-{time.time_ns():x}"))
        except OSError as error:
            self._tell(f"it cannot be read, and cannot be set aside: {error.strerror}")
            return False
        return True

    def _journals(self) -> Iterator[Path]:
        return self.path.parent.glob(f"{self.path.name}-*")

    def _set_aside(self) -> Iterator[Path]:
        return self.path.parent.glob(f"{self.path.stem}.broken-*")


_NOT_OPEN: Final = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_IN_THE_WAY: Final = {errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one under its name; None where there is none."""
    try:
        seen = os.stat(path)  # noqa: PTH116 - for each row that is read
    except OSError:
        return None
    return seen.st_dev, seen.st_ino


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's own lock, for which no file is needed; without it where the folder has none."""
    import fcntl

    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _create(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS entry (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, "
            "seal TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID"
        )
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


_files: weakref.WeakSet[SealedFile] = weakref.WeakSet()
_inherited: list[sqlite3.Connection] = []


def _forked() -> None:
    """SQLite allows a child neither to use nor to close what its parent opened."""
    for file in _files:
        file._lock = threading.RLock()  # noqa: SLF001 - a thread that is not here may hold it
        if file._connection is not None:  # noqa: SLF001
            _inherited.append(file._connection)  # noqa: SLF001
            file._connection = None  # noqa: SLF001


os.register_at_fork(after_in_child=_forked)


def writes_ahead_safely(version: tuple[int, ...]) -> bool:
    """Whether a version of SQLite has the mend of the WAL-reset bug."""
    mended = {3_044: (3, 44, 6), 3_050: (3, 50, 7)}.get(version[0] * 1000 + version[1], (3, 51, 3))
    return version >= mended


def _stored(name: str) -> str:
    """A name as SQLite takes it: paths that are no UTF-8 hold surrogates, and are kept as JSON."""
    return json.dumps(name) if name.startswith('"') or not _is_utf8(name) else name


def _named(stored: str) -> str:
    return str(json.loads(stored)) if stored.startswith('"') else stored


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _seal(kind: str, name: str, body: str) -> str:
    return hashlib.sha256(f"{kind}\0{name}\0{body}".encode("utf-8", "surrogatepass")).hexdigest()


def _unseal(kind: str, name: str, body: Any, seal: Any) -> Any:
    try:
        return json.loads(body) if _seal(kind, name, body) == seal else None
    except (ValueError, TypeError):
        return None
