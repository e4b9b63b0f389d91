"""A reproducible image layer of what a package installs.

Equal files give equal bytes on every machine, whatever its number of cores: the archive is cut into blocks
of one size, and each block is compressed alone.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Self

import rfc8785

from envbuild.conda.gate import Gate
from envbuild.conda.link import FIXED_TIME, link
from envbuild.conda.package import Package
from envbuild.conda.pyc import NO_PYC
from envbuild.conda.tar import BLOCK, END, Kind, parents, write_header
from envbuild.digest import Descriptor, Digest
from envbuild.errors import BuildError, IntegrityError
from envbuild.oci.manifest import OCI_LAYER_GZIP, OCI_LAYER_ZSTD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Executor, Future

    from envbuild.conda.link import LinkedFile, LinkTarget
    from envbuild.lock import PackageRecord

LAYER_FORMAT: Final = 1
"""The version of the layer's form: raised by whatever changes the bytes of an equal package's layer."""

_AHEAD: Final = 8
"""How many blocks may be compressed or wait for it at the same time."""

_HASH: Final = 8


@dataclass(frozen=True, slots=True)
class Compression:
    """How a layer is compressed. Most callers want :meth:`of`.

    Attributes:
        name: ``gzip`` or ``zstd``.
        level: The compressor's level.
        version: The compressor and its version: another one may write other bytes.
        media_type: The layer's media type.
        block: How many bytes are compressed at a time.
    """

    name: Literal["gzip", "zstd"]
    level: int
    version: str
    media_type: str
    block: int

    @classmethod
    def of(cls, name: Literal["gzip", "zstd"]) -> Self:
        """``gzip``, which everyone reads, or ``zstd``, which is smaller and not read by old engines."""
        if name == "zstd":
            import zstandard

            library = ".".join(map(str, zstandard.ZSTD_VERSION))
            return cls("zstd", 3, f"libzstd {library}", OCI_LAYER_ZSTD, 4 << 20)
        import isal

        return cls("gzip", 2, f"isa-l {isal.ISAL_VERSION}", OCI_LAYER_GZIP, 1 << 20)

    def compress(self, block: bytes | bytearray | memoryview) -> bytes:
        """One block as a whole gzip member or zstd frame."""
        if self.name == "zstd":
            import zstandard

            return zstandard.ZstdCompressor(level=self.level).compress(block)
        from isal import igzip_lib

        return bytes(igzip_lib.compress(block, level=self.level, flag=igzip_lib.COMP_GZIP))

    def to_json(self) -> dict[str, Any]:
        """What the layer key says of it."""
        return {"name": self.name, "level": self.level, "version": self.version, "block": self.block}


@dataclass(frozen=True, slots=True)
class PathHashes:
    """The paths of a layer as 8-byte hashes, to find layers that carry one path.

    Attributes:
        files: Sorted hashes of the paths of files and links, one after the other.
        folders: The same of folders, without the prefix and what is above it.
    """

    files: bytes = b""
    folders: bytes = b""

    @classmethod
    def of(cls, files: Iterable[str], folders: Iterable[str]) -> Self:
        """The hashes of paths relative to the prefix."""
        return cls(_hashes(files), _hashes(folders))


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer that was written.

    Attributes:
        descriptor: The compressed layer's media type, digest and size.
        diff_id: The digest of the archive in it.
        raw_size: The archive's size in bytes.
        files_count: How many files and links it has.
        path_hashes: The paths in it.
    """

    descriptor: Descriptor
    diff_id: Digest
    raw_size: int
    files_count: int
    path_hashes: PathHashes


def layer_key(record: PackageRecord, target: LinkTarget, compression: Compression) -> str:
    """The name, 64 hex digits, of the layer that a package becomes: known before the package is fetched.

    Raises:
        BuildError: It is a Python package, and the target has no python.
    """
    form: dict[str, Any] = {
        "format": LAYER_FORMAT,
        "prefix": target.prefix,
        "compression": compression.to_json(),
        "sha256": record.sha256.hex,
        "url": record.url,
    }
    if record.noarch == "python" and target.python is None:
        raise BuildError(
            f"{record} is a Python package, and the environment has no python",
            hint="add python to the dependencies",
        )
    if record.may_be_python and target.python is not None:
        version, site_packages = target.python.version, target.python.site_packages
        pyc = NO_PYC if target.pyc is None else target.pyc.mode
        form["python"] = {"version": version, "site_packages": site_packages, "pyc": pyc}
    return hashlib.sha256(b"envbuild/layer/v1\x00" + rfc8785.dumps(form)).hexdigest()


def make_layer(
    record: PackageRecord,
    source: IO[bytes],
    target: LinkTarget,
    compression: Compression,
    out: IO[bytes],
    *,
    pool: Executor | None = None,
) -> WrittenLayer:
    """Turn a package into its layer.

    Args:
        record: What the lock says of the package.
        source: The verified package, seekable.
        target: Where it is installed.
        compression: How the layer is compressed.
        out: Where the layer is written to.
        pool: Threads that compress; None compresses in the caller's own. The bytes are the same.

    Raises:
        BuildError: The package cannot be installed without running a script, or has no room for the prefix.
        IntegrityError: The package is not what the record says, is damaged, or hostile.
    """
    package = Package.open(source, str(record))
    return write_layer(link(package, record, target), out, compression, prefix=target.prefix, pool=pool)


