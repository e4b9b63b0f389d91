"""Row 10: a name that only looks like another is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import pytest
from confusable_homoglyphs import confusables  # type: ignore[import-untyped]

from envbuild.errors import SpecError
from envbuild.spec.environment import parse

NAMES = "numpy pandas scipy requests python openssl pillow django flask cryptography boto3 pytorch".split()  # noqa: SIM905
BIDI = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff\u180e\U000e0061\ufe0f\u0301"


def lookalikes(character: str) -> list[str]:
    """Characters outside ASCII that look like one."""
    found = confusables.is_confusable(character, greedy=True) or []
    each = [other["c"] for one in found for other in one["homoglyphs"]]
    return [one for one in each if len(one) == 1 and not one.isascii()]


def forged() -> list[str]:
    """2,000 names that look like known ones."""
    random = Random(10)
    found: set[str] = set()
    for name, at in itertools.cycle([(each, at) for each in NAMES for at in range(len(each))]):
        if len(found) >= 1600:
            break
        if others := lookalikes(name[at]):
            found.add(name[:at] + random.choice(others) + name[at + 1 :])
        else:
            found.add(name[:at] + random.choice(BIDI + INVISIBLE) + name[at:])
        if random.random() < 0.3:
            place = random.randint(0, len(name))
            found.add(name[:place] + random.choice(BIDI) + name[place:])
    while len(found) < 2000:
        name = random.choice(NAMES)
        place = random.randint(0, len(name))
        found.add(name[:place] + random.choice(BIDI + INVISIBLE) * random.randint(1, 3) + name[place:])
    return sorted(found)


FORGED = forged()
PLACES = {
    "dependency": "dependencies: ['{}']\n",
    "dependency with a version": "dependencies: ['{}=1.2']\n",
    "requirement": "dependencies: [pip: ['{}==1.2']]\n",
    "extra": "dependencies: [pip: ['a[{}]']]\n",
    "channel": "channels: ['{}']\ndependencies: [a]\n",
    "channel of one": "dependencies: ['{}::a']\n",
}


def test_there_are_2_000_names() -> None:
    assert len(set(FORGED)) >= 2000
    assert not any(name.isascii() for name in FORGED)


@pytest.mark.parametrize("place", PLACES)
def test_all_are_refused(place: str) -> None:
    for name in FORGED:
        with pytest.raises(SpecError) as refusal:
            parse(PLACES[place].format(name).encode(), "environment.yml", Path("/nonexistent"))
        assert refusal.value.line is not None, name


def test_the_names_themselves_are_not() -> None:
    for name, place in itertools.product(NAMES, PLACES.values()):
        parse(place.format(name).encode(), "environment.yml", Path("/nonexistent"))
