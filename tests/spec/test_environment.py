"""Every form of a definition becomes one value; what cannot is refused with its place and the fix."""

from __future__ import annotations

import io
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.errors import SpecError
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.spec import forms
from envbuild.spec.environment import ChannelPriority, load, parse

HEX = "0123456789abcdef" * 4
ARM64 = Platform.parse("linux/arm64")
CONDA = "name: x\nchannels: [conda-forge]\ndependencies: [python=3.11, numpy]\nvariables: {A: '1', B: two}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "environment.yml").write_text(CONDA)
    (tmp_path / "requirements.txt").write_text("requests==2.32.0\n")
    (tmp_path / "steps.Dockerfile").write_text("# tools\nRUN true\n")
    return tmp_path


def write(folder: Path, content: str, name: str = "envbuild.yaml") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def refused(folder: Path, content: str, name: str = "envbuild.yaml") -> SpecError:
    with pytest.raises(SpecError) as caught:
        load(write(folder, content, name))
    return caught.value


def test_a_conda_file(folder: Path) -> None:
    spec = load(folder / "environment.yml")
    assert spec.conda is not None
    assert [each.name for each in spec.conda.dependencies] == ["numpy", "python"]
    assert spec.variables == (("A", "1"), ("B", "two"))
    assert (spec.pip, spec.steps, spec.steps_after, spec.as_of) == (None, None, None, None)
    assert spec.channel_priority is ChannelPriority.STRICT
    assert spec.platforms == (LINUX_AMD64,)
    assert spec.source == str(folder / "environment.yml")


def test_a_definition_without_a_base_says_so_when_the_base_is_needed(folder: Path) -> None:
    spec = load(folder / "environment.yml")
    assert not spec.has_base
    with pytest.raises(SpecError, match="no base image") as caught:
        spec.require_base()
    assert caught.value.hint is not None
    assert "--base" in caught.value.hint
    assert str(spec.with_base("debian:12").require_base()) == "docker.io/library/debian:12"
    assert spec.with_base("scratch").require_base() is None
    assert spec.with_base("scratch").has_base


def test_every_key_of_an_envbuild_file(folder: Path) -> None:
    spec = load(
        write(
            folder,
            """\
base: debian:12-slim
steps: |
  RUN apt-get update
conda: environment.yml
pip: requirements.txt
steps_after: |
  RUN python -m compileall /opt/env
variables: {OMP_NUM_THREADS: "1", B: other}
channel_priority: flexible
platforms: [linux/arm64, linux/amd64, linux/x86_64]
as_of: 2026-11-01
secrets: [pip_token, a, a]
""",
        )
    )
    assert str(spec.base) == "docker.io/library/debian:12-slim"
    assert spec.steps is not None
    assert spec.steps_after is not None
    assert len(spec.steps.instructions) == len(spec.steps_after.instructions) == 1
    assert spec.conda is not None
    assert spec.pip is not None
    assert spec.variables == (("A", "1"), ("B", "other"), ("OMP_NUM_THREADS", "1"))
    assert spec.channel_priority is ChannelPriority.FLEXIBLE
    assert spec.platforms == (LINUX_AMD64, ARM64)
    assert spec.as_of == datetime(2026, 11, 1, tzinfo=UTC)
    assert spec.secrets == ("a", "pip_token")


@pytest.mark.parametrize("name", ["envbuild.yaml", "environment.yml", "x.txt", "x"])
def test_the_form_is_told_by_the_content(folder: Path, name: str) -> None:
    assert load(write(folder, "base: scratch\nconda: {dependencies: [a]}\n", name)).has_base
    assert load(write(folder, "# c\n\ndependencies: [a]\n", name)).conda is not None


