"""Registries that answer in other ways than the specification says, as they are reported to."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from envbuild.digest import Descriptor
from envbuild.errors import RegistryError, Unauthorized
from envbuild.oci.copy import copy_image
from envbuild.oci.manifest import OCI_LAYER_GZIP
from envbuild.oci.open import Settings
from envbuild.oci.registries import Registries
from envbuild.oci.registry import find_manifest, publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from oci_contract import put_image, read
from parts.fault_server import serving
from parts.relay import forbidding, passing_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.oci.registry import Registry
    from parts.fault_server import Asked
    from parts.registry_server import RegistryServer
    from parts.relay import Answer, Change

QUICK = Settings(connect_timeout=2, read_timeout=5, retries=2, patience=5.0, chunk=500_000)
CONTENT = bytes(range(256)) * 5000
BLOB = Descriptor.of(CONTENT, OCI_LAYER_GZIP)


@pytest.fixture(params=["thin", "full"])
def way(request: pytest.FixtureRequest) -> str:
    way: str = request.param
    return way


@contextmanager
def odd(server: RegistryServer, change: Change, way: str) -> Iterator[tuple[Registry, list[Asked]]]:
    """A repository of a registry whose answers are changed, and what it was asked."""
    with serving(passing_on(server.host, change)) as front:
        repository = Repository.parse(f"{front.host}/{server.repository().path}")
        registries = Registries(frozenset())
        registries._known = QUICK
        full = RemoteRegistry(repository, settings=QUICK)
        try:
            yield (full if way == "full" else registries.open(repository)), front.asked
        finally:
            full.close()
            registries.close()


def without(name: str) -> Change:
    """Answers lack a header."""

    def change(_: Asked, answer: Answer) -> Answer:
        status, headers, body = answer
        return status, {key: value for key, value in headers.items() if key.lower() != name.lower()}, body

    return change


def answered(method: str, part: str, status: int, body: bytes = b"") -> Change:
    """Requests of a kind are answered so."""

    def change(asked: Asked, answer: Answer) -> Answer:
        return (status, {}, body) if asked.method == method and part in asked.path else answer

    return change


def relative(_: Asked, answer: Answer) -> Answer:
    """``Location`` is a path with its query, as the specification allows."""
    status, headers, body = answer
    if "Location" in headers:
        parts = urlsplit(headers["Location"])
        headers = {**headers, "Location": f"{parts.path}?{parts.query}" if parts.query else parts.path}
    return status, headers, body


def without_chunks(asked: Asked, answer: Answer) -> Answer:
    """PATCH is not known."""
    return (405, {}, b"") if asked.method == "PATCH" else answer


def stuck_range(asked: Asked, answer: Answer) -> Answer:
    """``Range`` stays at the first piece, as that of ECR."""
    status, headers, body = answer
    return status, {**headers, "Range": "0-499999"} if asked.method in {"PATCH", "GET"} else headers, body


def zero_range(asked: Asked, answer: Answer) -> Answer:
    """``Range`` says nothing."""
    status, headers, body = answer
    return status, {**headers, "Range": "0-0"} if asked.method in {"PATCH", "GET"} else headers, body


ODD: dict[str, Change] = {
    "403 for what is missing": lambda asked, answer: (
        forbidding(asked, answer) if asked.method == "HEAD" else answer
    ),
    "no Docker-Content-Digest": without("Docker-Content-Digest"),
    "no Content-Type": without("Content-Type"),
    "no Range": without("Range"),
    "Range of the first piece": stuck_range,
    "Range of zero": zero_range,
    "relative Location": relative,
    "no HEAD": answered("HEAD", "/blobs/", 405),
    "no PATCH": without_chunks,
    "mount refused with 400": answered("POST", "mount=", 400),
    "mount refused with 403": answered("POST", "mount=", 403),
    "mount refused with 405": answered("POST", "mount=", 405),
    "referrers refused with 406": answered("GET", "/referrers/", 406),
    "referrers answered with a page": answered("GET", "/referrers/", 200, b"<html></html>"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_image_goes_up_and_comes_down(registry: RegistryServer, name: str, way: str) -> None:
    with odd(registry, ODD[name], way) as (target, _):
        assert target.put_blob(BLOB, lambda: io.BytesIO(CONTENT)) is True
        assert target.put_blob(BLOB, lambda: io.BytesIO(CONTENT)) is False
        assert read(target, BLOB) == CONTENT
        assert target.has_blob(BLOB.digest)
        manifest = put_image(target, "image")
        assert publish(target, manifest, Tag("v1")) == manifest
        assert find_manifest(target, Tag("v1")) == manifest
        assert find_manifest(target, Tag("v2")) is None
        assert target.referrers(manifest.descriptor.digest) is None
        other = Repository(target.repository.host, f"{target.repository.path}/copy")
        copied = RemoteRegistry(other, settings=QUICK)
        copy_image(target, copied, manifest)
        assert copied.get_manifest(manifest.descriptor.digest) == manifest
        copied.close()


def test_requests_that_are_too_many_are_slowed_down(registry: RegistryServer, way: str) -> None:
    """429 without ``Retry-After``, a few times in a row."""
    refused = iter([True, True])

    def busy(asked: Asked, answer: Answer) -> Answer:
        return (429, {}, b"") if "/manifests/" in asked.path and next(refused, False) else answer

    with odd(registry, busy, way) as (target, asked):
        assert find_manifest(target, Tag("none")) is None
        assert len(asked) == 3


def test_who_may_not_write_is_told_so(registry: RegistryServer, way: str) -> None:
    def read_only(asked: Asked, answer: Answer) -> Answer:
        return (403, {}, b"") if asked.method != "GET" else answer

    with odd(registry, read_only, way) as (target, _), pytest.raises(Unauthorized, match="403"):
        target.put_blob(BLOB, lambda: io.BytesIO(CONTENT))


def test_an_upload_without_an_address_is_an_error(registry: RegistryServer, way: str) -> None:
    with (
        odd(registry, without("Location"), way) as (target, _),
        pytest.raises(RegistryError, match="without a Location"),
    ):
        target.put_blob(BLOB, lambda: io.BytesIO(CONTENT))


def test_pieces_are_as_large_as_the_registry_wants(registry: RegistryServer) -> None:
    def coarse(asked: Asked, answer: Answer) -> Answer:
        status, headers, body = answer
        return (
            status,
            {**headers, "OCI-Chunk-Min-Length": "1000000"} if asked.method == "POST" else headers,
            body,
        )

    with odd(registry, coarse, "full") as (target, asked):
        target.put_blob(BLOB, lambda: io.BytesIO(CONTENT))
        assert [each.method for each in asked] == ["HEAD", "POST", "PATCH", "PATCH", "PUT"]
        assert read(target, replace(BLOB)) == CONTENT
