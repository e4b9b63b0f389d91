from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from envbuild.deadline import Deadline
from envbuild.digest import Descriptor
from envbuild.errors import DeadlineExceeded, IntegrityError, NotFound
from envbuild.oci.copy import CopyReport, copy_image
from envbuild.oci.family import MAX_DEPTH
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, ImageIndex, Manifest
from envbuild.oci.registry import find_manifest, publish
from envbuild.reference import Repository, Tag
from oci_contract import put, put_image, put_index, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.digest import Digest
    from envbuild.progress import Event


@pytest.fixture
def source() -> Iterator[LayoutRegistry]:
    """A layout on another disk than the target's, so that bytes must be moved."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield LayoutRegistry(Repository("", f"{folder}/source"))


@pytest.fixture
def target(tmp_path: Path, source: LayoutRegistry) -> LayoutRegistry:
    assert source.repository.folder.parent.stat().st_dev != tmp_path.stat().st_dev
    return LayoutRegistry(Repository("", str(tmp_path / "target")))


@pytest.fixture
def neighbour(tmp_path: Path) -> LayoutRegistry:
    """A layout on the target's disk."""
    return LayoutRegistry(Repository("", str(tmp_path / "neighbour")))


def stored(registry: LayoutRegistry) -> int:
    folder = registry.repository.folder / "blobs" / "sha256"
    return len(list(folder.iterdir())) if folder.exists() else 0


def overwrite(registry: LayoutRegistry, digest: Digest, content: bytes) -> None:
    (registry.repository.folder / "blobs" / "sha256" / digest.hex).write_bytes(content)


@pytest.mark.parametrize("jobs", [0, 1, 3, 20])
def test_bytes_are_moved_and_counted(source: LayoutRegistry, target: LayoutRegistry, jobs: int) -> None:
    manifest = put_image(source, "image", layers=9)
    source.put_manifest(manifest, Tag("v1"))
    report = copy_image(source, target, manifest, jobs=jobs)
    total = sum(blob.size for blob in manifest.blobs)
    assert report == CopyReport(blobs_copied=10, bytes_copied=total)
    assert target.get_manifest(manifest.descriptor.digest) == manifest
    assert [read(target, blob) for blob in manifest.blobs] == [read(source, blob) for blob in manifest.blobs]
    assert list(target.tags()) == []


def test_blobs_that_are_there_are_not_moved(source: LayoutRegistry, target: LayoutRegistry) -> None:
    first = put_image(source, "image", layers=3)
    copy_image(source, target, first)
    more = Manifest.build(first.config, (*first.layers, put(source, b"one more")), {})
    assert copy_image(source, target, more) == CopyReport(1, 0, 4, len(b"one more"))


def test_neighbours_are_mounted(neighbour: LayoutRegistry, target: LayoutRegistry) -> None:
    manifest = put_image(neighbour, "image", layers=3)
    assert copy_image(neighbour, target, manifest) == CopyReport(blobs_mounted=4)
    assert target.get_manifest(manifest.descriptor.digest) == manifest


def test_index_with_shared_blobs(source: LayoutRegistry, target: LayoutRegistry) -> None:
    first = put_image(source, "image", layers=3)
    config = put(source, b'{"other":true}', OCI_CONFIG)
    second = Manifest.build(config, first.layers, {})
    for manifest in (first, second):
        source.put_manifest(manifest)
    index = ImageIndex.build((first.descriptor, second.descriptor, first.descriptor), {})
    source.put_manifest(index)
    outer = ImageIndex.build((index.descriptor, first.descriptor), {})
    report = copy_image(source, target, outer)
    assert report.blobs_copied == 5
    for each in (first, second, index, outer):
        assert target.get_manifest(each.descriptor.digest).raw == each.raw
    publish(target, outer, Tag("outer"))


def test_deep_nesting_is_refused(source: LayoutRegistry, target: LayoutRegistry) -> None:
    inner: Manifest | ImageIndex = put_image(source, "image")
    for _ in range(MAX_DEPTH + 1):
        source.put_manifest(inner)
        inner = ImageIndex.build((inner.descriptor,), {})
    with pytest.raises(IntegrityError, match="deep"):
        copy_image(source, target, inner)
    assert stored(target) == 0


def test_missing_blob_stops_the_copy(source: LayoutRegistry, target: LayoutRegistry) -> None:
    manifest = put_image(source, "image", layers=6)
    (source.repository.folder / "blobs" / "sha256" / manifest.layers[2].digest.hex).unlink()
    with pytest.raises(NotFound, match=manifest.layers[2].digest.hex):
        copy_image(source, target, manifest)
    assert find_manifest(target, manifest.descriptor.digest) is None