@pytest.mark.parametrize("content", ["requests==2.32.0\n", "# c\n--pre\nrequests\n", "-r requirements.txt\n"])
@pytest.mark.parametrize("name", ["reqs.txt", "reqs.in", "reqs"])
def test_requirements_are_told_by_their_name(folder: Path, content: str, name: str) -> None:
    spec = load(write(folder, content, name))
    assert spec.pip is not None
    assert spec.conda is None
    assert not spec.has_base


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "requirements-dev.txt",
        "dev_requirements.in",
        "Requirements.TXT",
        "requirements/base.txt",
    ],
)
def test_the_usual_names_of_requirements_are_known(folder: Path, name: str) -> None:
    (folder / "requirements").mkdir()
    assert load(write(folder, "requests==2.32.0\n", name)).pip is not None


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("apt.txt", "curl\ngit\nlibgomp1\n", "apt-get install"),
        ("runtime.txt", "python-3.11\n", "python=3.11"),
        ("pyproject.toml", "[project]\nname = 'x'\n", "requirements.txt"),
        ("pixi.toml", "[workspace]\n", "pixi.lock"),
        ("Pipfile", "[packages]\n", "pipenv"),
        ("README", "A text\n", "requirements.txt"),
        ("README.md", "# Title\n\nText.\n", "requirements.txt"),
        ("packages.txt", "curl\ngit\n", "requirements.txt"),
        ("constraints.txt", "requests<3\n", "requirements.txt"),
        ("x", "requests==2\n", "--format requirements"),
        ("empty", "", "--format requirements"),
    ],
)
def test_other_texts_are_refused_with_the_form_that_was_meant(
    folder: Path, name: str, content: str, told: str
) -> None:
    with pytest.raises(SpecError, match="not a definition") as refusal:
        load(write(folder, content, name))
    assert told in str(refusal.value.hint)


def test_the_caller_may_say_the_form(folder: Path) -> None:
    spec = load(write(folder, "requests==2.32.0\n", "apt.txt"), form="requirements")
    assert spec.pip is not None
    assert load(write(folder, "FROM debian\n", "x.yml"), form="dockerfile").has_base
    with pytest.raises(SpecError, match="not known in an environment file"):
        load(write(folder, "base: scratch\n", "x.yml"), form="conda")


