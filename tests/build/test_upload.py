"""A manifest is put first, and what the registry lacks is brought or made."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from envbuild.build.upload import Upload
from envbuild.digest import Descriptor, Digest
from envbuild.errors import BuildError, IntegrityError, NotFound
from envbuild.index import Index
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, ImageIndex, Manifest
from envbuild.oci.remote import RemoteRegistry
from envbuild.progress import silent
from envbuild.reference import Repository, Tag
from parts.registry_server import RegistryServer

CONTENTS = tuple(f"layer {number}".encode() for number in range(5))
LAYERS = tuple(Descriptor.of(content, OCI_LAYER_GZIP) for content in CONTENTS)
CONFIG = Descriptor.of(b"{}", OCI_CONFIG)
MANIFEST = Manifest.build(CONFIG, LAYERS, {})


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """An index that knows nothing."""
    return Index(tmp_path / "cache")


def opener(content: bytes) -> Callable[[], io.BytesIO]:
    return lambda: io.BytesIO(content)


def remote(server: RegistryServer, *contents: bytes) -> RemoteRegistry:
    """A repository with these blobs in it."""
    registry = RemoteRegistry(server.repository())
    for content in (b"{}", *contents):
        registry.put_blob(Descriptor.of(content, OCI_LAYER_GZIP), opener(content))
    return registry


def expecting(target: Any, *sources: Any, make: Any = None, arrived: Any = None) -> Upload:
    upload = Upload(target, silent)
    for layer in LAYERS:
        upload.expect(layer, sources, "it", make=make, arrived=arrived)
    return upload


def test_what_is_there_costs_one_request(registry: RegistryServer, index: Index) -> None:
    target = remote(registry, *CONTENTS)
    expecting(target).complete(MANIFEST, index, 4)
    before = len(registry.requests)
    expecting(target).complete(MANIFEST, index, 4)
    asked = registry.requests[before:]
    assert [line.split()[0] for line in asked] == ["PUT"], "the registry was probed the first time"
    assert target.get_manifest(MANIFEST.descriptor.digest).raw == MANIFEST.raw


def test_what_is_missing_is_mounted(registry: RegistryServer, index: Index) -> None:
    target, source = remote(registry, *CONTENTS[:3]), remote(registry, *CONTENTS)
    came: list[int] = []
    upload = expecting(target, source, arrived=lambda: came.append(1))
    upload.complete(MANIFEST, index, 4)
    assert len(came) == 2
    assert upload.bytes_sent == 0
    assert target.get_manifest(MANIFEST.descriptor.digest).raw == MANIFEST.raw


def test_what_is_on_another_host_is_copied(
    registry: RegistryServer, second_registry: RegistryServer, index: Index
) -> None:
    target, source = remote(registry), remote(second_registry, *CONTENTS)
    upload = expecting(target, remote(second_registry), source)
    upload.complete(MANIFEST, index, 4)
    assert upload.bytes_sent == sum(map(len, CONTENTS))
    assert target.get_manifest(MANIFEST.descriptor.digest).raw == MANIFEST.raw


def test_what_is_nowhere_is_made_or_an_error(registry: RegistryServer, index: Index) -> None:
    target = remote(registry, *CONTENTS[1:])

    def make() -> Descriptor:
        target.put_blob(LAYERS[0], opener(CONTENTS[0]))
        return LAYERS[0]

    with pytest.raises(IntegrityError, match="missing"):
        expecting(target).complete(MANIFEST, index, 4)
    with pytest.raises(BuildError, match="made again"):
        expecting(target, make=lambda: LAYERS[1]).complete(MANIFEST, index, 4)
    expecting(target, make=make).complete(MANIFEST, index, 4)
    assert target.get_manifest(MANIFEST.descriptor.digest).raw == MANIFEST.raw


def test_a_layout_is_asked_for_each_blob(tmp_path: Path, index: Index) -> None:
    source, target = (LayoutRegistry(Repository.parse(f"oci:{tmp_path}/{name}")) for name in "ab")
    for content in (b"{}", *CONTENTS):
        source.put_blob(Descriptor.of(content, OCI_LAYER_GZIP), opener(content))
    target.put_blob(CONFIG, opener(b"{}"))
    with pytest.raises(IntegrityError, match="missing"):
        expecting(target).complete(MANIFEST, index, 4)
    expecting(target, source).complete(MANIFEST, index, 4)
    assert target.get_manifest(MANIFEST.descriptor.digest).raw == MANIFEST.raw


class Careless:
    """A registry that takes any manifest, whatever it lacks; all else is the real one's."""

    def __init__(self, real: LayoutRegistry) -> None:
        self.real = real
        self.repository = Repository("careless.example", "envs")
        self.manifests: dict[Digest, bytes] = {}
        self.deleted: list[Digest] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def put_manifest(self, manifest: Manifest | ImageIndex, tag: Tag | None = None) -> None:  # noqa: ARG002 - the protocol's
        self.manifests[manifest.descriptor.digest] = manifest.raw

    def delete_manifest(self, digest: Digest) -> None:
        self.deleted.append(digest)
        raise NotFound("it forgot")


def test_a_registry_that_takes_anything_is_never_believed(tmp_path: Path, index: Index) -> None:
    source, real = (LayoutRegistry(Repository.parse(f"oci:{tmp_path}/{name}")) for name in "ab")
    for content in CONTENTS:
        source.put_blob(Descriptor.of(content, OCI_LAYER_GZIP), opener(content))
    target = Careless(real)
    with pytest.raises(IntegrityError, match="missing"):
        expecting(target).complete(MANIFEST, index, 4)
    assert MANIFEST.descriptor.digest not in target.manifests
    assert len(target.deleted) == 1
    expecting(target, source).complete(MANIFEST, index, 4)
    assert all(real.has_blob(layer.digest) for layer in LAYERS)
    assert len(target.deleted) == 1, "probed once"
    assert (index.fact("dangling careless.example") or "").startswith("accepted ")


def test_what_may_wait_is_done_before_the_manifest_and_fails_it(tmp_path: Path, index: Index) -> None:
    target = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/target"))
    go = threading.Event()

    def put_config() -> int:
        go.wait(10)
        return target.put_blob(CONFIG, opener(b"{}"))

    manifest = Manifest.build(CONFIG, (), {})
    with Upload(target, silent) as upload:
        later = upload.later(put_config)
        assert not later.done()
        threading.Timer(0.05, go.set).start()
        upload.complete(manifest, index, 2)
        assert later.done()
        upload.later(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            upload.complete(MANIFEST, index, 2)
    assert Upload(target, silent).later(lambda: 5).result() == 5


def test_leaving_without_an_error_waits_for_what_may_wait(tmp_path: Path) -> None:
    done: list[int] = []
    with Upload(LayoutRegistry(Repository.parse(f"oci:{tmp_path}/target")), silent) as upload:
        for number in range(20):
            upload.later(partial(done.append, number))
    assert sorted(done) == list(range(20))
