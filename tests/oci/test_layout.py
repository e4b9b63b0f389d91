from __future__ import annotations

import io
import json
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from envbuild.digest import Digest
from envbuild.errors import (
    IntegrityError,
    NotFound,
    SpecError,
    StorageError,
    Unavailable,
)
from envbuild.oci.layout import LOCK_FILE, LayoutRegistry
from envbuild.oci.layout_files import LayoutFiles
from envbuild.oci.layout_index import REF_NAME, LayoutIndex
from envbuild.oci.layout_turns import Turns, Wish
from envbuild.oci.manifest import OCI_INDEX, ImageIndex, Manifest
from envbuild.oci.registry import publish
from envbuild.reference import Repository, Tag
from oci_contract import ABSENT, RegistryContract, at_once, config_of, put, put_image, put_index, read
from oci_layouts import blob_path, check_whole, index_of, layout, write_index

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.oci.registry import Registry


class LayoutBackend:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0

    def repository(self) -> Registry:
        self._made += 1
        return layout(self._folder / f"layout {self._made}")

    def overwrite_blob(self, registry: Registry, digest: Digest, content: bytes) -> None:
        blob_path(registry, digest).write_bytes(content)

    def overwrite_manifest(self, registry: Registry, digest: Digest, content: bytes) -> None:
        blob_path(registry, digest).write_bytes(content)


class TestLayout(RegistryContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> LayoutBackend:
        return LayoutBackend(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> LayoutRegistry:
    return layout(tmp_path / "layout")


# The folder


def test_reads_do_not_make_the_folder(registry: LayoutRegistry) -> None:
    with pytest.raises(NotFound):
        registry.get_manifest(Tag("a"))
    assert not registry.has_blob(ABSENT.digest)
    assert list(registry.tags()) == []
    assert not registry.repository.folder.exists()


def test_an_empty_folder_becomes_a_layout(registry: LayoutRegistry) -> None:
    folder = registry.repository.folder
    folder.mkdir()
    assert list(registry.tags()) == []
    put(registry, b"blob")
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert index_of(registry) == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    assert {path.name for path in folder.iterdir()} <= {"oci-layout", "index.json", "blobs", LOCK_FILE}


def test_parents_are_made(tmp_path: Path) -> None:
    registry = layout(tmp_path / "a" / "b" / "c")
    descriptor = put(registry, b"blob")
    assert read(registry, descriptor) == b"blob"


def test_folder_removed_and_made_again(registry: LayoutRegistry) -> None:
    publish(registry, put_image(registry, "first"), Tag("a"))
    shutil.rmtree(registry.repository.folder)
    with pytest.raises(NotFound):
        registry.get_manifest(Tag("a"))
    publish(registry, put_image(registry, "second"), Tag("a"))
    assert (registry.repository.folder / "oci-layout").exists()
    assert check_whole(registry) == {"a"}


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: (folder.mkdir(), (folder / "notes.txt").write_text("mine")),
        lambda folder: folder.write_text("a file"),
        lambda folder: (folder.mkdir(), (folder / "oci-layout").write_text('{"imageLayoutVersion":"9.0.0"}')),
        lambda folder: (folder.mkdir(), (folder / "oci-layout").write_text("[]")),
        lambda folder: (folder.mkdir(), (folder / "index.json").write_text('{"manifests":[]}')),
    ],
    ids=["other files", "a file", "other version", "other marker", "index alone"],
)
def test_what_is_no_layout_is_left_alone(registry: LayoutRegistry, make: Callable[[Path], object]) -> None:
    folder = registry.repository.folder
    make(folder)
    before = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else folder.read_text()
    with pytest.raises((StorageError, Unavailable)):
        put(registry, b"blob")
    with pytest.raises(StorageError):
        registry.get_manifest(Tag("a"))
    with pytest.raises(StorageError):
        registry.has_blob(ABSENT.digest)
    after = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else folder.read_text()
    assert after == before


def test_a_repository_on_a_host_is_refused() -> None:
    with pytest.raises(SpecError):
        LayoutRegistry(Repository.parse("registry.example.com/team/envs"))