def test_requirements_on_standard_input_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for form, refused in ((None, True), ("requirements", False)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"requests==2.32.0\n")))
        if refused:
            with pytest.raises(SpecError, match="not a definition"):
                load("-", form=form)
        else:
            assert load("-", form=form).pip is not None


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("dependencies: [a]\nplatforms: [win-64]\n", {}, "for win-64"),
        ("dependencies: [a]\nplatforms: [osx-64, win-64]\n", {}, "images are built for Linux"),
        ("dependencies: [a]\nplatforms: [linux-aarch64]\n", {}, "linux/amd64 is asked for"),
        (
            "dependencies: [a]\nplatforms: [linux-64]\n",
            {"platforms": "linux/arm64"},
            "linux/arm64 is asked for",
        ),
    ],
)
def test_a_file_for_other_platforms_is_refused(
    folder: Path, content: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(SpecError, match=told):
        load(write(folder, content), **options)


def test_a_file_for_the_platform_and_others_is_read(folder: Path) -> None:
    content = "dependencies: [a]\nplatforms: [osx-64, linux-64, linux-aarch64]\n"
    assert load(write(folder, content)).platforms == (LINUX_AMD64,)
    assert load(write(folder, content), platforms="linux/arm64").conda is not None


@pytest.mark.parametrize(
    "content", ["--pre\n", "base: scratch\npip: []\n", "base: scratch\npip: ['--pre']\n"]
)
def test_options_without_requirements_are_no_section(folder: Path, content: str) -> None:
    assert load(write(folder, content, "requirements")).pip is None


def test_secrets_that_steps_mount_need_no_naming(folder: Path) -> None:
    write(folder, "RUN --mount=type=secret,id=token true\n", "mounting")
    named = "base: scratch\nsecrets: [other]\nsteps: {file: mounting}\n"
    assert load(write(folder, named)).secrets == ("other", "token")
    assert load(folder / "environment.yml", steps=folder / "mounting").secrets == ("token",)


def test_inline_forms_equal_the_files_they_stand_for(folder: Path) -> None:
    by_file = load(write(folder, "base: scratch\nconda: environment.yml\npip: requirements.txt\n"))
    inline = load(
        write(
            folder,
            "base: scratch\npip: [requests==2.32.0]\nconda:\n  channels: [conda-forge]\n"
            "  dependencies: [python=3.11, numpy]\n  variables: {A: '1', B: two}\n",
        )
    )
    assert by_file.conda is not None
    assert inline.conda is not None
    assert by_file.conda.canonical() == inline.conda.canonical()
    assert by_file.pip is not None
    assert inline.pip is not None
    assert by_file.pip.canonical() == inline.pip.canonical()
    assert by_file.variables == inline.variables


@pytest.mark.parametrize(
    "written",
    [
        "steps: |\n  RUN apt-get update\n  ENV A=1\n",
        "steps: [RUN apt-get update, ENV A=1]\n",
        'steps:\n  - RUN apt-get update\n\n  # why\n  - "ENV A=1"\n',
        'steps: "RUN apt-get update\\nENV A=1"\n',
        "steps: {file: two.Dockerfile}\n",
        "steps:\n  file: two.Dockerfile\n  context: .\n  args: {}\n",
    ],
)
def test_steps_have_one_meaning_in_every_form(folder: Path, written: str) -> None:
    write(folder, "# tools\nrun  apt-get update\n\nENV A 1\n", "two.Dockerfile")
    expected = load(write(folder, "base: scratch\nsteps: |\n  RUN apt-get update\n  ENV A=1\n")).steps
    found = load(write(folder, "base: scratch\n" + written)).steps
    assert expected is not None
    assert found is not None
    assert found.canonical() == expected.canonical()


def test_steps_take_files_from_their_context(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(b"one")
    write(folder, "COPY data /data\n", "sub/steps")
    by_default = load(write(folder, "base: scratch\nsteps: {file: sub/steps}\n")).steps
    named = load(write(folder, "base: scratch\nsteps: {file: sub/steps, context: sub}\n")).steps
    inline = load(write(folder, "base: scratch\nsteps: COPY sub/data /data\n")).steps
    assert by_default is not None
    assert named is not None
    assert inline is not None
    assert [file.content for file in by_default.context] == [b"one"]
    assert named.canonical() == by_default.canonical()
    assert [file.content for file in inline.context] == [b"one"]


@pytest.mark.parametrize("form", ["envbuild.yaml", "--steps", "Azure ML", "Azure ML v1", "Dockerfile"])
def test_the_ignore_file_beside_a_dockerfile_replaces_the_contexts(folder: Path, form: str) -> None:
    context = folder / "context"
    context.mkdir()
    for name in ("kept", "of-the-context", "of-the-file"):
        (context / name).touch()
    (context / ".dockerignore").write_text("of-the-context\n.dockerignore\n")
    name = "BaseDockerfile" if form == "Azure ML v1" else "image.Dockerfile"
    start = "" if form in {"envbuild.yaml", "--steps"} else "FROM debian:12\n"
    (context / name).write_text(f"{start}COPY . /x\n")
    overrides: dict[str, Any] = {}
    if form == "envbuild.yaml":
        path = write(folder, f"base: scratch\nsteps: {{file: context/{name}, context: context}}\n")
    elif form == "--steps":
        path, overrides = write(folder, "base: scratch\n"), {"steps": context / name}
    elif form == "Azure ML":
        path = write(folder, f"build: {{path: context, dockerfile_path: {name}}}\n", "env.yml")
    elif form == "Azure ML v1":
        path = context / "azureml_environment.json"
        path.write_text('{"name": "a", "python": {"userManagedDependencies": true}, "docker": {}}')
    else:
        path = context / name

    def seen() -> set[str]:
        steps = load(path, **overrides).steps
        assert steps is not None
        return {file.path for file in steps.context} - {path.name, name, f"{name}.dockerignore"}

    assert seen() == {"kept", "of-the-file"}
    (context / f"{name}.dockerignore").write_text("of-the-file\n")
    assert seen() == {"kept", "of-the-context", ".dockerignore"}


def test_build_arguments_reach_the_steps(folder: Path) -> None:
    write(folder, "ARG WHO=a\nRUN echo $WHO\n", "who")
    plain = load(write(folder, "base: scratch\nsteps: {file: who}\n")).steps
    given_one = load(write(folder, "base: scratch\nsteps: {file: who, args: {WHO: b}}\n")).steps
    assert plain is not None
    assert given_one is not None
    assert dict(given_one.args)["WHO"] == "b"
    assert plain.canonical() != given_one.canonical()


def test_bytes_are_read_once(folder: Path) -> None:
    path = write(
        folder,
        "base: scratch\nconda: environment.yml\nsteps: {file: steps.Dockerfile}\npip: requirements.txt\n",
    )
    spec = load(path)
    for each in folder.iterdir():
        each.unlink()
    assert spec.conda is not None
    assert spec.steps is not None
    assert spec.conda.canonical()
    assert spec.steps.render() == load_steps("RUN true")


def load_steps(text: str) -> str:
    from envbuild.spec.document import Mark
    from envbuild.spec.steps import Steps

    return Steps.parse(text, Mark("x", 1, 1), args={}, context=None).render()


def test_a_layout_as_base_starts_at_the_file(folder: Path) -> None:
    spec = load(write(folder, "base: oci:bases/min:1\n"))
    assert str(spec.base) == f"oci:{folder}/bases/min:1"
    pinned = load(write(folder, f"base: oci:/abs/min@sha256:{HEX}\n"))
    assert str(pinned.base) == f"oci:/abs/min@sha256:{HEX}"


def test_overrides_win(folder: Path) -> None:
    path = write(folder, "base: debian:12\nsteps: RUN false\nplatform: linux/amd64\nas_of: 2020-01-01\n")
    spec = load(
        path,
        base=f"debian@sha256:{HEX}",
        steps=folder / "steps.Dockerfile",
        platforms=["linux/arm64", LINUX_AMD64, "linux-64"],
        as_of="2026-11-01T12:00:00+02:00",
    )
    assert str(spec.base) == f"docker.io/library/debian@sha256:{HEX}"
    assert spec.steps is not None
    assert spec.steps.render() == load_steps("RUN true")
    assert spec.platforms == (LINUX_AMD64, ARM64)
    assert spec.as_of == datetime(2026, 11, 1, 10, tzinfo=UTC)
    assert load(path, platforms="linux/arm64").platforms == (ARM64,)
    assert load(path, platforms=ARM64).platforms == (ARM64,)
    assert load(path, base="scratch").require_base() is None


@pytest.mark.parametrize(
    "override",
    [{"base": "Debian!"}, {"platforms": []}, {"platforms": "win-64"}, {"as_of": "soon"}, {"steps": "none"}],
)
def test_overrides_are_checked(folder: Path, override: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        load(folder / "environment.yml", **override)


@pytest.mark.parametrize(
    ("given_moment", "expected"),
    [
        ("2026-11-01", "2026-11-01T00:00:00+00:00"),
        (date(2026, 11, 1), "2026-11-01T00:00:00+00:00"),
        ("2026-11-01 06:30", "2026-11-01T06:30:00+00:00"),
        ("2026-11-01T06:30:00Z", "2026-11-01T06:30:00+00:00"),
        ("2026-11-01T06:30:00.999Z", "2026-11-01T06:30:00+00:00"),
        (datetime(2026, 11, 1, 1, tzinfo=timezone(timedelta(hours=2))), "2026-10-31T23:00:00+00:00"),
        (datetime(2026, 11, 1, 1), "2026-11-01T01:00:00+00:00"),  # noqa: DTZ001 - the case
    ],
)
def test_moments(folder: Path, given_moment: str | date, expected: str) -> None:
    found = load(folder / "environment.yml", as_of=given_moment).as_of
    assert found is not None
    assert found.isoformat() == expected


def test_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"base: scratch\nconda: environment.yml\n"))
    )
    spec = load("-")
    assert spec.source == "<stdin>"
    assert spec.conda is not None


