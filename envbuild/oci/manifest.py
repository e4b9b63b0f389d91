"""Image manifests and indexes. The raw bytes are kept: they are what the digest is over.

Source: OCI Image Specification 1.1 ("Image Manifest", "Image Index") and Docker's Image Manifest V2 Schema 2.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from envbuild.digest import Descriptor, Digest
from envbuild.errors import IntegrityError, SpecError
from envbuild.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"

MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
ACCEPT: Final = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX)
"""Without all four in ``Accept`` some registries answer with another document and another digest."""

MAX_MANIFEST: Final = 4 << 20
"""The largest manifest that is read, in bytes; the limit that registries are told to accept."""
_FIELDS: Final = frozenset(
    {"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations"}
)
_LOWER_FIELDS: Final = frozenset(name.lower() for name in _FIELDS)
_SIZES: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest: one config and layers from the lowest up.

    Attributes:
        raw: The bytes as they were read or written.
        media_type: The manifest's media type.
        config: The config's descriptor.
        layers: The layers' descriptors, lowest first.
        annotations: The manifest's annotations.
        subject: The manifest that this one refers to, or None.
        artifact_type: The artifact's type, or None for an image.
    """

    raw: bytes
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest itself."""
        return Descriptor.of(self.raw, self.media_type)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Every blob the manifest needs: config first, then each distinct layer."""
        return tuple({blob.digest: blob for blob in (self.config, *self.layers)}.values())

    @classmethod
    def build(
        cls,
        config: Descriptor,
        layers: tuple[Descriptor, ...],
        annotations: Mapping[str, str],
        *,
        media_type: str = OCI_MANIFEST,
        subject: Descriptor | None = None,
        artifact_type: str | None = None,
    ) -> Manifest:
        """Write a manifest; equal arguments give equal bytes."""
        document: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type}
        if artifact_type is not None:
            document["artifactType"] = artifact_type
        document["config"] = config.to_json()
        document["layers"] = [layer.to_json() for layer in layers]
        if subject is not None:
            document["subject"] = subject.to_json()
        if annotations:
            document["annotations"] = dict(sorted(annotations.items()))
        return cls(encode(document), media_type, config, layers, annotations, subject, artifact_type)


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """An image index: manifests of several platforms, or of whatever else.

    Attributes:
        raw: The bytes as they were read or written.
        media_type: The index's media type.
        manifests: The entries' descriptors.
        annotations: The index's annotations.
    """

    raw: bytes
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the index itself."""
        return Descriptor.of(self.raw, self.media_type)

    def for_platform(self, platform: Platform) -> Descriptor | None:
        """The entry that serves a platform best, or None: the one way in which an index is read.

        Of equal ones the first counts. What has no platform, or an unknown one as the attestations that stand
        beside images, serves none.
        """
        suited = [
            (level, -place, entry)
            for place, entry in enumerate(self.manifests)
            if entry.platform is not None and (level := platform.suits(entry.platform)) is not None
        ]
        return max(suited)[2] if suited else None

    @classmethod
    def build(
        cls,
        manifests: tuple[Descriptor, ...],
        annotations: Mapping[str, str],
        *,
        media_type: str = OCI_INDEX,
    ) -> ImageIndex:
        """Write an index; equal arguments give equal bytes."""
        document: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type}
        document["manifests"] = [entry.to_json() for entry in manifests]
        if annotations:
            document["annotations"] = dict(sorted(annotations.items()))
        return cls(encode(document), media_type, manifests, annotations)


def encode(document: Any) -> bytes:
    """The one way in which envbuild writes JSON that gets a digest: no blanks, UTF-8, order as given."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def is_manifest(raw: bytes) -> bool:
    """Whether the bytes mean to be a manifest or an index, good or bad."""
    try:
        document = read_json(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("schemaVersion") == 2


def parse_manifest(raw: bytes, media_type: str | None, what: str) -> Manifest | ImageIndex:
    """Parse a manifest or an index.

    Args:
        raw: The bytes as the registry or layout gave them; at most :data:`MAX_MANIFEST`.
        media_type: What the transport says they are, or None if it says nothing.
        what: The name of the manifest for messages.

    Raises:
        IntegrityError: The bytes are neither; or they could be read as both (CVE-2021-41190); or what they
            say they are is not what the transport says.
    """
    document = _load_object(raw, what)
    declared = document.get("mediaType")
    seen = _media_type(document, declared, media_type, what)
    annotations = _annotations(document, what)
    if seen in INDEX_TYPES:
        return ImageIndex(raw, seen, _descriptors(document.get("manifests"), what), annotations)
    subject = document.get("subject")
    artifact_type = document.get("artifactType")
    return Manifest(
        raw,
        seen,
        parse_descriptor(document.get("config"), what),
        _descriptors(document.get("layers"), what),
        annotations,
        None if subject is None else parse_descriptor(subject, what),
        artifact_type if isinstance(artifact_type, str) else None,
    )


def read_json(raw: bytes) -> Any:
    """JSON that all parsers read alike: UTF-8 in which no object has a name twice, and no NaN.

    Raises:
        ValueError: It is not.
        RecursionError: It is nested too deep.
    """
    # Of bytes, it would take UTF-16 and UTF-32 too.
    document = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_refuse)
    if b"\\u" in raw:
        encode(document)  # fails on half a surrogate pair, which no later writer could write
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are there once: of two, parsers choose as they like."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return document


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _load_object(raw: bytes, what: str) -> dict[str, Any]:
    if len(raw) > MAX_MANIFEST:
        raise IntegrityError(f"{what} has {len(raw)} bytes, at most {MAX_MANIFEST} are read")
    try:
        document = read_json(raw)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is not JSON in UTF-8: {error}") from None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise IntegrityError(f"{what} is not an image manifest of schema version 2")
    for name in document:
        # Engines are written in Go, whose parser takes "Layers" for "layers".
        if name not in _FIELDS and name.lower() in _LOWER_FIELDS:
            raise IntegrityError(f"{what} has a field {name!r}, which parsers read in two ways")
    return document


