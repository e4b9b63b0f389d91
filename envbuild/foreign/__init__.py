"""Locks of other tools as definitions: ``pixi.lock``, ``conda-lock.yml`` and ``@EXPLICIT`` lists of URLs.

Each package becomes a match spec that only it satisfies, so that the key is that of the solution.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild import lockfile
from envbuild.errors import SpecError
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.spec import environment, fields
from envbuild.spec.conda import CondaSection
from envbuild.spec.document import Mark, fail
from envbuild.spec.environment import EnvironmentSpec
from envbuild.spec.match import MatchSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.lock import PackageRecord

_LOOK: Final = 1 << 16
_LOCK: Final = re.compile(
    rb"(?:#[^\n]*\n|\s*\n)*version:\s*\d+\s*\n(?:environments|metadata|packages?|platforms):"
)
_EXPLICIT: Final = re.compile(rb"(?:#[^\n]*\n|\s*\n)*@EXPLICIT\s")
_ARCHIVE: Final = re.compile(r"(.+)-([^-/]+)-([^-/]+?)(?:\.conda|\.tar\.bz2)")


def load(source: str | Path, **overrides: Any) -> EnvironmentSpec:
    """Read a definition, a lock, or another tool's lock; arguments as :func:`envbuild.spec.environment.load`.

    Raises:
        SpecError: It cannot be understood.
    """
    if overrides.get("form") is not None:  # the caller says what it is, and that it is no lock
        return environment.load(source, **overrides)
    overrides.pop("form", None)
    start = _start(source)
    if _EXPLICIT.match(start) is None and _LOCK.match(start) is None:
        return lockfile.load(source, **overrides)
    path = Path(source)
    given = overrides.pop("platforms", None)
    platforms = fields.platforms((given,) if isinstance(given, (str, Platform)) else given) if given else ()
    if len(platforms) > 1:
        names = ", ".join(map(str, platforms))
        raise SpecError(
            f"{names} are asked for: a solved list of packages is for one platform",
            source=str(path),
            hint="name one platform, or the definition that the lock was made from",
        )
    conda, found = solved_section(path, platforms[0] if platforms else None)
    spec = EnvironmentSpec(source=str(path), has_base=False, conda=conda, platforms=(found,))
    return _overridden(spec, **overrides)


def solved_section(path: Path, platform: Platform | None) -> tuple[CondaSection, Platform]:
    """The packages of another tool's lock, each as a match spec that only it satisfies.

    Args:
        path: The lock.
        platform: The platform; None is that of the packages, or ``linux/amd64`` in a lock for several.

    Returns:
        The packages, and the platform that they are for.

    Raises:
        SpecError: The lock cannot be read, or is not for the platform.
    """
    read = _explicit if _EXPLICIT.match(_start(path)) else _locked
    return read(path, platform)


def _overridden(
    spec: EnvironmentSpec, *, base: str | None = None, steps: str | Path | None = None, as_of: Any = None
) -> EnvironmentSpec:
    from dataclasses import replace

    spec = spec.with_base(base) if base is not None else spec
    if as_of is not None:
        raise SpecError("as_of cannot be laid over solved packages", source=spec.source)
    return replace(spec, steps=fields.steps_file(Path(steps), None)) if steps is not None else spec


def _start(source: str | Path) -> bytes:
    try:
        with Path(source).open("rb") as file:
            return file.read(_LOOK)
    except (OSError, ValueError):
        return b""


def _locked(path: Path, platform: Platform | None) -> tuple[CondaSection, Platform]:
    from envbuild.conda.locks import read_lock

    platform = platform or LINUX_AMD64
    packages, others = read_lock(path, platform)
    if others:
        raise SpecError(
            f"the lock has {len(others)} packages from Python indexes, as {others[0]}: only Conda's are read",
            source=str(path),
            hint="name the definition that it was made from",
        )
    return section_of(packages), platform


def section_of(packages: Iterable[PackageRecord]) -> CondaSection:
    """A section that only these packages satisfy."""
    return _section([_exact(package) for package in packages])


def _exact(package: PackageRecord) -> MatchSpec:
    return MatchSpec.parse(
        f'{package.name}[version="=={package.version}",build="{package.build}",channel="{package.channel}",'
        f'subdir="{package.subdir}",sha256="{package.sha256.hex}"]'
    )


def _explicit(path: Path, platform: Platform | None) -> tuple[CondaSection, Platform]:
    """A list of package URLs, each with its MD5 or sha256 behind a ``#``."""
    text = path.read_text("utf-8", errors="replace")
    specs = []
    subdirs = set()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", "@EXPLICIT")):
            continue
        mark = Mark(str(path), number, 1)
        url, _, digest = stripped.partition("#")
        place, _, file_name = url.rpartition("/")
        channel, _, subdir = place.rpartition("/")
        archive = _ARCHIVE.fullmatch(file_name)
        if archive is None or not re.fullmatch("[0-9a-f]{32}|(?:sha256:)?[0-9a-f]{64}", digest):
            hint = "write it with `conda list --explicit --md5`"
            fail(mark, "the line is no package URL with its digest, as URL#MD5", hint)
        digest = digest.removeprefix("sha256:")
        kind = "md5" if len(digest) == 32 else "sha256"
        subdirs.add(subdir)
        text = (
            f'{archive[1]}[version="=={archive[2]}",build="{archive[3]}",channel="{channel}",'
            f'subdir="{subdir}",{kind}="{digest}"]'
        )
        specs.append(MatchSpec.parse(text, mark))
    return _section(specs), _platform_of(subdirs - {"noarch"}, platform, path)


def _platform_of(subdirs: set[str], wanted: Platform | None, path: Path) -> Platform:
    """The platform that a list of URLs is for."""
    if len(subdirs) > 1:
        raise SpecError(f"the list mixes {', '.join(sorted(subdirs))}", source=str(path))
    found = Platform.parse(subdirs.pop()) if subdirs else wanted or LINUX_AMD64
    if wanted is not None and wanted != found:
        raise SpecError(f"the list is for {found}, and {wanted} is asked for", source=str(path))
    return found


def _section(specs: list[MatchSpec]) -> CondaSection:
    """A section of match specs and their channels; each names its own, so that no order counts."""
    by_spelling = {spec.canonical(): spec for spec in specs}
    channels = {spec.channel.canonical: spec.channel for spec in specs if spec.channel is not None}
    return CondaSection(
        tuple(channels[name] for name in sorted(channels)),
        False,
        tuple(by_spelling[spelling] for spelling in sorted(by_spelling)),
    )
