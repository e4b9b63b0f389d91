"""Builders of buildx: what is told of them every day, and their work where BuildKit's daemon is at hand."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from builder_contract import config_of, same, text_of
from cli_calls import ENVBUILD
from engine_bases import base_of, content_of, files_of, fresh, small_system, tar_of, with_libraries
from envbuild.build import buildx
from envbuild.build.buildx_builder import BuildxBuilder
from envbuild.build.steps_image import Limits, StepsBase
from envbuild.errors import BuildError, BuildLimit
from envbuild.oci.manifest import Manifest, encode
from envbuild.progress import Event
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from envbuild.spec.steps import CONTEXT_FOLDER
from parts.buildkit import VARIABLE, BoxedBuildKit, BuildKit, buildkitd
from parts.docker_engine import DockerEngine
from parts.processes import gone_within
from parts.programs import program
from tiny import make_base_of
from wheel_world import spec, wheel_world

pytestmark = [pytest.mark.xdist_group("engine"), pytest.mark.usefixtures("buildx")]


def create(name: str, endpoint: str, driver: str = "remote") -> None:
    docker = program("docker", "docker.io")
    command = [docker, "buildx", "create", "--name", name, "--driver", driver, endpoint]
    subprocess.run(command, check=True, capture_output=True)


def test_a_builder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"'nobody' does not answer: .*no builder") as caught:
        BuildxBuilder.connect("nobody")
    assert "docker buildx ls" in (caught.value.hint or "")


def test_builders_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    create("far", f"unix://{tmp_path}/none.sock")
    assert buildx.builders() == (("far", "remote"),)


def test_doctor_shows_builders(tmp_path: Path) -> None:
    create("far", f"unix://{tmp_path}/none.sock")
    folders = {"ENVBUILD_WORKSPACE": f"oci:{tmp_path}/w", "ENVBUILD_CACHE_DIR": str(tmp_path / "cache")}
    command = [*ENVBUILD, "doctor", "--json"]
    said = subprocess.run(command, env={**os.environ, **folders}, capture_output=True, text=True, check=True)
    (check,) = [each for each in map(json.loads, said.stdout.splitlines()) if each["name"] == "buildx"]
    assert check["state"] == "ok"
    assert check["seen"].endswith("builders with a name: far (remote)")


@pytest.mark.nightly
def test_a_builder_that_does_not_answer(tmp_path: Path) -> None:
    create("far", f"unix://{tmp_path}/none.sock")
    with pytest.raises(BuildError, match="'far' does not answer"):
        BuildxBuilder.connect("far")


def test_an_engines_own_builder_is_no_builder_with_a_name(
    engine: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match="a Docker Engine's own"):
        BuildxBuilder.connect("default")


def test_without_buildx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert buildx.builders() == ()
    with pytest.raises(BuildError, match="there is none") as caught:
        BuildxBuilder.connect("far")
    assert "docker-buildx" in (caught.value.hint or "")


@pytest.fixture(scope="module", params=["remote", "docker-container"])
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A running BuildKit: the driver that reaches it, and where."""
    if (found := buildkitd()) is None:
        pytest.skip(
            f"no Debian package has BuildKit: put buildkitd and buildctl on the PATH, or set {VARIABLE}"
        )
    folder = tmp_path_factory.mktemp("buildkit")
    if request.param == "remote":
        own = BuildKit(folder)
        own.start()
        yield request.param, own.endpoint
        own.stop()
        return
    root = folder / "root.tar"
    files = {
        f"usr/bin/{name}": Path(found).with_name(name).read_bytes() for name in ("buildkitd", "buildctl")
    }
    root.write_bytes(tar_of(files | with_libraries(Path(program("runc", "runc")), "usr/bin/runc")))
    engine: DockerEngine = request.getfixturevalue("engine")
    boxed = BoxedBuildKit(engine, "far")
    try:
        boxed.start(root)
        yield request.param, engine.host
    finally:
        boxed.stop()


