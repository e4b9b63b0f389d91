"""A tar reader and header writer that are fast on many small files.

Source: POSIX.1-2017, "pax" ("ustar Interchange Format", "pax Interchange Format"), and GNU tar's long names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.inflate import Source

BLOCK: Final = 512
CHUNK: Final = 1 << 20
END: Final = bytes(2 * BLOCK)
"""What stands after the last member."""

WHITEOUT: Final = ".wh."
"""How the name of an entry begins that deletes what a lower layer has.

Source: OCI image specification, "Image Layer Filesystem Changeset", "Whiteouts".
"""

MAX_TIME: Final = 0o77777777777
_MAX_SIZE: Final = 0o77777777777
_MAX_EXTENSION: Final = 1 << 20
_MAX_MEMBERS: Final = 2_000_000
_MAX_NAMES: Final = 64 << 20
"""Bytes of all paths and targets of an archive; a large real package has 10 MB of them."""
_MAX_PATH: Final = 4096
_MAX_DEPTH: Final = 128
"""Linux takes no longer path; what is made of all folders of a path grows with length times depth."""
_MAX_DIGITS: Final = 20
_PAX: Final = frozenset({b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid"})
_SPARSE: Final = "sparse"
_MAX_RECORDS: Final = 16
_FREE_RECORDS: Final = 100_000
"""Beside these an archive has few records in extended headers for each header: a record costs as much to read
as a header does, and may be four bytes long."""
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ZERO: Final = b"0000000\0"


class Kind(StrEnum):
    """What a member is, by its type flag."""

    FILE = "0"
    HARDLINK = "1"
    SYMLINK = "2"
    DIRECTORY = "5"


_KINDS: Final = {b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE} | {
    kind.value.encode(): kind for kind in (Kind.HARDLINK, Kind.SYMLINK, Kind.DIRECTORY)
}


class Header(NamedTuple):
    """What an archive says of a member; nothing of it was judged.

    Attributes:
        path: The path as it stands there; bytes that are not UTF-8 as lone surrogates.
        kind: What it is; None for a device and whatever else.
        mode: All twelve permission bits.
        uid: The user.
        gid: The group.
        mtime: Seconds since 1970, between 0 and :data:`MAX_TIME`.
        size: The content's size in bytes.
        target: The target of a link, else empty.
        flag: The type flag.
        sparse: Whether the content is that of a sparse file, without its holes.
    """

    path: str
    kind: Kind | None
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    target: str
    flag: bytes
    sparse: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive, valid until the next one is asked for.

    Attributes:
        path: The path, relative, without ``.``, ``..`` or empty parts.
        kind: What it is.
        mode: All twelve permission bits.
        mtime: Seconds since 1970, between 0 and :data:`MAX_TIME`.
        size: The content's size in bytes.
        target: The target of a link as it stands in the archive, else empty.
        archive: Where the content is read from.
    """

    path: str
    kind: Kind
    mode: int
    mtime: int
    size: int
    target: str
    archive: TarReader

    def chunks(self) -> Iterator[bytes]:
        """The content in pieces of at most :data:`CHUNK` bytes; may be asked for once."""
        return self.archive.chunks()

    def read(self) -> bytes:
        """The whole content; may be asked for once."""
        return self.archive.read_content()


