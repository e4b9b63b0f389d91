"""A repository on a registry server: what is asked, how often, and what is made of the answers.

Requests are sent by a host that :mod:`envbuild.oci.remote` makes; what each says is in
:mod:`envbuild.oci.exchange` and :mod:`envbuild.oci.push`.
"""

from __future__ import annotations

import copy
import io
from typing import IO, TYPE_CHECKING, Any, Final, Self, TypeVar

from envbuild.digest import VerifyingReader
from envbuild.errors import IntegrityError, Unauthorized
from envbuild.oci.auth import scope
from envbuild.oci.exchange import (
    delete_manifest,
    get_blob,
    has_blob,
    mount,
    read_manifest,
    referrers_page,
    shows_blob,
    tags_page,
    write_manifest,
)
from envbuild.oci.push import ChunkedUpload, WholeUpload
from envbuild.oci.registry import is_fallback_tag, reread
from envbuild.oci.stream import BlobSource, BlobStream
from envbuild.oci.transport import name_of, retrying

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.exchange import Host, Response
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registry import BlobOpener
    from envbuild.oci.transport import Settings
    from envbuild.reference import Repository, Tag

_PAGE: Final = 1000
_MAX_PAGES: Final = 10_000
_MAX_IDLE: Final = 16
"""So many pages in a row may list nothing that is new."""
_MAX_TAGS: Final = 2_000_000
_MAX_REFERRERS: Final = 10_000
_SMALL: Final = 1 << 20
"""Bytes of a blob that is read whole before it is given out."""
_Result = TypeVar("_Result")
_Thing = TypeVar("_Thing", bound="Hashable")


