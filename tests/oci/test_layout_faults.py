from __future__ import annotations

import contextlib
import fcntl
import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pytest

from envbuild.deadline import Deadline
from envbuild.digest import Descriptor
from envbuild.errors import (
    DeadlineExceeded,
    EnvbuildError,
    IntegrityError,
    NotFound,
)
from envbuild.oci.layout import LOCK_FILE, LayoutRegistry
from envbuild.oci.manifest import OCI_LAYER_GZIP, Manifest
from envbuild.oci.registry import publish
from envbuild.reference import Tag
from envbuild.storage import TEMPORARY
from oci_contract import at_once, put, put_image, read
from oci_layouts import blob_path, check_whole, layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


FORK = multiprocessing.get_context("fork")
# Python 3.12 and later warn of forks beside threads; the test runner's threads hold none of our locks.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def registry(tmp_path: Path) -> LayoutRegistry:
    return layout(tmp_path / "layout")


def in_a_child(work: Callable[[], None]) -> str:
    """Run in a forked process; the name of the error's type, or what came back."""
    reading, writing = os.pipe()

    def run() -> None:
        try:
            work()
            said = "done"
        except EnvbuildError as error:
            said = type(error).__name__
        except BaseException as error:  # noqa: BLE001
            said = repr(error)
        os.write(writing, said.encode())

    process = FORK.Process(target=run)
    process.start()
    os.close(writing)
    process.join(60)
    with os.fdopen(reading) as stream:
        return stream.read()


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A folder that other users can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_nobody() -> None:
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_a_read_only_layout_can_be_read(open_tmp: Path) -> None:
    registry = layout(open_tmp / "layout")
    manifest = put_image(registry, "image")
    publish(registry, manifest, Tag("a"))
    folders = [registry.repository.folder / name for name in ("", "blobs", "blobs/sha256")]
    for folder in folders:
        folder.chmod(0o555)

    def reading() -> None:
        as_nobody()
        assert registry.get_manifest(Tag("a")) == manifest
        assert [len(read(registry, blob)) for blob in manifest.blobs] == [
            blob.size for blob in manifest.blobs
        ]
        assert publish(registry, manifest, Tag("a")) == manifest
        assert registry.put_blob(manifest.config, lambda: io.BytesIO(b"")) is False

    def writing() -> None:
        as_nobody()
        put(registry, b"new")

    def tagging() -> None:
        as_nobody()
        registry.put_manifest(manifest, Tag("b"))

    try:
        assert in_a_child(reading) == "done"
        assert in_a_child(writing) == "Unavailable"
        assert in_a_child(tagging) == "Unavailable"
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert check_whole(registry) == {"a"}


def test_an_unreadable_layout_is_unknown_and_no_miss(open_tmp: Path) -> None:
    registry = layout(open_tmp / "layout")
    publish(registry, put_image(registry, "image"), Tag("a"))
    registry.repository.folder.chmod(0o000)

    def reading() -> None:
        as_nobody()
        layout(open_tmp / "layout").get_manifest(Tag("a"))

    try:
        assert in_a_child(reading) == "Unavailable"
    finally:
        registry.repository.folder.chmod(0o755)


