"""Azure ML's definitions become base, steps and Conda sections, or say why they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envbuild.errors import SpecError
from envbuild.spec.environment import EnvironmentSpec, load
from envbuild.spec.stage import split_stage

SCHEMA = "$schema: https://azuremlschemas.azureedge.net/latest/environment.schema.json\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conda.yaml").write_text(
        "channels: [conda-forge]\ndependencies: [python=3.11, pip: [requests]]\n"
    )
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM debian:12\nCOPY data /data\nRUN true\n")
    (context / "data").write_text("one")
    return tmp_path


def read(folder: Path, content: str, name: str = "env.yml") -> EnvironmentSpec:
    (folder / name).write_text(content)
    return load(folder / name)


def refused(folder: Path, content: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read(folder, content)
    return caught.value


def test_image_and_conda_file(folder: Path) -> None:
    spec = read(
        folder, SCHEMA + "name: x\nversion: 1\nimage: mcr.microsoft.com/a/b:1\nconda_file: conda.yaml\n"
    )
    assert str(spec.base) == "mcr.microsoft.com/a/b:1"
    assert spec.conda is not None
    assert spec.conda.dependencies[0].name == "python"
    assert spec.pip is not None


def test_an_inline_conda_definition(folder: Path) -> None:
    spec = read(folder, "image: a/b\nconda_file:\n  channels: [conda-forge]\n  dependencies: [numpy]\n")
    assert spec.conda is not None
    assert [each.name for each in spec.conda.dependencies] == ["numpy"]


def test_a_file_without_image_needs_a_base(folder: Path) -> None:
    assert not read(folder, SCHEMA + "name: x\nconda_file: conda.yaml\n").has_base


def test_a_build_context_is_base_and_steps(folder: Path) -> None:
    spec = read(folder, SCHEMA + "name: x\nbuild: {path: context}\ntags: {a: b}\n")
    assert str(spec.base) == "docker.io/library/debian:12"
    assert spec.steps is not None
    assert [each.keyword for each in spec.steps.instructions] == ["COPY", "RUN"]
    assert [file.content for file in spec.steps.context] == [b"one"]


def test_a_dockerfile_by_another_name(folder: Path) -> None:
    (folder / "context" / "d").mkdir()
    (folder / "context" / "d" / "cpu").write_text("FROM debian:11\nCOPY data /\n")
    spec = read(folder, "build: {path: context, dockerfile_path: d/cpu}\n")
    assert str(spec.base) == "docker.io/library/debian:11"
    assert spec.steps is not None
    assert len(spec.steps.context) == 1


@pytest.mark.parametrize(
    "job",
    [
        "command: python x.py\nenvironment: {image: a/b, conda_file: conda.yaml}\ncompute: azureml:cpu\n",
        "type: pipeline\njobs:\n  one: {command: x, environment: {image: a/b, conda_file: conda.yaml}}\n",
        "type: parallel\ntask: {environment: {image: a/b, conda_file: conda.yaml}}\n",
        "jobs:\n  a: {environment: x}\n  b: {trial: {environment: {image: a/b, conda_file: conda.yaml}}}\n",
        "endpoint_name: e\nmodel: {path: m}\nenvironment: {image: a/b, conda_file: conda.yaml}\n",
    ],
)
def test_the_inline_environment_of_a_job(folder: Path, job: str) -> None:
    spec = read(folder, job, "job.yml")
    assert str(spec.base) == "docker.io/a/b:latest"
    assert spec.conda is not None


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("image: a/b\nbuild: {path: context}\n", 1, "side by side"),
        ("build: {path: context}\nconda_file: conda.yaml\n", 2, "side by side"),
        ("image: a/b\nconda_fil: conda.yaml\n", 2, "'conda_fil' is not a key"),
        ("image: a/b\nos_type: windows\n", 2, "expected linux"),
        ("image: a/b\nconda_file: https://example.com/conda.yaml\n", 2, "on this machine"),
        ("image: a/b\nconda_file: conda.yml\n", 2, "there is no file"),
        ("image: a/b\nconda_file: [numpy]\n", 2, "expected text"),
        ("image:\nconda_file: conda.yaml\n", 1, "is empty"),
        ("build: context\n", 1, "expected a mapping"),
        ("build: {}\n", 1, "no path"),
        ("build: {path: contex}\n", 1, "no folder"),
        ("build: {path: https://github.com/a/b}\n", 1, "on this machine"),
        ("build: {path: context, dockerfile_path: Nope}\n", 1, "there is no file"),
        ("build: {path: context, dockerfile: Dockerfile}\n", 1, "'dockerfile'"),
        ("command: x\nenvironment: azureml:AzureML-sklearn@latest\n", 2, "expected its definition"),
        ("command: x\nenvironment: file:env.yml\n", 2, "is in 'file:env.yml'"),
        ("command: x\nenvironment: [a]\n", 2, "a list"),
        ("command: x\ncompute: azureml:cpu\n", 1, "holds no environment"),
        (
            "jobs:\n  a: {environment: {image: a}}\n  b: {environment: {image: b}}\n",
            3,
            "holds 2 environments",
        ),
    ],
)
def test_what_only_a_workspace_understands_is_refused(
    folder: Path, content: str, line: int, message: str
) -> None:
    error = refused(folder, content)
    assert message in error.message
    assert (error.source, error.line) == (str(folder / "env.yml"), line)


def dockerfile(folder: Path, content: str) -> EnvironmentSpec:
    (folder / "context" / "Dockerfile").write_text(content)
    return read(folder, "build: {path: context}\n")


@pytest.mark.parametrize(
    ("content", "base"),
    [
        ("FROM debian:12", "debian:12"),
        ("# c\n\nfrom debian:12 as base\nRUN true\n", "debian:12"),
        ("ARG V=12\nFROM debian:${V}\n", "debian:12"),
        ("ARG V=12\nARG I=debian:$V\nFROM $I\n", "debian:12"),
        ('ARG V="12"\nFROM debian:$V\n', "debian:12"),
        ("FROM debian:${V:-12}\n", "debian:12"),
        ("FROM \\\n  # why\n  debian:12\nRUN true\n", "debian:12"),
        ("FROM debian:12\nRUN <<EOF\nFROM x\nEOF\n", "debian:12"),
        ("FROM debian:12\nRUN echo \\\nFROM x\n", "debian:12"),
        ("FROM debian:12\r\nRUN true\r\n", "debian:12"),
        ("\ufeffFROM debian:12\n", "debian:12"),
    ],
)
def test_one_stage(content: str, base: str) -> None:
    assert split_stage(content.encode(), "Dockerfile").base.value == base


def test_a_heredoc_of_a_stage_may_hold_a_from() -> None:
    stage = split_stage(
        b"FROM a\nRUN <<-'X 1'\n\tFROM b\n\tX 1\nCOPY <<Y <<Z /d/\nFROM c\nY\nFROM d\nZ\n", "d"
    )
    assert [one.keyword for one in stage.instructions] == ["RUN", "COPY"]


def test_steps_of_a_stage_keep_their_lines() -> None:
    stage = split_stage(b"# c\nARG V=1\nARG W=2\nFROM \\\n a\n\nARG V\nRUN x\n", "d")
    assert stage.mark.line == 6
    assert [(one.keyword, one.mark.line) for one in stage.instructions] == [("ARG", 7), ("RUN", 8)]
    assert stage.args == {"V": "1"}


def test_arguments_before_from_reach_only_the_steps_that_take_them_up(folder: Path) -> None:
    spec = dockerfile(folder, "ARG V=12\nARG W=1\nFROM debian:$V\nARG V\nRUN echo $V\n")
    assert spec.steps is not None
    assert dict(spec.steps.args) == {"V": "12"}


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("FROM a AS one\nRUN x\nFROM b\nCOPY --from=one /x /x\n", 3, "several stages"),
        ("RUN x\nFROM a\n", 1, "RUN stands before FROM"),
        ("RUN x\n", 1, "RUN stands before FROM"),
        ("FROM $V\n", 1, "$V has no value"),
        ("FROM --platform=linux/arm64 a\n", 1, "flag"),
        ("FROM\n", 1, "not understood"),
        ("FROM a b\n", 1, "not understood"),
        ("FROM a AS\n", 1, "not understood"),
        ("# syntax=docker/dockerfile:1\nFROM a\n", 1, "parser directive"),
        ("# escape=`\nFROM a\n", 1, "parser directive"),
    ],
)
def test_what_is_not_one_stage_is_refused(folder: Path, content: str, line: int, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        dockerfile(folder, content)
    assert message in caught.value.message
    assert caught.value.line == line
    assert (caught.value.source or "").endswith("Dockerfile")


@pytest.mark.parametrize("content", [b"", b"# only\n", b"ARG A=1\n", b"FROM \xff\n"])
def test_what_holds_no_stage_is_refused(content: bytes) -> None:
    with pytest.raises(SpecError, match=r"no FROM|UTF-8"):
        split_stage(content, "Dockerfile")


V1: dict[str, Any] = {
    "databricks": {"eggLibraries": [], "jarLibraries": []},
    "docker": {
        "baseDockerfile": None,
        "baseImage": "azureml/openmpi4:1",
        "baseImageRegistry": {"address": "mcr.microsoft.com", "password": None, "username": None},
        "platform": {"architecture": "amd64", "os": "Linux"},
    },
    "environmentVariables": {"EXAMPLE": "1"},
    "inferencingStackVersion": None,
    "name": "x",
    "python": {"condaDependenciesFile": None, "interpreterPath": "python", "userManagedDependencies": False},
    "r": None,
    "spark": {"packages": [], "precachePackages": True, "repositories": []},
    "version": "1",
}


def v1(folder: Path, **changed: Any) -> Path:
    (folder / "azureml_environment.json").write_text(json.dumps({**V1, **changed}, indent=4))
    (folder / "conda_dependencies.yml").write_text("dependencies: [numpy]\n")
    return folder


def test_a_v1_folder(folder: Path) -> None:
    spec = load(v1(folder))
    assert str(spec.base) == "mcr.microsoft.com/azureml/openmpi4:1"
    assert spec.conda is not None
    assert [each.name for each in spec.conda.dependencies] == ["numpy"]
    assert spec.variables == (("EXAMPLE", "1"),)
    assert load(folder / "azureml_environment.json").conda is not None


def test_a_v1_folder_with_its_own_dockerfile(folder: Path) -> None:
    v1(folder, docker={"baseImage": None, "baseDockerfile": "FROM debian:12\nRUN true\n"})
    assert str(load(folder).base) == "docker.io/library/debian:12"
    v1(folder, docker={"baseImage": None})
    (folder / "BaseDockerfile").write_text("FROM debian:11\n")
    assert str(load(folder).base) == "docker.io/library/debian:11"


def test_v1_conda_dependencies_in_their_forms(folder: Path) -> None:
    inline = load(v1(folder, python={"condaDependencies": {"dependencies": ["scipy"]}})).conda
    assert inline is not None
    assert inline.dependencies[0].name == "scipy"
    assert load(v1(folder, python={"userManagedDependencies": True})).conda is None
    named = load(v1(folder, python={"condaDependenciesFile": "conda.yaml"})).conda
    assert named is not None
    assert named.dependencies[0].name == "python"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r": {"rVersion": "4"}}, "R section"),
        ({"spark": {"packages": [{"group": "a"}]}}, "Spark packages"),
        ({"docker": []}, "expected a mapping"),
        ({"environmentVariables": {"A B": "1"}}, "not a variable's name"),
    ],
)
def test_v1_sections_that_need_azure_are_refused(folder: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load(v1(folder, **changed))


def test_v1_without_a_base_needs_one(folder: Path) -> None:
    assert not load(v1(folder, docker={"baseImage": None})).has_base
