"""Resolving a pip section without Conda's layers: nothing is built for it, and no repository is written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

from envbuild.admission import Admission
from envbuild.build.compose import Composition
from envbuild.build.known import SharedLayers
from envbuild.build.layers import PREFIX
from envbuild.build.linking import link_target
from envbuild.build.plan import plan
from envbuild.build.upload import in_parallel
from envbuild.build.wheels import (
    Wheels,
    conda_room,
    pip_request,
    resolve_wheels,
    wheel_target,
    with_built,
)
from envbuild.conda.fetch import fetch_package
from envbuild.conda.layer import Compression, PathHashes, layer_key
from envbuild.conda.link import PythonTarget, footprint
from envbuild.conda.package import Package
from envbuild.pip.installed import CondaDistributions, nothing
from envbuild.pip.locked import locked_solution
from envbuild.pip.resolve import refuse_what_is_no_wheel
from envbuild.storage import private_folder

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.build.compose import Composer
    from envbuild.conda.link import LinkTarget
    from envbuild.conda.solve import Solution
    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.index import Index
    from envbuild.lock import PackageRecord, PipDistribution
    from envbuild.oci.registries import Registries
    from envbuild.pip.installed import Installed, Probe
    from envbuild.pip.resolve import PipSolution
    from envbuild.progress import Progress
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.pip import PipSection

_NEEDS_PYTHON: Final = re.compile(r"(?:.*::)?python(?:_abi)?(?![\w.-])")
_METADATA: Final = (".dist-info/METADATA", ".egg-info/PKG-INFO", ".egg-info")


@dataclass(frozen=True)
class WheelSolver:
    """Resolves pip sections as a build does.

    Attributes:
        config: The settings.
        index: Knows layers and facts.
        registries: Where layers may be known, too.
        progress: Told what is going on.
        deadline: When to give up.
    """

    config: Config
    index: Index
    registries: Registries
    progress: Progress
    deadline: Deadline

    def solve(
        self, spec: EnvironmentSpec, section: PipSection, base: BaseImage, conda: Solution
    ) -> PipSolution:
        """Find the wheels.

        Args:
            spec: The definition.
            section: Its pip section.
            base: The base with its steps.
            conda: The packages that Conda installs.

        Raises:
            SolveError: Nothing satisfies the section, or an index is in trouble.
            BuildError: The section holds what is no wheel, there is no python, or a package cannot be read.
        """
        refuse_what_is_no_wheel(section)
        return self.wheels(spec, section, base, conda).solution

    def wheels(
        self,
        spec: EnvironmentSpec,
        section: PipSection,
        base: BaseImage,
        conda: Solution,
        locked: tuple[PipDistribution, ...] | None = None,
        composer: Composer | None = None,
    ) -> Wheels:
        """Find the wheels and where they go; arguments and errors as :meth:`solve`.

        Args:
            spec: The definition.
            section: Its pip section.
            base: The base with its steps.
            conda: The packages that Conda installs.
            locked: The wheels of a lock, which are taken instead of a solution.
            composer: Makes Conda's layers where wheels must be built from source; None refuses those.
        """
        platform, record = conda.lock.platform, conda.lock.python
        python = PythonTarget.of(record) if record is not None else None
        target, own = wheel_target(PREFIX, python, base, self.index, self.deadline)
        installed: Probe = nothing
        if python is not None:
            linked = link_target(PREFIX, conda.lock, self.config, conda.urls, self.deadline, pyc=spec.pyc)
            installed = _Packages(self, conda, linked, python).find
        request = pip_request(spec, section, platform, target, base, self.index, self.config, self.deadline)
        if locked is not None:
            solution = locked_solution(locked, request, installed, self.config.cache_dir, self.deadline)
        else:
            if composer is not None:
                units = plan(conda.lock, conda_room(section, base, self.config))
                composed = partial(composer.compose, units)
                request = with_built(request, composer, composed, base, conda.lock, own, self.config)
            solution = resolve_wheels(request, installed, self.config, self.deadline, self.progress)
        return Wheels(solution, target, Composition((), 0, 0), own)


@dataclass(frozen=True)
class _Packages:
    """Answers what Conda's packages will install.

    Their layers answer where they are known. Else a package is fetched for its list of paths, and what counts
    of the list is kept in mind. Only packages that need python are asked.
    """

    solver: WheelSolver
    conda: Solution
    target: LinkTarget
    python: PythonTarget

    def find(self, wheel: PipDistribution) -> Installed | None:
        """What will be installed of a wheel's name, if anything."""
        return self._distributions.find(wheel)

    @cached_property
    def _distributions(self) -> CondaDistributions:
        config = self.solver.config
        compression = Compression.of(config.compression)
        records = [record for record in self.conda.lock.packages if _needs_python(record)]
        keys = {record: layer_key(record, self.target, compression) for record in records}
        known = self._known(list(keys.values()))

        def hashes(record: PackageRecord) -> PathHashes:
            found = known.get(keys[record])
            return self._metadata(record, keys[record]) if found is None else found

        contents = in_parallel(config.jobs, hashes, records)
        layers = [((record,), found) for record, found in zip(records, contents, strict=True)]
        return CondaDistributions.of(layers, self.python)

    def _known(self, keys: list[str]) -> dict[str, PathHashes]:
        solver, config = self.solver, self.solver.config
        shared = SharedLayers(
            solver.registries,
            Admission(config, solver.progress, solver.index),
            config.workspace,
            config.global_,
            config.jobs,
            solver.deadline,
            solver.progress,
        )
        found = shared.held(solver.index, keys)
        missing = [key for key in keys if key not in found and solver.index.fact(_fact(key)) is None]
        if missing:
            taken = shared.find(missing)
            solver.index.put_layers(taken)
            found |= taken
        return {key: PathHashes(entry.files, entry.folders) for key, entry in found.items()}

    def _metadata(self, record: PackageRecord, key: str) -> PathHashes:
        index = self.solver.index
        known = index.fact(_fact(key))
        if known is None:
            known = json.dumps(self._read(record))
            index.put_fact(_fact(key), known)
        return PathHashes.of(json.loads(known), ())

    def _read(self, record: PackageRecord) -> list[str]:
        """The paths by which the distributions of a package are found; it is fetched."""
        solver = self.solver
        spool = private_folder(solver.config.cache_dir / "spool")
        urls = self.conda.urls.get(record.url, ())
        with fetch_package(record, urls=urls, deadline=solver.deadline, folder=spool) as source:
            package = Package.open(source, str(record), solver.deadline)
            files = footprint(package, record, self.target).files
        site = f"{self.python.site_packages}/"
        return sorted(path for path in files if path.startswith(site) and path.endswith(_METADATA))


def _fact(key: str) -> str:
    return f"metadata {key}"


def _needs_python(record: PackageRecord) -> bool:
    return record.may_be_python or any(_NEEDS_PYTHON.match(each) for each in record.depends)
