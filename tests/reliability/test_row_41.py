"""Row 41: a registry that is away for a while, as for a restart, costs time and fails nothing."""

from __future__ import annotations

import io
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from envbuild.digest import Descriptor
from envbuild.errors import Unavailable
from envbuild.oci.copy import copy_image
from envbuild.oci.manifest import OCI_LAYER_GZIP
from envbuild.oci.open import Settings, open_registry
from envbuild.prewarm import prewarm
from envbuild.resolver import Resolver, Source
from oci_contract import read
from tiny import World

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.progress import Event
    from parts.registry_server import RegistryServer

BACK_WITHIN = 5.0
"""Seconds after its return in which a registry is used again; a busy machine gets some more."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


class Outage:
    """Stops a registry, and starts it again after a while.

    Args:
        server: The registry.
        seconds: How long it is away.
    """

    def __init__(self, server: RegistryServer, seconds: float) -> None:
        self._server = server
        self._seconds = seconds
        self.ended = float("inf")

    def happen(self) -> None:
        self._server.stop()
        time.sleep(self._seconds)
        self._server.start()
        self.ended = time.monotonic()

    def after(self, seconds: float) -> threading.Thread:
        """Happen beside what the test does."""

        def wait_and_happen() -> None:
            time.sleep(seconds)
            self.happen()

        thread = threading.Thread(target=wait_and_happen)
        thread.start()
        return thread


def in_a_registry(world: World, server: RegistryServer) -> Resolver:
    """A machine whose workspace is in the registry, where the environment is known already."""
    workspace = server.repository()
    with Resolver(replace(world.config, workspace=workspace, attach=False)) as resolver:
        resolver.resolve(world.spec("tool"))
    return Resolver(world.other_machine(workspace=workspace, attach=False, index_ttl=0))


def hits(world: World, server: RegistryServer, seconds: float, count: int = 1000) -> None:
    """Look one environment up over and over, from many threads, while the registry is away."""
    outage, numbers, failed = Outage(server, seconds), itertools.count(), []
    done: list[float] = []
    with in_a_registry(world, server) as resolver:
        spec = resolver.load(world.spec("tool"))
        resolver.resolve(spec)
        away = outage.after(0.2)

        def look() -> None:
            while next(numbers) < count or not done or done[-1] < outage.ended + 0.2:
                try:
                    assert resolver.resolve(spec, build=False).source is not Source.BUILT
                except Exception as error:  # noqa: BLE001 - each is counted
                    failed.append(error)
                done.append(time.monotonic())

        with ThreadPoolExecutor(16) as pool:
            for future in [pool.submit(look) for _ in range(16)]:
                future.result()
        away.join()
    assert not failed, f"{len(failed)} of {len(done)} failed: {failed[0]}"
    back = min(each for each in done if each > outage.ended)
    assert back - outage.ended < BACK_WITHIN + 1


@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_hits(world: World, stoppable_registry: RegistryServer, seconds: float) -> None:
    hits(world, stoppable_registry, seconds)


@pytest.mark.nightly
@pytest.mark.parametrize("seconds", [1.0, 5.0, 30.0])
def test_hits_during_long_outages(world: World, stoppable_registry: RegistryServer, seconds: float) -> None:
    hits(world, stoppable_registry, seconds)


def pushed(server: RegistryServer, seconds: float, settings: Settings, start: float) -> None:
    """Push blobs, some of them in pieces, while the registry is away."""
    outage, random = Outage(server, seconds), Random(0)
    target = open_registry(server.repository(), settings=settings)
    contents = [random.randbytes(size) for size in (300_000, 5_000_000, 2_000_000, 100)]
    blobs = [Descriptor.of(content, OCI_LAYER_GZIP) for content in contents]
    target.put_blob(Descriptor.of(b"known", OCI_LAYER_GZIP), lambda: io.BytesIO(b"known"))

    class Slow(io.BytesIO):
        """Content that takes its time, so that it is under way when the registry goes."""

        def read(self, size: int | None = -1, /) -> bytes:
            time.sleep(0.01)
            return super().read(size)

    away = outage.after(start)
    with ThreadPoolExecutor(4) as pool:
        putting = [
            pool.submit(target.put_blob, blob, lambda content=content: Slow(content))  # type: ignore[misc]
            for blob, content in zip(blobs, contents, strict=True)
        ]
        assert all(each.result() for each in putting)
    away.join()
    assert [read(target, blob) for blob in blobs] == contents
    target.close()


@pytest.mark.parametrize("start", [0.0, 0.1, 0.4])
def test_pushes(stoppable_registry: RegistryServer, start: float) -> None:
    pushed(stoppable_registry, 1.0, Settings(chunk=500_000), start)


@pytest.mark.nightly
@pytest.mark.parametrize("seconds", [5.0, 30.0])
def test_pushes_during_long_outages(stoppable_registry: RegistryServer, seconds: float) -> None:
    pushed(stoppable_registry, seconds, Settings(chunk=500_000), 0.2)


def test_a_build_and_its_push(world: World, stoppable_registry: RegistryServer) -> None:
    """Away from the first question on: a process that starts during a restart waits, too."""
    told: list[Event] = []
    outage = Outage(stoppable_registry, 1.5)
    away = outage.after(0.0)
    time.sleep(0.2)
    config = replace(world.config, workspace=stoppable_registry.repository())
    with Resolver(config, progress=told.append) as resolver:
        image = resolver.resolve(world.spec("tool"))
    away.join()
    assert image.source is Source.BUILT
    waits = [event for event in told if event.phase == "wait"]
    assert waits
    assert waits[0].subject == stoppable_registry.host
    assert "refused" in waits[0].text


def warmed(world: World, server: RegistryServer, seconds: float) -> None:
    """Pre-warm some environments while the registry is away."""
    config = replace(world.config, workspace=server.repository())
    names = ["tool=1.0", "tool=2.0", "python", "thing", "first", "second"]
    specs = [world.spec(name, name=f"{number}.yml") for number, name in enumerate(names)]
    away = Outage(server, seconds).after(0.3)
    with Resolver(config) as resolver:
        outcomes = list(prewarm(map(str, specs), resolver.resolve, jobs=3))
    away.join()
    assert [outcome.error for outcome in outcomes] == [None] * len(specs)


def test_prewarming(world: World, stoppable_registry: RegistryServer) -> None:
    warmed(world, stoppable_registry, 2.0)


@pytest.mark.nightly
def test_prewarming_during_a_long_outage(world: World, stoppable_registry: RegistryServer) -> None:
    warmed(world, stoppable_registry, 30.0)


def test_mounts_and_copies(
    world: World, stoppable_registry: RegistryServer, registry: RegistryServer
) -> None:
    """Within the registry that is away, and from it into another."""
    with in_a_registry(world, stoppable_registry) as resolver:
        image = resolver.resolve(world.spec("tool")).reference
    source = open_registry(image.repository)
    manifest = source.get_manifest(image.digest)
    targets = [open_registry(stoppable_registry.repository()), open_registry(registry.repository())]
    away = Outage(stoppable_registry, 1.0).after(0.0)
    time.sleep(0.1)
    for target in targets:
        copy_image(source, target, manifest)
        assert target.get_manifest(manifest.descriptor.digest) == manifest
    away.join()
    for each in (source, *targets):
        each.close()


def test_an_outage_longer_than_the_deadline_ends_with_it(
    world: World, stoppable_registry: RegistryServer
) -> None:
    with in_a_registry(world, stoppable_registry) as resolver:
        stoppable_registry.stop()
        started = time.monotonic()
        with pytest.raises(Unavailable, match="refused") as caught:
            resolver.resolve(world.spec("tool"), timeout=2)
        assert time.monotonic() - started < 3
    assert caught.value.retryable