@pytest.mark.parametrize("name", ["envbuild.yaml", "environment.yml", "environment.yaml"])
def test_a_folder_stands_for_the_file_in_it(tmp_path: Path, name: str) -> None:
    write(tmp_path, "base: scratch\n" if name == "envbuild.yaml" else CONDA, name)
    assert load(tmp_path).source == str(tmp_path / name)


def test_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds none of"):
        load(tmp_path)


def test_a_dockerfile_is_base_and_steps(folder: Path) -> None:
    spec = load(write(folder, "FROM debian:12\nCOPY requirements.txt /\n", "Dockerfile"))
    assert str(spec.base) == "docker.io/library/debian:12"
    assert spec.steps is not None
    assert [file.path for file in spec.steps.context] == ["requirements.txt"]


# Place (line, column), a part of the message, a part of the hint.
REFUSED = [
    ("base: scratch\nstep: RUN true\n", 2, 1, "'step' is not a key", "`steps`"),
    ("base: scratch\nvariable: {}\n", 2, 1, "'variable' is not a key", "`variables`"),
    ("base: Debian!\n", 1, 7, "not a repository", None),
    ("base: debian:12 slim\n", 1, 7, "is not a tag", None),
    ("base: [a]\n", 1, 7, "is a list, expected text", "scratch"),
    ("base: 'oci:'\n", 1, 7, "names no folder", "oci:FOLDER"),
    ("base: 'oci::1'\n", 1, 7, "names no folder", "oci:FOLDER"),
    ("base: oci:~nobody-of-this-name/x\n", 1, 7, "not known here", None),
    ("base:\n", 1, 6, "is empty", "scratch"),
    ("base: scratch\nplatform: amd64\n", 2, 11, "'amd64' is not known", "linux/amd64"),
    ("base: scratch\nplatforms: linux/amd64\n", 2, 12, "is text, expected a list", "platform: linux/amd64"),
    ("base: scratch\nplatforms: []\n", 2, 12, "is empty", "linux/amd64"),
    ("base: scratch\nplatform: linux/amd64\nplatforms: [linux/arm64]\n", 3, 12, "side by side", "platforms"),
    ("base: scratch\nchannel_priority: stict\n", 2, 19, "'stict'", "`strict`"),
    ("base: scratch\nchannel_priority: true\n", 2, 19, "'true'", "known: disabled, flexible, strict"),
    ("base: scratch\nindex_strategy: first\n", 2, 17, "'first'", "`first-index`"),
    ("base: scratch\nindex_strategy: unsafe-best-match\n", 2, 17, "unsafe", "known: first-index, pip"),
    ("base: scratch\nas_of: yesterday\n", 2, 8, "is not a date", "YYYY-MM-DD"),
    ("base: scratch\nas_of: 2026-02-30\n", 2, 8, "is not a date", "YYYY-MM-DD"),
    ("base: scratch\nas_of: 0001-01-01T00:00+10:00\n", 2, 8, "is not a date", "YYYY-MM-DD"),
    ("base: scratch\nsecrets: token\n", 2, 10, "expected a list", "[NAME]"),
    ("base: scratch\nsecrets: ['a b']\n", 2, 11, "not a secret's name", "letters"),
    ("base: scratch\nvariables: [A]\n", 2, 12, "expected a mapping", "{NAME: value}"),
    ("base: scratch\nvariables: {A: }\n", 2, 16, "has no value", '""'),
    ("base: scratch\nvariables: {A: [1]}\n", 2, 16, "is a list, expected a string", None),
    ("base: scratch\nvariables: {A-B: '1'}\n", 2, 13, "not a variable's name", "letters"),
    ("base: scratch\nvariables: {'': '1'}\n", 2, 13, "not a variable's name", "letters"),
    ("base: scratch\nsteps: {context: .}\n", 2, 8, "no `file`", "file"),
    ("base: scratch\nsteps: {file: steps.Dockerfile, argz: {}}\n", 2, 33, "'argz'", "`args`"),
    ("base: scratch\nsteps: {file: steps.Dockerfil}\n", 2, 15, "there is no file", "steps.Dockerfile"),
    ("base: scratch\nsteps: {file: .}\n", 2, 15, "is a folder", None),
    (
        "base: scratch\nsteps:\n  - |\n    RUN a\n    RUN b\n",
        4,
        None,
        "2 instructions, expected one",
        "one an item",
    ),
    ("base: scratch\nsteps:\n- [RUN a]\n", 3, 3, "is a list, expected text", None),
    ("base: scratch\nsteps: RUN true\nsteps_after: |\n  FROM x\n", 4, None, "FROM", None),
    ("base: scratch\nsteps:\n  - RUN a\n\n  - NOPE b\n", 5, 5, "NOPE", None),
    ("base: scratch\nconda: enviroment.yml\n", 2, 8, "there is no file", "environment.yml"),
    ("base: scratch\nconda: [numpy]\n", 2, 8, "is a list, expected text", "dependencies: "),
    ("base: scratch\nconda: {dependancies: [a]}\n", 2, 9, "dependancies", "dependencies"),
    ("base: scratch\npip: {a: b}\n", 2, 6, "is a mapping, expected", "NAME==VERSION"),
    ("base: scratch\npip: nowhere/requirements.txt\n", 2, 6, "there is no file", "no folder"),
    (
        "base: scratch\npip: [a]\nconda: {dependencies: [pip: [b]]}\n",
        2,
        6,
        "in the Conda definition",
        "one of the two",
    ),
    ("base: scratch\nbase: debian\n", 2, 1, "stands twice", None),
    ("nonsense: 1\n", 1, 1, "'nonsense' is not a key", "known:"),
    ("dependancies: [a]\n", 1, 1, "dependancies", "`dependencies`"),
    ("- numpy\n", 1, 1, "expected a mapping", "dependencies"),
    ("just text\n", 1, 1, "expected a mapping", "dependencies"),
    ("", 1, 1, "empty", None),
    ("version: 1\nmetadata: {}\npackage: []\n", 1, 1, "conda-lock", "solved from"),
    ("python: 3.11.4\nbuild_dependencies: []\ndependencies: []\n", 1, 1, "MLflow", "conda.yaml"),
    ("version: 6\nenvironments: {}\npackages: []\n", 1, 1, "pixi", "solved from"),
]


