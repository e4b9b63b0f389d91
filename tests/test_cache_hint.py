"""The cache is a hint: whatever its folder is like, calls answer as if it were new, and clearing frees it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli_calls import ENVBUILD
from envbuild.cleaning import clear_cache
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import StorageError
from envbuild.index import ImageEntry, Index
from envbuild.reference import ImageReference, Repository
from envbuild.resolver import Resolver, Source
from envbuild.storage import key_lock
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
REPOSITORY = Repository("registry.example.com", "team/envs")
KEYS = [f"{number:064x}" for number in range(30)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def entry(key: str) -> ImageEntry:
    return ImageEntry(key, ImageReference(REPOSITORY, Digest.of(key.encode())), "b" * 64, 1000.0)


def filled(folder: Path) -> Path:
    with closing(Index(folder)) as index:
        for key in KEYS:
            index.put_image(entry(key))
    return folder / "index.sqlite"


def use(folder: Path) -> None:
    """Everything that an index is asked; its answers are right or "not known", and what is put is there."""
    with closing(Index(folder)) as index:
        assert index.image(KEYS[3], REPOSITORY) in {None, entry(KEYS[3])}
        assert all(image == entry(image.key) for image in index.images())
        index.stats()
        index.forms()
        index.put_image(entry("f" * 64))
    with closing(Index(folder)) as index:
        assert index.image("f" * 64, REPOSITORY) == entry("f" * 64)
        index.evict_image("f" * 64, REPOSITORY)
        assert index.image("f" * 64, REPOSITORY) is None
        index.clear()
        assert list(index.images()) == []


def flip(path: Path, good: bytes, bits: list[int]) -> None:
    for bit in bits:
        broken = bytearray(good)
        broken[bit >> 3] ^= 1 << (bit & 7)
        path.write_bytes(broken)
        try:
            use(path.parent)
        except Exception as error:
            raise AssertionError(f"with bit {bit} flipped") from error


def test_a_flipped_bit_in_the_schema_costs_time_only(tmp_path: Path) -> None:
    path = filled(tmp_path)
    good = path.read_bytes()
    start = good.index(b"CREATE TABLE") - 40  # with the row's own header
    flip(path, good, list(range(8 * 108)) + list(range(8 * start, 8 * (start + 40), 3)))
    text = list(range(8 * start, 8 * 4096))
    flip(path, good, text[7::8] + text[::5])


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_ten_thousand_flipped_bits(tmp_path: Path) -> None:
    path = filled(tmp_path)
    good = path.read_bytes()
    print("seed 19")  # noqa: T201
    flip(path, good, random.Random(19).sample(range(8 * len(good)), 10_000))


def _commands(world: World) -> list[tuple[str, ...]]:
    spec = str(world.spec("tool=1"))
    return [
        ("key", spec),
        ("resolve", spec, "--no-build"),
        ("cache", "info"),
        ("cache", "ls"),
        ("doctor",),
        ("lint", spec),
        ("cache", "clear"),
    ]


def _call(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    config = world.config
    environment = {
        **os.environ,
        "ENVBUILD_WORKSPACE": str(config.workspace),
        "ENVBUILD_BASE": str(config.base),
        "ENVBUILD_CHANNEL_ALIAS": config.channel_alias,
        "ENVBUILD_CACHE_DIR": str(config.cache_dir),
    }
    return subprocess.run([*ENVBUILD, *words], capture_output=True, text=True, check=False, env=environment)


def _schema_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"CREATE TABLE") + 2] ^= 0x80
    path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE entry; CREATE VIEW entry AS SELECT 1 AS kind")


def _old_journal(path: Path) -> None:
    path.with_name("index.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\xff" * 2000)


BREAKS: tuple[Callable[[Path], None], ...] = (_schema_bit, _folder, _pipe, _loop, _foreign, _old_journal)


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda each: each.__name__.strip("_"))
def test_every_command_answers_with_a_broken_index(world: World, break_it: Callable[[Path], None]) -> None:
    with Resolver(world.config) as resolver:
        resolver.resolve(world.spec("tool=1"))
    path = world.config.cache_dir / "index.sqlite"
    for words in _commands(world):
        break_it(path)
        done = _call(world, *words)
        assert done.returncode == 0, (words, done.stderr)
        assert "Traceback" not in done.stderr
        for each in world.config.cache_dir.glob("index.*"):
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        with closing(Index(world.config.cache_dir)) as index:
            index.put_image(entry("a" * 64))


def _write_on(folder: Path, number: int) -> None:
    with closing(Index(folder)) as index:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            key = f"{number:032x}{random.getrandbits(64):032x}"
            index.put_image(entry(key))
            assert index.image(key, REPOSITORY) in {None, entry(key)}


def test_processes_that_find_it_broken_at_the_same_time_go_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = filled(tmp_path)
    workers = [context.Process(target=_write_on, args=(tmp_path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    draw = random.Random(7)
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.05)
        try:
            with path.open("r+b") as file:
                file.seek(draw.randrange(4096))
                file.write(draw.randbytes(200))
        except FileNotFoundError:
            continue
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    use(tmp_path)
    assert len(list(tmp_path.glob("index.broken-*"))) <= 1


def test_a_folder_that_is_deleted_under_way_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with closing(Index(folder)) as index:
        index.put_image(entry(KEYS[0]))
        shutil.rmtree(folder)
        index.put_image(entry(KEYS[1]))
        with closing(Index(folder)) as other:
            assert other.image(KEYS[1], REPOSITORY) == entry(KEYS[1])
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_another_process_clears_is_forgotten_here(tmp_path: Path) -> None:
    with closing(Index(tmp_path)) as index, closing(Index(tmp_path)) as other:
        index.put_fact("x", "y")
        other.clear()
        assert index.fact("x") is None
        index.put_fact("x", "z")
        assert other.fact("x") == "z"


def test_an_index_that_somebody_holds_costs_no_more_than_the_time_that_is_given(world: World) -> None:
    spec = world.spec("tool=1")
    with Resolver(world.config) as resolver:
        resolver.resolve(spec)
    with closing(sqlite3.connect(world.config.cache_dir / "index.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        done = _call(world, "resolve", str(spec), "--timeout", "1")
        seconds = time.monotonic() - started
    assert done.returncode in {0, 8}, done.stderr
    assert seconds < 3
    with closing(sqlite3.connect(world.config.cache_dir / "index.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        done = _call(world, "resolve", str(spec))
    assert done.returncode == 0
    assert "found in the workspace" in done.stderr
    assert done.stderr.count("keeps nothing new: another process held it") == 1


ON_A_DISK = """
import errno, json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path
from envbuild.config import Config
from envbuild.cleaning import clear_cache
from envbuild.errors import EnvbuildError
from envbuild.index import Index
from envbuild.resolver import Resolver

