"""Small inputs of binary formats cost little, whatever they claim; a deadline holds inside of each."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import struct
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import zstandard

import envbuild.conda.fetch as fetch_module
import envbuild.oci.client as client_module
from conda_packages import Entry, Package
from envbuild.build.archive import image_chunks
from envbuild.build.base import BaseImage, glibc_version
from envbuild.build.place import folder_above
from envbuild.conda.layer import Compression, make_layer
from envbuild.conda.link import LinkTarget
from envbuild.conda.package import Package as Opened
from envbuild.conda.relocate import FileMode, relocate
from envbuild.conda.tar import Kind, TarReader, write_header
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.digest import Descriptor, Digest
from envbuild.errors import BuildError, ChannelError, DeadlineExceeded, IntegrityError
from envbuild.index import Index
from envbuild.inflate import Bounds, Codec, Inflated
from envbuild.lock import PipDistribution
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Manifest, encode
from envbuild.oci.transport import Settings, Trouble
from envbuild.pip.archive import WheelArchive
from envbuild.pip.source import unpacked

MIB = 1 << 20
NO_BOUNDS = Bounds(1 << 40, 0, 1 << 40)


@contextmanager
def costs(seconds: float, mib: int | None = None) -> Iterator[None]:
    """What is done inside takes no more of the processor, and, where it is said, of Python's memory."""
    if mib is not None:
        tracemalloc.start()
    began = time.process_time()
    try:
        yield
        spent = time.process_time() - began
        peak = tracemalloc.get_traced_memory()[1] if mib is not None else 0
    finally:
        tracemalloc.stop()
    assert spent < seconds
    assert peak <= (mib or 0) * MIB


def repeated(piece: bytes, times: int) -> bytes:
    """A piece many times over, compressed with zstd as one frame; made in no time."""
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    many = piece * max(1, MIB // len(piece))
    rounds, rest = divmod(times * len(piece), len(many))
    return b"".join([*(packer.compress(many) for _ in range(rounds)), packer.compress(many[:rest])]) + (
        packer.flush()
    )


def extended(content: bytes, flag: bytes = b"x") -> bytes:
    header = bytearray(write_header("pax", Kind.FILE, mode=0o644, mtime=0, size=len(content)))
    header[156:157] = flag
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


FILE = write_header("a", Kind.FILE, mode=0o644, mtime=0)


class Layers:
    """A registry that holds the layers of one base."""

    def __init__(self, *layers: bytes) -> None:
        self.layers = {Digest.of(each): each for each in layers}

    def open_blob(self, descriptor: Descriptor) -> io.BytesIO:
        return io.BytesIO(self.layers[descriptor.digest])


def base_of(layer: bytes, media_type: str) -> BaseImage:
    described = Descriptor.of(layer, media_type)
    config = encode({"rootfs": {"diff_ids": []}})
    manifest = Manifest.build(Descriptor.of(config, OCI_CONFIG), (described,), {})
    return BaseImage(None, manifest, config, Layers(layer))  # type: ignore[arg-type]


def place(base: BaseImage, index: Index, deadline: Deadline = NO_DEADLINE) -> None:
    folder_above(base, "/opt/env", index, 1, deadline)


def reads_glibc(base: BaseImage, index: Index, deadline: Deadline) -> None:
    glibc_version(base, index.fact, index.put_fact, deadline)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path / "cache")
    yield opened
    opened.close()


def test_a_base_layer_of_131_kb_is_not_read_for_gibibytes(index: Index) -> None:
    base = base_of(repeated(bytes(MIB), 4096), OCI_LAYER_ZSTD)
    assert base.manifest.layers[0].size < 140_000
    with costs(8), pytest.raises(IntegrityError, match="unpacks to more than"):
        reads_glibc(base, index, NO_DEADLINE)


@pytest.mark.parametrize("reads", [reads_glibc, place])
def test_the_deadline_is_seen_inside_of_a_layer(
    reads: Callable[[BaseImage, Index, Deadline], None], index: Index
) -> None:
    head = write_header("zeros", Kind.FILE, mode=0o644, mtime=0, size=1000 * MIB)
    base = base_of(repeated(head, 1) + repeated(bytes(MIB), 1000), OCI_LAYER_ZSTD)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        reads(base, index, Deadline.after(0.05))
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("header", "times"),
    [
        pytest.param(extended(b"10 path=a\n"), 20_000, id="many headers"),
        pytest.param(extended(b"n" * MIB, b"L"), 8, id="long names"),
        pytest.param(extended(b""), 20_000, id="empty headers"),
    ],
)
def test_extended_headers_in_a_row_cost_no_more_than_their_bytes(
    header: bytes, times: int, index: Index
) -> None:
    layer = zstandard.compress(header * times + FILE + bytes(1024))
    with costs(10, 200):
        place(base_of(layer, OCI_LAYER_ZSTD), index)


