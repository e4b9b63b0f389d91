"""Row 23: somebody moves the tag while it is looked up and written. The answer is verified, or an error."""

from __future__ import annotations

import contextlib
import threading
import time
from random import Random
from typing import TYPE_CHECKING

import pytest

from envbuild.errors import CacheMiss, EnvbuildError, IntegrityError, NotFound, TagMoved
from envbuild.key import KEY_ANNOTATION
from envbuild.oci.manifest import Manifest
from envbuild.oci.registry import publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.resolver import Resolver
from oci_contract import put_image
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.reference import Tag
    from parts.registry_server import RegistryServer


class Adversary:
    """Moves one tag all the time: to the right image, to others, to nothing."""

    def __init__(self, registry: RemoteRegistry, ours: Manifest, tag: Tag, seed: int) -> None:
        self._registry = registry
        self._tag = tag
        self._ours = ours
        self._random = Random(seed)
        self._ended = threading.Event()
        self.moves = 0

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Go on until the block ends."""
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _work(self) -> None:
        bare = put_image(self._registry, "bare")
        keyed = put_image(self._registry, "keyed", annotations={KEY_ANNOTATION: "f" * 64})
        while not self._ended.is_set():
            choice = self._random.choice(("ours", "ours", "bare", "keyed", "nothing"))
            if choice == "nothing":
                with contextlib.suppress(EnvbuildError):
                    self._registry.delete_manifest(bare.descriptor.digest)
            else:
                manifest = {"ours": self._ours, "bare": bare, "keyed": keyed}[choice]
                with contextlib.suppress(EnvbuildError):
                    self._registry.put_manifest(manifest, self._tag)
            self.moves += 1
            time.sleep(self._random.uniform(0, 0.01))


def under_attack(root: Path, server: RegistryServer, times: int) -> None:
    """Look the key up and publish it, over and over."""
    world = World.make(root)
    spec = world.spec("tool==1.0")
    config = world.other_machine(workspace=server.repository("attacked"), index_ttl=0, attach=False)
    registry = RemoteRegistry(config.workspace)
    seen: dict[str, int] = {}
    with Resolver(config) as resolver:
        image = resolver.resolve(spec)
        ours = registry.get_manifest(image.reference.digest)
        assert isinstance(ours, Manifest)
        adversary = Adversary(RemoteRegistry(config.workspace), ours, image.key.tag, 23)
        with adversary.at_work():
            turns = 0
            while turns < times or adversary.moves < times:
                turns += 1
                resolver.index.evict_image(str(image.key), config.workspace)
                try:
                    found = resolver.resolve(spec, build=False)
                    assert found.reference.digest == image.reference.digest, "a wrong image"
                    outcome = "found"
                except (CacheMiss, IntegrityError) as error:
                    outcome = type(error).__name__
                try:
                    digest = publish(registry, ours, image.key.tag, stored=True).descriptor.digest
                    assert digest == image.reference.digest, "a wrong image was adopted"
                    outcome += ", published"
                except (TagMoved, IntegrityError, NotFound) as error:
                    outcome += f", {type(error).__name__}"
                seen[outcome] = seen.get(outcome, 0) + 1
    registry.close()
    print(f"{adversary.moves} moves, {turns} turns: {seen}")  # noqa: T201
    assert any(outcome.startswith("found") for outcome in seen)
    assert any("IntegrityError" in outcome for outcome in seen)


def test_a_tag_that_moves(tmp_path: Path, registry: RegistryServer) -> None:
    under_attack(tmp_path, registry, 60)


@pytest.mark.nightly
def test_a_tag_that_moves_1000_times(tmp_path: Path, registry: RegistryServer) -> None:
    under_attack(tmp_path, registry, 1000)


def test_a_poisoned_tag_is_not_adopted_by_a_build(tmp_path: Path, registry: RegistryServer) -> None:
    """Somebody writes the key's tag after the question and before the answer: the build must not take it."""
    world = World.make(tmp_path)
    spec = world.spec("tool==1.0")
    for number, carried in enumerate(({}, {KEY_ANNOTATION: "f" * 64})):
        config = world.other_machine(workspace=registry.repository(f"poisoned-{number}"))
        with Resolver(config) as resolver:
            key = resolver.key(spec)
            target = RemoteRegistry(config.workspace)
            target.put_manifest(put_image(target, "poison", annotations=carried), key.tag)
            with pytest.raises(IntegrityError, match="carries"):
                resolver.build(spec)
            with pytest.raises(IntegrityError, match="carries"):
                resolver.resolve(spec)
            target.close()
