"""Many definitions at once."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envbuild.errors import CacheMiss, SpecError, Unavailable
from envbuild.prewarm import Outcome, definitions, prewarm
from envbuild.resolver import ResolvedImage, Resolver, Source
from parts.registry_server import RegistryServer
from tiny import World


class TestDefinitions:
    """Which files some places stand for."""

    def test_files_in_order_each_once(self, tmp_path: Path) -> None:
        one, two = tmp_path / "b.yml", tmp_path / "a.txt"
        one.touch()
        two.touch()
        assert definitions([str(one), str(two), str(one)]) == (str(one), str(two))

    def test_a_folder_stands_for_the_yaml_files_under_it(self, tmp_path: Path) -> None:
        for name in ("b.yml", "a.yaml", "deep/er/c.yml", "no.txt", ".hidden.yml", ".git/d.yml"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "folder.yml").mkdir()
        found = [str(Path(each).relative_to(tmp_path)) for each in definitions([str(tmp_path)])]
        assert found == ["a.yaml", "b.yml", "deep/er/c.yml"]

    def test_a_folder_with_a_hidden_parent_counts(self, tmp_path: Path) -> None:
        folder = tmp_path / ".hidden"
        folder.mkdir()
        (folder / "a.yml").touch()
        assert definitions([str(folder)]) == (str(folder / "a.yml"),)

    def test_standard_input_is_no_file(self) -> None:
        assert definitions(["-"]) == ("-",)

    @pytest.mark.parametrize("place", ["not-there.yml", "empty"])
    def test_what_holds_nothing_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(SpecError, match=place):
            definitions([place])


def image(source: str) -> ResolvedImage:
    """Something to answer with; nobody looks into it here."""
    answer: Any = f"image of {source}"
    return answer  # type: ignore[no-any-return]


def test_at_most_so_many_are_under_way() -> None:
    guard = threading.Lock()
    running = [0, 0]

    def resolve(source: str) -> ResolvedImage:
        with guard:
            running[0] += 1
            running[1] = max(running)
        time.sleep(0.01)
        with guard:
            running[0] -= 1
        return image(source)

    sources = [str(number) for number in range(40)]
    outcomes = list(prewarm(sources, resolve, jobs=4))
    assert sorted(outcome.source for outcome in outcomes) == sorted(sources)
    assert running == [0, 4]


def test_one_that_fails_does_not_stop_the_rest() -> None:
    errors = {"1": SpecError("bad"), "3": Unavailable("down")}

    def resolve(source: str) -> ResolvedImage:
        if source in errors:
            raise errors[source]
        return image(source)

    outcomes = {outcome.source: outcome for outcome in prewarm("01234", resolve, jobs=2)}
    assert {source: outcome.error for source, outcome in outcomes.items() if outcome.error} == errors
    assert all((outcome.image is None) != (outcome.error is None) for outcome in outcomes.values())


def test_outcomes_come_as_they_end() -> None:
    first_may_end = threading.Event()

    def resolve(source: str) -> ResolvedImage:
        if source == "slow":
            assert first_may_end.wait(30)
        return image(source)

    outcomes = prewarm(["slow", "quick"], resolve, jobs=2)
    assert next(outcomes).source == "quick"
    first_may_end.set()
    assert next(outcomes).source == "slow"


def test_a_fault_of_ours_is_not_an_outcome() -> None:
    def resolve(source: str) -> ResolvedImage:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(prewarm(["a"], resolve, jobs=1))


def test_who_stops_listening_cancels_what_has_not_begun() -> None:
    begun = []

    def resolve(source: str) -> ResolvedImage:
        begun.append(source)
        time.sleep(0.05)
        return image(source)

    outcomes = prewarm([str(number) for number in range(20)], resolve, jobs=1)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert len(begun) < 5


def test_a_given_executor_runs_it_and_stays_open() -> None:
    class Counting(ThreadPoolExecutor):
        submitted = 0

        def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
            self.submitted += 1
            return super().submit(*arguments, **options)

    with Counting(2) as executor:
        assert len(list(prewarm("abc", image, jobs=1, executor=executor))) == 3
        assert executor.submitted == 3
        assert executor.submit(lambda: 7).result() == 7


def test_real_definitions_share_layers_and_answers(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    folder = tmp_path / "envs"
    folder.mkdir()
    for number in range(6):
        world.spec("thing", "tool=1", name=f"envs/{number}.yml", variables={"N": str(number % 3)})
    world.spec("nowhere", name="envs/bad.yml")
    with Resolver(world.config) as resolver:
        sources = definitions([str(folder)])
        outcomes = {each.source: each for each in prewarm(sources, resolver.resolve, jobs=4)}
        images = [each.image for each in outcomes.values() if each.image is not None]
        assert len(images) == 6
        assert len({each.reference for each in images}) == 3
        assert sum(each.source is Source.BUILT for each in images) == 3
        assert [Path(source).name for source, each in outcomes.items() if each.error] == ["bad.yml"]
        again = list(prewarm(sources, lambda source: resolver.resolve(source, build=False), jobs=4))
    assert {each.image.source for each in again if each.image} == {Source.INDEX}
    assert [type(each.error) for each in again if each.error] == [CacheMiss]


def test_an_emptied_registry_is_filled_again(tmp_path: Path, stoppable_registry: RegistryServer) -> None:
    server, world = stoppable_registry, World.make(tmp_path)
    config = replace(world.config, workspace=server.repository("envs"))
    specs = [str(world.spec("tool", "pyth", name=f"{name}.yml", variables={"N": name})) for name in "abc"]

    def warmed(*, build: bool) -> dict[str, Outcome]:
        with Resolver(config, confirm=True) as resolver:
            outcomes = prewarm(specs, lambda source: resolver.resolve(source, build=build), jobs=2)
            return {outcome.source: outcome for outcome in outcomes}

    assert {each.image.source for each in warmed(build=True).values() if each.image} == {Source.BUILT}
    before = len(server.requests)
    assert {each.image.source for each in warmed(build=False).values() if each.image} == {Source.WORKSPACE}
    asked = [line for line in server.requests[before:] if "/manifests/" in line]
    assert len(asked) == len(specs), "one question for each"
    server.stop()
    shutil.rmtree(server.folder / "data")
    server.start()
    assert all(isinstance(each.error, CacheMiss) for each in warmed(build=False).values())
    again = warmed(build=True)
    assert {each.image.source for each in again.values() if each.image} == {Source.BUILT}
    with Resolver(replace(world.other_machine(), workspace=config.workspace, deep=True)) as resolver:
        for source in specs:
            found = resolver.resolve(source, build=False)
            assert again[source].image is not None
            assert found.reference == again[source].image.reference  # type: ignore[union-attr]
