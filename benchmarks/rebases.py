"""How many environments a second are put on a new base, beside what a user would do instead.

Two peers run in the same round as envbuild. *the least there is* sends, with urllib3 and in as many threads,
the requests that a rebase cannot do without, made beforehand, and looks at nothing: what it needs is what the
registry takes for itself. *crane rebase* is a process an image; it knows of no key, no recipe and no glibc.

Seconds of a busy machine say little; processor time of both sides is printed beside them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import urllib3

from envbuild.build.job import Job
from envbuild.build.layers import LayersBuilder
from envbuild.build.rebase import Rebased, Rebaser
from envbuild.build.upload import in_parallel
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.key import CanonicalForm
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ACCEPT, OCI_CONFIG, OCI_MANIFEST
from envbuild.oci.remote import RemoteRegistry
from envbuild.platform import Platform
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from envbuild.spec.environment import load
from measure import table
from parts.programs import fetched_program
from parts.registry_server import RegistryServer
from tiny import LIBC, World, make_base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.config import Config

IMAGES = int(os.environ.get("REBASES", "1000"))
THREADS = 8
CRANE = 16
"""Images that crane rebases: a process each, and all of them cost the same."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one rebase, but for the first: how many there were a second."""

    rate: float
    requests: float
    cpu: float
    server: float

    def row(self, title: str, least: Cost | None) -> list[str]:
        """A row of the table."""
        ratio = f"{self.rate / least.rate:.2f}x" if least is not None else "-"
        server = f"{self.server * 1000:.1f} ms" if self.requests else "-"
        asked = f"{self.requests:.1f}" if self.requests else "-"
        return [title, f"{self.rate:.1f}", ratio, asked, f"{self.cpu * 1000:.1f} ms", server]


class Meter:
    """Counts what is asked of a server and what it costs, from now on."""

    def __init__(self, server: RegistryServer | None) -> None:
        self._server = server
        self._asked = len(server.requests) if server else 0
        self._theirs = server.cpu_seconds if server else 0.0
        self._ours, self._started = _spent(), time.perf_counter()

    def cost(self, count: int) -> Cost:
        """What one of ``count`` cost."""
        seconds, ours = time.perf_counter() - self._started, _spent() - self._ours
        if self._server is None:
            return Cost(count / seconds, 0, ours / count, 0)
        theirs = self._server.cpu_seconds - self._theirs
        asked = len(self._server.requests) - self._asked
        return Cost(count / seconds, asked / count, ours / count, theirs / count)


def _spent() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run(repeats: int) -> None:
    """Print the table of rebases."""
    folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
    try:
        _run(folder, max(repeats, 1))
    finally:
        shutil.rmtree(folder)


def _run(folder: Path, repeats: int) -> None:
    world = World.make(folder)
    on_disk = replace(world.config, workspace=Repository.parse(f"oci:{folder}/envs"), jobs=THREADS)
    with _serving(folder / "seed") as server:
        on_server = replace(on_disk, workspace=server.repository("envs"))
        for config in (on_server, on_disk):
            _fill(replace(config, attach=False), world)
    costs: dict[str, list[Cost]] = {}
    for turn, attach in itertools.product(range(repeats), (False, True)):
        name, kept = f"new-{turn}-{attach}", "all attachments" if attach else "no attachments"
        make_base(_bases(world), name, {"lib/libc.so.6": LIBC, "x": name.encode()})
        copied = Repository.parse(f"oci:{folder}/envs-{name}")
        shutil.copytree(on_disk.workspace.folder, copied.folder)
        seen = _rebase(replace(on_disk, workspace=copied, attach=attach), world, name, None)
        costs.setdefault(f"layout, {kept}", []).append(seen)
        shutil.copytree(folder / "seed" / "data", folder / name / "data")
        with _serving(folder / name) as server:
            workspace = Repository.parse(f"{server.host}/{on_server.workspace.path}")
            config = replace(on_server, workspace=workspace, attach=attach)
            costs.setdefault(f"registry, {kept}", []).append(_rebase(config, world, name, server))
            least = Least(config, server, world, artifacts=3 if attach else 0)
            costs.setdefault(f"the least there is, {kept}", []).append(least.run())
            if not attach:
                costs.setdefault("crane rebase", []).append(_crane(config, world, server, name))
        for each in (copied.folder, folder / name):
            shutil.rmtree(each)
    _print({title: _median(seen) for title, seen in costs.items()})


