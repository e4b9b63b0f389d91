"""What a build costs, beside BuildKit's build and ``docker push`` of the same environment."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from packaging.requirements import Requirement

from baseimages import bases
from cachefolder import cache_folder
from channelfolder import channel
from envbuild.config import Config
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.registry import publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from envbuild.spec.environment import load
from measure import Figure, folder_size, median, table, timed
from parts.docker_engine import DockerEngine
from parts.registry_server import RegistryServer

if TYPE_CHECKING:
    from collections.abc import Callable

ENVS = Path(__file__).resolve().parent.parent / "fixtures" / "envs"
INSTALL = Path(__file__).resolve().parent / "install.py"
DOCKERFILE = """\
ARG BASE
FROM ${BASE}
COPY env /opt/env
ENV PATH=/opt/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin CONDA_PREFIX=/opt/env
"""
UV_DOCKERFILE = """\
ARG BASE
FROM ${BASE}
COPY python /opt/env
RUN --mount=type=bind,target=/context \\
    /context/uv pip install --no-cache --python /opt/env/bin/python3.11 --no-index \\
    --find-links /context/wheels --requirement /context/requirements.txt
ENV PATH=/opt/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
NO_WHEELS = {"python", "pip", "activation"}
"""Dependencies of the definitions that uv needs no wheel for."""


