"""A wheel's archive, checked before anything is taken from it, and its RECORD held against each file.

Source: PyPA, "Binary distribution format" and "Recording installed projects". What no honest wheel holds is
refused: links, paths out of the archive, one path twice, members that lie over each other, more content than
such an archive can honestly hold.
"""

from __future__ import annotations

import base64
import csv
import email.parser
import hashlib
import io
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, Self

from envbuild.conda.tar import parents, safe_path
from envbuild.errors import BuildError, IntegrityError
from envbuild.inflate import open_zip

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from email.message import Message

    from envbuild.lock import PipDistribution

CHUNK: Final = 1 << 20
_MAX_MEMBERS: Final = 200_000
_MAX_META: Final = 64 << 20
_FREE: Final = 256 << 20
_MOST_TIMES: Final = 100
_LOCAL_HEADER: Final = 30
_ENCRYPTED: Final = 0x1
_DIGITS: Final = {"sha256": 32, "sha384": 48, "sha512": 64}
_UNSAFE: Final = re.compile("[\\x00-\\x1f\\x7f\\\\\ud800-\udfff]")
_SIGNATURES: Final = ("RECORD.jws", "RECORD.p7s")
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What RECORD says of a file: algorithm, unpadded URL-safe base64 digest, size where it is said."""

    algorithm: str
    digest: str
    size: int | None


@dataclass(frozen=True)
class WheelArchive:
    """An opened wheel.

    Attributes:
        what: Its name for messages.
        archive: The archive.
        members: Its files by path, in the archive's order.
        records: What RECORD says, by path.
        info: The ``.dist-info`` folder's name.
    """

    what: str
    archive: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    records: dict[str, Recorded]
    info: str

    @classmethod
    def open(cls, source: IO[bytes], distribution: PipDistribution) -> Self:
        """Open a wheel and check all of it but the files' content.

        Args:
            source: The wheel, seekable.
            distribution: What the solution says of it.

        Raises:
            BuildError: It is of a version of the format that is not known.
            IntegrityError: It is damaged, hostile, or another distribution.
        """
        what = distribution.file_name
        try:
            archive = open_zip(source, _MAX_MEMBERS, what)
        except _DAMAGED as error:
            raise IntegrityError(f"{what} is not a wheel: {error}") from None
        members = _members(archive, what)
        info = _info_folder(members, what)
        if f"{info}/RECORD" not in members:
            raise IntegrityError(f"{what} has no {info}/RECORD")
        wheel = cls(what, archive, members, {}, info)
        records = _parse_record(wheel.text("RECORD"), members, what)
        wheel = cls(what, archive, members, records, info)
        wheel.check_listed()
        _check_metadata(wheel, distribution)
        return wheel

    def has(self, name: str) -> bool:
        """Whether the ``.dist-info`` folder has a file of that name."""
        return f"{self.info}/{name}" in self.members

    def text(self, name: str) -> str:
        """A file of the ``.dist-info`` folder; empty if there is none."""
        member = self.members.get(f"{self.info}/{name}")
        if member is None:
            return ""
        if member.file_size > _MAX_META:
            raise IntegrityError(f"{self.what} has a {name} of {member.file_size} bytes")
        try:
            return b"".join(self.chunks(member)).decode()
        except UnicodeDecodeError:
            raise IntegrityError(f"{self.what} has a {name} that is not UTF-8") from None

    def chunks(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """A member's content, held against its RECORD at the end.

        Raises:
            IntegrityError: It is damaged, or not what RECORD says.
        """
        recorded = self.records.get(member.filename)
        digest = hashlib.new(recorded.algorithm if recorded else "sha256")
        size = 0
        try:
            with self.archive.open(member) as stream:
                while chunk := stream.read(CHUNK):
                    size += len(chunk)
                    digest.update(chunk)
                    yield chunk
        except _DAMAGED as error:
            raise IntegrityError(f"{self.what} has a damaged {member.filename!r}: {error}") from None
        if size != member.file_size:
            raise IntegrityError(
                f"{self.what} has {size} bytes of {member.filename!r}, expected {member.file_size}"
            )
        if recorded is not None and encode_digest(digest.digest()) != recorded.digest:
            raise IntegrityError(
                f"{self.what} has another {member.filename!r} than its RECORD says",
                hint="report it to the project; the wheel is damaged or was tampered with",
            )

    def check_listed(self) -> None:
        """Refuse a file that RECORD does not list, or lists with another size."""
        aside = {f"{self.info}/{name}" for name in ("RECORD", *_SIGNATURES)}
        for path, member in self.members.items():
            if path in aside:
                continue
            recorded = self.records.get(path)
            if recorded is None:
                raise IntegrityError(
                    f"{self.what} has {path!r}, which its RECORD does not list with a hash of "
                    f"{', '.join(_DIGITS)}",
                    hint="choose another version, or report it to the project",
                )
            if recorded.size not in {None, member.file_size}:
                raise IntegrityError(
                    f"{self.what} has {member.file_size} bytes of {path!r}, its RECORD says {recorded.size}"
                )

    def installed(self) -> Iterator[zipfile.ZipInfo]:
        """The members that are installed: all but RECORD, which is written anew, and its signatures."""
        aside = {f"{self.info}/{name}" for name in ("RECORD", *_SIGNATURES)}
        return (member for path, member in self.members.items() if path not in aside)


def encode_digest(digest: bytes) -> str:
    """A digest as RECORD has it."""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_executable(member: zipfile.ZipInfo) -> bool:
    """Whether a member's attributes say that it is a file that may be run."""
    mode = member.external_attr >> 16
    return bool(mode and stat.S_IFMT(mode) in {0, stat.S_IFREG} and mode & 0o111)