class _Received(VerifyingReader):
    """Bytes that came over a network: where they are wrong, they may be right the next time."""

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer``; 0 at the verified end."""
        try:
            return super().readinto(buffer)
        except IntegrityError as error:
            error.retryable = True
            raise


class _Pages:
    """A list on several pages, which must come to an end."""

    def __init__(self, what: str, most: int) -> None:
        self._what, self._most = what, most
        self._things: set[Hashable] = set()
        self._addresses: set[str] = set()
        self._idle = self._count = 0

    def new(self, listed: Iterable[_Thing], following: str | None) -> list[_Thing]:
        """What a page lists and none before it did.

        Args:
            listed: What stands on the page.
            following: The address of the next page, or None.

        Raises:
            IntegrityError: The list does not end: a page comes again, or too many list nothing that is new.
        """
        found = [each for each in dict.fromkeys(listed) if each not in self._things]
        self._things.update(found)
        self._idle = 0 if found else self._idle + 1
        self._count += 1
        again = following in self._addresses
        if following is not None:
            self._addresses.add(following)
        if again or self._idle > _MAX_IDLE or self._count > _MAX_PAGES:
            raise IntegrityError(f"{self._what} are listed on pages without end")
        if len(self._things) > self._most:
            raise IntegrityError(f"{self._what} are more than {self._most}")
        return found


class ServerRegistry:
    """The :class:`~envbuild.oci.registry.Registry` protocol, spoken to a host.

    Most callers want :class:`envbuild.oci.remote.RemoteRegistry`, which makes the host.

    Args:
        repository: The repository.
        host: Sends requests.
        settings: Retries, and the size of pieces.
    """

    def __init__(self, repository: Repository, host: Host, settings: Settings) -> None:
        self._repository = repository
        self._host = host
        self._settings = settings

    @property
    def repository(self) -> Repository:
        """The repository that this is."""
        return self._repository

    def by(self, deadline: Deadline) -> Self:
        """The same repository, on the same connections and tokens, for a call with that deadline."""
        host = copy.copy(self._host)
        host.deadline = deadline
        view = copy.copy(self)
        view.__dict__["_host"] = host
        return view

    def close(self) -> None:
        """Give back the connections. Closing twice is harmless."""
        self._host.lease.close()

    # Manifests

    def get_manifest(self, reference: Tag | Digest) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names, hashed and compared.

        Raises:
            NotFound: There is none: a miss.
            IntegrityError: The bytes are not what they should be.
        """
        what = name_of(self._repository, reference)

        return self._retrying(lambda host: read_manifest(host, reference, what), f"reading {what}")

    def put_manifest(self, manifest: Manifest | ImageIndex, tag: Tag | None = None) -> None:
        """Store a manifest under its digest and, if a tag is given, move the tag to it.

        Raises:
            MissingContent: A blob or manifest that it names is not in the repository.
        """
        reference = tag or manifest.descriptor.digest
        what = name_of(self._repository, reference)

        self._retrying(
            lambda host: write_manifest(host, reference, manifest, what), f"writing {what}", "pull", "push"
        )

    def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and every tag on it.

        Raises:
            NotFound: There is none.
        """
        what = name_of(self._repository, digest)

        self._retrying(lambda host: delete_manifest(host, digest, what), f"deleting {what}", "delete")

    def tags(self) -> Iterator[Tag]:
        """Every tag but those that stand in for the referrers API (``sha256-<hex>``)."""
        url: str | None = self._host.at(self._host.container.tags_url(_PAGE))
        pages = _Pages(f"the tags of {self._repository}", _MAX_TAGS)
        while url is not None:
            names, following = self._page(url)
            new = pages.new(names, following)
            yield from (name for name in new if not is_fallback_tag(name))
            url = following

    def _page(self, url: str) -> tuple[list[Tag], str | None]:
        what = f"the tags of {self._repository}"
        return self._retrying(lambda host: tags_page(host, url, what), f"listing {what}")

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...] | None:
        """What the referrers API lists for a manifest; None where there is no such API."""
        what = f"the referrers of {self._repository}@{subject}"
        found: dict[Digest, Descriptor] = {}
        pages = _Pages(what, _MAX_REFERRERS)
        following: str | None = f"{self._host.base_url}/v2/{self._repository.path}/referrers/{subject}"
        while following is not None:
            listed, following = self._retrying(
                lambda host, url=following: referrers_page(host, url, what),  # type: ignore[misc]
                f"listing {what}",
            )
            if listed is None:
                return None
            named = {each.digest: each for each in listed}
            pages.new(named, following)
            found |= named
        return tuple(found.values())

    # Blobs

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in this repository."""
        what = f"{self._repository}@{digest}"

        return self._retrying(lambda host: has_blob(host, digest, what), f"looking for {what}")

    def _shows(self, digest: Digest) -> bool:
        what = f"{self._repository}@{digest}"

        return self._retrying(lambda host: shows_blob(host, digest, what), f"looking for {what}")

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A stream of the blob's bytes that raises before its end if they are not the descriptor's.

        A connection that breaks in mid-stream is taken up again where it broke. A small blob whose bytes are
        wrong is asked for once more; what was given out of a large one cannot be taken back, so that whoever
        reads it has to begin again (:func:`~envbuild.oci.registry.reread`).

        Raises:
            NotFound: There is no such blob.
        """
        if descriptor.size > _SMALL:
            return self._stream(descriptor)

        def whole() -> IO[bytes]:
            with self._stream(descriptor) as stream:
                return io.BytesIO(stream.read())

        return reread(whole) if self._settings.retries else whole()

    def _stream(self, descriptor: Descriptor) -> IO[bytes]:
        what = f"blob {descriptor.digest} of {self._repository}"

        def opened(start: int) -> Response:
            return self._retrying(
                lambda host: get_blob(host, descriptor.digest, start, what), f"reading {what}"
            )

        stream = BlobStream(opened, descriptor, self._settings, self._host.deadline, what)
        reader = _Received(stream, descriptor, what)  # type: ignore[arg-type]
        return io.BufferedReader(reader, 1 << 17)

    def put_blob(self, descriptor: Descriptor, content: BlobOpener, *, ask: bool = True) -> bool:
        """Store a blob unless it is there already; False if it was. Its bytes are read once for each attempt.

        Content that came wrong over a network is opened and sent once more.

        Args:
            descriptor: The blob.
            content: Its bytes.
            ask: Whether to look for it first.

        Raises:
            IntegrityError: The content is not what the descriptor says; nothing was stored.
        """
        if ask and self._shows(descriptor.digest):
            return False
        reread(lambda: self._send(descriptor, content))
        return True

    def _send(self, descriptor: Descriptor, content: BlobOpener) -> None:
        what = f"blob {descriptor.digest} to {self._repository}"
        source = BlobSource(content, descriptor, self._host.deadline, what)
        chunk = self._settings.chunk
        upload: WholeUpload | ChunkedUpload = WholeUpload(source, what)
        if descriptor.size > chunk:
            upload = ChunkedUpload(source, chunk, self._settings.retries, what)
        try:
            while not self._retrying(upload.step, f"writing {what}", "pull", "push"):
                pass
        finally:
            source.close()

    def mount_blob(self, descriptor: Descriptor, source: Repository) -> bool:
        """Take a blob over from another repository of the same host without moving bytes.

        Returns:
            False if that is not possible here; then the bytes must be put.
        """
        if source.host != self._repository.host:
            return False
        what = f"mounting blob {descriptor.digest} from {source}"
        try:
            return self._retrying(lambda host: mount(host, descriptor, source, what), what, "pull", "push")
        except Unauthorized:
            return False  # the source is not ours to read: whoever has the bytes may put them

    def _retrying(self, operation: Callable[[Host], _Result], doing: str, *actions: str) -> _Result:
        host = copy.copy(self._host)
        host.scopes = (scope(self._repository.path, *(actions or ("pull",))),)
        return retrying(
            lambda: operation(copy.copy(host)), self._repository.host, self._settings, host.deadline, doing
        )
