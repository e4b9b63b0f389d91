"""A repository on a registry server, through a subclass of oras-py's ``Registry``.

The only importer of oras and requests. oras-py gives the session, the addresses and the requests; what it
lacks is mended here and in :mod:`envbuild.oci.auth`, :mod:`envbuild.oci.transport` and
:mod:`envbuild.oci.wire`: its retries, tokens and credentials are not used. What is said to a registry is in
:mod:`envbuild.oci.exchange`.
"""

from __future__ import annotations

import copy
import io
from typing import IO, TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import oras.container
import requests
from requests.adapters import HTTPAdapter

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import VerifyingReader
from envbuild.errors import IntegrityError, RegistryError, SpecError, Unauthorized
from envbuild.oci.auth import Authority, Keychain, scope
from envbuild.oci.client import USER_AGENT, tls_context
from envbuild.oci.exchange import (
    delete_manifest,
    get_blob,
    has_blob,
    mount,
    read_manifest,
    referrers_page,
    tags_page,
    write_manifest,
)
from envbuild.oci.late import imported_late
from envbuild.oci.push import ChunkedUpload, WholeUpload
from envbuild.oci.registry import is_fallback_tag
from envbuild.oci.stream import BlobBody, BlobSource, BlobStream
from envbuild.oci.transport import (
    MAX_REDIRECTS,
    REDIRECTS,
    Settings,
    is_loopback,
    name_of,
    redirected,
    retrying,
    same_origin,
)
from envbuild.oci.wire import POOLS, call, translated

with imported_late("jsonschema"):  # a third of its import time, for checks that we do not ask for
    import oras.provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.auth import Credentials
    from envbuild.oci.exchange import (
        Response,
    )
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registry import BlobOpener
    from envbuild.reference import Repository, Tag

_PAGE: Final = 1000
_MAX_PAGES: Final = 10_000
_BODY: Final = 1 << 16
"""Bytes of an error's body that are read."""
_SEND_CHUNK: Final = 1 << 17
_CONNECTIONS: Final = 32
_Result = TypeVar("_Result")


