"""Making a lock: solve a definition once for each of its platforms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envbuild.build.solving import solve_conda, with_known_steps
from envbuild.deadline import Deadline
from envbuild.errors import BuildError
from envbuild.key import CanonicalForm
from envbuild.lockfile import base_text
from envbuild.lockfile.document import LockEntry, LockFile

if TYPE_CHECKING:
    from envbuild.build.bases import Named
    from envbuild.platform import Platform
    from envbuild.resolver import Resolver
    from envbuild.spec.environment import EnvironmentSpec


def make_lock(
    resolver: Resolver, spec: EnvironmentSpec, folder: Path, *, timeout: float | None = None
) -> LockFile:
    """Solve a definition and say what came out.

    Args:
        resolver: Its settings, index and registries are used; nothing is built.
        spec: The definition.
        folder: Where the lock will be; bases that are layouts on disk are named from there.
        timeout: Seconds after which to give up; the configured time if None.

    Raises:
        SpecError: The definition has no base, or one that does not exist.
        SolveError: Nothing satisfies the definition.
        BuildError: The pip section cannot be installed, or depends on steps that were not run yet.
        DeadlineExceeded: The time ran out.
    """
    spec = resolver.load(spec)
    deadline = Deadline.after(resolver.config.timeout if timeout is None else timeout)
    named = resolver.bases.named(spec.require_base(), deadline)
    entries = [_entry(resolver, spec, named, platform, folder, deadline) for platform in spec.platforms]
    source = Path(spec.source)
    return LockFile.of(source.name if source.is_file() else "", entries)


def _entry(
    resolver: Resolver,
    spec: EnvironmentSpec,
    named: Named | None,
    platform: Platform,
    folder: Path,
    deadline: Deadline,
) -> LockEntry:
    digest = resolver.bases.digest(spec.require_base(), platform, deadline, named)
    base = resolver.bases.image(spec.require_base(), platform, deadline, digest)
    form = CanonicalForm.of(spec, digest, platform)
    stepped, steps = with_known_steps(
        spec,
        base,
        platform,
        config=resolver.config,
        registries=resolver.registries,
        progress=resolver.progress,
        deadline=deadline,
    )
    solution = solve_conda(
        spec,
        stepped,
        platform,
        config=resolver.config,
        index=resolver.index,
        deadline=deadline,
        progress=resolver.progress,
    )
    if spec.pip is None:
        return LockEntry.of(base_text(spec, folder), base.digest, form, solution.lock)
    if solution.lock.python is None and steps == "to run":
        raise BuildError(
            "the pip section is for the python of the base, and the steps on it were not run yet",
            hint="resolve it once with --no-lock, then lock it; or add python to the dependencies",
        )
    from envbuild.build.wheel_lock import WheelSolver
    from envbuild.pip.locked import portable

    solver = WheelSolver(resolver.config, resolver.index, resolver.registries, resolver.progress, deadline)
    wheels = solver.solve(spec, spec.pip, stepped, solution).distributions
    locked = portable(wheels, spec.pip, folder)
    return LockEntry.of(base_text(spec, folder), base.digest, form, solution.lock, locked)
