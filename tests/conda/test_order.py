"""Packages are put in the order in which rattler installs them."""

from __future__ import annotations

from typing import Any

import rattler
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.conda.order import installation_order
from envbuild.digest import Digest
from envbuild.lock import PackageRecord

NAMES = "abcdefgh"
Graph = dict[str, tuple[str, ...]]


def ours(graph: Graph, noarch: frozenset[str] = frozenset()) -> list[str]:
    records = [
        PackageRecord(
            name, "1", "0", 0, "noarch", f"https://example.com/{name}-1-0.conda", Digest.of(name.encode()),
            noarch="python" if name in noarch else None, depends=depends,
        )
        for name, depends in graph.items()
    ]  # fmt: skip
    order = [record.name for record in installation_order(records)]
    assert order == [record.name for record in installation_order(reversed(records))]
    return order


def theirs(graph: Graph, noarch: frozenset[str] = frozenset()) -> list[str]:
    records = []
    for name, depends in graph.items():
        kind: Any = "python" if name in noarch else None
        record = rattler.PackageRecord(
            rattler.PackageName(name),
            rattler.VersionWithSource("1"),
            rattler.BuildString("0"),
            0,
            rattler.Subdir("linux-64"),
            noarch=rattler.NoArchType(kind),
        )
        record.depends = list(depends)
        records.append(record)
    return [record.name.normalized for record in rattler.PackageRecord.sort_topologically(records)]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Packages without cycles; some needs are of a version, of nothing that is there, or virtual."""
    order = draw(st.permutations(NAMES[: draw(st.integers(0, len(NAMES)))]))
    graph: Graph = {}
    for at, name in enumerate(order):
        needs = draw(st.sets(st.sampled_from([*order[:at], "absent", "__glibc"]), max_size=4))
        graph[name] = tuple(
            f"{each}{draw(st.sampled_from(['', ' >=1', ' 1.* *_0']))}" for each in sorted(needs)
        )
    names = draw(st.permutations(list(graph)))
    return {name: graph[name] for name in names}


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_the_order_is_rattlers(graph: Graph) -> None:
    assert ours(graph) == theirs(graph)


def test_python_comes_before_the_pip_that_needs_it() -> None:
    graph = {"python": ("pip", "zlib"), "pip": ("python >=3.8", "wheel"), "wheel": ("python",), "zlib": ()}
    noarch = frozenset({"pip", "wheel"})
    assert ours(graph, noarch) == theirs(graph, noarch)
    assert ours(graph, noarch).index("python") < ours(graph, noarch).index("pip")


def test_cycles_end_and_nothing_is_lost() -> None:
    graphs: tuple[Graph, ...] = (
        {"a": ("b",), "b": ("a",)},
        {"a": ("a",)},
        {"a": ("b",), "b": ("c",), "c": ("a",), "d": ("a",), "e": ()},
    )
    for graph in graphs:
        assert sorted(ours(graph)) == sorted(graph)
