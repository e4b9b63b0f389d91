"""What steps read beside their key: nothing of envbuild's, of other builds, of the base's triggers."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine_bases import base_of, content_of, files_of, fresh, small_system
from envbuild.build.engine import Engine
from envbuild.build.steps_image import BuiltSteps, Limits, StepsBase
from envbuild.errors import BuildError
from envbuild.spec.document import Mark
from envbuild.spec.steps import Steps
from parts.docker_engine import DockerEngine

pytestmark = pytest.mark.xdist_group("engine")
MARK = Mark("steps", 1, 1)


@dataclass(frozen=True)
class Way:
    """One way by which steps get to what builds them.

    Attributes:
        host: The engine's address.
        more: What makes the engine go this way.
        buildkit: Whether ``RUN --mount`` is known.
    """

    host: str
    more: dict[str, Any] = field(default_factory=dict)
    buildkit: bool = True

    def run(self, base: StepsBase, steps: Steps, caches: str = "own") -> BuiltSteps:
        opened = steps.build_context() if steps.context else nullcontext()
        with Engine.connect(self.host) as engine, opened as context:
            return engine.run_steps(base, steps.for_engine(caches), context, **self.more)


@pytest.fixture(params=["BuildKit", "older builder", "buildx", "Podman"])
def way(request: pytest.FixtureRequest) -> Way:
    fixture: Callable[[str], DockerEngine] = request.getfixturevalue
    if request.param == "Podman":
        return Way(fixture("podman").host)
    host = fixture("engine").host
    if request.param == "buildx":
        fixture("buildx")
        return Way(host, {"secrets": {"any": b"makes the engine's builder be asked through buildx"}})
    if request.param == "older builder":
        return Way(host, {"limits": Limits(memory=256 << 20)}, buildkit=False)
    return Way(host)


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def below(built: BuiltSteps, folder: str) -> set[str]:
    """The files below a folder of the image."""
    found = {name for name, entry in files_of(built).items() if entry.isreg()}
    return {name.removeprefix(f"{folder}/") for name in found if name.startswith(f"{folder}/")}


def test_copy_gets_the_context_and_nothing_else(way: Way, tmp_path: Path) -> None:
    files = {
        ".dockerignore": "left-out\n",
        ".containerignore": "*\n",
        ".envbuild.Dockerfile": "the user's own",
        "Dockerfile": "FROM elsewhere",
        "a.txt": "a",
        "d/e.txt": fresh(),
    }
    context = written(tmp_path / "context", {**files, "left-out": "no"})
    with tarfile.open(context / "packed.tar", "w") as archive:
        archive.add(context / "a.txt", "unpacked")
    text = "COPY . /all\nCOPY d /d/\nCOPY *.txt d/*.txt /globbed/\nADD packed.tar /added/\n"
    text += "ARG NAME=a\nCOPY ${NAME}.txt /renamed/b\n"
    if way.buildkit:
        text += "RUN --mount=target=/context ls -A /context > /listed\n"
        text += "RUN --mount=source=d,target=/context ls -A /context > /listed-d\n"
    steps = Steps.parse(text, MARK, args={}, context=context)
    with way.run(base_of(small_system()), steps) as built:
        assert below(built, "all") == {*files, "packed.tar"}
        assert content_of(built, "all/.envbuild.Dockerfile") == b"the user's own"
        assert below(built, "d") == {"e.txt"}
        assert below(built, "globbed") == {"a.txt", "e.txt"}
        assert below(built, "added") == {"unpacked"}
        assert below(built, "renamed") == {"b"}
        if way.buildkit:
            assert set(content_of(built, "listed").decode().split()) == {*files, "packed.tar"} - {
                "d/e.txt"
            } | {"d"}
            assert content_of(built, "listed-d") == b"e.txt\n"
        assert ".envbuild" not in built.config.decode()
        history = [entry["created_by"] for entry in json.loads(built.config)["history"]]
    assert any(said.startswith(("COPY . /all", "/bin/sh -c #(nop) COPY")) for said in history)


def test_copy_of_a_context_without_files(way: Way, tmp_path: Path) -> None:
    steps = Steps.parse(f"COPY . /{fresh()}\nWORKDIR /made\n", MARK, args={}, context=written(tmp_path, {}))
    with way.run(base_of(small_system()), steps) as built:
        assert not [name for name, entry in files_of(built).items() if entry.isreg()]


def test_what_is_not_there_is_named_as_the_user_wrote_it(way: Way) -> None:
    with Engine.connect(way.host) as engine, pytest.raises(BuildError) as caught:
        engine.run_steps(base_of(small_system()), "COPY .envbuild.context/missing /x\n", **way.more)
    assert "missing" in caught.value.message
    assert ".envbuild" not in caught.value.message


@pytest.mark.parametrize("way", ["BuildKit", "buildx", "Podman"], indirect=True)
def test_a_cache_is_seen_by_its_own_steps_alone(way: Way) -> None:
    shared, base = fresh(), base_of(small_system())

    def steps(word: str, option: str) -> Steps:
        text = (
            f"RUN --mount=type=cache,target=/cache/{shared}{option} "
            f"ls /cache/{shared} > /seen && touch /cache/{shared}/{word} && echo {word}\n"
        )
        return Steps.parse(f"{text}{text.replace('/seen', '/seen-again')}", MARK, args={}, context=None)

    for option in ("", f",id={shared}", f",id=/{shared}/x"):
        for word in ("first", "second"):
            with way.run(base, steps(word, option), caches=f"{word}-{shared}") as built:
                assert content_of(built, "seen") == b"", "another definition's files"
                assert content_of(built, "seen-again").split() == [word.encode()]


def test_the_variables_of_this_process_are_no_arguments(
    engine: DockerEngine, buildx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567")
    steps = Steps.parse(
        f"ARG SOURCE_DATE_EPOCH\nRUN echo {fresh()} >&2; echo is:$SOURCE_DATE_EPOCH > /seen\n",
        MARK,
        args={},
        context=None,
    )
    with Way(engine.host, {"secrets": {"any": b"of the test"}}).run(base_of(small_system()), steps) as built:
        assert content_of(built, "seen") == b"is:\n"


def test_a_bases_triggers_are_kept_and_not_run(way: Way) -> None:
    base = base_of(small_system(), settings={"OnBuild": ["RUN echo triggered > /triggered"]})
    steps = Steps.parse(f"RUN echo {fresh()} > /stepped\n", MARK, args={}, context=None)
    with way.run(base, steps) as built:
        assert "triggered" not in files_of(built)
        assert "stepped" in files_of(built)
        assert json.loads(built.config)["config"]["OnBuild"] == ["RUN echo triggered > /triggered"]
