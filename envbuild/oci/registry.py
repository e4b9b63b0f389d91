"""The ``Registry`` protocol: one repository, whose bytes are verified against their digest on every read.

Back ends: :mod:`envbuild.oci.layout` (a folder) and :mod:`envbuild.oci.remote` (a registry server). One
contract suite in the tests runs on each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Protocol, Self, TypeVar

from envbuild.errors import IntegrityError, NotFound, TagMoved, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.reference import Repository, Tag

_Result = TypeVar("_Result")
BlobOpener = Callable[[], IO[bytes]]
"""Opens a blob's content from its first byte; called again for each retry."""


class Registry(Protocol):
    """One repository of images.

    Every method may raise :class:`~envbuild.errors.Unavailable`, :class:`~envbuild.errors.Unauthorized`,
    :class:`~envbuild.errors.DeadlineExceeded` and, where bytes are read,
    :class:`~envbuild.errors.IntegrityError`. Instances may be used by several threads at once.
    """

    @property
    def repository(self) -> Repository:
        """The repository that this is."""
        ...

    def by(self, deadline: Deadline) -> Self:
        """The same repository, on the same connections, for a call with that deadline."""
        ...

    def get_manifest(self, reference: Tag | Digest) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names, hashed and compared.

        Raises:
            NotFound: There is none: a miss.
        """
        ...

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in this repository."""
        ...

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A stream of the blob's bytes that raises before its end if they are not the descriptor's.

        Raises:
            NotFound: There is no such blob.
        """
        ...

    def put_blob(self, descriptor: Descriptor, content: BlobOpener, *, ask: bool = True) -> bool:
        """Store a blob unless it is there already; False if it was.

        Args:
            descriptor: The blob.
            content: Its bytes.
            ask: Whether to look for it first where that costs a request; not worth it for small new ones.

        Raises:
            IntegrityError: The content is not what the descriptor says; nothing was stored.
        """
        ...

    def mount_blob(self, descriptor: Descriptor, source: Repository) -> bool:
        """Take a blob over from another repository of the same host without moving bytes.

        Returns:
            False if that is not possible here; then the bytes must be put.
        """
        ...

    def put_manifest(self, manifest: Manifest | ImageIndex, tag: Tag | None = None) -> None:
        """Store a manifest under its digest and, if a tag is given, move the tag to it.

        Most callers want :func:`publish`, which never moves an existing tag.

        Raises:
            NotFound: A blob or manifest that it names is not in the repository.
        """
        ...

    def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and every tag on it.

        Raises:
            NotFound: There is none.
        """
        ...

    def tags(self) -> Iterator[Tag]:
        """Every tag of the repository, in no particular order, but those of what is attached to images."""
        ...

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...] | None:
        """What the referrers API lists for a manifest; None where there is no such API.

        Most callers want :func:`envbuild.oci.referrers.referrers`.
        """
        ...

    def close(self) -> None:
        """Give back connections and files. Closing twice is harmless."""
        ...


def is_fallback_tag(tag: Tag) -> bool:
    """Whether a tag is a list of what is attached to an image, or a signature as cosign keeps it.

    Source: Distribution Specification, "Referrers Tag Schema"; cosign's ``sha256-<hex>.sig``.
    """
    return re.fullmatch(r"sha256-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?", tag.name) is not None


def reread(action: Callable[[], _Result]) -> _Result:
    """What an action makes of blobs, done once more where their bytes came wrong over a network.

    A proxy or a mirror may have mixed up one answer; bytes that are wrong twice are the repository's own.

    Raises:
        IntegrityError: They were, or came from no network.
    """
    try:
        return action()
    except IntegrityError as error:
        if not error.retryable:
            raise
    try:
        return action()
    except IntegrityError as error:
        error.retryable = False
        raise


def find_manifest(registry: Registry, reference: Tag | Digest) -> Manifest | ImageIndex | None:
    """The manifest, or None where the registry says that there is none."""
    try:
        return registry.get_manifest(reference)
    except NotFound:
        return None


def shows_blob(registry: Registry, digest: Digest) -> bool:
    """Whether a repository says that it has a blob, for who would send it otherwise.

    Some registries refuse to say so of what is missing; who may not write is told when the blob is sent.
    """
    try:
        return registry.has_blob(digest)
    except Unauthorized:
        return False


def publish(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    tag: Tag,
    *,
    stored: bool = False,
    absent: bool = False,
) -> Manifest | ImageIndex:
    """Store a manifest, then tag it, unless the tag is there already: an existing tag wins.

    The blobs must have been put before. The tag is read back after writing.

    Args:
        registry: The repository.
        manifest: The manifest.
        tag: The tag.
        stored: Whether the manifest is in the repository under its digest.
        absent: Whether the tag was looked for a moment ago and was not there.

    Returns:
        What the tag names in the end: the given manifest, or the one that was there first.

    Raises:
        TagMoved: The tag that was just written names another manifest when read back.
        IntegrityError: The tag is there and names something that does not carry what the tag says.
    """
    if not absent and (existing := find_manifest(registry, tag)) is not None:
        return _adopted(existing, manifest, registry, tag)
    if not stored:
        registry.put_manifest(manifest)
        if (existing := find_manifest(registry, tag)) is not None:
            return _adopted(existing, manifest, registry, tag)
    return publish_over(registry, manifest, tag)


def publish_over(registry: Registry, manifest: Manifest | ImageIndex, tag: Tag) -> Manifest | ImageIndex:
    """Tag a manifest, whatever has the tag, and read it back.

    Raises:
        TagMoved: The tag that was just written names another manifest when read back.
    """
    registry.put_manifest(manifest, tag)
    seen = registry.get_manifest(tag)
    if seen.descriptor.digest != manifest.descriptor.digest:
        raise TagMoved(
            f"{registry.repository}:{tag} was written as {manifest.descriptor.digest} and now names "
            f"{seen.descriptor.digest}",
            hint="another writer published the same key at the same moment; resolve again to adopt its image",
            retryable=True,
        )
    return seen


def _adopted(
    existing: Manifest | ImageIndex, manifest: Manifest | ImageIndex, registry: Registry, tag: Tag
) -> Manifest | ImageIndex:
    """What was there first, if it carries the key that the tag is made of, as the new manifest does."""
    for name, value in manifest.annotations.items():
        if tag.name.endswith(f"-{value}") and existing.annotations.get(name) != value:
            raise IntegrityError(
                f"{registry.repository}:{tag} carries {existing.annotations.get(name)!r:.80} as {name}, "
                f"expected {value}",
                hint="the tag was moved or written by something else: delete it, then resolve again",
            )
    return existing