root, spec, state = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
config = replace(Config.load(Path("/"), {}, **json.loads(sys.argv[1])), cache_dir=root / "cache")
if "known" in state:
    with Resolver(config) as resolver:
        resolver.resolve(spec)
if "full" in state:
    with open(root / "filler", "wb", buffering=0) as filler:
        for size in (65536, 4096, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
if "inodes" in state:
    try:
        for number in range(100_000):
            (root / f"filler-{number}").touch()
    except OSError as error:
        assert error.errno == errno.ENOSPC
if "read-only" in state:
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
events = []
with Resolver(config, progress=events.append) as resolver:
    said = {"key": str(resolver.key(spec)), "source": resolver.resolve(spec).source}
    said["again"] = resolver.resolve(spec).source
said["told"] = sum("keeps nothing new" in event.text for event in events)
try:
    clear_cache(Index(config.cache_dir))
    said["cleared"] = not (config.cache_dir / "index.sqlite").exists()
except EnvbuildError as error:
    said["cleared"] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


def on_a_disk(world: World, state: str) -> dict[str, object]:
    folder = world.root / f"disk-{state}"
    folder.mkdir()
    config = world.config
    settings = {"workspace": str(config.workspace), "base": str(config.base)}
    settings |= {"channel_alias": config.channel_alias}
    mount = 'mount -t tmpfs -o size=1m,nr_inodes=200 none "$1" && shift && exec "$@"'
    spec = str(world.root / "environment.yml")
    program = [sys.executable, "-B", "-c", ON_A_DISK, json.dumps(settings), str(folder), spec, state]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", str(folder), *program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize(
    ("state", "source", "told"),
    [
        ("known full", Source.INDEX, 0),
        ("full", Source.WORKSPACE, 1),
        ("inodes", Source.WORKSPACE, 1),
        ("known read-only", Source.INDEX, 0),
    ],
)
def test_hits_and_keys_need_no_room_in_the_cache(world: World, state: str, source: Source, told: int) -> None:
    spec = world.spec("tool=1")
    with Resolver(world.config) as resolver:
        key = str(resolver.key(spec))
        resolver.resolve(spec)
    said = on_a_disk(world, state)
    assert (said["key"], said["source"]) == (key, source)
    assert said["told"] == told
    if "read-only" in state:
        assert "StorageError" in str(said["cleared"])
        assert "Read-only" in str(said["cleared"])
    else:
        assert said["cleared"] is True


def test_clearing_frees_all_that_is_the_caches_and_nothing_else(tmp_path: Path) -> None:
    with closing(Index(tmp_path)) as index:
        index.put_layers({})
        index._file.put("fact", [(f"{number}", {"value": "x" * 100}) for number in range(20_000)])
        (tmp_path / "index.broken-1").write_bytes(bytes(1000))
        (tmp_path / "repodata" / "x").mkdir(parents=True)
        (tmp_path / "repodata" / "x" / "y").write_bytes(bytes(1000))
        (tmp_path / "trash-1").mkdir()
        (tmp_path / "own").write_text("of the user")
        (tmp_path / "spool").mkdir()
        (tmp_path / "spool" / "now").touch()
        (tmp_path / "spool" / "old").touch()
        os.utime(tmp_path / "spool" / "old", (0, 0))
        with key_lock(tmp_path, "free", NO_DEADLINE):
            pass
        with key_lock(tmp_path, "held", NO_DEADLINE):
            freed = clear_cache(index)
            left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert freed > 20_000 * 100
    assert left == {"own", "spool/now", "locks/held.lock"}


def test_clearing_breaks_no_lock(tmp_path: Path) -> None:
    inside, most, stop = 0, 0, threading.Event()
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        while not stop.is_set():
            with key_lock(tmp_path, "k", NO_DEADLINE):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    with closing(Index(tmp_path)) as index:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            clear_cache(index)
    stop.set()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_cache_that_cannot_be_cleared_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Index(world.config.cache_dir)) as index:
        index.put_fact("x", "y")

        def refused(_path: Path, *, missing_ok: bool = False) -> None:
            raise PermissionError(1, "Operation not permitted", str(_path))

        monkeypatch.setattr(Path, "unlink", refused)
        with pytest.raises(StorageError, match=r"index\.sqlite cannot be deleted"):
            clear_cache(index)
