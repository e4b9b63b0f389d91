"""Differences between forms: none where the forms are equal, and exactly the input that was edited else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.diff import Change, compare, explain, nearest
from envbuild.digest import Digest
from envbuild.key import CanonicalForm
from envbuild.platform import LINUX_AMD64
from envbuild.spec.environment import parse
from spec_samples import Sample, edits, plain, platform, sample, shuffled

BASE = Digest("b" * 64)
VECTORS = sorted((Path(__file__).parents[1] / "fixtures" / "vectors").glob("*/canonical.json"))
EDITS = edits()
PARTS = {
    "base": {"base"},
    "scratch": {"base"},
    "platform": {"platform"},
    "channel": {"channel"},
    "channel order": {"channel order"},
    "dependency": {"dependency"},
    "version": {"dependency"},
    "operator": {"dependency"},
    "build": {"dependency"},
    "requirement": {"requirement"},
    "pip option": {"requirement", "pip option"},
    "variable": {"variable"},
    "value": {"variable"},
    "step": {"step"},
    "step byte": {"step"},
    "step after": {"step after"},
    "priority": {"channel priority"},
    "as of": {"as_of"},
}


def form(one: Sample, content: bytes | None = None) -> dict[str, Any]:
    spec = parse(content or plain(one), "envbuild.yaml", Path("/nowhere"))
    return dict(CanonicalForm.of(spec, one.base, platform(one)).fields)


def written(text: str) -> dict[str, Any]:
    spec = parse(f"base: scratch\n{text}".encode(), "envbuild.yaml", Path("/nowhere"))
    return dict(CanonicalForm.of(spec, None, LINUX_AMD64).fields)


def words(first: str, second: str) -> list[str]:
    return [str(change) for change in compare(written(first), written(second))]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**9))
def test_one_definition_in_two_layouts_has_no_difference(seed: int) -> None:
    random = Random(seed)
    one = sample(random)
    assert compare(form(one), form(one, shuffled(one, random))) == ()


@pytest.mark.parametrize("name", EDITS)
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**9))
def test_an_edit_is_named_and_nothing_else(name: str, seed: int) -> None:
    random = Random(seed)
    one = sample(random)
    other = EDITS[name](one, random)
    first, second = form(one), form(other)
    changes = compare(first, second)
    assert bool(changes) == (first != second)
    assert {change.part for change in changes} <= PARTS[name]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**9))
def test_differences_read_backwards_are_the_opposite_ones(seed: int) -> None:
    random = Random(seed)
    first, second = form(sample(random)), form(sample(random))
    opposite = {"added": "removed", "removed": "added", "changed": "changed"}
    there = sorted(
        (change.part, opposite[change.kind], str(change.before)) for change in compare(first, second)
    )
    back = sorted((change.part, change.kind, str(change.after)) for change in compare(second, first))
    if not any(change.part.startswith("step") for change in compare(first, second)):
        assert there == back
    assert bool(there) == bool(back) == (first != second)


def test_every_two_published_forms_differ_exactly_if_their_bytes_do() -> None:
    forms = [json.loads(path.read_bytes()) for path in VECTORS]
    assert len(forms) >= 60
    for first in forms:
        for second in forms:
            changes = compare(first, second)
            assert bool(changes) == (first != second)
            assert all(str(change) and json.dumps(change.to_json()) for change in changes)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("conda: {dependencies: [numpy=1]}", "conda: {dependencies: [numpy=2]}",
         ["dependency numpy: numpy 1.* -> numpy 2.*"]),
        ("conda: {dependencies: [a]}", "conda: {dependencies: [a, 'b>=2']}", ["dependency b added: b >=2"]),
        ("conda: {dependencies: [a, b]}", "conda: {dependencies: [a]}", ["dependency b removed"]),
        ("conda: {dependencies: [a, 'a>1']}", "conda: {dependencies: [a, 'a>2']}",
         ["dependency a: a >1 -> a >2"]),
        ("conda: {channels: [x, y], dependencies: [a]}", "conda: {channels: [y, x], dependencies: [a]}",
         ["channel order: x, y -> y, x"]),
        ("conda: {channels: [x], dependencies: [a]}", "conda: {channels: [nodefaults, x], dependencies: [a]}",
         ["nodefaults: false -> true"]),
        ("variables: {A: '1'}", "variables: {A: ''}", ['variable A: 1 -> ""']),
        ("pip: [x==1]", "pip: ['x[e]==2; python_version > \"3\"']",
         ['requirement x: x==1 -> x[e]==2; python_version > "3"']),
        ("pip: [x==1]", "pip: [x==1, --index-url https://u:p@example.com/s]",
         ["pip index https://example.com/s added", "pip index-url added"]),
        ("steps: [RUN a, RUN b]", "steps: [RUN b, RUN a]", ["step order: RUN a; RUN b -> RUN b; RUN a"]),
        ("steps: [RUN a, RUN b, USER x]", "steps: [RUN a, RUN c, USER x]", ["step 2: RUN b -> RUN c"]),
        ("steps: [RUN a]", "steps: [RUN a]\nsteps_after: [USER x]", ["step after 1 added: USER x"]),
        ("as_of: 2026-01-01", "", ["as_of removed: 2026-01-01T00:00:00Z"]),
        ("channel_priority: flexible", "", ["channel priority: flexible -> strict"]),
        ("pip: [x]", "pip: [x]\nindex_strategy: first-index", ["index strategy: pip -> first-index"]),
        ("pip: [x]", "pip: [x, --all-releases x, --only-final y]",
         ["pip all-releases x added", "pip only-final y added"]),
    ],
)  # fmt: skip
def test_differences_in_words(first: str, second: str, expected: list[str]) -> None:
    assert words(first, second) == expected


def test_context_files_are_told_by_path(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    content = b"base: scratch\nsteps: [COPY a /a]\n"

    def now() -> dict[str, Any]:
        spec = parse(content, "envbuild.yaml", tmp_path)
        return dict(CanonicalForm.of(spec, None, LINUX_AMD64).fields)

    first = now()
    (tmp_path / "a").write_bytes(b"22")
    (change,) = compare(first, now())
    assert (change.part, change.kind, change.name) == ("context file", "changed", "a")
    assert "1 bytes" in str(change)
    assert "2 bytes" in str(change)


def test_long_values_are_cut_in_words_and_whole_in_json() -> None:
    (change,) = compare(written(""), written(f"variables: {{A: {'x' * 5000}}}"))
    assert len(str(change)) < 200
    assert change.to_json()["after"] == "x" * 5000


def test_a_member_that_is_not_known_is_compared_too() -> None:
    assert compare({"new": 1}, {"new": 2}) == (Change("new", "changed", before=1, after=2),)
    assert compare({"new": 1}, {"new": 1}) == ()


def test_the_nearest_form_has_the_fewest_differences() -> None:
    random = Random(7)
    one = sample(random)
    near = replace(one, channel_priority="flexible" if one.channel_priority == "strict" else "strict")
    others = [(str(number), form(sample(random))) for number in range(5)]
    found = nearest(form(one), [*others, ("near", form(near)), *others])
    assert found is not None
    assert found[0] == "near"
    assert [change.part for change in found[1]] == ["channel priority"]
    assert nearest(form(one), []) is None


def test_packages_of_locks_are_told_by_name() -> None:
    record = {"name": "a", "version": "1", "build": "0", "subdir": "noarch", "sha256": "1" * 64}
    newer = {**record, "version": "2", "sha256": "2" * 64}
    (change,) = compare({"packages": [record]}, {"packages": [newer]})
    assert str(change).startswith("package a: 1 0, sha256 1111")
    (gone,) = compare({"packages": [record]}, {"packages": []})
    assert (gone.kind, gone.name) == ("removed", "a")


def test_what_a_channel_corrected_in_a_lock_is_told() -> None:
    record = {"name": "a", "version": "1", "build": "0", "sha256": "1" * 64, "depends": ["b"]}
    before, after = record | {"metadata": {"license": "BSD"}}, record | {"metadata": {"license": "MIT"}}
    assert list(map(str, compare({"packages": [before]}, {"packages": [after]}))) == [
        "record of a license: BSD -> MIT"
    ]
    (change,) = compare({"packages": [record]}, {"packages": [record | {"depends": ["b <2"]}]})
    assert str(change) == "record of a depends: b -> b <2"


def test_a_miss_is_explained_by_the_nearest_key() -> None:
    asked = written("conda: {dependencies: [a=2]}")
    known = {"1" * 64: written("conda: {dependencies: [a=1]}"), "2" * 64: written("variables: {A: x, B: y}")}
    assert explain("3" * 64, asked, known).splitlines() == [
        "333333333333 is nearest to 111111111111, from which it differs:",
        "  dependency a: a 1.* -> a 2.*",
    ]
    assert "first key" in explain("3" * 64, asked, {})
    assert "is gone" in explain("3" * 64, asked, {**known, "3" * 64: asked})
