"""The one door for compressed bytes that somebody else wrote: how much they become is bounded.

What may come out is bounded by what went in: an allowance, so many bytes for each compressed one, and an
absolute limit. The bounds are set far above what real archives need and stand in ``docs/trust.md``. The
deadline is looked at before each piece that is read and before each that is given out.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, cast

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.deadline import Deadline

PIECE: Final = 1 << 20
_PACKED: Final = 1 << 18
"""Compressed bytes are taken in pieces of this size at most: between two of them the deadline is seen."""
_XZ_MEMORY: Final = 128 << 20
_END: Final = 1 << 17
"""What stands at the end of a zip archive, with its comment, is shorter."""
_ENTRY: Final = 512
"""Bytes of an entry in a zip archive's directory, with its name, on average: far more than real ones have."""


class Source(Protocol):
    """Anything that bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        ...


class Codec(StrEnum):
    """How bytes are compressed."""

    PLAIN = "plain"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZ2 = "bz2"
    XZ = "xz"


_MAGIC: Final = (
    (b"\x1f\x8b", Codec.GZIP),
    (b"\x28\xb5\x2f\xfd", Codec.ZSTD),
    (b"BZh", Codec.BZ2),
    (b"\xfd7zXZ\x00", Codec.XZ),
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many bytes may come out.

    Attributes:
        free: Always allowed.
        ratio: Allowed for each compressed byte, beside that.
        most: Never more.
    """

    free: int
    ratio: int
    most: int

    def allowed(self, packed: int) -> int:
        """How many may come out of so many compressed ones."""
        return min(self.free + self.ratio * packed, self.most)


def codec_of(first: bytes) -> Codec:
    """The compression that the first bytes of a file tell of."""
    return next((codec for magic, codec in _MAGIC if first.startswith(magic)), Codec.PLAIN)


class Inflated:
    """Compressed bytes, read as what they hold.

    Attributes:
        size: How many came out so far.

    Args:
        source: The compressed bytes, up to the end of the stream.
        codec: How they are compressed; several members or frames in a row are one stream.
        bounds: How many bytes may come out.
        what: What they are, for messages.
        deadline: When to give up.
    """

    def __init__(
        self, source: Source, codec: Codec, bounds: Bounds, what: str, deadline: Deadline = NO_DEADLINE
    ) -> None:
        self._packed = _Packed(source, deadline, what)
        self._plain: Source = _decoder(self._packed, codec)
        self._codec = codec
        self._bounds = bounds
        self._what = what
        self.size = 0

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer only at the end.

        Raises:
            IntegrityError: They cannot be decompressed, or become too many.
            DeadlineExceeded: The time ran out.
        """
        import zstandard

        self._packed.check()
        try:
            content = self._plain.read(size)
        except (EOFError, OSError, ValueError, zlib.error, zstandard.ZstdError) as error:
            raise IntegrityError(f"{self._what} cannot be decompressed as {self._codec}: {error}") from None
        self.size += len(content)
        if self.size > (limit := self._bounds.allowed(self._packed.size)):
            raise IntegrityError(
                f"{self._what} unpacks to more than {limit} bytes, far more than its size allows",
                hint="look at where it comes from: it may be an attack on whoever unpacks it",
            )
        return content

    def __iter__(self) -> Iterator[bytes]:
        """What is left, in pieces of at most :data:`PIECE` bytes."""
        while content := self.read(PIECE):
            yield content


def open_zip(stream: IO[bytes], most: int, what: str) -> zipfile.ZipFile:
    """Open a zip archive whose directory is read only if it is no longer than honest ones are.

    Args:
        stream: The archive, seekable.
        most: How many members it may have.
        what: What it is, for messages.

    Raises:
        IntegrityError: It has more members.
        zipfile.BadZipFile: It is damaged.
    """
    directory = _Directory(stream, most, what)
    archive = zipfile.ZipFile(cast("IO[bytes]", directory))
    directory.is_open = True
    return archive


class _Directory:
    """A zip archive's stream, which holds the pieces that are read before it is open against a limit.

    ``zipfile`` reads the directory in one piece, whose size the archive claims, and makes an object of each
    entry before anybody can ask how many there are.
    """

    def __init__(self, stream: IO[bytes], most: int, what: str) -> None:
        self._stream = stream
        self._most = most
        self._what = what
        self.is_open = False
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, lambda: True

    def read(self, size: int = -1, /) -> bytes:
        if self.is_open:
            return self._stream.read(size)
        limit = _END + self._most * _ENTRY
        content = self._stream.read(limit + 1 if size < 0 else min(size, limit + 1))
        if len(content) > limit or content.count(b"PK\x01\x02") > self._most:
            raise IntegrityError(
                f"{self._what} has a zip directory of more than {self._most} members or {limit} bytes",
                hint="look at where it comes from: it may be an attack on whoever unpacks it",
            )
        return content


class _Packed(io.RawIOBase):
    """The compressed bytes, counted."""

    def __init__(self, source: Source, deadline: Deadline, what: str) -> None:
        super().__init__()
        self._source = source
        self._deadline = deadline
        self._doing = f"reading {what}"
        self.size = 0

    def check(self) -> None:
        self._deadline.check(self._doing)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        self._deadline.check(self._doing)
        content = self._source.read(_PACKED if size < 0 else min(size, _PACKED))
        self.size += len(content)
        return content

    def readinto(self, buffer: Any, /) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _decoder(packed: _Packed, codec: Codec) -> Any:
    if codec is Codec.ZSTD:
        import zstandard

        # Frames whose window is above 128 MiB are refused: a decoder may ask for no more memory.
        decompressor = zstandard.ZstdDecompressor()
        return decompressor.stream_reader(
            cast("IO[bytes]", packed), read_size=_PACKED, read_across_frames=True
        )
    if codec is Codec.GZIP:
        from isal import igzip

        return igzip.GzipFile(fileobj=packed, mode="rb")  # type: ignore[no-untyped-call]
    if codec is Codec.BZ2:
        import bz2

        return bz2.BZ2File(packed)
    if codec is Codec.XZ:
        return io.BufferedReader(_Xz(packed), PIECE)
    return io.BufferedReader(packed, PIECE)


class _Xz(io.RawIOBase):
    """Decompressed xz streams: as ``lzma.LZMAFile``, with a limit for the memory that they may ask for."""

    def __init__(self, packed: _Packed) -> None:
        super().__init__()
        self._packed = packed
        self._stream = _xz_stream()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        import lzma

        content = b""
        while not content:
            packed = b""
            if self._stream.eof:
                packed = (self._stream.unused_data or self._packed.read()).lstrip(b"\0")
                if not packed:
                    return 0
                self._stream = _xz_stream()
            elif self._stream.needs_input:
                packed = self._packed.read()
                if not packed:
                    raise EOFError("it ends in its middle")
            try:
                content = self._stream.decompress(packed, len(buffer))
            except lzma.LZMAError as error:
                raise ValueError(error) from None
        buffer[: len(content)] = content
        return len(content)


def _xz_stream() -> Any:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