def test_a_full_file_is_storage_full(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    publish(registry, manifest, Tag("a"))

    def limited(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            work()

        return run

    assert in_a_child(limited(lambda: put(registry, b"x" * 5000))) == "StorageFull"
    assert in_a_child(limited(lambda: registry.put_manifest(manifest, Tag("b")))) == "StorageFull"
    assert check_whole(registry) == {"a"}
    assert not list(registry.repository.folder.glob(f"{TEMPORARY}*"))


FULL_DISK = """
    import io, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from oci_contract import put, put_image, read
    from envbuild.errors import StorageFull
    from envbuild.oci.layout import LayoutRegistry
    from envbuild.oci.registry import publish
    from envbuild.reference import Repository, Tag

    registry = LayoutRegistry(Repository("", {folder!r} + "/layout"))
    manifest = put_image(registry, "image")
    publish(registry, manifest, Tag("first"))
    stored, full = set(), 0
    for number in range(400):
        try:
            put(registry, bytes([number % 256]) * (1500 + number))
            registry.put_manifest(manifest, Tag(f"t{{number}}"))
            stored.add(f"t{{number}}")
        except StorageFull as error:
            assert error.retryable and error.hint
            full += 1
    assert full >= 50 and stored, (full, stored)
    assert {{tag.name for tag in registry.tags()}} == stored | {{"first"}}
    assert registry.get_manifest(Tag("first")) == manifest
    assert all(read(registry, blob) for blob in manifest.blobs)
    assert not list(Path({folder!r}, "layout").glob(".envbuild-tmp-*"))
    print("survived", full)
"""


def test_a_full_disk_is_storage_full_and_reads_go_on(tmp_path: Path) -> None:
    """On a real disk of 256 KiB in a mount namespace of its own."""
    (tmp_path / "disk").mkdir()
    folder, tests = str(tmp_path / "disk"), str(Path(__file__).parent.parent)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FULL_DISK).format(tests=tests, folder=folder))
    mount = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" "$3"'
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            mount,
            "sh",
            folder,
            sys.executable,
            script,
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
        timeout=120,
    )
    assert done.stdout.startswith("survived"), done.stderr


def test_waiting_for_the_lock_ends_at_the_deadline(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    with filelock.FileLock(registry.repository.folder / LOCK_FILE):
        begun = time.monotonic()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                registry.by(Deadline.after(0.3)).put_manifest(manifest, Tag("a"))
            except DeadlineExceeded as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30)
        assert len(failed) == 1
        assert 0.2 < time.monotonic() - begun < 5
        with pytest.raises(NotFound):
            registry.get_manifest(Tag("a"))
    registry.put_manifest(manifest, Tag("a"))


def test_the_deadline_stops_a_slow_blob(registry: LayoutRegistry) -> None:
    class Slow(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any, /) -> int:
            time.sleep(0.05)
            buffer[:1] = b"x"
            return 1

    descriptor = Descriptor.of(b"x" * 1000, OCI_LAYER_GZIP)
    with pytest.raises(DeadlineExceeded):
        registry.by(Deadline.after(0.3)).put_blob(descriptor, lambda: io.BufferedReader(Slow(), 1))
    assert not registry.has_blob(descriptor.digest)
    assert not list(registry.repository.folder.glob(f"{TEMPORARY}*"))


