"""Making a lock: solve a definition once for each of its platforms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envbuild.build.base import glibc_version
from envbuild.deadline import Deadline
from envbuild.errors import BuildError
from envbuild.key import CanonicalForm
from envbuild.lock import Lock
from envbuild.lockfile import base_text
from envbuild.lockfile.document import LockEntry, LockFile
from envbuild.progress import Event

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
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
        BuildError: The definition has a pip section.
        DeadlineExceeded: The time ran out.
    """
    spec = resolver.load(spec)
    if spec.pip is not None:
        raise BuildError(
            "a pip section cannot be locked yet",
            hint="name the packages under conda dependencies, or pin them with == and --hash",
        )
    deadline = Deadline.after(resolver.config.timeout if timeout is None else timeout)
    entries = [_entry(resolver, spec, platform, folder, deadline) for platform in spec.platforms]
    source = Path(spec.source)
    return LockFile.of(source.name if source.is_file() else "", entries)


def _entry(
    resolver: Resolver, spec: EnvironmentSpec, platform: Platform, folder: Path, deadline: Deadline
) -> LockEntry:
    base = resolver.bases.image(spec.require_base(), platform, deadline)
    form = CanonicalForm.of(spec, base.digest, platform)
    lock = _solve(resolver, spec, base, platform, deadline)
    return LockEntry(base_text(spec, folder), form, lock)


def _solve(
    resolver: Resolver, spec: EnvironmentSpec, base: BaseImage, platform: Platform, deadline: Deadline
) -> Lock:
    from envbuild.conda.solve import SolveRequest, VirtualPackages, solve

    if spec.conda is None or not spec.conda.dependencies:
        return Lock.of(platform, ())
    config = resolver.config
    resolver.progress(Event("solve", str(platform), "start", total=len(spec.conda.dependencies)))
    glibc = config.glibc or glibc_version(base, resolver.index.fact, resolver.index.put_fact)
    request = SolveRequest(
        spec.conda,
        platform,
        VirtualPackages(glibc, config.cuda),
        str(spec.channel_priority),
        spec.as_of,
        config.channel_alias,
    )
    lock = solve(request, cache_dir=config.cache_dir, deadline=deadline).lock
    resolver.progress(Event("solve", str(platform), "done", done=len(lock.packages)))
    return lock
