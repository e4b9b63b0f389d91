"""Definitions made at random, written in many layouts, and edited, for the properties of keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from envbuild.digest import Digest
from envbuild.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("numpy", "pandas", "scipy", "zlib", "libpng", "r-base", "scikit-learn", "_openmp_mutex", "x.y")
VERSIONS = ("1", "1.2", "1.2.3", "3.10", "2024a", "0.5rc1")
CHANNELS = ("conda-forge", "bioconda", "https://conda.example.com/team", "nvidia/label/cuda-12.4.0")
CONDA_OPERATORS = ("{n}", "{n}={v}", "{n}=={v}", "{n}>={v}", "{n} {v}.*", "{n}={v}=py311*", "{n}!={v}")
PIP_OPERATORS = ("{n}", "{n}=={v}", "{n}>={v}", "{n}[extra]=={v}", "{n}=={v}; python_version < '3.12'")
PIP_NAMES = ("requests", "flask", "my-lib", "uvicorn")
COMMANDS = (
    "RUN apt-get update",
    "ENV A=1",
    "WORKDIR /srv",
    "RUN echo 'a  b' > /x",
    'RUN ["a", "b"]',
    "USER 1000",
)
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/s390x")


@dataclass(frozen=True)
class Sample:
    """A definition as values, apart from any layout."""

    base: Digest | None
    platform: str
    channels: tuple[str, ...]
    conda: tuple[str, ...]
    pip: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    steps: tuple[str, ...]
    steps_after: tuple[str, ...]
    channel_priority: str
    as_of: str | None
    pip_options: tuple[str, ...] = field(default=())


def sample(random: Random) -> Sample:
    """A definition at random, at most one requirement a name."""
    return Sample(
        base=random.choice([None, Digest.of(random.randbytes(8))]),
        platform=random.choice(PLATFORMS),
        channels=tuple(random.sample(CHANNELS, random.randint(2, 4))),
        conda=_requirements(random, NAMES, CONDA_OPERATORS, 1),
        pip=_requirements(random, PIP_NAMES, PIP_OPERATORS, 0),
        variables=tuple(
            (f"V{number}", random.choice(["", "1", "a b", "é", "x=y", "#"]))
            for number in range(random.randint(0, 3))
        ),
        steps=tuple(random.choices(COMMANDS, k=random.randint(0, 3))),
        steps_after=tuple(random.choices(COMMANDS, k=random.randint(0, 2))),
        channel_priority=random.choice(["strict", "flexible", "disabled"]),
        as_of=random.choice([None, "2026-11-01", "2025-02-03"]),
    )


def _requirements(
    random: Random, names: tuple[str, ...], forms: tuple[str, ...], least: int
) -> tuple[str, ...]:
    chosen = random.sample(names, random.randint(least, len(names)))
    return tuple(random.choice(forms).format(n=name, v=random.choice(VERSIONS)) for name in chosen)


def document(one: Sample) -> dict[str, Any]:
    """The sample as an ``envbuild.yaml``."""
    found: dict[str, Any] = {
        "base": f"registry.example.com/base@{one.base}" if one.base else "scratch",
        "conda": {"channels": list(one.channels), "dependencies": list(one.conda)},
        "pip": [*one.pip_options, *one.pip],
        "variables": dict(one.variables),
        "steps": list(one.steps),
        "steps_after": list(one.steps_after),
        "channel_priority": one.channel_priority,
        "platform": one.platform,
    }
    if one.as_of:
        found["as_of"] = one.as_of
    return {name: value for name, value in found.items() if value not in ([], {})}


def plain(one: Sample) -> bytes:
    """The sample in one fixed layout."""
    return json.dumps(document(one), ensure_ascii=False).encode()


UNORDERED = frozenset({"dependencies", "pip"})


def shuffled(one: Sample, random: Random) -> bytes:
    """The sample in a layout at random: order, quotes, flow and block, comments, line ends."""
    content = _mapping(document(one), random, 0)
    content = (
        random.choice(["", "# first\n", "---\n", "\n\n"])
        + content
        + random.choice(["", "\n# last\n", "\n\n"])
    )
    if random.random() < 0.3:
        content = content.replace("\n", "\r\n")
    return (random.choice([b"", b"", b"\xef\xbb\xbf"])) + content.encode()


def _mapping(values: dict[str, Any], random: Random, indent: int) -> str:
    names = list(values)
    random.shuffle(names)
    lines = []
    if "dependencies" in names and random.random() < 0.5:
        lines.append(_line(indent, f"{random.choice(['name', 'prefix'])}: n{random.randint(0, 9)}"))
    for name in names:
        lines.append(_entry(name, values[name], random, indent))
        if random.random() < 0.2:
            lines.append(_line(indent, f"# {random.randint(0, 99)}"))
    return "".join(lines)


def _line(indent: int, text: str) -> str:
    return " " * indent + text + "\n"


def _entry(name: str, value: Any, random: Random, indent: int) -> str:
    key = random.choice([name, f"'{name}'", f'"{name}"'])
    if isinstance(value, list) and name in UNORDERED:
        options = [each for each in value if each.startswith("--")]
        rest = [each for each in value if not each.startswith("--")]
        rest += random.sample(rest, random.randint(0, len(rest)))
        random.shuffle(rest)
        value = options + rest
    if isinstance(value, str):
        return _line(indent, f"{key}: {_scalar(value, random)}{random.choice(['', '  # why'])}")
    if random.random() < 0.4:
        return _line(indent, f"{key}: {json.dumps(value, ensure_ascii=random.random() < 0.5)}")
    if isinstance(value, dict):
        return _line(indent, f"{key}:") + _mapping(value, random, indent + random.choice([1, 2, 4]))
    items = "".join(
        _line(indent + 2, f"-{random.choice([' ', '   '])}{_scalar(each, random)}") for each in value
    )
    return _line(indent, f"{key}:") + items


def _scalar(text: str, random: Random) -> str:
    forms = [json.dumps(text, ensure_ascii=False), json.dumps(text), "'" + text.replace("'", "''") + "'"]
    if text and text[0].isalnum() and not any(mark in text for mark in (": ", " #")):
        forms += [text, text]
    return random.choice(forms)


def edits() -> dict[str, Callable[[Sample, Random], Sample]]:
    """Changes of meaning, by name; each gives a sample that differs from the one given."""
    return {
        "base": lambda one, random: replace(one, base=Digest.of(random.randbytes(9))),
        "scratch": lambda one, random: replace(
            one, base=None if one.base else Digest.of(random.randbytes(9))
        ),
        "platform": lambda one, random: replace(
            one, platform=random.choice([each for each in PLATFORMS if each != one.platform])
        ),
        "channel": lambda one, _: replace(one, channels=(*one.channels, "added")),
        "channel order": lambda one, _: replace(one, channels=one.channels[::-1]),
        "dependency": lambda one, _: replace(one, conda=(*one.conda, "added")),
        "version": lambda one, _: replace(one, conda=(_bare(one.conda[0]) + "==9.9.7", *one.conda[1:])),
        "operator": lambda one, _: replace(one, conda=(_bare(one.conda[0]) + ">=9.9.8", *one.conda[1:])),
        "build": lambda one, _: replace(one, conda=(_bare(one.conda[0]) + "=9.9=h77*", *one.conda[1:])),
        "requirement": lambda one, _: replace(one, pip=(*one.pip, "added==1")),
        "pip option": lambda one, _: replace(one, pip=(*one.pip, "a"), pip_options=("--pre",)),
        "variable": lambda one, _: replace(one, variables=(*one.variables, ("ADDED", "1"))),
        "value": lambda one, random: replace(
            one, variables=(("V0", f"new {random.random()}"), *one.variables[1:])
        ),
        "step": lambda one, _: replace(one, steps=(*one.steps, "RUN added")),
        "step byte": lambda one, _: replace(one, steps=("RUN echo  'a b'", *one.steps)),
        "step after": lambda one, _: replace(one, steps_after=(*one.steps_after, "RUN added")),
        "priority": lambda one, _: replace(
            one, channel_priority="flexible" if one.channel_priority == "strict" else "strict"
        ),
        "as of": lambda one, _: replace(one, as_of="2024-05-06"),
    }


def _bare(requirement: str) -> str:
    for name in NAMES:
        if requirement.startswith(name):
            return name
    raise AssertionError(requirement)


def platform(one: Sample) -> Platform:
    """The sample's platform."""
    return Platform.parse(one.platform)
