"""What a build would do, found out without writing to any registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from envbuild.build.conflicts import conflicts
from envbuild.build.job import job_form
from envbuild.build.layers import PREFIX, LayersBuilder
from envbuild.build.plan import join, plan
from envbuild.build.solving import with_known_steps
from envbuild.build.upload import in_parallel
from envbuild.lockkey import lock_key

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.build.job import Job
    from envbuild.build.plan import Unit
    from envbuild.build.solving import Steps
    from envbuild.conda.solve import Solution
    from envbuild.index import LayerEntry
    from envbuild.key import Key
    from envbuild.lockkey import Name

Place = Literal["workspace", "elsewhere", "nowhere"]


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A package layer of an image that would be built.

    Attributes:
        title: Its package, or how many packages share it.
        size: The packages' download size in bytes; 0 where it is not known.
        place: Whether it is in the workspace, in another repository, or must be made.
    """

    title: str
    size: int
    place: Place


@dataclass(frozen=True, slots=True)
class Preview:
    """What a build would do.

    Attributes:
        key: The definition's key.
        name: What the image would be published as: the key, or the lock key of what is locked.
        lock_key: The key of its solution, 64 hex digits; None where there is a pip section that is not
            locked, for its wheels are part of it.
        steps: Whether there are Docker steps, and whether their image is known.
        same_solution: Whether the workspace has an image of the same solution: then nothing is made.
        packages: The packages, each as name-version-build.
        wheels: The wheels that a lock holds for the pip section, each as name and version; None where they
            are resolved at the build.
        layers: The layers of Conda's packages, lowest first.
        base_bytes: Bytes of the base's layers that the workspace does not have.
    """

    key: Key
    name: Name
    lock_key: str | None
    steps: Steps
    same_solution: bool
    packages: tuple[str, ...]
    wheels: tuple[str, ...] | None
    layers: tuple[PlannedLayer, ...]
    base_bytes: int

    @property
    def to_make(self) -> tuple[PlannedLayer, ...]:
        """The layers that would be made."""
        return () if self.same_solution else tuple(each for each in self.layers if each.place == "nowhere")


class Previewer(LayersBuilder):
    """The daemonless builder as far as it goes without writing."""

    def preview(self, job: Job) -> Preview:
        """Solve and plan; errors as in :meth:`LayersBuilder.build`.

        The plan is that of the build, except that packages which turn out to carry the same path share a
        layer, and that is known only of layers that were made before. Where Docker steps were not run yet,
        the solve is done for the glibc of the base. Wheels are those of a lock; without one they are resolved
        at the build, for they depend on what Conda's layers hold.
        """
        base, steps = with_known_steps(
            job.spec,
            job.base,
            job.platform,
            config=self.config,
            registries=self.registries,
            progress=self.progress,
            deadline=job.deadline,
        )
        solution = self._solve(job, base)
        wheels = job.locked.pip if job.locked is not None else ()
        solved = None
        if job.spec.pip is None or job.locked is not None:
            solved = lock_key(job_form(job), job.base.digest, solution.lock, wheels)
        target = self.registries.open(self.config.workspace).by(job.deadline)
        missing = in_parallel(
            self.config.jobs,
            lambda layer: 0 if target.has_blob(layer.digest) else layer.size,
            dict.fromkeys(base.manifest.layers),
        )
        return Preview(
            job.key,
            job.name,
            str(solved) if solved is not None else None,
            steps,
            solved is not None and self._same_solution(target, solved, job.deadline) is not None,
            tuple(str(record) for record in solution.lock.packages),
            _wheels(job),
            self._layers(job, base, solution),
            sum(missing),
        )

    def _layers(self, job: Job, base: BaseImage, solution: Solution) -> tuple[PlannedLayer, ...]:
        units, known = self._known(plan(solution.lock, self._budget(job, base)), solution, job)
        places = in_parallel(self.config.jobs, lambda unit: self._place(job, known.get(unit)), units)
        return tuple(
            PlannedLayer(unit.title, unit.size, place) for unit, place in zip(units, places, strict=True)
        )

    def _budget(self, job: Job, base: BaseImage) -> int:
        if job.spec.pip is not None:
            from envbuild.build.wheels import conda_room

            return conda_room(job.spec.pip, base, self.config)
        return max(1, self.config.max_layers - len(base.manifest.layers) - 1)

    def _known(
        self, units: tuple[Unit, ...], solution: Solution, job: Job
    ) -> tuple[tuple[Unit, ...], dict[Unit, LayerEntry]]:
        """The units, joined as far as known layers say that they must be, and what is known of them."""
        from envbuild.build.linking import link_target
        from envbuild.conda.layer import Compression, PathHashes, layer_key

        target = link_target(PREFIX, solution.lock, self.config, solution.urls, pyc=job.spec.pyc)
        compression, shared = Compression.of(self.config.compression), self._shared(job)
        while True:
            keys = {unit: unit.key(lambda record: layer_key(record, target, compression)) for unit in units}
            entries = shared.held(self.index, keys.values())
            known = {unit: entries[key] for unit, key in keys.items() if key in entries}
            together = conflicts({unit: PathHashes(each.files, each.folders) for unit, each in known.items()})
            if not together:
                return units, known
            names = [
                frozenset(record.name for unit in group for record in unit.records) for group in together
            ]
            units = join(units, names)

    def _place(self, job: Job, entry: LayerEntry | None) -> Place:
        if entry is None:
            return "nowhere"
        for repository in dict.fromkeys((self.config.workspace, entry.repository)):
            if self.registries.open(repository).by(job.deadline).has_blob(entry.descriptor.digest):
                return "workspace" if repository == self.config.workspace else "elsewhere"
        return "nowhere"


def _wheels(job: Job) -> tuple[str, ...] | None:
    if job.spec.pip is None:
        return ()
    return None if job.locked is None else tuple(map(str, job.locked.pip))
