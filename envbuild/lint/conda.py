"""Rules about Conda dependencies and channels."""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING, Final

from envbuild.lint.rule import NOTE, WARNING, by_name, dependencies_of, requirements_of, rule
from envbuild.spec.constraint import Term, parse_constraint
from envbuild.spec.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envbuild.lint.rule import Seen
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.match import MatchSpec

_EXACT_FIELDS: Final = ("url", "sha256", "md5", "fn")
_ZERO: Final = Version.parse("0").segments[0]
_PYTHONS: Final = re.compile(r"python|pypy(?:3(?:\.\d+)?)?|graalpy")
_PYTHON_BUILD: Final = re.compile(r"py(\d)(\d+)(?:[_*h]|\Z)")


def _is_exact(one: MatchSpec) -> bool:
    return any(one.get(name) for name in _EXACT_FIELDS)


def _alternatives(one: MatchSpec) -> tuple[frozenset[Term], ...]:
    return tuple(parse_constraint(one.version)[0]) if one.version is not None else (frozenset(),)


@rule(
    "EB101",
    "python-unpinned",
    WARNING,
    "the newest python is taken on the day of the build, and with it every compiled package changes",
    "pin the minor version, as python=3.11",
    lock=True,
    moment=True,
)
def python_unpinned(spec: EnvironmentSpec) -> Iterator[Seen]:
    """Python without a minor version."""
    pythons = by_name(spec).get("python", [])
    if pythons and not any(_pins_minor(one) for one in pythons):
        yield f"{pythons[0].canonical()!r} leaves python's minor version open", pythons[0].mark


def _pins_minor(one: MatchSpec) -> bool:
    return _is_exact(one) or all(_one_minor(conjunction) for conjunction in _alternatives(one))


def _one_minor(conjunction: frozenset[Term]) -> bool:
    bounds: dict[str, Version] = {}
    for term in conjunction:
        version = Version.parse(term.version)
        if term.operator == "==" or (term.operator == "=" and len(version.segments) > 1):
            return True
        bounds[term.operator[0]] = version
    if not {">", "<"} <= bounds.keys():
        return False
    low, high = _minor(bounds[">"]), _minor(bounds["<"])
    return low[0] == high[0] and high[1] - low[1] <= 1


def _minor(version: Version) -> tuple[int, int]:
    numbers = [segment[0][1] for segment in version.segments[:2]] + [0]
    return int(numbers[0]), int(numbers[1])


