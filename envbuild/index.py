"""The local cache index: a hint, never an authority, and disposable.

One file of sealed rows holds what was seen of images, bases, layers and immutable content; rows that are
asked for over and over are answered from memory for a moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from cachetools import LRUCache, TTLCache

from envbuild.digest import Descriptor, Digest
from envbuild.errors import EnvbuildError, StorageFull
from envbuild.reference import ImageReference, Repository
from envbuild.sealed import BUSY_SECONDS, SealedFile
from envbuild.storage import private_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

MEMORY_SECONDS: Final = 2.0
"""How long a row is answered from memory before the file is asked again."""
_MEMORY_ROWS: Final = 8192
_DAY: Final = 86_400.0
MAX_FORM: Final = 256 << 10
"""The longest canonical form that is remembered, in characters."""
MADE: Final = "made"
"""Who vouches for what was made here, of what was verified here."""
_T = TypeVar("_T")


class ImageEntry(NamedTuple):
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


class BaseEntry(NamedTuple):
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
        records: What the packages say of themselves where channels correct it, as JSON by the path of their
            record; may be empty.
        clobbers: The packages in it that carry one path, as JSON; may be empty.
        voucher: Who vouches for it: :data:`MADE`, a signed statement as ``OWNER@DIGEST``, or, as
            ``OWNER@``, nobody but the repository that it was taken from.
    """

    descriptor: Descriptor
    diff_id: Digest
    files: bytes
    folders: bytes
    repository: Repository
    activation: str = ""
    records: str = ""
    clobbers: str = ""
    voucher: str = ""


class IndexStats(NamedTuple):
    """The index in numbers: rows by kind, and the file's size in bytes."""

    images: int
    layers: int
    bases: int
    size: int


