"""The lock of a key: one holder at a time, and a dead holder holds nothing; files written whole."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from envbuild.cleaning import clear_cache
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import DeadlineExceeded, StorageError
from envbuild.index import Index
from envbuild.pip.copies import keep
from envbuild.storage import key_lock, private_folder, read_own, written_whole


def _hold(folder: Path, seconds: float) -> None:
    with key_lock(folder, "k", NO_DEADLINE):
        (folder / "held").touch()
        time.sleep(seconds)


def _holder(folder: Path) -> multiprocessing.process.BaseProcess:
    worker = multiprocessing.get_context("spawn").Process(target=_hold, args=(folder, 60.0))
    worker.start()
    while not (folder / "held").exists():
        time.sleep(0.02)
    return worker


def test_waiting_ends_with_the_deadline(tmp_path: Path) -> None:
    worker = _holder(tmp_path)
    started = time.monotonic()
    with (
        pytest.raises(DeadlineExceeded, match="another process"),
        key_lock(tmp_path, "k", Deadline.after(0.3)),
    ):
        pass
    assert 0.2 < time.monotonic() - started < 5
    worker.kill()
    worker.join()


def test_a_killed_holder_frees_the_lock_at_once(tmp_path: Path) -> None:
    worker = _holder(tmp_path)
    worker.kill()
    worker.join()
    with key_lock(tmp_path, "k", Deadline.after(5)):
        pass


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside = 0
    most = 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with key_lock(tmp_path, "k", Deadline.after(60)):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_folder_that_cannot_be_made_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        private_folder(tmp_path / "file" / "x")
    assert "--cache-dir" in str(caught.value.hint)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with written_whole(path) as file:
        file.write(b"one")
    with pytest.raises(TypeError), written_whole(path) as file:
        file.writelines([b"two", "three"])  # type: ignore[list-item]
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


LOST = """
import os, sys
from envbuild.storage import unfinished

folder = os.open(sys.argv[1], os.O_RDONLY)
lost = unfinished(folder)  # as one whose end an interrupt kept from being run
os.close(os.open(lost.__enter__(), os.O_CREAT, dir_fd=folder))
os.close(folder)
assert os.listdir(sys.argv[1])
"""


def test_what_an_interrupt_left_is_removed_when_python_ends(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LOST, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "second name", "written by others", "a FIFO", "a folder"])
def test_a_file_of_the_cache_that_others_can_have_written_is_not_read(tmp_path: Path, kind: str) -> None:
    theirs, place = tmp_path / "theirs", tmp_path / "place"
    theirs.write_bytes(b"theirs")
    match kind:
        case "link":
            place.symlink_to(theirs)
        case "second name":
            place.hardlink_to(theirs)
        case "written by others":
            place.write_bytes(b"x")
            place.chmod(0o666)
        case "a FIFO":
            os.mkfifo(place)
        case _:
            place.mkdir()
    with pytest.raises(OSError, match="link"):
        read_own(place)
    own = tmp_path / "own"
    with written_whole(own, 0o600) as file:
        file.write(b"ours")
    assert read_own(own) == b"ours"


def test_a_wheel_that_somebody_linked_into_the_cache_is_written_anew(tmp_path: Path) -> None:
    place = keep(tmp_path, "a-1-py3-none-any.whl", b"wheel")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"wheel")
    place.unlink()
    place.symlink_to(elsewhere)
    assert keep(tmp_path, "a-1-py3-none-any.whl", b"wheel") == place
    assert not place.is_symlink()
    assert elsewhere.read_bytes() == b"wheel"


@pytest.mark.parametrize("name", ["repodata", "uv", "wheels", "pythons", "engine-images", "locks", "spool"])
def test_clearing_follows_no_link(tmp_path: Path, name: str) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    for each in ("letter.txt", "a.lock"):
        (documents / each).write_text("dear")
        os.utime(documents / each, (0, 0))
    index = Index(tmp_path / "cache")
    (tmp_path / "cache" / name).symlink_to(documents)
    clear_cache(index)
    assert sorted(each.name for each in documents.iterdir()) == ["a.lock", "letter.txt"]
    assert not (tmp_path / "cache" / name).is_symlink()