@rule(
    "EB102",
    "python-missing",
    WARNING,
    "pip requirements need a python, and which one comes is left to other packages or to the base",
    "add python=3.11 (or another minor version) to the dependencies",
)
def python_missing(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A pip section beside Conda dependencies without python."""
    if requirements_of(spec) and dependencies_of(spec) and "python" not in by_name(spec):
        yield "there are pip requirements, and python is not among the dependencies", None


@rule(
    "EB103",
    "several-pythons",
    WARNING,
    "an environment has one python; the second request is at best redundant and at worst unsolvable",
    "keep one request for python, and builds that are made for it",
)
def several_pythons(spec: EnvironmentSpec) -> Iterator[Seen]:
    """Python asked for twice, or builds for another python."""
    pythons = [one for one in dependencies_of(spec) if _PYTHONS.fullmatch(one.name)]
    if len(pythons) > 1:
        names = ", ".join(repr(one.canonical()) for one in pythons)
        yield f"python is asked for {len(pythons)} times: {names}", pythons[1].mark
    wanted = {minor for one in pythons if one.name == "python" and (minor := _exact_minor(one))}
    for one in dependencies_of(spec):
        build = _PYTHON_BUILD.search(one.get("build") or "")
        if build and len(wanted) == 1 and (int(build[1]), int(build[2])) not in wanted:
            yield (
                f"{one.canonical()!r} is a build for python {build[1]}.{build[2]}, and python is another",
                one.mark,
            )


def _exact_minor(one: MatchSpec) -> tuple[int, int] | None:
    for conjunction in _alternatives(one):
        for term in conjunction:
            version = Version.parse(term.version)
            if term.operator in {"==", "="} and len(version.segments) > 1:
                return _minor(version)
    return None


@rule(
    "EB104",
    "package-unpinned",
    WARNING,
    "the newest version on the day of the build is taken; the same definition gives another image later",
    "pin it, as NAME=1.26, or write a lock with `envbuild lock`",
    lock=True,
    moment=True,
)
def package_unpinned(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A package without any version."""
    for one in dependencies_of(spec):
        if one.version is None and not _is_exact(one) and one.name not in {"python", "pip"}:
            yield f"{one.name} has no version", one.mark


@rule(
    "EB105",
    "package-open",
    NOTE,
    "a lower bound alone admits every later release, also one that breaks",
    "add an upper bound, as NAME>=1.26,<2, or pin it",
    lock=True,
    moment=True,
)
def package_open(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A package with no upper bound."""
    for one in dependencies_of(spec):
        if one.version is None or _is_exact(one) or one.name == "python":
            continue
        if any(all(term.operator[0] in ">!" for term in terms) for terms in _alternatives(one)):
            yield f"{one.canonical()!r} has no upper bound", one.mark


@rule(
    "EB106",
    "duplicate",
    WARNING,
    "all of them hold at once, which is rarely what was meant",
    "join them into one",
)
def duplicate(spec: EnvironmentSpec) -> Iterator[Seen]:
    """One package asked for several times."""
    for name, specs in by_name(spec).items():
        if len(specs) > 1 and name != "python" and not _contradict(specs):
            words = ", ".join(repr(one.canonical()) for one in specs)
            yield f"{name} is asked for {len(specs)} times: {words}", specs[1].mark


@rule(
    "EB107",
    "contradiction",
    WARNING,
    "no version satisfies it, so that no solver will find an environment",
    "correct or delete one of the constraints",
)
def contradiction(spec: EnvironmentSpec) -> Iterator[Seen]:
    """Constraints on one package that no version satisfies."""
    yield from contradictions(dependencies_of(spec))


def contradictions(dependencies: Iterable[MatchSpec]) -> Iterator[Seen]:
    """Constraints on one package that no version satisfies, as the rule and a failed solve report them."""
    grouped: dict[str, list[MatchSpec]] = {}
    for one in dependencies:
        grouped.setdefault(one.name, []).append(one)
    for name, specs in grouped.items():
        if _contradict(specs):
            words = " and ".join(repr(one.canonical()) for one in specs)
            yield f"no version of {name} satisfies {words}", specs[-1].mark


def _contradict(specs: list[MatchSpec]) -> bool:
    joined = [frozenset[Term]().union(*each) for each in product(*map(_alternatives, specs[:6]))]
    return all(_impossible(conjunction) for conjunction in joined)


def _impossible(conjunction: frozenset[Term]) -> bool:
    """Whether two of the terms exclude each other; in doubt, they do not."""
    terms = [(term.operator, Version.parse(term.version)) for term in conjunction]
    return any(_exclude(*first, *second) for first in terms for second in terms if first is not second)


def _exclude(operator: str, version: Version, other: str, bound: Version) -> bool:
    order = version.compare(bound)
    starts = _starts_with(version, bound) or (operator == "=" and _starts_with(bound, version))
    excluded = {
        ("==", "=="): order != 0,
        ("==", "="): not starts,
        ("=", "="): not starts,
        ("==", ">"): order <= 0,
        ("==", ">="): order < 0,
        ("==", "<"): order >= 0,
        ("==", "<="): order > 0,
        ("==", "!="): order == 0,
        ("=", ">"): order < 0 and not starts,
        ("=", ">="): order < 0 and not starts,
        ("=", "<"): order > 0 and not starts,
        ("=", "<="): order > 0 and not starts,
        (">", "<"): order >= 0,
        (">", "<="): order >= 0,
        (">=", "<"): order >= 0,
        (">=", "<="): order > 0,
    }
    return excluded.get((operator, other), False)


def _starts_with(version: Version, start: Version) -> bool:
    """Whether a version belongs to a series; missing parts of it count as zero."""
    wanted = start.segments
    have = [*version.segments, *([_ZERO] * len(wanted))][: len(wanted)]
    last = wanted[-1]
    return version.epoch == start.epoch and tuple(have[:-1]) == wanted[:-1] and have[-1][: len(last)] == last


@rule(
    "EB108",
    "channels-missing",
    WARNING,
    "Conda takes Anaconda's `defaults`, whose terms ask larger organisations to pay",
    "name the channels, as `channels: [conda-forge]`",
)
def channels_missing(spec: EnvironmentSpec) -> Iterator[Seen]:
    """No channel."""
    if spec.conda is not None and spec.conda.dependencies and not spec.conda.channels:
        named = [one for one in spec.conda.dependencies if one.channel is None and not one.get("url")]
        if named:
            yield "no channel is named", None
