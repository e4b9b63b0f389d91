"""What every ``Registry`` does, as tests that each back end runs on real storage.

A back end's test module derives from :class:`RegistryContract` and gives the ``backend`` fixture:

    class TestLayout(RegistryContract):
        @pytest.fixture
        def backend(self, tmp_path: Path) -> Backend: ...
"""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, Protocol

import pytest

from envbuild.deadline import Deadline
from envbuild.digest import Descriptor, Digest
from envbuild.errors import DeadlineExceeded, IntegrityError, NotFound, TagMoved
from envbuild.oci.copy import CopyReport, copy_image
from envbuild.oci.manifest import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    ImageIndex,
    Manifest,
    encode,
)
from envbuild.oci.registry import find_manifest, publish
from envbuild.platform import Platform
from envbuild.reference import Tag

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.oci.registry import Registry

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


class Backend(Protocol):
    """What the contract needs of a back end."""

    def repository(self) -> Registry:
        """A repository that nobody used before; all of one back end are on the same host."""
        ...

    def overwrite_blob(self, registry: Registry, digest: Digest, content: bytes) -> None:
        """Replace a stored blob's bytes behind the registry's back."""
        ...

    def overwrite_manifest(self, registry: Registry, digest: Digest, content: bytes) -> None:
        """Replace a stored manifest's bytes behind the registry's back."""
        ...


class Source:
    """A blob opener that counts its calls and knows whether its streams were closed."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.streams: list[io.BytesIO] = []
        self._lock = threading.Lock()

    def __call__(self) -> IO[bytes]:
        with self._lock:
            self.streams.append(io.BytesIO(self.content))
            return self.streams[-1]

    @property
    def calls(self) -> int:
        """How often the content was asked for."""
        return len(self.streams)


class Broken(io.RawIOBase):
    """A stream that gives some bytes and then an integrity error, as a verifying reader does."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content = content

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """The bytes once, then the error."""
        if not self._content:
            raise IntegrityError("the source went bad")
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count


def put(registry: Registry, content: bytes, media_type: str = OCI_LAYER_GZIP) -> Descriptor:
    """Put a blob."""
    descriptor = Descriptor.of(content, media_type)
    registry.put_blob(descriptor, lambda: io.BytesIO(content))
    return descriptor


