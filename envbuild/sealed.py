"""A table of sealed rows in one SQLite file, for hints that may be lost at any time.

A seal is a hash over the row, so that a flipped bit is a row that is not there and never a wrong answer. A
file that SQLite cannot read is set aside and a new one is begun.

SQLite writes ahead (WAL) only where its library does that safely: before 3.51.3 (3.50.7, 3.44.6) it can
corrupt a file when it begins the log anew (https://sqlite.org/wal.html). Debian 12 carries 3.40.1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from envbuild.errors import StorageError, StorageFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

SCHEMA: Final = 2
BUSY_SECONDS: Final = 30.0
_T = TypeVar("_T")


class SealedFile:
    """JSON values by kind and name. Safe for many threads and processes.

    Reads of a broken or foreign file answer "not known".

    Args:
        path: The file; its folder must be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner = os.getpid()

    def get(self, kind: str, name: str) -> Any:
        """The value of a kind and name, or None."""
        row = self._run(
            lambda connection: connection.execute(
                "SELECT body, seal FROM entry WHERE kind = ? AND name = ?", (kind, _stored(name))
            ).fetchone(),
            None,
        )
        return None if row is None else _unseal(kind, _stored(name), *row)

    def all(self, kind: str, most: int = -1) -> dict[str, Any]:
        """Values of a kind by name; at most so many, -1 for all."""
        rows: list[tuple[str, Any, Any]] = self._run(
            lambda connection: connection.execute(
                "SELECT name, body, seal FROM entry WHERE kind = ? LIMIT ?", (kind, most)
            ).fetchall(),
            [],
        )
        found = {name: _unseal(kind, name, body, seal) for name, body, seal in rows}
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

    def put(self, kind: str, values: Iterable[tuple[str, Any]]) -> None:
        """Keep values by name, all or none; what was there under a name is replaced.

        Raises:
            StorageFull: There is no space.
            StorageError: Another process held the file for :data:`BUSY_SECONDS`.
        """
        sealed = []
        for name, value in values:
            body = json.dumps(value, separators=(",", ":"))
            sealed.append((kind, _stored(name), body, _seal(kind, _stored(name), body)))
        self._write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", sealed
            )
        )

    def delete(self, kind: str, name: str) -> None:
        """Forget one value; raises what :meth:`put` raises."""
        self._write(
            lambda connection: connection.execute(
                "DELETE FROM entry WHERE kind = ? AND name = ?", (kind, _stored(name))
            )
        )

    def clear(self) -> None:
        """Forget everything; raises what :meth:`put` raises."""
        self._write(lambda connection: connection.execute("DELETE FROM entry"))

    def close(self) -> None:
        """Close the file. It is opened again when it is used again."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def _write(self, action: Callable[[sqlite3.Connection], object]) -> None:
        def transaction(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                action(connection)

        self._run(transaction, None, writing=True)

    def _run(self, action: Callable[[sqlite3.Connection], _T], default: _T, *, writing: bool = False) -> _T:
        with self._lock:
            for attempt in (1, 2):
                try:
                    return action(self._open_file())
                except sqlite3.DatabaseError as error:
                    if not self._recover(error, attempt, writing=writing):
                        break
        return default

    def _recover(self, error: sqlite3.DatabaseError, attempt: int, *, writing: bool) -> bool:
        """Whether another attempt is worth it after ``error``; raises what the caller must know."""
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if code is not None else None
        if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and writing):
            raise StorageFull(f"the index {self.path} cannot grow: {error}", hint="free space") from None
        if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} or code is None or _is_foreign(error):
            self._quarantine()
            return attempt == 1
        if writing and primary in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
            return False
        if primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise StorageError(
                f"the index {self.path} was locked for {BUSY_SECONDS:.0f} s", hint="try again", retryable=True
            ) from None
        self.close()
        return attempt == 1

    def _open_file(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():
            self._connection = self._connect()
            self._owner = os.getpid()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
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
                raise _Foreign(f"schema {version}, expected {SCHEMA}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _quarantine(self) -> None:
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.replace(self.path.with_suffix(f".broken-{time.time_ns():x}"))
        for journal in self.path.parent.glob(f"{self.path.name}-*"):
            journal.unlink(missing_ok=True)


class _Foreign(sqlite3.DatabaseError):
    """The file has another version's schema."""


def _is_foreign(error: Exception) -> bool:
    return isinstance(error, _Foreign) or "no such table" in str(error) or "no such column" in str(error)


def _create(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS entry (kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, "
            "seal TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID"
        )
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


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
