"""Evaluators pay from one budget, and what asks for too much is refused with its place."""

from __future__ import annotations

import configparser
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from envbuild.budget import MAX_CHARACTERS, Budget, OverBudgetError
from envbuild.conda.activate import activate
from envbuild.conda.paths import MAX_COMMANDS, read_entry_points
from envbuild.errors import IntegrityError, SpecError
from envbuild.pip import wheel
from envbuild.spec import collector, environment, patterns
from envbuild.spec.quoting import expand
from envbuild.spec.stage import split_stage
from reliability import growth

DIGEST = "sha256:" + "0" * 64
GLOB_PARTS = ("[^/]*", "[^/]*", "(?:.*/)?", "a", "b", "/", "[^/]", "[a-b]", "\\.")
INI_PARTS = (
    "[a]", "[b]\n", "[DEFAULT]\n", "a", "b", "=", "= ", "\n", " ", "  ", "#", "\n ;", "x:y\n", "\n\n", "]",
    "[", "[]",
)  # fmt: skip


def chain(keyword: str, links: int) -> str:
    return f"{keyword} A0=x\n" + "".join(f"{keyword} A{each + 1}=$A{each}$A{each}\n" for each in range(links))


@pytest.mark.parametrize("keyword", ["ARG", "ENV"])
def test_variables_that_name_each_other_are_refused_where_they_become_too_long(
    keyword: str, tmp_path: Path
) -> None:
    (tmp_path / "Steps").write_text(chain(keyword, 30))
    (tmp_path / "envbuild.yaml").write_text(f"base: debian@{DIGEST}\nsteps: {{file: Steps}}\n")
    with growth.most_memory() as grown, pytest.raises(SpecError, match="come to more than") as caught:
        environment.load(tmp_path / "envbuild.yaml")
    assert (caught.value.line, caught.value.exit_code) == (25, SpecError("").exit_code)
    assert grown[0] < 100 << 20


def test_arguments_before_from_are_refused_where_they_become_too_long() -> None:
    with growth.most_memory() as grown, pytest.raises(SpecError, match="come to more than") as caught:
        split_stage((chain("ARG", 30) + "FROM debian\n").encode(), "Dockerfile")
    assert caught.value.line == 25
    assert grown[0] < 100 << 20


def test_a_default_that_nothing_closes_is_text() -> None:
    base = split_stage(b"ARG A=x\nARG B=${A:-$A}\nFROM ${B}:$A${A\nRUN y\n", "Dockerfile").base.value
    assert base == "x:x${A"


def test_an_activation_script_that_grows_is_left_out_with_those_behind_it() -> None:
    files: dict[str, str | None] = {
        "etc/conda/activate.d/a.sh": "export A=a\n",
        "etc/conda/activate.d/b.sh": "B=x\n" + "B=$B$B\n" * 30,
        "etc/conda/activate.d/c.sh": "export C=c\n",
    }
    with growth.most_memory() as grown:
        found = activate(files, {})
    assert found.variables == {"A": "a"}
    assert "come to more than" in found.left_out["etc/conda/activate.d/b.sh"]
    assert grown[0] < 100 << 20


def test_many_activation_scripts_of_many_variables_cost_no_product() -> None:
    text = "".join(f"A{each}=b\n" for each in range(2000))
    start = time.process_time()
    activate({f"etc/conda/activate.d/{each}.sh": text for each in range(2000)}, {})
    assert time.process_time() - start < 10


def test_urls_in_an_error_are_found_in_one_pass() -> None:
    def made(size: int) -> SpecError:
        return SpecError("A+" * size, source="x", hint="git+https://user:secret@host/x")

    with growth.bounds():
        assert growth.fault(lambda error: environment._told(error, b"", "x"), made, 4000) is None
    assert "secret" not in str(environment._told(made(1), b"", "x").hint)


def test_a_budget_is_shared() -> None:
    budget = Budget(10)
    assert expand("$A$A", {"A": "abcd"}, budget) == "abcdabcd"
    with pytest.raises(OverBudgetError):
        expand("$A", {"A": "abcd"}, budget)
    assert MAX_CHARACTERS > 1 << 20


def commands(text: str) -> list[Any]:
    class Wheel:
        what = "w"

        def text(self, _name: str) -> str:
            return text

    return list(wheel._entry_points(Wheel()))  # type: ignore[arg-type]


def test_many_commands_are_refused() -> None:
    many = "".join(f"c{each} = m:f\n" for each in range(MAX_COMMANDS + 1))
    with pytest.raises(IntegrityError, match="10001 commands"):
        commands("[console_scripts]\n" + many)
    link = {"noarch": {"entry_points": ["c = m:f"] * (MAX_COMMANDS + 1)}}
    with pytest.raises(IntegrityError, match="10001 commands"):
        read_entry_points({"info/link.json": json.dumps(link).encode()}, "x")
    assert len(commands("[console_scripts]\n" + "".join(many.splitlines(keepends=True)[:-1]))) == MAX_COMMANDS


def test_entry_points_are_read_as_configparser_reads_them() -> None:
    random = Random(37)

    def expected(text: str) -> Any:
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        try:
            parser.read_string(text)
        except configparser.Error:
            return None
        return {section: dict(parser.items(section)) for section in parser.sections()}

    def found(text: str) -> Any:
        try:
            sections = wheel._sections(text, "w")
        except IntegrityError:
            return None
        default = sections.pop("DEFAULT", {})
        return {section: default | options for section, options in sections.items()}

    texts = ["".join(random.choices(INI_PARTS, k=random.randint(0, 12))) for _ in range(5000)]
    assert [text for text in texts if found(text) != expected(text)] == []
    assert sum(expected(text) not in (None, {}) for text in texts) > 200


def test_globs_of_many_stars_match_what_a_regular_expression_matches() -> None:
    import re

    random = Random(37)
    matched = 0
    for _ in range(4000):
        pieces = [*random.choices(GLOB_PARTS, k=random.randint(1, 9)), *random.choice([[], [".*"]])]
        right, automaton = re.compile("".join(pieces), re.DOTALL), patterns._Automaton(pieces)
        for _ in range(5):
            path = "".join(random.choices("aab/.c", k=random.randint(0, 9)))
            assert automaton(path) == bool(patterns._test_of(pieces)(path)) == bool(right.fullmatch(path))
            matched += automaton(path)
    assert matched > 500


def test_files_that_include_one_file_again_and_again_are_refused_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("#" * (1 << 20))
    (tmp_path / "requirements.txt").write_text("-r big.txt\n" * 20)
    with pytest.raises(SpecError, match=f"more than {collector.MAX_TOTAL} bytes"):
        environment.load(tmp_path / "requirements.txt")


def test_a_project_that_many_lines_name_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'a'\n")
    (tmp_path / "data").write_bytes(b"x" * (4 << 20))
    (tmp_path / "requirements.txt").write_text(".\n./.\n-e .\n" * 2000)
    start = time.process_time()
    spec = environment.load(tmp_path / "requirements.txt")
    assert time.process_time() - start < 5
    assert spec.pip is not None
    assert {one.editable for one in spec.pip.requirements} == {True, False}
