"""The files of an OCI image layout: blobs by their digest, tags in ``index.json``, a lock for writers.

Knows nothing of what images are; :mod:`envbuild.oci.layout` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import CHUNK
from envbuild.errors import IntegrityError
from envbuild.oci.disk import open_folder, storage_errors, sweep, write_file
from envbuild.oci.layout_index import (
    INDEX_FILE,
    LAYOUT_FILE,
    MARKER,
    MAX_INDEX,
    NO_TAGS,
    REF_NAME,
    LayoutIndex,
    is_layout,
)
from envbuild.oci.layout_turns import Turns, Wish
from envbuild.oci.manifest import MAX_MANIFEST
from envbuild.storage import acquire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.reference import Repository, Tag

LOCK_FILE: Final = ".envbuild.lock"
_POLL_SECONDS = 0.005
_SETTLED_SECONDS = 0.1  # longer than the grain of file times, so that equal times mean equal content


@dataclass(slots=True)
class _Seen:
    """The last state of ``index.json`` that is sure, shared by all views of one layout."""

    tags: tuple[tuple[int, ...], LayoutIndex] | None = None
    is_layout: bool = False
    turns: Turns = field(default_factory=Turns)
    own: _Held | None = None

    def wrote(self, root: int, tags: LayoutIndex) -> None:
        """Remember what was just written, which need not be read again.

        The file is held open, so that no other file gets its inode, and has a time of its own, finer than
        the grain of those that the kernel gives: whatever is written over it or in its place is told apart.
        """
        with contextlib.suppress(OSError):
            held = _Held(os.open(INDEX_FILE, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=root))
            moment = time.time_ns()
            os.utime(held.descriptor, ns=(moment, moment))
            self.tags, self.own = (_state(os.fstat(held.descriptor)), tags), held

    def forget(self) -> None:
        """Read anew what is asked next."""
        self.tags = self.own = None


class _Held:
    """A file that is open as long as this is kept."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _state(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file's content."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class _Writer:
    """Descriptors of a layout's folders, open for one writing call."""

    root: int
    blobs: int