def _print(medians: dict[str, Cost]) -> None:
    rows = []
    for title, cost in medians.items():
        kept = title.partition(", ")[2] or "no attachments"
        rows.append(cost.row(title, medians[f"the least there is, {kept}"]))
    table(
        f"{IMAGES} environments on a new base",
        (
            "",
            "a second",
            "of the least",
            "requests each",
            "CPU of the client each",
            "CPU of the registry each",
        ),
        rows,
    )


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[RegistryServer]:
    server = RegistryServer(folder, cached=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _median(costs: list[Cost]) -> Cost:
    columns = zip(*((each.rate, each.requests, each.cpu, each.server) for each in costs), strict=True)
    return Cost(*map(statistics.median, columns))


def _bases(world: World) -> Repository:
    return Repository.parse(f"oci:{world.root}/bases")


def _fill(config: Config, world: World) -> None:
    """Build environments that differ in a variable, and so in key, lock key and config."""
    spec = config.over(load(world.spec("pyth", "thing", "tool"), base=config.base))
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


def _rebase(config: Config, world: World, name: str, server: RegistryServer | None) -> Cost:
    settings = world.other_machine(workspace=config.workspace, jobs=config.jobs, attach=config.attach)
    with Resolver(settings) as resolver:
        worker = Rebaser(
            resolver.config, resolver.index, resolver.registries, resolver.progress, bases=resolver.bases
        )
        meter = Meter(server)
        old = worker.digests(_bases(world).tagged(Tag("minimal")), NO_DEADLINE)
        done = list(worker.rebase_all(old, _bases(world).tagged(Tag(name)), NO_DEADLINE))
        cost = meter.cost(IMAGES)
    if len(done) != IMAGES or not all(isinstance(each, Rebased) and each.made for each in done):
        raise SystemExit(f"{len(done)} came out, {IMAGES} expected")
    return cost


def _tags(config: Config, world: World) -> list[Tag]:
    """The keys of the images on the first base."""
    layout = LayoutRegistry(replace(config, workspace=Repository.parse(f"oci:{world.root}/envs")).workspace)
    old = str(LayoutRegistry(_bases(world)).get_manifest(Tag("minimal")).descriptor.digest)
    keys = (tag for tag in layout.tags() if tag.name.startswith("k1-"))
    name = "org.opencontainers.image.base.digest"
    return [tag for tag in keys if layout.get_manifest(tag).annotations.get(name) == old]


class Least:
    """Sends what a rebase must send, and nothing else.

    Args:
        config: Whose workspace is read and written.
        server: Where it is.
        world: The first base, and the same images on disk.
        artifacts: How many are attached to each image.
    """

    def __init__(self, config: Config, server: RegistryServer, world: World, artifacts: int) -> None:
        self._server, self._artifacts = server, artifacts
        self._url = f"{server.url}/v2/{config.workspace.path}"
        self._tags = [tag.name.removeprefix("k1-") for tag in _tags(config, world)][:IMAGES]
        self._pool = urllib3.PoolManager(maxsize=THREADS)

    def run(self) -> Cost:
        """All of them."""
        first = self._ask("GET", f"manifests/k1-{self._tags[0]}", 200)
        self._recipe = self._ask("GET", f"manifests/f1-{self._tags[0]}", 200)
        old = first[first.index(b'"digest":"') + 10 :][:71]
        self._parts = first.split(old, 1)
        self._config = self._ask("GET", f"blobs/{old.decode()}", 200)
        meter = Meter(self._server)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda key: self._one(f"least-{key}", key), self._tags))
        return meter.cost(len(self._tags))

    def _one(self, name: str, key: str) -> None:
        self._ask("GET", f"manifests/k1-{key}", 200)
        self._ask("GET", f"manifests/f1-{key}", 200)
        self._ask("GET", f"manifests/x-{name}", 404)
        content = name.encode().rjust(len(self._config))
        manifest = self._parts[0] + self._blob(content) + self._parts[1]
        self._put(f"y-{name}", manifest)
        self._put(f"z-{name}", self._recipe + b" " * (len(name) % 7))
        self._put(f"x-{name}", manifest)
        self._ask("GET", f"manifests/x-{name}", 200)
        for number in range(self._artifacts):
            digest = self._blob(f"{number}{name}".encode().rjust(len(self._config)))
            artifact = self._parts[0] + digest + self._parts[1]
            self._put(str(Digest.of(artifact)), artifact)
        if self._artifacts:
            self._ask("GET", f"manifests/list-{name}", 404)
            self._put(f"list-{name}", manifest + b" ")
            self._ask("GET", f"manifests/list-{name}", 200)

    def _blob(self, content: bytes) -> bytes:
        started = self._pool.request("POST", f"{self._url}/blobs/uploads/", body=b"")
        digest = str(Digest.of(content))
        place = f"{urljoin(self._url, started.headers['Location'])}&digest={digest}"
        self._check(self._pool.request("PUT", place, body=content, headers={"Content-Type": OCI_CONFIG}), 201)
        return digest.encode()

    def _put(self, reference: str, raw: bytes) -> None:
        self._ask("PUT", f"manifests/{reference}", 201, raw)

    def _ask(self, method: str, path: str, status: int, body: bytes | None = None) -> bytes:
        headers = {"Accept": ", ".join(ACCEPT)} if body is None else {"Content-Type": OCI_MANIFEST}
        answer = self._pool.request(method, f"{self._url}/{path}", body=body, headers=headers)
        return self._check(answer, status)

    def _check(self, answer: urllib3.BaseHTTPResponse, status: int) -> bytes:
        if answer.status != status:
            raise SystemExit(f"{answer.status}: {answer.data[:200]!r}")
        return answer.data


def _crane(config: Config, world: World, server: RegistryServer, name: str) -> Cost:
    crane, workspace = fetched_program("crane"), config.workspace
    bases = RemoteRegistry(Repository.parse(f"{workspace.host}/bases"))
    for tag in ("minimal", name):
        source = LayoutRegistry(_bases(world))
        manifest = source.get_manifest(Tag(tag))
        copy_image(source, bases, manifest)
        bases.put_manifest(manifest, Tag(tag))
    old, new = (bases.repository.tagged(Tag(tag)) for tag in ("minimal", name))
    bases.close()

    def one(tag: Tag) -> None:
        command = [crane, "rebase", f"{workspace}:{tag}", "--old_base", str(old), "--new_base", str(new)]
        command += ["--tag", f"{workspace}:crane-{tag}"]
        subprocess.run(command, check=True, capture_output=True)

    tags = _tags(config, world)[:CRANE]
    meter = Meter(server)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, tags))
    return meter.cost(len(tags))
