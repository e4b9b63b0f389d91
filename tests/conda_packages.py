"""Small Conda packages for tests, written from a description of their files."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import zstandard

from envbuild.digest import Digest
from envbuild.lock import PackageRecord

if TYPE_CHECKING:
    from pathlib import Path

PLACEHOLDER = "/placeholder" + "_placehold" * 20
"""A prefix of the usual length, as a package's builder would have used."""

MTIME = 1_600_000_000


@dataclass(frozen=True)
class Entry:
    """One member of a package.

    Attributes:
        path: Where it is in the package.
        content: The bytes of a file.
        mode: The permission bits.
        link: The target of a symbolic link, or None.
        hard: The path of the member that this one is a hard link to, or None.
        placeholder: How the prefix stands in the file, or None.
        listed: Whether ``paths.json`` names it.
        kind: The tar type, where it is none of the usual ones.
        prefix: The placeholder to declare.
        extra: More fields for the entry of ``paths.json``.
    """

    path: str
    content: bytes = b""
    mode: int = 0o644
    link: str | None = None
    hard: str | None = None
    placeholder: Literal["text", "binary"] | None = None
    listed: bool = True
    kind: bytes | None = None
    prefix: str = PLACEHOLDER
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def describe(self) -> dict[str, Any]:
        """The entry of ``paths.json``."""
        entry: dict[str, Any] = {"_path": self.path, "path_type": "softlink" if self.link else "hardlink"}
        if self.link is None:
            entry["sha256"] = hashlib.sha256(self.content).hexdigest()
            entry["size_in_bytes"] = len(self.content)
        if self.placeholder:
            entry |= {"prefix_placeholder": self.prefix, "file_mode": self.placeholder}
        return entry | self.extra

    def member(self) -> tarfile.TarInfo:
        """The tar member's header."""
        info = tarfile.TarInfo(self.path)
        info.mode, info.mtime, info.size = self.mode, MTIME, len(self.content)
        if self.link is not None:
            info.type, info.linkname, info.size = tarfile.SYMTYPE, self.link, 0
        if self.hard is not None:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, self.hard, 0
        if self.kind is not None:
            info.type = self.kind
        return info


@dataclass(frozen=True)
class Package:
    """A package to write.

    Attributes:
        entries: Its members.
        name: Its name.
        version: Its version.
        build: Its build string.
        noarch: ``python``, ``generic`` or None.
        entry_points: Entry points as ``name = module:function``; only for ``noarch: python``.
        info: More files under ``info/``, or replacements of the usual ones; None leaves one out.
        index: More fields of ``index.json``.
    """

    entries: tuple[Entry, ...]
    name: str = "thing"
    version: str = "1.0"
    build: str = "0"
    noarch: Literal["python", "generic"] | None = None
    entry_points: tuple[str, ...] = ()
    info: dict[str, bytes | None] = field(default_factory=dict, hash=False)
    index: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def stem(self) -> str:
        """The file name without its ending."""
        return f"{self.name}-{self.version}-{self.build}"

    @property
    def subdir(self) -> str:
        """The folder of the channel."""
        return "noarch" if self.noarch else str(self.index.get("subdir", "linux-64"))

    def info_files(self) -> dict[str, bytes]:
        """The files under ``info/``."""
        index: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "depends": [],
            "license": "BSD-3-Clause",
            "subdir": self.subdir,
            "timestamp": 1600000000000,
        }
        if self.noarch:
            index["noarch"] = self.noarch
        files: dict[str, bytes | None] = {
            "index.json": _json(index | self.index),
            "about.json": _json({"summary": "made for a test"}),
            "paths.json": _json(
                {"paths": [entry.describe() for entry in self.entries if entry.listed], "paths_version": 1}
            ),
        }
        if self.noarch == "python":
            link = {"noarch": {"type": "python", "entry_points": list(self.entry_points)}}
            files["link.json"] = _json(link | {"package_metadata_version": 1})
        return {f"info/{name}": data for name, data in (files | self.info).items() if data is not None}

    def write_conda(self, *, level: int = 3, stored: bool = True) -> bytes:
        """The package as a ``.conda`` file."""
        compress = zstandard.ZstdCompressor(level=level).compress
        out = io.BytesIO()
        method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
        parts = {
            "metadata.json": _json({"conda_pkg_format_version": 2}),
            f"pkg-{self.stem}.tar.zst": compress(self._tar(files=True, info=False)),
            f"info-{self.stem}.tar.zst": compress(self._tar(files=False, info=True)),
        }
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in parts.items():
                archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
        return out.getvalue()

    def write_bz2(self) -> bytes:
        """The package as a ``.tar.bz2`` file."""
        return self._tar(files=True, info=True, mode="w:bz2")

    def _tar(self, *, files: bool, info: bool, mode: Literal["w", "w:bz2"] = "w") -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as archive:
            for name, data in self.info_files().items() if info else ():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            for entry in self.entries if files else ():
                archive.addfile(entry.member(), io.BytesIO(entry.content))
        return out.getvalue()

    def record(self, content: bytes, url: str | None = None, ending: str = ".conda") -> PackageRecord:
        """The record that a channel would hold of the package's bytes."""
        return PackageRecord(
            name=self.name,
            version=self.version,
            build=self.build,
            build_number=0,
            subdir=self.subdir,
            url=url or f"https://channel.invalid/fixtures/{self.subdir}/{self.stem}{ending}",
            sha256=Digest.of(content),
            size=len(content),
            noarch=self.noarch,
        )

    def put(self, channel: Path, ending: str = ".conda") -> PackageRecord:
        """Write the package into a channel's folder and give its record, with a ``file:`` URL."""
        content = self.write_conda() if ending == ".conda" else self.write_bz2()
        path = channel / self.subdir / f"{self.stem}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return self.record(content, path.as_uri())


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()