def test_a_base_layer_may_hold_what_a_package_may_not(index: Index) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in (("dev/null", tarfile.CHRTYPE), ("run/pipe", tarfile.FIFOTYPE), ("../x", b"0")):
            entry = tarfile.TarInfo(name)
            entry.type = kind
            archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("caf\udce9"))
        sparse = tarfile.TarInfo("holes")
        sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
        header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
        header[482] = 1
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        archive.fileobj.write(bytes(header) + bytes(512) + b"x" * 512)
        folder = tarfile.TarInfo("opt")
        folder.type, folder.mode, folder.uid = tarfile.DIRTYPE, 0o700, 7
        archive.addfile(folder)
    import gzip

    base = base_of(gzip.compress(out.getvalue()), OCI_LAYER_GZIP)
    above = folder_above(base, "/opt/env", index, 1, NO_DEADLINE)
    assert above is not None
    assert (above.mode, above.uid) == (0o700, 7)


@pytest.mark.parametrize(("records", "headers"), [(20_000, 1), (200_000, 1), (100, 2000)])
def test_records_of_extended_headers_cost_no_more_than_there_are(
    records: int, headers: int, index: Index
) -> None:
    layer = zstandard.compress(extended(b"4 =\n" * records) * headers + FILE + bytes(1024))
    read = pytest.raises(IntegrityError, match="records in extended") if records != 20_000 else nullcontext()
    with costs(3), read:
        place(base_of(layer, OCI_LAYER_ZSTD), index)


def test_paths_are_no_longer_and_no_deeper_than_can_be_installed() -> None:
    for path in ("a" * 5000, "a/" * 200 + "a"):
        content = write_header(path, Kind.FILE, mode=0o644, mtime=0)
        with pytest.raises(IntegrityError, match="expected at most 4096 and 128"):
            list(TarReader(io.BytesIO(content), "it"))


def test_names_are_bounded_in_all() -> None:
    def headers() -> Iterator[bytes]:
        for number in range(20_000):
            yield write_header(f"{number}/" + "a" * 4000, Kind.FILE, mode=0o644, mtime=0)

    content = io.BytesIO(b"".join(headers()))
    with costs(10), pytest.raises(IntegrityError, match="bytes of names"):
        list(TarReader(content, "it"))


def test_a_frame_that_asks_for_a_gibibyte_of_memory_is_refused() -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=30)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    content = packer.compress(b"a" * 10) + packer.flush()
    with costs(5), pytest.raises(IntegrityError, match="requires too much memory"):
        Inflated(io.BytesIO(content), Codec.ZSTD, NO_BOUNDS, "it").read(1)


