"""What a machine that has the old image fetches of the new one: ``docker pull`` with an engine of its own.

Bytes are those of the registry server's access log. Docker's store names a layer by all that is below it, so
whatever is above a changed layer is fetched again; the table shows how much that is.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from builds import ENVS, Bench
from channelfolder import channel
from envbuild.config import Config
from envbuild.oci.manifest import Manifest
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from envbuild.spec.environment import load
from measure import table
from parts.docker_engine import DockerEngine
from parts.registry_server import RegistryServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.reference import ImageReference

CASES = (
    ("one small package changed", "changed.yml", "minimal"),
    ("pandas changed", "pandas.yml", "minimal"),
    ("new base", "environment.yml", "minimal-rebuilt"),
)


@dataclass(frozen=True, slots=True)
class Pull:
    """What one pull cost.

    Attributes:
        seconds: Wall-clock seconds.
        fetched: Bytes of the registry's answers.
    """

    seconds: float
    fetched: int


@dataclass(frozen=True, slots=True)
class Puller:
    """An engine that has nothing but what it pulls.

    Attributes:
        engine: The engine.
        registry: Where it pulls from.
    """

    engine: DockerEngine
    registry: RegistryServer

    def update(self, old: str, new: str) -> Pull:
        """Pull one image after another; gives the cost of the second."""
        self.engine.docker("image", "prune", "--all", "--force")
        self.engine.docker("pull", "--quiet", old)
        before = sum(self._answered())
        started = time.perf_counter()
        self.engine.docker("pull", "--quiet", new)
        seconds = time.perf_counter() - started
        return Pull(seconds, sum(self._answered()) - before)

    def _answered(self) -> Iterator[int]:
        """Sizes of the answers to GET requests."""
        self.registry.requests  # noqa: B018 - waits until the log is written
        for line in (self.registry.folder / "access.log").read_text().splitlines():
            parts = line.split('"')
            if len(parts) > 2 and parts[1].startswith("GET "):
                yield int(parts[2].split()[1])


def run(repeats: int) -> None:
    """Print the table of pulls."""
    folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
    given = DockerEngine.given()
    builder = given or DockerEngine.in_folder(folder / "engine")
    puller = DockerEngine.in_folder(folder / "puller")
    bench = Bench(
        folder / "round", builder, RegistryServer(folder / "registry", cached=True), folder / "packages"
    )
    bench.folder.mkdir()
    try:
        if given is None:
            builder.start()
        puller.start()
        bench.start()
        _run(bench, Puller(puller, bench.registry), max(repeats, 1))
    finally:
        bench.stop()
        puller.stop()
        if given is None:
            builder.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _run(bench: Bench, puller: Puller, repeats: int) -> None:
    rows = []
    config = Config(
        workspace=Repository.parse(f"{bench.registry.host}/envs"),
        channel_alias=channel().parent.as_uri(),
        cache_dir=bench.folder / "cache",
    )
    registry = RemoteRegistry(config.workspace)
    with Resolver(config) as resolver:
        old = _both(bench, resolver, "environment.yml", "minimal")
        for title, spec, base in CASES:
            new = _both(bench, resolver, spec, base)
            theirs, ours = (
                _median([puller.update(str(before), str(after)) for _ in range(repeats)])
                for before, after in zip(old, new, strict=True)
            )
            changed, above = _forced(registry, old[1], new[1])
            rows.append(
                [
                    title,
                    f"{theirs.seconds:.2f} s",
                    f"{ours.seconds:.2f} s",
                    f"{theirs.seconds / ours.seconds:.1f}×",
                    f"{theirs.fetched / 1e6:.2f} MB",
                    f"{ours.fetched / 1e6:.2f} MB",
                    f"{changed / 1e6:.2f} MB",
                    f"{above / 1e6:.2f} MB",
                    f"{ours.fetched / max(changed + above, 1):.2f}",
                ]
            )
    registry.close()
    head = [
        "what changed", "one layer", "envbuild", "ratio", "fetched", "fetched of envbuild's",
        "changed layers", "above them", "fetched / (changed + above)",
    ]  # fmt: skip
    table(f"`docker pull` where the old image is there (median of {max(repeats, 1)})", head, rows)


def _both(bench: Bench, resolver: Resolver, spec: str, base: str) -> tuple[str, ImageReference]:
    """The single-layer image that BuildKit builds, and envbuild's, both in the registry."""
    bench.theirs(f"scientific/{spec}", base)
    definition = load(ENVS / "scientific" / spec, base=f"{bench.registry.host}/bases:{base}")
    return f"{bench.registry.host}/docker:{bench.pushes}", resolver.resolve(definition).reference


def _median(pulls: list[Pull]) -> Pull:
    return Pull(
        statistics.median(pull.seconds for pull in pulls),
        int(statistics.median(pull.fetched for pull in pulls)),
    )


def _forced(registry: RemoteRegistry, old: ImageReference, new: ImageReference) -> tuple[int, int]:
    """Bytes of the layers that are new, and of the others that lie above the lowest of them."""
    before, after = (registry.get_manifest(each.digest) for each in (old, new))
    if not isinstance(before, Manifest) or not isinstance(after, Manifest):
        raise SystemExit("one of the images is no image")
    same = sum(
        1
        for _ in takewhile(
            lambda pair: pair[0].digest == pair[1].digest, zip(before.layers, after.layers, strict=False)
        )
    )
    known = {layer.digest for layer in before.layers}
    fetched = after.layers[same:]
    changed = sum(layer.size for layer in fetched if layer.digest not in known)
    return changed, sum(layer.size for layer in fetched) - changed
