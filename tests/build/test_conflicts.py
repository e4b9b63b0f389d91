"""Units that carry one path are found, and no others."""

from __future__ import annotations

import io

import pytest

from envbuild.build.conflicts import conflicts
from envbuild.build.plan import Unit
from envbuild.conda.layer import Compression, PathHashes, write_layer
from envbuild.conda.link import LinkedFile
from envbuild.digest import Digest
from envbuild.lock import PackageRecord

GZIP = Compression.of("gzip")


def unit(name: str) -> Unit:
    url = f"https://example.com/{name}-1-0.conda"
    return Unit((PackageRecord(name, "1", "0", 0, "noarch", url, Digest.of(url.encode())),))


def hashes(paths: list[str]) -> PathHashes:
    files = [LinkedFile.generated(path, b"") for path in paths]
    return write_layer(files, io.BytesIO(), GZIP).path_hashes


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["a"], ["b"], False),
        (["bin/a"], ["bin/b"], False),
        (["bin/a"], ["bin/a"], True),
        (["lib64"], ["lib64/x"], True),
        (["a/b/c"], ["a/b"], True),
        (["a"], ["ab/c"], False),
        ([], ["a"], False),
    ],
)
def test_units_that_carry_one_path_are_found(first: list[str], second: list[str], expected: bool) -> None:
    one, two = unit("one"), unit("two")
    for order in ((first, second), (second, first)):
        found = conflicts({one: hashes(order[0]), two: hashes(order[1])})
        assert found == ([frozenset((one, two))] if expected else [])


def test_pairs_are_told_and_strangers_are_left_out() -> None:
    units = {unit(name): hashes([f"share/{name}", *shared]) for name, shared in (
        ("a", ["x"]), ("b", ["x", "y"]), ("c", ["y/z"]), ("d", []),
    )}  # fmt: skip
    groups = [{unit.title for unit in group} for group in conflicts(units)]
    assert groups == [{"a-1-0", "b-1-0"}, {"b-1-0", "c-1-0"}]
