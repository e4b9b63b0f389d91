"""A repository on a registry server, through a subclass of oras-py's ``Registry``.

The only importer of oras and requests. oras-py gives the session, the addresses and the requests; what it
lacks is mended here and in :mod:`envbuild.oci.auth`, :mod:`envbuild.oci.transport` and
:mod:`envbuild.oci.wire`: its retries, tokens and credentials are not used. What is said to a registry is in
:mod:`envbuild.oci.server`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import oras.container
import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import RegistryError, SpecError
from envbuild.oci.auth import Authority, Keychain
from envbuild.oci.client import USER_AGENT, tls_context
from envbuild.oci.late import imported_late
from envbuild.oci.pools import POOLS
from envbuild.oci.server import ServerRegistry
from envbuild.oci.stream import BlobBody
from envbuild.oci.transport import (
    MAX_REDIRECTS,
    REDIRECTS,
    Settings,
    is_loopback,
    redirected,
    same_origin,
)
from envbuild.oci.wire import call, translated
from envbuild.url import read_url

with imported_late("jsonschema"):  # a third of its import time, for checks that we do not ask for
    import oras.provider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.deadline import Deadline
    from envbuild.oci.auth import Credentials
    from envbuild.reference import Repository

_BODY: Final = 1 << 16
"""Bytes of an error's body that are read."""
_SEND_CHUNK: Final = 1 << 17
_CONNECTIONS: Final = 32


class _Adapter(HTTPAdapter):
    """requests' connection pool, with connections of ours."""

    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        """Make the pool."""
        super().init_poolmanager(*args, **{**named, **self._tls(), "blocksize": _SEND_CHUNK})
        self.poolmanager.pool_classes_by_scheme = POOLS

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing more to load: the context verifies, for every connection of both clients alike."""

    def _tls(self) -> dict[str, Any]:
        return {"ssl_context": tls_context()}


class _PlainAdapter(_Adapter):
    """The same without TLS: reading the machine's authorities takes as long as ten requests."""

    def _tls(self) -> dict[str, Any]:
        return {}


class _LateAdapter(BaseAdapter):
    """The one with TLS, made for the first request that needs it."""

    def send(self, *args: Any, **named: Any) -> requests.Response:
        """Pass a request on."""
        return self._adapter.send(*args, **named)

    def close(self) -> None:
        """Close what was made."""
        if "_adapter" in self.__dict__:
            self._adapter.close()

    @cached_property
    def _adapter(self) -> _Adapter:
        return _Adapter(pool_connections=4, pool_maxsize=_CONNECTIONS)


def _session(loopback: bool) -> requests.Session:
    """The connections to one host."""
    session = requests.Session()
    session.headers["User-Agent"] = USER_AGENT
    session.auth = _as_it_is  # else requests would put what ~/.netrc says over our header
    session.trust_env = not loopback  # proxies
    session.mount("http://", _PlainAdapter(pool_connections=4, pool_maxsize=_CONNECTIONS))
    session.mount("https://", _LateAdapter())
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
        parts = read_url(base_url)
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
            url = redirected(url, response.headers.get("Location"), f"{method} {read_url(url).path}")
        raise RegistryError(f"{self.hostname} redirects more than {MAX_REDIRECTS} times")

    def _authorized(
        self, url: str, method: str, data: Any, headers: Mapping[str, str], stream: bool
    ) -> requests.Response:
        what = f"{method} {read_url(url).path}"
        header = self.authority.fresh(self.scopes, self._fetch, what)
        response = self._send(url, method, data, _with(headers, header), stream)
        if response.status_code != 401:
            return response
        challenge = response.headers.get("WWW-Authenticate", "")
        self.body(response)
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


class RemoteRegistry(ServerRegistry):
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
        settings = settings or Settings()
        base_url = settings.base_url(repository.host, insecure=insecure)
        authority = Authority(repository, base_url, credentials or Keychain())
        host = _Host(repository, base_url, authority, settings)
        host.deadline = deadline
        super().__init__(repository, host, settings)


def _with(headers: Mapping[str, str], authorization: str | None) -> Mapping[str, str]:
    return headers if authorization is None else {**headers, "Authorization": authorization}
