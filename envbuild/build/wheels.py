"""The pip section's layers: above Conda's, or in a virtual environment over the base's python."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import IO, TYPE_CHECKING, Any

from envbuild.build.assemble import prefix_environment
from envbuild.build.base import decompressed, glibc_version
from envbuild.build.compose import Composer
from envbuild.build.plan import plan
from envbuild.conda.fetch import fetch_package
from envbuild.conda.link import footprint, link
from envbuild.conda.order import installation_order
from envbuild.conda.package import Package
from envbuild.conda.tar import parents
from envbuild.digest import CHUNK
from envbuild.lock import Lock, PackageRecord
from envbuild.pip.distribution import WheelTarget, wheel_key
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.installed import (
    CondaDistributions,
    emptied,
    folder_probe,
    nothing,
    paths_of,
    whiteouts,
)
from envbuild.pip.locked import locked_solution
from envbuild.pip.resolve import PipRequest, resolve
from envbuild.pip.source import is_source
from envbuild.pip.venv import find_python
from envbuild.pip.wheel import install
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envbuild.build.assemble import Layer
    from envbuild.build.base import BaseImage
    from envbuild.build.compose import Composition
    from envbuild.build.job import Job
    from envbuild.build.plan import Unit
    from envbuild.conda.layer import PathHashes
    from envbuild.conda.link import LinkedFile, PythonTarget
    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.index import Index, LayerEntry
    from envbuild.lock import PipDistribution
    from envbuild.pip.installed import Installed, Paths, Probe
    from envbuild.pip.resolve import PipSolution
    from envbuild.pip.venv import BasePython
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.pip import PipSection


@dataclass(frozen=True)
class Wheels:
    """What a pip section adds to an environment.

    Attributes:
        solution: The wheels.
        target: Where they are installed.
        conda: Conda's layers, which lie below.
        python: The base's python where Conda installs none.
    """

    solution: PipSolution
    target: WheelTarget
    conda: Composition
    python: BasePython | None

    def identity(self) -> dict[str, Any]:
        """What the lock key is made of: JSON values only."""
        return {
            "wheels": self.solution.identity(),
            "replaced": [each.metadata for each in self.solution.replaced],
            "python": self.python.executable if self.python else None,
        }

    @property
    def count(self) -> int:
        """How many wheels there are."""
        return len(self.solution.distributions)

    def environment(self, base: BaseImage, variables: dict[str, str], *, conda: bool) -> dict[str, str]:
        """The variables of the image: the prefix first on the base's ``PATH``, the user's last."""
        venv = self.python is not None
        return prefix_environment(base, self.target.prefix, variables, conda=conda, venv=venv)

    def compose(self, conda: Composer, budget: int) -> Composition:
        """All layers above the base, lowest first: Conda's, what changes in them, the wheels'.

        Args:
            conda: The composer of Conda's layers.
            budget: The largest number of layers in all.
        """
        between = [*self._replaced(conda), *self._environment(conda)]
        left = max(1, budget - len(self.conda.layers) - len(between))
        records = [_record(each) for each in self.solution.distributions]
        top = self._composer(conda).compose(plan(Lock.of(conda.target.platform, records), left))
        return replace(
            self.conda,
            layers=(*self.conda.layers, *between, *top.layers),
            made=self.conda.made + top.made,
            reused=self.conda.reused + top.reused,
        )

    def archive(self, conda: Composer, lock: Lock, out: IO[bytes]) -> Composition:
        """Write all that is above the base as one layer that nobody keeps; as :meth:`Composer.archive`.

        Args:
            conda: The composer of Conda's layers.
            lock: The packages.
            out: Where it is written to.
        """
        records = installation_order(_record(each) for each in self.solution.distributions)
        with contextlib.ExitStack() as stack:
            installed = self._composer(conda).installed(records, stack)
            own = self.python.files() if self.python is not None else ()
            return conda.archive(lock, out, above=chain(own, installed), removed=self._removed(conda))

    def _composer(self, conda: Composer) -> WheelComposer:
        values = {each.name: getattr(conda, each.name) for each in fields(Composer)}
        values["urls"] = {url: (place,) for url, place in self.solution.urls.items()}
        distributions = {each.name: each for each in self.solution.distributions}
        return WheelComposer(**values, wheels=self.target, distributions=distributions)

    def _environment(self, conda: Composer) -> Iterator[Layer]:
        if self.python is not None:
            yield conda.layer("virtual environment", self.python.files())

    def _replaced(self, conda: Composer) -> Iterator[Layer]:
        if self.solution.replaced:
            yield conda.layer("replaced", whiteouts(self._deleted(conda)))

    def _removed(self, conda: Composer) -> frozenset[str]:
        """The files that wheels replace."""
        found = (_paths(each, record, conda) for each in self.solution.replaced for record in each.records)
        return frozenset(path for each in found for path in each.own)

    def _deleted(self, conda: Composer) -> frozenset[str]:
        """The files that wheels replace, and the folders that hold nothing else."""
        found = [
            (record, _paths(each, record, conda))
            for each in self.solution.replaced
            for record in each.records
        ]
        removed = frozenset(path for _, paths in found for path in paths.own)
        present = {record: paths.present for record, paths in found}
        left: set[str] = set()
        others: list[PathHashes] = []
        for records, hashes in self.conda.contents:
            if present.keys().isdisjoint(records):
                others.append(hashes)
                continue
            for record in records:
                paths = present.get(record) or _present(record, conda)
                left.update(folder for path in paths - removed for folder in parents(path))
        left.update(parents(f"{self.target.python.site_packages}/x"))
        in_others = folder_probe(others)

        def stays(folder: str) -> bool:
            return folder in left or in_others(folder)

        return removed | emptied(removed, stays)


def find_wheels(
    job: Job, section: PipSection, base: BaseImage, conda: Composer, lock: Lock, config: Config
) -> Wheels:
    """Resolve a pip section for a base and the packages that Conda installs, whose layers are made for it.

    Where a lock holds the wheels, they are those of the lock.

    Args:
        job: The job.
        section: Its pip section.
        base: The base with its steps.
        conda: The composer of Conda's layers.
        lock: The packages.
        config: The settings.

    Raises:
        SolveError: Nothing satisfies the section, or an index is in trouble.
        BuildError: The section holds what is no wheel, or there is no python.
    """
    index = conda.index
    composed = conda.compose(plan(lock, conda_room(section, base, config)))
    target, python = wheel_target(conda.target.prefix, conda.target.python, base, index)
    installed: Probe = nothing
    if conda.target.python is not None:
        installed = CondaDistributions.of(composed.contents, conda.target.python).find
    request = pip_request(job.spec, section, job.platform, target, base, config, index)
    if job.locked is not None:
        solution = locked_solution(job.locked.pip, request, installed, config.cache_dir, job.deadline)
    else:
        request = with_built(request, conda, lambda: composed, base, lock, python, config)
        solution = resolve_wheels(request, installed, config, job.deadline, conda.progress)
    return Wheels(solution, target, composed, python)


def with_built(
    request: PipRequest,
    composer: Composer,
    conda: Callable[[], Composition],
    base: BaseImage,
    lock: Lock,
    python: BasePython | None,
    config: Config,
) -> PipRequest:
    """The request with wheels in place of projects and source archives, which an engine builds.

    Args:
        request: The request.
        composer: The composer of Conda's layers.
        conda: Gives Conda's layers.
        base: The base with its steps.
        lock: The packages.
        python: The base's python where Conda installs none.
        config: The settings.

    Raises:
        BuildError: There is no engine, or a build failed.
        SolveError: What a build asks for is not there.
    """
    if not any(is_source(each) for each in request.section.requirements):
        return request
    from envbuild.build.sources import SourceBuilder

    path = python.executable if python is not None else f"{composer.target.prefix}/bin/python"
    return replace(request, section=SourceBuilder(config, composer, base, conda, lock, path, request).built())


def conda_room(section: PipSection, base: BaseImage, config: Config) -> int:
    """How many layers Conda may have: the section's wheels are given room for about as many as it brings."""
    room = config.max_layers - len(base.manifest.layers) - 2
    return max(1, room - min(room // 2, 10 + 2 * len(section.requirements)))


def wheel_target(
    prefix: str, python: PythonTarget | None, base: BaseImage, index: Index
) -> tuple[WheelTarget, BasePython | None]:
    """Where wheels are installed, and the base's python where Conda installs none.

    Args:
        prefix: The prefix in the image.
        python: Conda's python, or None.
        base: The base with its steps.
        index: Remembers which pythons a base has.

    Raises:
        BuildError: There is no python.
    """
    if python is not None:
        return WheelTarget(prefix, python), None
    variables = dict(entry.split("=", 1) for entry in base.config.get("config", {}).get("Env") or [])
    layers = [_BaseLayer(base, layer) for layer in base.manifest.layers]
    found = find_python(layers, variables, index.fact, index.put_fact)
    return found.target(prefix), found


def pip_request(
    spec: EnvironmentSpec,
    section: PipSection,
    platform: Platform,
    target: WheelTarget,
    base: BaseImage,
    config: Config,
    index: Index,
) -> PipRequest:
    """What to resolve for a definition's pip section on a base with its steps."""
    glibc = config.glibc or glibc_version(base, index.fact, index.put_fact)
    return PipRequest(section, platform, target.python, glibc, spec.as_of)


def resolve_wheels(
    request: PipRequest, installed: Probe, config: Config, deadline: Deadline, progress: Progress
) -> PipSolution:
    """Resolve a pip section and tell of it; errors as :func:`envbuild.pip.resolve.resolve`."""
    progress(Event("solve", "pip", "start", total=len(request.section.requirements)))
    solution = resolve(request, cache_dir=config.cache_dir, deadline=deadline, installed=installed)
    progress(Event("solve", "pip", "done", done=len(solution.distributions)))
    return solution


@dataclass(frozen=True, kw_only=True)
class WheelComposer(Composer):
    """Makes wheels' layers.

    Attributes:
        wheels: Where wheels are installed.
        distributions: The wheel of each record's name.
    """

    wheels: WheelTarget
    distributions: dict[str, PipDistribution]

    def _key(self, unit: Unit) -> str:
        return unit.key(
            lambda record: wheel_key(self.distributions[record.name], self.wheels, self.compression)
        )

    def _make(self, unit: Unit) -> LayerEntry:
        self.progress(Event("layer", unit.title, "start", 0, unit.size))
        with contextlib.ExitStack() as stack:
            entry = self._write(unit.title, self.installed(unit.records, stack))
        self.progress(Event("layer", unit.title, "done", entry.descriptor.size, unit.size))
        return entry

    def installed(
        self, records: Iterable[PackageRecord], stack: contextlib.ExitStack
    ) -> Iterator[LinkedFile]:
        """The files of some wheels, which are fetched at once; of two with one path the later one's stays.

        Args:
            records: The wheels' records, in order.
            stack: Closes the wheels.
        """
        links = []
        for record in records:
            wheel = self.distributions[record.name]
            source = fetch_wheel(
                wheel, url=next(iter(self.urls.get(wheel.url, ())), None), deadline=self.deadline
            )
            links.append(install(stack.enter_context(source), wheel, self.wheels))
        return _merged(links)


def _record(wheel: PipDistribution) -> PackageRecord:
    """A wheel in the form in which layers are planned."""
    return PackageRecord(wheel.name, wheel.version, "wheel", 0, "pypi", wheel.url, wheel.sha256, wheel.size)


def _merged(links: list[Iterator[LinkedFile]]) -> Iterator[LinkedFile]:
    """The files of several wheels; of two with one path the later wheel's stays."""
    files: set[str] = set()
    folders: set[str] = set()
    for linked in reversed(links):
        mine: set[str] = set()
        for file in linked:
            above = tuple(parents(file.path))
            if file.path in files or file.path in folders or not files.isdisjoint(above):
                continue
            mine.add(file.path)
            folders.update(above)
            yield file
        files |= mine


@dataclass(frozen=True)
class _BaseLayer:
    base: BaseImage
    descriptor: Descriptor

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    def chunks(self) -> Iterator[bytes]:
        with self.base.open_layer(self.descriptor) as stream:
            yield from decompressed(stream, self.descriptor.media_type)
            while stream.read(CHUNK):
                pass


def _paths(installed: Installed, record: PackageRecord, conda: Composer) -> Paths:
    """The paths of a distribution that a Conda package installs; the package is fetched."""
    urls = conda.urls.get(record.url, ())
    with fetch_package(record, urls=urls, deadline=conda.deadline) as source:
        return paths_of(link(Package.open(source, str(record)), record, conda.target), installed)


def _present(record: PackageRecord, conda: Composer) -> frozenset[str]:
    """The paths of a Conda package, and of what is in the folders that it lists; it is fetched."""
    urls = conda.urls.get(record.url, ())
    with fetch_package(record, urls=urls, deadline=conda.deadline) as source:
        found = footprint(Package.open(source, str(record)), record, conda.target)
    return found.files | {f"{folder}/" for folder in found.folders}
