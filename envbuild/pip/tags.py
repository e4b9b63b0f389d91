"""Which of a version's wheels an installer would take.

Source: PyPA, "Platform compatibility tags"; ``packaging.tags`` knows the order.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from packaging.tags import Tag

MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""The machine names, by architecture, that wheels and uv know."""

_OLDEST: Final = {"x86_64": 5, "aarch64": 17}
LEGACY: Final = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""The older names of platforms, by the minor version of the glibc 2 that they ask for."""


@functools.lru_cache(maxsize=8)
def ranks(python: tuple[int, int], machine: str, glibc_minor: int) -> Mapping[Tag, int]:
    """Every tag that an interpreter accepts, with its rank; 0 is the best.

    Args:
        python: Major and minor version of a CPython.
        machine: ``x86_64`` or ``aarch64``.
        glibc_minor: The minor version of the oldest glibc 2 that must do.
    """
    from packaging.tags import compatible_tags, cpython_tags

    platforms = list(_platforms(machine, glibc_minor))
    interpreter = f"cp{python[0]}{python[1]}"
    tags = [
        *cpython_tags(python, platforms=platforms),
        *compatible_tags(python, interpreter, platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def rank(file_name: str, accepted: Mapping[Tag, int]) -> tuple[int, int, str] | None:
    """How a wheel is sorted, the best first; None if it does not fit."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        _, _, build, tags = parse_wheel_filename(file_name)
    except InvalidWheelFilename:
        return None
    fitting = [accepted[tag] for tag in tags if tag in accepted]
    # The highest build number wins among equals.
    return (min(fitting), -build[0] if build else 0, file_name) if fitting else None


def _platforms(machine: str, glibc_minor: int) -> Iterator[str]:
    for minor in range(glibc_minor, _OLDEST[machine] - 1, -1):
        yield f"manylinux_2_{minor}_{machine}"
        if legacy := LEGACY.get(minor):
            yield f"{legacy}_{machine}"
    yield f"linux_{machine}"
