"""What an environment's packages and wheels ask of the base that they are put on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from envbuild.errors import SolveError
from envbuild.pip.tags import LEGACY
from envbuild.spec.constraint import parse_constraint
from envbuild.spec.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.build.recipe import Recipe
    from envbuild.lock import PipDistribution
    from envbuild.spec.constraint import Term

_MANYLINUX: Final = re.compile(r"manylinux_2_(\d+)_\w+")
_LEGACY: Final = {name: minor for minor, name in LEGACY.items()}


def check_glibc(recipe: Recipe, seen: Callable[[], str | None]) -> None:
    """Hold what packages and wheels need against a base's glibc.

    Args:
        recipe: The environment.
        seen: Finds the base's glibc, or None where it has none; asked only where something needs one.

    Raises:
        SolveError: It is not what one of them needs.
    """
    needs = [*recipe.glibc_needs, *(pip_needs(recipe.pip.wheels) if recipe.pip is not None else ())]
    if not needs:
        return
    glibc = seen()
    if missing := [need for need in needs if glibc is None or not allows(need, glibc)]:
        raise SolveError(
            f"the base has {f'glibc {glibc}' if glibc else 'no glibc'}, and packages of this environment "
            f"need {', '.join(f'__glibc {need}' for need in dict.fromkeys(missing))}",
            hint="choose a base with another glibc, or resolve the definition anew on this base",
        )


def pip_needs(wheels: tuple[PipDistribution, ...]) -> tuple[str, ...]:
    """What wheels ask of the base's glibc, as version constraints: what their names say."""
    oldest = {_oldest(wheel.file_name) for wheel in wheels}
    return tuple(f">=2.{minor}" for minor in sorted(minor for minor in oldest if minor))


def _oldest(file_name: str) -> int:
    """The minor version of the oldest glibc 2 that does for a wheel; 0 for any, or none.

    Source: PEP 600, and PEP 425 for the names that stand for several tags.
    """
    platforms = file_name.removesuffix(".whl").rpartition("-")[2].split(".")
    found = [_minor(platform) for platform in platforms]
    return min(found, default=0)


def _minor(platform: str) -> int:
    if match := _MANYLINUX.fullmatch(platform):
        return int(match[1])
    return _LEGACY.get(platform.partition("_")[0], 0)


def allows(constraint: str, version: str) -> bool:
    """Whether a version constraint, as ``>=2.17,<3``, allows a version."""
    seen = Version.parse(version)
    alternatives, _ = parse_constraint(constraint)
    return any(all(_holds(term, seen) for term in conjunction) for conjunction in alternatives)


_OPERATORS: Final[dict[str, Callable[[int], bool]]] = {
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    ">=": lambda order: order >= 0,
    "<=": lambda order: order <= 0,
    ">": lambda order: order > 0,
    "<": lambda order: order < 0,
}


def _holds(term: Term, version: Version) -> bool:
    if term.operator in _OPERATORS:
        return _OPERATORS[term.operator](version.compare(Version.parse(term.version)))
    starts = f"{version}.".startswith(f"{term.version}.")
    return starts == (term.operator == "=")