class _Adapter(HTTPAdapter):
    """requests' connection pool, with connections of ours."""

    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        """Make the pool."""
        super().init_poolmanager(*args, **named, ssl_context=tls_context(), blocksize=_SEND_CHUNK)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing more to load: the context verifies, for every connection of both clients alike."""


def _session(loopback: bool) -> requests.Session:
    """The connections to one host."""
    session = requests.Session()
    session.headers["User-Agent"] = USER_AGENT
    session.auth = _as_it_is  # else requests would put what ~/.netrc says over our header
    session.trust_env = not loopback  # proxies
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_connections=4, pool_maxsize=_CONNECTIONS))
    return session


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class _Host(oras.provider.Registry):
    """oras-py's client for one repository, with every request made in our way.

    Args:
        repository: The repository.
        base_url: The URL in front of ``/v2/``.
        authority: Knows the ``Authorization`` header.
        settings: Timeouts.
    """

    def __init__(
        self, repository: Repository, base_url: str, authority: Authority, settings: Settings
    ) -> None:
        parts = urlsplit(base_url)
        super().__init__(hostname=parts.netloc, insecure=parts.scheme == "http")
        self.session.close()  # its own; ours is shared with the other repositories of the host
        loopback = is_loopback(parts.netloc)
        self.lease = settings.connections.take(base_url, lambda: _session(loopback))
        self.session = self.lease.value
        self.base_url = base_url
        self.authority = authority
        self.settings = settings
        self.deadline: Deadline = NO_DEADLINE
        self.scopes: tuple[str, ...] = ()
        # Made by hand: oras-py's parser takes `localhost/name` for a repository of Docker Hub.
        self.container = oras.container.Container("name", registry=parts.netloc)
        self.container.namespace, _, self.container.repository = repository.path.rpartition("/")

    def at(self, address: str) -> str:
        """The URL of an address that oras-py's container made."""
        return f"{self.prefix}://{address}"

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: dict[str, str] | None = None,
        json: None = None,  # noqa: ARG002 - oras-py's signature
        stream: bool = False,
    ) -> requests.Response:
        """One request with its redirects; no retry, and ``Authorization`` for our own host only.

        Raises:
            Trouble: There was no answer.
            Unauthorized: The registry refused what credentials there are.
        """
        for _ in range(MAX_REDIRECTS + 1):
            self.deadline.check(f"asking {self.hostname}")
            own = same_origin(url, self.base_url)
            response = (self._authorized if own else self._send)(url, method, data, headers or {}, stream)
            if response.status_code not in REDIRECTS or method not in {"GET", "HEAD"}:
                return response
            self.body(response)
            url = redirected(url, response.headers.get("Location"), f"{method} {urlsplit(url).path}")
        raise RegistryError(f"{self.hostname} redirects more than {MAX_REDIRECTS} times")

    def _authorized(
        self, url: str, method: str, data: Any, headers: Mapping[str, str], stream: bool
    ) -> requests.Response:
        header = self.authority.header(self.scopes)
        response = self._send(url, method, data, _with(headers, header), stream)
        if response.status_code != 401:
            return response
        challenge = response.headers.get("WWW-Authenticate", "")
        self.body(response)
        what = f"{method} {urlsplit(url).path}"
        answer = self.authority.answer(challenge, self.scopes, header, self._fetch, what)
        if isinstance(data, BlobBody):
            data.rewind()
        return self._send(url, method, data, _with(headers, answer), stream)

    def _send(
        self, url: str, method: str, data: Any, headers: Mapping[str, str], stream: bool
    ) -> requests.Response:
        with call(self.settings, self.deadline), translated(str(self.hostname), self.deadline):
            return self.session.request(
                method,
                url,
                data=data,
                headers={"Accept-Encoding": "identity", **headers},
                stream=stream,
                allow_redirects=False,
                timeout=(
                    self.settings.connect_within(self.deadline),
                    self.settings.read_within(self.deadline),
                ),
            )

    def _fetch(
        self, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        response = self._send(url, "GET" if body is None else "POST", body, headers, stream=True)
        return response.status_code, response.headers, self.body(response)

    def body(self, response: requests.Response, limit: int = _BODY) -> bytes:
        """At most ``limit`` + 1 bytes of a body; the connection is given back."""
        with call(self.settings, self.deadline), translated(str(self.hostname), self.deadline):
            try:
                content = b""
                while len(content) <= limit and (part := response.raw.read(limit + 1 - len(content))):
                    content += part
                return content
            finally:
                response.close()


class RemoteRegistry:
    """One repository of a registry server: the :class:`~envbuild.oci.registry.Registry` protocol.

    Args:
        repository: The repository; not a layout.
        credentials: Where credentials are found, or the credentials; None to look where Docker does.
        insecure: Whether to speak plain HTTP; None to decide by the host and the settings.
        settings: Timeouts, retries and insecure hosts.
        deadline: For every call; :meth:`by` gives another.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        credentials: Keychain | Credentials | None = None,
        insecure: bool | None = None,
        settings: Settings | None = None,
        deadline: Deadline = NO_DEADLINE,
    ) -> None:
        if repository.is_layout:
            raise SpecError(f"{repository} is a layout on disk, not on a registry server")
        self._repository = repository
        self._settings = settings or Settings()
        base_url = self._settings.base_url(repository.host, insecure=insecure)
        authority = Authority(repository, base_url, credentials or Keychain())
        self._host = _Host(repository, base_url, authority, self._settings)
        self._host.deadline = deadline

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
        url = self._host.at(self._host.container.tags_url(_PAGE))
        for _ in range(_MAX_PAGES):
            names, following = self._page(url)
            yield from (name for name in names if not is_fallback_tag(name))
            if following is None:
                return
            url = following
        raise IntegrityError(f"{self._repository} lists its tags on more than {_MAX_PAGES} pages")

    def _page(self, url: str) -> tuple[list[Tag], str | None]:
        what = f"the tags of {self._repository}"
        return self._retrying(lambda host: tags_page(host, url, what), f"listing {what}")

    def referrers(self, subject: Digest) -> tuple[Descriptor, ...] | None:
        """What the referrers API lists for a manifest; None where there is no such API."""
        url = f"{self._host.base_url}/v2/{self._repository.path}/referrers/{subject}"
        what = f"the referrers of {self._repository}@{subject}"
        found: dict[Digest, Descriptor] = {}
        for _ in range(_MAX_PAGES):
            listed, following = self._retrying(
                lambda host, url=url: referrers_page(host, url, what),  # type: ignore[misc]
                f"listing {what}",
            )
            if listed is None:
                return None
            found |= {each.digest: each for each in listed}
            if following is None:
                return tuple(found.values())
            url = following
        raise IntegrityError(f"{what} are listed on more than {_MAX_PAGES} pages")

    # Blobs

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in this repository."""
        what = f"{self._repository}@{digest}"

        return self._retrying(lambda host: has_blob(host, digest, what), f"looking for {what}")

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """A stream of the blob's bytes that raises before its end if they are not the descriptor's.

        A connection that breaks in mid-stream is taken up again where it broke.

        Raises:
            NotFound: There is no such blob.
        """
        what = f"blob {descriptor.digest} of {self._repository}"

        def opened(start: int) -> Response:
            return self._retrying(
                lambda host: get_blob(host, descriptor.digest, start, what), f"reading {what}"
            )

        stream = BlobStream(opened, descriptor, self._settings, self._host.deadline, what)
        reader = VerifyingReader(stream, descriptor, what)  # type: ignore[arg-type]
        return io.BufferedReader(reader, 1 << 17)

    def put_blob(self, descriptor: Descriptor, content: BlobOpener, *, ask: bool = True) -> bool:
        """Store a blob unless it is there already; False if it was. Its bytes are read once for each attempt.

        Args:
            descriptor: The blob.
            content: Its bytes.
            ask: Whether to look for it first.

        Raises:
            IntegrityError: The content is not what the descriptor says; nothing was stored.
        """
        if ask and self.has_blob(descriptor.digest):
            return False
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
        return True

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

    def _retrying(self, operation: Callable[[_Host], _Result], doing: str, *actions: str) -> _Result:
        host = copy.copy(self._host)
        host.scopes = (scope(self._repository.path, *(actions or ("pull",))),)
        return retrying(
            lambda: operation(copy.copy(host)), self._repository.host, self._settings, host.deadline, doing
        )


def _with(headers: Mapping[str, str], authorization: str | None) -> Mapping[str, str]:
    return headers if authorization is None else {**headers, "Authorization": authorization}
