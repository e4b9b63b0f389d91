"""The pip section's layers: above Conda's, or in a virtual environment over the base's python."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import IO, TYPE_CHECKING

from envbuild.build.assemble import prefix_environment
from envbuild.build.base import decompressed, finish
from envbuild.build.compose import Composer, Entangled, takes_folder
from envbuild.build.plan import plan
from envbuild.build.seen import Seen
from envbuild.build.solving import glibc_for
from envbuild.conda.clobber import Clobber
from envbuild.conda.fetch import fetch_package
from envbuild.conda.layer import hash_of, split_hashes
from envbuild.conda.link import footprint, link
from envbuild.conda.order import installation_order
from envbuild.conda.package import Package
from envbuild.conda.tar import parents
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
        deleted = self._deleted(conda) if self.solution.replaced else frozenset[str]()
        between = [*_replaced(conda, deleted), *self._environment(conda)]
        left = max(1, budget - len(self.conda.layers) - len(between))
        records = [_record(each) for each in self.solution.distributions]
        composer = self._composer(conda)
        top = composer.compose(plan(Lock.of(conda.target.platform, records), left))
        composer.check_overlaps(top, self.conda, deleted)
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
            installed = self._composer(conda).installed(records, stack, Seen())
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
    target, python = wheel_target(conda.target.prefix, conda.target.python, base, index, job.deadline)
    installed: Probe = nothing
    if conda.target.python is not None:
        installed = CondaDistributions.of(composed.contents, conda.target.python).find
    request = pip_request(job.spec, section, job.platform, target, base, index, config, job.deadline)
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
    prefix: str, python: PythonTarget | None, base: BaseImage, index: Index, deadline: Deadline
) -> tuple[WheelTarget, BasePython | None]:
    """Where wheels are installed, and the base's python where Conda installs none.

    Args:
        prefix: The prefix in the image.
        python: Conda's python, or None.
        base: The base with its steps.
        index: Remembers which pythons a base has.
        deadline: When to give up.

    Raises:
        BuildError: There is no python.
    """
    if python is not None:
        return WheelTarget(prefix, python), None
    variables = dict(entry.split("=", 1) for entry in base.config.get("config", {}).get("Env") or [])
    layers = [_BaseLayer(base, layer, deadline) for layer in base.manifest.layers]
    found = find_python(layers, variables, index.fact, index.put_fact)
    return found.target(prefix), found


def pip_request(
    spec: EnvironmentSpec,
    section: PipSection,
    platform: Platform,
    target: WheelTarget,
    base: BaseImage,
    index: Index,
    config: Config,
    deadline: Deadline,
) -> PipRequest:
    """What to resolve for a definition's pip section on a base with its steps."""
    glibc = glibc_for(spec, base, index, deadline)
    return PipRequest(section, platform, target.python, glibc, spec.as_of, variables=config.login_variables)


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
    _paths: dict[bytes, str] = field(default_factory=dict, compare=False)
    """The paths of the layers that were made, by their hashes."""

    def _key(self, unit: Unit) -> str:
        return unit.key(
            lambda record: wheel_key(self.distributions[record.name], self.wheels, self.compression)
        )

    def _make(self, unit: Unit) -> LayerEntry:
        self.progress(Event("layer", unit.title, "start", 0, unit.size))
        seen = Seen()
        with contextlib.ExitStack() as stack:
            entry = self._write(unit.title, self._linked_wheels(unit, stack, seen))
        entry = replace(entry, clobbers=seen.clobbers_text)
        self.progress(Event("layer", unit.title, "done", entry.descriptor.size, unit.size))
        return entry

    def _linked_wheels(self, unit: Unit, stack: contextlib.ExitStack, seen: Seen) -> Iterator[LinkedFile]:
        """The files of a unit's wheels.

        Raises:
            Entangled: Two of them carry one path, and the unit's order does not say whose stays.
        """
        for file in self.installed(unit.records, stack, seen):
            self._paths[hash_of(file.path)] = file.path
            yield file
        if seen.clobbers and not unit.joined:
            raise Entangled(unit)

    def check_overlaps(self, top: Composition, conda: Composition, deleted: frozenset[str]) -> None:
        """Tell which wheels write over files of Conda's packages.

        Args:
            top: The wheels' layers.
            conda: Conda's layers.
            deleted: Paths of Conda's packages that are taken away before.

        Raises:
            BuildError: A wheel has a file where a package has a folder, which would go with all in it.
        """
        gone = frozenset(map(hash_of, deleted))
        for records, own in top.contents:
            wheels = [self.distributions[record.name].file_name for record in records]
            mine = frozenset(split_hashes(own.files)) - gone
            for packages, theirs in conda.contents:
                if taken := mine.intersection(split_hashes(theirs.folders)):
                    path = min(self._paths.get(each, "") for each in taken)
                    raise takes_folder(_one_of(wheels), path, _one_of([*map(str, packages)]))
                if common := mine.intersection(split_hashes(theirs.files)):
                    known = sorted(self._paths[each] for each in common if each in self._paths)
                    path = known[0] if known else "a path"
                    found = Clobber(_one_of([*map(str, packages)]), _one_of(wheels), path, len(common))
                    self.tell_clobbers([found])

    def installed(
        self, records: Iterable[PackageRecord], stack: contextlib.ExitStack, seen: Seen
    ) -> Iterator[LinkedFile]:
        """The files of some wheels, which are fetched at once; of two with one path the later one's stays.

        Args:
            records: The wheels' records, in order.
            stack: Closes the wheels.
            seen: Told of such paths, once all files were read.
        """
        links = []
        for record in records:
            wheel = self.distributions[record.name]
            source = fetch_wheel(
                wheel, url=next(iter(self.urls.get(wheel.url, ())), None), deadline=self.deadline
            )
            links.append(install(stack.enter_context(source), wheel, self.wheels))
        return _merged(links, seen)


