"""Podman through the same API: what must work every day. All tests of the engine run on it at night."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from builder_contract import same, text_of
from engine_bases import base_of, content_of, files_of, fresh, leftovers, small_system, tar_of
from envbuild.build.engine import Engine
from envbuild.build.steps_image import Limits
from envbuild.cli import exit_code_of
from envbuild.errors import BuildError, BuildLimit
from envbuild.progress import Event
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from envbuild.spec.steps import CONTEXT_FOLDER
from parts.podman_engine import PodmanEngine
from parts.registry_server import RegistryServer
from tiny import World, make_base_of
from wheel_world import spec, wheel_world

pytestmark = pytest.mark.xdist_group("engine")


def test_steps_with_a_mount_a_secret_and_limits(podman: PodmanEngine) -> None:
    secret, seen = fresh(), list[Event]()
    steps = (
        "ARG WHO\nENV GREETING=hello\n"
        "RUN --mount=type=secret,id=token head -c 8 /run/secrets/token > /begin; cat /run/secrets/token\n"
        "RUN <<EOF\necho $GREETING $WHO > /said\nEOF\n"
        f"COPY {CONTEXT_FOLDER} /copied\n"
        "RUN cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max > /limit 2>&1; true\n"
    )
    before = leftovers(podman)
    with Engine.connect(podman.host) as engine:
        with engine.run_steps(
            base_of(small_system(), settings={"Labels": {"of": "base"}}),
            steps,
            io.BytesIO(tar_of({"file": b"copied"})),
            args={"WHO": "world"},
            secrets={"token": secret.encode()},
            limits=Limits(memory=64 << 20, network="none"),
            progress=seen.append,
        ) as built:
            assert content_of(built, "begin").decode() == secret[:8]
            assert content_of(built, "said") == b"hello world\n"
            assert content_of(built, "copied/file") == b"copied"
            assert str(64 << 20).encode() in content_of(built, "limit")
            assert not any("secret-" in name for name in files_of(built))
            config = json.loads(built.config)
        with pytest.raises(BuildError, match=r"RUN echo no; exit 7' failed with exit code 7(?s:.*)  no"):
            engine.run_steps(base_of(small_system()), "RUN echo no; exit 7\n")
    assert config["config"]["Labels"] == {"of": "base"}, "nothing of Podman's own is left in the image"
    assert not any("localhost" in json.dumps(entry) for entry in config["history"])
    assert "***" in [event.text for event in seen]
    assert secret not in repr(seen)
    assert leftovers(podman) == before


def test_a_build_that_takes_too_long_ends_and_is_forgotten(podman: PodmanEngine) -> None:
    """Podman 4.3 does not stop the step that runs: what it leaves is gone when the step has ended."""
    before = leftovers(podman)
    with Engine.connect(podman.host) as engine:
        with pytest.raises(BuildLimit):
            engine.run_steps(base_of(small_system()), "RUN sleep 12\n", limits=Limits(seconds=2))
        assert working(podman), "the call ended before the step"
    limit = time.monotonic() + 30
    while (leftovers(podman) - before or working(podman)) and time.monotonic() < limit:
        time.sleep(0.2)
    assert leftovers(podman) == before
    assert working(podman) == []


def working(podman: PodmanEngine) -> list[str]:
    """The containers of builds that go on."""
    return podman.podman("ps", "--all", "--external", "--quiet").stdout.split()


def test_images_are_the_same_and_run(tmp_path: Path, podman: PodmanEngine, registry: RegistryServer) -> None:
    world = wheel_world(tmp_path)
    bases = Repository.parse(f"oci:{tmp_path}/bases")
    make_base_of(bases, "small", small_system())
    path = tmp_path / "envbuild.yaml"
    pip = ["--no-index", "--find-links ./links", "small"]
    document = {"channels": ["tiny"], "dependencies": ["python", "writes", {"pip": pip}]}
    path.write_text(
        json.dumps(
            {
                "conda": document,
                "steps": "USER 0\nRUN mkdir -p /opt && echo before > /opt/before",
                "steps_after": "RUN cat /opt/before /opt/env/written > /opt/after",
            }
        )
    )
    config = replace(world.config, base=f"{bases}:small", docker_host=podman.host)
    with Resolver(config) as resolver:
        image = resolver.resolve(path)
    assert text_of(image, "opt/after") == "before\nby the script\n"

    plain = spec(world, "small")
    with Resolver(config) as resolver:
        one = resolver.resolve(plain)
    other = replace(config, builder="docker", workspace=Repository.parse(f"oci:{tmp_path}/2"))
    with Resolver(other) as resolver:
        same(one, resolver.resolve(plain))

    with Resolver(replace(config, workspace=registry.repository("for-podman"))) as resolver:
        reference = str(resolver.resolve(path).reference)
    pulled = podman.podman("pull", "--quiet", "--tls-verify=false", reference, check=False)
    assert pulled.returncode == 0, pulled.stderr
    said = podman.podman("run", "--rm", reference, "cat", "/opt/after").stdout
    podman.podman("rmi", reference)
    assert said == "before\nby the script\n"


def test_an_image_is_loaded_and_runs(
    tmp_path: Path, podman: PodmanEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World.make(tmp_path)
    bases = Repository.parse(f"oci:{tmp_path}/bases")
    make_base_of(bases, "small", small_system())
    spec = world.spec("tool=1")
    for name in ("WORKSPACE", "CHANNEL_ALIAS", "CACHE_DIR"):
        monkeypatch.setenv(f"ENVBUILD_{name}", str(getattr(world.config, name.lower())))
    monkeypatch.setenv("DOCKER_HOST", podman.host)
    for way in ((), ("--docker-host", podman.host)):
        assert exit_code_of(["resolve", str(spec), "--base", f"{bases}:small", "--load", *way]) == 0
        answer = capfd.readouterr()
        found = re.search(
            r"loaded into the engine as (envbuild:[0-9a-f]{64}), sha256:([0-9a-f]{64})", answer.err
        )
        assert found is not None, answer.err
        name, identity = found.groups()
        assert name.removeprefix("envbuild:") == answer.out.strip().rpartition("@sha256:")[2]
        try:
            shown = json.loads(podman.podman("image", "inspect", name).stdout)[0]
            said = podman.podman("run", "--rm", name, "cat", "/opt/env/share/tool/data").stdout
        finally:
            podman.podman("rmi", name, check=False)
        assert shown["Id"] == identity
        assert "CONDA_PREFIX=/opt/env" in shown["Config"]["Env"]
        assert said.strip() == "one"
