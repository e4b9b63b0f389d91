"""``on_unavailable``: one policy for every question that a call asks its repositories of images."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuild.build.solving import with_known_steps
from envbuild.build.steps import StepsBuilder
from envbuild.build.upload import Upload
from envbuild.deadline import Deadline
from envbuild.errors import RegistryError, Unauthorized, Unavailable
from envbuild.oci.referrers import referrers
from envbuild.platform import LINUX_AMD64
from envbuild.reference import Repository
from envbuild.resolver import Resolver, Source
from parts.fault_server import serving
from parts.relay import forbidding, passing_on
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.config import Config
    from envbuild.progress import Event
    from parts.fault_server import FaultServer
    from parts.registry_server import RegistryServer


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


@pytest.fixture
def host(registry: RegistryServer) -> Iterator[FaultServer]:
    """A registry that answers 403 for what is missing."""
    with serving(passing_on(registry.host, forbidding)) as server:
        yield server


@pytest.fixture
def config(world: World, host: FaultServer, registry: RegistryServer) -> Config:
    workspace, common = (Repository.parse(f"{host.host}/{registry.repository().path}") for _ in range(2))
    return replace(world.config, workspace=workspace, global_=common, on_unavailable="build")


def test_refusals_of_what_is_missing_are_misses(world: World, config: Config, host: FaultServer) -> None:
    """k1, l1, f1, l- and what is attached: each question is answered with 403, and none ends the call."""
    told: list[Event] = []
    with Resolver(config, progress=told.append) as resolver:
        image = resolver.resolve(world.spec("tool"))
        assert image.source is Source.BUILT
        registry = resolver.registries.open(config.workspace)
        assert referrers(registry, image.reference.digest), "what is known of it is attached, too"
    kinds = {
        each.path.rpartition("/manifests/")[2].partition("-")[0]
        for each in host.asked
        if "/manifests/" in each.path
    }
    assert kinds >= {"k1", "l1", "l", "f1", "sha256"}
    notes = [event.text for event in told if "taken for a miss" in event.text]
    assert len(notes) == 1, "told once a host"
    assert "403" in notes[0]
    assert not [event for event in told if event.text.startswith(("not attached", "done without"))]


def test_what_is_there_is_found(world: World, config: Config) -> None:
    with Resolver(config) as resolver:
        first = resolver.resolve(world.spec("tool"))
    other = replace(config, cache_dir=world.root / "elsewhere", index_ttl=0)
    with Resolver(other) as resolver:
        assert resolver.resolve(world.spec("tool")).source is Source.WORKSPACE
        assert resolver.resolve(world.spec("tool")).source is Source.INDEX
        same = resolver.resolve(world.spec("tool=2.0", name="other.yml"))
        assert same.source is Source.BUILT
        assert same.lock_key == first.lock_key
        assert same.layers_made == 0, "the layers of the same solution were found"


def test_an_index_entry_whose_image_is_gone_is_no_hit(
    world: World, config: Config, registry: RegistryServer
) -> None:
    config = replace(config, index_ttl=0, attach=False)
    with Resolver(config) as resolver:
        image = resolver.resolve(world.spec("tool"))
        resolver.registries.open(config.workspace).delete_manifest(image.reference.digest)
        again = resolver.resolve(world.spec("tool"))
        assert (again.source, again.reference) == (Source.BUILT, image.reference)


def test_images_of_steps_that_are_missing_are_to_be_made(world: World, config: Config) -> None:
    """s1, for the builder and for who only looks."""
    with Resolver(config) as resolver:
        spec = resolver.load(_with_steps(world))
        base = resolver.bases.image(spec.require_base(), LINUX_AMD64, Deadline.after(20))
        found = with_known_steps(
            spec,
            base,
            LINUX_AMD64,
            config=config,
            registries=resolver.registries,
            progress=resolver.progress,
            deadline=Deadline.after(20),
        )
        assert found == (base, "to run")
        upload = Upload(resolver.registries.open(config.workspace), resolver.progress)
        builder = StepsBuilder(config, resolver.registries, upload, resolver.progress)
        assert builder._find("0" * 64, LINUX_AMD64, Deadline.after(20)) is None


def _with_steps(world: World) -> Path:
    path = world.root / "envbuild.yaml"
    path.write_text("steps: RUN true\nconda: environment.yml\n")
    world.spec("tool")
    return path


def test_a_base_that_is_refused_is_a_refusal(world: World, config: Config, host: FaultServer) -> None:
    """The definition needs it: nothing can be built without."""
    with Resolver(replace(config, base=f"{host.host}/bases:12")) as resolver, pytest.raises(Unauthorized):
        resolver.resolve(world.spec("tool"))


def test_the_policy_fail_takes_no_refusal_for_a_miss(world: World, config: Config, host: FaultServer) -> None:
    with (
        Resolver(replace(config, on_unavailable="fail")) as resolver,
        pytest.raises(Unauthorized, match="403"),
    ):
        resolver.resolve(world.spec("tool"))
    assert {asked.method for asked in host.asked} == {"GET"}


def test_what_is_written_fails_typed(world: World, config: Config, host: FaultServer) -> None:
    host.script = lambda call, asked: call.fail(404 if asked.method in {"GET", "HEAD"} else 403, "DENIED")
    with Resolver(config) as resolver, pytest.raises(Unauthorized, match="403"):
        resolver.resolve(world.spec("tool"))


def test_an_outage_of_the_global_repository_is_waited_for_a_moment(world: World) -> None:
    """The rest of the call works: it is not worth the minute that else is waited."""
    gone = replace(world.config, global_=Repository.parse("127.0.0.1:1/envs"), on_unavailable="build")
    started = time.monotonic()
    with Resolver(gone) as resolver:
        assert resolver.resolve(world.spec("tool")).source is Source.BUILT
    assert time.monotonic() - started < 20


def test_an_outage_of_the_workspace_ends_the_call(world: World) -> None:
    gone = replace(world.config, workspace=Repository.parse("127.0.0.1:1/envs"), on_unavailable="build")
    with Resolver(gone) as resolver, pytest.raises((Unavailable, RegistryError), match="refused"):
        resolver.resolve(world.spec("tool"), timeout=7)
