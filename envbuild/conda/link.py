"""A package's files as they are installed under the prefix, without a disk.

The result is what rattler 0.28 installs, but for what would differ from one run or machine to the next.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from envbuild.conda.clobber import CLOBBERS, Footprint
from envbuild.conda.meta import PathRecord, entry_point_script, prefix_record, record_of
from envbuild.conda.paths import PathType
from envbuild.conda.places import check_places, places_of
from envbuild.conda.pyc import Modules
from envbuild.conda.relocate import relocate
from envbuild.conda.tar import WHITEOUT, Kind, safe_path
from envbuild.errors import BuildError, IntegrityError
from envbuild.platform import LINUX_AMD64

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from envbuild.conda.package import Package
    from envbuild.conda.paths import EntryPoint, PathEntry
    from envbuild.conda.pyc import Pyc
    from envbuild.conda.tar import Member
    from envbuild.lock import PackageRecord
    from envbuild.platform import Platform

FIXED_TIME: Final = 315_532_800
"""1980-01-01, the time of whatever has none of its own: directories, links and generated files."""

_HELD: Final = 8 << 20
"""Files with a prefix in them are worked on in memory up to this size, else in an unlinked file."""

_MAX_LINKS: Final = 40
_PREFIX: Final = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._-]+)+")


@dataclass(frozen=True, slots=True)
class PythonTarget:
    """The python of an environment.

    Attributes:
        version: The full version, as ``3.11.9``.
        site_packages: Where its packages are, relative to the prefix.
    """

    version: str
    site_packages: str

    @classmethod
    def of(cls, record: PackageRecord) -> Self:
        """The target that a python's record describes.

        Raises:
            BuildError: Its version has no minor part.
        """
        major, _, rest = record.version.partition(".")
        minor = re.match(r"\d+", rest)
        if minor is None:
            raise BuildError(f"{record} has version {record.version!r}, expected MAJOR.MINOR and more")
        usual = f"lib/python{major}.{minor[0]}/site-packages"
        return cls(record.version, record.python_site_packages_path or usual)

    @property
    def short(self) -> str:
        """``MAJOR.MINOR``."""
        major, _, rest = self.version.partition(".")
        minor = re.match(r"\d+", rest)
        return f"{major}.{minor[0] if minor else rest}"


@dataclass(frozen=True, slots=True)
class LinkTarget:
    """Where packages are installed.

    Attributes:
        prefix: The prefix in the image, an absolute path of plain ASCII names.
        python: The environment's python, or None where there is none.
        platform: The image's platform.
        pyc: How the modules of ``noarch: python`` packages are compiled; None for not at all.
    """

    prefix: str = "/opt/env"
    python: PythonTarget | None = None
    platform: Platform = LINUX_AMD64
    pyc: Pyc | None = None

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise BuildError(f"the prefix {self.prefix!r} is not an absolute path of plain ASCII names")

    @property
    def site_packages(self) -> str | None:
        """Where the python keeps its packages, relative to the prefix; None where there is no python."""
        return self.python.site_packages if self.python is not None else None


@dataclass(frozen=True, slots=True)
class LinkedFile:
    """Something that is installed, valid until the next one is asked for.

    Attributes:
        path: The path relative to the prefix, without ``..``.
        kind: What it is.
        mode: The permission bits.
        mtime: Seconds since 1970.
        size: The content's size in bytes; 0 for all but files.
        chunks: The content in pieces; may be read once.
        target: For a symbolic link its text; for a hard link the path, relative to the prefix, of a file
            that came before.
        owner: Who brings it, for messages; empty for what the environment itself needs.
        deletes: Whether it is a whiteout, which no package may bring.
        is_record: Whether it is what the installer records of a package; no package may bring that either.
    """

    path: str
    kind: Kind
    mode: int
    mtime: int
    size: int = 0
    chunks: Iterable[bytes] = ()
    target: str = ""
    owner: str = ""
    deletes: bool = False
    is_record: bool = False

    @classmethod
    def generated(cls, path: str, content: bytes, mode: int = 0o644, owner: str = "") -> Self:
        """A file that stands in no package."""
        return cls(path, Kind.FILE, mode, FIXED_TIME, len(content), (content,), owner=owner)

    @classmethod
    def record(cls, path: str, content: bytes, owner: str = "") -> Self:
        """A package's record in ``conda-meta``."""
        return replace(cls.generated(path, content, owner=owner), is_record=True)

    @classmethod
    def whiteout(cls, path: str) -> Self:
        """An entry that deletes a path of the layers below."""
        folder, slash, name = path.rpartition("/")
        place = f"{folder}{slash}{WHITEOUT}{name}"
        return cls(place, Kind.FILE, 0o644, FIXED_TIME, deletes=True)