@pytest.fixture
def far(daemon: tuple[str, str], buildx: None) -> BuildxBuilder:
    """A builder that is not the engine's own."""
    driver, endpoint = daemon
    create("far", endpoint, driver)
    return BuildxBuilder.connect("far")


@pytest.mark.nightly
def test_steps_become_new_layers(far: BuildxBuilder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    secret, seen = fresh(), list[Event]()
    steps = (
        "ARG WHO\nENV GREETING=hello\n"
        "RUN --mount=type=secret,id=token head -c 8 /run/secrets/token > /begin; cat /run/secrets/token\n"
        "RUN <<EOF\necho $GREETING $WHO > /said\nEOF\n"
        f"COPY {CONTEXT_FOLDER} /copied\nUSER somebody\n"
    )
    base = base_of(small_system(), tar_of({"second": b"2"}), settings={"Labels": {"of": "base"}})
    with far.run_steps(
        base,
        steps,
        io.BytesIO(tar_of({"file": b"copied"})),
        args={"WHO": "world"},
        secrets={"token": secret.encode()},
        limits=Limits(network="none"),
        progress=seen.append,
    ) as built:
        assert content_of(built, "said") == b"hello world\n"
        assert content_of(built, "begin").decode() == secret[:8]
        assert content_of(built, "copied/file") == b"copied"
        assert "second" not in files_of(built)
        config = json.loads(built.config)
    assert config["config"]["User"] == "somebody"
    assert config["config"]["Labels"] == {"of": "base"}
    assert len(config["rootfs"]["diff_ids"]) == 2 + len(built.layers)
    assert "***" in [event.text for event in seen]
    assert secret not in repr(seen)
    assert any("RUN <<EOF" in event.subject for event in seen)


@pytest.mark.nightly
def test_steps_on_nothing(far: BuildxBuilder) -> None:
    config = encode({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"diff_ids": []}})
    scratch = StepsBase(Manifest.build(base_of().manifest.config, (), {}), config, lambda _: io.BytesIO())
    with far.run_steps(
        scratch, f"COPY {CONTEXT_FOLDER}/file /file\n", io.BytesIO(tar_of({"file": b"alone"}))
    ) as built:
        assert content_of(built, "file") == b"alone"


@pytest.mark.nightly
def test_failures_and_limits(far: BuildxBuilder) -> None:
    base = base_of(small_system())
    with pytest.raises(BuildError, match=r"RUN echo no; exit 7' failed with exit code 7(?s:.*)  no"):
        far.run_steps(base, "RUN echo no; exit 7\n")
    with pytest.raises(BuildError, match="no limits of memory"):
        far.run_steps(base, "RUN touch /x\n", limits=Limits(memory=64 << 20))
    with pytest.raises(BuildError, match="ENVBUILD_BASE"):
        far.run_steps(base, "RUN touch /x\n", args={"ENVBUILD_BASE": "debian"})
    begun, seconds = time.monotonic(), 300 + int(fresh()[:4], 16)
    with pytest.raises(BuildLimit):
        far.run_steps(base, f"RUN sleep {seconds}\n", limits=Limits(seconds=3))
    assert time.monotonic() - begun < 20
    gone_within(15, f"sleep {seconds}")


@pytest.mark.nightly
def test_environments_are_the_same_whoever_builds(far: BuildxBuilder, tmp_path: Path) -> None:
    world = wheel_world(tmp_path)
    bases = Repository.parse(f"oci:{tmp_path}/bases")
    make_base_of(bases, "small", small_system())
    config = replace(
        world.config, base=f"{bases}:small", docker_host=f"unix://{tmp_path}/none.sock", buildx=far.name
    )
    plain = spec(world, "small", conda=("python", "writes"))
    with Resolver(config) as resolver:
        layers = resolver.resolve(plain)
    other = replace(config, builder="docker", workspace=Repository.parse(f"oci:{tmp_path}/2"))
    with Resolver(other) as resolver:
        docker = resolver.resolve(plain)
    same(layers, docker)
    assert text_of(docker, "opt/env/written") == "by the script\n"
    assert config_of(docker)["config"]["User"] == "1000"