def write_layer(
    files: Iterable[LinkedFile],
    out: IO[bytes],
    compression: Compression,
    *,
    prefix: str = "/opt/env",
    pool: Executor | None = None,
) -> WrittenLayer:
    """Write files as a layer, in the order in which they come; folders stand before what is in them.

    Args:
        files: The files, with paths relative to the prefix.
        out: Where the layer is written to.
        compression: How it is compressed.
        prefix: The prefix in the image.
        pool: Threads that compress; None compresses in the caller's own. The bytes are the same.

    Raises:
        IntegrityError: A file has another size than was said, or is refused by the gate.
    """
    gate = Gate(prefix.strip("/"))
    descriptor, diff_id, raw_size = compress(_archive(files, gate), out, compression, pool)
    hashes = PathHashes.of(gate.files, gate.folders)
    return WrittenLayer(descriptor, diff_id, raw_size, len(gate.files), hashes)


def compress(
    chunks: Iterable[bytes], out: IO[bytes], compression: Compression, pool: Executor | None = None
) -> tuple[Descriptor, Digest, int]:
    """Compress an archive; however it is cut into chunks, the bytes are the same.

    Args:
        chunks: The archive.
        out: Where the layer is written to.
        compression: How it is compressed.
        pool: Threads that compress; None compresses in the caller's own. The bytes are the same.

    Returns:
        The layer's descriptor, the archive's digest (the diff id) and its size in bytes.
    """
    blocks = _Blocks(out, compression, pool)
    try:
        for chunk in chunks:
            blocks.write(chunk)
        return blocks.finish()
    finally:
        blocks.abandon()


def _archive(files: Iterable[LinkedFile], gate: Gate) -> Iterator[bytes]:
    """The tar archive of what the gate admits, piece by piece."""
    for path in (*parents(gate.top), gate.top):
        yield _folder(path)
    for file in files:
        for folder in gate.admit(file):
            yield _folder(f"{gate.top}/{folder}")
        if file.kind is not Kind.DIRECTORY:
            yield from _file(file, gate.top)
    yield END


def _folder(path: str) -> bytes:
    return write_header(f"{path}/", Kind.DIRECTORY, mode=0o755, mtime=FIXED_TIME)


def _file(file: LinkedFile, top: str) -> Iterator[bytes]:
    target = f"{top}/{file.target}" if file.kind is Kind.HARDLINK else file.target
    path = f"{top}/{file.path}"
    yield write_header(path, file.kind, mode=file.mode, mtime=file.mtime, size=file.size, target=target)
    written = 0
    for chunk in file.chunks:
        written += len(chunk)
        yield chunk
    if written != file.size:
        raise IntegrityError(f"{path} has {written} bytes, expected {file.size}")
    if padding := -written % BLOCK:
        yield bytes(padding)


class _Blocks:
    """Cuts an archive into blocks, compresses them, maybe in threads, and writes them in order."""

    def __init__(self, out: IO[bytes], compression: Compression, pool: Executor | None) -> None:
        self._out = out
        self._compression = compression
        self._pool = pool
        self._block = bytearray(compression.block)
        self._filled = 0
        self._raw = hashlib.sha256()
        self._raw_size = 0
        self._packed = hashlib.sha256()
        self._packed_size = 0
        self._ahead: deque[Future[bytes]] = deque()

    def write(self, content: bytes) -> None:
        """Take what comes next in the archive."""
        size, rest = len(self._block), memoryview(content)
        while rest:
            taken = rest[: size - self._filled]
            self._block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rest = rest[len(taken) :]
            if self._filled == size:
                self._pack(self._block)
                self._block, self._filled = bytearray(size), 0

    def finish(self) -> tuple[Descriptor, Digest, int]:
        """Write what is left; the layer's descriptor, the archive's digest and size."""
        if self._filled:
            self._pack(memoryview(self._block)[: self._filled])
            self._filled = 0
        while self._ahead:
            self._emit(self._ahead.popleft().result())
        digest = Digest(self._packed.hexdigest())
        descriptor = Descriptor(self._compression.media_type, digest, self._packed_size)
        return descriptor, Digest(self._raw.hexdigest()), self._raw_size

    def abandon(self) -> None:
        """Give up what has not been compressed yet."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _pack(self, block: bytearray | memoryview) -> None:
        if self._pool is None:
            self._hash(block)
            self._emit(self._compression.compress(block))
            return
        if len(self._ahead) >= _AHEAD:
            self._emit(self._ahead.popleft().result())
        self._ahead.append(self._pool.submit(self._compression.compress, block))
        self._hash(block)

    def _hash(self, block: bytearray | memoryview) -> None:
        self._raw.update(block)
        self._raw_size += len(block)

    def _emit(self, packed: bytes) -> None:
        self._packed.update(packed)
        self._packed_size += len(packed)
        self._out.write(packed)


def hash_of(path: str) -> bytes:
    """The hash of a path, as :class:`PathHashes` holds it."""
    return hashlib.blake2b(path.encode(), digest_size=_HASH).digest()


def split_hashes(hashes: bytes) -> list[bytes]:
    """The single hashes of :class:`PathHashes`.

    Raises:
        IntegrityError: There is a part of one.
    """
    if len(hashes) % _HASH:
        raise IntegrityError(f"{len(hashes)} bytes are no hashes of {_HASH} bytes each")
    return [hashes[at : at + _HASH] for at in range(0, len(hashes), _HASH)]


def _hashes(paths: Iterable[str]) -> bytes:
    return b"".join(sorted(map(hash_of, paths)))
