"""How many environments a second are put on a new base, on a registry server on this machine."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envbuild.build.job import Job
from envbuild.build.layers import LayersBuilder
from envbuild.build.rebase import Rebased, Rebaser
from envbuild.build.upload import in_parallel
from envbuild.deadline import NO_DEADLINE
from envbuild.key import CanonicalForm
from envbuild.platform import Platform
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from envbuild.spec.environment import load
from measure import table
from parts.registry_server import RegistryServer
from tiny import LIBC, World, make_base

if TYPE_CHECKING:
    from envbuild.config import Config

IMAGES = 1000


def run(repeats: int) -> None:
    """Print the table of rebases."""
    folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
    server = RegistryServer(folder / "registry")
    server.start()
    try:
        _run(folder, server, max(repeats, 1))
    finally:
        server.stop()
        shutil.rmtree(folder)


def _run(folder: Path, server: RegistryServer, repeats: int) -> None:
    world = World.make(folder)
    config = replace(world.config, workspace=server.repository("envs"), jobs=8)
    _fill(replace(config, attach=False), world)
    rows = []
    for title, attach in (("image, recipe and tags", False), ("with definition, lock and provenance", True)):
        names = [f"new-{turn}-{attach}" for turn in range(repeats)]
        for name in names:
            content = {"lib/libc.so.6": LIBC, "x": name.encode()}
            make_base(Repository.parse(f"oci:{folder}/bases"), name, content)
        seen = [_rebase(replace(config, attach=attach), world, name, server) for name in names]
        rate, asked, cpu, server_cpu = (statistics.median(column) for column in zip(*seen, strict=True))
        milliseconds = f"{cpu * 1000:.1f} ms", f"{server_cpu * 1000:.1f} ms"
        rows.append([title, f"{rate:.0f}", f"{asked:.1f}", *milliseconds])
    table(
        f"{IMAGES} environments on a new base",
        ("written", "a second", "requests each", "CPU of envbuild each", "CPU of the registry each"),
        rows,
    )


def _fill(config: Config, world: World) -> None:
    """Build environments that differ in a variable, and so in key, lock key and config."""
    spec = load(world.spec("pyth", "thing", "tool"), base=config.base)
    platform = Platform("linux", "amd64")
    with Resolver(config) as resolver:
        base = resolver.bases.image(spec.require_base(), platform, NO_DEADLINE)
        builder = LayersBuilder(config, resolver.index, resolver.registries, resolver.progress)

        def build(number: int) -> None:
            one = replace(spec, variables=(("NUMBER", str(number)),))
            key = CanonicalForm.of(one, base.digest, platform).key
            builder.build(Job(one, key, platform, base, NO_DEADLINE))

        build(0)
        in_parallel(config.jobs, build, range(1, IMAGES))


def _rebase(
    config: Config, world: World, name: str, server: RegistryServer
) -> tuple[float, float, float, float]:
    """Rebases a second, requests for each, and CPU seconds of envbuild and of the registry for each."""
    bases = Repository.parse(f"oci:{world.root}/bases")
    before, spent_before = len(server.requests), server.cpu_seconds
    settings = world.other_machine(workspace=config.workspace, jobs=config.jobs, attach=config.attach)
    with Resolver(settings) as resolver:
        worker = Rebaser(
            resolver.config, resolver.index, resolver.registries, resolver.progress, bases=resolver.bases
        )
        started, cpu = time.perf_counter(), time.process_time()
        old = worker.digests(bases.tagged(Tag("minimal")), NO_DEADLINE)
        done = list(worker.rebase_all(old, bases.tagged(Tag(name)), NO_DEADLINE))
        seconds, spent = time.perf_counter() - started, time.process_time() - cpu
    if len(done) != IMAGES or not all(isinstance(each, Rebased) and each.made for each in done):
        raise SystemExit(f"{len(done)} came out, {IMAGES} expected")
    asked, theirs = len(server.requests) - before, server.cpu_seconds - spent_before
    return IMAGES / seconds, asked / IMAGES, spent / IMAGES, theirs / IMAGES
