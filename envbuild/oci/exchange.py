"""What is said to a registry about manifests, blobs and tags, request by request.

Source: OCI Distribution Specification 1.1 ("Pulling", "Pushing", "Content Discovery").
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlencode

from envbuild.errors import DeadlineExceeded, IntegrityError, RegistryError, SpecError, Unauthorized
from envbuild.oci.auth import scope
from envbuild.oci.manifest import MAX_MANIFEST, OCI_INDEX, ImageIndex, parse_manifest
from envbuild.oci.transport import (
    MANIFEST_HEADERS,
    MissingContent,
    Trouble,
    checked_manifest,
    failure,
    redirected,
    refused_manifest,
    same_origin,
)
from envbuild.oci.wire import call, translated
from envbuild.reference import Tag
from envbuild.url import UrlError, read_url

if TYPE_CHECKING:
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.shared import Lease
    from envbuild.oci.transport import Settings
    from envbuild.reference import Repository

_NEXT: Final = re.compile(r"<([^<>]*)>\s*;[^<>,]*?\brel\s*=\s*[\"']?next\b(?!-)", re.IGNORECASE)
"""The address of the next page in a ``Link`` header; source: RFC 8288, section 3."""
_SKIP: Final = 1 << 17
_NO_API: Final = frozenset({400, 404, 405, 406, 501})
_NO_HEAD: Final = frozenset({405, 501})
_NO_MOUNT: Final = frozenset({202, 400, 404, 405, 415, 422, 501})
"""Answers to a mount that mean only that the bytes must be sent; Harbor says 400 (its issue 22078)."""
Response = Any
"""A response of requests, which only :mod:`envbuild.oci.remote` may import."""


class Host(Protocol):
    """Sends requests for one call to one repository."""

    hostname: str | None
    container: Any
    headers: dict[str, str]
    base_url: str
    scopes: tuple[str, ...]
    settings: Settings
    deadline: Deadline
    lease: Lease

    def at(self, address: str) -> str:
        """The URL of an address that oras-py's container made."""
        ...

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: dict[str, str] | None = None,
        json: None = None,
        stream: bool = False,
    ) -> Response:
        """One request with its redirects."""
        ...

    def get_blob(self, container: Any, digest: str, stream: bool = False, head: bool = False) -> Response:
        """Ask for a blob."""
        ...

    def body(self, response: Response, limit: int = ...) -> bytes:
        """At most ``limit`` + 1 bytes of a body."""
        ...


def read_manifest(host: Host, reference: Tag | Digest, what: str) -> Manifest | ImageIndex:
    """The manifest that a tag or digest names."""
    response = host.do_request(_manifest_url(host, reference), headers=dict(MANIFEST_HEADERS), stream=True)
    raw = host.body(response, MAX_MANIFEST)
    if response.status_code != 200:
        raise failure(response.status_code, response.headers, raw, what)
    return checked_manifest(raw, response.headers, reference, what)


def write_manifest(host: Host, reference: Tag | Digest, manifest: Manifest | ImageIndex, what: str) -> None:
    """Store a manifest under a tag or its digest, its bytes as they are."""
    headers = {"Content-Type": manifest.media_type}
    response = host.do_request(_manifest_url(host, reference), "PUT", manifest.raw, headers, stream=True)
    body = host.body(response)
    if response.status_code not in {200, 201, 202}:
        error = refused_manifest(response.status_code, response.headers, body, what)
        if isinstance(error, MissingContent) and _has_all(host, error.missing):
            # Distribution says so for a moment while another client puts the same blob.
            raise Trouble(f"{what}: the registry contradicts itself: {error}")
        raise error
    seen = response.headers.get("Docker-Content-Digest")
    if seen not in {None, str(manifest.descriptor.digest)}:
        raise IntegrityError(f"{what} was stored as {seen!r}, expected {manifest.descriptor.digest}")


def has_blob(host: Host, digest: Digest, what: str) -> bool:
    """Whether the blob is in the repository."""
    response = host.get_blob(host.container, str(digest), head=True)
    if response.status_code in _NO_HEAD:
        host.headers = {"Range": "bytes=0-0"}
        response = host.get_blob(host.container, str(digest), stream=True)
        response.close()
    if response.status_code in {200, 206, 404}:
        return bool(response.status_code != 404)
    raise failure(response.status_code, response.headers, b"", what)


def shows_blob(host: Host, digest: Digest, what: str) -> bool:
    """Whether the repository says that it has a blob; one that refuses to say so may be sent the blob."""
    try:
        return has_blob(host, digest, what)
    except Unauthorized:
        return False


def _has_all(host: Host, digests: tuple[Digest, ...]) -> bool:
    return bool(digests) and all(shows_blob(host, digest, f"blob {digest}") for digest in digests)