class Index:
    """The index in a cache folder. Safe for many threads and processes, forked ones too.

    No call fails for the file's sake: of a broken or foreign one nothing is known, and where nothing can be
    written, rows are kept for as long as this index is.

    Args:
        folder: The cache folder; it is made if need be.
        patience: Seconds for which to wait for other processes at most, if it is less than usual.
        warn: Told once why nothing is written.

    Raises:
        StorageError: The folder is not ours, is a symbolic link, or cannot be made.
    """

    def __init__(
        self, folder: Path, *, patience: float | None = None, warn: Callable[[str], None] | None = None
    ) -> None:
        self.folder = folder
        with contextlib.suppress(StorageFull):  # hits need no folder
            private_folder(folder)
        self.path = folder / "index.sqlite"
        self._lock = threading.RLock()
        self._memory: TTLCache[tuple[str, str], Any] = TTLCache(_MEMORY_ROWS, MEMORY_SECONDS)
        self._unwritten: LRUCache[tuple[str, str], Any] = LRUCache(_MEMORY_ROWS)
        limit = BUSY_SECONDS if patience is None else min(patience, BUSY_SECONDS)
        self._file = SealedFile(self.path, patience=limit, warn=warn)
        _indexes.add(self)

    def image(self, key: str, repository: Repository) -> ImageEntry | None:
        """The image of a key in a repository, or None."""
        return self._get("image", f"{key} {repository}", _image_entry)

    def put_image(self, entry: ImageEntry) -> None:
        """Remember an image; what was known of its key in its repository is replaced."""
        body = {"digest": entry.reference.digest.hex, "lock": entry.lock_key, "at": entry.confirmed_at}
        self._put("image", [(f"{entry.key} {entry.reference.repository}", body)])

    def evict_image(self, key: str, repository: Repository) -> None:
        """Forget the image of a key in a repository."""
        with self._lock:
            row = ("image", f"{key} {repository}")
            self._memory.pop(row, None)
            self._unwritten.pop(row, None)
            if not self._file.delete(*row):
                self._unwritten[row] = None

    def images(self) -> Iterator[ImageEntry]:
        """Every image that is known, newest confirmation first."""
        entries = [_built(_image_entry, name, body) for name, body in self._file.all("image").items()]
        yield from sorted((entry for entry in entries if entry), key=lambda entry: -entry.confirmed_at)

    def base(self, reference: str) -> BaseEntry | None:
        """What a base reference (with its platform) named when it was last asked, or None."""
        return self._get("base", reference, lambda _, body: BaseEntry(Digest(body["digest"]), body["at"]))

    def put_base(self, reference: str, entry: BaseEntry) -> None:
        """Remember what a base reference names."""
        self._put("base", [(reference, {"digest": entry.digest.hex, "at": entry.resolved_at})])

    def fact(self, name: str) -> str | None:
        """A fact about immutable content, as ``glibc <digest>``, or None where nobody looked yet."""
        return self._get("fact", name, lambda _, body: str(body["value"]))

    def put_fact(self, name: str, value: str) -> None:
        """Remember a fact about immutable content."""
        self._put("fact", [(name, {"value": value})])

    def daily(self, name: str, ask: Callable[[], str]) -> str:
        """What a host is like, in one word, asked again when the answer is a day old."""
        answer, _, moment = (self.fact(name) or "").partition(" ")
        if not moment or not 0 <= time.time() - float(moment) < _DAY:
            answer = ask()
            self.put_fact(name, f"{answer} {int(time.time())}")
        return answer

    def form(self, key: str) -> dict[str, Any] | None:
        """The canonical form of a key, or None."""
        return self._get("form", key, lambda _, body: dict(body))

    def put_form(self, key: str, form: Mapping[str, Any]) -> None:
        """Remember the canonical form of a key, so that misses can be explained; large ones are left out."""
        # A key's form never changes, and to look costs a tenth of writing.
        if self.form(key) is None and len(json.dumps(form)) <= MAX_FORM:
            self._put("form", [(key, dict(form))])

    def forms(self) -> dict[str, dict[str, Any]]:
        """Canonical forms that are known, by key; some, where there are very many."""
        return self._file.all("form", 1000)

    def layers(self, keys: Iterable[str]) -> dict[str, LayerEntry]:
        """The layers that are known among some layer keys."""
        found = {key: self._get("layer", key, _layer_entry) for key in keys}
        return {key: entry for key, entry in found.items() if entry is not None}

    def put_layers(self, entries: dict[str, LayerEntry]) -> None:
        """Remember layers by their layer keys."""
        self._put("layer", [(key, _layer_body(entry)) for key, entry in entries.items()])

    def stats(self) -> IndexStats:
        """The index in numbers."""
        counts = self._file.counts()
        try:
            size = self.path.stat().st_size
        except OSError:
            size = 0
        return IndexStats(counts.get("image", 0), counts.get("layer", 0), counts.get("base", 0), size)

    def clear(self) -> None:
        """Forget everything.

        Raises:
            StorageError: The file cannot be deleted.
        """
        with self._lock:
            self._memory.clear()
            self._unwritten.clear()
            self._file.clear()

    def close(self) -> None:
        """Close the file. The index opens it again if it is used again."""
        self._file.close()

    def _get(self, kind: str, name: str, build: Callable[[str, Any], _T]) -> _T | None:
        with self._lock:
            held: _T | None = self._memory.get((kind, name))
            if held is None and (body := self._body(kind, name)) is not None:
                held = _built(build, name, body)
                if held is not None:
                    self._memory[kind, name] = held
            return held

    def _body(self, kind: str, name: str) -> Any:
        row = (kind, name)
        return self._unwritten[row] if row in self._unwritten else self._file.get(kind, name)

    def _put(self, kind: str, values: Iterable[tuple[str, Any]]) -> None:
        values = tuple(values)
        with self._lock:
            kept = self._file.put(kind, values)
            for name, body in values:
                self._memory.pop((kind, name), None)
                self._unwritten.pop((kind, name), None)
                if not kept:
                    self._unwritten[kind, name] = body


_indexes: weakref.WeakSet[Index] = weakref.WeakSet()


def _forked() -> None:
    for index in _indexes:
        index._lock = threading.RLock()  # noqa: SLF001 - a thread that is not here may hold it


os.register_at_fork(after_in_child=_forked)


def _built(build: Callable[[str, Any], _T], name: str, body: Any) -> _T | None:
    """An entry, or None where its row has another shape."""
    try:
        return build(name, body)
    except (ValueError, KeyError, TypeError, EnvbuildError):
        return None


def _image_entry(name: str, body: Any) -> ImageEntry:
    key, _, repository = name.partition(" ")
    reference = ImageReference(Repository.parse(repository), Digest(body["digest"]))
    return ImageEntry(key, reference, body["lock"], body["at"])


def _layer_body(entry: LayerEntry) -> dict[str, Any]:
    return {
        "type": entry.descriptor.media_type,
        "digest": entry.descriptor.digest.hex,
        "size": entry.descriptor.size,
        "diff": entry.diff_id.hex,
        "files": entry.files.hex(),
        "folders": entry.folders.hex(),
        "in": str(entry.repository),
        "activation": entry.activation,
        "records": entry.records,
        "clobbers": entry.clobbers,
        "voucher": entry.voucher,
    }


def _layer_entry(_key: str, body: Any) -> LayerEntry:
    descriptor = Descriptor(body["type"], Digest(body["digest"]), body["size"])
    return LayerEntry(
        descriptor,
        Digest(body["diff"]),
        bytes.fromhex(body["files"]),
        bytes.fromhex(body["folders"]),
        Repository.parse(body["in"]),
        body["activation"],
        body["records"],
        body["clobbers"],
        body["voucher"],
    )
