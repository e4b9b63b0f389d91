"""What a registry hit costs, beside urllib3 asking the same registry for the same manifest.

The peer does the least that anybody can do who wants to know the digest behind a tag: one GET with the media
types of manifests, and a hash over the bytes. envbuild also makes the definition's key (a process reads it),
looks into the index, which does not know the image here, parses and checks the manifest, and remembers it.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import urllib3

from envbuild.config import Config
from envbuild.key import KEY_ANNOTATION
from envbuild.oci.manifest import ACCEPT
from envbuild.oci.registry import publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.resolver import Resolver
from envbuild.spec.environment import load
from measure import Figure, median, table, timed
from oci_contract import put_image
from parts.registry_server import RegistryServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.key import Key
    from envbuild.spec.environment import EnvironmentSpec

LAYERS = 75
"""As many as an environment for scientific work has."""
HITS, SLICES, THREADS, BLOCK = 10_000, 25, 16, 25
SPEC = Path(__file__).resolve().parent.parent / "fixtures" / "envs" / "scientific" / "environment.yml"
PROCESS = """\
import hashlib, sys, urllib3
answer = urllib3.PoolManager().request("GET", sys.argv[1], headers={"Accept": sys.argv[2]})
assert answer.status == 200
print(hashlib.sha256(answer.data).hexdigest())
"""


@dataclass
class Bench:
    """A registry with the image of a definition in it.

    Attributes:
        resolver: Asks it; kept, as a service keeps one.
        pool: The peer, which keeps its connections, too.
        spec: The definition.
        key: Its key.
    """

    resolver: Resolver
    pool: urllib3.PoolManager
    spec: EnvironmentSpec
    key: Key

    @classmethod
    def make(cls, server: RegistryServer, folder: Path) -> Bench:
        """Push an image under the key of the definition."""
        workspace, cache = server.repository(), folder / "cache"
        resolver = Resolver(Config(workspace=workspace, cache_dir=cache, base="scratch", glibc="2.36"))
        return cls.of(resolver, urllib3.PoolManager(maxsize=THREADS), load(SPEC, base="scratch"))

    @classmethod
    def of(cls, resolver: Resolver, pool: urllib3.PoolManager, spec: EnvironmentSpec) -> Bench:
        """Push an image under the key of a definition."""
        key = resolver.key(spec)
        registry = RemoteRegistry(resolver.config.workspace)
        manifest = put_image(registry, str(key), layers=LAYERS, annotations={KEY_ANNOTATION: str(key)})
        publish(registry, manifest, key.tag)
        registry.close()
        return cls(resolver, pool, spec, key)

    @property
    def settings(self) -> dict[str, str]:
        """The resolver's, for a process."""
        return {
            "ENVBUILD_WORKSPACE": str(self.resolver.config.workspace),
            "ENVBUILD_BASE": "scratch",
            "ENVBUILD_GLIBC": "2.36",
            "ENVBUILD_CACHE_DIR": str(self.resolver.config.cache_dir),
            "PYTHONDONTWRITEBYTECODE": "",
        }

    @property
    def url(self) -> str:
        """Where the image's manifest is."""
        workspace = self.resolver.config.workspace
        return f"http://{workspace.host}/v2/{workspace.path}/manifests/{self.key.tag}"

    def forget(self) -> None:
        """Make the index ignorant of the image."""
        self.resolver.index.evict_image(str(self.key), self.resolver.config.workspace)

    def raw(self) -> None:
        """The peer's question."""
        answer = self.pool.request("GET", self.url, headers={"Accept": ", ".join(ACCEPT)})
        if answer.status != 200:
            raise SystemExit(f"{self.url}: {answer.status}")
        hashlib.sha256(answer.data).hexdigest()

    def ours(self) -> None:
        """The question through the library."""
        self.resolver.resolve(self.spec, build=False)


