"""What rattler itself installs, to compare with."""

from __future__ import annotations

import asyncio
import json
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import rattler
from rattler.index import index_fs

from envbuild.digest import Digest
from envbuild.lock import PackageRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from conda_packages import Package
    from envbuild.conda.link import LinkedFile

UNSTABLE = ("extracted_package_dir", "requested_specs", "link", "indexed_timestamp", "md5", "size")
"""What rattler's record says of the machine, the channel's index or the moment."""


@dataclass(frozen=True)
class Installed:
    """One installed path.

    Attributes:
        kind: ``file`` or ``link``.
        content: The bytes of a file, or the text of a link.
        mode: The permission bits of a file.
    """

    kind: str
    content: bytes
    mode: int


async def index(channel: Path) -> None:
    """Index a folder of packages."""
    await index_fs(channel)


def records(channel: Path, cache: Path) -> list[rattler.RepoDataRecord]:
    """All packages of an indexed channel, sorted by name."""
    names = set()
    for repodata in channel.glob("*/repodata.json"):
        document = json.loads(repodata.read_bytes())
        for group in ("packages", "packages.conda"):
            names |= {package["name"] for package in document.get(group, {}).values()}

    async def query() -> list[list[rattler.RepoDataRecord]]:
        gateway = rattler.Gateway(cache_dir=cache)
        return await gateway.query(
            [rattler.Channel(channel.as_uri())],
            [rattler.Subdir("linux-64"), rattler.Subdir("noarch")],
            [rattler.MatchSpec(name) for name in sorted(names)],
            recursive=False,
        )

    found = [record for group in asyncio.run(query()) for record in group]
    return sorted(found, key=lambda record: record.file_name)


def lock_record(record: rattler.RepoDataRecord) -> PackageRecord:
    """What a lock would say of a package of a channel."""
    assert record.sha256 is not None
    return PackageRecord(
        depends=tuple(record.depends),
        name=record.name.normalized,
        version=str(record.version),
        build=str(record.build),
        build_number=record.build_number,
        subdir=record.subdir,
        url=record.url,
        sha256=Digest(record.sha256.hex()),
        size=record.size,
        noarch="python" if record.noarch.python else "generic" if record.noarch.generic else None,
        python_site_packages_path=record.python_site_packages_path,
    )


def install(
    record: rattler.RepoDataRecord, python: rattler.RepoDataRecord | None, prefix: Path, cache: Path
) -> dict[str, Installed]:
    """Install one package with rattler for ``/opt/env``; the paths relative to the prefix."""
    wanted = [record] if python is None or record.name == python.name else [record, python]
    ignored = None if python is None or record.name == python.name else {"python"}
    asyncio.run(
        rattler.install(
            wanted,
            target_prefix=prefix,
            cache_dir=cache,
            ignored_packages=ignored,
            alternative_target_prefix="/opt/env",
            platform=rattler.Subdir("linux-64"),
            show_progress=False,
        )
    )
    return installed(prefix)


def installed(prefix: Path) -> dict[str, Installed]:
    """What stands under a prefix, but for what rattler writes for itself."""
    return dict(_walk(prefix))


def _walk(prefix: Path) -> Iterator[tuple[str, Installed]]:
    for path in sorted(prefix.rglob("*")):
        name = str(path.relative_to(prefix))
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode):
            yield name, Installed("link", str(path.readlink()).encode(), 0o777)
        elif stat.S_ISREG(state.st_mode) and name not in {"CACHEDIR.TAG", "conda-meta/history"}:
            yield name, Installed("file", path.read_bytes(), stat.S_IMODE(state.st_mode))


def collect(files: Iterable[LinkedFile]) -> dict[str, Installed]:
    """What envbuild installs, in the same form; hard links are resolved."""
    found: dict[str, Installed] = {}
    for file in files:
        content = b"".join(file.chunks)
        if file.kind == "2":
            found[file.path] = Installed("link", file.target.encode(), 0o777)
        elif file.kind == "1":
            found[file.path] = found[file.target]
        elif file.kind == "0":
            found[file.path] = Installed("file", content, file.mode)
    return found


def normalise(paths: dict[str, Installed], entry_points: Iterable[str]) -> dict[str, Any]:
    """Leave out what is meant to differ: the form of the record, and the modes of generated files.

    The record's fields, and each path in it, stand under names of their own, so that a difference shows.
    """
    scripts = set(entry_points)
    found: dict[str, Any] = {}
    for name, each in paths.items():
        if name.startswith("conda-meta/"):
            found |= _record_fields(name, json.loads(each.content))
        else:
            found[name] = (each.kind, each.content, 0o755 if name in scripts else each.mode)
    return found


def _record_fields(name: str, document: dict[str, Any]) -> dict[str, Any]:
    paths = document.pop("paths_data")["paths"]
    # rattler writes version numbers anew: 2023.03.6 as 2023.3.6.
    for field in {"depends", "constrains"} & document.keys():
        document[field] = [str(rattler.MatchSpec(each)) for each in document[field]]
    fields = {f"{name}:{field}": value for field, value in document.items() if field not in UNSTABLE}
    return fields | {f"{name}:{each['_path']}": each for each in paths}


def install_made(package: Package, python: Package | None, folder: Path, ending: str) -> dict[str, Installed]:
    """Install a package that a test has written."""
    channel = folder / "channel"
    for each in (package, python):
        if each is not None:
            each.put(channel, ending if each is package else ".conda")
    asyncio.run(index(channel))
    by_name = {record.name.normalized: record for record in records(channel, folder / "repodata")}
    interpreter = by_name[python.name] if python else None
    return install(by_name[package.name], interpreter, folder / "prefix", folder / "cache")


def install_together(records: Iterable[rattler.RepoDataRecord], prefix: Path, cache: Path) -> None:
    """Install packages with rattler into one prefix for ``/opt/env``."""
    asyncio.run(
        rattler.install(
            list(records),
            target_prefix=prefix,
            cache_dir=cache,
            alternative_target_prefix="/opt/env",
            platform=rattler.Subdir("linux-64"),
            show_progress=False,
        )
    )


def install_all(packages: Iterable[Package], folder: Path) -> dict[str, Installed]:
    """Install packages that a test has written into one prefix."""
    channel = folder / "channel"
    for package in packages:
        package.put(channel)
    asyncio.run(index(channel))
    install_together(records(channel, folder / "repodata"), folder / "prefix", folder / "cache")
    return installed(folder / "prefix")