def delete_manifest(host: Host, digest: Digest, what: str) -> None:
    """Delete a manifest and every tag on it."""
    response = host.do_request(_manifest_url(host, digest), "DELETE", stream=True)
    body = host.body(response)
    if response.status_code not in {200, 202, 204}:
        raise failure(response.status_code, response.headers, body, what)


def _manifest_url(host: Host, reference: Tag | Digest) -> str:
    return host.at(host.container.manifest_url(str(reference)))


def tags_page(host: Host, url: str, what: str) -> tuple[list[Tag], str | None]:
    """The tags of one page, and the URL of the next page or None; nothing where there is no repository.

    Raises:
        IntegrityError: It is no such page, or the next one is on another host.
    """
    response = host.do_request(url, stream=True)
    body = host.body(response, MAX_MANIFEST)
    if response.status_code == 404:
        return [], None
    if response.status_code != 200:
        raise failure(response.status_code, response.headers, body, what)
    return _tags(body, what), _next(host, url, response, what)


def _tags(body: bytes, what: str) -> list[Tag]:
    try:
        names = json.loads(body)["tags"] or []
        return [Tag(name) for name in names]
    except (ValueError, KeyError, TypeError, RecursionError, SpecError) as error:
        raise IntegrityError(f"{what} are not a list of tags: {error}") from None


def _next(host: Host, url: str, response: Response, what: str) -> str | None:
    found = _NEXT.search(response.headers.get("Link") or "")
    link = found[1].strip() if found is not None else ""
    if not link:
        return None
    try:
        following = str(read_url(url).join(link))
    except UrlError as error:
        raise IntegrityError(f"{what} go on at {link[:200]!r}, which is no URL: {error}") from None
    if not same_origin(following, host.base_url) or following == url:
        raise IntegrityError(f"{what} go on at {link[:200]!r}, which is not on the same registry")
    return following


def referrers_page(host: Host, url: str, what: str) -> tuple[tuple[Descriptor, ...] | None, str | None]:
    """What one page of the referrers API lists, and the next page's URL; None where there is no API.

    The API is known by an answer that is an image index: some registries without it answer 200 to all.
    """
    response = host.do_request(url, headers={"Accept": OCI_INDEX}, stream=True)
    body = host.body(response, MAX_MANIFEST)
    if response.status_code in _NO_API:
        return None, None
    if response.status_code != 200:
        raise failure(response.status_code, response.headers, body, what)
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if kind != OCI_INDEX:
        return None, None
    listed = parse_manifest(body, kind, what)
    return listed.manifests if isinstance(listed, ImageIndex) else (), _next(host, url, response, what)


def mount(host: Host, descriptor: Descriptor, source: Repository, what: str) -> bool:
    """Take a blob over from another repository; False if the registry rather wants its bytes."""
    host.scopes += (scope(source.path, "pull"),)
    query = urlencode({"mount": str(descriptor.digest), "from": source.path})
    url = f"{host.at(host.container.upload_blob_url())}?{query}"
    response = host.do_request(url, "POST", b"", stream=True)
    body = host.body(response)
    if response.status_code == 202 and response.headers.get("Location"):
        cancel(host, location_of(url, response, what))
    if response.status_code == 201 or response.status_code in _NO_MOUNT:
        return bool(response.status_code == 201)
    raise failure(response.status_code, response.headers, body, what)


def get_blob(host: Host, digest: Digest, start: int, what: str) -> Response:
    """The blob from a byte on."""
    host.headers = {"Range": f"bytes={start}-"} if start else {}
    response: Response = host.get_blob(host.container, str(digest), stream=True)
    resumed = response.status_code == 206 and start > 0
    if resumed and response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        return response
    if response.status_code != 200:
        raise failure(response.status_code, response.headers, host.body(response), what)
    with call(host.settings, host.deadline), translated(str(host.hostname), host.deadline):
        while start > 0 and (skipped := response.raw.read(min(start, _SKIP))):
            start -= len(skipped)
    return response


def location_of(url: str, response: Response, what: str) -> str:
    """Where an upload goes on.

    Raises:
        RegistryError: The registry does not say, or names no place on the web.
    """
    if not response.headers.get("Location"):
        raise RegistryError(
            f"{what}: the registry answered {response.status_code} without a Location to go on at",
            hint="what stands in front of the registry may drop the header",
        )
    return redirected(url, response.headers.get("Location"), what)


def cancel(host: Host, location: str) -> None:
    """Give an upload up; what a registry does not clean up now it cleans up later."""
    with contextlib.suppress(RegistryError, DeadlineExceeded):
        host.body(host.do_request(location, "DELETE", stream=True))
