"""What an answer means that says nothing: a failure, or a miss where the user says so.

One policy for all that a call asks its repositories of images, ``on_unavailable``. Under ``build`` a question
that was refused or not answered is taken for a miss, and people are told so once a host: some registries
answer 403 for what is missing. What is written fails as it fails, and so does what must be read: a base, or
the bytes of a blob.
"""

from __future__ import annotations

import threading
from typing import IO, TYPE_CHECKING, Final, Self

from envbuild.errors import NotFound, Unauthorized
from envbuild.progress import Event, silent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.errors import RegistryError
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registry import BlobOpener, Registry
    from envbuild.progress import Progress
    from envbuild.reference import Repository, Tag

PATIENCE: Final = 5.0
"""Seconds for which an answer is waited for whose lack is taken for a miss."""


class Unknowns:
    """The policy of a call. May be used by several threads.

    Args:
        misses: The repositories whose unknown answers are misses; none where they are failures.
        progress: Told of what is taken for a miss, once a host.
    """

    def __init__(self, misses: Collection[Repository] = (), progress: Progress = silent) -> None:
        self._misses = frozenset(misses)
        self._progress = progress
        self._told: set[str] = set()
        self._guard = threading.Lock()

    @property
    def patience(self) -> float | None:
        """Seconds for which questions wait for a registry; None for as long as all that is asked."""
        return PATIENCE if self._misses else None

    def concerns(self, repository: Repository) -> bool:
        """Whether unknown answers of a repository are misses."""
        return repository in self._misses

    def is_miss(self, repository: Repository, error: RegistryError) -> bool:
        """Whether an answer of a repository is taken for a miss; if so, people are told."""
        if isinstance(error, NotFound):
            return True
        if not self.concerns(repository):
            return False
        place = repository.host or str(repository)
        with self._guard:
            first = place not in self._told
            self._told.add(place)
        if first:
            self._progress(Event("resolve", place, "output", text=f"taken for a miss: {error}"))
        return True


class LenientRegistry:
    """A repository whose refusals to say what it has are misses.

    It is one that is written, so that an outage is no miss: nothing could be published then.

    Args:
        registry: The repository.
        unknowns: The policy.
    """

    def __init__(self, registry: Registry, unknowns: Unknowns) -> None:
        self._registry = registry
        self._unknowns = unknowns

    @property
    def repository(self) -> Repository:
        """The repository that this is."""
        return self._registry.repository

    def by(self, deadline: Deadline) -> Self:
        """The same repository for a call with that deadline."""
        return type(self)(self._registry.by(deadline), self._unknowns)

    def get_manifest(self, reference: Tag | Digest) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names, hashed and compared."""
        try:
            return self._registry.get_manifest(reference)
        except Unauthorized as error:
            if not self._unknowns.is_miss(self.repository, error):
                raise
            raise NotFound(error.message, hint=error.hint) from error

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in this repository, as far as it says."""
        try:
            return self._registry.has_blob(digest)
        except Unauthorized as error:
            if not self._unknowns.is_miss(self.repository, error):
                raise
            return False

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...] | None:
        """What the referrers API lists for a manifest; None where there is no such API."""
        try:
            return self._registry.referrers(subject)
        except Unauthorized as error:
            if not self._unknowns.is_miss(self.repository, error):
                raise
            return None

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A stream of the blob's bytes that raises before its end if they are not the descriptor's."""
        return self._registry.open_blob(descriptor)

    def put_blob(self, descriptor: Descriptor, content: BlobOpener, *, ask: bool = True) -> bool:
        """Store a blob unless it is there already; False if it was."""
        return self._registry.put_blob(descriptor, content, ask=ask)

    def mount_blob(self, descriptor: Descriptor, source: Repository) -> bool:
        """Take a blob over from another repository of the same host without moving bytes."""
        return self._registry.mount_blob(descriptor, source)

    def put_manifest(self, manifest: Manifest | ImageIndex, tag: Tag | None = None) -> None:
        """Store a manifest under its digest and, if a tag is given, move the tag to it."""
        self._registry.put_manifest(manifest, tag)

    def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and every tag on it."""
        self._registry.delete_manifest(digest)

    def tags(self) -> Iterator[Tag]:
        """Every tag but those of what is attached to images."""
        return self._registry.tags()

    def close(self) -> None:
        """Give back connections and files. Closing twice is harmless."""
        self._registry.close()