def test_leftovers_are_swept_and_files_in_the_making_are_not(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    folder = registry.repository.folder
    dead, fresh, held = (folder / f"{TEMPORARY}{name}" for name in ("dead", "fresh", "held"))
    for path in (dead, fresh, held):
        path.write_bytes(b"part")
    for path in (dead, held):
        os.utime(path, (1, 1))
    with held.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        registry.put_manifest(manifest, Tag("a"))
    assert [path.exists() for path in (dead, fresh, held)] == [False, True, True]


def test_pipes_in_place_of_files_do_not_block(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    registry.put_manifest(manifest, Tag("a"))
    for path in (
        blob_path(registry, manifest.descriptor.digest),
        registry.repository.folder / "index.json",
    ):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(IntegrityError):
            registry.get_manifest(Tag("a"))


# Many processes


def test_tags_never_name_what_another_thread_deleted(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")

    def work(number: int) -> None:
        for _ in range(60):
            if number % 2:
                registry.put_manifest(manifest, Tag(f"t{number}"))
            else:
                with contextlib.suppress(NotFound):
                    registry.delete_manifest(manifest.descriptor.digest)

    at_once(4, work)
    check_whole(registry)


def publish_many(folder: Path, worker: int, count: int) -> None:
    registry = layout(folder)
    for step in range(count):
        publish(registry, put_image(registry, f"{worker}-{step}"), Tag(f"{worker}-{step}"))
        publish(registry, put_image(registry, f"shared {step}"), Tag(f"shared-{step}"))
        assert registry.get_manifest(Tag(f"{worker}-{step}")) is not None


def test_sixteen_processes_write_one_layout(registry: LayoutRegistry) -> None:
    folder, count = registry.repository.folder, 10
    processes = [FORK.Process(target=publish_many, args=(folder, worker, count)) for worker in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 16
    expected = {f"{worker}-{step}" for worker in range(16) for step in range(count)}
    assert check_whole(registry) == expected | {f"shared-{step}" for step in range(count)}
    assert not list(folder.glob(f"{TEMPORARY}*"))


def publish_for_ever(folder: Path, worker: int, written: int) -> None:
    registry = layout(folder)
    step = 0
    while True:
        name = f"{worker}-{step}"
        put(registry, name.encode() * 50_000)
        publish(registry, put_image(registry, name), Tag(name))
        os.write(written, f"{name}\n".encode())
        step += 1


@pytest.mark.parametrize("rounds", [30, pytest.param(200, marks=pytest.mark.nightly)])
def test_kills_leave_a_good_layout(registry: LayoutRegistry, rounds: int) -> None:
    """Writers killed at any moment; what one of them said it had published is there."""
    folder, writers = registry.repository.folder, 4
    reading, writing = os.pipe()
    with os.fdopen(reading, "r") as said:
        for number in range(rounds):
            processes = [
                FORK.Process(target=publish_for_ever, args=(folder, number * writers + worker, writing))
                for worker in range(writers)
            ]
            for process in processes:
                process.start()
            time.sleep(0.01 + 0.05 * (number % 7))
            for process in processes:
                process.kill()
            for process in processes:
                process.join(30)
        os.close(writing)
        published = set(said.read().split())
    tags = check_whole(registry)
    assert published <= tags
    assert len(published) > rounds
    publish(registry, put_image(registry, "after"), Tag("after"))


PUBLISH_ONE = """
    import io, sys
    from envbuild.digest import Descriptor
    from envbuild.oci.layout import LayoutRegistry
    from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, Manifest
    from envbuild.oci.registry import publish
    from envbuild.reference import Repository, Tag

    registry = LayoutRegistry(Repository("", sys.argv[1]))
    config, layer = Descriptor.of(b"{}", OCI_CONFIG), Descriptor.of(b"layer" * 99, OCI_LAYER_GZIP)
    registry.put_blob(config, lambda: io.BytesIO(b"{}"))
    registry.put_blob(layer, lambda: io.BytesIO(b"layer" * 99))
    publish(registry, Manifest.build(config, (layer,), {}), Tag("new"))
"""


@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
@pytest.mark.parametrize("call", ["write", "fsync", "rename,renameat,renameat2", "mkdir,mkdirat"])
def test_a_fault_at_each_call_leaves_the_old_or_the_new_state(tmp_path: Path, call: str, fault: str) -> None:
    """``strace`` kills or fails the process at its first, second, … call, until it gets through."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PUBLISH_ONE))
    for when in range(1, 40):
        registry = layout(tmp_path / f"layout {when}")
        trace = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}"]
        inject = ["-e", f"inject={call}:{fault}:when={when}"]
        done = subprocess.run(
            [*trace, *inject, sys.executable, "-B", str(script), str(registry.repository.folder)],
            check=False,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent.parent,
            timeout=60,
        )
        with contextlib.suppress(NotFound):
            check_state(registry)
        publish(registry, put_image(registry, "image"), Tag("new"))
        assert check_whole(registry) == {"new"}
        if done.returncode == 0:
            break
        assert fault == "signal=KILL" or "envbuild.errors." in done.stderr, done.stderr
    assert done.returncode == 0
    assert when > 1


def check_state(registry: LayoutRegistry) -> None:
    """The tag is there with all that belongs to it, or is not there."""
    manifest = registry.get_manifest(Tag("new"))
    assert isinstance(manifest, Manifest)
    for blob in manifest.blobs:
        read(registry, blob)