def footprint(package: Package, record: PackageRecord, target: LinkTarget) -> Footprint:
    """The paths that :func:`link` installs; arguments and errors as there."""
    _check(package, record, target)
    scripts = frozenset(f"bin/{point.command}" for point in package.entry_points)
    places = places_of(package, target.site_packages, scripts)
    folders = {place for path, place in places.items() if package.paths[path].path_type is PathType.DIRECTORY}
    files = frozenset(places.values()) - folders
    modules = _modules(package, target, files)
    return Footprint(
        str(record), files | (modules.places() if modules else set()), scripts, frozenset(folders)
    )


def link(
    package: Package, record: PackageRecord, target: LinkTarget, *, lost: Collection[str] = ()
) -> Iterator[LinkedFile]:
    """Install a package: its files in the package's order, its entry points, its record in ``conda-meta``.

    A compiled module stands a fixed number of modules behind its source. The result depends on the package's
    bytes, its URL and the target, and on nothing else.

    Args:
        package: The opened package.
        record: What the lock says of it.
        target: Where it is installed.
        lost: Paths that other packages' files have; see :mod:`envbuild.conda.clobber`.

    Raises:
        BuildError: It has a script to be run before it is installed, needs a python that the environment has
            not, or more room for the prefix.
        IntegrityError: It is not the package of the record, is damaged, or hostile.
    """
    _check(package, record, target)
    return _Linker(package, record, target, frozenset(lost)).files()


@dataclass
class _Linker:
    """The state of one linking."""

    package: Package
    record: PackageRecord
    target: LinkTarget
    lost: frozenset[str]
    records: list[PathRecord] = field(default_factory=list)
    plain: dict[str, PathRecord] = field(default_factory=dict)
    """The files that were installed as they are, by their path in the package."""

    def files(self) -> Iterator[LinkedFile]:
        """Everything that is installed."""
        points = {f"bin/{point.command}": point for point in self.package.entry_points}
        places = places_of(self.package, self.target.site_packages, points)
        meta = f"conda-meta/{self.record}.json"
        check_places(self.package, [*places.items(), *((place, place) for place in (*points, meta))])
        modules = _modules(self.package, self.target, frozenset(places.values()))
        for member in self.package.members():
            if (place := places.pop(member.path, None)) is not None:
                files = self._member(member, self.package.paths[member.path], place)
                yield from files if modules is None else self._compiled(files, modules)
        if modules is not None:
            yield from self._ready(modules, last=True)
        if places:
            raise IntegrityError(f"{self.package.what} lists {min(places)!r} and does not have it")
        for place, point in points.items():
            script = self._entry_point(place, point)
            if place not in self.lost:
                yield script
        content = prefix_record(self.package.index, self.record, self.records)
        yield LinkedFile.record(meta, content, owner=self.package.what)

    def _member(self, member: Member, entry: PathEntry, place: str) -> Iterator[LinkedFile]:
        self._check_kind(member, entry)
        record = record_of(entry, place)
        if place in self.lost:
            record.original = place
            record.place = place = f"{CLOBBERS}/{self.record.name}/{place}"
        self.records.append(record)
        if member.kind is Kind.DIRECTORY:
            record.path_type = PathType.DIRECTORY
            yield LinkedFile(place, Kind.DIRECTORY, 0o755, FIXED_TIME, owner=self.package.what)
        elif member.kind is Kind.SYMLINK:
            yield self._symlink(member, record)
        elif entry.placeholder is not None:
            yield from self._relocated(self._content_of(member), record)
        elif (plain := self._plain(member)) is not None:
            record.computed, record.size = plain.computed, plain.size
            self.plain[member.path] = plain
            mode = member.mode & 0o777
            yield LinkedFile(
                place, Kind.HARDLINK, mode, FIXED_TIME, target=plain.place, owner=self.package.what
            )
        else:
            yield from self._file(self._content_of(member), record)

    def _compiled(self, files: Iterator[LinkedFile], modules: Modules) -> Iterator[LinkedFile]:
        """The same files; modules are compiled beside, and what is compiled comes after them."""
        for file in files:
            if file.kind is Kind.FILE and (place := modules.place(file.path)) and place not in self.lost:
                content = b"".join(file.chunks)
                modules.add(file.path, content)
                yield replace(file, chunks=(content,))
            else:
                yield file
        yield from self._ready(modules)

    def _ready(self, modules: Modules, *, last: bool = False) -> Iterator[LinkedFile]:
        for place, content in modules.ready(last=last):
            self.records.append(PathRecord.of_module(place, content))
            yield LinkedFile.generated(place, content, owner=self.package.what)

    def _plain(self, member: Member) -> PathRecord | None:
        """For a hard link the file that it names, if that was installed as it is."""
        if member.kind is not Kind.HARDLINK:
            return None
        return self.plain.get(safe_path(member.target, self.package.what))

    def _check_kind(self, member: Member, entry: PathEntry) -> None:
        """Refuse what the archive and the list tell differently.

        A link may be listed as a file. One that is listed with a prefix is a link all the same: Conda leaves
        it as it is.
        """
        folder = member.kind is Kind.DIRECTORY
        expected = {
            PathType.SOFTLINK: member.kind is Kind.SYMLINK,
            PathType.DIRECTORY: member.kind is Kind.DIRECTORY,
            PathType.HARDLINK: member.kind is not Kind.DIRECTORY,
            None: True,
        }[entry.path_type]
        if not expected or (entry.placeholder is not None and folder):
            listed = "a file with a prefix in it" if entry.placeholder is not None else entry.path_type
            raise IntegrityError(
                f"{self.package.what} has {member.path!r} as a {member.kind.name.lower()}, and lists {listed}"
            )

    def _content_of(self, member: Member) -> Member:
        """The member that holds a file's content: for a hard link the one that it names in the end."""
        steps = 0
        while member.kind is Kind.HARDLINK and steps < _MAX_LINKS:
            member = self.package.find(safe_path(member.target, self.package.what))
            steps += 1
        if member.kind is not Kind.FILE:
            raise IntegrityError(f"{self.package.what} has a hard link to {member.path!r}, which is no file")
        return member

    def _symlink(self, member: Member, record: PathRecord) -> LinkedFile:
        text = member.target
        record.size = len(text.encode())
        if record.entry is None or record.entry.path_type is not PathType.HARDLINK:
            record.path_type = PathType.SOFTLINK
            record.computed = hashlib.sha256(text.encode()).hexdigest()
        return LinkedFile(record.place, Kind.SYMLINK, 0o777, FIXED_TIME, target=text, owner=self.package.what)

    def _file(self, member: Member, record: PathRecord) -> Iterator[LinkedFile]:
        record.size = member.size
        chunks = member.chunks()
        if record.entry is None or record.entry.sha256 is None:
            chunks = record.hashed(chunks)
        yield self._regular(record.place, member, member.size, chunks)
        _drain(chunks)
        if record.entry is not None:
            self.plain[record.entry.path] = record

    def _relocated(self, member: Member, record: PathRecord) -> Iterator[LinkedFile]:
        entry = record.entry
        if entry is None or entry.placeholder is None or entry.file_mode is None:
            raise IntegrityError(f"{self.package.what} lists {record.place!r} with half a prefix")
        with _held(member) as content:
            changed = relocate(
                content,
                entry.file_mode,
                entry.placeholder,
                self.target.prefix,
                what=f"{entry.path!r} in {self.package.what}",
                deadline=self.package.deadline,
            )
            record.size, record.patched = changed.size, True
            chunks = record.hashed(changed.chunks())
            yield self._regular(record.place, member, changed.size, chunks)
            _drain(chunks)

    def _regular(self, place: str, member: Member, size: int, chunks: Iterable[bytes]) -> LinkedFile:
        mode, owner = member.mode & 0o777, self.package.what
        return LinkedFile(place, Kind.FILE, mode, member.mtime, size, chunks, owner=owner)

    def _entry_point(self, place: str, point: EntryPoint) -> LinkedFile:
        python = self.target.python
        script = entry_point_script(point, self.target.prefix, python.short if python else "")
        self.records.append(PathRecord.of_script(place, script))
        return LinkedFile.generated(place, script, 0o755, self.package.what)


