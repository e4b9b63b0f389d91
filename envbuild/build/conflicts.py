"""Layers that cannot lie on top of each other and still give what an installer gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuild.conda.layer import split_hashes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.build.plan import Unit
    from envbuild.conda.layer import PathHashes


def conflicts(layers: Mapping[Unit, PathHashes]) -> list[frozenset[Unit]]:
    """The groups of units that must share one layer.

    Two belong together where both carry one file, or where one has a file or link and the other a folder.
    """
    owners: dict[bytes, Unit] = {}
    together: set[frozenset[Unit]] = set()
    for unit, hashes in layers.items():
        for path in split_hashes(hashes.files):
            if (owner := owners.setdefault(path, unit)) != unit:
                together.add(frozenset((owner, unit)))
    for unit, hashes in layers.items():
        for path in split_hashes(hashes.folders):
            if (owner := owners.get(path, unit)) != unit:
                together.add(frozenset((owner, unit)))
    return sorted(together, key=lambda group: sorted(unit.title for unit in group))
