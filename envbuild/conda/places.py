"""Where a package's paths are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuild.conda.paths import PathType
from envbuild.conda.tar import parents, safe_path
from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Collection

    from envbuild.conda.package import Package


def places_of(package: Package, site_packages: str | None, points: Collection[str]) -> dict[str, str]:
    """Where each path of the package goes; what an entry point replaces goes nowhere.

    Args:
        package: The package.
        site_packages: Where the environment's python keeps its packages, or None where there is no python.
        points: The places of the package's entry points.
    """
    places = {path: path for path in package.paths}
    if package.noarch == "python" and site_packages is not None:
        site = safe_path(site_packages, package.what)
        places = {path: _noarch_place(path, site) for path in package.paths}
    return {path: place for path, place in places.items() if place not in points}


def _noarch_place(path: str, site_packages: str) -> str:
    folder, _, rest = path.partition("/")
    if folder == "site-packages" and rest:
        return f"{site_packages}/{rest}"
    return f"bin/{rest}" if folder == "python-scripts" and rest else path


def check_places(package: Package, places: list[tuple[str, str]]) -> None:
    """Refuse two things in one place, and a file where another file needs a folder.

    Args:
        package: The package.
        places: Paths in the package, and where they are installed.

    Raises:
        IntegrityError: There is such a thing.
    """
    types = {place: entry.path_type for path, place in places if (entry := package.paths.get(path))}
    taken = {place for _, place in places}
    if len(taken) != len(places):
        seen: set[str] = set()
        twice = next(place for _, place in places if place in seen or seen.add(place))  # type: ignore[func-returns-value]
        raise IntegrityError(f"{package.what} installs two files as {twice!r}")
    folders = {parent for place in taken for parent in parents(place)}
    for place in sorted(folders & taken):
        if types.get(place) is not PathType.DIRECTORY:
            raise IntegrityError(f"{package.what} has {place!r} both as a file and as a folder")
