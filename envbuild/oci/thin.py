"""Small requests to a registry server over the thin client: a third of the processor time of requests.

Whoever writes thousands of manifests is bound by what one request costs, and a build that makes one small
layer by the time that oras-py and requests take to import. What is said to the registry, how often, and what
is made of its answers is that of :mod:`envbuild.oci.server`, as everywhere; only the
:class:`~envbuild.oci.exchange.Host` that sends it is another. Large blobs go the usual way.
"""

from __future__ import annotations

import copy
import io
import threading
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, Self

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import RegistryError
from envbuild.oci.auth import Authority, Keychain
from envbuild.oci.server import ServerRegistry
from envbuild.oci.transport import MAX_REDIRECTS, REDIRECTS, redirected, same_origin
from envbuild.url import read_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.auth import Credentials
    from envbuild.oci.client import Answer, Client
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registry import BlobOpener, Registry
    from envbuild.oci.transport import Settings
    from envbuild.reference import Repository, Tag

SMALL: Final = 1 << 20
"""A blob up to this size is held in memory to be sent."""
_LIMIT: Final = 5 << 20


@dataclass(frozen=True, slots=True)
class _Response:
    """An answer under the names that requests gives its parts."""

    status_code: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    raw: io.BytesIO = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "raw", io.BytesIO(self.content))

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class _Addresses:
    """Where things of a repository are, as oras-py's container knows it."""

    prefix: str

    def manifest_url(self, reference: str) -> str:
        return f"{self.prefix}/manifests/{reference}"

    def upload_blob_url(self) -> str:
        return f"{self.prefix}/blobs/uploads/"

    def tags_url(self, count: int) -> str:
        return f"{self.prefix}/tags/list?n={count}"


