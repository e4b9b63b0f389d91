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
import copy
import io
import os
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Self

from envbuild.digest import CHUNK, Digest, VerifyingReader
from envbuild.errors import IntegrityError, NotFound, SpecError
from envbuild.oci.disk import link_file, temporary
from envbuild.oci.layout_files import LOCK_FILE, LayoutFiles, blob_path, open_file
from envbuild.oci.manifest import MAX_MANIFEST, ImageIndex, is_manifest, parse_descriptor, parse_manifest
from envbuild.oci.registry import is_fallback_tag, reread
from envbuild.reference import Tag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import BlobOpener
    from envbuild.reference import Repository

__all__ = ["LOCK_FILE", "LayoutRegistry"]


class LayoutRegistry:
    """An OCI image layout in a folder. The folder is made on the first write; until then all is missing.

    Args:
        repository: The layout, as ``oci:FOLDER``.
        files: Its files, for a call with the deadline that holds; those of the repository if None.

    Raises:
        SpecError: The repository is not a layout.
    """

    def __init__(self, repository: Repository, files: LayoutFiles | None = None) -> None:
        if not repository.is_layout:
            raise SpecError(f"{repository} is on a registry's host, expected oci:FOLDER")
        self._files = files or LayoutFiles(repository)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.repository})"

    @property
    def repository(self) -> Repository:
        """The layout that this is."""
        return self._files.repository

    def by(self, deadline: Deadline) -> Self:
        """The same layout for a call with that deadline."""
        view = copy.copy(self)
        view.__dict__["_files"] = replace(self._files, deadline=deadline)
        return view

    def get_manifest(self, reference: Tag | Digest) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names, hashed and compared.

        Raises:
            NotFound: There is none.
            IntegrityError: Its bytes are not what the digest says.
        """
        self._files.deadline.check(f"reading a manifest of {self.repository}")
        if isinstance(reference, Digest):
            return self._manifest(reference, None)
        entry = self._files.tags().get(reference)
        if entry is None:
            raise NotFound(f"{self.repository} has no tag {reference}")
        descriptor = parse_descriptor(entry, f"the entry of {reference} in {self.repository}")
        return self._manifest(descriptor.digest, descriptor.media_type)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there; its bytes are compared when they are read."""
        self._files.deadline.check(f"looking for a blob in {self.repository}")
        return self._files.is_layout() and self._files.size(digest) is not None

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A stream of the blob's bytes that raises before its end if they are not the descriptor's.

        Raises:
            NotFound: There is no such blob.
        """
        self._files.deadline.check(f"reading a blob of {self.repository}")
        stream = self._files.open(descriptor.digest) if self._files.is_layout() else None
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

        Content that came wrong over a network is opened and read once more.

        Raises:
            IntegrityError: The content is not what the descriptor says; nothing was stored.
            StorageFull: The disk is full; nothing was stored.
        """
        self._files.deadline.check(f"writing a blob to {self.repository}")
        if self._files.has(descriptor):
            return False
        reread(lambda: self._write(descriptor, content))
        return True

    def _write(self, descriptor: Descriptor, content: BlobOpener) -> None:
        doing = f"writing a blob to {self.repository}"
        with self._files.writing() as writer, temporary(writer.root, doing) as made:
            with contextlib.closing(content()) as stream:
                self._files.copy(stream, descriptor, made.write)
            made.commit(writer.blobs, descriptor.digest.hex)

    def mount_blob(self, descriptor: Descriptor, source: Repository) -> bool:
        """Take a blob over from another layout on the same disk as a hard link.

        It is read and compared first, which costs far less than a copy: a blob that went bad in one layout
        must not spread to others, where it would keep the right one out.

        Returns:
            False if there is no such blob, or links are not possible between the two.
        """
        self._files.deadline.check(f"linking a blob into {self.repository}")
        if self._files.has(descriptor):
            return True
        try:
            stream = open_file(blob_path(source.folder, descriptor.digest)) if source.is_layout else None
        except OSError:
            return False
        if stream is None:
            return False
        with stream, self._files.writing() as writer:
            try:
                self._files.copy(stream, descriptor, _discard)
                link_file(stream.fileno(), writer.blobs, descriptor.digest.hex)
            except (IntegrityError, OSError):
                return False
        return True

    def put_manifest(self, manifest: Manifest | ImageIndex, tag: Tag | None = None) -> None:
        """Store a manifest under its digest and, if a tag is given, move the tag to it.

        Raises:
            NotFound: A blob or manifest that it names is not in the layout.
        """
        self._files.deadline.check(f"writing a manifest to {self.repository}")
        parts = manifest.manifests if isinstance(manifest, ImageIndex) else manifest.blobs
        if missing := [part for part in parts if not self._files.has(part)]:
            raise NotFound(
                f"{self.repository} lacks {', '.join(str(part.digest) for part in missing)}, which the "
                f"manifest {manifest.descriptor.digest} names",
                hint="put the blobs and manifests before what names them",
            )
        with self._files.writing() as writer:
            if tag is None:
                self._files.store(writer, manifest)
                return
            self._files.store(writer, manifest)
            self._files.move(writer, tag, manifest)

    def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and every tag on it; its blobs stay.

        Raises:
            NotFound: There is none.
        """
        self._files.deadline.check(f"deleting a manifest of {self.repository}")
        if not any(entry.get("digest") == str(digest) for entry in self._files.tags().entries):
            self._manifest(digest, None)
        with self._files.writing() as writer, self._files.locked():
            tags = self._files.tags()
            left = [entry for entry in tags.entries if entry.get("digest") != str(digest)]
            if len(left) != len(tags.entries):
                self._files.write_index(writer, tags.holding(left))
            # The tags go first: a tag must never name what is not there.
            with self._files.errors("deleting a manifest of"), contextlib.suppress(FileNotFoundError):
                os.unlink(digest.hex, dir_fd=writer.blobs)

    def tags(self) -> Iterator[Tag]:
        """Every tag; names in ``index.json`` that are not tags, or that list attachments, are left out."""
        self._files.deadline.check(f"listing the tags of {self.repository}")
        for name in self._files.tags().named:
            with contextlib.suppress(SpecError):
                if not is_fallback_tag(tag := Tag(name)):
                    yield tag

    def referrers(self, subject: Digest) -> None:  # noqa: ARG002
        """Nothing: a layout has no API; a tag lists what is attached."""
        return

    def close(self) -> None:
        """Forget what was read. Closing twice is harmless."""
        self._files.seen.forget()

    def _manifest(self, digest: Digest, media_type: str | None) -> Manifest | ImageIndex:
        raw = self._files.read(digest) if self._files.is_layout() else None
        if raw is None or (media_type is None and len(raw) > MAX_MANIFEST):
            raise NotFound(f"{self.repository} has no manifest {digest}")
        what = f"the manifest {self.repository}@{digest}"
        digest.verify(raw, what)
        if media_type is None and not is_manifest(raw):
            raise NotFound(f"{self.repository} has no manifest {digest}: it is a blob")
        return parse_manifest(raw, media_type, what)


def _discard(content: bytes) -> None:
    """Where the bytes go that are read only to be hashed."""