def _members(archive: zipfile.ZipFile, what: str) -> dict[str, zipfile.ZipInfo]:
    """The files by path, after every check that needs no content."""
    found: dict[str, zipfile.ZipInfo] = {}
    infos = archive.infolist()
    for member in infos:
        _check_member(member, what)
        if member.is_dir():
            continue
        if member.filename in found:
            raise IntegrityError(f"{what} has {member.filename!r} twice")
        found[member.filename] = member
    for path in found:
        for folder in parents(path):
            if folder in found:
                raise IntegrityError(f"{what} has {folder!r} both as a file and as a folder")
    _check_places(infos, archive.start_dir, what)
    return found


def _check_member(member: zipfile.ZipInfo, what: str) -> None:
    path = member.filename
    if _UNSAFE.search(path) or safe_path(path, what) != path.rstrip("/"):
        raise IntegrityError(f"{what} has the path {path!r}, expected one inside the wheel")
    if member.orig_filename != path:
        raise IntegrityError(f"{what} has the path {member.orig_filename!r}, which tools read differently")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise IntegrityError(f"{what} has {path!r}, which is a link or a device, expected files and folders")
    if (kind == stat.S_IFDIR) > member.is_dir():
        raise IntegrityError(f"{what} has the folder {path!r} with the name of a file")
    if member.flag_bits & _ENCRYPTED:
        raise IntegrityError(f"{what} has an encrypted {path!r}")


def _check_places(infos: list[zipfile.ZipInfo], directory: int, what: str) -> None:
    """Refuse members that share bytes, and more content than the format's compressors give on real files.

    Args:
        infos: The members.
        directory: Where the archive's directory starts: no member reaches it.
        what: The wheel, for messages.
    """
    end = 0
    for member in sorted(infos, key=lambda info: info.header_offset):
        if member.header_offset < end:
            raise IntegrityError(f"{what} has members that lie over each other ({member.filename!r})")
        end = member.header_offset + _LOCAL_HEADER + len(member.orig_filename) + member.compress_size
    if end > directory:
        raise IntegrityError(
            f"{what} has members that lie over its directory, or claim more bytes than it has"
        )
    packed = sum(member.compress_size for member in infos)
    unpacked = sum(member.file_size for member in infos)
    if unpacked > _FREE + _MOST_TIMES * packed:
        raise IntegrityError(f"{what} unpacks from {packed} to {unpacked} bytes, which no honest wheel does")


def _info_folder(members: dict[str, zipfile.ZipInfo], what: str) -> str:
    tops = sorted({path.partition("/")[0] for path in members if "/" in path})
    found = [top for top in tops if top.endswith(".dist-info")]
    if len(found) != 1:
        raise IntegrityError(f"{what} has {len(found)} .dist-info folders, expected one")
    return found[0]


def _parse_record(text: str, members: Container[str], what: str) -> dict[str, Recorded]:
    """What RECORD says of the wheel's files; of others it says something in vain."""
    records: dict[str, Recorded] = {}
    try:
        for count, row in enumerate(csv.reader(io.StringIO(text, newline=""))):
            if count > 2 * _MAX_MEMBERS:
                raise IntegrityError(f"{what} has a RECORD of more than {2 * _MAX_MEMBERS} lines")
            if len(row) != 3:
                if row:
                    raise IntegrityError(f"{what} has a line of {len(row)} fields in RECORD, expected 3")
                continue
            path, hashed, size = row
            algorithm, _, digest = hashed.partition("=")
            if algorithm in _DIGITS and path in members:
                records[path] = Recorded(algorithm, digest.rstrip("="), int(size) if size else None)
    except (csv.Error, ValueError) as error:
        raise IntegrityError(f"{what} has a RECORD that cannot be read: {error}") from None
    return records


def _check_metadata(wheel: WheelArchive, distribution: PipDistribution) -> None:
    """Refuse a format that is not known and a wheel that is another distribution."""
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

    version = _header(wheel, "WHEEL").get("Wheel-Version", "")
    if version.partition(".")[0] != "1":
        raise BuildError(
            f"{wheel.what} is of version {version or 'none'!r} of the wheel format, expected 1",
            hint="choose another version of the distribution",
        )
    metadata = _header(wheel, "METADATA")
    name, seen = metadata.get("Name", ""), metadata.get("Version", "")
    folder = wheel.info.removesuffix(".dist-info").partition("-")
    try:
        same = {Version(seen), Version(folder[2])} == {Version(distribution.version)}
    except InvalidVersion:
        same = False
    names = {canonicalize_name(name), canonicalize_name(folder[0])}
    if not same or names != {canonicalize_name(distribution.name)}:
        raise IntegrityError(f"{wheel.what} holds {name} {seen} ({wheel.info}), expected {distribution}")


def _header(wheel: WheelArchive, name: str) -> Message:
    return email.parser.HeaderParser().parsestr(wheel.text(name))
