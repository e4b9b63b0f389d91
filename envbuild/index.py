"""The local cache index: a hint, never an authority, and disposable.

One SQLite file holds sealed rows. A seal is a hash over the row, so that a flipped bit is a row that is
not there and never a wrong answer. A file that SQLite cannot read is set aside and a new one is begun.

The journal mode is DELETE and not WAL: SQLite before 3.51.3 (3.44.6, 3.50.7) can corrupt a WAL file when it
is reset, and Debian 12 carries 3.40.1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cachetools import TTLCache

from envbuild.digest import Descriptor, Digest
from envbuild.errors import EnvbuildError, StorageError, StorageFull
from envbuild.reference import ImageReference, Repository
from envbuild.storage import private_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

SCHEMA: Final = 2
BUSY_SECONDS: Final = 30.0
MEMORY_SECONDS: Final = 2.0
"""How long a row is answered from memory before the file is asked again."""
_MEMORY_ROWS: Final = 8192
MAX_FORM: Final = 256 << 10
"""The longest canonical form that is remembered, in characters."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """What the index knows of a key.

    Attributes:
        key: The key's 64 hex digits.
        reference: Where the image was seen.
        lock_key: The lock key of the image, or None.
        confirmed_at: When a registry last confirmed it, in seconds since the epoch.
    """

    key: str
    reference: ImageReference
    lock_key: str | None
    confirmed_at: float


@dataclass(frozen=True, slots=True)
class BaseEntry:
    """What a base's tag named, and when it was asked, in seconds since the epoch."""

    digest: Digest
    resolved_at: float


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """A layer that was made once: its blob, its diff id and the hashes of its paths.

    Attributes:
        descriptor: The compressed blob.
        diff_id: The digest of the tar in it.
        files: The hashes of the layer's files, as the layer writer gives them.
        folders: The hashes of its folders.
        repository: Where the blob was seen last.
        activation: What the layer's activation scripts say, as the layer writer gives it; may be empty.
    """

    descriptor: Descriptor
    diff_id: Digest
    files: bytes
    folders: bytes
    repository: Repository
    activation: str = ""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """The index in numbers: rows by kind, and the file's size in bytes."""

    images: int
    layers: int
    bases: int
    size: int