def config_of(text: str, platform: Platform = AMD64) -> bytes:
    """The bytes of a small image config; other text, other bytes."""
    return encode(
        {
            **platform.to_json(),
            "config": {"Labels": {"text": text}},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
    )


def put_image(
    registry: Registry,
    text: str,
    *,
    layers: int = 2,
    docker: bool = False,
    annotations: dict[str, str] | None = None,
    platform: Platform = AMD64,
) -> Manifest:
    """Put the blobs of an image and return its manifest, which is not put."""
    config = put(registry, config_of(text, platform), DOCKER_CONFIG if docker else OCI_CONFIG)
    kind = DOCKER_LAYER_GZIP if docker else OCI_LAYER_GZIP
    return Manifest.build(
        config,
        tuple(put(registry, f"layer {number} of {text}".encode() * 50, kind) for number in range(layers)),
        annotations or {},
        media_type=DOCKER_MANIFEST if docker else OCI_MANIFEST,
    )


def put_index(registry: Registry, text: str, *, docker: bool = False) -> ImageIndex:
    """Put two images and return the index over them, which is not put."""
    entries = []
    for platform in (AMD64, ARM64):
        manifest = put_image(registry, f"{text} {platform}", docker=docker, platform=platform)
        registry.put_manifest(manifest)
        seen = manifest.descriptor
        entries.append(Descriptor(seen.media_type, seen.digest, seen.size, platform=platform))
    if docker:
        return ImageIndex.build(tuple(entries), {}, media_type=DOCKER_INDEX)
    return ImageIndex.build(tuple(entries), {"text": text})


def read(registry: Registry, descriptor: Descriptor) -> bytes:
    """All bytes of a blob."""
    with registry.open_blob(descriptor) as stream:
        return stream.read()


def flipped(content: bytes, position: int = -3) -> bytes:
    """The same number of bytes with one other letter."""
    changed = bytearray(content)
    changed[position] ^= 0x01
    return bytes(changed)


def shortened(content: bytes) -> bytes:
    """One byte less."""
    return content[:-1]


def lengthened(content: bytes) -> bytes:
    """One byte more."""
    return content + b"!"


def at_once(count: int, call: Callable[[int], Any]) -> list[Any]:
    """Call from so many threads at the same moment; the results in order."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait(30)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


ABSENT = Descriptor.of(b"never stored", OCI_LAYER_GZIP)


class RegistryContract:
    """The contract of :class:`~envbuild.oci.registry.Registry`."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Storage of the back end, fresh for each test."""
        raise NotImplementedError

    @pytest.fixture
    def registry(self, backend: Backend) -> Registry:
        """A fresh repository."""
        return backend.repository()

    # What is missing is a miss

    def test_missing_tag_is_not_found(self, registry: Registry) -> None:
        with pytest.raises(NotFound):
            registry.get_manifest(Tag("k1-none"))
        assert find_manifest(registry, Tag("k1-none")) is None

    def test_missing_digest_is_not_found(self, registry: Registry) -> None:
        with pytest.raises(NotFound):
            registry.get_manifest(ABSENT.digest)

    def test_missing_things_are_not_found_beside_others(self, registry: Registry) -> None:
        registry.put_manifest(put_image(registry, "there"), Tag("there"))
        with pytest.raises(NotFound):
            registry.get_manifest(Tag("ther"))
        with pytest.raises(NotFound):
            registry.get_manifest(ABSENT.digest)

    def test_missing_blob_is_not_found(self, registry: Registry) -> None:
        assert registry.has_blob(ABSENT.digest) is False
        with pytest.raises(NotFound):
            read(registry, ABSENT)

    def test_missing_manifest_cannot_be_deleted(self, registry: Registry) -> None:
        with pytest.raises(NotFound):
            registry.delete_manifest(ABSENT.digest)

    def test_blob_is_not_a_manifest(self, registry: Registry) -> None:
        manifest = put_image(registry, "image")
        registry.put_manifest(manifest, Tag("image"))
        for blob in manifest.blobs:
            with pytest.raises(NotFound):
                registry.get_manifest(blob.digest)

    def test_fresh_repository_has_no_tags(self, registry: Registry) -> None:
        assert list(registry.tags()) == []

    def test_looking_stores_nothing(self, registry: Registry) -> None:
        assert find_manifest(registry, Tag("a")) is None
        assert not registry.has_blob(ABSENT.digest)
        assert list(registry.tags()) == []

    # Blobs

    @pytest.mark.parametrize("size", [0, 1, 1000, 3 << 20])
    def test_blob_round_trip(self, registry: Registry, size: int) -> None:
        content = (b"0123456789abcde\n" * (size // 16 + 1))[:size]
        descriptor = Descriptor.of(content, OCI_LAYER_GZIP)
        source = Source(content)
        assert registry.put_blob(descriptor, source) is True
        assert source.calls == 1
        assert registry.has_blob(descriptor.digest) is True
        assert read(registry, descriptor) == content

    def test_blob_in_small_reads(self, registry: Registry) -> None:
        content = bytes(range(256)) * 40
        descriptor = put(registry, content)
        with registry.open_blob(descriptor) as stream:
            assert b"".join(iter(lambda: stream.read(999), b"")) == content

    def test_existing_blob_is_not_stored_again(self, registry: Registry) -> None:
        content = b"once" * 1000
        descriptor = put(registry, content)
        again = Source(content)
        assert registry.put_blob(descriptor, again) is False
        assert again.calls == 0

    def test_streams_are_closed(self, registry: Registry) -> None:
        content = b"closed" * 1000
        source = Source(content)
        registry.put_blob(Descriptor.of(content, OCI_LAYER_GZIP), source)
        assert [stream.closed for stream in source.streams] == [True] * source.calls

    @pytest.mark.parametrize("wrong", [b"right contenT", b"right conten", b"right content and more", b""])
    def test_wrong_content_is_refused(self, registry: Registry, wrong: bytes) -> None:
        descriptor = Descriptor.of(b"right content", OCI_LAYER_GZIP)
        with pytest.raises(IntegrityError):
            registry.put_blob(descriptor, lambda: io.BytesIO(wrong))
        assert not registry.has_blob(descriptor.digest)
        assert wrong == b"" or not registry.has_blob(Digest.of(wrong))
        assert registry.put_blob(descriptor, lambda: io.BytesIO(b"right content")) is True
        assert read(registry, descriptor) == b"right content"

    def test_content_for_the_empty_blob_is_refused(self, registry: Registry) -> None:
        descriptor = Descriptor.of(b"", OCI_LAYER_GZIP)
        with pytest.raises(IntegrityError):
            registry.put_blob(descriptor, lambda: io.BytesIO(b"not empty"))

    def test_source_that_breaks_stores_nothing(self, registry: Registry) -> None:
        descriptor = Descriptor.of(b"x" * 5000, OCI_LAYER_GZIP)
        with pytest.raises(IntegrityError):
            registry.put_blob(descriptor, lambda: io.BufferedReader(Broken(b"x" * 4000)))
        assert not registry.has_blob(descriptor.digest)

    @pytest.mark.parametrize(
        "change", [flipped, lambda content: content[:-1], lambda content: content + b"!"]
    )
    def test_corrupt_blob_is_never_read_to_its_end(
        self, backend: Backend, registry: Registry, change: Callable[[bytes], bytes]
    ) -> None:
        content = b"good bytes " * 1000
        descriptor = put(registry, content)
        backend.overwrite_blob(registry, descriptor.digest, change(content))
        with pytest.raises(IntegrityError):
            read(registry, descriptor)

    def test_wrong_size_in_a_descriptor_is_found(self, registry: Registry) -> None:
        descriptor = put(registry, b"thirteen bytes"[:13])
        with pytest.raises(IntegrityError):
            read(registry, Descriptor(descriptor.media_type, descriptor.digest, 12))

    def test_threads_put_one_blob(self, registry: Registry) -> None:
        content = b"the same blob " * 10_000
        descriptor = Descriptor.of(content, OCI_LAYER_GZIP)
        stored = at_once(8, lambda _: registry.put_blob(descriptor, lambda: io.BytesIO(content)))
        assert any(stored)
        assert read(registry, descriptor) == content

    def test_threads_put_and_read_many_blobs(self, registry: Registry) -> None:
        contents = [f"blob {number} ".encode() * 2000 for number in range(16)]
        descriptors = [Descriptor.of(content, OCI_LAYER_GZIP) for content in contents]

        def work(first: int) -> None:
            for step in range(16):
                number = (first * 2 + step) % 16
                registry.put_blob(descriptors[number], Source(contents[number]))
                assert read(registry, descriptors[number]) == contents[number]

        at_once(8, work)

    # Mounts

    def test_mount_moves_no_bytes(self, backend: Backend) -> None:
        source, target = backend.repository(), backend.repository()
        content = b"mounted " * 1000
        descriptor = put(source, content)
        assert target.mount_blob(descriptor, source.repository) is True
        assert read(target, descriptor) == content
        again = Source(content)
        assert target.put_blob(descriptor, again) is False
        assert again.calls == 0

    def test_mount_of_what_is_missing(self, backend: Backend) -> None:
        source, target = backend.repository(), backend.repository()
        put(source, b"something else")
        assert target.mount_blob(ABSENT, source.repository) is False
        assert not target.has_blob(ABSENT.digest)

    # Manifests

    @pytest.mark.parametrize("docker", [False, True])
    def test_manifest_round_trip(self, registry: Registry, docker: bool) -> None:
        manifest = put_image(registry, "image", docker=docker)
        registry.put_manifest(manifest, Tag("v1"))
        by_tag = registry.get_manifest(Tag("v1"))
        assert by_tag == manifest
        assert by_tag.raw == manifest.raw
        assert registry.get_manifest(manifest.descriptor.digest).raw == manifest.raw

    @pytest.mark.parametrize("docker", [False, True])
    def test_index_round_trip(self, registry: Registry, docker: bool) -> None:
        index = put_index(registry, "two", docker=docker)
        registry.put_manifest(index, Tag("both"))
        seen = registry.get_manifest(Tag("both"))
        assert isinstance(seen, ImageIndex)
        assert seen.raw == index.raw
        entry = seen.for_platform(ARM64)
        assert entry is not None
        assert registry.get_manifest(entry.digest).descriptor.digest == entry.digest

    def test_foreign_bytes_keep_their_digest(self, registry: Registry) -> None:
        built = put_image(registry, "image")
        raw = json.dumps(json.loads(built.raw), indent=3, sort_keys=True).encode()
        registry.put_manifest(Manifest(raw, built.media_type, built.config, built.layers), Tag("spaced"))
        assert registry.get_manifest(Tag("spaced")).raw == raw
        assert registry.get_manifest(Digest.of(raw)).raw == raw

    def test_annotations_in_any_language(self, registry: Registry) -> None:
        annotations = {
            "io.envbuild.key": "a" * 64,
            "org.example.äöü": 'naïve 環境 \N{SNOWMAN} "quoted" \\ \n',
        }
        manifest = put_image(registry, "image", annotations=annotations)
        registry.put_manifest(manifest, Tag("words"))
        assert registry.get_manifest(Tag("words")).annotations == annotations

    def test_image_without_layers(self, registry: Registry) -> None:
        manifest = put_image(registry, "bare", layers=0)
        registry.put_manifest(manifest, Tag("bare"))
        assert registry.get_manifest(Tag("bare")) == manifest

    def test_manifest_without_a_tag(self, registry: Registry) -> None:
        manifest = put_image(registry, "untagged")
        registry.put_manifest(manifest)
        assert registry.get_manifest(manifest.descriptor.digest) == manifest
        assert list(registry.tags()) == []

    @pytest.mark.parametrize("lost", ["config", "layer"])
    def test_manifest_with_a_missing_blob_is_refused(self, registry: Registry, lost: str) -> None:
        whole = put_image(registry, "image")
        config = Descriptor.of(b'{"lost":true}', OCI_CONFIG) if lost == "config" else whole.config
        layers = whole.layers if lost == "config" else (*whole.layers, ABSENT)
        manifest = Manifest.build(config, layers, {})
        with pytest.raises(NotFound) as caught:
            registry.put_manifest(manifest, Tag("partial"))
        assert str((config if lost == "config" else ABSENT).digest) in str(caught.value)
        assert find_manifest(registry, Tag("partial")) is None
        assert find_manifest(registry, manifest.descriptor.digest) is None

    def test_index_with_a_missing_manifest_is_refused(self, registry: Registry) -> None:
        whole = put_index(registry, "two")
        lost = Descriptor(OCI_MANIFEST, ABSENT.digest, ABSENT.size, platform=Platform("linux", "s390x"))
        index = ImageIndex.build((*whole.manifests, lost), {})
        with pytest.raises(NotFound):
            registry.put_manifest(index, Tag("partial"))
        assert find_manifest(registry, Tag("partial")) is None

    def test_corrupt_manifest_is_refused(self, backend: Backend, registry: Registry) -> None:
        manifest = put_image(registry, "image", annotations={"mark": "AAAA"})
        registry.put_manifest(manifest, Tag("v1"))
        changed = manifest.raw.replace(b"AAAA", b"AAAB")
        assert changed != manifest.raw
        backend.overwrite_manifest(registry, manifest.descriptor.digest, changed)
        for reference in (Tag("v1"), manifest.descriptor.digest):
            with pytest.raises(IntegrityError):
                registry.get_manifest(reference)

    # Tags

    def test_tags_are_listed(self, registry: Registry) -> None:
        manifest = put_image(registry, "image")
        names = {Tag(f"k1-{number:064x}") for number in range(30)} | {Tag("A_.-b"), Tag("x" * 128)}
        for name in names:
            registry.put_manifest(manifest, name)
        listed = list(registry.tags())
        assert set(listed) == names
        assert len(listed) == len(names)

    def test_put_moves_a_tag(self, registry: Registry) -> None:
        first, second = put_image(registry, "first"), put_image(registry, "second")
        registry.put_manifest(first, Tag("moving"))
        registry.put_manifest(second, Tag("moving"))
        assert registry.get_manifest(Tag("moving")) == second
        assert registry.get_manifest(first.descriptor.digest) == first
        assert list(registry.tags()) == [Tag("moving")]

    def test_delete_takes_every_tag(self, registry: Registry) -> None:
        manifest, other = put_image(registry, "image"), put_image(registry, "other")
        for name in ("one", "two"):
            registry.put_manifest(manifest, Tag(name))
        registry.put_manifest(other, Tag("other"))
        registry.delete_manifest(manifest.descriptor.digest)
        for reference in (Tag("one"), Tag("two"), manifest.descriptor.digest):
            with pytest.raises(NotFound):
                registry.get_manifest(reference)
        assert registry.get_manifest(Tag("other")) == other
        assert set(registry.tags()) == {Tag("other")}
        with pytest.raises(NotFound):
            registry.delete_manifest(manifest.descriptor.digest)

    def test_deleted_manifest_can_come_back(self, registry: Registry) -> None:
        manifest = put_image(registry, "image")
        registry.put_manifest(manifest, Tag("v1"))
        registry.delete_manifest(manifest.descriptor.digest)
        registry.put_manifest(put_image(registry, "image"), Tag("v1"))
        assert registry.get_manifest(Tag("v1")) == manifest

    # Publishing

    def test_publish_tags_and_reads_back(self, registry: Registry) -> None:
        manifest = put_image(registry, "image")
        assert publish(registry, manifest, Tag("k1-a")) == manifest
        assert registry.get_manifest(Tag("k1-a")) == manifest

    def test_publish_adopts_an_existing_tag(self, registry: Registry) -> None:
        first, second = put_image(registry, "first"), put_image(registry, "second")
        publish(registry, first, Tag("k1-a"))
        assert publish(registry, second, Tag("k1-a")) == first
        assert registry.get_manifest(Tag("k1-a")) == first

    def test_publish_adopts_nothing_that_lacks_the_key(self, registry: Registry) -> None:
        ours = put_image(registry, "ours", annotations={"io.envbuild.key": "a"})
        for other in ({}, {"io.envbuild.key": "b"}):
            theirs = put_image(registry, "theirs", annotations=other)
            registry.put_manifest(theirs, Tag("k1-a"))
            with pytest.raises(IntegrityError, match="expected a"):
                publish(registry, ours, Tag("k1-a"))
            assert registry.get_manifest(Tag("k1-a")) == theirs
        registry.put_manifest(ours, Tag("k1-a"))
        same = put_image(registry, "same", annotations={"io.envbuild.key": "a"})
        assert publish(registry, same, Tag("k1-a")) == ours

    def test_threads_publish_one_image(self, registry: Registry) -> None:
        def work(number: int) -> Manifest | ImageIndex:
            return publish(registry, put_image(registry, "the same"), Tag("k1-a"))

        assert len({seen.descriptor.digest for seen in at_once(8, work)}) == 1
        assert list(registry.tags()) == [Tag("k1-a")]

    def test_threads_publish_different_images(self, registry: Registry) -> None:
        manifests = [put_image(registry, f"image {number}") for number in range(8)]
        digests = {manifest.descriptor.digest for manifest in manifests}

        def work(number: int) -> Digest | None:
            try:
                return publish(registry, manifests[number], Tag("k1-a")).descriptor.digest
            except TagMoved:
                return None

        assert set(at_once(8, work)) <= {*digests, None}
        final = registry.get_manifest(Tag("k1-a"))
        assert final.descriptor.digest in digests
        assert publish(registry, manifests[0], Tag("k1-a")) == final

    def test_threads_publish_many_tags(self, registry: Registry) -> None:
        def work(number: int) -> None:
            for step in range(4):
                text = f"{number}-{step}"
                publish(registry, put_image(registry, text, layers=1), Tag(text))

        at_once(8, work)
        assert {tag.name for tag in registry.tags()} == {f"{a}-{b}" for a in range(8) for b in range(4)}

    # Copies

    @pytest.mark.parametrize("docker", [False, True])
    def test_copy_keeps_the_digest(self, backend: Backend, docker: bool) -> None:
        source, target = backend.repository(), backend.repository()
        manifest = put_image(source, "image", docker=docker)
        source.put_manifest(manifest)
        report = copy_image(source, target, manifest)
        assert report.blobs_mounted + report.blobs_copied == 3
        assert target.get_manifest(manifest.descriptor.digest) == manifest
        assert [read(target, blob) for blob in manifest.blobs] == [
            read(source, blob) for blob in manifest.blobs
        ]
        assert list(target.tags()) == []

    def test_copy_of_an_index_takes_all(self, backend: Backend) -> None:
        source, target = backend.repository(), backend.repository()
        index = put_index(source, "two")
        source.put_manifest(index)
        copy_image(source, target, index)
        publish(target, index, Tag("both"))
        for entry in index.manifests:
            manifest = target.get_manifest(entry.digest)
            assert isinstance(manifest, Manifest)
            assert all(target.has_blob(blob.digest) for blob in manifest.blobs)

    def test_second_copy_moves_nothing(self, backend: Backend) -> None:
        source, target = backend.repository(), backend.repository()
        manifest = put_image(source, "image")
        source.put_manifest(manifest)
        copy_image(source, target, manifest)
        assert copy_image(source, target, manifest) == CopyReport(blobs_present=3)

    # Calls

    def test_passed_deadline(self, registry: Registry) -> None:
        manifest = put_image(registry, "image")
        registry.put_manifest(manifest, Tag("v1"))
        late = registry.by(Deadline.after(0))
        calls: list[Callable[[], object]] = [
            lambda: late.get_manifest(Tag("v1")),
            lambda: late.get_manifest(manifest.descriptor.digest),
            lambda: late.has_blob(manifest.config.digest),
            lambda: read(late, manifest.config),
            lambda: late.put_blob(ABSENT, Source(b"never stored")),
            lambda: late.mount_blob(ABSENT, registry.repository),
            lambda: late.put_manifest(manifest, Tag("v2")),
            lambda: late.delete_manifest(manifest.descriptor.digest),
            lambda: list(late.tags()),
        ]
        for call in calls:
            with pytest.raises(DeadlineExceeded) as caught:
                call()
            assert caught.value.retryable
        assert list(registry.tags()) == [Tag("v1")]

    def test_deadline_of_one_view_is_its_own(self, registry: Registry) -> None:
        registry.by(Deadline.after(0))
        view = registry.by(Deadline.after(600))
        assert view.repository == registry.repository
        descriptor = put(view, b"seen by all")
        assert registry.has_blob(descriptor.digest)

    def test_close_twice(self, registry: Registry) -> None:
        put(registry, b"something")
        registry.close()
        registry.close()
