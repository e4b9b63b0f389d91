"""The builder ``docker`` on a real engine: what every builder does, and the same content as ``layers``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builder_contract import BuilderContract, Machine, config_of, manifest_of, same, tree_of
from envbuild.build.docker_builder import copy_onto_base
from envbuild.build.engine_info import EngineInfo
from envbuild.config import Config
from envbuild.errors import BuildError
from envbuild.lockfile import FILE_NAME, LockPolicy, load
from envbuild.locking import make_lock
from envbuild.reference import Repository
from envbuild.resolver import ResolvedImage, Resolver
from fixtures_channel import Bases, ChannelFolder
from parts.docker_engine import DockerEngine
from parts.registry_server import RegistryServer
from tiny import World
from tiny_wheels import TinyWheel, index
from wheel_world import SITE, put, requirements, spec, wheel_world

pytestmark = pytest.mark.xdist_group("engine")

ODD = (
    "activation", "clobber-a", "clobber-b", "empty-things", "lib64-link", "long-paths", "noarch-python",
    "post-link-script", "prefix-binary", "prefix-text", "shared-modes", "symlinks", "unicode-names",
)  # fmt: skip


class TestDocker(BuilderContract):
    builder = "docker"

    def test_the_environment_is_one_layer(self, machine: Machine) -> None:
        image = machine.resolve(machine.world.spec("pyth", "thing", "tool"))
        assert len(manifest_of(image).layers) == 2
        assert config_of(image)["history"][-1]["created_by"] == "envbuild environment"


def both(config: Config, spec: Path, root: Path) -> list[ResolvedImage]:
    """The image of a definition from each builder, made on machines and in workspaces of their own."""
    images = []
    for name in ("layers", "docker"):
        workspace, cache = Repository.parse(f"oci:{root}/by-{name}"), root / f"cache-{name}"
        settings = replace(config, builder=name, workspace=workspace, cache_dir=cache)
        with Resolver(settings) as resolver:
            images.append(resolver.resolve(spec))
    return images


def test_one_key_and_one_content_whoever_builds(
    tmp_path: Path, engine: DockerEngine, channel: ChannelFolder, bases: Bases
) -> None:
    spec = tmp_path / "environment.yml"
    lines = "".join(f"  - {name}\n" for name in ODD)
    spec.write_text(f"channels: [fixtures]\ndependencies:\n{lines}")
    config = Config(channel_alias=channel.alias, docker_host=engine.host, base=f"oci:{bases.minimal}:latest")
    layers, docker = both(config, spec, tmp_path)
    assert len(same(layers, docker)) > 500
    assert "opt/env/share/post-link-ran.txt" in tree_of(docker)


PIP_SECTIONS = {
    "wheels beside Conda's packages": (("top", "small"), ("python",)),
    "one that Conda has, and keeps": (("top",), ("python", "dep")),
    "one that Conda has, replaced": (("top", "dep>=2"), ("python", "dep")),
    "paths that several have": (("one", "two", "folder", "over-conda"), ("python", "tool=1")),
}


@pytest.mark.parametrize("section", PIP_SECTIONS.values(), ids=PIP_SECTIONS)
def test_wheels_have_one_content_whoever_builds(
    tmp_path: Path, engine: DockerEngine, section: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    world = wheel_world(tmp_path)
    for name in ("one", "two"):
        put(world, TinyWheel(name, files={"shared/__init__.py": name.encode(), f"shared/{name}.py": b""}))
    put(world, TinyWheel("folder", files={"shared/one.py/inside.py": b"a folder where a file is"}))
    put(world, TinyWheel("over-conda", files={"over_conda-1.0.data/data/share/tool/data": b"the wheel's"}))
    wheels, conda = section
    layers, docker = both(
        replace(world.config, docker_host=engine.host), spec(world, *wheels, conda=conda), tmp_path
    )
    found = same(layers, docker)
    if "dep>=2" in wheels:
        infos = {path.rpartition("/")[2] for path in found if "/dep-" in path and path.endswith(".dist-info")}
        assert infos == {"dep-2.0.dist-info"}


def test_requirements_on_the_bases_python_have_one_content_whoever_builds(
    tmp_path: Path, engine: DockerEngine
) -> None:
    world = wheel_world(tmp_path)
    config = replace(world.config, base=f"oci:{world.root}/bases:python", docker_host=engine.host)
    layers, docker = both(config, requirements(world, "top", "small"), tmp_path)
    same(layers, docker)
    assert "VIRTUAL_ENV=/opt/env" in config_of(docker)["config"]["Env"]


def test_wheels_of_a_lock_are_taken_as_they_are(tmp_path: Path, engine: DockerEngine) -> None:
    world = wheel_world(tmp_path)
    with index([TinyWheel("small", "1.0")]) as server:
        path = spec(world, f"--index-url {server.url}/simple", "small", local=False)
        with Resolver(world.config) as resolver:
            make_lock(resolver, load(path), path.parent).write(path.parent / FILE_NAME)
        newer = TinyWheel("small", "2.0")
        server.kept[newer.file_name] = newer
        server.asked.clear()
        config = replace(world.config, builder="docker", docker_host=engine.host)
        with Resolver(config, locks=LockPolicy(required=True)) as resolver:
            image = resolver.resolve(path)
        assert server.asked == [f"GET /files/{TinyWheel('small', '1.0').file_name}"]
    assert f"opt/env/{SITE}/small-1.0.dist-info/METADATA" in tree_of(image)


def test_the_image_runs_from_a_registry(
    tmp_path: Path, engine: DockerEngine, channel: ChannelFolder, bases: Bases, registry: RegistryServer
) -> None:
    spec = tmp_path / "environment.yml"
    spec.write_text("channels: [fixtures]\ndependencies: [python=3.11, post-link-script]\n")
    config = Config(
        workspace=registry.repository("by-docker"),
        channel_alias=channel.alias,
        docker_host=engine.host,
        base=f"oci:{bases.minimal}:latest",
        cache_dir=tmp_path / "cache",
        builder="docker",
    )
    with Resolver(config) as resolver:
        reference = str(resolver.resolve(spec).reference)
    engine.docker("pull", reference)
    program = "import sys; print(sys.prefix, open('/opt/env/share/post-link-ran.txt').read())"
    assert engine.docker("run", "--rm", reference, "python", "-c", program).stdout == "/opt/env linked\n\n"


def test_without_an_engine_the_other_builder_is_named(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    config = replace(world.config, builder="docker", docker_host=f"unix://{tmp_path}/no.sock")
    with Resolver(config) as resolver, pytest.raises(BuildError, match="none answered") as caught:
        resolver.resolve(world.spec("tool"))
    assert "--builder layers" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("version", "buildkit", "instruction"),
    [
        ("20.10.24+dfsg1", True, "COPY --from=environment / /\n"),
        ("27.1.0", True, "COPY --link --from=environment / /\n"),
        ("4.9.0", False, "COPY --from=environment / /\n"),
    ],
)
def test_the_copy_is_linked_where_the_front_end_can(version: str, buildkit: bool, instruction: str) -> None:
    info = EngineInfo("unix:///x", version, "overlay2", buildkit, podman=False, containerd_store=False)
    assert copy_onto_base(info) == instruction
