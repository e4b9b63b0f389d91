"""Solving a definition's Conda section for its base: one way for builds, previews and locks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from envbuild.build.base import glibc_version
from envbuild.key import steps_key
from envbuild.lock import Lock
from envbuild.progress import Event

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.conda.origins import Origins
    from envbuild.conda.solve import Solution
    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.index import Index
    from envbuild.oci.registries import Registries
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.spec.environment import EnvironmentSpec

Steps = Literal["none", "known", "to run"]


def with_known_steps(
    spec: EnvironmentSpec,
    base: BaseImage,
    platform: Platform,
    *,
    config: Config,
    registries: Registries,
    progress: Progress,
    deadline: Deadline,
) -> tuple[BaseImage, Steps]:
    """The base with the definition's steps, if that image is known; else the base. Nothing is run.

    Args:
        spec: The definition.
        base: Its base.
        platform: The platform.
        config: Names the repositories in which the image is looked for.
        registries: Opens them.
        progress: Told of an image that is not used.
        deadline: When to give up.

    Raises:
        RegistryError: A repository could not be asked.
    """
    if spec.steps is None or not spec.steps.instructions:
        return base, "none"
    from envbuild.build.steps import known_steps

    name = steps_key(base.digest, spec.steps, platform, offline=spec.offline)
    found = known_steps(name, platform, config, registries, progress, deadline)
    if found is not None:
        return found, "known"
    return base, "to run"


def glibc_for(spec: EnvironmentSpec, base: BaseImage, index: Index, deadline: Deadline) -> str | None:
    """The glibc that packages are chosen for: what the definition says, else the base's own."""
    return spec.virtual_packages.glibc or glibc_version(base, index.fact, index.put_fact, deadline)


def solve_conda(
    spec: EnvironmentSpec,
    base: BaseImage,
    platform: Platform,
    *,
    config: Config,
    index: Index,
    deadline: Deadline,
    progress: Progress,
) -> Solution:
    """Solve a definition's Conda section for what its base offers.

    Args:
        spec: The definition.
        base: The base with its steps.
        platform: The platform.
        config: The settings.
        index: Remembers which glibc a base has.
        deadline: When to give up.
        progress: Told of the solve.

    Raises:
        SolveError: Nothing satisfies the section.
        ChannelError: A channel cannot be read, or (``retryable``) is in trouble.
        SpecError: A variable of a channel's URL may not be used or is not set.
        DeadlineExceeded: The time ran out.
    """
    from envbuild.conda.solve import Solution, SolveRequest, solve

    if spec.conda is None or not spec.conda.dependencies:
        return Solution(Lock.of(platform, ()), {})
    subject = str(platform)
    progress(Event("solve", subject, "start", total=len(spec.conda.dependencies)))
    request = SolveRequest(
        spec.conda,
        platform,
        replace(spec.virtual_packages, glibc=glibc_for(spec, base, index, deadline)),
        str(spec.channel_priority),
        spec.as_of,
        config.channels,
        config.login_variables,
    )
    solution = solve(request, cache_dir=config.cache_dir, deadline=deadline)
    progress(Event("solve", subject, "done", done=len(solution.lock.packages)))
    return solution


def origins(spec: EnvironmentSpec, config: Config) -> Origins:
    """Where the Conda packages of a definition are fetched from, also those of a lock.

    Raises:
        SpecError: A variable of a channel's URL may not be used or is not set.
    """
    from envbuild.conda.origins import Origins, channel_urls

    return Origins.of(channel_urls(spec.conda), config.channels, config.login_variables)
