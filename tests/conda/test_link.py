"""Packages are linked as rattler installs them."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rattler import PrefixRecord

import conda_oracle as oracle
import envbuild.conda.link as link_module
from conda_packages import MTIME, PLACEHOLDER, Entry, Package
from envbuild.conda.layer import Compression, write_layer
from envbuild.conda.link import FIXED_TIME, LinkTarget, PythonTarget, link
from envbuild.conda.package import Package as Opened
from envbuild.conda.relocate import FileMode, relocate
from envbuild.conda.tar import Kind
from envbuild.errors import BuildError, IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.conda.link import LinkedFile

P = PLACEHOLDER.encode()
LIB = hashlib.sha256(b"lib").hexdigest()
PYTHON = Package((Entry("bin/python3.11", b"python", 0o755),), name="python", version="3.11.9")
TARGET = LinkTarget(python=PythonTarget("3.11.9", "lib/python3.11/site-packages"))


def _wide(encoding: str, text: str = "/lib/x.so") -> bytes:
    return (PLACEHOLDER + text).encode(encoding)


EVERYTHING = Package(
    (
        Entry(
            "bin/tool", b"#!" + P + b"/bin/python3.11 -E\nprint('" + P + b"')\n", 0o775, placeholder="text"
        ),
        Entry("bin/setuid", b"x", 0o4755),
        Entry("bin/read-only", b"x", 0o400),
        Entry("bin/group", b"y", 0o664),
        Entry(
            "bin/long-python", b"#!" + P + b"/" + b"x" * 120 + b"/python3.11 -E\n", 0o755, placeholder="text"
        ),
        Entry(
            "bin/long-shell", b"#!" + P + b"/" + b"x" * 120 + b"/bash -e\necho\n", 0o755, placeholder="text"
        ),
        Entry("bin/longest", b"#!" + P + b"/" + b"x" * (124 - 8) + b"\n", placeholder="text"),
        Entry("bin/too-long", b"#!" + P + b"/" + b"x" * (125 - 8) + b"\n", placeholder="text"),
        Entry("bin/blank", b"#!  " + P + b"/" + b"x" * 100 + b"\\ y/python3 -a -b", placeholder="text"),
        Entry("bin/no-newline", b"#!" + P + b"/bin/sh", placeholder="text"),
        Entry("bin/other", b"#!/usr/bin/env python\n" + P, placeholder="text"),
        Entry("bin/carriage", b"#!" + P + b"/bin/python\r\n" + P + b"\r\n", placeholder="text"),
        Entry("bin/latin", b"#!" + P + b"/bin/\xe9\xff\xf0\x9ffoo\nx", placeholder="text"),
        Entry("lib/one", b"\0" + P + b"/lib:" + P + b"/share\0ZZ" + P + b"\0\0end", placeholder="binary"),
        Entry("lib/open", b"AA\0" + P + b"/unterminated", placeholder="binary"),
        Entry("lib/none", b"\0\1\2", placeholder="binary"),
        Entry("lib/twice", P + P + b"\0" + P, placeholder="binary"),
        Entry("lib/wide-16-le", bytes(4) + _wide("utf-16-le") + b"\0\0AB", placeholder="binary"),
        Entry("lib/wide-16-be", bytes(4) + _wide("utf-16-be") + b"\0\0AB", placeholder="binary"),
        Entry("lib/wide-odd", bytes(3) + _wide("utf-16-le") + b"\0\0AB", placeholder="binary"),
        Entry("lib/wide-32", bytes(4) + _wide("utf-32-le") + bytes(4) + b"AB", placeholder="binary"),
        Entry("lib/wide-32-be", bytes(4) + _wide("utf-32-be") + bytes(4) + b"AB", placeholder="binary"),
        Entry(
            "lib/mixed",
            P + b"\0" + _wide("utf-16-le") + _wide("utf-16-le", ":") + b"\0\0",
            placeholder="binary",
        ),
        Entry("share/wide.txt", b"hi " + _wide("utf-16-le") + b"x" + P, placeholder="text"),
        Entry("share/copy", P + b"/a", placeholder="text", extra={"no_link": True}),
        Entry("share/short", b"xx /short/p yy", placeholder="text", prefix="/short/p"),
        Entry("lib/libx.so.1", b"lib"),
        Entry("lib/libx.so", link="libx.so.1"),
        Entry("lib/up", link="../share/empty"),
        Entry("lib/dangling", link="nowhere"),
        Entry("lib/absolute", link="/etc/hostname"),
        Entry("lib/folder", link="../share"),
        Entry("lib/hard", hard="lib/libx.so.1", extra={"sha256": LIB}),
        Entry("lib/hard-tool", hard="bin/tool", placeholder="text"),
        Entry("lib/hard-hidden", hard="lib/unlisted"),
        Entry("lib/listed-as-file", link="libx.so.1", extra={"path_type": "hardlink", "sha256": LIB}),
        Entry("share/empty"),
        Entry("share/wrong", b"zzz", extra={"sha256": "0" * 64, "size_in_bytes": 77}),
        Entry("site-packages/not-noarch.py", b"a"),
        Entry("share/ünï/" + "long/" * 40 + "name", b"a"),
        Entry("share/data.bin", bytes(range(256)) * 20_000),
    )
)
HIDDEN = Entry("lib/unlisted", b"u", listed=False)
EVERYTHING = replace(EVERYTHING, entries=(HIDDEN, *EVERYTHING.entries))
NOARCH = Package(
    (
        Entry("site-packages/mod/__init__.py", b"x = 1\n"),
        Entry("site-packages/mod/link.py", link="__init__.py"),
        Entry("python-scripts/run", b"#!" + P + b"/bin/python\n", 0o755, placeholder="text"),
        Entry("share/doc", b"d"),
        Entry("site-packages.txt", b"e"),
    ),
    name="mod",
    noarch="python",
    entry_points=("cmd = mod.sub:main", "cmd2 = mod:Class.run", " blank  =  mod : f "),
)
SCRIPTS = ("bin/cmd", "bin/cmd2", "bin/blank")
OLD = replace(
    EVERYTHING,
    info={
        "paths.json": None,
        "files": "".join(f"{each.path}\n" for each in EVERYTHING.entries if each.listed).encode(),
        "has_prefix": "".join(
            f'"{each.prefix}" {each.placeholder} {each.path}\n'
            for each in EVERYTHING.entries
            if each.placeholder
        ).encode(),
        "no_link": b"share/copy\n",
    },
)
GENERIC = replace(EVERYTHING, noarch="generic")


def linked(package: Package, content: bytes | None = None, target: LinkTarget = TARGET) -> list[LinkedFile]:
    """What a package becomes; the contents are read whole."""
    content = package.write_conda() if content is None else content
    record = package.record(content)
    files = link(Opened.open(io.BytesIO(content), str(record)), record, target)
    return [replace(file, chunks=(b"".join(file.chunks),)) for file in files]


@pytest.mark.parametrize("ending", [".conda", ".tar.bz2"])
@pytest.mark.parametrize(
    "package", [EVERYTHING, NOARCH, OLD, GENERIC], ids=["everything", "noarch", "old", "generic"]
)
def test_a_package_is_linked_as_rattler_installs_it(package: Package, ending: str, tmp_path: Path) -> None:
    expected = oracle.install_made(package, PYTHON, tmp_path, ending)
    record = package.put(tmp_path / "channel", ending)
    content = (tmp_path / "channel" / package.subdir / record.file_name).read_bytes()
    files = link(Opened.open(io.BytesIO(content), str(record)), record, TARGET)
    seen = oracle.collect(files)
    assert oracle.normalise(seen, SCRIPTS) == oracle.normalise(expected, SCRIPTS)


def test_large_files_with_a_prefix_are_linked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = oracle.collect(linked(EVERYTHING))
    monkeypatch.setattr(link_module, "_HELD", 0)
    assert oracle.collect(linked(EVERYTHING)) == expected


def test_a_caller_who_reads_no_content_gets_the_same_record() -> None:
    content = EVERYTHING.write_conda()
    record = EVERYTHING.record(content)
    *_, meta = link(Opened.open(io.BytesIO(content), "it"), record, TARGET)
    assert b"".join(meta.chunks) == b"".join(linked(EVERYTHING)[-1].chunks)


def test_rattler_reads_the_record(tmp_path: Path) -> None:
    meta = linked(NOARCH)[-1]
    assert meta.path == "conda-meta/mod-1.0-0.json"
    assert (meta.mode, meta.mtime) == (0o644, FIXED_TIME)
    path = tmp_path / "mod-1.0-0.json"
    path.write_bytes(b"".join(meta.chunks))
    record = PrefixRecord.from_path(path)
    content = NOARCH.write_conda()
    assert record.name.normalized == "mod"
    assert record.sha256 == hashlib.sha256(content).digest()
    assert record.url == NOARCH.record(content).url
    assert record.channel == "https://channel.invalid/fixtures/"
    assert record.noarch.python
    assert "lib/python3.11/site-packages/mod/__init__.py" in map(str, record.files)
    assert len(record.paths_data.paths) == 8


def test_a_record_may_hold_half_a_surrogate_pair() -> None:
    meta = linked(Package((), index={"license": "\ud800"}))[-1]
    assert json.loads(b"".join(meta.chunks))["license"] == "\ud800"


def test_the_record_says_nothing_of_the_channels_index() -> None:
    content = NOARCH.write_conda()
    record = NOARCH.record(content)
    other = replace(record, md5="0" * 32, size=None, depends=("patched",), build_number=7)
    first, second = (
        oracle.collect(link(Opened.open(io.BytesIO(content), "it"), each, TARGET)) for each in (record, other)
    )
    assert first == second


def test_times_are_the_packages_or_fixed() -> None:
    times = {file.path: file.mtime for file in linked(EVERYTHING)}
    assert times["bin/tool"] == times["share/empty"] == MTIME
    assert times["lib/libx.so"] == times["conda-meta/thing-1.0-0.json"] == FIXED_TIME
    assert {file.path: file.mtime for file in linked(NOARCH)}["bin/cmd"] == FIXED_TIME


def test_hard_links_stay_links_where_the_content_is_the_same() -> None:
    kinds = {file.path: (file.kind, file.target) for file in linked(EVERYTHING)}
    assert kinds["lib/hard"] == (Kind.HARDLINK, "lib/libx.so.1")
    assert kinds["lib/hard-tool"] == kinds["lib/hard-hidden"] == (Kind.FILE, "")


def test_an_entry_point_takes_the_place_of_a_script(tmp_path: Path) -> None:
    entries = (Entry("python-scripts/cmd", b"old", 0o755),)
    package = replace(NOARCH, entries=entries, entry_points=("cmd = mod:main",))
    found = {file.path: b"".join(file.chunks) for file in linked(package)}
    assert b"from mod import main" in found["bin/cmd"]


def test_an_explicit_empty_folder_is_made() -> None:
    package = Package((Entry("var/empty", kind=b"5", mode=0o700, extra={"path_type": "directory"}),))
    folder = linked(package)[0]
    assert (folder.path, folder.kind, folder.mode) == ("var/empty", Kind.DIRECTORY, 0o755)


@pytest.mark.parametrize("noarch", [None, "python"])
def test_a_package_that_runs_a_script_before_is_refused(noarch: Any) -> None:
    folder = "python-scripts" if noarch else "bin"
    package = Package((Entry(f"{folder}/.thing-pre-link.sh", b"echo", 0o755),), noarch=noarch)
    with pytest.raises(BuildError, match=r"thing-1.0-0 runs a script .*bin/\.thing-pre-link\.sh") as caught:
        linked(package)
    assert caught.value.hint


def test_other_scripts_are_files_like_others() -> None:
    names = (".thing-pre-unlink.sh", ".thing-post-link.sh", ".other-pre-link.sh")
    entries = tuple(Entry(f"bin/{name}", b"echo") for name in names)
    assert [file.path for file in linked(Package(entries))][:3] == [entry.path for entry in entries]


def test_a_python_package_needs_a_python() -> None:
    with pytest.raises(BuildError, match="has no python"):
        linked(NOARCH, target=LinkTarget())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"name": "other"}, "its name is 'other'"),
        ({"version": "2"}, "its version is '2'"),
        ({"build": "1"}, "its build is '1'"),
        ({"noarch": "python"}, "its noarch is 'python'"),
    ],
)
def test_a_package_that_is_another_is_refused(index: dict[str, str], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        linked(Package((), index=index))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((Entry("lib", link="/usr/lib"), Entry("lib/x")), "'lib' both as a file and as a folder"),
        ((Entry("conda-meta", link="/etc"),), "'conda-meta' both as a file and as a folder"),
        ((Entry("lib/up", link="../../x"),), "outside of /opt/env"),
        ((Entry("up", link="../env/x"),), "outside of /opt/env"),
        ((Entry("a/b/up", link="./../.././../x"),), "outside of /opt/env"),
        ((Entry("lib64", link="lib"), Entry("lib64/x")), "'lib64' both as a file and as a folder"),
        ((Entry("a"), Entry("a/b")), "'a' both as a file and as a folder"),
        ((Entry("conda-meta/thing-1.0-0.json"),), "two files as 'conda-meta/thing-1.0-0.json'"),
        ((Entry("a", extra={"path_type": "softlink"}),), "as a file, and lists softlink"),
        ((Entry("a", kind=b"5"),), "as a directory, and lists hardlink"),
        (
            (Entry("a", kind=b"5", placeholder="text", extra={"path_type": "directory"}),),
            "lists a file with a prefix",
        ),
        ((Entry("bin/.wh.tool"),), r"thing-1\.0-0 would install 'bin/\.wh\.tool'"),
        ((Entry("bin/.wh..wh..opq"),), "deletes files of other layers"),
        ((Entry(".wh.bin/tool"),), "deletes files of other layers"),
        ((Entry("bin/.wh.tool", link="tool"),), "deletes files of other layers"),
        ((Entry("bin/a\nb"),), "control characters"),
        ((Entry("bin/" + "x" * 256),), "at most 255 bytes a name"),
        ((Entry("bin/" + "ü" * 128),), "at most 255 bytes a name"),
        ((Entry("x/" * 2100 + "x"),), "characters in 2101 folders, expected at most"),
        ((Entry("a", link="x" * 5000),), "a link to what is no path"),
        ((Entry("a", hard="b"),), "has no 'b'"),
        ((Entry("a", hard="/etc/passwd"),), "inside the package"),
        ((Entry("a", hard="a"),), "which is no file"),
        ((Entry("b", link="c"), Entry("a", hard="b")), "which is no file"),
    ],
)
def test_hostile_packages_are_refused(entries: tuple[Entry, ...], message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        write_layer(linked(Package(entries)), io.BytesIO(), Compression.of("gzip"))


def test_a_link_that_is_listed_with_a_prefix_is_a_link() -> None:
    declared = {"prefix_placeholder": PLACEHOLDER, "file_mode": "text"}
    entries = (
        Entry("share/data", b"x"),
        Entry("share/link", link="data", extra=declared),
        Entry("share/as-file", link="data", extra={**declared, "path_type": "hardlink"}),
        Entry("share/absolute", link=f"{PLACEHOLDER}/share/data", extra=declared),
    )
    seen = {file.path: file for file in linked(Package(entries))}
    links = [seen[f"share/{name}"] for name in ("link", "as-file", "absolute")]
    assert [link.kind for link in links] == [Kind.SYMLINK] * 3
    assert [link.target for link in links] == ["data", "data", f"{PLACEHOLDER}/share/data"]
    meta = json.loads(b"".join(seen["conda-meta/thing-1.0-0.json"].chunks))
    types = {each["_path"]: each["path_type"] for each in meta["paths_data"]["paths"]}
    assert types["share/link"] == types["share/absolute"] == "softlink"


@pytest.mark.parametrize("kind", ["python", "generic"])
def test_the_package_decides_what_the_channel_leaves_out(kind: Any, tmp_path: Path) -> None:
    package = replace(NOARCH, noarch=kind, entry_points=())
    content = package.write_conda()
    record = replace(package.record(content), noarch=None)
    files = {file.path: file for file in link(Opened.open(io.BytesIO(content), "mod"), record, TARGET)}
    expected = {file.path for file in linked(package)}
    assert files.keys() == expected
    assert ("lib/python3.11/site-packages/mod/__init__.py" in files) == (kind == "python")
    path = tmp_path / "mod-1.0-0.json"
    path.write_bytes(b"".join(files["conda-meta/mod-1.0-0.json"].chunks))
    assert getattr(PrefixRecord.from_path(path).noarch, kind)


def test_a_python_package_in_another_folder_than_noarch_is_refused() -> None:
    content = NOARCH.write_conda()
    record = replace(NOARCH.record(content), noarch=None, subdir="linux-64")
    with pytest.raises(IntegrityError, match="its noarch is 'python', the channel says None"):
        list(link(Opened.open(io.BytesIO(content), "mod"), record, TARGET))


def test_a_name_counts_without_its_case() -> None:
    package = Package((Entry("a"),), index={"name": "Thing"})
    assert "conda-meta/thing-1.0-0.json" in {file.path for file in linked(package)}


def test_two_files_in_one_place_are_refused() -> None:
    entries = (Entry("bin/x"), Entry("python-scripts/x"))
    with pytest.raises(IntegrityError, match="two files as 'bin/x'"):
        linked(Package(entries, noarch="python"))


def test_a_listed_file_that_is_not_there_is_told() -> None:
    paths = {"paths": [{"_path": "bin/x", "path_type": "hardlink"}], "paths_version": 1}
    with pytest.raises(IntegrityError, match="lists 'bin/x' and does not have it"):
        linked(Package((), info={"paths.json": json.dumps(paths).encode()}))


def test_a_binary_without_room_for_the_prefix_is_refused() -> None:
    entry = Entry("lib/x", b"\0/p\0", placeholder="binary", prefix="/p")
    with pytest.raises(BuildError, match="no room for '/opt/env'"):
        linked(Package((entry,)))


@pytest.mark.parametrize(
    "prefix", ["", "/", "opt", "/opt/env/", "/opt/a b", "/opt/'x", "/opt/\n", "/opt/..", "/./env"]
)
def test_a_strange_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(BuildError, match="the prefix"):
        LinkTarget(prefix)


def test_the_target_of_a_python_comes_from_its_record() -> None:
    record = PYTHON.record(b"")
    assert PythonTarget.of(record) == PythonTarget("3.11.9", "lib/python3.11/site-packages")
    free = replace(record, version="3.14.0rc1", python_site_packages_path="lib/python3.14t/site-packages")
    assert PythonTarget.of(free) == PythonTarget("3.14.0rc1", "lib/python3.14t/site-packages")
    assert PythonTarget.of(free).short == "3.14"
    with pytest.raises(BuildError, match="expected MAJOR"):
        PythonTarget.of(replace(record, version="3"))


PIECES = st.lists(
    st.sampled_from([b"\0", b"\0\0", b"\0\0\0\0", b"a", b"/p/old", *(_.encode() for _ in "\n:#!")])
    | st.sampled_from(["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]).map("/p/old".encode),
    max_size=12,
).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(PIECES)
def test_relocating_a_binary_keeps_its_length(content: bytes) -> None:
    changed = relocate(content, FileMode.BINARY, "/p/old", "/n")
    joined = b"".join(changed.chunks())
    assert len(joined) == changed.size == len(content)
    assert joined == content or any("/p/old".encode(name) in content for name in ENCODINGS)


ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


@settings(max_examples=500, deadline=None)
@given(PIECES)
def test_relocating_a_text_leaves_no_old_prefix(content: bytes) -> None:
    changed = relocate(content, FileMode.TEXT, "/p/old", "/n")
    joined = b"".join(changed.chunks())
    assert len(joined) == changed.size
    if not content.startswith(b"#!"):
        assert b"/p/old" not in joined
