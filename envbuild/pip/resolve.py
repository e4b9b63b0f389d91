"""Resolving a pip section to wheels for a base and a python that are not this machine's."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild.errors import BuildError, IntegrityError, SolveError
from envbuild.pip.choose import Chooser
from envbuild.pip.copies import source_archives, with_copies
from envbuild.pip.installed import nothing, stub
from envbuild.pip.source import applies
from envbuild.pip.sources import Sources
from envbuild.pip.tags import MACHINES, ranks
from envbuild.pip.uv import Compilation

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

    from packaging.tags import Tag

    from envbuild.conda.link import PythonTarget
    from envbuild.deadline import Deadline
    from envbuild.lock import PipDistribution
    from envbuild.pip.installed import Installed, Probe
    from envbuild.platform import Platform
    from envbuild.spec.pip import PipSection
    from envbuild.spec.requirement import PipRequirement

PYPI: Final = "https://pypi.org/simple"
_MANYLINUX: Final = (40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 28, 17)
"""The minor versions of glibc that uv resolves for."""

_VCS: Final = re.compile(r"(?:git|hg|svn|bzr)\+", re.IGNORECASE)
_ROUNDS: Final = 6


@dataclass(frozen=True)
class PipRequest:
    """What to resolve, apart from where.

    Attributes:
        section: The pip section.
        platform: The image's platform.
        python: The python that will import the wheels.
        glibc: The base's glibc version as ``2.36``, or None where it has none.
        as_of: Files that were uploaded later are not there, or None.
        pypi: Where the Python Package Index is.
        variables: For the names of variables that may stand for credentials in URLs the servers that these
            are for.
    """

    section: PipSection
    platform: Platform
    python: PythonTarget
    glibc: str | None
    as_of: dt.datetime | None = None
    pypi: str = PYPI
    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class PipSolution:
    """The wheels of a pip section, and what they do to what is installed already.

    Attributes:
        distributions: The wheels to install, sorted by name.
        urls: For each wheel's URL the URL to fetch it from, which may hold credentials.
        kept: What is installed already and satisfies the section.
        replaced: What is installed already in another version than the section needs.
    """

    distributions: tuple[PipDistribution, ...]
    urls: dict[str, str]
    kept: tuple[Installed, ...] = ()
    replaced: tuple[Installed, ...] = ()

    def __repr__(self) -> str:
        return f"PipSolution({len(self.distributions)} wheels)"

    def identity(self) -> list[dict[str, Any]]:
        """What keys are made of: JSON values only."""
        return [distribution.identity for distribution in self.distributions]


def resolve(
    request: PipRequest, *, cache_dir: Path, deadline: Deadline, installed: Probe = nothing
) -> PipSolution:
    """Find the wheels that satisfy a pip section.

    What is installed already stays where it satisfies the section, as with pip: its version is preferred.

    Args:
        request: What to resolve.
        cache_dir: Where uv's cache is kept between calls.
        deadline: When to give up.
        installed: Tells what is installed already of a wheel's name.

    Raises:
        SolveError: Nothing satisfies the section, with uv's reasons; or an index cannot be read (then
            ``retryable``).
        BuildError: The section holds something that is no wheel.
        DeadlineExceeded: The time ran out.
    """
    refuse_what_is_no_wheel(request.section)
    others = source_archives(request.section)
    request = replace(request, section=with_copies(request.section, cache_dir))
    sources = Sources.of(request.section, request.pypi, deadline, request.variables)
    resolution = _Resolution(request, sources, others, cache_dir, deadline)
    resolution.check_logins()
    found = resolution.run({}, {})
    known: dict[str, Installed] = {}
    for _ in range(_ROUNDS):
        new = {each.name: there for each in found if each.name not in known and (there := installed(each))}
        if not new:
            break
        known |= new
        found = resolution.settle(known)
    return _solution(found, known, sources)


@dataclass(frozen=True)
class _Resolution:
    """The runs of one resolution."""

    request: PipRequest
    sources: Sources
    others: list[str]
    cache_dir: Path
    deadline: Deadline

    def settle(self, known: dict[str, Installed]) -> list[PipDistribution]:
        """The wheels, if what is installed stays wherever it can.

        An index may lack the installed version, or have no wheel of it: then a stand-in without requirements
        is offered, for what is installed needs nothing more.
        """
        versions = {name: each.normal for name, each in known.items() if each.normal is not None}
        found = self.run(versions, {})
        with_extras = {each.name for each in self.request.section.requirements if each.extras}
        moved = {
            each.name: known[each.name]
            for each in found
            if each.name in known and not known[each.name].is_version(each.version)
        }
        stubs = {name: each for name, each in moved.items() if name in versions and name not in with_extras}
        return self.run(versions, stubs) if stubs else found

    def run(self, preferences: dict[str, str], stubs: dict[str, Installed]) -> list[PipDistribution]:
        """The wheels of one run."""
        request, sources = self.request, self.sources
        accepted = accepted_tags(request)
        machine = MACHINES[request.platform.architecture]
        options = [
            "--python-version", _plain_version(request.python.version),
            "--python-platform", f"{machine}-manylinux_2_{_manylinux(request)}",
            *sources.options(),
        ]  # fmt: skip
        if request.as_of is not None:
            options += ["--exclude-newer", request.as_of.strftime("%Y-%m-%dT%H:%M:%SZ")]
        asked = {each.name for each in request.section.requirements if applies(each, request.python, machine)}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for each in stubs.values():
                stub(each, folder)
            for other in self.others:  # uv looks at the names alone, and says that no wheel is there
                (folder / other).touch()
            offered = folder if stubs or self.others else None
            wanted = sources.places(0, offered) + sources.requirements()
            compilation = Compilation(
                wanted, sources.constraints(), tuple(options), preferences, sources.are_merged
            )
            packages = compilation.run(self.cache_dir, self.deadline)
            if sources.are_merged:
                self._add_equal_versions(packages, compilation)
            chooser = Chooser.of(request.section, frozenset(asked), accepted, folder, sources.found)
            return sorted(chooser.choose(package) for package in packages)

    def _add_equal_versions(self, packages: list[dict[str, Any]], compilation: Compilation) -> None:
        """Add the files that further indexes have of the versions that were found.

        uv lists those of one index; pip takes the best of all.
        """
        listed = [each for each in packages if any("url" in wheel for wheel in each.get("wheels", ()))]
        found = {each["name"]: each for each in listed}
        pinned = "".join(f"{name}=={each['version']}\n" for name, each in found.items())
        for turn in range(1, len(self.sources.indexes)) if found else ():
            again = self._alone(compilation, self.sources.places(turn, None) + pinned)
            for package in again.run(self.cache_dir, self.deadline):
                mine = found[package["name"]]
                if package.get("version") == mine["version"]:
                    known = {each["url"] for each in mine["wheels"] if "url" in each}
                    mine["wheels"] += [each for each in package["wheels"] if each.get("url") not in known]

    def check_logins(self) -> None:
        """Ask each of several indexes for something, to see that it takes the login."""
        section = self.request.section
        name = next((each.name for each in section.requirements if each.name and not each.url), None)
        if name is None or not self.sources.are_merged:
            return
        empty = Compilation("", "", tuple(self.sources.options()), {})
        for index in self.sources.indexes:
            asked = self._alone(empty, f"--index-url {index}\n{name}\n")
            asked.check_login(self.cache_dir, self.deadline)

    def _alone(self, compilation: Compilation, requirements: str) -> Compilation:
        """A question about versions apart from what they require."""
        options = (*compilation.options, "--no-deps")
        return replace(
            compilation, requirements=requirements, constraints="", options=options, preferences={}
        )


def _solution(found: list[PipDistribution], known: dict[str, Installed], sources: Sources) -> PipSolution:
    kept = {each.name for each in found if each.name in known and known[each.name].is_version(each.version)}
    new = tuple(each for each in found if each.name not in kept)
    return PipSolution(
        new,
        {each.url: sources.fetch_url(each.url) for each in new},
        tuple(known[name] for name in sorted(kept)),
        tuple(known[each.name] for each in new if each.name in known),
    )


def refuse_what_is_no_wheel(section: PipSection) -> None:
    """Refuse requirements that only running their own code could install.

    Raises:
        BuildError: There is one.
    """
    for each in section.requirements:
        if (what := _no_wheel(each)) is not None:
            name = each.name or each.url or (each.local.path.name if each.local else "a requirement")
            raise BuildError(
                f"{each.mark.source}:{each.mark.line}: {name} is {what}, expected a wheel: to install it, "
                "its own code would have to run",
                hint="install it in a Docker step, or build a wheel of it and name that",
            )
    if section.no_binary:
        raise BuildError(
            f"--no-binary {','.join(section.no_binary)} asks for source distributions, expected wheels",
            hint="take it out, or install those in a Docker step",
        )


def _no_wheel(requirement: PipRequirement) -> str | None:
    if requirement.editable:
        return "an editable project"
    if requirement.url is not None:
        if _VCS.match(requirement.url):
            return "in a version control system"
        path = re.split(r"[?#]", requirement.url, maxsplit=1)[0]
        return None if path.endswith(".whl") else "a source archive"
    if requirement.local is not None:
        if not requirement.local.name:
            return "a project's folder"
        return None if requirement.local.name.endswith(".whl") else "a source archive"
    return None


def accepted_tags(request: PipRequest) -> Mapping[Tag, int]:
    """The tags of wheels that fit a base and its python, ranked; errors as :func:`resolve`."""
    glibc = _manylinux(request)
    return ranks(_short(request.python), MACHINES[request.platform.architecture], glibc)


def _manylinux(request: PipRequest) -> int:
    """The newest glibc that uv knows and the base has."""
    if request.platform.architecture not in MACHINES:
        raise SolveError(
            f"wheels for {request.platform} cannot be resolved", hint=f"use one of {', '.join(MACHINES)}"
        )
    if request.glibc is None:
        raise SolveError(
            "the base has no glibc, which wheels for Linux need",
            hint="choose a base with glibc, such as Debian's, or say which it has with --glibc",
        )
    major, _, minor = request.glibc.partition(".")
    fitting = [each for each in _MANYLINUX if major == "2" and each <= int(minor)]
    if not fitting:
        raise SolveError(
            f"the base has glibc {request.glibc}, wheels need 2.17 or newer", hint="choose a newer base"
        )
    return fitting[0]


def _plain_version(version: str) -> str:
    """``3.11.4`` of ``3.11.4``, ``3.13.0`` of ``3.13.0rc1``."""
    found = re.match(r"\d+\.\d+(?:\.\d+)?", version)
    if found is None:
        raise IntegrityError(f"the python is of version {version!r}, expected MAJOR.MINOR")
    return found[0]


def _short(python: PythonTarget) -> tuple[int, int]:
    major, _, minor = python.short.partition(".")
    return int(major), int(minor)