class Index:
    """The index in a cache folder. Safe for many threads and processes.

    Reads of a broken or foreign file answer "not known"; writes that fail for want of space raise
    :class:`~envbuild.errors.StorageFull`.

    Raises:
        StorageError: The folder is not ours, is a symbolic link, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = private_folder(folder)
        self.path = self.folder / "index.sqlite"
        self._lock = threading.RLock()
        self._memory: TTLCache[tuple[str, str], Any] = TTLCache(_MEMORY_ROWS, MEMORY_SECONDS)
        self._connection: sqlite3.Connection | None = None
        self._owner = os.getpid()

    def image(self, key: str, repository: Repository) -> ImageEntry | None:
        """The image of a key in a repository, or None."""
        return self._get("image", f"{key} {repository}", _image_entry)

    def put_image(self, entry: ImageEntry) -> None:
        """Remember an image; what was known of its key in its repository is replaced."""
        body = {"digest": entry.reference.digest.hex, "lock": entry.lock_key, "at": entry.confirmed_at}
        self._put([("image", f"{entry.key} {entry.reference.repository}", body)])

    def evict_image(self, key: str, repository: Repository) -> None:
        """Forget the image of a key in a repository."""
        self._delete("kind = 'image' AND name = ?", (f"{key} {repository}",))

    def images(self) -> Iterator[ImageEntry]:
        """Every image that is known, newest confirmation first."""
        rows: list[tuple[str, str, str]] = self._run(
            lambda connection: connection.execute(
                "SELECT name, body, seal FROM entry WHERE kind = 'image'"
            ).fetchall(),
            [],
        )
        entries = [_unseal("image", name, body, seal, _image_entry) for name, body, seal in rows]
        yield from sorted((entry for entry in entries if entry), key=lambda entry: -entry.confirmed_at)

    def base(self, reference: str) -> BaseEntry | None:
        """What a base reference (with its platform) named when it was last asked, or None."""
        return self._get("base", reference, lambda _, body: BaseEntry(Digest(body["digest"]), body["at"]))

    def put_base(self, reference: str, entry: BaseEntry) -> None:
        """Remember what a base reference names."""
        self._put([("base", reference, {"digest": entry.digest.hex, "at": entry.resolved_at})])

    def fact(self, name: str) -> str | None:
        """A fact about immutable content, as ``glibc <digest>``, or None where nobody looked yet."""
        return self._get("fact", name, lambda _, body: str(body["value"]))

    def put_fact(self, name: str, value: str) -> None:
        """Remember a fact about immutable content."""
        self._put([("fact", name, {"value": value})])

    def form(self, key: str) -> dict[str, Any] | None:
        """The canonical form of a key, or None."""
        return self._get("form", key, lambda _, body: dict(body))

    def put_form(self, key: str, form: Mapping[str, Any]) -> None:
        """Remember the canonical form of a key, so that misses can be explained; large ones are left out."""
        if len(json.dumps(form)) <= MAX_FORM:
            self._put([("form", key, dict(form))])

    def forms(self) -> dict[str, dict[str, Any]]:
        """Canonical forms that are known, by key; some, where there are very many."""
        rows: list[tuple[str, str, str]] = self._run(
            lambda connection: connection.execute(
                "SELECT name, body, seal FROM entry WHERE kind = 'form' LIMIT 1000"
            ).fetchall(),
            [],
        )
        found = {
            name: _unseal("form", name, body, seal, lambda _, form: dict(form)) for name, body, seal in rows
        }
        return {key: form for key, form in found.items() if form is not None}

    def layers(self, keys: Iterable[str]) -> dict[str, LayerEntry]:
        """The layers that are known among some layer keys."""
        found = {key: self._get("layer", key, _layer_entry) for key in keys}
        return {key: entry for key, entry in found.items() if entry is not None}

    def put_layers(self, entries: dict[str, LayerEntry]) -> None:
        """Remember layers by their layer keys."""
        self._put(
            [
                (
                    "layer",
                    key,
                    {
                        "type": entry.descriptor.media_type,
                        "digest": entry.descriptor.digest.hex,
                        "size": entry.descriptor.size,
                        "diff": entry.diff_id.hex,
                        "files": entry.files.hex(),
                        "folders": entry.folders.hex(),
                        "in": str(entry.repository),
                        "activation": entry.activation,
                    },
                )
                for key, entry in entries.items()
            ]
        )

    def stats(self) -> IndexStats:
        """The index in numbers."""
        rows: list[tuple[str, int]] = self._run(
            lambda connection: connection.execute(
                "SELECT kind, count(*) FROM entry GROUP BY kind"
            ).fetchall(),
            [],
        )
        counts = dict(rows)
        size = self.path.stat().st_size if self.path.exists() else 0
        return IndexStats(counts.get("image", 0), counts.get("layer", 0), counts.get("base", 0), size)

    def clear(self) -> None:
        """Forget everything."""
        self._delete("1", ())

    def close(self) -> None:
        """Close the file. The index opens it again if it is used again."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def _get(self, kind: str, name: str, build: Callable[[str, Any], _T]) -> _T | None:
        with self._lock:
            held: _T | None = self._memory.get((kind, name))
            if held is not None:
                return held
            row = self._run(
                lambda connection: connection.execute(
                    "SELECT body, seal FROM entry WHERE kind = ? AND name = ?", (kind, name)
                ).fetchone(),
                None,
            )
            entry = None if row is None else _unseal(kind, name, row[0], row[1], build)
            if entry is not None:
                self._memory[kind, name] = entry
            return entry

    def _put(self, rows: list[tuple[str, str, dict[str, Any]]]) -> None:
        sealed = []
        for kind, name, content in rows:
            body = json.dumps(content, separators=(",", ":"))
            sealed.append((kind, name, body, _seal(kind, name, body)))
        self._write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", sealed
            )
        )

    def _delete(self, where: str, values: tuple[str, ...]) -> None:
        self._write(lambda connection: connection.execute(f"DELETE FROM entry WHERE {where}", values))  # noqa: S608

    def _write(self, action: Callable[[sqlite3.Connection], object]) -> None:
        def transaction(connection: sqlite3.Connection) -> None:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                action(connection)

        with self._lock:
            self._memory.clear()
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
        self._memory.clear()
        with contextlib.suppress(FileNotFoundError):
            self.path.replace(self.path.with_suffix(f".broken-{time.time_ns():x}"))
        for journal in self.folder.glob("index.sqlite-*"):
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


def _seal(kind: str, name: str, body: str) -> str:
    return hashlib.sha256(f"{kind}\0{name}\0{body}".encode("utf-8", "surrogatepass")).hexdigest()


def _unseal(kind: str, name: str, body: Any, seal: Any, build: Callable[[str, Any], _T]) -> _T | None:
    try:
        if _seal(kind, name, body) != seal:
            return None
        return build(name, json.loads(body))
    except (ValueError, KeyError, TypeError, EnvbuildError):
        return None


def _image_entry(name: str, body: Any) -> ImageEntry:
    key, _, repository = name.partition(" ")
    reference = ImageReference(Repository.parse(repository), Digest(body["digest"]))
    return ImageEntry(key, reference, body["lock"], body["at"])


def _layer_entry(_key: str, body: Any) -> LayerEntry:
    descriptor = Descriptor(body["type"], Digest(body["digest"]), body["size"])
    return LayerEntry(
        descriptor,
        Digest(body["diff"]),
        bytes.fromhex(body["files"]),
        bytes.fromhex(body["folders"]),
        Repository.parse(body["in"]),
        body["activation"],
    )