@pytest.mark.parametrize("linked", ["blobs", "blobs/sha256"])
def test_links_are_read_and_never_written_through(
    registry: LayoutRegistry, tmp_path: Path, linked: str
) -> None:
    publish(registry, put_image(registry, "image"), Tag("a"))
    outside = tmp_path / "outside"
    (registry.repository.folder / linked).rename(outside)
    (registry.repository.folder / linked).symlink_to(outside)
    before = sorted(outside.rglob("*"))
    assert isinstance(registry.get_manifest(Tag("a")), Manifest)
    with pytest.raises(StorageError, match="symbolic link"):
        put(registry, b"new")
    with pytest.raises(StorageError, match="symbolic link"):
        registry.delete_manifest(registry.get_manifest(Tag("a")).descriptor.digest)
    assert sorted(outside.rglob("*")) == before


def test_links_in_place_of_files_are_replaced(registry: LayoutRegistry, tmp_path: Path) -> None:
    publish(registry, put_image(registry, "first"), Tag("a"))
    folder = registry.repository.folder
    index, blob = tmp_path / "index", tmp_path / "blob"
    (folder / "index.json").rename(index)
    (folder / "index.json").symlink_to(index)
    blob.write_bytes(b"")
    blob_path(registry, Digest.of(b"content")).symlink_to(blob)
    kept = index.read_bytes()
    put(registry, b"content")
    publish(registry, put_image(registry, "second"), Tag("b"))
    assert index.read_bytes() == kept
    assert blob.read_bytes() == b""
    assert check_whole(registry) == {"a", "b"}


def test_linked_lock_is_refused(registry: LayoutRegistry, tmp_path: Path) -> None:
    manifest = put_image(registry, "image")
    (registry.repository.folder / LOCK_FILE).unlink(missing_ok=True)
    (tmp_path / "victim").write_text("kept")
    (registry.repository.folder / LOCK_FILE).symlink_to(tmp_path / "victim")
    with pytest.raises(Unavailable):
        registry.put_manifest(manifest, Tag("a"))
    assert (tmp_path / "victim").read_text() == "kept"


# index.json


def test_what_other_tools_wrote_is_kept(registry: LayoutRegistry) -> None:
    put(registry, b"blob")
    foreign = {
        "mediaType": "application/vnd.example+json",
        "digest": str(ABSENT.digest),
        "size": 3,
        "data": "AAAA",
        "annotations": {REF_NAME: "docker.io/library/debian:12", "x": "y"},
    }
    write_index(
        registry, {"schemaVersion": 2, "annotations": {"a": "b"}, "manifests": [foreign], "more": [1]}
    )
    publish(registry, put_image(registry, "image"), Tag("a"))
    document = index_of(registry)
    assert document["manifests"][0] == foreign
    assert (document["annotations"], document["more"]) == ({"a": "b"}, [1])
    assert list(registry.tags()) == [Tag("a")]


def test_a_lone_image_without_a_name_is_latest(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    registry.put_manifest(manifest)
    entry = manifest.descriptor.to_json()
    write_index(registry, {"schemaVersion": 2, "manifests": [entry]})
    assert registry.get_manifest(Tag("latest")) == manifest
    with pytest.raises(NotFound):
        registry.get_manifest(Tag("other"))
    write_index(registry, {"schemaVersion": 2, "manifests": [entry, entry]})
    with pytest.raises(NotFound):
        registry.get_manifest(Tag("latest"))


def test_the_first_of_two_entries_counts_and_a_new_one_replaces_both(registry: LayoutRegistry) -> None:
    first, second, third = (put_image(registry, text) for text in ("first", "second", "third"))
    for manifest in (first, second):
        registry.put_manifest(manifest)
    entries = [each.descriptor.annotated(**{REF_NAME: "a"}).to_json() for each in (first, second)]
    write_index(registry, {"schemaVersion": 2, "manifests": entries})
    assert registry.get_manifest(Tag("a")) == first
    registry.put_manifest(third, Tag("a"))
    assert registry.get_manifest(Tag("a")) == third
    assert len(index_of(registry)["manifests"]) == 1


def test_go_writes_an_empty_list_as_null(registry: LayoutRegistry) -> None:
    put(registry, b"blob")
    write_index(registry, {"schemaVersion": 2, "manifests": None})
    assert list(registry.tags()) == []
    publish(registry, put_image(registry, "image"), Tag("a"))
    assert check_whole(registry) == {"a"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"manifests":{}}', b'{"manifests":[1]}', b"[" * 100_000],
)
def test_bad_index_is_typed_and_never_overwritten(registry: LayoutRegistry, content: bytes) -> None:
    manifest = put_image(registry, "image")
    path = registry.repository.folder / "index.json"
    path.write_bytes(content)
    with pytest.raises(IntegrityError):
        registry.get_manifest(Tag("a"))
    with pytest.raises(IntegrityError):
        registry.put_manifest(manifest, Tag("a"))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:../../../../etc/passwd"},
        {"digest": "sha512:" + "0" * 128},
        {"digest": None},
        {"size": "1"},
        {"mediaType": 7},
    ],
)
def test_bad_entries_are_typed(registry: LayoutRegistry, change: dict[str, Any]) -> None:
    publish(registry, put_image(registry, "image"), Tag("a"))
    document = index_of(registry)
    document["manifests"][0].update(change)
    write_index(registry, document)
    with pytest.raises(IntegrityError):
        registry.get_manifest(Tag("a"))


