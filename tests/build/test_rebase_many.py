"""Rebasing everything: what is asked of a registry for each image, and what is left when it is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuild.build.rebase import Rebased, Rebaser
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import NotFound
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.open import open_registry
from envbuild.oci.whole import missing
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from envbuild.spec.environment import load
from tiny import LIBC, World, make_base

if TYPE_CHECKING:
    from pathlib import Path

    from parts.ocimem import OcimemServer
    from parts.registry_server import RegistryServer

IMAGES = 5
WITHOUT = Counter(
    {
        "GET k1 200": 2,  # what is on the old base, and what was written, read back
        "GET f1 200": 1,  # its recipe
        "GET k1 404": 1,  # one that is there already wins
        "POST upload 202": 1,  # the config
        "PUT upload 201": 1,
        "PUT digest 201": 1,  # the manifest, of which the registry says whether anything is missing
        "PUT f1 201": 1,
        "PUT k1 201": 1,
    }
)
ARTIFACTS = Counter({"POST upload 202": 3, "PUT upload 201": 3, "PUT digest 201": 3})
LISTED = Counter({"GET list 404": 1, "PUT list 201": 1, "GET list 200": 1})


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World.make(tmp_path)
    make_base(bases_of(world), "new", {"lib/libc.so.6": LIBC, "new": b"x"}, Env=["NEW=1"])
    return world


def bases_of(world: World) -> Repository:
    return Repository.parse(f"oci:{world.root}/bases")


def build(config: Config, world: World, count: int = IMAGES) -> None:
    """Build environments that differ in a variable, and so in key, lock key and config."""
    spec = load(world.spec("pyth", "tool"), base=config.base)
    with Resolver(replace(config, attach=False)) as resolver:
        for number in range(count):
            resolver.resolve(replace(spec, variables=(("NUMBER", str(number)),)))


def rebase(config: Config, world: World) -> list[Rebased]:
    with Resolver(config) as resolver:
        worker = Rebaser(
            resolver.config, resolver.index, resolver.registries, resolver.progress, bases=resolver.bases
        )
        old = worker.digests(bases_of(world).tagged(Tag("minimal")), NO_DEADLINE)
        done = list(worker.rebase_all(old, bases_of(world).tagged(Tag("new")), NO_DEADLINE))
    found = [each for each in done if isinstance(each, Rebased)]
    assert len(found) == len(done)
    return found


def asked(server: RegistryServer | OcimemServer, workspace: Repository, before: int) -> Counter[str]:
    """How often each kind of request was made of a repository."""
    kinds: Counter[str] = Counter()
    for line in server.requests[before:]:
        method, path, status = line.split()
        if not path.startswith(f"/v2/{workspace.path}/"):
            continue
        name = path.removeprefix(f"/v2/{workspace.path}/").partition("?")[0]
        for pattern, kind in (
            (r"manifests/([klf]1)-.*", r"\1"),
            (r"manifests/sha256-.*", "list"),
            (r"manifests/sha256:.*", "digest"),
            (r"blobs/uploads/.*", "upload"),
            (r"blobs/sha256:.*", "blob"),
        ):
            if re.fullmatch(pattern, name):
                name = re.sub(pattern, kind, name)
                break
        kinds[f"{method} {name} {status}"] += 1
    return kinds


def each(kinds: Counter[str]) -> Counter[str]:
    """What is asked for every image; the rest is asked once a run."""
    return Counter({kind: count // IMAGES for kind, count in kinds.items() if count >= IMAGES})


@pytest.mark.parametrize("attach", [False, True])
def test_requests_for_each_image(world: World, registry: RegistryServer, attach: bool) -> None:
    config = replace(world.config, workspace=registry.repository("rebases"))
    build(config, world)
    before = len(registry.requests)
    assert len(rebase(replace(config, attach=attach), world)) == IMAGES
    kinds = asked(registry, config.workspace, before)
    assert each(kinds) == WITHOUT + (ARTIFACTS + LISTED if attach else Counter())
    once = kinds.total() - IMAGES * each(kinds).total()
    # the tags; base layer and config of recipes, which threads may look for at the same time; the API
    assert once <= 16


def test_where_referrers_are_listed_no_tag_is_written(world: World, ocimem: OcimemServer) -> None:
    config = replace(world.config, workspace=ocimem.repository("rebases"))
    build(config, world)
    before = len(ocimem.requests)
    assert len(rebase(replace(config, attach=True), world)) == IMAGES
    kinds = each(asked(ocimem, config.workspace, before))
    assert kinds - (WITHOUT + ARTIFACTS) == Counter({"GET list 404": 1}) + Counter(
        {kind: count for kind, count in kinds.items() if "referrers" in kind}
    )
    assert not any(kind.startswith("PUT list") for kind in kinds)


def test_a_registry_and_a_layout_get_the_same_images(world: World, registry: RegistryServer) -> None:
    found = []
    for workspace in (world.config.workspace, registry.repository("rebases")):
        config = replace(world.config, workspace=workspace)
        build(config, world)
        done = {str(each.key): str(each.reference.digest) for each in rebase(config, world)}
        assert len(done) == IMAGES
        found.append(done)
        with Resolver(world.other_machine(workspace=workspace, base=f"{bases_of(world)}:new")) as resolver:
            spec = load(world.spec("pyth", "tool"), base=f"{bases_of(world)}:new")
            one = resolver.resolve(replace(spec, variables=(("NUMBER", "3"),)), build=False)
            assert done[str(one.key)] == str(one.reference.digest)
    assert found[0] == found[1]


@pytest.fixture(params=["layout", "registry"])
def workspace(request: pytest.FixtureRequest, world: World, registry: RegistryServer) -> Repository:
    return registry.repository("killed") if request.param == "registry" else world.config.workspace


def test_a_kill_in_the_middle_leaves_no_tag_on_an_incomplete_image(
    world: World, workspace: Repository
) -> None:
    images = 12
    config = replace(world.config, workspace=workspace)
    build(config, world, images)
    target = open_registry(workspace)

    def keys() -> set[Tag]:
        return {tag for tag in target.tags() if tag.name.startswith("k1-")}

    def stored(tag: Tag) -> Manifest | ImageIndex:
        """What a tag names; Distribution lists one a moment before it can be read."""
        limit = time.monotonic() + 10
        while True:
            try:
                return target.get_manifest(tag)
            except NotFound:
                assert time.monotonic() < limit, f"{tag} is listed, and names nothing"
                time.sleep(0.02)

    command = [sys.executable, "-m", "envbuild", "rebase", "--all", "--jobs", "4"]
    command += ["--from", f"{bases_of(world)}:minimal", "--to", f"{bases_of(world)}:new"]
    settings = {"ENVBUILD_WORKSPACE": str(workspace), "ENVBUILD_CACHE_DIR": str(world.root / "other")}
    old = keys()
    assert len(old) == images
    killed = 0
    for least in (1, 6):
        process = subprocess.Popen(
            command,
            env={**os.environ, **settings},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and len(keys() - old) < least:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert len(keys() - old) >= least
        for tag in keys():
            assert missing(target, stored(tag)) == ()
    assert killed
    rebase(config, world)
    new = keys() - old
    assert len(new) == images
    assert all(missing(target, target.get_manifest(tag)) == () for tag in new)
    target.close()
