"""What is attached goes up beside the image it belongs to, and only what was stored is listed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor
from envbuild.errors import Unavailable
from envbuild.key import Key
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import Artifact, referrers
from envbuild.oci.registry import find_manifest
from envbuild.progress import Event
from envbuild.publishing import Publisher
from envbuild.reference import Repository
from oci_contract import put_image

KEY = Key("1" * 64)
NOTE = Artifact("text/plain", "text/plain", b"a note", {}, "note.txt")
BLOB = Descriptor.of(NOTE.content, NOTE.media_type).digest


@pytest.fixture
def target(tmp_path: Path) -> LayoutRegistry:
    return LayoutRegistry(Repository.parse(f"oci:{tmp_path}/images"))


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def publisher(target: LayoutRegistry, tmp_path: Path, events: list[Event]) -> Publisher:
    config = Config(workspace=target.repository, cache_dir=tmp_path / "cache")
    return Publisher(config, target, NO_DEADLINE, events.append)


def notes() -> Iterator[Artifact]:
    yield NOTE


def wait_for_the_blob(target: LayoutRegistry) -> None:
    until = time.monotonic() + 20
    while not target.has_blob(BLOB):
        assert time.monotonic() < until, "nothing was sent before the image was stored"
        time.sleep(0.005)


def test_blobs_go_up_before_the_image_is_stored_and_the_list_after(
    publisher: Publisher, target: LayoutRegistry, events: list[Event]
) -> None:
    image = put_image(target, "image")

    def store() -> None:
        wait_for_the_blob(target)
        time.sleep(0.05)
        assert referrers(target, image.descriptor.digest) == ()
        target.put_manifest(image)

    assert publisher.publish(image, KEY, notes, store) == image
    assert [each.artifact_type for each in referrers(target, image.descriptor.digest)] == ["text/plain"]
    assert isinstance(find_manifest(target, KEY.tag), Manifest)
    assert events == []


def test_nothing_is_listed_of_an_image_that_could_not_be_stored(
    publisher: Publisher, target: LayoutRegistry, events: list[Event]
) -> None:
    image = put_image(target, "image")

    def fail() -> None:
        wait_for_the_blob(target)
        raise Unavailable("the registry went away")

    with pytest.raises(Unavailable, match="went away"):
        publisher.publish(image, KEY, notes, fail)
    assert find_manifest(target, KEY.tag) is None
    assert referrers(target, image.descriptor.digest) == ()
    assert find_manifest(target, NOTE.manifest(image.descriptor).descriptor.digest) is None
    assert events == [], "the one error is told once"


def test_an_index_is_put_where_nothing_else_stores_it(publisher: Publisher, target: LayoutRegistry) -> None:
    image = put_image(target, "image")
    target.put_manifest(image)
    index = ImageIndex.build((image.descriptor,), {})
    assert publisher.publish(index, KEY, notes) == index
    assert find_manifest(target, KEY.tag) == index