class _ThinHost:
    """Sends requests for calls to one repository; see :class:`envbuild.oci.exchange.Host`.

    Args:
        repository: The repository.
        client: Sends.
        settings: How registries are spoken to.
        keychain: Where credentials are found, or the credentials themselves.
    """

    def __init__(
        self, repository: Repository, client: Client, settings: Settings, keychain: Keychain | Credentials
    ) -> None:
        self.base_url = settings.base_url(repository.host)
        self.hostname: str | None = read_url(self.base_url).netloc
        self.container: Any = _Addresses(f"{self.base_url}/v2/{repository.path}")
        self.headers: dict[str, str] = {}
        self.scopes: tuple[str, ...] = ()
        self.settings = settings
        self.deadline: Deadline = NO_DEADLINE
        self.lease: Any = None
        self._client = client
        self._authority = Authority(repository, self.base_url, keychain)

    def at(self, address: str) -> str:
        """The URL of an address; it is one already."""
        return address

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: dict[str, str] | None = None,
        json: None = None,  # noqa: ARG002 - the protocol's signature
        stream: bool = False,  # noqa: ARG002
    ) -> _Response:
        """One request with its redirects; no retry, and ``Authorization`` for our own host only.

        Raises:
            Trouble: There was no answer.
            Unauthorized: The registry refused what credentials there are.
        """
        body = data if data is None or isinstance(data, bytes) else b"".join(data)
        for _ in range(MAX_REDIRECTS + 1):
            own = same_origin(url, self.base_url)
            answer = (self._authorized if own else self._send)(url, method, body, headers or {})
            if answer.status not in REDIRECTS or method not in {"GET", "HEAD"}:
                return _Response(answer.status, answer.headers, answer.body)
            url = redirected(url, answer.headers.get("Location"), f"{method} {read_url(url).path}")
        raise RegistryError(f"{self.hostname} redirects more than {MAX_REDIRECTS} times")

    def get_blob(self, _: Any, digest: str, stream: bool = False, head: bool = False) -> _Response:
        """Ask for a blob; what is large is not read over this host."""
        url, method = f"{self.container.prefix}/blobs/{digest}", "HEAD" if head else "GET"
        return self.do_request(url, method, headers=self.headers, stream=stream)

    def body(self, response: _Response, limit: int = _LIMIT) -> bytes:
        """At most ``limit`` + 1 bytes of a body."""
        return response.content[: limit + 1]

    def _authorized(self, url: str, method: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        what = f"{method} {read_url(url).path}"
        header = self._authority.fresh(self.scopes, self._fetch, what)
        answer = self._send(url, method, body, _with(headers, header))
        if answer.status != 401:
            return answer
        challenge = answer.headers.get("WWW-Authenticate", "")
        header = self._authority.answer(challenge, self.scopes, header, self._fetch, what)
        return self._send(url, method, body, _with(headers, header))

    def _send(self, url: str, method: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        return self._client.request(url, headers, self.deadline, body=body, limit=_LIMIT, method=method)

    def _fetch(
        self, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        answer = self._client.request(url, headers, self.deadline, body=body)
        return answer.status, answer.headers, answer.body


class _Full:
    """The same repository in the usual way, opened for the first that needs it."""

    def __init__(self, opened: Callable[[], Registry]) -> None:
        self._opened = opened
        self._registry: Registry | None = None
        self._guard = threading.Lock()

    def get(self) -> Registry:
        """The repository."""
        with self._guard:
            if self._registry is None:
                self._registry = self._opened()
            return self._registry

    def close(self) -> None:
        """Close it if it was opened."""
        with self._guard:
            if self._registry is not None:
                self._registry.close()


class ThinRegistry:
    """One repository, with all but its large blobs going over the thin client.

    Args:
        repository: The repository.
        full: Opens the same repository for its large blobs.
        client: Sends requests; whoever made it closes it.
        settings: How registries are spoken to.
        keychain: Where credentials are found; None to look where Docker does.
    """

    def __init__(
        self,
        repository: Repository,
        full: Callable[[], Registry],
        client: Client,
        settings: Settings,
        keychain: Keychain | Credentials | None = None,
    ) -> None:
        self._late = _Full(full)
        self._deadline = NO_DEADLINE
        host = _ThinHost(repository, client, settings, keychain or Keychain())
        self._thin = ServerRegistry(repository, host, settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.repository})"

    @property
    def repository(self) -> Repository:
        """The repository that this is."""
        return self._thin.repository

    def by(self, deadline: Deadline) -> Self:
        """The same repository, on the same connections, for a call with that deadline."""
        view = copy.copy(self)
        view.__dict__.update(_deadline=deadline, _thin=self._thin.by(deadline))
        return view

    def get_manifest(self, reference: Tag | Digest) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names, hashed and compared."""
        return self._thin.get_manifest(reference)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in this repository."""
        return self._thin.has_blob(digest)

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A stream of the blob's bytes that raises before its end if they are not the descriptor's."""
        return self._way(descriptor).open_blob(descriptor)

    def put_blob(self, descriptor: Descriptor, content: BlobOpener, *, ask: bool = True) -> bool:
        """Store a blob unless it is there already; False if it was."""
        return self._way(descriptor).put_blob(descriptor, content, ask=ask)

    def mount_blob(self, descriptor: Descriptor, source: Repository) -> bool:
        """Take a blob over from another repository of the same host without moving bytes."""
        return self._thin.mount_blob(descriptor, source)

    def put_manifest(self, manifest: Manifest | ImageIndex, tag: Tag | None = None) -> None:
        """Store a manifest under its digest and, if a tag is given, move the tag to it."""
        self._thin.put_manifest(manifest, tag)

    def delete_manifest(self, digest: Digest) -> None:
        """Delete a manifest and every tag on it."""
        self._thin.delete_manifest(digest)

    def tags(self) -> Iterator[Tag]:
        """Every tag but those of what is attached to images."""
        return self._thin.tags()

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...] | None:
        """What the referrers API lists for a manifest; None where there is no such API."""
        return self._thin.referrers(subject)

    def close(self) -> None:
        """Give back the connections that are not the client's. Closing twice is harmless."""
        self._late.close()

    def _way(self, descriptor: Descriptor) -> Registry:
        return self._thin if descriptor.size <= SMALL else self._late.get().by(self._deadline)


def _with(headers: Mapping[str, str], authorization: str | None) -> Mapping[str, str]:
    return headers if authorization is None else {**headers, "Authorization": authorization}
