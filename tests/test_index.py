"""The cache index: a hint that is never wrong, whatever happens to its file."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from envbuild.digest import Descriptor, Digest
from envbuild.errors import StorageError
from envbuild.index import BaseEntry, ImageEntry, Index, LayerEntry
from envbuild.reference import ImageReference, Repository
from envbuild.sealed import writes_ahead_safely

REPOSITORY = Repository("registry.example.com", "team/envs")
OTHER = Repository("registry.example.com", "all/envs")


def entry(key: str = "a" * 64, text: bytes = b"x", repository: Repository = REPOSITORY) -> ImageEntry:
    return ImageEntry(key, ImageReference(repository, Digest.of(text)), "b" * 64, 1000.0)


def layer(text: bytes = b"l") -> LayerEntry:
    return LayerEntry(
        Descriptor("t/x", Digest.of(text), 3), Digest.of(text + b"d"), b"\x01\x02", b"\x03", REPOSITORY
    )


def test_what_is_put_is_found_by_another_process_view(tmp_path: Path) -> None:
    first, second = Index(tmp_path / "c"), Index(tmp_path / "c")
    first.put_image(entry())
    first.put_layers({"k": layer()})
    first.put_base("debian:12", BaseEntry(Digest.of(b"d"), 7.0))
    first.put_fact("glibc x", "2.36")
    assert second.image("a" * 64, REPOSITORY) == entry()
    assert second.layers(["k", "unknown"]) == {"k": layer()}
    assert second.base("debian:12") == BaseEntry(Digest.of(b"d"), 7.0)
    assert second.fact("glibc x") == "2.36"
    assert second.image("c" * 64, REPOSITORY) is None
    first.close()
    second.close()


def test_one_key_may_be_in_two_repositories(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.put_image(entry())
    index.put_image(entry(text=b"y", repository=OTHER))
    assert index.image("a" * 64, REPOSITORY) == entry()
    index.evict_image("a" * 64, REPOSITORY)
    assert index.image("a" * 64, REPOSITORY) is None
    assert index.image("a" * 64, OTHER) is not None
    index.close()


def test_layouts_with_blanks_in_their_path_come_back(tmp_path: Path) -> None:
    index = Index(tmp_path / "c")
    repository = Repository("", str(tmp_path / "with blank"))
    index.put_image(entry(repository=repository))
    assert next(iter(index.images())).reference.repository == repository
    index.close()


def test_a_path_that_is_no_utf8_comes_back(tmp_path: Path) -> None:
    index = Index(tmp_path)
    odd = Repository("", "/srv/caf\udce9")
    image = ImageEntry("a" * 64, odd.at(Digest("b" * 64)), None, 1.0)
    index.put_image(image)
    index.close()
    assert index.image("a" * 64, odd) == image
    assert list(index.images()) == [image]
    index.evict_image("a" * 64, odd)
    assert list(index.images()) == []
    index.close()


def test_images_come_newest_first_and_clear_forgets_them(tmp_path: Path) -> None:
    index = Index(tmp_path)
    for number in range(3):
        index.put_image(
            ImageEntry(f"{number}" * 64, ImageReference(REPOSITORY, Digest.of(b"x")), None, float(number))
        )
    assert [image.confirmed_at for image in index.images()] == [2.0, 1.0, 0.0]
    assert index.stats().images == 3
    index.clear()
    assert list(index.images()) == []
    assert index.image("0" * 64, REPOSITORY) is None
    index.close()


def test_a_row_that_somebody_changed_is_not_there(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.put_image(entry())
    index.close()
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    with connection:
        connection.execute("UPDATE entry SET body = replace(body, '1000.0', '2000.0')")
    connection.close()
    again = Index(tmp_path)
    assert again.image("a" * 64, REPOSITORY) is None
    assert list(again.images()) == []
    again.close()


@pytest.mark.parametrize(
    "content", [b"", b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_a_file_that_is_no_index_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.sqlite").write_bytes(content)
    index = Index(tmp_path)
    assert index.image("a" * 64, REPOSITORY) is None
    index.put_image(entry())
    assert index.image("a" * 64, REPOSITORY) == entry()
    index.close()


def test_a_future_schema_is_set_aside_and_not_overwritten(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    index = Index(tmp_path)
    assert index.image("a" * 64, REPOSITORY) is None
    assert len(list(tmp_path.glob("index.broken-*"))) == 1
    index.close()


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 46, 1), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((4, 0, 0), True),
    ],
)
def test_sqlite_writes_ahead_only_where_that_is_safe(version: tuple[int, ...], safe: bool) -> None:
    assert writes_ahead_safely(version) is safe


def test_the_index_keeps_to_it(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.put_image(entry())
    with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    assert (mode == "wal") is writes_ahead_safely(sqlite3.sqlite_version_info)
    index.close()


def test_bit_flips_and_truncations_cost_time_and_never_truth(tmp_path: Path) -> None:
    index = Index(tmp_path)
    right = {f"{number:064x}": entry(f"{number:064x}", bytes([number])) for number in range(40)}
    for image in right.values():
        index.put_image(image)
    index.close()
    good = (tmp_path / "index.sqlite").read_bytes()
    draw = random.Random(20261124)
    for turn in range(300):
        broken = bytearray(good)
        if turn % 10 == 0:
            del broken[draw.randrange(len(broken)) :]
        else:
            broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        (tmp_path / "index.sqlite").write_bytes(broken)
        view = Index(tmp_path)
        for key in draw.sample(sorted(right), 5):
            assert view.image(key, REPOSITORY) in {None, right[key]}
        view.put_image(entry("f" * 64))
        assert view.image("f" * 64, REPOSITORY) == entry("f" * 64)
        view.close()
        for leftover in tmp_path.glob("index.broken-*"):
            leftover.unlink()


def _write(folder: Path, number: int) -> None:
    index = Index(folder)
    for turn in range(20):
        index.put_image(entry(f"{number:032x}{turn:032x}"))
    index.close()


def test_many_processes_lose_no_write(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(tmp_path, number)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    index = Index(tmp_path)
    assert index.stats().images == 120
    index.close()


def test_many_threads_share_one_index(tmp_path: Path) -> None:
    index = Index(tmp_path)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                key = f"{number:032x}{turn:032x}"
                index.put_image(entry(key))
                assert index.image(key, REPOSITORY) == entry(key)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    index.close()


def _hold(folder: Path, ready: object, number: int) -> None:
    index = Index(folder)
    turn = 0
    while True:
        index.put_image(entry(f"{number:032x}{turn:032x}"))
        turn += 1


def test_a_writer_that_is_killed_leaves_a_good_index(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for number in range(5):
        worker = context.Process(target=_hold, args=(tmp_path, None, number))
        worker.start()
        while not any(image.key.startswith(f"{number:032x}") for image in Index(tmp_path).images()):
            time.sleep(0.02)
        worker.kill()
        worker.join()
        index = Index(tmp_path)
        for image in index.images():
            assert image == entry(image.key)
        index.put_image(entry())
        index.close()
    assert not list(tmp_path.glob("index.broken-*"))


def test_a_forked_child_opens_its_own_connection(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.put_image(entry())
    child = os.fork()
    if child == 0:
        os._exit(0 if index.image("a" * 64, REPOSITORY) == entry() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    index.put_image(entry("d" * 64))
    index.close()


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match="symbolic link"):
        Index(tmp_path / "link")


def test_the_folder_is_private(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(mode=0o755)
    index = Index(tmp_path / "c")
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700
    index.close()


@pytest.mark.parametrize("kind", ["link", "second name", "written by others", "of somebody else", "a FIFO"])
@pytest.mark.parametrize("end", ["", "-journal"])
def test_an_index_that_others_can_have_written_is_not_believed(
    tmp_path: Path, kind: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is private now may have been open: what was left in it then is no index of ours."""
    theirs = tmp_path / "theirs"
    with contextlib.closing(Index(theirs)) as index:
        index.put_image(entry())
    planted, place = theirs / "index.sqlite", tmp_path / "c" / f"index.sqlite{end}"
    place.parent.mkdir(mode=0o777)
    if kind == "link":
        place.symlink_to(planted)
    elif kind == "second name":
        place.hardlink_to(planted)
    elif kind == "a FIFO":
        os.mkfifo(place)
    else:
        place.write_bytes(planted.read_bytes())
        place.chmod(0o666 if kind == "written by others" else 0o600)
    before = planted.read_bytes()
    said: list[str] = []
    with contextlib.closing(Index(place.parent, warn=said.append)) as index:
        if kind == "of somebody else":
            real, mode = os.lstat, place.stat()
            stranger = os.stat_result([*mode[:4], os.geteuid() + 1, *mode[5:]])
            ask = lambda path: stranger if Path(path) == place and place.exists() else real(path)  # noqa: E731
            monkeypatch.setattr(os, "lstat", ask)
            assert index.images() is not None
            assert index.image("a" * 64, REPOSITORY) is None
            monkeypatch.undo()
        else:
            assert index.image("a" * 64, REPOSITORY) is None
        index.put_image(entry("c" * 64))
    with contextlib.closing(Index(place.parent)) as index:
        assert index.image("c" * 64, REPOSITORY) is not None
    assert planted.read_bytes() == before
    assert len(said) == 1
    assert "others can have written it" in said[0]
