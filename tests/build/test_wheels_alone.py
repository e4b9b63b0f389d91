"""What pip sections do without: namespaces, mounts, Conda; and whiteouts as an engine understands them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cli_calls import ENVBUILD
from engine_bases import fresh
from envbuild.config import Config
from envbuild.resolver import Resolver
from fixtures_channel import Bases, ChannelFolder
from parts.docker_engine import DockerEngine
from parts.programs import program
from parts.registry_server import RegistryServer
from tiny_wheels import TinyWheel
from wheel_world import requirements, spec, wheel_world


def test_no_namespace_is_made_and_nothing_is_mounted(tmp_path: Path) -> None:
    world = wheel_world(tmp_path)
    path, seen = spec(world, "top", "dep>=2", conda=("python", "dep")), tmp_path / "calls"
    strace = [program("strace", "strace"), "-f", "-qq", "-e", "trace=unshare,setns,mount,chroot,pivot_root"]
    settings = {
        "ENVBUILD_WORKSPACE": str(world.config.workspace),
        "ENVBUILD_BASE": str(world.config.base),
        "ENVBUILD_CHANNEL_ALIAS": world.config.channel_alias,
        "ENVBUILD_CACHE_DIR": str(world.config.cache_dir),
    }
    command = [*strace, "-e", "signal=none", "-o", str(seen), *ENVBUILD, "resolve", str(path)]
    subprocess.run(command, env={**os.environ, **settings}, check=True, capture_output=True)
    assert seen.read_text() == ""


def test_requirements_alone_load_no_solver(tmp_path: Path) -> None:
    """Wheels on a base with python: no channel is read, and Conda's library is not imported."""
    world = wheel_world(tmp_path)
    path = requirements(world, "top", "small")
    config = replace(world.config, base=f"oci:{world.root}/bases:python")
    text = (
        "import sys; from envbuild.resolver import Resolver; from envbuild.config import Config\n"
        "from envbuild.reference import Repository; from pathlib import Path\n"
        f"config = Config(workspace=Repository.parse({str(config.workspace)!r}), base={config.base!r},"
        f" channel_alias='https://channels.invalid', cache_dir=Path({str(config.cache_dir)!r}))\n"
        f"with Resolver(config) as resolver: print(resolver.resolve(Path({str(path)!r})).layers_made)\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'rattler', 'docker', 'requests'}))\n"
    )
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "3\n[]\n"


@pytest.mark.xdist_group("engine")
def test_a_replaced_package_is_gone_in_a_container(
    tmp_path: Path, engine: DockerEngine, channel: ChannelFolder, bases: Bases, registry: RegistryServer
) -> None:
    TinyWheel("click", "99.0", files={"click/new.py": b"here = True\n"}).put(tmp_path / "links")
    pip = ["--no-index", "--find-links ./links", "click>=99"]
    path = tmp_path / "environment.yml"
    path.write_text(
        json.dumps({"channels": ["fixtures"], "dependencies": ["python=3.11", "click<9", {"pip": pip}]})
    )
    config = Config(
        workspace=registry.repository(f"replaced-{fresh()}"),
        base=f"oci:{bases.minimal}:latest",
        channel_alias=channel.alias,
        cache_dir=tmp_path / "cache",
    )
    with Resolver(config) as resolver:
        reference = str(resolver.resolve(path).reference)
    program_text = (
        "import importlib.metadata as m, click.new, pathlib, json\n"
        "folder = pathlib.Path(click.__file__).parent\n"
        "found = [d for d in m.distributions() if d.metadata and d.metadata['Name'] == 'click']\n"
        "infos = sorted(p.name for p in folder.parent.glob('click-*'))\n"
        "modules = sorted(p.name for p in folder.glob('*.py'))\n"
        "print(json.dumps([[d.version for d in found], m.version('click'), infos, modules]))\n"
    )
    engine.docker("pull", reference)
    said = engine.docker("run", "--rm", reference, "python", "-B", "-c", program_text).stdout
    engine.docker("rmi", reference)
    assert json.loads(said) == [["99.0"], "99.0", ["click-99.0.dist-info"], ["__init__.py", "new.py"]]
