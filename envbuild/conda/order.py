"""The order in which packages are installed, which decides whose file stays where two carry one path.

The order is rattler's (``PackageRecord::sort_topologically`` of rattler 0.28): a package comes after what it
depends on, and among equals the one whose name sorts first comes last. The last one's file stays.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from envbuild.lock import PackageRecord

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_Graph = dict[str, list[str]]


def installation_order(records: Iterable[PackageRecord]) -> tuple[PackageRecord, ...]:
    """The packages, each after those that it depends on; the order in which they are given does not matter.

    Args:
        records: The packages of one environment, each name once.
    """
    by_name = {record.name: record for record in records}
    graph = {name: _dependencies(record) for name, record in by_name.items()}
    for one, other in _breaks(graph, by_name):
        graph[one] = [name for name in graph[one] if name != other]
    return tuple(by_name[name] for name in _postorder(_roots(graph), graph))


def _dependencies(record: PackageRecord) -> list[str]:
    found = (_NAME.match(each.strip()) for each in record.depends)
    return [match[0].lower() for match in found if match]


def _roots(graph: Mapping[str, Sequence[str]]) -> list[str]:
    """What nothing depends on, by name; where there is nothing of the kind, everything."""
    needed = {name for dependencies in graph.values() for name in dependencies}
    return sorted(graph.keys() - needed)


def _postorder(roots: list[str], graph: Mapping[str, Sequence[str]]) -> list[str]:
    """Dependencies before their dependents, what sorts last first."""
    order: list[str] = []
    seen: set[str] = set()
    stack = [(name, False) for name in roots]
    while stack:
        name, ready = stack.pop()
        if ready:
            order.append(name)
            continue
        if name in seen or name not in graph:
            continue
        seen.add(name)
        stack.append((name, True))
        stack.extend((each, False) for each in sorted(graph[name]))
    rest = sorted(graph.keys() - seen)
    return order if not rest else order + _postorder(rest, {name: graph[name] for name in rest})


def _breaks(graph: _Graph, records: Mapping[str, PackageRecord]) -> list[tuple[str, str]]:
    """The edges to leave out so that nothing depends on itself round a corner.

    In a cycle the edge from a package for one platform to a ``noarch`` one goes: ``python`` needs ``pip``
    less than ``pip`` needs ``python``.
    """
    return [_break(cycle, records) for cycle in _cycles(graph)]


def _break(cycle: Sequence[str], records: Mapping[str, PackageRecord]) -> tuple[str, str]:
    for one, other in pairwise((*cycle, cycle[0])):
        if (records[one].noarch is None) != (records[other].noarch is None):
            return (one, other) if records[one].noarch is None else (other, one)
    return cycle[0], cycle[1 % len(cycle)]


def _cycles(graph: _Graph) -> list[list[str]]:
    """A cycle for each edge that closes one, in a walk from every package by name."""
    cycles: list[list[str]] = []
    open_: dict[str, bool] = {}
    for root in sorted(graph):
        stack = [] if root in open_ else [(root, iter(graph[root]))]
        open_.setdefault(root, bool(stack))
        while stack:
            name, rest = stack[-1]
            following = next((each for each in rest if each in graph), None)
            if following is None:
                open_[name] = False
                stack.pop()
            elif following not in open_:
                open_[following] = True
                stack.append((following, iter(graph[following])))
            elif open_[following]:
                path = [each for each, _ in stack]
                cycles.append(path[path.index(following) :])
    return cycles
