"""A Docker Engine runs what envbuild built in the second registry, on a base that ``docker push`` wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from envbuild.config import Config
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import DOCKER_MANIFEST
from envbuild.oci.referrers import fallback_tag, referrers
from envbuild.oci.registry import find_manifest, publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver, Source
from fixtures_channel import Bases, ChannelFolder
from parts.docker_engine import DockerEngine
from parts.ocimem import OcimemServer
from parts.oracles import Oracles

pytestmark = pytest.mark.xdist_group("engine")

SPEC = """\
channels: [fixtures, nodefaults]
dependencies: [python=3.11, click]
"""


@pytest.fixture(scope="module")
def pushed_base(ocimem: OcimemServer, bases: Bases, engine: DockerEngine) -> str:
    """The minimal base as ``docker push`` writes it, in the second registry."""
    source = LayoutRegistry(Repository.parse(f"oci:{bases.minimal}"))
    repository = ocimem.repository("bases")
    target = RemoteRegistry(repository)
    manifest = source.get_manifest(Tag("latest"))
    copy_image(source, target, manifest)
    publish(target, manifest, Tag("copied"))
    engine.docker("pull", f"{repository}:copied")
    engine.docker("tag", f"{repository}:copied", f"{repository}:pushed")
    engine.docker("push", f"{repository}:pushed")
    assert target.get_manifest(Tag("pushed")).media_type == DOCKER_MANIFEST
    target.close()
    return f"{repository}:pushed"


@pytest.fixture
def config(ocimem: OcimemServer, channel: ChannelFolder, pushed_base: str, tmp_path: Path) -> Config:
    """The settings of a machine that has seen nothing yet."""
    return Config(
        workspace=ocimem.repository("envs"),
        channel_alias=channel.alias,
        cache_dir=tmp_path / "cache",
        base=pushed_base,
    )


def test_the_main_job_on_the_second_registry(
    config: Config, tmp_path: Path, engine: DockerEngine, ocimem: OcimemServer
) -> None:
    spec = tmp_path / "environment.yml"
    spec.write_text(SPEC)
    with Resolver(config) as resolver:
        built = resolver.resolve(spec)
    assert built.source is Source.BUILT
    code = "import click, json, sys; print(json.dumps([click.__name__, sys.prefix]))"
    ran = engine.docker("run", "--rm", str(built.reference), "python", "-c", code)
    assert json.loads(ran.stdout) == ["click", "/opt/env"]

    before = len(ocimem.requests)
    with Resolver(replace(config, cache_dir=tmp_path / "another machine")) as resolver:
        again = resolver.resolve(spec)
    assert (again.source, again.reference) == (Source.WORKSPACE, built.reference)
    assert not [line for line in ocimem.requests[before:] if not line.startswith(("GET", "HEAD"))]

    registry = RemoteRegistry(config.workspace)
    assert len(referrers(registry, built.reference.digest)) == 3
    assert find_manifest(registry, fallback_tag(built.reference.digest)) is None, "the API lists them"
    registry.close()
    assert "PASS" in Oracles(tmp_path / "home").crane("validate", "--remote", str(built.reference))

    user = replace(
        config, cache_dir=tmp_path / "user", workspace=ocimem.repository("mine"), global_=config.workspace
    )
    with Resolver(replace(user, promote=True)) as resolver:
        promoted = resolver.resolve(spec)
    assert promoted.reference == user.workspace.at(built.reference.digest)
    engine.docker("pull", str(promoted.reference))
