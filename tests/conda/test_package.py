"""Packages are read as they are meant, and hostile or damaged ones are refused."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import envbuild.conda.package as package_module
from conda_packages import MTIME, PLACEHOLDER, Entry, Package
from envbuild.conda.package import Package as Opened
from envbuild.conda.paths import EntryPoint, PathEntry, PathType
from envbuild.conda.relocate import FileMode
from envbuild.conda.tar import MAX_TIME, Kind, TarReader, parents, write_header
from envbuild.errors import EnvbuildError, IntegrityError
from envbuild.inflate import Bounds

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = "share/" + "/".join(["a-folder-with-a-long-name"] * 12) + "/file-with-ünicode.txt"
GOOD = Package(
    (
        Entry("bin/tool", b"#!/bin/sh\n", 0o755),
        Entry("lib/libx.so.1", b"lib" * 1000),
        Entry("lib/libx.so", link="libx.so.1"),
        Entry("lib/other", hard="lib/libx.so.1"),
        Entry(LONG, b"long"),
        Entry("share/empty"),
        Entry("share/prefix", PLACEHOLDER.encode(), placeholder="text"),
    )
)
WRITERS: tuple[Callable[[Package], bytes], ...] = (Package.write_conda, Package.write_bz2)


def opened(content: bytes) -> Opened:
    return Opened.open(io.BytesIO(content), "thing-1.0-0")


def read_all(content: bytes) -> list[tuple[str, Kind, int, int, str, bytes]]:
    return [
        (each.path, each.kind, each.mode, each.mtime, each.target, each.read())
        for each in opened(content).members()
    ]


@pytest.mark.parametrize("write", WRITERS)
def test_members_come_in_order_with_all_they_have(write: Callable[[Package], bytes]) -> None:
    content = write(GOOD)
    assert read_all(content) == [
        (
            entry.path,
            Kind.SYMLINK if entry.link else Kind.HARDLINK if entry.hard else Kind.FILE,
            entry.mode,
            MTIME,
            entry.link or entry.hard or "",
            entry.content,
        )
        for entry in GOOD.entries
    ]
    package = opened(content)
    assert package.index["name"] == "thing"
    assert package.noarch is None
    assert package.paths["share/prefix"].placeholder == PLACEHOLDER
    assert package.paths["share/prefix"].file_mode is FileMode.TEXT
    assert package.paths["lib/libx.so"].path_type is PathType.SOFTLINK
    assert package.paths["lib/libx.so.1"].size == 3000


def test_members_may_be_read_in_part_and_twice() -> None:
    package = opened(GOOD.write_conda())
    assert len(list(package.members())) == len(GOOD.entries)
    first = next(iter(package.members()))
    assert package.find("lib/libx.so.1").read() == b"lib" * 1000
    assert b"".join(first.chunks()) == b"#!/bin/sh\n"
    with pytest.raises(IntegrityError, match="has no 'lib/none'"):
        package.find("lib/none")


def test_entry_points_are_read_for_python_packages_alone() -> None:
    points = ("tool = pkg.cli:main", "  other=pkg:Class.run ")
    package = Package((), noarch="python", entry_points=points)
    assert opened(package.write_conda()).entry_points == (
        EntryPoint("tool", "pkg.cli", "main"),
        EntryPoint("other", "pkg", "Class.run"),
    )
    link = package.info_files()["info/link.json"]
    generic = replace(package, noarch="generic", info={"link.json": link})
    assert opened(generic.write_conda()).entry_points == ()


@pytest.mark.parametrize(
    ("noarch", "expected"), [(None, None), (False, None), (True, "generic"), ("python", "python")]
)
def test_noarch_is_read_in_its_old_spellings_too(noarch: Any, expected: str | None) -> None:
    package = Package((), index={"noarch": noarch})
    assert opened(package.write_conda()).noarch == expected


@pytest.mark.parametrize("write", WRITERS)
def test_a_package_without_paths_json_is_read(write: Callable[[Package], bytes]) -> None:
    prefixes = f'{PLACEHOLDER} binary bin/tool\n"{PLACEHOLDER}" text "share/a b"\nshare/old\n'
    info = {
        "paths.json": None,
        "files": b"bin/tool\nlib/libx.so\nshare/a b\nshare/old\n",
        "has_prefix": prefixes.encode(),
        "no_link": b"share/old\n",
    }
    paths = opened(write(replace(GOOD, info=info))).paths
    old = "/opt/anaconda1anaconda2anaconda3"
    assert list(paths.values()) == [
        PathEntry("bin/tool", None, PLACEHOLDER, FileMode.BINARY),
        PathEntry("lib/libx.so", None),
        PathEntry("share/a b", None, PLACEHOLDER, FileMode.TEXT),
        PathEntry("share/old", None, old, FileMode.TEXT, no_link=True),
    ]


BAD_PATHS = ("/etc/passwd", "../up", "a/../../b", "a//b", "./../a", "a/./b")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_member_outside_of_the_package_is_refused(write: Callable[[Package], bytes], path: str) -> None:
    content = write(Package((Entry(path, b"x", listed=False),)))
    with pytest.raises(IntegrityError, match="expected one inside the package"):
        read_all(content)


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_listed_path_outside_of_the_package_is_refused(path: str) -> None:
    with pytest.raises(IntegrityError, match="expected one inside the package"):
        opened(Package((Entry(path),)).write_conda())


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"Z"])
def test_devices_and_what_is_unknown_are_refused(kind: bytes) -> None:
    content = Package((Entry("dev/x", kind=kind),)).write_conda()
    with pytest.raises(IntegrityError, match="expected files, directories and links"):
        read_all(content)


@pytest.mark.parametrize("write", WRITERS)
def test_a_member_twice_is_refused(write: Callable[[Package], bytes]) -> None:
    content = write(Package((Entry("a", b"1"), Entry("a", b"2", listed=False))))
    with pytest.raises(IntegrityError, match="'a' twice"):
        read_all(content)
    with pytest.raises(IntegrityError, match="lists a path twice"):
        opened(write(Package((Entry("a"), Entry("a")))))


def test_a_bomb_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "_BOUNDS", Bounds(1 << 20, 100, 1 << 30))
    for write in WRITERS:
        content = write(Package((Entry("zeros", bytes(64 << 20)),)))
        with pytest.raises(IntegrityError, match="unpacks to more than"):
            read_all(content)
        assert read_all(write(GOOD))


def test_a_bomb_of_metadata_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "_MAX_INFO", 1 << 20)
    content = Package((), info={"files": bytes(2 << 20)}).write_conda()
    with pytest.raises(IntegrityError, match="bytes of metadata"):
        opened(content)


def zipped(names: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in names.items():
            # Of a fixed time, as tests are named by it.
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


EMPTY = zstandard.compress(b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a .conda or .tar.bz2"),
        (b"\x7fELF", "expected a .conda or .tar.bz2"),
        (b"PK\x03\x04junk", "not a readable Conda package"),
        (b"BZh9junk", "cannot be decompressed as bz2"),
        (zipped({"metadata.json": b""}), "0 members"),
        (zipped({"pkg-a.tar.zst": EMPTY}), "0 members 'info-"),
        (zipped({f"pkg-{x}.tar.zst": EMPTY for x in "ab"}), "2 members 'pkg-"),
        (zipped({"pkg-a.tar.zst": EMPTY, "info-a.tar.zst": EMPTY}), "no info/index.json"),
        (zipped({"pkg-a.tar.zst": b"x", "info-a.tar.zst": b"x"}), "cannot be decompressed as zstd"),
        (GOOD.write_conda(stored=False), "compressed, expected stored"),
        (replace(GOOD, info={"index.json": b"[]"}).write_conda(), "not a JSON object"),
        (replace(GOOD, info={"index.json": b"{"}).write_conda(), "not a readable Conda package"),
        (replace(GOOD, info={"index.json": b"[" * 100_000}).write_conda(), "not a readable Conda package"),
        (replace(GOOD, info={"paths.json": None}).write_conda(), "neither info/paths.json nor info/files"),
        (replace(GOOD, info={"paths.json": b"{}"}).write_conda(), "without a list of paths"),
        (replace(GOOD, index={"noarch": "ruby"}).write_conda(), "noarch 'ruby'"),
        (replace(GOOD, index={"noarch": ["python"]}).write_conda(), "noarch .'python'."),
    ],
)
def test_what_is_no_package_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        opened(content)


@pytest.mark.parametrize(
    "entry",
    [
        None, "bin/x", {}, {"_path": 1}, {"_path": "a", "path_type": "fifo"}, {"_path": "a", "sha256": 1},
        {"_path": "a", "prefix_placeholder": "/p", "file_mode": "hex"}, {"_path": "a", "size_in_bytes": "1"},
        {"_path": "a", "prefix_placeholder": 3}, {"_path": "a", "prefix_placeholder": "/\ud800"},
    ],
)  # fmt: skip
def test_a_bad_entry_is_refused(entry: Any) -> None:
    paths = json.dumps({"paths": [entry], "paths_version": 1}).encode()
    with pytest.raises(IntegrityError, match=r"entry in info/paths\.json"):
        opened(replace(GOOD, info={"paths.json": paths}).write_conda())


@pytest.mark.parametrize(
    "point",
    [
        "tool",
        "tool = pkg",
        "= pkg:main",
        "../tool = pkg:main",
        "a/b = pkg:f",
        "t = p:f\nimport os",
        "t = p:\ud800",
    ],
)
def test_a_bad_entry_point_is_refused(point: str) -> None:
    with pytest.raises(IntegrityError):
        opened(Package((), noarch="python", entry_points=(point,)).write_conda())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_changes_nothing_that_is_read(data: st.DataObject) -> None:
    write = data.draw(st.sampled_from(WRITERS))
    content = bytearray(write(replace(GOOD, entries=GOOD.entries[:3])))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    try:
        read_all(bytes(content[:cut]))
    except EnvbuildError as error:
        assert "thing-1.0-0" in str(error)  # noqa: PT017 - some damage is in bytes that nobody reads


PATHS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=130)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(PATHS, min_size=1, max_size=4).map("/".join).filter(lambda path: len(path.encode()) < 900),
    st.sampled_from(Kind),
    st.integers(0, 0o7777),
    st.integers(0, MAX_TIME),
    st.integers(0, 1 << 40),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=130),
)
def test_headers_are_read_by_pythons_tarfile_as_they_were_written(
    path: str, kind: Kind, mode: int, mtime: int, size: int, target: str
) -> None:
    size = size if kind is Kind.FILE else 0
    target = target if kind in {Kind.SYMLINK, Kind.HARDLINK} else ""
    header = write_header(path, kind, mode=mode, mtime=mtime, size=size, target=target)
    assert len(header) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(header + bytes(1024)), mode="r") as archive:
        info = archive.next()
    assert info is not None
    assert (info.name, info.type, info.mode, info.mtime) == (
        path.rstrip("/"),
        kind.value.encode(),
        mode,
        mtime,
    )
    assert (info.size, info.linkname, info.uid, info.gid, info.uname) == (size, target, 0, 0, "")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_tar_dialect_is_read(form: int) -> None:
    path = LONG if form != tarfile.USTAR_FORMAT else "share/" + "f" * 90 + "/" + "n" * 60
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers={"comment": "x"}) as archive:
        info = tarfile.TarInfo(path)
        info.size, info.mtime = 5, 1_600_000_000.75 if form == tarfile.PAX_FORMAT else 1_600_000_000
        archive.addfile(info, io.BytesIO(b"hello"))
        folder = tarfile.TarInfo("./folder/")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "x" * (150 if form != tarfile.USTAR_FORMAT else 100)
        archive.addfile(link)
    out.seek(0)
    members = [(each.path, each.kind, each.mtime, each.target, each.read()) for each in TarReader(out, "it")]
    assert members == [
        (path, Kind.FILE, 1_600_000_000, "", b"hello"),
        ("folder", Kind.DIRECTORY, 0, "", b""),
        ("link", Kind.SYMLINK, 0, link.linkname, b""),
    ]


def tar_of(header: bytes, **fields: tuple[int, bytes]) -> TarReader:
    """A reader of one header with some fields overwritten, and its checksum mended."""
    changed = bytearray(header)
    for start, value in fields.values():
        changed[start : start + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return TarReader(io.BytesIO(bytes(changed) + bytes(2048)), "it")


HEADER = write_header("a", Kind.FILE, mode=0o644, mtime=7, size=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (124, b"000000000zz\0")}, "the number"),
        ({"name": (0, b"\xff\xfe")}, "not UTF-8"),
        ({"flag": (156, b"x"), "size": (124, b"%011o\0" % (2 << 20))}, "extended tar header of"),
        ({"flag": (156, b"x"), "size": (124, b"%011o\0" % 512)}, "damaged extended"),
        ({"name": (0, b"/a")}, "inside the package"),
    ],
)
def test_a_hostile_header_is_refused(fields: dict[str, tuple[int, bytes]], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        list(tar_of(HEADER, **fields))


def test_large_and_negative_numbers_are_read() -> None:
    size = (124, b"\x80" + (5).to_bytes(11))
    (member,) = tar_of(HEADER, size=size, mtime=(136, b"\xff" * 12))
    assert (member.size, member.mtime) == (5, 0)
    (folder,) = tar_of(HEADER, name=(0, b"folder/\0"), size=(124, b"0" * 11))
    assert folder.kind is Kind.DIRECTORY


def test_a_wrong_checksum_and_a_cut_archive_are_refused() -> None:
    with pytest.raises(IntegrityError, match="checksum"):
        list(TarReader(io.BytesIO(b"b" + HEADER[1:]), "it"))
    with pytest.raises(IntegrityError, match="ends in the middle"):
        [each.read() for each in TarReader(io.BytesIO(HEADER + b"123"), "it")]
    assert [each.read() for each in TarReader(io.BytesIO(HEADER + b"12345" + bytes(507)), "it")] == [b"12345"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"22 GNU.sparse.major=1\n", "sparse"),
        (b"12 size=-50\n", "the number"),
        (b"9 path=a\nx", "damaged"),
        (b"x", "damaged"),
    ],
)
def test_a_hostile_extension_is_refused(record: bytes, message: str) -> None:
    extended = bytearray(write_header("pax", Kind.FILE, mode=0, mtime=0, size=len(record)))
    extended[156:157] = b"x"
    extended[148:156] = b" " * 8
    extended[148:156] = b"%06o\0 " % sum(extended)
    content = bytes(extended) + record + bytes(-len(record) % 512) + HEADER
    with pytest.raises(IntegrityError, match=message):
        list(TarReader(io.BytesIO(content), "it"))


def test_the_folders_of_a_path_come_from_the_top() -> None:
    assert list(parents("a/b/c")) == ["a", "a/b"]
    assert list(parents("a")) == []
