"""The plan: big layers low, few enough of them, and neighbours undisturbed by a change."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from envbuild.build.plan import Unit, join, plan
from envbuild.digest import Digest
from envbuild.lock import Lock, PackageRecord
from envbuild.platform import LINUX_AMD64


def record(name: str, size: int = 1, version: str = "1") -> PackageRecord:
    url = f"https://example.com/{name}-{version}-0.conda"
    return PackageRecord(name, version, "0", 0, "noarch", url, Digest.of(url.encode()), size)


def lock(*records: PackageRecord) -> Lock:
    return Lock.of(LINUX_AMD64, records)


def names(units: tuple[Unit, ...]) -> list[list[str]]:
    return [[package.name for package in unit.records] for unit in units]


def key_of(package: PackageRecord) -> str:
    return package.sha256.hex


def test_each_package_is_a_layer_and_the_biggest_lies_lowest() -> None:
    units = plan(lock(record("a", 1), record("b", 100), record("c", 10), record("d", 10)), 10)
    assert names(units) == [["b"], ["c"], ["d"], ["a"]]


def test_over_budget_the_big_ones_stay_alone() -> None:
    records = [record(f"p{number:03}", number) for number in range(300)]
    units = plan(lock(*records), 90)
    assert len(units) <= 90
    assert sorted(name for unit in names(units) for name in unit) == [package.name for package in records]
    assert ["p299"] in names(units)
    assert any(len(unit) > 1 for unit in names(units))


def test_one_package_more_changes_one_bucket() -> None:
    records = [record(f"p{number:03}", 1000 - number) for number in range(300)]
    before = {unit.key(key_of) for unit in plan(lock(*records), 90)}
    after = {unit.key(key_of) for unit in plan(lock(*records, record("extra", 1)), 90)}
    assert len(after - before) == 1
    assert len(before - after) <= 1


@given(st.integers(1, 120), st.integers(0, 200))
def test_no_plan_is_over_budget_or_loses_a_package(budget: int, count: int) -> None:
    records = [record(f"p{number}", number % 7) for number in range(count)]
    units = plan(lock(*records), budget)
    assert len(units) <= budget
    assert sorted(package.name for unit in units for package in unit.records) == sorted(
        package.name for package in records
    )


def test_joined_packages_share_a_unit_and_groups_that_touch_become_one() -> None:
    units = plan(lock(*(record(name) for name in "abcdef")), 10)
    joined = join(units, [frozenset("ab"), frozenset("bc"), frozenset("ef")])
    assert sorted(names(joined)) == [["c", "b", "a"], ["d"], ["f", "e"]]


def test_joining_through_a_shared_bucket_takes_the_whole_bucket() -> None:
    bucket = Unit((record("a"), record("b")))
    joined = join((bucket, Unit((record("x"),)), Unit((record("y"),))), [frozenset("ax"), frozenset("by")])
    assert names(joined) == [["y", "x", "b", "a"]]


def test_the_key_of_a_unit_tells_its_packages_and_their_order() -> None:
    a, b = record("a"), record("b")
    assert Unit((a,)).key(key_of) == a.sha256.hex
    assert len({Unit(records).key(key_of) for records in ((a,), (b,), (a, b), (b, a))}) == 4


def test_joined_packages_stand_in_the_order_of_installation_of_the_whole_environment() -> None:
    through = PackageRecord(**{**vars_of(record("m")), "depends": ("a",)})
    last = PackageRecord(**{**vars_of(record("z")), "depends": ("m >=1",)})
    units = plan(lock(record("a"), through, last), 10)
    assert sorted(names(join(units, [frozenset("az")]))) == [["a", "z"], ["m"]]
    assert sorted(names(join(plan(lock(record("a"), record("z")), 10), [frozenset("az")]))) == [["z", "a"]]


def test_units_without_a_conflict_stay_as_they_are() -> None:
    bucket = Unit((record("a"), record("b")))
    assert join((bucket,), []) == (bucket,)
    (joined,) = join((bucket,), [frozenset("ab")])
    assert joined.joined
    assert joined.key(key_of) != bucket.key(key_of)


def vars_of(package: PackageRecord) -> dict[str, Any]:
    return {name: getattr(package, name) for name in PackageRecord.__dataclass_fields__}