class TarReader:
    """Reads members one after the other from a stream that need not be seekable."""

    def __init__(self, source: Source, what: str) -> None:
        self._source = source
        self._what = what
        self._buffer = b""
        self._at = 0
        self._left = 0
        self._padding = 0
        self._headers = 0
        self._records = 0

    def __iter__(self) -> Iterator[Member]:
        """The members, in the archive's order.

        Raises:
            IntegrityError: The archive is damaged, hostile, or holds something else than files,
                directories and links.
        """
        names = 0
        for count, header in enumerate(self.headers(), 1):
            path, target, kind = self._utf8(header.path), self._utf8(header.target), header.kind
            if kind is None:
                raise IntegrityError(
                    f"{self._what} has {path!r} of tar type {header.flag!r}, expected files, directories "
                    "and links"
                )
            if header.sparse:
                raise IntegrityError(f"{self._what} has a sparse file, expected plain ones")
            names += len(path) + len(target)
            if count > _MAX_MEMBERS or names > _MAX_NAMES:
                raise IntegrityError(
                    f"{self._what} has more than {_MAX_MEMBERS} members, or {_MAX_NAMES} bytes of names"
                )
            clean = "" if path in {".", "./"} else safe_path(path, self._what)
            yield Member(clean, kind, header.mode, header.mtime, header.size, target, self)

    def headers(self) -> Iterator[Header]:
        """What stands before each member, also before what :meth:`__iter__` refuses.

        Raises:
            IntegrityError: The archive is damaged.
        """
        extra: dict[str, str] = {}
        while (header := self._next_header()) is not None:
            flag = header[156:157]
            size = self._number(header[124:136])
            if flag in b"xgLK":
                self._enter(size)
                extra = self._extended(flag, extra)
                continue
            read = self._header(header, flag, size, extra)
            extra = {}
            self._enter(read.size)
            yield read

    def chunks(self) -> Iterator[bytes]:
        """What is left of the present member's content."""
        while self._left:
            if self._at == len(self._buffer):
                self._fill()
            at, end = self._at, self._at + min(self._left, len(self._buffer) - self._at)
            self._at = end
            self._left -= end - at
            yield self._buffer if end - at == len(self._buffer) else self._buffer[at:end]

    def read_content(self) -> bytes:
        """What is left of the present member's content, whole."""
        size, self._left = self._left, 0
        return self._take(size)

    def rest(self) -> Iterator[bytes]:
        """What stands behind the archive's end, where a reader of members stops."""
        yield self._buffer[self._at :]
        while content := self._source.read(CHUNK):
            yield content

    def _enter(self, size: int) -> None:
        self._left, self._padding = size, -size % BLOCK

    def _next_header(self) -> bytes | None:
        self._skip(self._left)
        self._skip(self._padding)
        self._left = self._padding = 0
        if self._at == len(self._buffer):
            self._buffer, self._at = self._source.read(CHUNK), 0
        header = self._take(BLOCK) if self._buffer else b""
        if not header.strip(b"\0"):
            return None
        self._headers += 1
        expected = sum(header) - sum(header[148:156]) + 8 * 32
        seen = self._number(header[148:156])
        if seen != expected and seen != expected - 256 * sum(each > 127 for each in header):  # old, signed
            raise IntegrityError(f"{self._what} has a tar header whose checksum is wrong")
        return header

    def _header(self, header: bytes, flag: bytes, size: int, extra: dict[str, str]) -> Header:
        path = extra.get("path") or self._path(header)
        kind = _KINDS.get(flag)
        if kind is Kind.FILE and path.endswith("/"):
            kind = Kind.DIRECTORY
        target = ""
        if kind in {Kind.HARDLINK, Kind.SYMLINK}:
            target = extra.get("linkpath") or _text(header[157:257])
        if kind in {Kind.HARDLINK, Kind.SYMLINK, Kind.DIRECTORY}:
            size = 0
        elif "size" in extra:
            size = self._decimal(extra["size"])
        sparse = _SPARSE in extra
        if flag == b"S":
            sparse = True
            more = header[482]
            while more:
                more = self._take(BLOCK)[504]
        return Header(
            path,
            kind,
            self._number(header[100:108]) & 0o7777,
            self._decimal(extra["uid"]) if "uid" in extra else self._number(header[108:116]),
            self._decimal(extra["gid"]) if "gid" in extra else self._number(header[116:124]),
            self._time(header, extra),
            size,
            target,
            flag,
            sparse,
        )

    def _time(self, header: bytes, extra: dict[str, str]) -> int:
        if "mtime" in extra:
            text = extra["mtime"].partition(".")[0]
            return 0 if text.startswith("-") else min(self._decimal(text), MAX_TIME)
        field = header[136:148]
        return 0 if field[0] == 0xFF else min(self._number(field), MAX_TIME)

    def _path(self, header: bytes) -> str:
        name = _text(header[:100])
        prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
        return f"{prefix}/{name}" if prefix else name

    def _extended(self, flag: bytes, extra: dict[str, str]) -> dict[str, str]:
        if self._left > _MAX_EXTENSION:
            raise IntegrityError(f"{self._what} has an extended tar header of {self._left} bytes")
        content = self.read_content()
        if flag == b"g":
            return extra
        if flag == b"x":
            return extra | self._pax(content)
        return extra | {"path" if flag == b"L" else "linkpath": _text(content)}

    def _pax(self, content: bytes) -> dict[str, str]:
        """The records of an extended header; each of its bytes is looked at once."""
        records = {}
        at = 0
        while at < len(content):
            blank = content.find(b" ", at, at + _MAX_DIGITS + 1)
            end = at + self._decimal(content[at:blank].decode("ascii", "replace")) if blank >= 0 else at
            if blank < 0 or not blank < end <= len(content) or content[end - 1] != ord("\n"):
                raise IntegrityError(f"{self._what} has a damaged extended tar header")
            equals = content.find(b"=", blank + 1, end - 1)
            name = content[blank + 1 : equals if equals >= 0 else end - 1]
            if name in _PAX:
                records[name.decode()] = _text(content[equals + 1 : end - 1]) if equals >= 0 else ""
            elif name.startswith(b"GNU.sparse"):
                records[_SPARSE] = ""
            at = end
            self._records += 1
        if self._records > _FREE_RECORDS + _MAX_RECORDS * self._headers:
            raise IntegrityError(f"{self._what} has {self._records} records in extended tar headers")
        return records

    def _utf8(self, text: str) -> str:
        try:
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError:
            raise IntegrityError(f"{self._what} has a path that is not UTF-8: {text!r}") from None
        return text

    def _number(self, field: bytes) -> int:
        if field[0] == 0x80:
            return int.from_bytes(field[1:])
        digits = field.strip(b" \0")
        try:
            return int(digits, 8) if digits else 0
        except ValueError:
            raise IntegrityError(f"{self._what} has a tar header with the number {field!r}") from None

    def _decimal(self, text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 20:
            raise IntegrityError(f"{self._what} has an extended tar header with the number {text[:30]!r}")
        return int(text)

    def _fill(self) -> None:
        self._buffer, self._at = self._source.read(CHUNK), 0
        if not self._buffer:
            raise IntegrityError(f"{self._what} ends in the middle of its archive")

    def _take(self, size: int) -> bytes:
        at = self._at
        end = at + size
        if end <= len(self._buffer):
            self._at = end
            return self._buffer[at:end]
        pieces = []
        while size:
            if self._at == len(self._buffer):
                self._fill()
            piece = self._buffer[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def _skip(self, size: int) -> None:
        while size > len(self._buffer) - self._at:
            size -= len(self._buffer) - self._at
            self._fill()
        self._at += size


def safe_path(path: str, what: str) -> str:
    """A path of an archive, relative to where the archive is unpacked, in its one spelling.

    Raises:
        IntegrityError: It is absolute, has ``..``, ``.`` or empty parts, or a NUL, or is longer or deeper
            than any that can be installed.
    """
    clean = path.removeprefix("./").rstrip("/")
    if len(clean) > _MAX_PATH or clean.count("/") >= _MAX_DEPTH:
        raise IntegrityError(
            f"{what} has a path of {len(clean)} characters in {clean.count('/') + 1} folders, expected at "
            f"most {_MAX_PATH} and {_MAX_DEPTH}: {path[:80]!r}…"
        )
    if not {"", ".", ".."}.isdisjoint(clean.split("/")) or "\0" in clean:
        raise IntegrityError(f"{what} has the path {path!r}, expected one inside the package")
    return clean


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def parents(path: str) -> Iterator[str]:
    """The folders that a relative path is in, the outermost first."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


def write_header(path: str, kind: Kind, *, mode: int, mtime: int, size: int = 0, target: str = "") -> bytes:
    """The header of a member that belongs to user and group 0; extended where ustar is too narrow.

    Args:
        path: The path; a directory's ends with ``/``.
        kind: What the member is.
        mode: Permission bits.
        mtime: Seconds since 1970, between 0 and :data:`MAX_TIME`.
        size: The content's size; 0 for all but files.
        target: The target of a link.
    """
    name, link = path.encode(), target.encode()
    prefix, short = _split(name)
    extra = []
    if not (short and path.isascii()):
        extra.append(_record(b"path", name))
        prefix, short = b"", name[:100]
    if len(link) > 100 or not target.isascii():
        extra.append(_record(b"linkpath", link))
    if size > _MAX_SIZE:
        extra.append(_record(b"size", b"%d" % size))
    header = _header(short, prefix, kind.value.encode(), mode, mtime, size % (_MAX_SIZE + 1), link[:100])
    if not extra:
        return header
    body = b"".join(extra)
    extended = _header(b"pax", b"", b"x", 0o644, mtime, len(body), b"")
    return extended + body + bytes(-len(body) % BLOCK) + header


def _header(name: bytes, prefix: bytes, flag: bytes, mode: int, mtime: int, size: int, link: bytes) -> bytes:
    header = bytearray(
        _HEADER.pack(
            name, b"%07o\0" % mode, _ZERO, _ZERO, b"%011o\0" % size, b"%011o\0" % mtime,
            b"        ", flag, link, b"ustar\0", b"00", b"", b"", _ZERO, _ZERO, prefix,
        )
    )  # fmt: skip
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """The prefix and name fields of a path; an empty name where it does not fit."""
    if len(name) <= 100:
        return b"", name
    at = name.find(b"/", len(name) - 101)
    return (name[:at], name[at + 1 :]) if 0 < at <= 155 and at + 1 < len(name) else (b"", b"")


def _record(name: bytes, value: bytes) -> bytes:
    length = size = len(name) + len(value) + 3
    while length != (size + len(b"%d" % length)):
        length = size + len(b"%d" % length)
    return b"%d %s=%s\n" % (length, name, value)
