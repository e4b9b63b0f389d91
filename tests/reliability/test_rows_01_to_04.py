"""Rows 1 to 4: what does not matter keeps the key, all else moves it, nothing collides, nothing drifts."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from envbuild.digest import Digest
from envbuild.key import CanonicalForm
from envbuild.platform import LINUX_AMD64
from envbuild.spec.environment import parse
from reliability.collisions import collisions, definition
from spec_samples import Sample, document, edits, plain, platform, sample, shuffled

ROOT = Path(__file__).parents[2]
BASE = Digest("b" * 64)
EDITS = edits()


def key(content: bytes, one: Sample) -> str:
    spec = parse(content, "envbuild.yaml", Path("/nonexistent"))
    return str(CanonicalForm.of(spec, one.base, platform(one)).key)


def relayouts(seed: int) -> None:
    """Row 1: comments, order, quotes, flow and block, line ends, byte order mark, name and prefix."""
    random = Random(seed)
    one = sample(random)
    content = shuffled(one, random)
    assert key(content, one) == key(plain(one), one), f"seed {seed}: {content.decode()}"


def edited(seed: int) -> str:
    """Row 2: one change of meaning."""
    random = Random(seed)
    one = sample(random)
    name = random.choice(sorted(EDITS))
    other = EDITS[name](one, random)
    assert key(plain(other), other) != key(plain(one), one), f"seed {seed}: {name} of {document(one)}"
    return name


@pytest.mark.parametrize("start", [0, 1_000_000])
def test_layout_keeps_the_key(start: int) -> None:
    for seed in range(start, start + 400):
        relayouts(seed)


def test_a_change_of_meaning_moves_the_key() -> None:
    assert {edited(seed) for seed in range(800)} == set(EDITS), "every kind of edit occurs"


@pytest.mark.parametrize("name", sorted(EDITS))
def test_each_edit_moves_the_key(name: str) -> None:
    random = Random(name)
    for _ in range(5):
        one = sample(random)
        other = EDITS[name](one, random)
        assert key(plain(other), other) != key(plain(one), one)


@pytest.mark.nightly
def test_layout_keeps_the_key_10_000_times() -> None:
    print("seeds 0 to 9,999")  # noqa: T201
    for seed in range(10_000):
        relayouts(seed)


@pytest.mark.nightly
def test_a_change_of_meaning_moves_the_key_10_000_times() -> None:
    print("seeds 0 to 9,999")  # noqa: T201
    for seed in range(10_000):
        edited(seed)


# Row 3


def boundaries(count: int) -> set[str]:
    """The keys of ``count`` definitions that hold one text, cut between fields in different ways."""
    text = "abcdefghijklmnopqrstuvwxyz" * 2
    random = Random(count)
    cuts: set[tuple[int, ...]] = set()
    while len(cuts) < count:
        cuts.add(tuple(sorted(random.sample(range(1, 51), 5))))
    found = set()
    for cut in cuts:
        parts = [text[start:end] for start, end in itertools.pairwise((0, *cut, 52))]
        values: dict[str, Any] = {
            "base": "debian",
            "conda": {"channels": [parts[0]], "dependencies": parts[1:2]},
            "pip": parts[2:3],
            "steps": [f"RUN {parts[3]}"],
            "steps_after": [f"RUN {parts[4]}"],
            "variables": {parts[5]: ""},
        }
        spec = parse(json.dumps(values).encode(), "envbuild.yaml", Path("/nonexistent"))
        found.add(str(CanonicalForm.of(spec, BASE, LINUX_AMD64).key))
    return found


def test_text_cut_differently_between_fields_is_another_key() -> None:
    assert len(boundaries(1000)) == 1000


@pytest.mark.nightly
def test_text_cut_differently_between_fields_is_another_key_100_000_times() -> None:
    assert len(boundaries(100_000)) == 100_000


def test_the_definitions_of_the_search_for_collisions_differ() -> None:
    assert len({definition(number) for number in range(50_000)}) == 50_000


def test_few_keys_do_not_collide(tmp_path: Path) -> None:
    assert collisions(5_000, 1, tmp_path) == 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 8 * 5_000


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_very_many_keys_do_not_collide(tmp_path: Path) -> None:
    assert collisions(10_000_000, os.cpu_count() or 1, tmp_path) == 0


# Row 4


def check_vectors(seed: str, locale: str, zone: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone, "PYTHONUTF8": "0"}
    command = [sys.executable, str(ROOT / "fixtures/vectors.py"), "--check"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


SEEDS = ("0", "1", "42", "4294967295", "random")
LOCALES = ("C", "C.UTF-8", "POSIX", "tr_TR.UTF-8")
ZONES = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati")


def test_vectors_hold_under_a_strange_locale_and_zone() -> None:
    assert check_vectors("random", "tr_TR.UTF-8", "Pacific/Kiritimati").endswith(" vectors hold\n")


@pytest.mark.nightly
@pytest.mark.parametrize("seed", SEEDS)
def test_vectors_hold_everywhere(seed: str) -> None:
    found = {check_vectors(seed, locale, zone) for locale in LOCALES for zone in ZONES}
    assert len(found) == 1
    assert found.pop().endswith(" vectors hold\n")