@dataclass
class Bench:
    """One round: a fresh registry with two bases in it, a fresh cache, an engine without build cache.

    Attributes:
        folder: Where everything of the round is.
        engine: The engine that the peer builds with.
        registry: The registry that both push to.
    """

    folder: Path
    engine: DockerEngine
    registry: RegistryServer
    packages: Path
    pushes: int = field(default=0)
    kept: Resolver | None = None

    def start(self) -> None:
        """Start the registry, push the bases, pull them into the engine."""
        self.engine.docker("builder", "prune", "--all", "--force")
        self.registry.start()
        for name, layout in bases().items():
            source = LayoutRegistry(Repository.parse(f"oci:{layout}"))
            with_tag = next(iter(source.tags()))
            target = RemoteRegistry(Repository.parse(f"{self.registry.host}/bases"))
            manifest = source.get_manifest(with_tag)
            copy_image(source, target, manifest)
            publish(target, manifest, Tag(name))
            self.engine.docker("pull", f"{self.registry.host}/bases:{name}")
            target.close()

    def ours(self, spec: str | Path, base: str, *, cache: str = "cache") -> Figure:
        """``envbuild resolve`` as a process."""
        command = [sys.executable, "-m", "envbuild", "resolve", "--quiet", str(ENVS / spec)]
        command += ["--base", f"{self.registry.host}/bases:{base}"]
        settings = {
            "ENVBUILD_WORKSPACE": f"{self.registry.host}/envs",
            "ENVBUILD_CHANNEL_ALIAS": channel().parent.as_uri(),
            "ENVBUILD_CACHE_DIR": str(self.folder / cache),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        return self._sending(lambda: timed(command, settings, self.folder))

    def library(self, spec: str | Path, base: str) -> Figure:
        """The same through the library: a kept resolver with a repository and an index of its own."""
        if self.kept is None:
            self.kept = self._resolver("library")
        return _resolved(self.kept, spec, f"{self.registry.host}/bases:{base}")

    def elsewhere(self, spec: str | Path, base: str) -> Figure:
        """The same through the library on a machine that has seen nothing."""
        with self._resolver("another machine's library") as resolver:
            return _resolved(resolver, spec, f"{self.registry.host}/bases:{base}")

    def _resolver(self, cache: str) -> Resolver:
        config = Config(
            workspace=Repository.parse(f"{self.registry.host}/library"),
            channel_alias=channel().parent.as_uri(),
            cache_dir=self.folder / cache,
        )
        return Resolver(config)

    def theirs(self, spec: str, base: str, *, install: bool = True) -> Figure:
        """Install into a build context, build with BuildKit, push."""
        context = self.folder / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(DOCKERFILE)
        figures = []
        if install:
            shutil.rmtree(context / "env", ignore_errors=True)
            command = [sys.executable, str(INSTALL), str(ENVS / spec), channel().as_uri()]
            figures.append(timed([*command, str(context / "env"), str(self.packages)]))
        pushed = self._pushed(context, base)
        return Figure(
            sum(figure.seconds for figure in (*figures, pushed)),
            sum(figure.cpu for figure in (*figures, pushed)),
            pushed.sent,
        )

    def _pushed(self, context: Path, base: str) -> Figure:
        """Build a context with BuildKit and push the image."""
        self.pushes += 1
        image = f"{self.registry.host}/docker:{self.pushes}"
        environment = {**self.engine.environment, "DOCKER_BUILDKIT": "1"}
        docker = "/usr/bin/docker"
        build = [docker, "build", "--quiet", "--network", "none", "--tag", image, "--build-arg"]
        build += [f"BASE={self.registry.host}/bases:{base}", str(context)]
        built = timed(build, environment)
        sent = self._sending(lambda: timed([docker, "push", "--quiet", image], environment))
        return Figure(built.seconds + sent.seconds, built.cpu + sent.cpu, sent.sent)

    def uv(self, spec: str) -> Figure:
        """Copy a python, install the same packages' wheels with uv, all in BuildKit; push."""
        import uv

        context = self.folder / "uv"
        if not context.exists():
            context.mkdir()
            shutil.copy(uv.find_uv_bin(), context / "uv")
            shutil.copytree(cache_folder() / "downloads" / "wheels", context / "wheels")
            (context / "Dockerfile").write_text(UV_DOCKERFILE)
            only = self.folder / "python.yml"
            only.write_text("dependencies: [python=3.11]\n")
            command = [sys.executable, str(INSTALL), str(only), channel().as_uri()]
            timed([*command, str(context / "python"), str(self.packages)])
        (context / "requirements.txt").write_text("\n".join(_requirements(ENVS / spec)))
        return self._pushed(context, "minimal")

    def _sending(self, action: Callable[[], Figure]) -> Figure:
        before = folder_size(self.registry.folder / "data")
        figure = action()
        return replace(figure, sent=folder_size(self.registry.folder / "data") - before)

    def stop(self) -> None:
        """Stop the registry and forget the images."""
        if self.kept is not None:
            self.kept.close()
        self.registry.stop()
        self.engine.docker("image", "prune", "--all", "--force")


def _resolved(resolver: Resolver, spec: str | Path, base: str) -> Figure:
    definition = load(ENVS / spec, base=base)
    started, cpu = time.perf_counter(), time.process_time()
    resolver.resolve(definition)
    return Figure(time.perf_counter() - started, time.process_time() - cpu)


def run(repeats: int) -> None:
    """Print the table of builds."""
    folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
    given = DockerEngine.given()
    engine = given or DockerEngine.in_folder(folder / "engine")
    if given is None:
        engine.start()
    seen: dict[str, tuple[list[Figure], list[Figure], list[Figure]]] = {}
    try:
        for number in range(repeats):
            place = folder / str(number)
            bench = Bench(place, engine, RegistryServer(place / "registry", cached=True), folder / "packages")
            bench.start()
            _round(bench, seen)
            bench.stop()
            shutil.rmtree(place)
    finally:
        if given is None:
            engine.stop()
        shutil.rmtree(folder, ignore_errors=True)
    _print(seen, repeats)


def _round(bench: Bench, seen: dict[str, tuple[list[Figure], list[Figure], list[Figure]]]) -> None:
    def case(name: str, theirs: Figure, ours: Figure, library: Figure | None = None) -> None:
        figures = seen.setdefault(name, ([], [], []))
        figures[0].append(theirs)
        figures[1].append(ours)
        if library is not None:
            figures[2].append(library)

    first, changed, pandas = (f"scientific/{name}.yml" for name in ("environment", "changed", "pandas"))
    bench.theirs("small/environment.yml", "minimal")
    both = bench.ours, bench.library
    theirs, cold = bench.theirs(first, "minimal"), [ours(first, "minimal") for ours in both]
    case("cold", theirs, *cold)
    case("cold, beside uv in Docker", bench.uv(first), *cold)
    other = bench.folder / "variable.yml"
    other.write_text((ENVS / first).read_text() + '  ANOTHER: "1"\n')
    known = bench.ours(other, "minimal", cache="a third machine's"), bench.elsewhere(other, "minimal")
    case("new environment of known layers, new machine", theirs, *known)
    case(
        "identical, index lost",
        bench.theirs(first, "minimal", install=False),
        bench.ours(first, "minimal", cache="another machine's"),
    )
    theirs, small = bench.theirs(changed, "minimal"), [ours(changed, "minimal") for ours in both]
    case("one small package changed", theirs, *small)
    case("one small package changed, beside uv in Docker", bench.uv(changed), *small)
    case("pandas changed", bench.theirs(pandas, "minimal"), *(ours(pandas, "minimal") for ours in both))
    rebased = bench.theirs(pandas, "minimal-rebuilt", install=False)
    case("new base", rebased, *(ours(pandas, "minimal-rebuilt") for ours in both))
    again = bench.theirs(pandas, "minimal-rebuilt", install=False)
    case("identical, index hit", again, *(ours(pandas, "minimal-rebuilt") for ours in both))


def _requirements(spec: Path) -> list[str]:
    """A definition's dependencies as pip reads them."""
    found = [Requirement(_pip(each)) for each in yaml.safe_load(spec.read_text())["dependencies"]]
    return [str(each) for each in found if each.name not in NO_WHEELS]


def _pip(dependency: str) -> str:
    """A match spec of the definitions with pip's operator for versions that are given whole."""
    return re.sub(r"(?<![<>=!~])=(?!=)", "==", dependency)


def _print(seen: dict[str, tuple[list[Figure], list[Figure], list[Figure]]], repeats: int) -> None:
    rows = []
    for name, (theirs, ours, library) in seen.items():
        peer, own, kept = median(theirs), median(ours), median(library) if library else None
        sent = f"{peer.sent / max(own.sent, 1):,.0f}×" if own.sent else "-"
        rows.append(
            [
                name,
                f"{peer.seconds:.2f} s",
                f"{own.seconds:.2f} s",
                f"{peer.seconds / own.seconds:.1f}×",
                f"{kept.seconds:.2f} s" if kept else "-",
                f"{peer.seconds / kept.seconds:.0f}×" if kept else "-",
                f"{peer.sent / 1e6:.2f} MB",
                f"{own.sent / 1e6:.2f} MB",
                sent,
                f"{own.cpu:.2f} s",
            ]
        )
    head = [
        "case",
        "peer (BuildKit + push)",
        "envbuild",
        "ratio",
        "sent",
        "sent by envbuild",
        "ratio",
        "envbuild CPU",
    ]
    table(
        f"Builds (median of {repeats}; envbuild as a fresh process, and as a library with a kept resolver)",
        head,
        rows,
    )
