"""Content digests, descriptors and readers that verify while they read.

Source: OCI Image Specification 1.1, "Content Descriptors".
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any, Self

from envbuild.errors import IntegrityError, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.platform import Platform

_HEX = re.compile(r"[0-9a-f]{64}")
_OTHER_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9A-Fa-f]{32,}")
"""A digest of any algorithm, as distribution's grammar has it."""
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 digest. Most callers want :meth:`parse` or :meth:`of`; the constructor checks the digits.

    Attributes:
        hex: 64 lower-case hexadecimal digits.
    """

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise SpecError(f"{self.hex!r} is not a sha256: expected 64 lower-case hexadecimal digits")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``sha256:<64 hex>``; any other algorithm is refused.

        Raises:
            SpecError: The text is not a sha256 digest.
        """
        algorithm, colon, digits = text.partition(":")
        if _OTHER_DIGEST.fullmatch(text) and algorithm != "sha256":
            raise SpecError(f"{text!r} is a digest of {algorithm}, and only sha256 is supported")
        if not colon or algorithm != "sha256":
            raise SpecError(f"{text!r} is not a digest: expected 'sha256:' and 64 hexadecimal digits")
        return cls(digits)

    @classmethod
    def of(cls, content: bytes | bytearray | memoryview) -> Self:
        """The digest of some bytes."""
        return cls(hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        """The first 12 digits, for people's eyes only."""
        return self.hex[:12]

    def verify(self, content: bytes, what: str) -> bytes:
        """Return ``content`` if this is its digest.

        Raises:
            IntegrityError: It is not.
        """
        if (seen := Digest.of(content)) != self:
            raise IntegrityError(f"{what} has digest {seen}, expected {self}")
        return content


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says of a blob or of another manifest.

    Attributes:
        media_type: The media type of the content.
        digest: The content's digest.
        size: The content's size in bytes.
        annotations: Annotations of the descriptor itself.
        platform: The platform, in the entries of an image index.
        artifact_type: The type of an artifact, in the entries of a referrers list.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str | None = None

    @classmethod
    def of(cls, content: bytes, media_type: str) -> Self:
        """The descriptor of some bytes."""
        return cls(media_type, Digest.of(content), len(content))

    def annotated(self, **annotations: str) -> Self:
        """The same descriptor with more annotations."""
        return replace(self, annotations={**self.annotations, **annotations})

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the specification; empty fields are left out."""
        entry: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type is not None:
            entry["artifactType"] = self.artifact_type
        if self.platform is not None:
            entry["platform"] = self.platform.to_json()
        if self.annotations:
            entry["annotations"] = dict(self.annotations)
        return entry


class VerifyingReader(io.RawIOBase):
    """Reads a stream of known digest and size; raises on the read that shows the stream is not that.

    The last bytes are given out only after the digest was compared, so a caller that reads to the end and
    saw no error has read the right bytes. At most ``descriptor.size`` bytes are ever given out.
    """

    def __init__(self, stream: IO[bytes], descriptor: Descriptor, what: str) -> None:
        super().__init__()
        self._stream = stream
        self._descriptor = descriptor
        self._what = what
        self._hash = hashlib.sha256()
        self._seen = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer``; 0 at the verified end.

        Raises:
            IntegrityError: The stream is shorter, longer or other than the descriptor says.
        """
        content = self._stream.read(len(buffer))
        self._seen += len(content)
        self._hash.update(content)
        size = self._descriptor.size
        if self._seen > size or (not content and self._seen < size and len(buffer)):
            raise IntegrityError(f"{self._what} gave {self._seen} bytes, expected {size}")
        if content and self._seen == size:
            self._finish()
        if not content and size == 0:
            self._finish()
        buffer[: len(content)] = content
        return len(content)

    def _finish(self) -> None:
        if self._stream.read(1):
            raise IntegrityError(f"{self._what} gave more than the {self._descriptor.size} bytes expected")
        if self._hash.hexdigest() != self._descriptor.digest.hex:
            raise IntegrityError(
                f"{self._what} has digest sha256:{self._hash.hexdigest()}, expected {self._descriptor.digest}"
            )

    def close(self) -> None:
        """Close this reader and the stream under it."""
        if not self.closed:
            self._stream.close()
        super().close()
