"""The image that an environment is put on: a base from a registry or layout, or nothing at all."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from functools import cached_property, partial
from typing import IO, TYPE_CHECKING, Any, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import CHUNK, Descriptor, Digest
from envbuild.errors import BuildError, IntegrityError, SpecError
from envbuild.inflate import Bounds, Codec, Inflated
from envbuild.oci.manifest import OCI_CONFIG, ImageIndex, Manifest, encode
from envbuild.oci.registry import reread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envbuild.deadline import Deadline
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.reference import ImageReference, Tag

MAX_CONFIG: Final = 8 << 20
EPOCH: Final = "1970-01-01T00:00:00Z"
LAYER_BOUNDS: Final = Bounds(free=1 << 30, ratio=1100, most=256 << 30)
"""What a layer may unpack to. Gzip gives at most 1,032 times as much as it takes: of gzip all is read."""
_GLIBC: Final = re.compile(rb"GNU C Library [^\n]{0,80}release version (\d{1,4}\.\d{1,4})")
_OVERLAP: Final = 256
_NOT_FOUND: Final = "none"


@dataclass(frozen=True)
class BaseImage:
    """A base: its manifest and config, and where its layers are.

    Attributes:
        reference: The base's reference; None for ``scratch``.
        manifest: The platform's manifest; one without layers for ``scratch``.
        raw_config: The config's bytes.
        registry: Where the layers can be read; None for ``scratch``.
    """

    reference: ImageReference | None
    manifest: Manifest
    raw_config: bytes
    registry: Registry | None

    @classmethod
    def scratch(cls, platform: Platform) -> BaseImage:
        """A base with nothing in it."""
        config = {**platform.to_json(), "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
        manifest = Manifest.build(Descriptor.of(encode(config), OCI_CONFIG), (), {})
        return cls(None, manifest, encode(config), None)

    @classmethod
    def read(cls, registry: Registry, reference: Tag | Digest, platform: Platform) -> BaseImage:
        """Read a base from where it is; an index gives the manifest of the platform.

        Raises:
            NotFound: There is no such image.
            SpecError: The image is not for this platform.
            IntegrityError: Bytes are not what their digest says.
        """
        return cls.of(registry, registry.get_manifest(reference), platform)

    @classmethod
    def of(cls, registry: Registry, manifest: Manifest | ImageIndex, platform: Platform) -> BaseImage:
        """The same from a manifest or an index that was read."""
        if isinstance(manifest, ImageIndex):
            manifest = _choose(registry, manifest, platform)
        with registry.open_blob(manifest.config) as stream:
            content = read_all(stream, MAX_CONFIG, f"the config of {registry.repository}")
        base = cls(registry.repository.at(manifest.descriptor.digest), manifest, content, registry)
        base.check(platform)
        return base

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config document; not to be changed."""
        document = json.loads(self.raw_config)
        if not isinstance(document, dict):
            raise TypeError("the config is not an object")
        return document

    def check(self, platform: Platform) -> None:
        """Refuse what is no image, or one for another platform.

        Raises:
            SpecError: It is for another platform.
            IntegrityError: The config is not that of an image, or not of this one.
        """
        try:
            layers = len(self.diff_ids)
            seen = (self.config.get("os"), self.config.get("architecture"))
            _require_types(self.config)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SpecError):
            raise IntegrityError(f"{self.reference} has a config that is not an image's") from None
        if layers != len(self.manifest.layers):
            raise IntegrityError(
                f"{self.reference} has {len(self.manifest.layers)} layers and {layers} diff ids"
            )
        if seen != (platform.os, platform.architecture):
            raise SpecError(
                f"the base {self.reference} is for {seen[0]}/{seen[1]}, not for {platform}",
                hint="choose another base or --platform",
            )

    @property
    def digest(self) -> Digest | None:
        """The digest of the platform's manifest; None for ``scratch``."""
        return self.reference.digest if self.reference else None

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """The digests of the layers' tars, lowest first."""
        return tuple(Digest.parse(text) for text in self.config["rootfs"]["diff_ids"])

    def open_layer(self, layer: Descriptor) -> IO[bytes]:
        """The verified bytes of one of the base's layers, compressed as they are stored."""
        if self.registry is None:
            raise BuildError("a scratch base has no layers")
        return self.registry.open_blob(layer)


