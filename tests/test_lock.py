"""A lock: one order, one key, and every package told from every other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from envbuild.digest import Digest
from envbuild.lock import Lock, PackageRecord
from envbuild.platform import LINUX_AMD64, Platform

BASE = Digest("b" * 64)
NUMPY = PackageRecord(
    name="numpy",
    version="1.26.4",
    build="py311h1",
    build_number=1,
    subdir="linux-64",
    url="https://conda.example.com/c/linux-64/numpy-1.26.4-py311h1.conda",
    sha256=Digest("1" * 64),
    size=10,
)
PYTHON = replace(NUMPY, name="python", version="3.11.9", build="h2", sha256=Digest("2" * 64), size=None)


def key(lock: Lock, **changed: Any) -> str:
    return lock.key(**{"base": BASE, "steps": None, "variables": {}, "layout": 1, **changed})


def test_packages_stand_in_one_order() -> None:
    assert Lock.of(LINUX_AMD64, [PYTHON, NUMPY]) == Lock.of(LINUX_AMD64, (NUMPY, PYTHON))
    assert [package.name for package in Lock.of(LINUX_AMD64, [PYTHON, NUMPY]).packages] == ["numpy", "python"]


def test_packages_that_know_less_can_be_sorted_too() -> None:
    bare = replace(NUMPY, size=None, md5=None, url="https://a.example.com/numpy.conda")
    full = replace(NUMPY, size=3, md5="0" * 32, noarch="python")
    assert Lock.of(LINUX_AMD64, [bare, full]) == Lock.of(LINUX_AMD64, [full, bare])


def test_packages_by_name() -> None:
    lock = Lock.of(LINUX_AMD64, [PYTHON, NUMPY])
    assert lock.by_name == {"numpy": NUMPY, "python": PYTHON}
    assert lock.python == PYTHON
    assert Lock.of(LINUX_AMD64, [NUMPY]).python is None
    assert NUMPY.file_name == "numpy-1.26.4-py311h1.conda"
    assert str(NUMPY) == "numpy-1.26.4-py311h1"


def test_the_key_is_frozen() -> None:
    expected = "09e34d4558db382f7b6908e192d9632d60f05b62fe7a354811d8599e049b8476"
    assert key(Lock.of(LINUX_AMD64, [PYTHON, NUMPY]), variables={"A": "1"}, steps="5" * 64) == expected


@pytest.mark.parametrize("field", ["name", "version", "build", "subdir", "sha256", "url"])
def test_what_identifies_a_package_is_in_the_key(field: str) -> None:
    changed: dict[str, Any] = {field: Digest("3" * 64) if field == "sha256" else "other"}
    other = replace(NUMPY, **changed)
    assert key(Lock.of(LINUX_AMD64, [NUMPY])) != key(Lock.of(LINUX_AMD64, [other]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", None),
        ("md5", "0" * 32),
        ("depends", ("python",)),
        ("build_number", 0),
    ],
)
def test_what_no_image_holds_of_a_package_is_not(field: str, value: Any) -> None:
    other = replace(NUMPY, **{field: value})
    assert key(Lock.of(LINUX_AMD64, [NUMPY])) == key(Lock.of(LINUX_AMD64, [other]))


SAID = replace(NUMPY, metadata='{"license":"BSD"}', depends=("python",))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata", '{"license":"MIT"}'),
        ("metadata", ""),
        ("depends", ()),
        ("build_number", 0),
        ("python_site_packages_path", "lib/x"),
    ],
)
def test_what_the_channel_says_is_in_the_key(field: str, value: Any) -> None:
    other = replace(SAID, **{field: value})
    assert key(Lock.of(LINUX_AMD64, [SAID])) != key(Lock.of(LINUX_AMD64, [other]))


def test_the_key_of_what_the_channel_says_is_frozen() -> None:
    expected = "5c20b006558bb7a15e965472d42062a89f8bd1a5395cd55b40f1c04d987f6473"
    assert key(Lock.of(LINUX_AMD64, [SAID])) == expected


def test_whatever_else_makes_the_image_is_in_the_key() -> None:
    lock = Lock.of(LINUX_AMD64, [NUMPY])
    keys = [
        key(lock),
        key(lock, base=None),
        key(lock, base=Digest("c" * 64)),
        key(lock, steps="5" * 64),
        key(lock, variables={"A": "1"}),
        key(lock, variables={"A": "2"}),
        key(lock, variables={"A": "1", "B": "2"}),
        key(lock, variables={"A": "1 B=2"}),
        key(lock, layout=2),
        key(lock, pip={"requirements": ["a"]}),
        key(lock, steps_after=["RUN true"]),
        key(Lock.of(Platform.parse("linux/arm64"), [NUMPY])),
        key(Lock.of(LINUX_AMD64, [NUMPY, PYTHON])),
        key(Lock.of(LINUX_AMD64, [])),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(each) == 64 for each in keys)


def test_the_order_of_variables_is_not() -> None:
    lock = Lock.of(LINUX_AMD64, [NUMPY])
    assert key(lock, variables={"A": "1", "B": "2"}) == key(lock, variables={"B": "2", "A": "1"})
