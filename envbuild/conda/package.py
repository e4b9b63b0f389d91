"""Reading a Conda package (``.conda`` or ``.tar.bz2``) as a stream of members.

Source: CEP 35 (formats of Conda packages).
"""

from __future__ import annotations

import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Self

from envbuild.conda.paths import read_entry_points, read_noarch, read_object, read_paths
from envbuild.conda.tar import Kind, TarReader
from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.conda.paths import EntryPoint, PathEntry
    from envbuild.conda.tar import Member, Source

_INFO: Final = frozenset(
    f"info/{name}"
    for name in ("index.json", "paths.json", "link.json", "files", "has_prefix", "no_link", "no_softlink")
)
_ENOUGH: Final = frozenset(f"info/{name}" for name in ("index.json", "paths.json", "link.json"))
"""With these there is nothing more to look for."""

_MAX_INFO: Final = 256 << 20
_MAX_INDEX: Final = 1 << 20
"""The largest ``info/index.json``: what it says is kept beside the package's layer."""

_FLOOR: Final = 256 << 20
_MAX_RATIO: Final = 1000
_MAX_RAW: Final = 64 << 30


@dataclass(frozen=True)
class Package:
    """An opened package. Most callers want :meth:`open`.

    Attributes:
        what: The package's name for messages.
        index: ``info/index.json``.
        noarch: ``python``, ``generic`` or None.
        paths: What the package says of its paths, by path.
        entry_points: The commands that are made for a ``noarch: python`` package.
    """

    what: str
    index: dict[str, Any]
    noarch: str | None
    paths: dict[str, PathEntry]
    entry_points: tuple[EntryPoint, ...]
    _payload: Callable[[], Source]

    @classmethod
    def open(cls, stream: IO[bytes], what: str) -> Self:
        """Read what a package says of itself; of its files only what is needed to find that.

        Args:
            stream: The verified package, seekable; it must stay open while members are read.
            what: The package's name for messages.

        Raises:
            IntegrityError: It is no Conda package, is damaged, or hostile.
        """
        with _readable(what):
            payload, metadata = _open_archive(stream, what)
            info = _read_info(metadata(), what)
            if len(info.get("info/index.json", b"")) > _MAX_INDEX:
                raise IntegrityError(f"{what} has an info/index.json of more than {_MAX_INDEX} bytes")
            index = read_object(info, "info/index.json", what)
            noarch = read_noarch(index, what)
            paths = read_paths(info, what)
            points = read_entry_points(info, what) if noarch == "python" else ()
        return cls(what, index, noarch, paths, points, payload)

    def members(self) -> Iterator[Member]:
        """The package's files, links and directories in its own order; the metadata is left out.

        Each call starts again; each member must be read before the next.

        Raises:
            IntegrityError: The package is damaged or hostile.
        """
        seen: set[str] = set()
        for member in TarReader(self._payload(), self.what):
            path = member.path
            if member.kind is not Kind.DIRECTORY:
                if path in seen:
                    raise IntegrityError(f"{self.what} has {path!r} twice")
                seen.add(path)
            if not path.startswith("info/"):
                yield member

    def find(self, path: str) -> Member:
        """One member, found by reading the package from its start.

        Raises:
            IntegrityError: It is not there, or the package is damaged.
        """
        for member in self.members():
            if member.path == path:
                return member
        raise IntegrityError(f"{self.what} has no {path!r}, which a hard link in it names")


class _Section:
    """A stretch of a seekable stream; several may be read in turns."""

    def __init__(self, stream: IO[bytes], start: int, size: int) -> None:
        self._stream = stream
        self._at = start
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        self._stream.seek(self._at)
        content = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._at += len(content)
        self._left -= len(content)
        return content


class _Bounded:
    """A decompressed stream that may not be longer than its limit."""

    def __init__(self, source: Source, limit: int, what: str) -> None:
        self._source = source
        self._left = limit
        self._limit = limit
        self._what = what

    def read(self, size: int, /) -> bytes:
        with _readable(self._what):
            content = self._source.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise IntegrityError(
                f"{self._what} unpacks to more than {self._limit} bytes, far more than its size allows",
                hint="look at the package: it may be an attack on whoever unpacks it",
            )
        return content


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn the errors of decompressors and parsers into one that names the package."""
    import zstandard

    damaged = (zipfile.BadZipFile, zstandard.ZstdError, NotImplementedError, EOFError, OSError, ValueError)
    try:
        yield
    except (*damaged, RecursionError) as error:
        raise IntegrityError(f"{what} is not a readable Conda package: {error}") from error


def _open_archive(stream: IO[bytes], what: str) -> tuple[Callable[[], Source], Callable[[], Source]]:
    """Openers of the archive with the files and of the one with the metadata."""
    import bz2

    stream.seek(0)
    magic = stream.read(4)
    size = stream.seek(0, 2)
    if magic[:3] == b"BZh":

        def whole() -> Source:
            section: Any = _Section(stream, 0, size)
            return _Bounded(bz2.BZ2File(section), _limit(size), what)

        return whole, whole
    if magic != b"PK\x03\x04":
        raise IntegrityError(f"{what} starts with {magic!r}, expected a .conda or .tar.bz2 package")
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
    payload, metadata = (_only(members, kind, what) for kind in ("pkg-", "info-"))
    return _zstd(stream, payload, what), _zstd(stream, metadata, what)


def _limit(size: int) -> int:
    return min(_FLOOR + _MAX_RATIO * size, _MAX_RAW)


def _only(members: list[zipfile.ZipInfo], kind: str, what: str) -> zipfile.ZipInfo:
    found = [
        each for each in members if each.filename.startswith(kind) and each.filename.endswith(".tar.zst")
    ]
    if len(found) != 1:
        raise IntegrityError(f"{what} has {len(found)} members '{kind}*.tar.zst', expected one")
    if found[0].compress_type != zipfile.ZIP_STORED:
        raise IntegrityError(f"{what} has its member {found[0].filename!r} compressed, expected stored")
    return found[0]


def _zstd(stream: IO[bytes], member: zipfile.ZipInfo, what: str) -> Callable[[], Source]:
    stream.seek(member.header_offset)
    header = stream.read(30)
    if header[:4] != b"PK\x03\x04" or len(header) != 30:
        raise IntegrityError(f"{what} has a damaged zip header for {member.filename!r}")
    start = member.header_offset + 30 + int.from_bytes(header[26:28], "little")
    start += int.from_bytes(header[28:30], "little")
    size = member.file_size

    def opened() -> Source:
        import zstandard

        section: Any = _Section(stream, start, size)
        plain = zstandard.ZstdDecompressor().stream_reader(
            section, read_size=1 << 20, read_across_frames=True
        )
        return _Bounded(plain, _limit(size), what)

    return opened


def _read_info(source: Source, what: str) -> dict[str, bytes]:
    """The metadata files that matter."""
    info: dict[str, bytes] = {}
    total = 0
    for member in TarReader(source, what):
        if member.path not in _INFO or member.kind is not Kind.FILE:
            continue
        total += member.size
        if total > _MAX_INFO:
            raise IntegrityError(f"{what} has more than {_MAX_INFO} bytes of metadata")
        if member.path in info:
            raise IntegrityError(f"{what} has {member.path!r} twice")
        info[member.path] = member.read()
        if info.keys() >= _ENOUGH:
            break
    return info
