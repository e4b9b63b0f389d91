"""Row 32: a package of a channel with less priority is never chosen under strict priority.

Random channels are solved, and a solution is looked for in another way, too: by trying all choices. What the
one finds, the other finds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from envbuild.conda.solve import SolveRequest, solve
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import SolveError
from envbuild.platform import Platform
from envbuild.spec.channel import Channel
from envbuild.spec.conda import CondaSection
from envbuild.spec.match import MatchSpec
from envbuild.spec.virtual import VirtualPackages

if TYPE_CHECKING:
    from pathlib import Path

NAMES: Final = ("a", "b", "c")
CHANNELS: Final = ("one", "two", "three")
CASES: Final = 120
COMPARE: Final = {"==": operator.eq, ">=": operator.ge, "<": operator.lt, "!=": operator.ne}


@dataclass(frozen=True)
class Build:
    """One package of a channel."""

    channel: str
    name: str
    version: int
    depends: tuple[str, ...]


def constraint(chance: random.Random, name: str) -> str:
    """A match spec for a name, of the kinds that definitions have."""
    if chance.random() < 0.3:
        return name
    return f"{name}{chance.choice(tuple(COMPARE))}{chance.randint(1, 4)}"


def channels(chance: random.Random) -> list[Build]:
    """Which channel has what."""
    found = []
    for channel, name, version in itertools.product(CHANNELS, NAMES, (1, 2, 3)):
        if chance.random() < 0.4:
            others = [each for each in NAMES if each != name and chance.random() < 0.35]
            found.append(Build(channel, name, version, tuple(constraint(chance, each) for each in others)))
    return found


def write(alias: Path, builds: list[Build]) -> None:
    """Write the index of each channel; nothing is fetched."""
    for channel, subdir in itertools.product(CHANNELS, ("linux-64", "noarch")):
        packages = {}
        for each in builds if subdir == "linux-64" else ():
            if each.channel == channel:
                file_name = f"{each.name}-{each.version}-0.conda"
                packages[file_name] = {
                    "name": each.name,
                    "version": str(each.version),
                    "build": "0",
                    "build_number": 0,
                    "depends": list(each.depends),
                    "subdir": subdir,
                    "sha256": hashlib.sha256(f"{channel}/{file_name}".encode()).hexdigest(),
                    "size": 1,
                }
        folder = alias / channel / subdir
        folder.mkdir(parents=True)
        document = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": packages}
        (folder / "repodata.json").write_text(json.dumps(document))


def allows(spec: str, build: Build) -> bool:
    """Whether a match spec allows a package; its channel and name are the right ones."""
    bound = re.fullmatch(r"(?:\w+::)?\w+?(?:(==|>=|<|!=)(\d))?", spec)
    assert bound is not None
    return bound[1] is None or bool(COMPARE[bound[1]](build.version, int(bound[2])))


def candidates(builds: list[Build], asked: tuple[str, ...], priority: str) -> dict[str, list[Build]]:
    """For each name the packages that may be chosen at all."""
    found = {}
    for name in NAMES:
        own = {spec.partition("::")[0] for spec in asked if re.match(rf"\w+::{name}(?!\w)", spec)}
        there = [each for each in builds if each.name == name and (not own or own == {each.channel})]
        if priority == "strict" and not own and there:
            first = min((each.channel for each in there), key=CHANNELS.index)
            there = [each for each in there if each.channel == first]
        found[name] = there
    return found


def is_solution(chosen: dict[str, Build], asked: tuple[str, ...]) -> bool:
    """Whether packages satisfy what was asked for, and each other."""
    wanted = [spec.rpartition("::")[2] for spec in asked]
    wanted += [spec for each in chosen.values() for spec in each.depends]
    return all(spec[0] in chosen and allows(spec, chosen[spec[0]]) for spec in wanted)


def is_solvable(found: dict[str, list[Build]], asked: tuple[str, ...]) -> bool:
    """Whether one of all choices is a solution."""
    choices = itertools.product(*([None, *found[name]] for name in NAMES))
    return any(is_solution({each.name: each for each in choice if each}, asked) for choice in choices)


@pytest.mark.parametrize("priority", ["strict", "flexible", "disabled"])
def test_every_package_comes_from_where_its_priority_says(tmp_path: Path, priority: str) -> None:
    chance = random.Random(f"row 32 {priority}")
    seen = {True: 0, False: 0}
    for case in range(CASES):
        alias = tmp_path / str(case)
        builds = channels(chance)
        write(alias, builds)
        asked = tuple(constraint(chance, name) for name in chance.sample(NAMES, chance.randint(1, 2)))
        if chance.random() < 0.3:
            asked = (f"{chance.choice(CHANNELS)}::{asked[0]}", *asked[1:])
        section = CondaSection(
            tuple(map(Channel.parse, CHANNELS)), dependencies=tuple(map(MatchSpec.parse, asked))
        ).under(alias.as_uri())
        request = SolveRequest(section, Platform.parse("linux/amd64"), VirtualPackages(), priority, None)
        found = candidates(builds, asked, priority)
        solvable = is_solvable(found, asked)
        seen[solvable] += 1
        if not solvable:
            with pytest.raises(SolveError):
                solve(request, cache_dir=alias / "cache", deadline=NO_DEADLINE)
            continue
        solution = solve(request, cache_dir=alias / "cache", deadline=NO_DEADLINE)
        chosen = {
            record.name: next(
                each
                for each in found[record.name]
                if (each.channel, str(each.version)) == (record.channel.rpartition("/")[2], record.version)
            )
            for record in solution.lock.packages
        }
        assert is_solution(chosen, asked), f"{asked} in {builds}: {chosen}"
    assert min(seen.values()) >= 20, seen