def _record(wheel: PipDistribution) -> PackageRecord:
    """A wheel in the form in which layers are planned."""
    return PackageRecord(wheel.name, wheel.version, "wheel", 0, "pypi", wheel.url, wheel.sha256, wheel.size)


def _one_of(names: list[str]) -> str:
    """Who brings a path of a layer that several may share."""
    return names[0] if len(names) == 1 else f"one of {len(names)} ({names[0]} and others)"


def _replaced(conda: Composer, deleted: frozenset[str]) -> Iterator[Layer]:
    if deleted:
        yield conda.layer("replaced", whiteouts(deleted))


def _merged(links: list[Iterator[LinkedFile]], seen: Seen) -> Iterator[LinkedFile]:
    """The files of several wheels; of two with one path the later wheel's stays."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    found: dict[tuple[str, str], list[str]] = {}
    for linked in reversed(links):
        mine: dict[str, str] = {}
        for file in linked:
            above = tuple(parents(file.path))
            taken = (files.get(file.path), folders.get(file.path), *(files.get(folder) for folder in above))
            winner = next((owner for owner in taken if owner is not None), None)
            if winner is not None:
                if winner != file.owner:
                    found.setdefault((file.owner, winner), []).append(file.path)
                continue
            mine[file.path] = file.owner
            folders |= dict.fromkeys(above, file.owner)
            yield file
        files |= mine
    seen.clobbers = [Clobber(*pair, min(paths), len(paths)) for pair, paths in sorted(found.items())]


@dataclass(frozen=True)
class _BaseLayer:
    base: BaseImage
    descriptor: Descriptor
    deadline: Deadline

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    def chunks(self) -> Iterator[bytes]:
        with self.base.open_layer(self.descriptor) as stream:
            yield from decompressed(stream, self.descriptor.media_type, self.deadline)
            finish(stream, self.deadline)


def _paths(installed: Installed, record: PackageRecord, conda: Composer) -> Paths:
    """The paths of a distribution that a Conda package installs; the package is fetched."""
    urls = conda.urls.get(record.url, ())
    with fetch_package(record, urls=urls, deadline=conda.deadline) as source:
        return paths_of(
            link(Package.open(source, str(record), conda.deadline), record, conda.target), installed
        )


def _present(record: PackageRecord, conda: Composer) -> frozenset[str]:
    """The paths of a Conda package, and of what is in the folders that it lists; it is fetched."""
    urls = conda.urls.get(record.url, ())
    with fetch_package(record, urls=urls, deadline=conda.deadline) as source:
        found = footprint(Package.open(source, str(record), conda.deadline), record, conda.target)
    return found.files | {f"{folder}/" for folder in found.folders}
