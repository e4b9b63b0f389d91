"""The ``Registry`` protocol on an OCI image layout: a folder of blobs and an ``index.json``.

Source: OCI Image Specification 1.1, "Image Layout". Many processes and threads may use one layout at once:
blobs and manifests are named by their digest and come into being whole, and ``index.json``, which holds the
tags, is replaced under a file lock. A manifest without a tag stands in ``blobs`` only, as in a registry:
it is found by its digest, and a tool that collects garbage may take it. Other tools may read a layout while
envbuild writes it; skopeo and its kin find only OCI media types by name. Writers that are not envbuild do
not know of its lock and must not write at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Final, Self

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import CHUNK, Digest, VerifyingReader
from envbuild.errors import DeadlineExceeded, IntegrityError, NotFound, SpecError
from envbuild.oci.disk import link_file, open_folder, storage_errors, sweep, temporary, write_file
from envbuild.oci.layout_index import (
    INDEX_FILE,
    LAYOUT_FILE,
    MARKER,
    MAX_INDEX,
    NO_TAGS,
    REF_NAME,
    LayoutIndex,
    is_layout,
    ref_name,
)
from envbuild.oci.manifest import MAX_MANIFEST, ImageIndex, is_manifest, parse_descriptor, parse_manifest
from envbuild.oci.registry import is_fallback_tag
from envbuild.reference import Tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import BlobOpener
    from envbuild.reference import Repository

LOCK_FILE: Final = ".envbuild.lock"
_POLL_SECONDS = 0.005
_SETTLED_SECONDS = 0.1  # longer than the grain of file times, so that equal times mean equal content


@dataclass(slots=True)
class _Seen:
    """The last settled state of ``index.json``, shared by all views of one layout."""

    tags: tuple[tuple[int, ...], LayoutIndex] | None = None
    is_layout: bool = False


@dataclass(frozen=True, slots=True)
class _Writer:
    """Descriptors of a layout's folders, open for one writing call."""

    root: int
    blobs: int