@dataclass(frozen=True, slots=True, eq=False)
class LayoutFiles:
    """A layout's folder, for calls with one deadline. Its methods raise what ``storage_errors`` raises.

    Attributes:
        repository: The layout.
        deadline: For every call.
        seen: What was read of it, shared by all its views.
    """

    repository: Repository
    deadline: Deadline = NO_DEADLINE
    seen: _Seen = field(default_factory=_Seen)

    @property
    def _folder(self) -> Path:
        return self.repository.folder

    def errors(self, doing: str) -> contextlib.AbstractContextManager[None]:
        """Raise the operating system's errors as envbuild's own."""
        return storage_errors(f"{doing} {self.repository}")

    def open(self, digest: Digest) -> IO[bytes] | None:
        """A blob's file; None where there is none."""
        with self.errors("reading"):
            try:
                return open_file(blob_path(self._folder, digest))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def size(self, digest: Digest) -> int | None:
        """A blob's size in bytes; None where there is none."""
        with self.errors("reading"):
            try:
                return blob_path(self._folder, digest).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a file of that digest and size is there; one of another size was torn."""
        return self.is_layout() and self.size(descriptor.digest) == descriptor.size

    def read(self, digest: Digest, limit: int = MAX_MANIFEST) -> bytes | None:
        """At most ``limit`` bytes and one more, which shows that the file is too long."""
        stream = self.open(digest)
        if stream is None:
            return None
        with self.errors("reading"), stream:
            return stream.read(limit + 1)

    def is_layout(self) -> bool:
        """Whether the folder is a layout; False where it is missing or empty, so that it can become one."""
        if not self.seen.is_layout:
            with self.errors("reading"):
                self.seen.is_layout = is_layout(self._folder)
        return self.seen.is_layout

    def tags(self) -> LayoutIndex:
        """What ``index.json`` says; read again only if it changed."""
        if not self.is_layout():
            return NO_TAGS
        with self.errors("reading"):
            try:
                stream = open_file(self._folder / INDEX_FILE)
            except FileNotFoundError:
                return NO_TAGS
            with stream:
                status = os.fstat(stream.fileno())
                state = _state(status)
                if (seen := self.seen.tags) is not None and seen[0] == state:
                    return seen[1]
                raw = stream.read(MAX_INDEX + 1)
        tags = LayoutIndex.parse(raw, f"{self.repository.folder / INDEX_FILE}")
        if time.time() - status.st_mtime > _SETTLED_SECONDS:
            self.seen.tags = (state, tags)
        return tags

    def copy(self, stream: IO[bytes], descriptor: Descriptor, write: Callable[[bytes], None]) -> None:
        """Pass a stream on while hashing it.

        Raises:
            IntegrityError: It is not what the descriptor says.
        """
        seen, hashed = 0, hashlib.sha256()
        # Where it can, read what has come so far: the deadline must be seen in time.
        read = getattr(stream, "read1", stream.read)
        while seen <= descriptor.size and (content := read(CHUNK)):
            self.deadline.check(f"writing a blob to {self.repository}")
            seen += len(content)
            hashed.update(content)
            write(content)
        if seen != descriptor.size:
            more = "or more " if seen > descriptor.size else ""
            raise IntegrityError(
                f"{seen} bytes {more}were given for {descriptor.digest}, not {descriptor.size}"
            )
        if hashed.hexdigest() != descriptor.digest.hex:
            raise IntegrityError(
                f"content for {self.repository} has digest sha256:{hashed.hexdigest()}, "
                f"expected {descriptor.digest}"
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[_Writer]:
        """The layout's folders, made if need be."""
        with contextlib.ExitStack() as opened:
            with self.errors("writing to"):
                writer = self._writer(opened)
            self._make_index(writer)
            yield writer

    def _writer(self, opened: contextlib.ExitStack) -> _Writer:
        if self.seen.is_layout:
            with contextlib.suppress(FileNotFoundError):  # all is there, but for who removed it meanwhile
                return self._opened(opened, make=False)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._opened(opened, make=True)

    def _opened(self, opened: contextlib.ExitStack, *, make: bool) -> _Writer:
        root = opened.enter_context(open_folder(self._folder))
        if make and not is_layout(self._folder):
            write_file(root, (root, LAYOUT_FILE), MARKER, f"making {self.repository}", flush=True)
        blobs = opened.enter_context(open_folder("blobs", root, make=make))
        return _Writer(root, opened.enter_context(open_folder("sha256", blobs, make=make)))

    def _make_index(self, writer: _Writer) -> None:
        """Write the empty ``index.json`` that a layout must have."""
        if (self._folder / INDEX_FILE).exists():
            return
        with self.locked():
            if not (self._folder / INDEX_FILE).exists():
                self.write_index(writer, NO_TAGS)

    def store(self, writer: _Writer, manifest: Manifest | ImageIndex) -> None:
        """Write a manifest among the blobs, unless it is there as it should be."""
        digest = manifest.descriptor.digest
        if self.read(digest) != manifest.raw:
            doing = f"writing a manifest to {self.repository}"
            write_file(writer.root, (writer.blobs, digest.hex), manifest.raw, doing)

    def move(self, writer: _Writer, tag: Tag, manifest: Manifest | ImageIndex) -> None:
        """Write a tag, in one go with those that other threads are about to write."""

        def write(wishes: list[Wish]) -> None:
            with self.locked():
                for wish in wishes:  # again, lest a deletion came between the manifest and its tag
                    self.store(writer, wish.manifest)
                self._name(writer, wishes)

        self.seen.turns.grant(Wish(tag, manifest), write, self.deadline, str(self.repository))

    def _name(self, writer: _Writer, wishes: list[Wish]) -> None:
        """Write tags; the lock is held."""
        tags = self.tags()
        entries = {
            wish.tag.name: wish.manifest.descriptor.annotated(**{REF_NAME: wish.tag.name}).to_json()
            for wish in wishes
        }
        new = {name: entry for name, entry in entries.items() if tags.named.get(name) != entry}
        if new:
            self.write_index(writer, tags.naming(new))

    def write_index(self, writer: _Writer, tags: LayoutIndex) -> None:
        """Replace ``index.json``; the lock is held."""
        doing = f"writing the tags of {self.repository}"
        with storage_errors(doing):
            sweep(writer.root)
        write_file(writer.root, (writer.root, INDEX_FILE), tags.to_json(), doing, flush=True)
        self.seen.wrote(writer.root, tags)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the layout's lock; the kernel frees it when its holder dies."""
        import filelock

        lock = filelock.FileLock(self._folder / LOCK_FILE, thread_local=False)
        with self.errors("locking"):
            acquire(lock, self.deadline, f"others wrote the tags of {self.repository}", poll=_POLL_SECONDS)
        try:
            yield
        finally:
            lock.release()


def blob_path(folder: Path, digest: Digest) -> Path:
    """Where a blob is."""
    return folder / "blobs" / "sha256" / digest.hex


def open_file(path: Path) -> IO[bytes]:
    """Open for reading; a pipe in a file's place reads as empty instead of blocking for ever."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
