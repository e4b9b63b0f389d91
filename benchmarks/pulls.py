"""What a machine that has the old image fetches of the new one, with each store of ``pullers.py``.

Bytes are those of the registry server's access log. Docker's store names a layer by all that is below it, so
whatever is above a changed layer is fetched again; the tables show how much that is.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pullers import Containerd, Docker, Podman

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envbuild.reference import ImageReference
    from pullers import Puller

ZSTD = "envbuild, zstd"
SETTINGS: dict[str, dict[str, Any]] = {
    "envbuild": {},
    "envbuild, 40 layers": {"max_layers": 40},
    ZSTD: {"compression": "zstd"},
}
HEAD = (
    "what changed", "image", "pull", "ratio", "fetched", "layers", "changed or above", "changed", "above",
    "fetched / (changed + above)",
)  # fmt: skip
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
class Images:
    """One environment as several images in the registry.

    Attributes:
        theirs: The single-layer image that BuildKit builds.
        ours: envbuild's, by what is set.
    """

    theirs: str
    ours: Mapping[str, ImageReference]


def run(repeats: int) -> None:
    """Print a table of pulls for each store."""
    folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
    given = DockerEngine.given()
    builder = given or DockerEngine.in_folder(folder / "engine")
    bench = Bench(
        folder / "round", builder, RegistryServer(folder / "registry", cached=True), folder / "packages"
    )
    bench.folder.mkdir()
    pullers = (Docker(folder / "docker"), Podman(folder / "podman"), Containerd(folder / "containerd"))
    try:
        if given is None:
            builder.start()
        bench.start()
        images = _images(bench)
        for puller in pullers:
            try:
                puller.start()
                _measure(puller, bench, images, max(repeats, 1))
            finally:
                puller.stop()
    finally:
        bench.stop()
        if given is None:
            builder.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _images(bench: Bench) -> list[Images]:
    """The old environment's images, then those of each case."""
    found = []
    with ExitStack() as stack:
        resolvers = {
            name: stack.enter_context(
                Resolver(
                    Config(
                        workspace=Repository.parse(f"{bench.registry.host}/envs-{number}"),
                        channel_alias=channel().parent.as_uri(),
                        cache_dir=bench.folder / f"cache-{number}",
                        **settings,
                    )
                )
            )
            for number, (name, settings) in enumerate(SETTINGS.items())
        }
        for _, spec, base in (("", "environment.yml", "minimal"), *CASES):
            bench.theirs(f"scientific/{spec}", base)
            definition = load(ENVS / "scientific" / spec, base=f"{bench.registry.host}/bases:{base}")
            ours = {name: resolver.build(definition).reference for name, resolver in resolvers.items()}
            found.append(Images(f"{bench.registry.host}/docker:{bench.pushes}", ours))
    return found


def _measure(puller: Puller, bench: Bench, images: list[Images], repeats: int) -> None:
    """Print one store's table."""
    old, *others = images
    rows = []
    for (title, _, _), new in zip(CASES, others, strict=True):
        pairs = {"one layer, by BuildKit": (old.theirs, new.theirs)}
        pairs |= {name: (str(old.ours[name]), str(reference)) for name, reference in new.ours.items()}
        if not puller.zstd:
            del pairs[ZSTD]
        pulls = {
            name: _median([_update(puller, bench.registry, *pair) for _ in range(repeats)])
            for name, pair in pairs.items()
        }
        theirs = next(iter(pulls.values()))
        for name, pull in pulls.items():
            row = [title, name, f"{pull.seconds:.2f} s", f"{theirs.seconds / pull.seconds:.1f}×"]
            row += [f"{pull.fetched / 1e6:.2f} MB"]
            if name in new.ours:
                row += _forced(old.ours[name], new.ours[name], pull.fetched)
            rows.append([*row, *[""] * (len(HEAD) - len(row))])
    table(f"{puller.title} where the old image is there (median of {repeats})", HEAD, rows)


def _update(puller: Puller, registry: RegistryServer, old: str, new: str) -> Pull:
    """Pull an image where the old one is; gives the cost, and leaves the old one there."""
    puller.pull(old)
    before = sum(_answered(registry))
    started = time.perf_counter()
    puller.pull(new)
    seconds = time.perf_counter() - started
    fetched = sum(_answered(registry)) - before
    puller.forget(new)
    return Pull(seconds, fetched)


def _answered(registry: RegistryServer) -> Iterator[int]:
    """Sizes of the answers to GET requests."""
    registry.requests  # noqa: B018 - waits until the log is written
    for line in (registry.folder / "access.log").read_text().splitlines():
        parts = line.split('"')
        if len(parts) > 2 and parts[1].startswith("GET "):
            yield int(parts[2].split()[1])


def _median(pulls: list[Pull]) -> Pull:
    return Pull(
        statistics.median(pull.seconds for pull in pulls),
        int(statistics.median(pull.fetched for pull in pulls)),
    )


def _forced(old: ImageReference, new: ImageReference, fetched: int) -> list[str]:
    """Layers, those above the lowest one that changed, their bytes, and what was fetched beside these."""
    registry = RemoteRegistry(old.repository)
    before, after = (registry.get_manifest(each.digest) for each in (old, new))
    registry.close()
    if not isinstance(before, Manifest) or not isinstance(after, Manifest):
        raise SystemExit("one of the images is no image")
    pairs = zip(before.layers, after.layers, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0].digest == pair[1].digest, pairs))
    known = {layer.digest for layer in before.layers}
    above = after.layers[same:]
    changed = sum(layer.size for layer in above if layer.digest not in known)
    rest = sum(layer.size for layer in above) - changed
    return [
        str(len(after.layers)),
        str(len(above)),
        f"{changed / 1e6:.2f} MB",
        f"{rest / 1e6:.2f} MB",
        f"{fetched / max(changed + rest, 1):.2f}",
    ]
