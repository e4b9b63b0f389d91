"""Row 33, and row 34 for builds: steps that take too much, in a real engine, which stays healthy."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from cli_calls import ENVBUILD
from engine_bases import base_of, content_of, fresh, leftovers, small_system
from envbuild.build.engine import Engine
from envbuild.build.steps_image import Limits, StepsBase
from envbuild.errors import BuildError, BuildLimit
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from parts.docker_engine import DockerEngine
from parts.processes import count, gone_within, runs_within
from tiny import World, make_base_of

pytestmark = pytest.mark.xdist_group("engine")

BUILDERS = pytest.mark.parametrize("memory", [None, 512 << 20], ids=["buildkit", "older builder"])
PROCESSES = 300
"""What the bomb stops at: the machine that runs the tests has other work, too."""


@pytest.fixture(scope="module")
def base() -> StepsBase:
    return base_of(small_system())


@pytest.fixture
def docker(engine: DockerEngine, base: StepsBase) -> Iterator[Engine]:
    """An engine, which after each test has nothing of it and still builds."""
    before = leftovers(engine)
    with Engine.connect(engine.host) as connected:
        yield connected
        limit = time.monotonic() + 30
        while leftovers(engine) - before and time.monotonic() < limit:
            time.sleep(0.2)
        assert leftovers(engine) - before == set()
        with connected.run_steps(base, f"RUN echo {fresh()} > /well\n", limits=Limits(seconds=120)) as built:
            assert content_of(built, "well")


def used(engine: DockerEngine) -> int:
    """Bytes of all that an engine has on its disk; the machine's other work is not among them."""
    root = engine.docker("info", "--format", "{{.DockerRootDir}}").stdout.strip()
    # What a container that ends has mounted goes away meanwhile, and du says so.
    listed = subprocess.run(["du", "-sxk", root], capture_output=True, text=True, check=False).stdout
    return int(listed.split()[0]) << 10


@pytest.mark.nightly
@BUILDERS
def test_a_fork_bomb(docker: Engine, base: StepsBase, memory: int | None) -> None:
    seconds = 3000 + int(fresh()[:4], 16)
    bomb = (
        f"RUN i=0; while [ $i -lt {PROCESSES} ]; do sleep {seconds} & i=$((i+1)); done; "
        f"trap '' INT TERM; while true; do sleep {seconds}; done\n"
    )
    with pytest.raises(BuildLimit, match="15 seconds"):
        docker.run_steps(base, bomb, limits=Limits(memory=memory, seconds=15))
    gone_within(60, f"sleep {seconds}")
    assert count(f"sleep {seconds}") == 0


@pytest.mark.nightly
@BUILDERS
@pytest.mark.parametrize("noise", ["yes", "cat /dev/zero"])
def test_an_endless_log(docker: Engine, base: StepsBase, memory: int | None, noise: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BuildLimit, match="8 seconds"):
        docker.run_steps(base, f"RUN : {fresh()}; {noise}\n", limits=Limits(memory=memory, seconds=8))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, f"{grown} KiB more memory for a log that nobody reads"


@pytest.mark.nightly
@BUILDERS
def test_a_write_without_end(
    docker: Engine, engine: DockerEngine, base: StepsBase, memory: int | None
) -> None:
    """The time ends it; what it wrote by then is given back."""
    before = used(engine)
    with pytest.raises(BuildLimit, match="10 seconds"):
        docker.run_steps(
            base,
            f"RUN : {fresh()}; while true; do head -c 100000000 /dev/zero > /part; rm /part; done\n",
            limits=Limits(memory=memory, seconds=10, disk=1 << 30),
        )
    limit = time.monotonic() + 60
    while used(engine) > before + (64 << 20) and time.monotonic() < limit:
        time.sleep(1)
    assert used(engine) <= before + (64 << 20)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_ten_gib_in_the_image(docker: Engine, base: StepsBase) -> None:
    """What is too big for the setting is not used, nor kept on the way: 10 GiB, of which 1 may be read."""
    written = "i=0; while [ $i -lt 10 ]; do head -c 1073741824 /dev/zero > /big$i; i=$((i+1)); done"
    steps = f"RUN : {fresh()}; {written}\n"
    with pytest.raises(BuildLimit, match="at most 1073741824"):
        docker.run_steps(base, steps, limits=Limits(seconds=3000, disk=1 << 30))


@pytest.mark.nightly
def test_more_memory_than_there_may_be(docker: Engine, base: StepsBase) -> None:
    with pytest.raises(BuildError, match=r"exit code|signal"):
        docker.run_steps(
            base,
            f"RUN : {fresh()}; x=a; while true; do x=$x$x; done\n",
            limits=Limits(memory=64 << 20, seconds=120),
        )


def interrupted(world: World, engine: DockerEngine, number: signal.Signals, wait: float, seconds: int) -> int:
    """Signal a build whose step hangs; gives the exit code."""
    spec = world.root / f"envbuild-{seconds}.yaml"
    spec.write_text(f"steps: |\n  USER 0\n  RUN sleep {seconds}\n")
    options = {
        "--workspace": str(world.config.workspace),
        "--base": str(world.config.base),
        "--docker-host": engine.host,
        "--cache-dir": str(world.config.cache_dir),
    }
    command = [*ENVBUILD, "resolve", str(spec), *(word for pair in options.items() for word in pair)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        runs_within(60, f"sleep {seconds}")
        time.sleep(wait)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert out == ""
    assert "Traceback" not in err
    gone_within(30, f"sleep {seconds}")
    return process.returncode


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with a base that has a shell; its temporary files are in a folder of their own."""
    world = World.make(tmp_path)
    bases = Repository.parse(f"oci:{tmp_path}/bases")
    make_base_of(bases, "small", small_system())
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return replace(world, config=replace(world.config, base=f"{bases}:small"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("docker")
def test_a_signal_during_a_step(
    world: World, engine: DockerEngine, number: signal.Signals, code: int
) -> None:
    seconds = 3000 + int(fresh()[:4], 16)
    assert interrupted(world, engine, number, 0, seconds) == code
    left_nothing(world)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("docker")
def test_200_signals_during_steps(world: World, engine: DockerEngine) -> None:
    random = Random(33)
    for _ in range(200):
        number = random.choice([signal.SIGINT, signal.SIGTERM])
        seconds = 3000 + int(fresh()[:4], 16)
        code = interrupted(world, engine, number, random.uniform(0, 0.5), seconds)
        assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        left_nothing(world)


def left_nothing(world: World) -> None:
    """No temporary file, no tag; and the lock of the key is free for the next one."""
    assert list((world.root / "temporary").iterdir()) == []
    assert list(world.config.cache_dir.glob("spool/*")) == []
    layout = world.layout()
    assert not world.config.workspace.folder.exists() or list(layout.tags()) == []
    with Resolver(world.config) as resolver:
        resolver.resolve(world.spec("tool=1"), timeout=60)
    shutil.rmtree(world.config.workspace.folder)
    shutil.rmtree(world.config.cache_dir)