def _modules(package: Package, target: LinkTarget, taken: frozenset[str]) -> Modules | None:
    """The modules of a package that are compiled; None where none are."""
    if target.pyc is None or target.python is None or package.noarch != "python":
        return None
    return Modules(target.pyc, target.prefix, target.python.site_packages, taken)


def _drain(chunks: Iterator[bytes]) -> None:
    """Read what a caller who looks only at the names has left."""
    for _ in chunks:
        pass


@contextmanager
def _held(member: Member) -> Iterator[bytes | mmap.mmap]:
    """A member's content: bytes, or a map of an unlinked file where it is large."""
    if member.size <= _HELD:
        yield member.read()
        return
    with tempfile.TemporaryFile() as file:
        for chunk in member.chunks():
            file.write(chunk)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


def _check(package: Package, record: PackageRecord, target: LinkTarget) -> None:
    for name in ("name", "version", "build"):
        seen, expected = package.index.get(name), getattr(record, name)
        if (str(seen).lower() if name == "name" else seen) != expected:
            raise IntegrityError(f"{package.what} says its {name} is {seen!r}, the channel says {expected!r}")
    python = package.noarch == "python"
    if python != (record.noarch == "python") and not (python and record.may_be_python):
        raise IntegrityError(
            f"{package.what} says its noarch is {package.noarch!r}, the channel says {record.noarch!r}"
        )
    if package.noarch == "python" and target.python is None:
        raise BuildError(
            f"{record} is a Python package, and the environment has no python",
            hint="add python to the dependencies",
        )
    script = f"bin/.{record.name}-pre-link.sh"
    if script in package.paths or script.replace("bin/", "python-scripts/", 1) in package.paths:
        raise BuildError(
            f"{record} runs a script before it is installed ({script}), which nothing here can do",
            hint="exclude the package, or choose a build of it without the script",
        )
