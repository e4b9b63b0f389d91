"""Row 26: a peer pushes just after our miss. What it pushed is the answer, and nothing is built twice."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

import envbuild.build.choose
import envbuild.build.layers
import envbuild.resolver
from envbuild.build.job import Built, Job
from envbuild.build.solving import solve_conda
from envbuild.deadline import Deadline
from envbuild.errors import TagMoved
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.oci.registry import publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.resolver import ResolvedImage, Resolver, Source
from envbuild.storage import key_lock
from oci_contract import put_image
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.config import Config
    from envbuild.digest import Digest
    from envbuild.key import Key
    from parts.registry_server import RegistryServer

LOCK = "e" * 64


def push(config: Config, key: Key, name: str) -> Digest:
    """Publish a tiny image of a key, each machine another one; what the tag names in the end."""
    target = RemoteRegistry(config.workspace)
    try:
        image = put_image(target, name, annotations={KEY_ANNOTATION: str(key), LOCK_ANNOTATION: LOCK})
        return publish(target, image, key.tag).descriptor.digest
    finally:
        target.close()


def push_or_adopt(config: Config, key: Key) -> Digest:
    """What another machine's resolve does."""
    try:
        return push(config, key, f"theirs-{uuid.uuid4()}")
    except TagMoved:
        target = RemoteRegistry(config.workspace)
        try:
            return target.get_manifest(key.tag).descriptor.digest
        finally:
            target.close()


class Builder:
    """Builds tiny images and counts them."""

    def __init__(self, config: Config, seconds: float) -> None:
        self.config = config
        self.seconds = seconds
        self.builds = 0

    def build(self, job: Job) -> Built:
        """Take a while."""
        self.builds += 1
        time.sleep(self.seconds)
        return Built(push(self.config, job.key, f"ours-{uuid.uuid4()}"), LOCK, 1, 0, 1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


def race(
    world: World,
    server: RegistryServer,
    patch: pytest.MonkeyPatch,
    random: Random,
    *,
    same_machine: bool,
    longest: float,
) -> tuple[int, Source]:
    """Resolve while a peer pushes; how much we built, and where the image was found."""
    spec = world.spec("tool==1.0")
    config = world.other_machine(workspace=server.repository("raced"))
    builder = Builder(config, 0.3 * longest)
    patch.setattr(envbuild.build.choose, "builder_for", lambda *_: builder)
    missed, pushed = threading.Event(), list[Any]()

    @contextlib.contextmanager
    def lock(folder: Path, key: str, deadline: Deadline) -> Iterator[None]:
        """We have missed: the peer begins to push, and we go on."""
        missed.set()
        with key_lock(folder, key, deadline):
            yield

    patch.setattr(envbuild.resolver, "key_lock", lock)
    with Resolver(config) as resolver:
        key = resolver.key(spec)
        held = threading.Event()

        def peer() -> None:
            on_lock = key_lock(config.cache_dir, str(key), Deadline.after(30))
            with on_lock if same_machine else contextlib.nullcontext():
                held.set()
                missed.wait(30)
                time.sleep(random.uniform(0, longest))
                pushed.append(push_or_adopt(config, key))

        thread = threading.Thread(target=peer)
        thread.start()
        held.wait(30)
        image = resolver.resolve(spec)
        thread.join()
    registry = RemoteRegistry(config.workspace)
    assert registry.get_manifest(image.reference.digest).annotations[KEY_ANNOTATION] == str(key)
    assert registry.get_manifest(key.tag).descriptor.digest in {image.reference.digest, *pushed}
    registry.close()
    if not builder.builds:
        assert [image.reference.digest] == pushed
    return builder.builds, image.source


def test_a_peer_on_this_machine(
    world: World, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(26)
    for _ in range(8):
        done = race(world, registry, monkeypatch, random, same_machine=True, longest=0.1)
        assert done == (0, Source.WORKSPACE)


def test_a_peer_on_another_machine(
    world: World, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing keeps it from building too, but each gets an image of the key."""
    random = Random(62)
    found = [race(world, registry, monkeypatch, random, same_machine=False, longest=0.1) for _ in range(8)]
    assert all(builds <= 1 for builds, _ in found)


def test_a_peer_that_ends_while_we_solve(
    world: World, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers and its image are found by the lock key: we make nothing."""
    spec, workspace = world.spec("tool==1.0"), registry.repository("solving")
    peers: list[ResolvedImage] = []

    def solve(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(envbuild.build.layers, "solve_conda", solve_conda)
        with Resolver(world.other_machine(workspace=workspace)) as peer:
            peers.append(peer.resolve(spec))
        return solve_conda(*arguments, **named)

    monkeypatch.setattr(envbuild.build.layers, "solve_conda", solve)
    with Resolver(world.other_machine(workspace=workspace)) as resolver:
        ours = resolver.resolve(spec)
    assert [peer.layers_made for peer in peers] == [1]
    assert ours.reference == peers[0].reference
    assert ours.layers_made == 0


@pytest.mark.nightly
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("same_machine", [True, False])
def test_a_peer_500_times(
    world: World, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch, same_machine: bool
) -> None:
    random = Random(500)
    builds = 0
    for _ in range(500):
        builds += race(world, registry, monkeypatch, random, same_machine=same_machine, longest=1.0)[0]
    print(f"{builds} builds of ours in 500 races, peers on this machine: {same_machine}")  # noqa: T201
    assert not (same_machine and builds)
