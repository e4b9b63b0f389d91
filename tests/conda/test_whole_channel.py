"""Every package of the fixture channel is installed as rattler installs it."""

from __future__ import annotations

import asyncio
import io
import shutil
import tarfile
import zipfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from rattler import PrefixRecord

import conda_oracle as oracle
from envbuild.conda.clobber import lost_paths
from envbuild.conda.fetch import fetch_package
from envbuild.conda.link import LinkTarget, PythonTarget, footprint, link
from envbuild.conda.order import installation_order
from envbuild.conda.package import Package
from envbuild.deadline import NO_DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.lock import PackageRecord
    from fixtures_channel import ChannelFolder

RATTLER_FAILS = {"empty-things"}
"""Packages that rattler 0.28 fails to install: it does not make the empty folders that they list."""

RATTLER_VARIES = {"clobber-folder"}
"""Beside others rattler's result is not the same each time; see the tests of the rules for such packages."""


def _link(record: PackageRecord, target: LinkTarget) -> tuple[dict[str, oracle.Installed], list[str]]:
    with fetch_package(record, deadline=NO_DEADLINE) as stream:
        package = Package.open(stream, str(record))
        installed = oracle.collect(link(package, record, target))
    return installed, [f"bin/{point.command}" for point in package.entry_points]


SMALL = 25_000
"""Packages of up to so many bytes are tried in the older format too; the nightly run tries all."""


def test_every_package_is_linked_as_rattler_installs_it(channel: ChannelFolder, tmp_path: Path) -> None:
    assert _compare(channel.path, tmp_path) > 1000


def test_small_packages_in_the_older_format_are_linked_as_rattler_installs_them(
    channel: ChannelFolder, tmp_path: Path
) -> None:
    _repack(channel, tmp_path / "older", SMALL)
    assert _compare(tmp_path / "older", tmp_path) > 200


@pytest.mark.nightly
def test_every_package_in_the_older_format_is_linked_as_rattler_installs_it(
    channel: ChannelFolder, tmp_path: Path
) -> None:
    _repack(channel, tmp_path / "older", 1 << 40)
    assert _compare(tmp_path / "older", tmp_path) > 1000


def _compare(channel: Path, tmp_path: Path) -> int:
    """Install each package of a channel alone, in both ways; gives how many files there were."""
    records = oracle.records(channel, tmp_path / "repodata")
    python = next(record for record in records if record.name.normalized == "python")
    target = LinkTarget(python=PythonTarget.of(oracle.lock_record(python)))
    files = 0
    different = []
    for each in records:
        record = oracle.lock_record(each)
        if record.name in RATTLER_FAILS:
            continue
        prefix = tmp_path / "prefix"
        interpreter = python if record.noarch == "python" else None
        expected = oracle.install(each, interpreter, prefix, tmp_path / "packages")
        shutil.rmtree(prefix)
        seen, scripts = _link(record, target)
        files += len(expected)
        if oracle.normalise(seen, scripts) != oracle.normalise(expected, scripts):
            different.append(str(record))
        _check_record(record, seen, tmp_path)
    assert different == []
    return files


def _repack(channel: ChannelFolder, folder: Path, limit: int) -> None:
    """Write packages of the channel, and its python, as ``.tar.bz2`` into a channel of its own."""
    for path in sorted(channel.path.glob("*/*.conda")):
        if path.stat().st_size > limit and path != channel.package("python"):
            continue
        place = folder / path.parent.name / f"{path.stem}.tar.bz2"
        place.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path) as archive, tarfile.open(place, "w:bz2", compresslevel=1) as target:
            for name in sorted(name for name in archive.namelist() if name.endswith(".tar.zst")):
                plain = zstandard.ZstdDecompressor().stream_reader(archive.read(name))
                with tarfile.open(fileobj=io.BytesIO(plain.read())) as source:
                    for member in source:
                        target.addfile(member, source.extractfile(member) if member.isreg() else None)
    asyncio.run(oracle.index(folder))


def _check_record(record: PackageRecord, installed: dict[str, oracle.Installed], folder: Path) -> None:
    """Rattler reads the record, and it names what is there."""
    name = f"conda-meta/{record}.json"
    path = folder / f"{record}.json"
    path.write_bytes(installed[name].content)
    read = PrefixRecord.from_path(path)
    assert read.name.normalized == record.name
    assert (str(read.version), str(read.build)) == (record.version, record.build)
    assert read.url == record.url
    assert {str(each) for each in read.files} == installed.keys() - {name}
    assert read.noarch.python == (record.noarch == "python")


def test_rattler_still_fails_where_it_is_said_to(channel: ChannelFolder, tmp_path: Path) -> None:
    by_name = {each.name.normalized: each for each in oracle.records(channel.path, tmp_path / "repodata")}
    assert by_name.keys() >= RATTLER_FAILS
    for name in RATTLER_FAILS:
        with pytest.raises(Exception, match="failed to link"):
            oracle.install(by_name[name], None, tmp_path / "prefix", tmp_path / "packages")
        assert _link(oracle.lock_record(by_name[name]), LinkTarget())[0]


def test_the_whole_channel_together_is_as_rattler_installs_it(channel: ChannelFolder, tmp_path: Path) -> None:
    newest = {each.name.normalized: each for each in oracle.records(channel.path, tmp_path / "repodata")}
    chosen = [each for name, each in newest.items() if name not in RATTLER_FAILS | RATTLER_VARIES]
    oracle.install_together(chosen, tmp_path / "prefix", tmp_path / "packages")
    expected = oracle.installed(tmp_path / "prefix")
    records = installation_order(oracle.lock_record(each) for each in chosen)
    target = LinkTarget(python=PythonTarget.of(oracle.lock_record(newest["python"])))
    with ExitStack() as stack:
        opened = [
            (
                Package.open(stack.enter_context(fetch_package(record, deadline=NO_DEADLINE)), str(record)),
                record,
            )
            for record in records
        ]
        lost = lost_paths([footprint(package, record, target) for package, record in opened])
        seen: dict[str, oracle.Installed] = {}
        for (package, record), paths in zip(opened, lost, strict=True):
            seen |= oracle.collect(link(package, record, target, lost=paths))
    assert any(lost), "some packages of the channel carry one path"
    scripts = {f"bin/{point.command}" for package, _ in opened for point in package.entry_points}
    assert _unordered(oracle.normalise(seen, scripts)) == _unordered(oracle.normalise(expected, scripts))


def _unordered(found: dict[str, Any]) -> dict[str, Any]:
    """Without the order of a record's paths, which is another each time rattler moves one."""
    return {name: sorted(each) if name.endswith(".json:files") else each for name, each in found.items()}