def _media_type(document: dict[str, Any], declared: Any, transport: str | None, what: str) -> str:
    if "manifests" in document and ("layers" in document or "config" in document):
        raise IntegrityError(f"{what} is both a manifest and an index")
    if declared is not None and not isinstance(declared, str):
        raise IntegrityError(f"{what} has a media type that is not a string")
    transport = (transport or "").partition(";")[0].strip().lower() or None
    if transport not in {*MANIFEST_TYPES, *INDEX_TYPES, None}:
        transport = None if declared is not None else transport
    if declared is not None and transport is not None and declared != transport:
        raise IntegrityError(f"{what} says it is {declared!r}, the registry says {transport!r}")
    seen = declared or transport or (OCI_INDEX if "manifests" in document else OCI_MANIFEST)
    if seen not in MANIFEST_TYPES | INDEX_TYPES:
        raise IntegrityError(f"{what} has media type {seen!r}, expected an image manifest or index")
    if (seen in INDEX_TYPES) != ("manifests" in document):
        raise IntegrityError(f"{what} is not what its media type {seen!r} says")
    return str(seen)


def _annotations(document: dict[str, Any], what: str) -> dict[str, str]:
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise IntegrityError(f"{what} has annotations that are not strings")
    return annotations


def _descriptors(entries: Any, what: str) -> tuple[Descriptor, ...]:
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise IntegrityError(f"{what} has something other than a list of descriptors")
    return tuple(parse_descriptor(entry, what) for entry in entries)


def parse_descriptor(entry: Any, what: str) -> Descriptor:
    """Parse a descriptor of ``what``; a ``urls`` field is ignored on purpose (CVE-2020-15157).

    Raises:
        IntegrityError: It lacks a media type, a sha256 digest or a size.
    """
    if not isinstance(entry, dict):
        raise IntegrityError(f"{what} has something other than a descriptor: {entry!r}")
    try:
        plain = _plain(entry.get("mediaType"), entry.get("digest"), entry.get("size"))
    except TypeError:
        raise IntegrityError(
            f"{what} has a descriptor without media type, digest or size: {entry!r}"
        ) from None
    except SpecError as error:
        raise IntegrityError(f"{what}: {error}") from None
    if len(entry) == 3:  # as nearly all are, and a hit reads a hundred of them
        return plain
    artifact_type = entry.get("artifactType")
    return Descriptor(
        plain.media_type,
        plain.digest,
        plain.size,
        _annotations(entry, what),
        _platform(entry.get("platform")),
        artifact_type if isinstance(artifact_type, str) else None,
    )


@functools.lru_cache(8192, typed=True)
def _plain(media_type: Any, digest: Any, size: Any) -> Descriptor:
    """Images share layers, and a resolver that is kept sees the same image again and again."""
    if not isinstance(media_type, str) or type(size) is not int or not isinstance(digest, str):
        raise TypeError
    if not 0 <= size < _SIZES:
        raise SpecError(f"a descriptor of {size:.3g} bytes")
    return Descriptor(media_type, Digest.parse(digest), size)


def _platform(entry: Any) -> Platform | None:
    if not isinstance(entry, dict):
        return None
    os, architecture, variant = (entry.get(name) for name in ("os", "architecture", "variant"))
    if not isinstance(os, str) or not isinstance(architecture, str):
        return None
    return Platform(os, architecture, variant if isinstance(variant, str) else None)