def _require_types(config: dict[str, Any]) -> None:
    """Refuse a config of which no image can be made: members of other types, texts that are no UTF-8.

    Raises:
        TypeError: It has such members.
        ValueError: It has such texts.
    """
    encode(config)
    runtime = config.get("config") or {}
    variables, labels = runtime.get("Env") or [], runtime.get("Labels") or {}
    texts = [config.get("created") or "", *variables, *labels.values()]
    lists = (variables, config.get("history") or [])
    if not all(isinstance(each, list) for each in lists) or not all(isinstance(each, str) for each in texts):
        raise TypeError("the config's members have other types")


def _choose(registry: Registry, index: ImageIndex, platform: Platform) -> Manifest:
    entry = index.for_platform(platform)
    if entry is None:
        offered = sorted({str(entry.platform) for entry in index.manifests if entry.platform})
        raise SpecError(
            f"the base {registry.repository.at(index.descriptor.digest)} has no image for {platform}",
            hint=f"it has {', '.join(offered) or 'no platforms'}: choose another base or --platform",
        )
    manifest = registry.get_manifest(entry.digest)
    if not isinstance(manifest, Manifest):
        raise IntegrityError(f"{registry.repository}@{entry.digest} is an index inside an index")
    return manifest


def read_all(stream: IO[bytes], at_most: int, what: str) -> bytes:
    """Read a small stream to its verified end.

    Raises:
        IntegrityError: It has more bytes than that.
    """
    content = io.BytesIO()
    while chunk := stream.read(CHUNK):
        content.write(chunk)
        if content.tell() > at_most:
            raise IntegrityError(f"{what} has more than {at_most} bytes")
    return content.getvalue()


def glibc_version(
    base: BaseImage,
    remembered: Callable[[str], str | None],
    remember: Callable[[str, str], None],
    deadline: Deadline,
) -> str | None:
    """The version of the base's glibc as ``2.36``, or None where there is none.

    It is read from the library itself, which names its release in one line of text. Layers are searched from
    the lowest up and the first answer holds: distributions do not change the release within one image. What
    was found is remembered by the layer's digest; a layer is read to its verified end before it is believed.
    """
    for layer in base.manifest.layers:
        known = remembered(glibc_fact(layer, None)[0])
        if known is None:
            name, known = glibc_fact(layer, reread(partial(_glibc_of, base, layer, deadline)))
            remember(name, known)
        if known != _NOT_FOUND:
            return known
    return None


def _glibc_of(base: BaseImage, layer: Descriptor, deadline: Deadline) -> str | None:
    with base.open_layer(layer) as stream:
        try:
            return _find_glibc(decompressed(stream, layer.media_type, deadline))
        finally:
            finish(stream, deadline)


def finish(stream: IO[bytes], deadline: Deadline) -> None:
    """Read a layer to its end, which tells whether its bytes are those of its digest."""
    while stream.read(CHUNK):
        deadline.check("reading the base's layers")


def _find_glibc(chunks: Iterable[bytes]) -> str | None:
    search = GlibcSearch()
    for chunk in chunks:
        if search.sees(chunk):
            break
    return search.found


class GlibcSearch:
    """Looks for glibc's version in a layer's tar that passes by in chunks.

    Attributes:
        found: The version, or None as long as it was not seen.
    """

    def __init__(self) -> None:
        self.found: str | None = None
        self._tail = b""

    def sees(self, chunk: bytes) -> bool:
        """Take in the next chunk; whether the version is known now."""
        if self.found is None:
            window = self._tail + chunk
            if found := _GLIBC.search(window):
                self.found = found[1].decode()
            self._tail = window[-_OVERLAP:]
        return self.found is not None


def glibc_fact(layer: Descriptor, found: str | None) -> tuple[str, str]:
    """Under which name, and how, it is remembered what a layer tells of glibc.

    How a blob is compressed is said by the manifest that names it, which may be anybody's and say it wrong.
    """
    return f"glibc {layer.digest} {_codec(layer.media_type)}", found or _NOT_FOUND


def decompressed(stream: IO[bytes], media_type: str, deadline: Deadline = NO_DEADLINE) -> Inflated:
    """A layer's tar, whatever its compression.

    Args:
        stream: The layer's bytes; read them to their end to have them verified.
        media_type: Says how they are compressed.
        deadline: When to give up.

    Returns:
        What can be read, or gone through in chunks. It raises IntegrityError where the bytes are not what the
        media type says, or become too many.
    """
    return Inflated(stream, _codec(media_type), LAYER_BOUNDS, f"a layer of type {media_type}", deadline)


def _codec(media_type: str) -> Codec:
    if media_type.endswith("zstd"):
        return Codec.ZSTD
    return Codec.GZIP if media_type.endswith("gzip") else Codec.PLAIN