def run(repeats: int) -> None:
    """Print the table of registry hits."""
    folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
    server = RegistryServer(folder / "registry", cached=True)
    server.start()
    try:
        bench = Bench.make(server, folder)
        rows = [_kept(bench, max(repeats, 1) * 8), _process(bench, max(repeats, 1) * 5), _many(bench)]
        bench.resolver.close()
    finally:
        server.stop()
        shutil.rmtree(folder)
    head = ["case", "urllib3", "envbuild", "wall ratio", "urllib3 CPU", "envbuild CPU", "CPU ratio"]
    table(f"A registry hit, {LAYERS} layers (medians; CPU is the client's alone)", head, rows)


def _kept(bench: Bench, blocks: int) -> list[str]:
    """In turns, so that whatever else the machine does falls on both."""
    bench.raw()
    bench.ours()
    seen: dict[str, list[Figure]] = {"raw": [], "ours": []}
    for _ in range(blocks):
        seen["raw"].append(_block(bench.raw, lambda: None))
        seen["ours"].append(_block(bench.ours, bench.forget))
    return _row("library, kept connection", median(seen["raw"]), median(seen["ours"]))


def _block(question: Callable[[], None], before: Callable[[], None]) -> Figure:
    walls, cpus = [], []
    for _ in range(BLOCK):
        before()
        started, cpu = time.perf_counter(), time.process_time()
        question()
        walls.append(time.perf_counter() - started)
        cpus.append(time.process_time() - cpu)
    return Figure(statistics.median(walls), statistics.fmean(cpus))


def _process(bench: Bench, turns: int) -> list[str]:
    peer = [sys.executable, "-c", PROCESS, bench.url, ", ".join(ACCEPT)]
    own = [sys.executable, "-m", "envbuild", "resolve", "--quiet", "--no-build", str(SPEC)]
    folder = bench.resolver.config.cache_dir
    timed(own, bench.settings, folder)
    seen: dict[str, list[Figure]] = {"raw": [], "ours": []}
    for _ in range(turns):
        seen["raw"].append(timed(peer, cwd=folder))
        bench.forget()
        seen["ours"].append(timed(own, bench.settings, folder))
    return _row("a process", median(seen["raw"]), median(seen["ours"]))


def _many(bench: Bench) -> list[str]:
    """Every thread has a definition of its own, which the index has to forget before each hit."""
    own = [
        Bench.of(bench.resolver, bench.pool, replace(bench.spec, variables=(("THREAD", str(number)),)))
        for number in range(THREADS)
    ]

    def forgetful(each: Bench) -> None:
        each.forget()
        each.ours()

    slices = [(_at_once(own, Bench.raw), _at_once(own, forgetful)) for _ in range(SLICES)]
    raw, ours = (
        Figure(sum(each[side].seconds for each in slices), sum(each[side].cpu for each in slices))
        for side in (0, 1)
    )
    return _row(f"{HITS:,} hits, {THREADS} threads", raw, ours, each=HITS)


def _at_once(own: list[Bench], question: Callable[[Bench], None]) -> Figure:
    barrier = threading.Barrier(THREADS)

    def work(bench: Bench) -> None:
        barrier.wait()
        for _ in range(HITS // SLICES // THREADS):
            question(bench)

    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, own))
    return Figure(time.perf_counter() - started, time.process_time() - cpu)


def _row(name: str, raw: Figure, ours: Figure, *, each: int = 1) -> list[str]:
    def shown(seconds: float) -> str:
        return f"{each / seconds:,.0f}/s" if each > 1 else f"{seconds * 1000:.2f} ms"

    def cpu(seconds: float) -> str:
        return f"{seconds * 1000 / each:.2f} ms"

    return [
        name,
        shown(raw.seconds),
        shown(ours.seconds),
        f"{ours.seconds / raw.seconds:.2f}×",
        cpu(raw.cpu),
        cpu(ours.cpu),
        f"{ours.cpu / raw.cpu:.2f}×",
    ]
