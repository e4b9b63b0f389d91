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
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import IntegrityError
from envbuild.inflate import Bounds, Codec, Inflated, open_zip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.conda.paths import EntryPoint, PathEntry
    from envbuild.conda.tar import Member
    from envbuild.deadline import Deadline

_INFO: Final = frozenset(
    f"info/{name}"
    for name in ("index.json", "paths.json", "link.json", "files", "has_prefix", "no_link", "no_softlink")
)
_ENOUGH: Final = frozenset(f"info/{name}" for name in ("index.json", "paths.json", "link.json"))
"""With these there is nothing more to look for."""

_MAX_INFO: Final = 256 << 20
_MAX_INDEX: Final = 1 << 20
"""The largest ``info/index.json``: what it says is kept beside the package's layer."""

_BOUNDS: Final = Bounds(free=256 << 20, ratio=1000, most=64 << 30)
"""What a package may unpack to; and how much of it may be read again to find what hard links name."""
_MAX_ENTRIES: Final = 100
"""A ``.conda`` package has three; a builder may add some of its own."""


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
    _payload: _Part
    _rereads: list[int]

    @classmethod
    def open(cls, stream: IO[bytes], what: str, deadline: Deadline = NO_DEADLINE) -> Self:
        """Read what a package says of itself; of its files only what is needed to find that.

        Args:
            stream: The verified package, seekable; it must stay open while members are read.
            what: The package's name for messages.
            deadline: When to give up, also when members are read.

        Raises:
            IntegrityError: It is no Conda package, is damaged, or hostile.
        """
        with _readable(what):
            payload, metadata = _open_archive(stream, what, deadline)
            info = _read_info(metadata.open(), what)
            if len(info.get("info/index.json", b"")) > _MAX_INDEX:
                raise IntegrityError(f"{what} has an info/index.json of more than {_MAX_INDEX} bytes")
            index = read_object(info, "info/index.json", what)
            noarch = read_noarch(index, what)
            paths = read_paths(info, what)
            points = read_entry_points(info, what) if noarch == "python" else ()
        return cls(what, index, noarch, paths, points, payload, [])

    @property
    def deadline(self) -> Deadline:
        """When to give up what is done with it."""
        return self._payload.deadline

    def members(self) -> Iterator[Member]:
        """The package's files, links and directories in its own order; the metadata is left out.

        Each call starts again; each member must be read before the next.

        Raises:
            IntegrityError: The package is damaged or hostile.
        """
        return self._members(self._payload.open())

    def _members(self, source: Inflated) -> Iterator[Member]:
        seen: set[str] = set()
        for member in TarReader(source, self.what):
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
        source = self._payload.open()
        for member in self._members(source):
            if member.path == path:
                self._rereads.append(source.size)
                if sum(self._rereads) > (limit := _BOUNDS.allowed(self._payload.size)):
                    raise IntegrityError(
                        f"{self.what} has hard links for which more than {limit} bytes must be read again",
                        hint="look at the package: it may be an attack on whoever unpacks it",
                    )
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


@dataclass(frozen=True, slots=True)
class _Part:
    """A compressed archive in a package, which may be read several times."""

    stream: IO[bytes]
    start: int
    size: int
    codec: Codec
    what: str
    deadline: Deadline

    def open(self) -> Inflated:
        section = _Section(self.stream, self.start, self.size)
        return Inflated(section, self.codec, _BOUNDS, self.what, self.deadline)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn the errors of decompressors and parsers into one that names the package."""
    damaged = (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError)
    try:
        yield
    except (*damaged, RecursionError) as error:
        raise IntegrityError(f"{what} is not a readable Conda package: {error}") from error


def _open_archive(stream: IO[bytes], what: str, deadline: Deadline) -> tuple[_Part, _Part]:
    """The archive with the files and the one with the metadata."""
    stream.seek(0)
    magic = stream.read(4)
    size = stream.seek(0, 2)
    if magic[:3] == b"BZh":
        whole = _Part(stream, 0, size, Codec.BZ2, what, deadline)
        return whole, whole
    if magic != b"PK\x03\x04":
        raise IntegrityError(f"{what} starts with {magic!r}, expected a .conda or .tar.bz2 package")
    with open_zip(stream, _MAX_ENTRIES, what) as archive:
        members = archive.infolist()
    starts = [_start(stream, _only(members, kind, what), what) for kind in ("pkg-", "info-")]
    payload, metadata = (_Part(stream, *place, Codec.ZSTD, what, deadline) for place in starts)
    return payload, metadata


def _only(members: list[zipfile.ZipInfo], kind: str, what: str) -> zipfile.ZipInfo:
    found = [
        each for each in members if each.filename.startswith(kind) and each.filename.endswith(".tar.zst")
    ]
    if len(found) != 1:
        raise IntegrityError(f"{what} has {len(found)} members '{kind}*.tar.zst', expected one")
    if found[0].compress_type != zipfile.ZIP_STORED:
        raise IntegrityError(f"{what} has its member {found[0].filename!r} compressed, expected stored")
    return found[0]


def _start(stream: IO[bytes], member: zipfile.ZipInfo, what: str) -> tuple[int, int]:
    """Where a member's bytes are, and how many."""
    stream.seek(member.header_offset)
    header = stream.read(30)
    if header[:4] != b"PK\x03\x04" or len(header) != 30:
        raise IntegrityError(f"{what} has a damaged zip header for {member.filename!r}")
    start = member.header_offset + 30 + int.from_bytes(header[26:28], "little")
    return start + int.from_bytes(header[28:30], "little"), member.file_size


def _read_info(source: Inflated, what: str) -> dict[str, bytes]:
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
