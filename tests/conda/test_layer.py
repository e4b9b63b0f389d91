"""Layers are reproducible, complete, and named before they are made."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import conda_oracle as oracle
from conda_packages import MTIME, PLACEHOLDER, Entry, Package
from envbuild.conda.layer import (
    Compression,
    PathHashes,
    WrittenLayer,
    compress,
    layer_key,
    make_layer,
    write_layer,
)
from envbuild.conda.link import FIXED_TIME, LinkedFile, LinkTarget, PythonTarget, link
from envbuild.conda.package import Package as Opened
from envbuild.conda.tar import Kind
from envbuild.digest import Digest
from envbuild.errors import BuildError, IntegrityError
from envbuild.oci.manifest import OCI_LAYER_GZIP, OCI_LAYER_ZSTD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GZIP, ZSTD = Compression.of("gzip"), Compression.of("zstd")
TARGET = LinkTarget(python=PythonTarget("3.11.9", "lib/python3.11/site-packages"))
BIG = bytes(range(256)) * 25_000
PACKAGE = Package(
    (
        Entry("bin/tool", b"#!" + PLACEHOLDER.encode() + b"/bin/sh\n", 0o755, placeholder="text"),
        Entry("lib/big.bin", BIG),
        Entry("lib/libx.so.1", b"lib"),
        Entry("lib/libx.so", link="libx.so.1"),
        Entry("lib/hard", hard="lib/libx.so.1"),
        Entry("share/" + "long-" * 30 + "/" + "ü" * 60, b"far"),
        Entry("share/empty"),
        Entry("var/empty", kind=b"5", extra={"path_type": "directory"}),
    )
)


def made(
    package: Package, compression: Compression = GZIP, target: LinkTarget = TARGET, **options: Any
) -> tuple[WrittenLayer, bytes]:
    content = package.write_conda()
    out = io.BytesIO()
    layer = make_layer(package.record(content), io.BytesIO(content), target, compression, out, **options)
    return layer, out.getvalue()


def unpacked(layer: bytes, name: str = "gzip") -> bytes:
    if name == "gzip":
        return gzip.decompress(layer)
    return zstandard.ZstdDecompressor().stream_reader(layer, read_across_frames=True).read()


@pytest.mark.parametrize(("name", "media_type"), [("gzip", OCI_LAYER_GZIP), ("zstd", OCI_LAYER_ZSTD)])
def test_a_layer_is_described_as_it_is(name: Literal["gzip", "zstd"], media_type: str) -> None:
    layer, content = made(PACKAGE, Compression.of(name))
    raw = unpacked(content, name)
    assert layer.descriptor.media_type == media_type
    assert layer.descriptor.digest == Digest.of(content)
    assert layer.descriptor.size == len(content)
    assert layer.diff_id == Digest.of(raw)
    assert layer.raw_size == len(raw)
    assert layer.files_count == 8


def test_a_layer_holds_folders_before_files_and_nobodys_name() -> None:
    _, content = made(PACKAGE)
    with tarfile.open(fileobj=io.BytesIO(unpacked(content))) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names[:2] == ["opt", "opt/env"]
    assert len(set(names)) == len(names)
    for at, name in enumerate(names[1:], 1):
        assert name.rpartition("/")[0] in names[:at]
    for member in members:
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
        if member.isdir():
            assert (member.mode, member.mtime) == (0o755, FIXED_TIME)
    by_name = {member.name.removeprefix("opt/env/"): member for member in members}
    assert by_name["lib/big.bin"].mtime == MTIME
    assert by_name["bin/tool"].mode == 0o755
    assert by_name["lib/libx.so"].linkname == "libx.so.1"
    assert by_name["lib/hard"].linkname == "opt/env/lib/libx.so.1"
    assert by_name["var/empty"].isdir()


def test_gnu_tar_unpacks_what_rattler_installs(tmp_path: Path) -> None:
    package = replace(PACKAGE, entries=PACKAGE.entries[:-1])
    expected = oracle.install_made(package, None, tmp_path, ".conda")
    record = package.record(
        package.write_conda(), (tmp_path / f"channel/linux-64/{package.stem}.conda").as_uri()
    )
    out = tmp_path / "layer.tar.gz"
    with out.open("wb") as stream:
        make_layer(record, io.BytesIO(package.write_conda()), TARGET, GZIP, stream)
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "-xzpf", out, "-C", root], check=True, stderr=subprocess.PIPE)
    seen = oracle.installed(root / "opt/env")
    assert oracle.normalise(seen, ()) == oracle.normalise(expected, ())


@pytest.mark.parametrize("compression", [GZIP, ZSTD], ids=["gzip", "zstd"])
def test_the_bytes_do_not_depend_on_threads(compression: Compression) -> None:
    expected = made(PACKAGE, compression)
    for workers in (1, 2, 7):
        with ThreadPoolExecutor(workers) as pool:
            assert made(PACKAGE, compression, pool=pool) == expected


def test_the_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    content = PACKAGE.write_conda()
    package = tmp_path / "thing-1.0-0.conda"
    package.write_bytes(content)
    code = (
        "import io, os, sys; os.umask(0o077)\n"
        "from envbuild.conda.layer import *; from envbuild.conda.link import *\n"
        "from envbuild.digest import Digest; from envbuild.lock import PackageRecord\n"
        f"record = PackageRecord('thing', '1.0', '0', 0, 'linux-64', {PACKAGE.record(content).url!r}, "
        f"Digest({Digest.of(content).hex!r}))\n"
        "out = io.BytesIO()\n"
        "print(make_layer(record, open(sys.argv[1], 'rb'), LinkTarget(), Compression.of('gzip'), out)"
        ".descriptor.digest)\n"
    )
    variants = (
        {"TZ": "Asia/Tokyo", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "7", "TZ": "UTC", "LC_ALL": "C.UTF-8"},
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, package],
            env={**os.environ, **variant}, check=True, capture_output=True, text=True,
        ).stdout.strip()
        for variant in variants
    }  # fmt: skip
    assert digests == {str(made(PACKAGE)[0].descriptor.digest)}


def test_the_archive_is_pinned_for_this_format() -> None:
    files = [
        LinkedFile.generated("a", b"x" * 10),
        LinkedFile("b", Kind.SYMLINK, 0o777, FIXED_TIME, target="a"),
    ]
    layer = write_layer(files, io.BytesIO(), GZIP)
    # Another value means another LAYER_FORMAT.
    assert layer.diff_id.hex == "f14a455d330f1605cb4c2e7b7dbebbc883f764e444252ff1dbfd721e483889cd"


def test_a_file_of_another_size_than_said_is_refused() -> None:
    for content in (b"12", b"1234"):
        file = replace(LinkedFile.generated("a", b"123"), chunks=(content,))
        with pytest.raises(IntegrityError, match="expected 3"):
            write_layer([file], io.BytesIO(), GZIP)


def test_a_failure_gives_up_what_waits() -> None:
    def files() -> Iterator[LinkedFile]:
        yield LinkedFile.generated("a", bytes(64 << 20))
        raise OSError("gone")

    with ThreadPoolExecutor(1) as pool, pytest.raises(OSError, match="gone"):
        write_layer(files(), io.BytesIO(), GZIP, pool=pool)


class Nowhere(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        return len(content)


@pytest.mark.parametrize("placeholder", [None, "binary"])
def test_memory_is_bounded(placeholder: Any, tmp_path: Path) -> None:
    size = 160 << 20
    package = Package((Entry("lib/huge", bytes(size), placeholder=placeholder),))
    content = package.write_conda(level=1)
    record = package.record(content)
    del package
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            layer = make_layer(record, io.BytesIO(content), TARGET, GZIP, Nowhere(), pool=pool)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert layer.raw_size > size
    assert peak < 64 << 20


RECORD = PACKAGE.record(b"x", "https://channel.invalid/linux-64/thing-1.0-0.conda")
NOARCH = replace(RECORD, noarch="python")


def test_the_layer_key_is_pinned_for_this_format() -> None:
    compression = Compression("gzip", 2, "isa-l 2.31.1", OCI_LAYER_GZIP, 1 << 20)
    assert (
        layer_key(RECORD, TARGET, compression)
        == "3ea5ce64603084dc20d9d8fefe91598ec34cd0ce5c67e0eb63425c9e64608d38"
    )
    assert (
        layer_key(NOARCH, TARGET, compression)
        == "74fb0a06a8e54a65dbb646ac3c07ded9f753b98d56c4db461225c8bb91f8d98c"
    )


def test_the_layer_key_changes_with_what_changes_the_layer() -> None:
    other_python = replace(TARGET, python=PythonTarget("3.12.1", "lib/python3.12/site-packages"))
    keys = {
        layer_key(NOARCH, TARGET, GZIP),
        layer_key(NOARCH, other_python, GZIP),
        layer_key(RECORD, TARGET, GZIP),
        layer_key(RECORD, TARGET, ZSTD),
        layer_key(RECORD, TARGET, replace(GZIP, version="other")),
        layer_key(RECORD, TARGET, replace(GZIP, level=1)),
        layer_key(RECORD, replace(TARGET, prefix="/opt/other"), GZIP),
        layer_key(replace(RECORD, sha256=Digest.of(b"y")), TARGET, GZIP),
        layer_key(replace(RECORD, url="https://mirror.invalid/linux-64/thing-1.0-0.conda"), TARGET, GZIP),
    }
    assert len(keys) == 9


def test_the_layer_key_keeps_with_what_does_not() -> None:
    key = layer_key(RECORD, TARGET, GZIP)
    assert layer_key(replace(RECORD, depends=("x",), md5="0" * 32, size=None), TARGET, GZIP) == key
    assert layer_key(RECORD, LinkTarget(), GZIP) == key


def test_where_the_channel_leaves_noarch_out_the_layer_key_names_the_python() -> None:
    other = replace(TARGET, python=PythonTarget("3.12.1", "lib/python3.12/site-packages"))
    unsaid = replace(NOARCH, noarch=None, subdir="noarch")
    assert layer_key(unsaid, TARGET, GZIP) == layer_key(NOARCH, TARGET, GZIP)
    assert layer_key(unsaid, TARGET, GZIP) != layer_key(unsaid, other, GZIP)
    assert layer_key(unsaid, LinkTarget(), GZIP) != layer_key(unsaid, TARGET, GZIP)


def test_a_python_package_without_python_has_no_layer_key() -> None:
    with pytest.raises(BuildError, match="has no python"):
        layer_key(NOARCH, LinkTarget(), GZIP)


def test_path_hashes_are_sorted_and_say_nothing_of_the_order() -> None:
    names = [f"file-{number}" for number in range(100)]
    hashes = PathHashes.of(names, ())
    assert hashes == PathHashes.of(reversed(names), ())
    parts = [hashes.files[at : at + 8] for at in range(0, 800, 8)]
    assert parts == sorted(parts)
    assert hashlib.blake2b(b"file-7", digest_size=8).digest() in parts


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3 << 20), max_size=5))
def test_any_cut_of_the_content_gives_the_same_layer(cuts: list[int]) -> None:
    content = bytes(3 << 20)
    edges = [0, *sorted(cuts), len(content)]
    chunks = [content[start:end] for start, end in pairwise(edges)]
    whole = LinkedFile.generated("a", content)
    out, other = io.BytesIO(), io.BytesIO()
    assert write_layer([whole], out, GZIP) == write_layer([replace(whole, chunks=chunks)], other, GZIP)
    assert out.getvalue() == other.getvalue()


def test_linking_and_writing_may_be_done_apart() -> None:
    content = PACKAGE.write_conda()
    record = PACKAGE.record(content)
    out = io.BytesIO()
    files = link(Opened.open(io.BytesIO(content), "it"), record, TARGET)
    assert write_layer(files, out, GZIP) == made(PACKAGE)[0]


def test_a_layer_may_be_made_of_any_archive() -> None:
    raw = bytes(range(256)) * 10_000
    out, other = io.BytesIO(), io.BytesIO()
    descriptor, diff_id, size = compress([raw[:7], raw[7:]], out, GZIP)
    assert (diff_id, size) == (Digest.of(raw), len(raw))
    assert (descriptor.digest, descriptor.size) == (Digest.of(out.getvalue()), len(out.getvalue()))
    assert gzip.decompress(out.getvalue()) == raw
    with ThreadPoolExecutor(2) as pool:
        assert compress([raw], other, GZIP, pool)[0] == descriptor
    assert other.getvalue() == out.getvalue()
