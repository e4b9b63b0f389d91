"""The hit path: one manifest in one request, without oras or requests."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Self

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import RegistryError
from envbuild.oci.auth import Authority, Keychain, scope
from envbuild.oci.client import Client
from envbuild.oci.manifest import MAX_MANIFEST
from envbuild.oci.transport import (
    MANIFEST_HEADERS,
    MAX_REDIRECTS,
    REDIRECTS,
    Settings,
    checked_manifest,
    failure,
    is_loopback,
    manifest_url,
    name_of,
    redirected,
    retrying,
    same_origin,
)
from envbuild.url import read_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.oci.auth import Credentials
    from envbuild.oci.client import Answer
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.reference import Repository, Tag


class Prober:
    """Asks registries for manifests and keeps the connections. May be used by several threads.

    Args:
        settings: How registries are spoken to.
        keychain: Where credentials are found, or the credentials themselves.

    Attributes:
        client: Sends the requests.
    """

    def __init__(
        self, settings: Settings | None = None, keychain: Keychain | Credentials | None = None
    ) -> None:
        self._settings = settings or Settings()
        self._keychain = keychain or Keychain()
        self.client = Client(self._settings)
        self._authorities: dict[Repository, Authority] = {}
        self._guard = threading.Lock()

    def probe(
        self, repository: Repository, reference: Tag | Digest, deadline: Deadline = NO_DEADLINE
    ) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names on a registry server, hashed and compared.

        Raises:
            NotFound: There is none: a miss.
            Unavailable: The registry could not be asked, or was in trouble.
            Unauthorized: The registry refused.
            IntegrityError: The bytes are not what they should be.
            DeadlineExceeded: The time ran out.
        """
        if is_behind_proxy(repository.host):
            return self._through_proxy(repository, reference, deadline)
        what = name_of(repository, reference)
        base_url = self._settings.base_url(repository.host)
        url = manifest_url(base_url, repository, reference)
        authority = self._authority(repository, base_url)

        def ask() -> Manifest | ImageIndex:
            answer = self._follow(url, base_url, authority, deadline, what)
            if answer.status != 200:
                raise failure(answer.status, answer.headers, answer.body, what)
            return checked_manifest(answer.body, answer.headers, reference, what)

        return retrying(ask, repository.host, self._settings, deadline, f"reading {what}")

    def close(self) -> None:
        """Give back the connections. Closing twice is harmless."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _authority(self, repository: Repository, base_url: str) -> Authority:
        with self._guard:
            if repository not in self._authorities:
                self._authorities[repository] = Authority(repository, base_url, self._keychain)
            return self._authorities[repository]

    def _follow(self, url: str, base_url: str, authority: Authority, deadline: Deadline, what: str) -> Answer:
        for _ in range(MAX_REDIRECTS + 1):
            if same_origin(url, base_url):
                answer = self._authorized(url, authority, deadline, what)
            else:
                answer = self._get(url, MANIFEST_HEADERS, deadline)
            if answer.status not in REDIRECTS:
                return answer
            url = redirected(url, answer.headers.get("Location"), what)
        raise RegistryError(f"{what}: the registry redirects more than {MAX_REDIRECTS} times")

    def _authorized(self, url: str, authority: Authority, deadline: Deadline, what: str) -> Answer:
        path = read_url(url).path.removeprefix("/v2/").partition("/manifests/")[0]
        scopes = (scope(path, "pull"),)
        header = authority.header(scopes)
        answer = self._get(url, _with(header), deadline)
        if answer.status != 401:
            return answer

        def fetch(
            url: str, headers: Mapping[str, str], body: bytes | None
        ) -> tuple[int, Mapping[str, str], bytes]:
            token = self.client.request(url, headers, deadline, body=body)
            return token.status, token.headers, token.body

        challenge = answer.headers.get("WWW-Authenticate", "")
        return self._get(url, _with(authority.answer(challenge, scopes, header, fetch, what)), deadline)

    def _get(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer:
        return self.client.request(url, headers, deadline, limit=MAX_MANIFEST)

    def _through_proxy(
        self, repository: Repository, reference: Tag | Digest, deadline: Deadline
    ) -> Manifest | ImageIndex:
        from envbuild.oci.remote import RemoteRegistry

        remote = RemoteRegistry(repository, credentials=self._keychain, settings=self._settings)
        try:
            return remote.by(deadline).get_manifest(reference)
        finally:
            remote.close()


def probe(
    repository: Repository,
    reference: Tag | Digest,
    *,
    credentials: Credentials | Keychain | None = None,
    deadline: Deadline = NO_DEADLINE,
    settings: Settings | None = None,
) -> Manifest | ImageIndex:
    """One question, as :meth:`Prober.probe`; callers with more than one want to keep a :class:`Prober`."""
    with Prober(settings, credentials) as prober:
        return prober.probe(repository, reference, deadline)


def _with(header: str | None) -> Mapping[str, str]:
    return MANIFEST_HEADERS if header is None else {**MANIFEST_HEADERS, "Authorization": header}


def is_behind_proxy(host: str) -> bool:
    """Whether the environment sends requests for a host through a proxy."""
    if is_loopback(host) or not any(name.lower().endswith("_proxy") for name in os.environ):
        return False
    import urllib.request

    bypassed: bool = urllib.request.proxy_bypass(host)
    return bool({"http", "https", "all"} & urllib.request.getproxies().keys()) and not bypassed