@pytest.mark.parametrize(("content", "line", "column", "message", "hint"), REFUSED)
def test_what_is_refused_names_its_place_and_the_fix(
    folder: Path, content: str, line: int, column: int | None, message: str, hint: str | None
) -> None:
    error = refused(folder, content)
    assert message in error.message
    assert error.source is not None
    assert error.source.endswith("envbuild.yaml")
    assert error.line == line
    assert column is None or error.column == column
    assert hint is None or hint in (error.hint or "")


def test_an_error_in_an_included_file_names_that_file(folder: Path) -> None:
    write(folder, "dependencies:\n  - numpy\n  - '!!'\n", "environment.yml")
    error = refused(folder, "base: scratch\nconda: environment.yml\n")
    assert (error.source, error.line) == (str(folder / "environment.yml"), 3)


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    with pytest.raises(SpecError, match="there is no file") as caught:
        load(folder / "enviroment.yml")
    assert "environment.yml" in (caught.value.hint or "")
    with pytest.raises(SpecError, match="cannot be read"):
        load("a\0b")


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(SpecError, match="it is a device"):
        load("/dev/zero")


def test_an_explicit_list_is_named_for_what_it_is(folder: Path) -> None:
    assert "@EXPLICIT" in refused(folder, "# c\n@EXPLICIT\nhttps://x/y.conda\n", "explicit.txt").message


