"""Whether steps may use the network: from the setting to the engine's builders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine_bases import base_of, content_of, fresh, small_system
from envbuild.build.engine import Engine
from envbuild.build.engine_info import EngineInfo, builder_parameters
from envbuild.build.steps import StepsBuilder
from envbuild.build.steps_image import Limits
from envbuild.build.upload import Upload
from envbuild.config import Config
from envbuild.errors import BuildError
from envbuild.oci.registries import Registries
from envbuild.progress import silent
from parts.docker_engine import DockerEngine
from tiny import World


def test_settings_become_limits(tmp_path_factory: pytest.TempPathFactory) -> None:
    world = World.make(tmp_path_factory.mktemp("world"))
    config: Config = replace(
        world.config, step_memory=1, step_cpus=0.5, step_timeout=2, step_disk=3, step_network="none"
    )
    registries, upload = Registries(frozenset()), Upload(world.layout(), silent)
    made = StepsBuilder(config, registries, upload, silent, offline=True)
    assert made.limits == Limits(1, 0.5, 2, 3, "none")
    assert StepsBuilder(world.config, registries, upload, silent).limits == Limits()
    assert StepsBuilder(world.config, registries, upload, silent, offline=True).limits == Limits(
        network="none"
    )


def test_what_had_the_network_is_not_made_again_without(tmp_path: Path) -> None:
    """As of an image's own lock: its key says that the steps had it."""
    world = World.make(tmp_path)
    config = replace(world.config, step_network="none")
    builder = StepsBuilder(config, Registries(frozenset()), Upload(world.layout(), silent), silent)
    with pytest.raises(BuildError, match="step_network is none"):
        _ = builder.limits


@pytest.mark.parametrize(
    ("podman", "limits", "expected"),
    [
        (False, Limits(network="none"), {"version": "2", "networkmode": "none"}),
        (False, Limits(memory=9, network="none"), {"version": "1", "networkmode": "none", "memory": "9"}),
        (True, Limits(network="none"), {"layers": "0", "networkmode": "none"}),
        (True, Limits(), {"layers": "0"}),
    ],
)
def test_each_builder_is_told(podman: bool, limits: Limits, expected: dict[str, str]) -> None:
    info = EngineInfo("unix:///x", "20.10", "overlay2", not podman, podman, containerd_store=False)
    given = builder_parameters("RUN true\n", limits, info)
    assert {**given, **expected} == given
    assert ("networkmode" in given) == (limits.network is not None)


@pytest.mark.xdist_group("engine")
@pytest.mark.parametrize("memory", [None, 256 << 20], ids=["buildkit", "older builder"])
def test_a_step_without_a_network_has_no_device_but_its_own(engine: DockerEngine, memory: int | None) -> None:
    steps = f"RUN : {fresh()}; cat /proc/net/dev > /devices\n"
    with Engine.connect(engine.host) as docker:
        base = base_of(small_system())
        with docker.run_steps(base, steps, limits=Limits(memory=memory, network="none")) as built:
            closed = content_of(built, "devices").decode()
        with docker.run_steps(base, steps, limits=Limits(memory=memory)) as built:
            opened = content_of(built, "devices").decode()
    assert [line.split(":")[0].strip() for line in closed.splitlines()[2:]] == ["lo"]
    assert len(opened.splitlines()) > len(closed.splitlines())
