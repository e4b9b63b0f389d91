"""Mistakes that people make in definitions are reported where they made them, all in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.errors import SpecError
from envbuild.spec import document
from envbuild.spec.environment import load, parse

Place = tuple[int, int, str]

MISTAKES: dict[str, tuple[str, list[Place]]] = {
    "a dash is missing": (
        "dependencies:\n  - python=3.11\n  numpy\n  - pandas\n",
        [(3, 3, "neither a key nor an item")],
    ),
    "two dashes are missing under pip": (
        "dependencies:\n  - pip:\n    requests\n    six\n",
        [(3, 5, "neither a key nor an item"), (4, 5, "neither a key nor an item")],
    ),
    "no space behind a dash": (
        "dependencies:\n  - a\n  -numpy\n  - b\n",
        [(3, 3, "no space behind the '-'")],
    ),
    "an item that is indented deeper": (
        "dependencies:\n  - python=3.11\n   - numpy\n  - b\n",
        [(3, 4, "belongs to the item above")],
    ),
    "the last item has no dash": (
        "dependencies:\n  - a\n  - b\n    c\n",
        [(4, 5, "belongs to the item above")],
    ),
    "a double quote is not closed": (
        'dependencies:\n  - "a\n  - b\n  - c\n',
        [(2, 5, "is not closed on its line")],
    ),
    "a quote is closed by another's": (
        "dependencies:\n  - 'a>=1\n  - b\n  - 'c'\n",
        [(2, 5, "is not closed on its line")],
    ),
    "a bracket is not closed": (
        "channels: [a, b\ndependencies:\n  - c\n",
        [(1, 11, "'\\[' that opens here")],
    ),
    "a colon before a bound": ("dependencies:\n  - a\n  - numpy: >=1.26\n", [(3, 5, "has a ':' behind it")]),
    "a colon before a version": (
        "dependencies:\n  - numpy: 1.26\n",
        [(2, 5, "mapping with the key `numpy`")],
    ),
    "a mapping of versions": ("dependencies:\n  python: 3.11\n", [(2, 3, "is a mapping, expected a list")]),
    "a text for a list": (
        "channels: conda-forge\ndependencies:\n  python\n",
        [(1, 11, "`channels` is a text"), (3, 3, "`dependencies` is a text")],
    ),
    "conflict markers": (
        "dependencies:\n  - a\n<<<<<<< HEAD\n  - b=1\n=======\n  - b=2\n>>>>>>> x\n",
        [(3, 1, "conflict marker")],
    ),
    "a template's statement": (
        "dependencies:\n  - a\n{% if gpu %}\n  - b\n{% endif %}\n",
        [(3, 1, "belongs to a template")],
    ),
    "a template's value": ("dependencies:\n  - python={{ python }}\n", [(2, 12, "belongs to a template")]),
    "a template's name": ("name: {{ name }}\ndependencies: [a]\n", [(1, 7, "belongs to a template")]),
    "a tab": ("dependencies:\n  - a\n\t- b\n", [(3, 1, "a tab indents this line")]),
    "a key below a value": (
        "name: x\n channels:\n  - a\ndependencies: [b]\n",
        [(2, 2, "`channels` is indented below `name`")],
    ),
    "no dash has a space behind it": (
        "dependencies:\n  -python=3.11\n  -numpy\n",
        [(2, 3, "no space behind the '-'")],
    ),
    "a space of another kind behind a dash": (
        "dependencies:\n  -\u00a0python=3.11\n  - numpy\n",
        [(2, 3, "no space behind the '-'")],
    ),
    "a tab behind a dash": ("dependencies:\n  -\tpython\n  - b\n", [(2, 4, "a tab stands behind the '-'")]),
    "tabs in many lines": (
        "dependencies:\n\t- a\n\t- b\n\t- scikit learn\n",
        [(2, 1, "a tab indents this line, and 2 more below")],
    ),
    "pip has no dash": (
        "dependencies:\n  - python\n  pip:\n    - requests\n    - a=1\n",
        [(3, 3, "stands among items"), (5, 7, "is not a requirement")],
    ),
    "pip has no colon": (
        "dependencies:\n  - python\n  - pip\n    - a\n    - b\n",
        [(3, 5, "no ':' behind `pip`")],
    ),
    "pip has nothing below it and items behind it": (
        "dependencies:\n  - python\n  - pip:\n  - requests\n",
        [(3, 5, "`pip:` has nothing below it")],
    ),
    "an item that is indented less": (
        "dependencies:\n  - python\n - numpy\n  - scikit learn\n",
        [(3, 2, "in another column"), (4, 5, "stands where a version")],
    ),
    "an item between two lists": (
        "dependencies:\n  - python\n  - pip:\n    - a\n   - b\n",
        [(5, 4, "in another column")],
    ),
    "the first of many items is indented deeper": (
        "channels:\n    - a\n  - b\n  - c\ndependencies: [d e]\n",
        [(3, 3, "in another column"), (5, 16, "stands where a version")],
    ),
    "the first item under pip is indented less": (
        "dependencies:\n  - a\n  - pip:\n   - b\n    - c\n",
        [(4, 4, "in another column")],
    ),
    "a key that is indented like items": (
        "channels:\n  - a\n  dependencies:\n  - b\n",
        [(3, 3, "`dependencies:` is indented like the items")],
    ),
    "the first key is indented": (
        "  channels:\n  - a\ndependencies:\n  - b\n",
        [(1, 1, "`dependencies` in line 3 is not")],
    ),
    "a bracket that opens a list below": (
        "dependencies:\n  - a\n  - pip: [\n    - b\n    - c\n",
        [(3, 10, "'\\[' that opens here")],
    ),
    "a colon is missing": (
        "name: x\nchannels\n  - a\ndependencies\n  - b\n  - c d\n",
        [(2, 1, "no ':' behind `channels`"), (4, 1, "no ':' behind `dependencies`"), (6, 5, "stands where")],
    ),
    "no space behind a colon": (
        "name:x\ndependencies:\n  - a\n",
        [(1, 1, "no space behind the ':'")],
    ),
    "lines that end as on Windows": (
        'name: x\r\nchannels:\r\n  - a\r\ndependencies:\r\n  - b\r\n  numpy\r\n  - "c\r\n',
        [(6, 3, "neither a key nor an item"), (7, 5, "is not closed on its line")],
    ),
    "a bound without a name": (
        "dependencies:\n  - >=3.11\n  - a\n",
        [(2, 5, "no name of a package in front of")],
    ),
    "two colons before versions": (
        "dependencies:\n  - numpy: 1.26\n  - pandas: '>=2'\n",
        [(2, 5, "mapping with the key `numpy`"), (3, 5, "mapping with the key `pandas`")],
    ),
    "keys in capitals": (
        "Name: x\nChannels: [a]\nDependencies: [b]\n",
        [(1, 1, "`Name`"), (2, 1, "`Channels`"), (3, 1, "`Dependencies`")],
    ),
    "keys that are all misspelt": (
        "chanels: [a]\ndependancies: [b]\n",
        [(1, 1, "'chanels'"), (2, 1, "'dependancies'")],
    ),
    "a list of variables": (
        "dependencies: [a==]\nvariables:\n  - A=b\nplatforms: [win-64]\n",
        [(1, 16, "a version is missing"), (3, 3, "`variables` is a list"), (4, 13, "win-64")],
    ),
    "an equals sign among variables": (
        "dependencies: [a]\nvariables:\n  A=1\n  B: 2\n",
        [(3, 3, "neither a key nor an item")],
    ),
    "a text of several lines before a mistake": (
        'name: long\n  name\nprefix: "of\n  two"\ndependencies:\n  - a\n  b\n',
        [(7, 3, "neither a key nor an item")],
    ),
    "mistakes in YAML and in what it says": (
        (
            'chanels: [a]\ndependencies:\n  - b: >=1\n  -c\n  - "d\n  - e f\n  - pip:\n    - g=2\n'
            "platforms: [win-64]\n"
        ),
        [
            (1, 1, "`chanels`"),
            (3, 5, "has a ':' behind it"),
            (4, 3, "no space behind the '-'"),
            (5, 5, "is not closed on its line"),
            (6, 5, "stands where a version"),
            (8, 7, "is not a requirement"),
            (9, 13, "win-64"),
        ],
    ),
    "templates in many values": (
        "dependencies:\n  - python={{ python }}\n  - numpy={{ numpy }}\n",
        [(2, 12, "belongs to a template"), (3, 11, "belongs to a template")],
    ),
    "Conda and pip sections of an envbuild.yaml": (
        "base: scratch\nconda:\n  dependencies: [a==]\npip:\n  - b=1\n",
        [(3, 18, "a version is missing"), (5, 5, "is not a requirement")],
    ),
    "mistakes of all kinds": (
        (
            "chanels: [a]\ndependencies:\n  - b==\n  - c>>1\n  numpy\n  - pip:\n    - d>>2\n    - --foo\n"
            "variables:\n  1A: x\n"
        ),
        [
            (1, 1, "`chanels` is not known"),
            (3, 5, "a version is missing"),
            (4, 5, "not a version operator"),
            (5, 3, "neither a key nor an item"),
            (7, 7, "is not a requirement"),
            (8, 7, "unknown option"),
            (10, 3, "is not the name of a variable"),
        ],
    ),
    "steps": (
        "base: scratch\nsteps: |\n  RUNN true\n  RUN true\n  FROM x\n  COPY\n",
        [(3, 3, "RUNN"), (5, 3, "FROM"), (6, 3, "COPY")],
    ),
    "steps that are refused": (
        "base: scratch\nsteps:\n  - RUN --network=host a\n  - RUN b\n  - RUN --security=insecure c\n",
        [(3, 5, "--network=host"), (5, 5, "--security")],
    ),
    "an envbuild.yaml with mistakes in many members": (
        (
            "base: scratch\nstep: RUN x\nplatform: linux/vax\nas_of: soon\nchannel_priority: some\n"
            "conda:\n  dependencies: [a==]\n"
        ),
        [
            (2, 1, "'step' is not a key"),
            (3, 11, "vax"),
            (4, 8, "not a date"),
            (5, 19, "channel_priority"),
            (7, 18, "a version is missing"),
        ],
    ),
}


def refused(content: str) -> list[SpecError]:
    with pytest.raises(SpecError) as refusal:
        parse(content.encode(), "environment.yml", Path())
    return [refusal.value, *refusal.value.others]


@pytest.mark.parametrize(("content", "places"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("reader", ["libyaml", "python"])
def test_mistakes_are_reported_where_they_were_made(
    content: str, places: list[Place], reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader == "python":
        monkeypatch.setattr(document, "_parser", yaml.BaseLoader)
    found = refused(content)
    assert [(error.line, error.column) for error in found] == [(line, column) for line, column, _ in places]
    for error, (_, _, told) in zip(found, places, strict=True):
        assert told.replace("\\", "") in error.message
        assert error.source == "environment.yml"
        assert error.hint


@pytest.mark.parametrize(
    "line",
    ["- numpy: >=1.26", "-numpy", "numpy", '- "numpy', "\t- numpy", "- numpy: 1", "- numpy pandas", "- 3.10"],
)
def test_one_bad_line_among_good_ones_is_named_wherever_it_stands(line: str) -> None:
    good = [f"  - package-{number}" for number in range(6)]
    for place in range(len(good) + 1):
        lines = ["name: x", "dependencies:", *good[:place], f"  {line}", *good[place:]]
        assert refused("\n".join(lines) + "\n")[0].line == place + 3, (line, place)


def test_a_block_of_steps_is_no_place_to_look_for_missing_dashes() -> None:
    steps = "base: scratch\nsteps: |\n  RUN echo\n\n  RUN x: y {{ .Id }} \\\n  \tz\n"
    content = f"{steps}conda:\n  dependencies:\n  - a\n  b\n"
    assert [error.line for error in refused(content)] == [10]


@pytest.mark.parametrize(
    "content",
    [
        "dependencies: [a]\nname: a long\n  name\n",
        "base: scratch\nsteps:\n  - RUN apt-get update\n    && apt-get install -y git\n",
        "base: scratch\nsteps: |\n  RUN docker inspect --format '{{ .Id }}' x\n",
        "# {{ not a template }}\ndependencies: [a]\n",
    ],
)
def test_what_only_looks_like_a_mistake_is_read(content: str) -> None:
    parse(content.encode(), "environment.yml", Path())


def test_mistakes_of_requirements_are_all_reported() -> None:
    with pytest.raises(SpecError) as refusal:
        parse(b"a==1\nb >> 2\n--foo\nc --index-url https://x.example\n", "requirements.txt", Path())
    assert [error.line for error in (refusal.value, *refusal.value.others)] == [2, 3, 4]
    assert refusal.value.others[1].hint == "write it on a line of its own"


REQUIREMENTS: dict[str, tuple[str, str]] = {
    "requests=2.31": ("a single '=' is Conda's", "write it as requests==2.31"),
    "flask[async] = 2": ("a single '='", "write it as flask[async]==2"),
    "numpy=1.26=py311_0": ("'=' and builds", "write it as numpy==1.26"),
    "numpy>=1.2 <2": ("no comma", "write it as numpy>=1.2,<2"),
    "scikit learn": ("two names", "write scikit-learn, or two lines"),
    '"scipy>=1"': ("quotes", "write it as scipy>=1"),
    "pip install foo": ("a command", "installs: foo"),
    "conda-forge::x": ("channels are Conda's", "environment.yml"),
    "foo==": ("a version is missing", "write foo, or a version behind it"),
    "- pandas>=2": ("'-' stands in front", "write it as pandas>=2"),
    "<<<<<<< HEAD": ("conflict marker", "decide for one side"),
    "numpy=={{ numpy }}": ("belongs to a template", "render the template"),
}


@pytest.mark.parametrize(("line", "told"), REQUIREMENTS.items(), ids=REQUIREMENTS)
def test_what_is_no_requirement_is_told_by_what_was_meant(line: str, told: tuple[str, str]) -> None:
    with pytest.raises(SpecError) as refusal:
        parse(f"six\n{line}\n".encode(), "requirements.txt", Path())
    assert told[0] in refusal.value.message
    assert told[1] in (refusal.value.hint or "")
    assert refusal.value.line == 2


def test_a_file_with_mistakes_that_is_included_twice_includes_no_circle(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("a b c\n")
    with pytest.raises(SpecError) as refusal:
        parse(b"-r more.txt\n-r more.txt\n", "requirements.txt", tmp_path)
    assert {error.line for error in (refusal.value, *refusal.value.others)} == {1}
    assert all("include each other" not in error.message for error in refusal.value.others)


def test_a_byte_that_is_not_utf8_is_told_with_its_line() -> None:
    with pytest.raises(SpecError, match="byte 0xe9 is not UTF-8") as refusal:
        parse(b"six\ncaf\xe9\n", "requirements.txt", Path())
    assert refusal.value.line == 2


@pytest.mark.parametrize(
    "content",
    [
        "channels:\n  - a\n  https://user:sesame@host.example/x\ndependencies: [b]\n",
        "channels: https://user:sesame@host.example/x\ndependencies: [b]\n",
        "channels:\n  - https://host.example/t/sesame/x\n    y\ndependencies: [b]\n",
        "channels:\n  - https://user:sesame@host.example/x y\ndependencies: [b]\n",
        "dependencies:\n  - https://user:sesame@host.example/x.whl\n",
        "dependencies:\n  - b\n  - pip:\n    - c: https://user:sesame@host.example/x\n    d e https://u:sesame@h/\n",
        "https://user:sesame@host.example/x\n",
    ],
)
def test_mistakes_tell_no_secrets(content: str) -> None:
    name = "list.lock" if content.startswith("https") else "environment.yml"
    with pytest.raises(SpecError) as refusal:
        parse(content.encode(), name, Path())
    for error in (refusal.value, *refusal.value.others):
        assert "sesame" not in f"{error} {error.hint}"


def test_a_folder_that_is_named_t_is_no_token(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(SpecError, match=r"/t/envs/a\.yml"):
        parse(b"base: scratch\nconda: envs/a.yml\n", "envbuild.yaml", tmp_path / "t")


def test_steps_that_name_a_file_are_told_how_to() -> None:
    error = refused("base: scratch\nsteps: Dockerfile.steps\n")[0]
    assert (error.line, error.hint) == (2, "for the steps of a file write `steps: {file: Dockerfile.steps}`")


@pytest.mark.parametrize("base", ["Debian:12", "debian:12:1"])
def test_a_base_that_is_no_reference_is_told_how_a_base_is_written(base: str) -> None:
    error = refused(f"base: {base}\nsteps: RUN true\n")[0]
    assert "IMAGE:TAG" in (error.hint or "")


def test_a_misspelt_from_is_told() -> None:
    with pytest.raises(SpecError, match="unknown instruction 'FORM'") as refusal:
        parse(b"FORM debian:12\nRUN true\n", "Dockerfile", Path(), form="dockerfile")
    assert refusal.value.hint == "did you mean FROM?"


def test_a_form_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("dependencies: [b]\n")
    with pytest.raises(SpecError, match="the form 'cnda' is not known"):
        load(tmp_path / "a.yml", form="cnda")


@pytest.mark.parametrize(
    "name", ["requirements3.txt", "requirements.txt", "dev-requirements2.in", "reqs.txt"]
)
def test_requirements_are_told_by_their_name(name: str) -> None:
    spec = parse(b"six==1.16\n", name, Path())
    assert spec.pip is not None


def test_mistakes_that_never_end_are_bounded() -> None:
    found = refused("dependencies:\n" + "  - a>>1\n" * 15_000)
    assert len(found) <= 100


@given(
    st.lists(
        st.sampled_from(["- a", "  - b: >=1", "c", "d:", "  e: [", "'f", "\t- g", "{{", "|", ">", "- h: |"]),
        max_size=12,
    )
)
@settings(max_examples=500, deadline=None)
def test_any_mixture_of_lines_is_read_or_refused_with_places_in_it(lines: list[str]) -> None:
    content = "\n".join(lines)
    try:
        parse(content.encode(), "environment.yml", Path())
    except SpecError as error:
        for each in (error, *error.others):
            assert each.line is None or 1 <= each.line <= len(lines) + 1


HINTS: dict[str, str] = {
    "dask[complete]": "under `- pip:`",
    "git+https://github.com/dask/dask": "under `- pip:`",
    "git@github.com:dask/dask.git": "under `- pip:`",
    "scikit learn": "`scikit-learn`",
    "numpy pandas": "two dependencies",
    "3.10": "python=3.10",
}


@pytest.mark.parametrize(("text", "told"), HINTS.items())
def test_hints_say_what_was_meant(text: str, told: str) -> None:
    error: Any = refused(f"dependencies:\n  - {text}\n")[0]
    assert told in error.hint


def test_the_older_name_of_a_build_context_is_named() -> None:
    error = refused("name: x\nbuild:\n  local_path: .\n")[0]
    assert (error.line, error.hint) == (3, "rename it to `path`")
