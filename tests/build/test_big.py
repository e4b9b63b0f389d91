"""Big packages: bounded memory, and nothing left behind by a process that is killed."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import IO, Any

import pytest
import zstandard

import conda_oracle
from envbuild.conda.fetch import IN_MEMORY
from envbuild.oci.manifest import Manifest
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from tiny import World

MEGABYTE = 1 << 20
RSS = 300 * MEGABYTE

PROGRAM = """\
import json, sys
from pathlib import Path
from envbuild.config import Config
from envbuild.oci.manifest import Manifest
from envbuild.reference import Repository
from envbuild.resolver import Resolver
settings = json.loads(sys.argv[1])
workspace = Repository.parse(settings.pop("workspace"))
config = Config(workspace=workspace, cache_dir=Path(settings.pop("cache_dir")), **settings)
show = lambda event: print(event.phase, event.subject, event.state, flush=True)
with Resolver(config, progress=show) as resolver:
    image = resolver.resolve(sys.argv[2])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print("rss", int(status["VmHWM"].split()[0]) * 1024)
print("image", image.reference)
"""


class Pieces:
    """So many bytes, half of them random, without holding them."""

    def __init__(self, size: int, seed: int) -> None:
        self._left = size
        self._random = random.Random(seed)

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        self._left -= size
        return (self._random.randbytes(size // 2) + bytes(size))[:size]


def write_big(channel: Path, name: str, files: int, size: int) -> None:
    """Write a package of ``files`` files of ``size`` bytes into a channel, piece by piece."""
    paths = []
    for number in range(files):
        sha256 = hashlib.sha256()
        pieces = Pieces(size, number)
        while piece := pieces.read(tarfile.BLOCKSIZE * 32):  # as tarfile reads: 16 KiB
            sha256.update(piece)
        paths.append(
            {"_path": f"lib/{name}/{number}.bin", "path_type": "hardlink", "sha256": sha256.hexdigest(),
             "size_in_bytes": size}
        )  # fmt: skip
    index = {"name": name, "version": "1.0", "build": "0", "build_number": 0, "subdir": "linux-64"}
    info = {"info/index.json": index, "info/paths.json": {"paths": paths, "paths_version": 1}}
    (channel / "linux-64").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(channel / "linux-64" / f"{name}-1.0-0.conda", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
        with packed(archive, f"pkg-{name}-1.0-0.tar.zst") as tar:
            for number in range(files):
                member = tarfile.TarInfo(f"lib/{name}/{number}.bin")
                member.size = size
                tar.addfile(member, Pieces(size, number))
        with packed(archive, f"info-{name}-1.0-0.tar.zst") as tar:
            for path, document in info.items():
                add_json(tar, path, document)
    asyncio.run(conda_oracle.index(channel))


@contextmanager
def packed(archive: zipfile.ZipFile, name: str) -> Iterator[tarfile.TarFile]:
    with (
        archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member,
        zstandard.ZstdCompressor(level=1).stream_writer(member, closefd=False) as out,
        tarfile.open(fileobj=out, mode="w|") as tar,
    ):
        yield tar


def add_json(tar: tarfile.TarFile, path: str, document: Any) -> None:
    content = json.dumps(document).encode()
    member = tarfile.TarInfo(path)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def send_head(self) -> Any:
        del self.headers["If-Modified-Since"]  # rattler wants no 304
        return super().send_head()

    def handle(self) -> None:
        """Mind no client that was killed."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL of the channel alias over HTTP."""
    (tmp_path / "channels").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "channels")))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def start(world: World, alias: str, spec: Path, temporary: Path) -> subprocess.Popen[str]:
    settings = {
        "workspace": str(world.config.workspace),
        "cache_dir": str(world.config.cache_dir),
        "base": world.config.base,
        "channel_alias": alias,
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(settings), str(spec)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def left_in(world: World, temporary: Path) -> list[Path]:
    """Files on their way that nobody will take further."""
    spool = world.config.cache_dir / "spool"
    places = [*temporary.rglob("*"), *(spool.rglob("*") if spool.exists() else ())]
    return [path for path in places if path.is_file()]


def assert_whole(world: World) -> None:
    """Whatever has a tag has all its blobs, and they are right."""
    layout = world.layout()
    for tag in layout.tags():
        manifest = layout.get_manifest(tag)
        assert isinstance(manifest, Manifest)
        for blob in manifest.blobs:
            with layout.open_blob(blob) as stream:
                while stream.read(MEGABYTE):
                    pass


@pytest.mark.nightly
def test_memory_stays_bounded_for_the_biggest_packages(tmp_path: Path, served: str) -> None:
    world = World.make(tmp_path)
    write_big(tmp_path / "channels" / "tiny", "big", 10, 150 * MEGABYTE)
    for number in range(8):
        write_big(tmp_path / "channels" / "tiny", f"other{number}", 2, 30 * MEGABYTE)
    (tmp_path / "tmp").mkdir()
    spec = world.spec("big", *(f"other{number}" for number in range(8)))
    process = start(world, served, spec, tmp_path / "tmp")
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    (rss,) = (int(line.split()[1]) for line in lines if line.startswith("rss "))
    assert rss <= RSS, f"{rss // MEGABYTE} MiB"
    assert left_in(world, tmp_path / "tmp") == []


@pytest.fixture(scope="session")
def torch_alias() -> str:
    """The URL of the channels ``torch`` and ``fixtures``."""
    root = Path(__file__).resolve().parent.parent.parent
    made = subprocess.run(
        [sys.executable, root / "fixtures" / "torchchannel.py"], check=True, stdout=subprocess.PIPE, text=True
    )
    return made.stdout.strip()


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_pytorch_and_all_that_goes_with_it_stay_within_bounds(tmp_path: Path, torch_alias: str) -> None:
    world = World.make(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    spec = world.spec(
        "python=3.11", "torch", "numpy", "scipy", "pandas", "scikit-learn", "pyarrow", "matplotlib", "sympy",
        channels=["torch", "fixtures", "nodefaults"],
    )  # fmt: skip
    for phase in ("layer torch", "layer pyarrow", "push"):
        process = start(world, torch_alias, spec, temporary)
        for line in said(process):
            if line.startswith(phase) and line.endswith(("progress\n", "done\n")):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        said(process).close()
        assert left_in(world, temporary) == []
        assert not [tag for tag in world.layout().tags() if str(tag).startswith("k1-")]
        assert_whole(world)
    world = replace(world, config=world.other_machine())
    process = start(world, torch_alias, spec, temporary)
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    (rss,) = (int(line.split()[1]) for line in lines if line.startswith("rss "))
    assert rss <= RSS, f"{rss // MEGABYTE} MiB"
    assert left_in(world, temporary) == []
    assert_whole(world)


def test_a_killed_build_leaves_no_file_and_the_next_one_goes_on(tmp_path: Path, served: str) -> None:
    world = World.make(tmp_path)
    size = 4 * IN_MEMORY
    write_big(tmp_path / "channels" / "tiny", "big", 2, size)
    (tmp_path / "tmp").mkdir()
    spec = world.spec("big", "tool")
    for pause in (0.0, 0.05, 0.1):
        process = start(world, served, spec, tmp_path / "tmp")
        for line in said(process):
            if line.startswith("layer big") and line.endswith("start\n"):
                break
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        said(process).close()
        assert left_in(world, tmp_path / "tmp") == []
        assert_whole(world)
    process = start(world, served, spec, tmp_path / "tmp")
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    reference = lines[-1].removeprefix("image ")
    assert left_in(world, tmp_path / "tmp") == []
    with Resolver(world.other_machine(channel_alias=served)) as resolver:
        assert str(resolver.resolve(spec).reference) == reference


def test_a_huge_layer_is_the_same_whatever_compresses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.make(tmp_path)
    write_big(tmp_path / "channels" / "tiny", "big", 1, 12 * MEGABYTE)
    spec = world.spec("big")
    digests = set()
    for number, huge in enumerate((0, 1 << 60)):
        monkeypatch.setattr("envbuild.build.compose.HUGE", huge)
        with Resolver(
            world.other_machine(workspace=Repository.parse(f"oci:{tmp_path}/w{number}"))
        ) as resolver:
            digests.add(resolver.resolve(spec).reference.digest)
    assert len(digests) == 1