def test_a_change_behind_the_cache_is_seen_at_once(registry: LayoutRegistry) -> None:
    first, second = put_image(registry, "first"), put_image(registry, "second")
    other = layout(registry.repository.folder)
    registry.put_manifest(first, Tag("a"))
    time.sleep(0.15)
    assert registry.get_manifest(Tag("a")) == first
    for _ in range(200):
        other.put_manifest(second, Tag("a"))
        assert registry.get_manifest(Tag("a")) == second
        other.put_manifest(first, Tag("a"))
        assert registry.get_manifest(Tag("a")) == first


def test_putting_a_tag_again_writes_nothing(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    registry.put_manifest(manifest, Tag("a"))
    before = (registry.repository.folder / "index.json").stat().st_ino
    registry.put_manifest(manifest, Tag("a"))
    assert (registry.repository.folder / "index.json").stat().st_ino == before


# Blobs


def test_torn_blob_is_put_again(registry: LayoutRegistry) -> None:
    content = b"content " * 100
    descriptor = put(registry, content)
    blob_path(registry, descriptor.digest).write_bytes(content[:10])
    assert registry.put_blob(descriptor, lambda: io.BytesIO(content)) is True
    assert read(registry, descriptor) == content


def test_torn_blob_keeps_its_manifest_out(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    blob_path(registry, manifest.layers[0].digest).write_bytes(b"")
    with pytest.raises(NotFound):
        registry.put_manifest(manifest, Tag("a"))


def test_corrupt_manifest_is_mended_by_putting_it(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    registry.put_manifest(manifest, Tag("a"))
    blob_path(registry, manifest.descriptor.digest).write_bytes(manifest.raw[:-1] + b" ")
    with pytest.raises(IntegrityError):
        registry.get_manifest(Tag("a"))
    registry.put_manifest(manifest, Tag("a"))
    assert registry.get_manifest(Tag("a")) == manifest


def test_mount_is_a_link(tmp_path: Path) -> None:
    source, target = layout(tmp_path / "source"), layout(tmp_path / "target")
    descriptor = put(source, b"content")
    assert target.mount_blob(descriptor, source.repository)
    assert blob_path(source, descriptor.digest).samefile(blob_path(target, descriptor.digest))
    assert target.mount_blob(descriptor, source.repository)


def test_mount_does_not_spread_corruption(tmp_path: Path) -> None:
    source, target = layout(tmp_path / "source"), layout(tmp_path / "target")
    descriptor = put(source, b"content")
    blob_path(source, descriptor.digest).write_bytes(b"c0ntent")
    assert not target.mount_blob(descriptor, source.repository)
    assert not target.has_blob(descriptor.digest)


def test_mount_replaces_a_torn_blob(tmp_path: Path) -> None:
    source, target = layout(tmp_path / "source"), layout(tmp_path / "target")
    for registry in (source, target):
        descriptor = put(registry, b"content")
    blob_path(target, descriptor.digest).write_bytes(b"cont")
    assert target.mount_blob(descriptor, source.repository)
    assert read(target, descriptor) == b"content"


def test_mount_across_disks_is_not_possible(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        assert Path(other).stat().st_dev != tmp_path.stat().st_dev
        source, target = layout(Path(other)), layout(tmp_path / "target")
        descriptor = put(source, b"content")
        assert not target.mount_blob(descriptor, source.repository)
        assert not target.mount_blob(descriptor, Repository.parse("registry.example.com/team/envs"))
        assert not target.has_blob(descriptor.digest)


def test_corrupt_tagged_manifest_can_be_deleted(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    registry.put_manifest(manifest, Tag("a"))
    blob_path(registry, manifest.descriptor.digest).write_bytes(b"rubbish")
    registry.delete_manifest(manifest.descriptor.digest)
    with pytest.raises(NotFound):
        registry.get_manifest(Tag("a"))


def test_a_layer_is_never_deleted_as_a_manifest(registry: LayoutRegistry) -> None:
    large = put(registry, b"x" * (5 << 20))
    small = put(registry, config_of("config"))
    for blob in (large, small):
        with pytest.raises(NotFound):
            registry.delete_manifest(blob.digest)
        assert registry.has_blob(blob.digest)


# Other tools


def skopeo(*arguments: str) -> str:
    done = subprocess.run(["skopeo", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_inspects_what_we_write(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    publish(registry, manifest, Tag("v1"))
    publish(registry, put_image(registry, "other"), Tag("v2"))
    name = f"oci:{registry.repository.folder}:v1"
    assert skopeo("inspect", "--raw", name).encode() == manifest.raw
    seen = json.loads(skopeo("inspect", name))
    assert seen["Digest"] == str(manifest.descriptor.digest)
    assert seen["Layers"] == [str(layer.digest) for layer in manifest.layers]


def test_skopeo_copies_from_us_and_we_read_it(registry: LayoutRegistry, tmp_path: Path) -> None:
    manifest = put_image(registry, "image")
    publish(registry, manifest, Tag("v1"))
    other = layout(tmp_path / "other")
    name = f"oci:{registry.repository.folder}:v1"
    skopeo("copy", "--insecure-policy", "--preserve-digests", name, f"oci:{tmp_path}/other:named")
    assert other.get_manifest(Tag("named")).raw == manifest.raw
    assert check_whole(other) == {"named"}
    publish(other, put_image(other, "ours"), Tag("ours"))
    assert check_whole(other) == {"named", "ours"}


def test_skopeo_writes_without_a_name(registry: LayoutRegistry, tmp_path: Path) -> None:
    manifest = put_image(registry, "image")
    publish(registry, manifest, Tag("v1"))
    name = f"oci:{registry.repository.folder}:v1"
    skopeo("copy", "--insecure-policy", "--preserve-digests", name, f"oci:{tmp_path}/other")
    other = layout(tmp_path / "other")
    assert other.get_manifest(Tag("latest")).raw == manifest.raw
    assert list(other.tags()) == []


def test_skopeo_copies_a_whole_index(registry: LayoutRegistry, tmp_path: Path) -> None:
    index = put_index(registry, "two")
    publish(registry, index, Tag("both"))
    name = f"oci:{registry.repository.folder}:both"
    skopeo("copy", "--insecure-policy", "--preserve-digests", "--all", name, f"oci:{tmp_path}/other:both")
    other = layout(tmp_path / "other")
    seen = other.get_manifest(Tag("both"))
    assert isinstance(seen, ImageIndex)
    assert seen.raw == index.raw
    assert [other.get_manifest(entry.digest).descriptor.digest for entry in seen.manifests] == [
        entry.digest for entry in index.manifests
    ]


def test_skopeo_adds_to_our_layout(registry: LayoutRegistry, tmp_path: Path) -> None:
    publish(registry, put_image(registry, "ours"), Tag("ours"))
    other = layout(tmp_path / "other")
    publish(other, put_image(other, "theirs"), Tag("v1"))
    folder = registry.repository.folder
    skopeo("copy", "--insecure-policy", f"oci:{other.repository.folder}:v1", f"oci:{folder}:theirs")
    assert check_whole(registry) == {"ours", "theirs"}


# Size


def test_ten_thousand_tags_stay_usable(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    registry.put_manifest(manifest)
    entries = [
        manifest.descriptor.annotated(**{REF_NAME: f"k1-{number:064x}"}).to_json() for number in range(10_000)
    ]
    write_index(registry, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    time.sleep(0.15)
    tag = Tag(f"k1-{9_999:064x}")
    assert seconds(lambda: layout(registry.repository.folder).get_manifest(tag)) < 1
    registry.get_manifest(tag)
    assert seconds(lambda: registry.get_manifest(tag)) < 0.05
    assert seconds(lambda: registry.put_manifest(manifest, Tag("new"))) < 2
    assert len(list(registry.tags())) == 10_001


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def test_threads_share_one_instance(registry: LayoutRegistry) -> None:
    def work(number: int) -> None:
        for step in range(10):
            name = f"{number}-{step}"
            publish(registry, put_image(registry, name), Tag(name))

    at_once(8, work)
    assert len(check_whole(registry)) == 80


def test_tags_of_many_threads_share_a_write(
    registry: LayoutRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_image(registry, "image")
    count = 16
    asked, written = threading.Semaphore(0), list[int]()
    grant, write = Turns.grant, LayoutFiles.write_index

    def asking(self: Turns, wish: Wish, *rest: Any) -> None:
        asked.release()
        grant(self, wish, *rest)

    def slow(self: LayoutFiles, writer: Any, tags: LayoutIndex) -> None:
        if not written:  # until all the others ask, and a moment for them to stand in line
            assert all(asked.acquire(timeout=60) for _ in range(count))
            time.sleep(0.1)
        written.append(len(tags.entries))
        write(self, writer, tags)

    monkeypatch.setattr(Turns, "grant", asking)
    monkeypatch.setattr(LayoutFiles, "write_index", slow)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda number: registry.put_manifest(manifest, Tag(f"t{number}")), range(count)))
    assert {Tag(f"t{number}") for number in range(count)} <= set(registry.tags())
    assert len(written) < count / 2
    assert written == sorted(written)


def test_one_that_cannot_write_leaves_the_others_their_turn(
    registry: LayoutRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = put_image(registry, "image")
    failures = iter([OSError(28, "No space left on device")])
    write = LayoutFiles.write_index

    def failing(self: LayoutFiles, writer: Any, tags: LayoutIndex) -> None:
        time.sleep(0.02)
        if (error := next(failures, None)) is not None:
            raise error
        write(self, writer, tags)

    monkeypatch.setattr(LayoutFiles, "write_index", failing)

    def put(number: int) -> bool:
        try:
            registry.put_manifest(manifest, Tag(f"t{number}"))
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(put, range(8)))
    assert done.count(False) == 1
    assert {Tag(f"t{number}") for number, written in enumerate(done) if written} <= set(registry.tags())


def test_the_index_is_written_as_json_writes_it(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    path = registry.repository.folder / "index.json"
    registry.put_manifest(manifest, Tag("one"))
    document = {
        "own": {"manifests": [], "ä": "ü"},
        **json.loads(path.read_text()),
        "later": [1, None, "\ud800"],
    }
    path.write_text(json.dumps(document))
    for name in ("two", "three", "two", "one"):
        registry.put_manifest(manifest, Tag(name))
        raw = path.read_bytes()
        assert raw == json.dumps(json.loads(raw), separators=(",", ":")).encode()
    seen = json.loads(path.read_text())
    assert list(seen) == list(document)
    assert seen["later"] == document["later"]
    assert len(seen["manifests"]) == 3


def test_what_others_write_right_after_us_is_seen(registry: LayoutRegistry) -> None:
    manifest = put_image(registry, "image")
    path = registry.repository.folder / "index.json"
    for number in range(50):  # in place and of the same size, within the grain of file times
        registry.put_manifest(manifest, Tag(f"a{number}"))
        path.write_text(path.read_text().replace(f'"a{number}"', f'"b{number}"'))
        assert Tag(f"b{number}") in set(registry.tags())