def test_missing_child_stops_the_copy(source: LayoutRegistry, target: LayoutRegistry) -> None:
    index = put_index(source, "two")
    source.delete_manifest(index.manifests[1].digest)
    with pytest.raises(NotFound):
        copy_image(source, target, index)
    assert stored(target) == 0


@pytest.mark.parametrize("same_disk", [False, True])
def test_corrupt_source_is_never_spread(
    source: LayoutRegistry, neighbour: LayoutRegistry, target: LayoutRegistry, same_disk: bool
) -> None:
    begin = neighbour if same_disk else source
    manifest = put_image(begin, "image", layers=4)
    bad = manifest.layers[1]
    overwrite(begin, bad.digest, b"x" * bad.size)
    with pytest.raises(IntegrityError, match=bad.digest.hex):
        copy_image(begin, target, manifest)
    assert not target.has_blob(bad.digest)
    assert find_manifest(target, manifest.descriptor.digest) is None


def test_an_interrupted_copy_goes_on_where_it_was(source: LayoutRegistry, target: LayoutRegistry) -> None:
    manifest = put_image(source, "image", layers=5)
    bad = manifest.layers[4]
    good = read(source, bad)
    overwrite(source, bad.digest, b"x" * bad.size)
    with pytest.raises(IntegrityError):
        copy_image(source, target, manifest, jobs=1)
    before = stored(target)
    overwrite(source, bad.digest, good)
    report = copy_image(source, target, manifest)
    assert report.blobs_present == before
    assert report.blobs_copied == 6 - before


def test_progress_tells_of_each_blob(source: LayoutRegistry, target: LayoutRegistry) -> None:
    manifest = put_image(source, "image", layers=1)
    large = put(source, os.urandom(5 << 20))
    manifest = Manifest.build(manifest.config, (*manifest.layers, large), {})
    events: list[Event] = []
    copy_image(source, target, manifest, jobs=1, progress=events.append)
    assert {event.phase for event in events} == {"push"}
    of_large = [event for event in events if event.subject == str(large.digest)]
    assert [of_large[0].state, of_large[-1].state] == ["start", "done"]
    assert of_large[0] is events[0], "the largest blob goes first"
    done = [event.done for event in of_large]
    assert done == sorted(done)
    assert len(done) > 5
    assert all(event.total == large.size for event in of_large)
    events.clear()
    copy_image(source, target, manifest, progress=events.append)
    assert {event.state for event in events} == {"start", "reused"}


class Slow(LayoutRegistry):
    """A layout whose blobs come slowly; ``running`` counts how many at once."""

    running = 0
    most = 0
    lock = threading.Lock()

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        """The blob after a moment."""
        with Slow.lock:
            Slow.running += 1
            Slow.most = max(Slow.most, Slow.running)
        time.sleep(0.1)
        with Slow.lock:
            Slow.running -= 1
        return LayoutRegistry.open_blob(self, descriptor)


def test_jobs_bound_what_runs_at_once(source: LayoutRegistry, target: LayoutRegistry) -> None:
    manifest = put_image(source, "image", layers=9)
    Slow.running = Slow.most = 0
    copy_image(Slow(source.repository), target, manifest, jobs=3)
    assert 2 <= Slow.most <= 3


def test_the_deadline_ends_the_copy(source: LayoutRegistry, target: LayoutRegistry) -> None:
    manifest = put_image(source, "image", layers=200)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        copy_image(Slow(source.repository), target, manifest, jobs=2, deadline=Deadline.after(0.5))
    assert time.monotonic() - begun < 5
    assert find_manifest(target, manifest.descriptor.digest) is None


def test_the_first_failure_stops_the_rest(source: LayoutRegistry, target: LayoutRegistry) -> None:
    manifest = put_image(source, "image", layers=60)
    largest = put(source, b"y" * 100_000)
    overwrite(source, largest.digest, b"")
    manifest = Manifest.build(manifest.config, (largest, *manifest.layers), {})
    with pytest.raises(IntegrityError):
        copy_image(Slow(source.repository), target, manifest, jobs=2)
    assert stored(target) < 20


def test_a_failing_progress_stops_the_copy(source: LayoutRegistry, target: LayoutRegistry) -> None:
    manifest = put_image(source, "image", layers=3)

    def fail(event: Event) -> Any:
        raise KeyError(event.subject)

    with pytest.raises(KeyError):
        copy_image(source, target, manifest, progress=fail)
    assert find_manifest(target, manifest.descriptor.digest) is None
