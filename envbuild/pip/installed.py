"""What Conda's packages install that pip knows too: found by path hashes, kept, or deleted by whiteouts."""

from __future__ import annotations

import csv
import hashlib
import io
import posixpath
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from envbuild.conda.link import LinkedFile
from envbuild.conda.tar import Kind, parents
from envbuild.errors import BuildError
from envbuild.spec.requirement import canonical_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from envbuild.conda.layer import PathHashes
    from envbuild.conda.link import PythonTarget
    from envbuild.lock import PackageRecord, PipDistribution

_HASH: Final = 8


@dataclass(frozen=True, slots=True)
class Installed:
    """A distribution that packages below the wheels install.

    Attributes:
        name: The PEP 503 name.
        version: The version as its metadata folder has it.
        metadata: The path, relative to the prefix, of its ``.dist-info`` or ``.egg-info``.
        records: The packages of which one installs it.
    """

    name: str
    version: str
    metadata: str
    records: tuple[PackageRecord, ...]

    @property
    def normal(self) -> str | None:
        """The version in PEP 440's normal form; None if it is not one."""
        from packaging.version import InvalidVersion, Version

        try:
            return str(Version(self.version))
        except InvalidVersion:
            return None

    def is_version(self, version: str) -> bool:
        """Whether it is of that version, which PEP 440 knows."""
        from packaging.version import Version

        return self.normal is not None and Version(self.normal) == Version(version)


Probe: TypeAlias = "Callable[[PipDistribution], Installed | None]"


def nothing(_: PipDistribution) -> None:
    """The probe of an environment in which nothing is installed."""


class Unit(Protocol):
    """Packages that share a layer."""

    @property
    def records(self) -> tuple[PackageRecord, ...]:
        """The packages."""


@dataclass(frozen=True)
class CondaDistributions:
    """Answers what Conda's layers install, without their bytes.

    A layer's index entry holds hashes of its paths. Which path would show a distribution follows from its
    name, in the few spellings there are, and the version, which is that of a package in the layer.

    Attributes:
        site_packages: Where the python keeps its packages, relative to the prefix.
        short: ``MAJOR.MINOR`` of the python.
        layers: The packages of each layer, and the hashes of the files in it.
    """

    site_packages: str
    short: str
    layers: tuple[tuple[tuple[PackageRecord, ...], frozenset[bytes]], ...]

    @classmethod
    def of(
        cls, layers: Iterable[tuple[tuple[PackageRecord, ...], PathHashes]], python: PythonTarget
    ) -> CondaDistributions:
        """What some layers install.

        Args:
            layers: The packages of each layer, and its path hashes.
            python: The environment's python.
        """
        found = tuple((records, _unpack(hashes.files)) for records, hashes in layers)
        return cls(python.site_packages, python.short, found)

    def find(self, distribution: PipDistribution) -> Installed | None:
        """What is installed of a wheel's name, if anything."""
        for records, hashes in self.layers:
            for version in sorted({record.version for record in records}):
                if (metadata := self._metadata(distribution, version, hashes)) is not None:
                    owners = tuple(record for record in records if record.version == version)
                    return Installed(distribution.name, version, metadata, owners)
        return None

    def _metadata(self, distribution: PipDistribution, version: str, hashes: frozenset[bytes]) -> str | None:
        for name in _spellings(distribution):
            for folder, file in (
                (f"{name}-{version}.dist-info", "/METADATA"),
                (f"{name}-{version}-py{self.short}.egg-info", "/PKG-INFO"),
                (f"{name}-{version}-py{self.short}.egg-info", ""),
                (f"{name}-{version}.egg-info", "/PKG-INFO"),
                (f"{name}-{version}.egg-info", ""),
            ):
                path = f"{self.site_packages}/{folder}"
                if _hash(path + file) in hashes:
                    return path
        return None


class Paths(NamedTuple):
    """The paths, relative to the prefix, of files and links of a package.

    Attributes:
        own: Those of one distribution.
        present: All of them.
    """

    own: frozenset[str]
    present: frozenset[str]


