"""Packages that carry one path, or a file where another has a folder: whose stays, and where the other goes.

The rules are rattler's 0.28: of two packages the one that is installed later keeps the path, and the other's
file goes to ``__clobbers__/NAME/PATH``. Where a file or link wins over another's folder, and where a command
meets a file, rattler's result depends on which of its threads comes first; here it is always the one that
agrees with the records that rattler writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from envbuild.conda.tar import parents
from envbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CLOBBERS: Final = "__clobbers__"


@dataclass(frozen=True, slots=True)
class Footprint:
    """The paths that a package installs, relative to the prefix.

    Attributes:
        what: The package's name for messages.
        files: Files and links.
        scripts: Entry points, which are made when it is installed.
        folders: Folders that the package lists as such.
    """

    what: str
    files: frozenset[str]
    scripts: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()


class Clobber(NamedTuple):
    """Two packages that carry one path.

    Attributes:
        loser: The package whose file goes elsewhere.
        winner: The package whose file stays.
        path: The first such path.
        total: How many there are.
    """

    loser: str
    winner: str
    path: str
    total: int

    def __str__(self) -> str:
        more = f" and {self.total - 1} more" if self.total > 1 else ""
        return (
            f"{self.loser} and {self.winner} both have {self.path}{more}: that of {self.winner} is installed"
        )


def clobbers(footprints: Sequence[Footprint], lost: Sequence[frozenset[str]]) -> list[Clobber]:
    """Which packages carry one path, each pair once.

    Args:
        footprints: The packages, in the order in which they are installed.
        lost: The paths that each does not get, as :func:`lost_paths` gives them.
    """
    if not any(lost):
        return []
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for paths in ((each.scripts for each in footprints), (each.files for each in footprints)):
        for each, own in zip(footprints, paths, strict=True):
            files |= dict.fromkeys(own, each.what)
            folders |= {folder: each.what for path in own for folder in parents(path)}
    found: dict[tuple[str, str], list[str]] = {}
    for each, gone in zip(footprints, lost, strict=True):
        for path in gone:
            others = (files.get(path), folders.get(path), *(files.get(folder) for folder in parents(path)))
            winner = next((other for other in others if other not in {None, each.what}), None)
            if winner is not None:
                found.setdefault((each.what, winner), []).append(path)
    return [Clobber(*pair, min(paths), len(paths)) for pair, paths in sorted(found.items())]


def lost_paths(footprints: Sequence[Footprint]) -> list[frozenset[str]]:
    """For each package the paths that it does not get, whether files or scripts.

    A package loses a path to every later one that has it, has a file where it needs a folder, or the other
    way round, whether the later one keeps its own or not. A script gives way to every file.

    Args:
        footprints: The packages, in the order in which they are installed.

    Raises:
        BuildError: One lists a folder where another has a file: rattler refuses that too.
    """
    _check_folders(footprints)
    everything = _Taken()
    for each in footprints:
        everything.add(each.files)
    later, scripts, lost = _Taken(), set[str](), []
    for each in reversed(footprints):
        files = {path for path in each.files if later.hinders(path)}
        lost.append(frozenset(files | {path for path in each.scripts if everything.hinders(path)}))
        lost[-1] |= each.scripts & scripts
        later.add(each.files)
        scripts |= each.scripts
    return lost[::-1]


class _Taken:
    """Paths that are taken, and the folders above them."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add(self, files: Iterable[str]) -> None:
        for path in files:
            self._files.add(path)
            self._folders.update(parents(path))

    def hinders(self, path: str) -> bool:
        """Whether a file cannot be there as well."""
        return path in self._files or path in self._folders or not self._files.isdisjoint(parents(path))


def _check_folders(footprints: Sequence[Footprint]) -> None:
    owners = {path: each.what for each in footprints for path in each.files}
    for each in footprints:
        for folder in sorted(each.folders):
            for path in (folder, *parents(folder)):
                if owners.get(path, each.what) != each.what:
                    raise BuildError(
                        f"{each.what} has the folder {folder!r}, and {owners[path]} a file or link {path!r}",
                        hint="exclude one of the two packages, or choose another build of it",
                    )
