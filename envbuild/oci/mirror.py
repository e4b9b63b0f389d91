"""Pulls through the mirrors of a registry's host: by digest only, so that a mirror is never wrong.

Tags, questions whether something is there, and all that is written go to the host itself: a mirror may be
behind. A mirror gets the credentials that are kept for the mirror's own host, and no others.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any, Final, Self

from envbuild.digest import Digest
from envbuild.errors import DeadlineExceeded, IntegrityError, RegistryError
from envbuild.reference import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registry import BlobOpener, Registry
    from envbuild.reference import Tag

_SMALL: Final = 8 << 20
"""Bytes of a blob that is read whole from a mirror before it is given out."""


def on_mirror(place: str, repository: Repository) -> Repository:
    """Where a mirror has a repository: ``HOST/PATH``, or ``HOST/PREFIX/PATH``.

    Raises:
        SpecError: The mirror's name is malformed.
    """
    return Repository.parse(f"{place.rstrip('/')}/{repository.path}")


class MirroredRegistry:
    """One repository whose content is read from mirrors where they have it.

    Args:
        origin: The repository itself.
        mirrors: The same repository on its mirrors, in the order in which they are asked.
        distrusted: Mirrors that gave wrong bytes, shared by all views of one repository.
    """

    def __init__(
        self, origin: Registry, mirrors: tuple[Registry, ...], distrusted: set[Repository] | None = None
    ) -> None:
        self._origin = origin
        self._mirrors = mirrors
        self._distrusted = set() if distrusted is None else distrusted

    @property
    def repository(self) -> Repository:
        """The repository itself, by its own name."""
        return self._origin.repository

    def by(self, deadline: Deadline) -> Self:
        """The same repository for a call with that deadline."""
        mirrors = tuple(each.by(deadline) for each in self._mirrors)
        return type(self)(self._origin.by(deadline), mirrors, self._distrusted)

    def get_manifest(self, reference: Tag | Digest) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names; one with a digest may come from a mirror."""
        if isinstance(reference, Digest):
            for mirror in self._asked():
                try:
                    return mirror.get_manifest(reference)
                except IntegrityError:
                    self._distrust(mirror)
                except (RegistryError, DeadlineExceeded):
                    continue
        return self._origin.get_manifest(reference)

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A stream of the blob's bytes, from the first mirror that gives them.

        A mirror that gives wrong bytes, or breaks off, in a large blob makes the stream fail, and is not
        asked again: whoever opens the blob once more gets it from elsewhere.
        """
        for mirror in self._asked():
            try:
                stream = mirror.open_blob(descriptor)
                if descriptor.size > _SMALL:
                    return io.BufferedReader(_Watched(stream, lambda mirror=mirror: self._distrust(mirror)))  # type: ignore[misc]
                with stream:
                    return io.BytesIO(stream.read())
            except IntegrityError:
                self._distrust(mirror)
            except (RegistryError, DeadlineExceeded):
                continue
        return self._origin.open_blob(descriptor)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in the repository itself."""
        return self._origin.has_blob(digest)

    def put_blob(self, descriptor: Descriptor, content: BlobOpener, *, ask: bool = True) -> bool:
        """Store a blob unless it is there already; False if it was."""
        return self._origin.put_blob(descriptor, content, ask=ask)

    def mount_blob(self, descriptor: Descriptor, source: Repository) -> bool:
        """Take a blob over from another repository of the same host without moving bytes."""
        return self._origin.mount_blob(descriptor, source)

    def put_manifest(self, manifest: Manifest | ImageIndex, tag: Tag | None = None) -> None:
        """Store a manifest under its digest and, if a tag is given, move the tag to it."""
        self._origin.put_manifest(manifest, tag)

    def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and every tag on it."""
        self._origin.delete_manifest(digest)

    def tags(self) -> Iterator[Tag]:
        """Every tag of the repository itself."""
        return self._origin.tags()

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...] | None:
        """What the referrers API lists for a manifest; None where there is no such API."""
        return self._origin.referrers(subject)

    def close(self) -> None:
        """Give back the connections. Closing twice is harmless."""
        for each in (self._origin, *self._mirrors):
            each.close()

    def _asked(self) -> Iterator[Registry]:
        for mirror in self._mirrors:
            if mirror.repository not in self._distrusted:
                yield mirror

    def _distrust(self, mirror: Registry) -> None:
        self._distrusted.add(mirror.repository)


class _Watched(io.RawIOBase):
    """A mirror's stream, whose failure is told."""

    def __init__(self, stream: IO[bytes], failed: Callable[[], None]) -> None:
        super().__init__()
        self._stream = stream
        self._failed = failed

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer``; 0 at the verified end."""
        try:
            content = self._stream.read(len(buffer))
        except (IntegrityError, RegistryError) as error:
            self._failed()
            error.hint, error.retryable = "try again: another place is asked for it", True
            raise
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close this reader and the stream under it."""
        if not self.closed:
            self._stream.close()
        super().close()