def paths_of(files: Iterable[LinkedFile], installed: Installed) -> Paths:
    """Which paths of a Conda package belong to a distribution.

    They are those that pip would remove: what its RECORD lists, and all of its metadata. A distribution
    without a RECORD (an ``.egg-info``) is all that its package has beside it in ``site-packages``.

    Args:
        files: What the package installs; read to its end.
        installed: The distribution.
    """
    record = b""
    present: set[str] = set()
    for file in files:
        if file.kind is not Kind.DIRECTORY:
            present.add(file.path)
        if file.path == f"{installed.metadata}/RECORD":
            record = b"".join(file.chunks)
    site = posixpath.dirname(installed.metadata)
    if not record:
        own = {path for path in present if path.startswith(f"{site}/")}
        return Paths(frozenset(own), frozenset(present))
    rows = csv.reader(io.StringIO(record.decode(errors="replace"), newline=""))
    listed = {posixpath.normpath(f"{site}/{row[0]}") for row in rows if row}
    own = {path for path in present if path in listed or _source(path) in listed}
    own |= {path for path in present if path.startswith(f"{installed.metadata}/")}
    return Paths(frozenset(own), frozenset(present))


def emptied(removed: Collection[str], stays: Callable[[str], bool]) -> frozenset[str]:
    """The folders in which nothing is left; an installer takes them away, too.

    A ``.dist-info`` that stays, empty, would be taken for the distribution itself.

    Args:
        removed: The paths that are removed.
        stays: Whether a folder holds something that is not.
    """
    return frozenset(
        folder for folder in {folder for path in removed for folder in parents(path)} if not stays(folder)
    )


def folder_probe(layers: Iterable[PathHashes]) -> Callable[[str], bool]:
    """Tells whether one of some layers has a folder."""
    known = {folder for hashes in layers for folder in _unpack(hashes.folders)}
    return lambda folder: _hash(folder) in known


def _source(path: str) -> str | None:
    """The module that a compiled file belongs to; left behind, it would be taken for that of another one."""
    folder, _, name = path.rpartition("/")
    if not folder.endswith("/__pycache__") or not name.endswith(".pyc"):
        return None
    return f"{posixpath.dirname(folder)}/{name.partition('.')[0]}.py"


def without(files: Iterable[LinkedFile], removed: Collection[str]) -> Iterator[LinkedFile]:
    """The files without some of them, and without the folders that only those were in.

    Args:
        files: What is installed.
        removed: Paths of files and links, relative to the prefix.

    Raises:
        BuildError: What stays is a hard link to what is removed.
    """
    for file in files:
        if file.path in removed:
            continue
        if file.kind is Kind.HARDLINK and file.target in removed:
            raise BuildError(
                f"{file.path} is a hard link to {file.target}, which is replaced",
                hint="use --builder layers, or take the package that brings it from Conda alone",
            )
        yield file


def whiteouts(paths: Collection[str]) -> Iterator[LinkedFile]:
    """Entries of a layer that delete those paths, files or folders, of the layers below."""
    deleted = frozenset(paths)
    for path in sorted(deleted):
        if deleted.isdisjoint(parents(path)):
            yield LinkedFile.whiteout(path)


def stub(installed: Installed, folder: Path) -> None:
    """Write a wheel that stands in for what is installed: without files and without requirements."""
    version = installed.normal
    stem = f"{installed.name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {installed.name}\nVersion: {version}\n"
    wheel = "Wheel-Version: 1.0\nGenerator: envbuild\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for name, content in (("METADATA", metadata), ("WHEEL", wheel), ("RECORD", "")):
            archive.writestr(zipfile.ZipInfo(f"{stem}.dist-info/{name}"), content)


def _spellings(distribution: PipDistribution) -> tuple[str, ...]:
    """How metadata folders may spell the name: as the wheel does, or any of the normal ways."""
    written = distribution.file_name.partition("-")[0]
    name = canonical_name(distribution.name)
    forms = [written, name.replace("-", "_"), name, name.replace("-", "."), written.capitalize()]
    return tuple(dict.fromkeys(forms))


def _hash(path: str) -> bytes:
    return hashlib.blake2b(path.encode(), digest_size=_HASH).digest()


def _unpack(hashes: bytes) -> frozenset[bytes]:
    return frozenset(hashes[at : at + _HASH] for at in range(0, len(hashes), _HASH))
