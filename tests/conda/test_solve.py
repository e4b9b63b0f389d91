"""What is solved, from which channel, and what a definition without a solution is told."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from typing import TYPE_CHECKING

import pytest

import conda_oracle
from conda_packages import Entry, Package
from envbuild.conda.solve import SolveRequest, solve
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import ChannelError, EnvbuildError, SolveError, SpecError
from envbuild.platform import Platform
from envbuild.spec.channel import Channel
from envbuild.spec.conda import CondaSection
from envbuild.spec.document import Mark
from envbuild.spec.match import MatchSpec
from envbuild.spec.virtual import VirtualPackages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def package(
    name: str, version: str = "1.0", *depends: str, build: str = "0", moment: int = 1_600_000_000
) -> Package:
    """A package of one file."""
    index = {"depends": list(depends), "timestamp": moment * 1000}
    return Package((Entry(f"share/{name}", b"x"),), name, version, build, index=index)


CHANNELS = {
    "one": (
        package("lib"),
        package("app", "1.0", "lib >=2"),
        package("tool"),
        package("pandas", "2.0"),
        package("pandas", "2.1", build="cpu_0"),
        package("pandas", "2.2", build="cpu_0", moment=1_700_000_000),
        package("pytorch", "2.4"),
        package("fresh", "2.0", moment=1_700_000_000),
        package("pyyaml", "6.0"),
        package("typing_extensions", "4.0"),
    ),
    "two": (
        package("lib", "2.0"),
        package("lib", "2.1"),
        package("numba", "1.0", "lib"),
        package("fresh", "1.0"),
        package("other", "1.0", "lib >=2"),
        package("only", "1.0", "numba"),
    ),
    "three": (package("numba", "3.0"), package("lib", "3.0")),
}


@pytest.fixture(scope="session")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    alias = tmp_path_factory.mktemp("channels")
    for name, packages in CHANNELS.items():
        for each in packages:
            each.put(alias / name)
        asyncio.run(conda_oracle.index(alias / name))
        as_built(alias / name)
    return alias


def as_built(channel: Path) -> None:
    """Leave each package the moment of its build alone: the index has that of now, which would count."""
    for path in channel.rglob("repodata*"):
        if path.name == "repodata.json":
            path.write_text(re.sub(r'"indexed_timestamp":\s*\d+,\s*', "", path.read_text()))
        else:
            path.unlink()


def solved(
    alias: Path,
    *dependencies: str,
    names: Sequence[str] = ("one", "two"),
    priority: str = "strict",
    nodefaults: bool = False,
    as_of: dt.datetime | None = None,
) -> dict[str, str]:
    """Channel and version of each package of the solution; the dependencies stand from line 4 on."""
    specs = [MatchSpec.parse(text, Mark("env.yml", line, 5)) for line, text in enumerate(dependencies, 4)]
    section = CondaSection(
        tuple(Channel.parse(name) for name in names), nodefaults, tuple(sorted(specs, key=str))
    ).under(alias.as_uri())
    request = SolveRequest(
        section, Platform.parse("linux/amd64"), VirtualPackages(glibc="2.36"), priority, as_of
    )
    found = solve(request, cache_dir=alias / "cache", deadline=NO_DEADLINE)
    assert found.urls == {each.url: (each.url,) for each in found.lock.packages}
    return {each.name: f"{each.channel.rpartition('/')[2]} {each.version}" for each in found.lock.packages}


def unsolved(alias: Path, *dependencies: str, **changes: object) -> SolveError:
    with pytest.raises(SolveError) as caught:
        solved(alias, *dependencies, **changes)  # type: ignore[arg-type]
    assert caught.value.exit_code == 5
    assert not caught.value.retryable
    return caught.value


# Channel priority


@pytest.mark.parametrize(
    "dependencies", [("lib>=2",), ("app",), ("app", "lib>=2"), ("lib=2", "tool"), ("lib[build=0]", "lib>1.5")]
)
def test_strict_a_package_comes_from_the_first_channel_that_has_it_or_from_none(
    channels: Path, dependencies: tuple[str, ...]
) -> None:
    error = unsolved(channels, *dependencies)
    said = "the channel two has 2.1, 2.0, hidden by the channel one, which comes first and has 1.0"
    assert said in str(error)
    assert error.hint == "take it from that channel with two::lib, or set channel_priority: flexible"


def test_strict_the_line_of_what_is_hidden_is_named(channels: Path) -> None:
    assert "\nenv.yml:5:5: lib >=2: the channel two has" in str(unsolved(channels, "app", "lib>=2"))


@pytest.mark.parametrize(
    ("priority", "dependencies", "lib"),
    [
        ("strict", ("lib",), "one 1.0"),
        ("strict", ("lib>=1",), "one 1.0"),
        ("strict", ("two::lib",), "two 2.1"),
        ("strict", ("app", "two::lib"), "two 2.1"),
        ("strict", ("two::lib", "lib>=2"), "two 2.1"),
        ("strict", ("two::lib=2.0", "lib"), "two 2.0"),
        ("flexible", ("lib",), "one 1.0"),
        ("flexible", ("lib>=2",), "two 2.1"),
        ("flexible", ("app",), "two 2.1"),
        ("disabled", ("lib",), "two 2.1"),
        ("disabled", ("lib<2",), "one 1.0"),
    ],
)
def test_where_a_package_comes_from(
    channels: Path, priority: str, dependencies: tuple[str, ...], lib: str
) -> None:
    assert solved(channels, *dependencies, priority=priority)["lib"] == lib


# Channels of dependencies


def test_a_channel_that_only_a_dependency_names_is_read_for_it(channels: Path) -> None:
    assert solved(channels, "two::numba", names=["one"]) == {"numba": "two 1.0", "lib": "one 1.0"}
    assert solved(channels, f"{channels.as_uri()}/two::numba", names=["one"])["numba"] == "two 1.0"


def test_it_stands_behind_all_others_and_has_what_these_have_not(channels: Path) -> None:
    found = solved(channels, "two::only", names=["one"])
    assert found == {"only": "two 1.0", "numba": "two 1.0", "lib": "one 1.0"}
    found = solved(channels, "two::only", "three::lib", names=["one"])
    assert found == {"only": "two 1.0", "numba": "three 3.0", "lib": "three 3.0"}


def test_it_is_enough_where_no_channel_is_named(channels: Path) -> None:
    found = solved(channels, "two::numba", names=[], nodefaults=True)
    assert found == {"numba": "two 1.0", "lib": "two 2.1"}
    with pytest.raises(SpecError, match="`nodefaults` stands alone"):
        solved(channels, "numba", names=[], nodefaults=True)


def test_of_a_channel_that_stands_for_several_the_one_is_taken_that_has_the_package(
    channels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tuple(f"{channels.as_uri()}/{name}" for name in ("one", "two"))
    monkeypatch.setattr("envbuild.spec.channel._DEFAULT_URLS", both)
    assert solved(channels, "defaults::numba", names=["three"])["numba"] == "two 1.0"
    assert solved(channels, "defaults::tool", names=["three"])["tool"] == "one 1.0"
    assert solved(channels, "numba", names=[]) == {"numba": "two 1.0", "lib": "one 1.0"}


# What a definition without a solution is told


@pytest.mark.parametrize(
    ("dependency", "said", "hint"),
    [
        ("pandsa", "no package pandsa is in the channels one, two: did you mean pandas?", "write pandas"),
        ("torch", "no package torch is in the channels one, two: did you mean pytorch?", "write pytorch"),
        ("yaml", "no package yaml is in the channels one, two: did you mean pyyaml?", "write pyyaml"),
        ("typing-extensions", "did you mean typing_extensions?", "write typing_extensions"),
        ("qqqqq", "no package qqqqq is in the channels one, two\n", "check its name"),
        ("cv2", "no package cv2 is in the channels one, two\n", "check its name"),
        ("pandas=9", "no version of pandas is 9.*: one has 2.2, 2.1, 2.0\n", "choose a version of pandas"),
        ("two::lib=1", "no version of lib is 1.*: two has 2.1, 2.0\n", "choose a version of lib"),
        (
            "pandas=2.1=cuda*",
            'no build of pandas is as pandas ==2.1[build="cuda*"] asks: there are 2.2=cpu_0, 2.1=cpu_0',
            "choose a build of pandas",
        ),
        ("two::tool", "no package tool is in the channel two: one has it", "name the channel that has it"),
    ],
)
def test_what_does_not_exist_is_told_with_its_line_and_what_does(
    channels: Path, dependency: str, said: str, hint: str
) -> None:
    error = unsolved(channels, "tool", dependency)
    assert "\nenv.yml:5:5: " in str(error)
    assert said in str(error)
    assert (error.hint or "").startswith(hint)
    assert "env.yml:4:5" not in str(error)


def test_a_contradiction_is_told_as_lint_tells_it(channels: Path) -> None:
    error = unsolved(channels, "pandas=2.0", "tool", "pandas>=2.1")
    assert "env.yml:6:5: no version of pandas satisfies 'pandas 2.0.*' and 'pandas >=2.1'" in str(error)
    assert error.hint == "correct or delete one of the constraints"


def test_every_line_that_is_wrong_is_told(channels: Path) -> None:
    said = str(unsolved(channels, "pandsa", "lib>=2", "pandas=9", "__cuda>=12"))
    assert [line.partition(" ")[0] for line in said.splitlines() if line.startswith("env.yml")] == [
        "env.yml:4:5:",
        "env.yml:5:5:",
        "env.yml:6:5:",
    ]


def test_versions_that_did_not_exist_at_the_moment_asked_for_are_not_offered(channels: Path) -> None:
    moment = dt.datetime(2021, 1, 1, tzinfo=dt.UTC)
    assert "one has 2.1, 2.0\n" in str(unsolved(channels, "pandas=9", as_of=moment))
    error = unsolved(channels, "pandas>2.1", as_of=moment)
    assert "env.yml:4:5: pandas >2.1: one has 2.2, newer than as_of\n" in str(error)
    assert error.hint == "choose a later as_of, or an older version of pandas"
    hidden = str(unsolved(channels, "fresh", as_of=moment))
    assert (
        "fresh: the channel two has 1.0, hidden by the channel one, which comes first and has 2.0" in hidden
    )
    assert solved(channels, "fresh", as_of=moment, priority="flexible") == {"fresh": "two 1.0"}


def test_many_unknown_names_are_told_quickly(channels: Path) -> None:
    said = str(unsolved(channels, *(f"pandsa{number}" for number in range(40))))
    assert said.count("no package pandsa") == 40
    assert 1 <= said.count("did you mean pandas?") <= 5


# Channels that cannot be read


@pytest.mark.parametrize("dependencies", [("lib",), ("missing::lib",)])
def test_a_channel_that_is_not_there_is_no_missing_solution(
    channels: Path, dependencies: tuple[str, ...]
) -> None:
    with pytest.raises(ChannelError, match=r"a channel is not there: .*missing/") as caught:
        solved(channels, *dependencies, names=["one", "missing"])
    assert (caught.value.exit_code, caught.value.retryable) == (4, False)


def test_a_channel_that_cannot_be_reached_may_be_retried(channels: Path) -> None:
    with pytest.raises(EnvbuildError, match=r"a channel could not be read: .*") as caught:
        solved(channels, "lib", names=["one", "http://127.0.0.1:1/gone"])
    assert isinstance(caught.value, ChannelError)
    assert (caught.value.exit_code, caught.value.retryable) == (4, True)
