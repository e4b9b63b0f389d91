"""Which layers an environment has, in which order, and which of them must be made.

Docker's classic store names a layer by the chain under it: everything above a changed layer is fetched again.
So big packages, which change rarely and cost most, lie low, and small ones high.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envbuild.conda.order import installation_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envbuild.lock import Lock, PackageRecord

BUCKETS: Final = 40
"""Layers that the small packages share once there are too many for a layer each.

The bucket of a package depends on its name alone, so one package more changes one bucket.
"""


@dataclass(frozen=True, slots=True)
class Unit:
    """Packages that share one layer.

    Attributes:
        records: The packages. By name where no two of them carry one path, so that a change elsewhere never
            reorders them; else in the order in which they are installed, which decides whose file stays.
        joined: Whether it is the latter.
    """

    records: tuple[PackageRecord, ...]
    joined: bool = False

    @property
    def size(self) -> int:
        """The packages' download size in bytes; a package of unknown size counts nothing."""
        return sum(record.size or 0 for record in self.records)

    @property
    def title(self) -> str:
        """What people read: the package, or how many."""
        return str(self.records[0]) if len(self.records) == 1 else f"{len(self.records)} packages"

    def key(self, layer_key: Callable[[PackageRecord], str]) -> str:
        """The unit's layer key: the package's own, or a hash over those of all in order."""
        keys = [layer_key(record) for record in self.records]
        if len(keys) == 1:
            return keys[0]
        form = "envbuild/joined/v1" if self.joined else "envbuild/unit/v1"
        return hashlib.sha256("\n".join((form, *keys)).encode()).hexdigest()


def plan(lock: Lock, budget: int) -> tuple[Unit, ...]:
    """The environment's layers, lowest first.

    Args:
        lock: The packages.
        budget: The largest number of layers; at least 1.
    """
    if len(lock.packages) <= budget:
        return _ordered(Unit((record,)) for record in lock.packages)
    buckets = max(1, min(BUCKETS, budget // 2))
    by_size = sorted(lock.packages, key=lambda record: (-(record.size or 0), record.name))
    alone, rest = by_size[: budget - buckets], by_size[budget - buckets :]
    shared: dict[int, list[PackageRecord]] = {}
    for record in sorted(rest, key=lambda record: record.name):
        shared.setdefault(_bucket(record.name, buckets), []).append(record)
    return _ordered(
        [*(Unit((record,)) for record in alone), *(Unit(tuple(records)) for records in shared.values())]
    )


def join(units: tuple[Unit, ...], together: Iterable[frozenset[str]]) -> tuple[Unit, ...]:
    """The same plan with the packages of each group of names in one unit, in the order of installation.

    Units that share a group become one.
    """
    records = installation_order(record for unit in units for record in unit.records)
    given = {frozenset(record.name for record in unit.records): unit for unit in units}
    together = list(together)
    groups = _closed([*given, *together])
    conflicting = {name for group in together for name in group}
    return _ordered(
        Unit(tuple(record for record in records if record.name in group), joined=True)
        if group & conflicting or group not in given
        else given[group]
        for group in groups
    )


def _closed(groups: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Groups that share a name become one, until no two do."""
    closed: list[frozenset[str]] = []
    for group in groups:
        merged = group
        apart = []
        for other in closed:
            if merged & other:
                merged |= other
            else:
                apart.append(other)
        closed = [*apart, merged]
    return closed


def _ordered(units: Iterable[Unit]) -> tuple[Unit, ...]:
    return tuple(sorted(units, key=lambda unit: (-unit.size, unit.records[0].name)))


def _bucket(name: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % buckets
