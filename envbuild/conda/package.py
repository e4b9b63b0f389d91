"""Reading a Conda package (``.conda`` or ``.tar.bz2``) as a stream of members.

Source: CEP 34 and CEP 35 (package contents and formats) and conda-build's older ``info/files``.
"""

from __future__ import annotations

import json
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Any, Final, Self

from envbuild.conda.relocate import FileMode
from envbuild.conda.tar import Kind, TarReader, safe_path
from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.conda.tar import Member, Source

_OLD_PLACEHOLDER: Final = "/opt/anaconda1anaconda2anaconda3"
"""The prefix of packages whose ``has_prefix`` names only paths."""

_INFO: Final = frozenset(
    f"info/{name}"
    for name in ("index.json", "paths.json", "link.json", "files", "has_prefix", "no_link", "no_softlink")
)
_ENOUGH: Final = frozenset(f"info/{name}" for name in ("index.json", "paths.json", "link.json"))
"""With these there is nothing more to look for."""

_MAX_INFO: Final = 256 << 20
_FLOOR: Final = 256 << 20
_MAX_RATIO: Final = 1000
_MAX_RAW: Final = 64 << 30


class PathType(StrEnum):
    """How a path is to be installed."""

    HARDLINK = "hardlink"
    SOFTLINK = "softlink"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class PathEntry:
    """What a package says of one of its paths.

    Attributes:
        path: Where it is in the package.
        path_type: How it is to be installed; None in old packages, where the archive alone tells.
        placeholder: The prefix that stands in it, or None.
        file_mode: How the prefix stands in it; None without one.
        sha256: The content's digest as 64 hex digits, or None.
        size: The content's size in bytes, or None.
        no_link: Whether the builder asked for a copy.
    """

    path: str
    path_type: PathType | None
    placeholder: str | None = None
    file_mode: FileMode | None = None
    sha256: str | None = None
    size: int | None = None
    no_link: bool = False


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """A command that calls a Python function.

    Attributes:
        command: The command's name.
        module: The module to import.
        function: The function in it, maybe of a class.
    """

    command: str
    module: str
    function: str

    @classmethod
    def parse(cls, text: str, what: str) -> Self:
        """Parse ``command = module:function``.

        Raises:
            IntegrityError: It has another form, or the command is a path.
        """
        command, equals, call = (part.strip() for part in text.partition("="))
        module, colon, function = (part.strip() for part in call.partition(":"))
        if not (equals and colon and module and function) or "\n" in text:
            raise IntegrityError(f"{what} has the entry point {text!r}, expected 'command = module:function'")
        if "/" in safe_path(command, what):
            raise IntegrityError(f"{what} has the entry point {command!r}, expected a name without '/'")
        return cls(command, module, function)


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
            index = _object(info, "info/index.json", what)
            noarch = _noarch(index, what)
            paths = _paths(info, what)
            points = _entry_points(info, what) if noarch == "python" else ()
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

    try:
        yield
    except (zipfile.BadZipFile, zstandard.ZstdError, EOFError, OSError, ValueError, RecursionError) as error:
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


def _object(info: dict[str, bytes], name: str, what: str) -> dict[str, Any]:
    if name not in info:
        raise IntegrityError(f"{what} has no {name}")
    document = json.loads(info[name])
    if not isinstance(document, dict):
        raise IntegrityError(f"{what} has a {name} that is not a JSON object")
    return document


def _noarch(index: dict[str, Any], what: str) -> str | None:
    noarch = index.get("noarch")
    if noarch in {None, False, ""}:
        return None
    if noarch is True:
        return "generic"
    if noarch not in {"python", "generic"}:
        raise IntegrityError(f"{what} has noarch {noarch!r}, expected 'python' or 'generic'")
    return str(noarch)


def _paths(info: dict[str, bytes], what: str) -> dict[str, PathEntry]:
    if "info/paths.json" in info:
        listed = _object(info, "info/paths.json", what).get("paths")
        if not isinstance(listed, list):
            raise IntegrityError(f"{what} has an info/paths.json without a list of paths")
        entries = [_path_entry(each, what) for each in listed]
    else:
        entries = list(_old_entries(info, what))
    paths = {entry.path: entry for entry in entries}
    if len(paths) != len(entries):
        raise IntegrityError(f"{what} lists a path twice")
    return paths


def _path_entry(entry: Any, what: str) -> PathEntry:
    try:
        placeholder = entry.get("prefix_placeholder")
        mode = FileMode(entry.get("file_mode", "text")) if placeholder is not None else None
        parsed = PathEntry(
            safe_path(entry["_path"], what),
            PathType(entry.get("path_type", "hardlink")),
            placeholder,
            mode,
            entry.get("sha256"),
            entry.get("size_in_bytes"),
            bool(entry.get("no_link", False)),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise IntegrityError(f"{what} has an entry in info/paths.json that is not one: {entry!r}") from None
    texts = (parsed.placeholder, parsed.sha256)
    if not all(isinstance(text, str | None) for text in texts) or not isinstance(parsed.size, int | None):
        raise IntegrityError(f"{what} has an entry in info/paths.json of the wrong types: {entry!r}")
    return parsed


def _old_entries(info: dict[str, bytes], what: str) -> Iterator[PathEntry]:
    """Entries from the files that packages without ``paths.json`` have."""
    if "info/files" not in info:
        raise IntegrityError(f"{what} has neither info/paths.json nor info/files")
    prefixes = dict(_old_prefix(line, what) for line in _lines(info, "info/has_prefix"))
    copies = {*_lines(info, "info/no_link"), *_lines(info, "info/no_softlink")}
    for line in _lines(info, "info/files"):
        path = safe_path(line, what)
        placeholder, mode = prefixes.get(path, (None, None))
        yield PathEntry(path, None, placeholder, mode, no_link=path in copies)


def _old_prefix(line: str, what: str) -> tuple[str, tuple[str, FileMode]]:
    """A line of ``has_prefix``: a path alone, or prefix, mode and path, each maybe in quotes."""
    import shlex

    parts = shlex.split(line, posix=True)
    if len(parts) == 3 and parts[1] in set(FileMode):
        return parts[2], (parts[0], FileMode(parts[1]))
    if len(parts) != 1 and any(mode in parts for mode in FileMode):
        raise IntegrityError(f"{what} has the line {line!r} in info/has_prefix")
    return line, (_OLD_PLACEHOLDER, FileMode.TEXT)


def _lines(info: dict[str, bytes], name: str) -> list[str]:
    return [line for each in info.get(name, b"").decode().splitlines() if (line := each.strip())]


def _entry_points(info: dict[str, bytes], what: str) -> tuple[EntryPoint, ...]:
    if "info/link.json" not in info:
        return ()
    noarch = _object(info, "info/link.json", what).get("noarch")
    listed = noarch.get("entry_points", []) if isinstance(noarch, dict) else []
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise IntegrityError(f"{what} has entry points in info/link.json that are not strings")
    return tuple(EntryPoint.parse(each, what) for each in listed)
