"""Wheels of a lock: how a lock names the definition's own files, and a lock's wheels as a solution."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envbuild.errors import SolveError
from envbuild.pip.copies import with_copies
from envbuild.pip.resolve import PipSolution, accepted_tags
from envbuild.pip.sources import Sources
from envbuild.pip.tags import rank

if TYPE_CHECKING:
    from envbuild.deadline import Deadline
    from envbuild.lock import PipDistribution
    from envbuild.pip.installed import Probe
    from envbuild.pip.resolve import PipRequest
    from envbuild.spec.pip import PipSection


def portable(
    wheels: tuple[PipDistribution, ...], section: PipSection, folder: Path
) -> tuple[PipDistribution, ...]:
    """Wheels as a lock in a folder names them: the definition's own files by their path from there.

    Args:
        wheels: The wheels of a solution.
        section: The pip section that they satisfy.
        folder: Where the lock will be.
    """
    own = _own_files(section)

    def url(wheel: PipDistribution) -> str:
        path = own.get(wheel.sha256.hex) if wheel.url.startswith("file:") else None
        return wheel.url if path is None else Path(os.path.relpath(path, folder.absolute())).as_posix()

    return tuple(replace(wheel, url=url(wheel)) for wheel in wheels)


def locked_solution(
    wheels: tuple[PipDistribution, ...],
    request: PipRequest,
    installed: Probe,
    cache_dir: Path,
    deadline: Deadline,
) -> PipSolution:
    """The solution that a lock holds; no index is asked.

    Args:
        wheels: The lock's wheels.
        request: What they were resolved for; its section has the credentials.
        installed: Tells what is installed already of a wheel's name: all of it is replaced.
        cache_dir: Where the definition's own wheels are kept as they were read.
        deadline: When to give up.

    Raises:
        SpecError: A variable for credentials may not be used, or is not set.
        SolveError: A wheel does not fit the base and its python.
    """
    if wheels:
        _check_fit(wheels, request)
    own = _own_files(with_copies(request.section, cache_dir))
    sources = Sources.of(request.section, request.pypi, deadline, request.variables)
    urls = {
        wheel.url: own[wheel.sha256.hex].absolute().as_uri()
        if _is_own(wheel) and wheel.sha256.hex in own
        else sources.fetch_url(wheel.url)
        for wheel in wheels
    }
    replaced = (installed(wheel) for wheel in wheels)
    return PipSolution(wheels, urls, (), tuple(each for each in replaced if each is not None))


def _check_fit(wheels: tuple[PipDistribution, ...], request: PipRequest) -> None:
    """Hold the wheels against the base, whose steps may have given another python than when it was locked."""
    accepted = accepted_tags(request)
    for wheel in wheels:
        if not rank(wheel.file_name, accepted):
            raise SolveError(
                f"{wheel.file_name}, which the lock holds, does not fit python {request.python.version} and "
                f"glibc {request.glibc}",
                hint="write the lock again with `envbuild lock`",
            )


def _is_own(wheel: PipDistribution) -> bool:
    return "://" not in wheel.url


def _own_files(section: PipSection) -> dict[str, Path]:
    """Where the wheels are that were read with the definition, by sha256."""
    named = [each.local for each in section.requirements if each.local is not None]
    found: dict[str, Path] = {}
    for local in (*named, *section.find_links_local):
        for file in local.files:
            path = local.path if local.name else local.path / file.path
            if path.suffix == ".whl" and file.content is not None:
                found.setdefault(file.sha256, path)
    return found