@dataclass(frozen=True, slots=True, eq=False)
class LayoutRegistry:
    """An OCI image layout in a folder. The folder is made on the first write; until then all is missing.

    Attributes:
        repository: The layout, as ``oci:FOLDER``.

    Raises:
        SpecError: The repository is not a layout.
    """

    repository: Repository
    _deadline: Deadline = field(default=NO_DEADLINE, repr=False)
    _seen: _Seen = field(default_factory=_Seen, repr=False)

    def __post_init__(self) -> None:
        if not self.repository.is_layout:
            raise SpecError(f"{self.repository} is on a registry's host, expected oci:FOLDER")

    def by(self, deadline: Deadline) -> Self:
        """The same layout for a call with that deadline."""
        return replace(self, _deadline=deadline)

    def get_manifest(self, reference: Tag | Digest) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names, hashed and compared.

        Raises:
            NotFound: There is none.
            IntegrityError: Its bytes are not what the digest says.
        """
        self._deadline.check(f"reading a manifest of {self.repository}")
        if isinstance(reference, Digest):
            return self._manifest(reference, None)
        entry = self._tags().get(reference)
        if entry is None:
            raise NotFound(f"{self.repository} has no tag {reference}")
        descriptor = parse_descriptor(entry, f"the entry of {reference} in {self.repository}")
        return self._manifest(descriptor.digest, descriptor.media_type)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there; its bytes are compared when they are read."""
        self._deadline.check(f"looking for a blob in {self.repository}")
        return self._is_layout() and self._size(digest) is not None

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A stream of the blob's bytes that raises before its end if they are not the descriptor's.

        Raises:
            NotFound: There is no such blob.
        """
        self._deadline.check(f"reading a blob of {self.repository}")
        stream = self._open(descriptor.digest) if self._is_layout() else None
        if stream is None:
            raise NotFound(f"{self.repository} has no blob {descriptor.digest}")
        reader = VerifyingReader(stream, descriptor, f"{self.repository}@{descriptor.digest}")
        return io.BufferedReader(reader, CHUNK)

    def put_blob(
        self,
        descriptor: Descriptor,
        content: BlobOpener,
        *,
        ask: bool = True,  # noqa: ARG002 - looking costs no request
    ) -> bool:
        """Store a blob unless it is there already, whole and verified; False if it was.

        Raises:
            IntegrityError: The content is not what the descriptor says; nothing was stored.
            StorageFull: The disk is full; nothing was stored.
        """
        self._deadline.check(f"writing a blob to {self.repository}")
        if self._has(descriptor):
            return False
        doing = f"writing a blob to {self.repository}"
        with self._writing() as writer, temporary(writer.root, doing) as made:
            with contextlib.closing(content()) as stream:
                self._copy(stream, descriptor, made.write)
            made.commit(writer.blobs, descriptor.digest.hex)
        return True

    def mount_blob(self, descriptor: Descriptor, source: Repository) -> bool:
        """Take a blob over from another layout on the same disk as a hard link.

        It is read and compared first, which costs far less than a copy: a blob that went bad in one layout
        must not spread to others, where it would keep the right one out.

        Returns:
            False if there is no such blob, or links are not possible between the two.
        """
        self._deadline.check(f"linking a blob into {self.repository}")
        if self._has(descriptor):
            return True
        try:
            stream = _open_file(_blob(source.folder, descriptor.digest)) if source.is_layout else None
        except OSError:
            return False
        if stream is None:
            return False
        with stream, self._writing() as writer:
            try:
                self._copy(stream, descriptor, _discard)
                link_file(stream.fileno(), writer.blobs, descriptor.digest.hex)
            except (IntegrityError, OSError):
                return False
        return True

    def put_manifest(self, manifest: Manifest | ImageIndex, tag: Tag | None = None) -> None:
        """Store a manifest under its digest and, if a tag is given, move the tag to it.

        Raises:
            NotFound: A blob or manifest that it names is not in the layout.
        """
        self._deadline.check(f"writing a manifest to {self.repository}")
        parts = manifest.manifests if isinstance(manifest, ImageIndex) else manifest.blobs
        if missing := [part for part in parts if not self._has(part)]:
            raise NotFound(
                f"{self.repository} lacks {', '.join(str(part.digest) for part in missing)}, which the "
                f"manifest {manifest.descriptor.digest} names",
                hint="put the blobs and manifests before what names them",
            )
        with self._writing() as writer:
            if tag is None:
                self._store(writer, manifest)
                return
            with self._locked():  # so that no deletion comes between the manifest and its tag
                self._store(writer, manifest)
                self._move(writer, tag, manifest.descriptor.annotated(**{REF_NAME: tag.name}))

    def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and every tag on it; its blobs stay.

        Raises:
            NotFound: There is none.
        """
        self._deadline.check(f"deleting a manifest of {self.repository}")
        if not any(entry.get("digest") == str(digest) for entry in self._tags().entries):
            self._manifest(digest, None)
        with self._writing() as writer, self._locked():
            tags = self._tags()
            left = [entry for entry in tags.entries if entry.get("digest") != str(digest)]
            if len(left) != len(tags.entries):
                self._write_index(writer, tags.holding(left))
            # The tags go first: a tag must never name what is not there.
            with self._errors("deleting a manifest of"), contextlib.suppress(FileNotFoundError):
                os.unlink(digest.hex, dir_fd=writer.blobs)

    def tags(self) -> Iterator[Tag]:
        """Every tag; names in ``index.json`` that are not tags, or that list attachments, are left out."""
        self._deadline.check(f"listing the tags of {self.repository}")
        for name in self._tags().named:
            with contextlib.suppress(SpecError):
                if not is_fallback_tag(tag := Tag(name)):
                    yield tag

    def referrers(self, subject: Digest) -> None:  # noqa: ARG002
        """Nothing: a layout has no API; a tag lists what is attached."""
        return

    def close(self) -> None:
        """Forget what was read. Closing twice is harmless."""
        self._seen.tags = None

    # Reading

    @property
    def _folder(self) -> Path:
        return self.repository.folder

    def _errors(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return storage_errors(f"{doing} {self.repository}")

    def _open(self, digest: Digest) -> IO[bytes] | None:
        with self._errors("reading"):
            try:
                return _open_file(_blob(self._folder, digest))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _size(self, digest: Digest) -> int | None:
        with self._errors("reading"):
            try:
                return _blob(self._folder, digest).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _has(self, descriptor: Descriptor) -> bool:
        """Whether a file of that digest and size is there; one of another size was torn."""
        return self._is_layout() and self._size(descriptor.digest) == descriptor.size

    def _read(self, digest: Digest, limit: int = MAX_MANIFEST) -> bytes | None:
        """At most ``limit`` bytes and one more, which shows that the file is too long."""
        stream = self._open(digest)
        if stream is None:
            return None
        with self._errors("reading"), stream:
            return stream.read(limit + 1)

    def _manifest(self, digest: Digest, media_type: str | None) -> Manifest | ImageIndex:
        raw = self._read(digest) if self._is_layout() else None
        if raw is None or (media_type is None and len(raw) > MAX_MANIFEST):
            raise NotFound(f"{self.repository} has no manifest {digest}")
        what = f"the manifest {self.repository}@{digest}"
        digest.verify(raw, what)
        if media_type is None and not is_manifest(raw):
            raise NotFound(f"{self.repository} has no manifest {digest}: it is a blob")
        return parse_manifest(raw, media_type, what)

    def _is_layout(self) -> bool:
        """Whether the folder is a layout; False where it is missing or empty, so that it can become one."""
        if not self._seen.is_layout:
            with self._errors("reading"):
                self._seen.is_layout = is_layout(self._folder)
        return self._seen.is_layout

    def _tags(self) -> LayoutIndex:
        if not self._is_layout():
            return NO_TAGS
        with self._errors("reading"):
            try:
                stream = _open_file(self._folder / INDEX_FILE)
            except FileNotFoundError:
                return NO_TAGS
            with stream:
                status = os.fstat(stream.fileno())
                state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                if (seen := self._seen.tags) is not None and seen[0] == state:
                    return seen[1]
                raw = stream.read(MAX_INDEX + 1)
        tags = LayoutIndex.parse(raw, f"{self.repository.folder / INDEX_FILE}")
        if time.time() - status.st_mtime > _SETTLED_SECONDS:
            self._seen.tags = (state, tags)
        return tags

    # Writing

    def _copy(self, stream: IO[bytes], descriptor: Descriptor, write: Callable[[bytes], None]) -> None:
        """Pass a stream on while hashing it.

        Raises:
            IntegrityError: It is not what the descriptor says.
        """
        seen, hashed = 0, hashlib.sha256()
        # Where it can, read what has come so far: the deadline must be seen in time.
        read = getattr(stream, "read1", stream.read)
        while seen <= descriptor.size and (content := read(CHUNK)):
            self._deadline.check(f"writing a blob to {self.repository}")
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
    def _writing(self) -> Iterator[_Writer]:
        """The layout's folders, made if need be."""
        with self._errors("writing to"):
            self._folder.mkdir(parents=True, exist_ok=True)
            opened = contextlib.ExitStack()
        with opened:
            with self._errors("writing to"):
                root = opened.enter_context(open_folder(self._folder))
                if not is_layout(self._folder):
                    write_file(root, (root, LAYOUT_FILE), MARKER, f"making {self.repository}", flush=True)
                blobs = opened.enter_context(open_folder("blobs", root))
                writer = _Writer(root, opened.enter_context(open_folder("sha256", blobs)))
            self._make_index(writer)
            yield writer

    def _make_index(self, writer: _Writer) -> None:
        """Write the empty ``index.json`` that a layout must have."""
        if (self._folder / INDEX_FILE).exists():
            return
        with self._locked():
            if not (self._folder / INDEX_FILE).exists():
                self._write_index(writer, NO_TAGS)

    def _store(self, writer: _Writer, manifest: Manifest | ImageIndex) -> None:
        digest = manifest.descriptor.digest
        if self._read(digest) != manifest.raw:
            doing = f"writing a manifest to {self.repository}"
            write_file(writer.root, (writer.blobs, digest.hex), manifest.raw, doing)

    def _move(self, writer: _Writer, tag: Tag, descriptor: Descriptor) -> None:
        """Write a tag; the lock is held."""
        entry, tags = descriptor.to_json(), self._tags()
        if tags.named.get(tag.name) != entry:
            others = [other for other in tags.entries if ref_name(other) != tag.name]
            self._write_index(writer, tags.holding([*others, entry]))

    def _write_index(self, writer: _Writer, tags: LayoutIndex) -> None:
        doing = f"writing the tags of {self.repository}"
        with storage_errors(doing):
            sweep(writer.root)
        write_file(writer.root, (writer.root, INDEX_FILE), tags.to_json(), doing, flush=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the layout's lock; the kernel frees it when its holder dies."""
        import filelock

        remaining = self._deadline.remaining()
        lock = filelock.FileLock(self._folder / LOCK_FILE, thread_local=False)
        with self._errors("locking"):
            try:
                timeout = -1 if remaining == float("inf") else remaining
                lock.acquire(timeout=timeout, poll_interval=_POLL_SECONDS)
            except filelock.Timeout:
                raise DeadlineExceeded(
                    f"the deadline passed while others wrote the tags of {self.repository}",
                    hint="raise --timeout, or try again: finished work is kept",
                ) from None
        try:
            yield
        finally:
            lock.release()


def _blob(folder: Path, digest: Digest) -> Path:
    return folder / "blobs" / "sha256" / digest.hex


def _open_file(path: Path) -> IO[bytes]:
    """Open for reading; a pipe in a file's place reads as empty instead of blocking for ever."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def _discard(content: bytes) -> None:
    """Where the bytes go that are read only to be hashed."""