def test_xz_streams_are_read_in_a_row_and_ask_for_little_memory() -> None:
    import lzma

    content = lzma.compress(b"one") + bytes(8) + lzma.compress(b"two")
    assert b"".join(Inflated(io.BytesIO(content), Codec.XZ, NO_BOUNDS, "it")) == b"onetwo"
    greedy = lzma.compress(b"a", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])
    for wrong in (content[:-1], b"junk", greedy):
        with pytest.raises(IntegrityError, match="cannot be decompressed as xz"):
            list(Inflated(io.BytesIO(wrong), Codec.XZ, NO_BOUNDS, "it"))


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.ZSTD, Codec.BZ2])
def test_many_empty_members_end_with_the_deadline(codec: Codec) -> None:
    import bz2
    import gzip

    empty = {
        Codec.GZIP: gzip.compress(b"", mtime=0),
        Codec.ZSTD: zstandard.compress(b""),
        Codec.BZ2: bz2.compress(b""),
    }[codec]
    content = io.BytesIO(empty * (64 * MIB // len(empty)))
    began = time.monotonic()
    with suppress(DeadlineExceeded):
        list(Inflated(content, codec, NO_BOUNDS, "it", Deadline.after(0.05)))
    assert time.monotonic() - began < 1.5


def test_a_package_does_not_say_itself_how_much_it_may_unpack_to() -> None:
    head = write_header("zeros", Kind.FILE, mode=0o644, mtime=0, size=1024 * MIB)
    content = bytearray(_conda(repeated(head, 1) + repeated(bytes(MIB), 1025)))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.rfind(signature, 0, content.rfind(b"pkg-", 0, len(content) if offset > 22 else 200))
        struct.pack_into("<I", content, at + offset, 3 << 30)
    package = Opened.open(io.BytesIO(bytes(content)), "it")
    with costs(5), pytest.raises(IntegrityError, match="unpacks to more than"):
        list(package.members())


def _conda(payload: bytes, entries: tuple[Entry, ...] = ()) -> bytes:
    """A package whose files are in an archive of our making."""
    out = io.BytesIO()
    made = Package(entries)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
        archive.writestr(f"pkg-{made.stem}.tar.zst", payload)
        with zipfile.ZipFile(io.BytesIO(made.write_conda())) as whole:
            name = f"info-{made.stem}.tar.zst"
            archive.writestr(name, whole.read(name))
    return out.getvalue()


def test_hard_links_have_a_small_package_read_again_only_so_often() -> None:
    linked = tuple(Entry(f"l{number}", hard="big", placeholder="text", content=b"x") for number in range(200))
    big = Entry("big", b"big")
    zeros = Entry("zeros", bytes(64 * MIB))
    content = Package((zeros, big, *linked)).write_conda(level=1)
    assert len(content) < 100_000
    record, out = Package((big,)).record(content), io.BytesIO()
    with costs(20), pytest.raises(IntegrityError, match="must be read again"):
        make_layer(record, io.BytesIO(content), LinkTarget(), Compression.of("gzip"), out)


def test_the_zip_directory_of_a_package_is_short() -> None:
    out = io.BytesIO(Package(()).write_conda())
    with zipfile.ZipFile(out, "a") as archive:
        for number in range(1000):
            archive.writestr(str(number), b"")
    with costs(5), pytest.raises(IntegrityError, match="zip directory of more than 100 members"):
        Opened.open(out, "it")


@pytest.mark.parametrize("mode", ["text", "binary"])
@pytest.mark.parametrize("prefix", ["a", "aa", "/a/a"])
def test_a_short_placeholder_does_not_make_gibibytes(mode: Literal["text", "binary"], prefix: str) -> None:
    filled = (prefix.encode() + (b"\0" if mode == "binary" else b"")) * (4 * MIB)
    entry = Entry("f", filled, placeholder=mode, prefix=prefix)
    content = Package((entry,)).write_conda(level=1)
    assert len(content) < 20_000
    record = Package((entry,)).record(content)
    # A binary has no room for it, unless it is short as well.
    target = LinkTarget(prefix="/b" if len(prefix) > 2 else "/opt/env")
    with costs(10), pytest.raises((IntegrityError, BuildError)):
        make_layer(record, io.BytesIO(content), target, Compression.of("gzip"), io.BytesIO())


PLACE = "/" + "p" * 254


@pytest.mark.parametrize(
    ("mode", "piece"),
    [
        pytest.param(FileMode.TEXT, PLACE.encode(), id="text"),
        pytest.param(FileMode.BINARY, PLACE.encode(), id="one long string"),
        pytest.param(FileMode.BINARY, PLACE.encode() + b"\0", id="strings"),
        pytest.param(FileMode.BINARY, PLACE.encode("utf-16-le") + bytes(2), id="wide strings"),
        pytest.param(
            FileMode.BINARY,
            PLACE.encode("utf-16-le") + bytes(3) + PLACE.encode("utf-16-be") + bytes(3) + PLACE.encode(),
            id="strings of all widths",
        ),
        pytest.param(FileMode.BINARY, b"a\0\0b" * 100, id="zeros between characters"),
    ],
)
def test_replacing_a_prefix_of_real_length_costs_what_the_file_is_long(mode: FileMode, piece: bytes) -> None:
    def spent(size: int) -> float:
        content = PLACE.encode("utf-16-le") + piece * (size // len(piece))
        began = time.process_time()
        changed = relocate(content, mode, PLACE, "/opt/env")
        assert sum(map(len, changed.chunks())) == changed.size
        return time.process_time() - began

    spent(MIB)
    assert min(spent(16 * MIB), spent(16 * MIB)) < 3 * max(spent(8 * MIB), 0.1)
    with costs(20, 100):
        spent(4 * MIB)


def test_the_deadline_is_seen_while_a_prefix_is_replaced() -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        list(relocate(bytes(64 * MIB), FileMode.TEXT, "/p", "/q", deadline=Deadline.after(0)).chunks())
    assert time.monotonic() - began < 1


def wheel_of(entries: dict[str, bytes], record: str | None = None) -> bytes:
    """A wheel, or what looks like one."""
    files = {
        **entries,
        "p-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: p\nVersion: 1\n",
        "p-1.dist-info/WHEEL": b"Wheel-Version: 1.0\n",
    }
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr("p-1.dist-info/RECORD", "\n".join(lines) + (record or ""))
    return out.getvalue()


def open_wheel(content: bytes) -> WheelArchive:
    url = "https://index.invalid/p-1-py3-none-any.whl"
    distribution = PipDistribution("p", "1", url, Digest.of(content), len(content), "p-1-py3-none-any.whl")
    return WheelArchive.open(io.BytesIO(content), distribution)


def test_the_zip_directory_of_a_wheel_is_not_made_into_objects_first() -> None:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    many = entry * 300_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(many), 0, 0)
    with costs(5, 64), pytest.raises(IntegrityError, match="zip directory of more than 200000 members"):
        open_wheel(many + end)


def test_lines_of_record_beyond_the_wheels_files_are_not_kept() -> None:
    lines = "".join(f"\nx{number},sha256=a,1" for number in range(100_000))
    assert open_wheel(wheel_of({"p.py": b"1"}, lines)).records.keys() == {
        "p.py",
        "p-1.dist-info/METADATA",
        "p-1.dist-info/WHEEL",
    }
    with costs(10), pytest.raises(IntegrityError, match="a RECORD of more than 400000 lines"):
        open_wheel(wheel_of({"p.py": b"1"}, "\nx,," * 500_000))


def test_a_member_of_a_wheel_does_not_claim_more_bytes_than_there_are() -> None:
    content = bytearray(wheel_of({}))
    at = content.rfind(b"PK\x01\x02")
    struct.pack_into("<I", content, at + 20, 1 << 30)
    with pytest.raises(IntegrityError, match="claim more bytes than it has"):
        open_wheel(bytes(content))


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2", "zip"])
def test_a_source_archive_unpacks_to_no_more_than_sources_do(kind: str) -> None:
    import bz2
    import gzip
    import lzma

    zeros = bytes(256 * MIB)
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("p/zeros", zeros)
    else:
        header = write_header("p/zeros", Kind.FILE, mode=0o644, mtime=0, size=len(zeros))
        pack = {"gz": lambda data: gzip.compress(data, 1), "xz": lambda data: lzma.compress(data, preset=0)}
        out.write(pack.get(kind, bz2.compress)(header + zeros))
    del zeros
    with costs(10), pytest.raises(IntegrityError, match="unpacks to"):
        unpacked(out.getvalue(), f"p.{kind}")


def test_extended_headers_of_a_source_archive_are_not_nested_calls() -> None:
    content = extended(b"10 path=a\n") * 3000 + FILE + bytes(1024)
    (file,) = unpacked(content, "p.tar")
    assert file.path == "a"


def test_an_engine_is_not_sent_more_than_a_layer_may_hold(tmp_path: Path) -> None:
    base = base_of(repeated(bytes(MIB), 1500), OCI_LAYER_ZSTD)
    with costs(20), pytest.raises(IntegrityError, match="unpacks to more than"):
        for _ in image_chunks(b"{}", base.manifest.layers, base.open_layer, "name:tag"):
            pass


@contextmanager
def trickling() -> Iterator[str]:
    """A server that answers whatever it is asked with a byte every 50 ms, for ever."""
    server = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not ended.wait(0.05):
                connection.sendall(b"x")

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_an_answer_that_trickles_is_given_up_without_any_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SLOW_SECONDS", 0.3)
    began = time.monotonic()
    with trickling() as url:
        client = client_module.Client(Settings(read_timeout=30))
        with pytest.raises(Trouble, match="bytes came in"):
            client.request(f"{url}/v2/", {}, NO_DEADLINE)
        client.close()
    assert time.monotonic() - began < 10


def test_a_package_that_trickles_is_given_up_without_any_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(fetch_module, "_MAX_BACKOFF", 0.01)
    with trickling() as url:
        record = replace(Package(()).record(b"other"), url=f"{url}/thing-1.0-0.conda", size=1_000_000)
        with pytest.raises(ChannelError, match="TimeoutError"):
            fetch_module.fetch_package(record, login=lambda _: None, deadline=NO_DEADLINE)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("paths.json", b"[" + b"[]," * (8 * MIB) + b"[]]", id="many lists"),
        pytest.param("has_prefix", b"a" * (4 * MIB), id="a long line"),
    ],
)
def test_metadata_of_a_package_takes_little_memory_and_time(name: str, content: bytes) -> None:
    info: dict[str, bytes | None] = {name: content}
    if name == "has_prefix":
        info |= {"paths.json": None, "files": b"a"}
    package = Package((), info=info).write_conda(level=1)
    del content, info
    with costs(8, 200), pytest.raises(IntegrityError, match=name):
        Opened.open(io.BytesIO(package), "it")
