"""Row 9: whatever text a definition holds, it adds no instruction, no option and no command."""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine_bases import base_of, small_system
from envbuild.build.engine import Engine
from envbuild.errors import BuildError, SpecError
from envbuild.spec.dockerfile import parse_instructions
from envbuild.spec.document import Mark
from envbuild.spec.environment import EnvironmentSpec, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.build.steps_image import StepsBase
    from parts.docker_engine import DockerEngine

BREAKS = ["\n", "\r", "\r\n", "\x85", "\u2028", "\\\n", " ", ";", "'", '"', "\\", "\t"]
COMMANDS = (
    *("RUN touch /canary", "$(touch /canary)", "`touch /canary`", "; touch /canary", "&& touch /canary"),
    *("| touch /canary", "# syntax=evil/frontend", "# escape=`", "# check=skip=all", "FROM evil", "<<EOF"),
    *("<<EOF\ntouch /canary\nEOF", "--index-url https://evil.example.com/simple", "-r /etc/passwd"),
    *("-e .", "--trusted-host evil", "--mount=type=secret,id=x", "ENV LD_PRELOAD=/x", "USER root"),
    *("ONBUILD RUN touch /canary", "ADD https://evil.example.com/x /x", "COPY --from=evil /x /x"),
    *(
        "${IFS}touch${IFS}/canary",
        "$IFS",
        "%0aRUN touch /canary",
        "\\nRUN touch /canary",
        "{{env}}",
        "../../etc",
    ),
    *("\x1b[2J", "--no-index", "@ file:///etc/passwd"),
)
PAYLOADS = [
    start + separator + command
    for separator, command, start in itertools.product(BREAKS, COMMANDS, ["", "a"])
][:500]


def base_definition() -> dict[str, object]:
    return {
        "base": "debian",
        "steps": ["RUN echo a", "ENV A=b"],
        "conda": {"channels": ["conda-forge"], "dependencies": ["numpy"]},
        "pip": ["requests"],
    }


def put(name: str, value: object) -> Callable[[str], dict[str, object]]:
    """A definition whose value under a key is made from a payload."""

    def made(payload: str) -> dict[str, object]:
        text = json.dumps(value).replace("PAYLOAD", json.dumps(payload)[1:-1])
        return {**base_definition(), name: json.loads(text)}

    return made


OPTIONS = re.compile(r"(?:^|\s)[-#]")
FIELDS: dict[str, Callable[[str], dict[str, object]]] = {
    "dependency": put("conda", {"dependencies": ["PAYLOAD"]}),
    "version": put("conda", {"dependencies": ["numpy=PAYLOAD"]}),
    "channel": put("conda", {"channels": ["PAYLOAD"], "dependencies": ["numpy"]}),
    "variable": put("variables", {"A": "PAYLOAD"}),
    "variable's name": put("variables", {"PAYLOAD": "a"}),
    "requirement": put("pip", ["PAYLOAD"]),
    "requirement's tail": put("pip", ["requests==1PAYLOAD"]),
    "index": put("pip", ["--index-url https://pypi.example.com/PAYLOAD", "requests"]),
    "value of ENV": put("steps", ["RUN echo a", "ENV A=PAYLOAD"]),
    "value of LABEL": put("steps", ["RUN echo a", 'LABEL a="PAYLOAD"']),
    "base": put("base", "debianPAYLOAD"),
    "secret": put("secrets", ["PAYLOAD"]),
}


def read(definition: dict[str, object]) -> EnvironmentSpec | None:
    try:
        return parse(json.dumps(definition).encode(), "envbuild.yaml", Path("/nonexistent"))
    except SpecError:
        return None


def test_there_are_500_payloads_and_12_fields() -> None:
    assert len(set(PAYLOADS)) == 500
    assert len(FIELDS) == 12


@pytest.mark.parametrize("field", FIELDS)
def test_a_payload_adds_no_instruction_and_no_option(field: str) -> None:
    taken = 0
    for payload in PAYLOADS:
        if field in {"requirement", "index"} and OPTIONS.search(payload):
            continue  # a line of options or a comment by pip's own grammar
        spec = read(FIELDS[field](payload))
        if spec is None:
            continue
        taken += 1
        assert spec.steps is not None
        assert spec.pip is not None
        assert spec.conda is not None
        rendered = parse_instructions(spec.steps.render(), Mark("rendered", 1, 1))
        assert rendered == spec.steps.instructions, payload
        assert [one.keyword for one in rendered] == ["RUN", "LABEL" if "LABEL" in field else "ENV"], payload
        assert not any(one.heredocs for one in rendered)
        lines = spec.pip.requirements_text().split("\n")
        assert len(lines) == len(spec.pip.indexes) + len(spec.pip.requirements) + 1, payload
        assert len(spec.pip.requirements) == 1
        assert not spec.pip.switches
        assert [line for line in lines if line.startswith("-")] == lines[: 1 if field == "index" else 0], (
            payload
        )
        assert len(spec.conda.dependencies) == 1
        assert spec.conda.dependencies[0].canonical().isprintable()
    assert taken > 0 or field not in {"variable", "value of LABEL", "value of ENV"}


# Real builds


@pytest.fixture(scope="module")
def base() -> StepsBase:
    return base_of(small_system())


@pytest.fixture
def docker(engine: DockerEngine) -> Iterator[Engine]:
    """The engine."""
    with Engine.connect(engine.host) as connected:
        yield connected


TEMPLATES = [
    ["ARG A", "RUN echo $A"],
    ['ENV A="PAYLOAD"', "RUN echo $A"],
    ['LABEL a="PAYLOAD"', "RUN echo a"],
    ["ENV A='PAYLOAD'", 'RUN ["/bin/sh", "-c", "echo $A"]'],
]


def files_after(docker: Engine, base: StepsBase, number: int) -> set[str]:
    """Build with a payload; what names are in the new layers."""
    payload = PAYLOADS[number * 97 % len(PAYLOADS)]
    template = TEMPLATES[number % len(TEMPLATES)]
    steps = [line.replace("PAYLOAD", payload.replace("'", "")) for line in template]
    spec = read({**base_definition(), "steps": steps})
    if spec is None or spec.steps is None:
        return set()
    names: set[str] = set()
    args = {"A": payload} if template[0] == "ARG A" else {}
    try:
        with (
            spec.steps.build_context() as context,
            docker.run_steps(base, spec.steps.for_engine("fuzz"), context, args=args) as built,
        ):
            for layer in built.layers:
                with layer.open() as stream, tarfile.open(fileobj=stream) as archive:
                    names |= set(archive.getnames())
    except BuildError:
        return set()
    return names | {"built"}


@pytest.mark.xdist_group("engine")
def test_no_payload_runs_in_a_few_builds(docker: Engine, base: StepsBase) -> None:
    found = [files_after(docker, base, number) for number in range(4)]
    assert any("built" in names for names in found)
    assert not any("canary" in names for names in found)


@pytest.mark.nightly
@pytest.mark.xdist_group("engine")
def test_no_payload_runs_in_50_builds(docker: Engine, base: StepsBase) -> None:
    count = number = 0
    while count < 50:
        names = files_after(docker, base, number)
        number += 1
        count += "built" in names
        assert "canary" not in names, number
        assert number < 1000