def test_steps_of_a_file_must_be_text(folder: Path) -> None:
    (folder / "steps.Dockerfile").write_bytes(b"RUN \xff\n")
    assert "UTF-8" in refused(folder, "base: scratch\nsteps: {file: steps.Dockerfile}\n").message


def test_the_keys_of_the_forms_are_apart() -> None:
    assert {"variables"} == forms.CONDA_KEYS & forms.ENVBUILD_KEYS
    assert not forms.ENVBUILD_KEYS & (forms.AZURE_KEYS | forms.AZURE_JOB_KEYS | forms.AZURE_V1_KEYS)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=80) | st.binary(max_size=80))
def test_any_content_is_a_definition_or_a_spec_error(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "x"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    seen: SpecError | None = None
    try:
        load(path)
    except SpecError as error:
        seen = error
    assert seen is None or seen.source is not None


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("base: debian\nsteps: |\n  RUN a\n  RUM b\n", (4, 3)),
        ("base: debian\nsteps: |2-\n\n    RUN a\n    RUM b\n", (5, 5)),
        ("base: debian\nsteps:\n  - RUN a\n  - |\n\n      # c\n      RUM b\n", (7, 7)),
        ("base: debian\nsteps: 'RUM b'\n", (2, 9)),
        ("base: debian\nsteps: RUM b\n", (2, 8)),
        ("base: debian\nsteps: >\n   RUM b\n", (3, 4)),
    ],
)
def test_faults_in_inline_steps_are_placed(content: str, place: tuple[int, int]) -> None:
    with pytest.raises(SpecError, match="RUM") as refusal:
        parse(content.encode(), "envbuild.yaml", Path("/nowhere"))
    assert (refusal.value.line, refusal.value.column) == place


@pytest.mark.parametrize(
    "base",
    ["docker-archive:a.tar", "containers-storage:a", "docker://a", "dir:/a", "file:///a"],
)
def test_a_base_that_only_this_machine_holds_is_refused(base: str) -> None:
    with pytest.raises(SpecError, match="no place that a key can name") as refusal:
        parse(f"base: {base}\n".encode(), "envbuild.yaml", Path("/nowhere"))
    assert (refusal.value.line, refusal.value.column) == (1, 7)


@pytest.mark.parametrize("base", ["docker:24-cli", "file:1", "dir/x"])
def test_an_image_may_be_called_like_that(base: str) -> None:
    assert parse(f"base: {base}\n".encode(), "envbuild.yaml", Path("/nowhere")).base is not None


def test_without_a_base_it_is_said_what_to_write_where(folder: Path) -> None:
    with pytest.raises(SpecError, match="no base image") as refusal:
        load(write(folder, "dependencies: [a]\n")).require_base()
    assert 'base = "debian:12-slim"' in str(refusal.value.hint)
    assert "envbuild.toml" in str(refusal.value.hint)
