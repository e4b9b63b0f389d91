"""The documented command line is the one that there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cli_calls import Call
from envbuild import config as settings
from envbuild.cli import cli

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "cli.md"


def test_the_reference_is_what_help_prints() -> None:
    program = "import runpy, sys; sys.stdout.write(runpy.run_path('docs/cli.py')['render']())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == REFERENCE.read_text(), "run: python docs/cli.py"


def test_the_reference_names_every_command(call: Call) -> None:
    text = REFERENCE.read_text()
    for word in cli.commands or cli.list_commands(None):  # type: ignore[arg-type]
        assert f"## envbuild {word}\n" in text
        usage = call(word, "--help").out.splitlines()[0]
        assert usage in text


def test_the_readme_names_every_setting_and_its_variable() -> None:
    text = (ROOT / "README.md").read_text()
    rows = set(re.findall(r"^\| `([a-z_]+)` ", text, re.MULTILINE))
    assert rows == {name.rstrip("_") for name in settings._PARSERS}


DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(("known", "code"), [(False, 3), (True, 0)])
def test_the_recipe_for_ci_fails_where_the_image_is_nowhere(tmp_path: Path, known: bool, code: int) -> None:
    (recipe,) = (
        yaml.safe_load(found)
        for found in re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "jobs:" in found
    )
    script = next(
        step["run"] for step in recipe["jobs"]["environments"]["steps"] if "GITHUB_ENV" in step.get("run", "")
    )
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/train.yml").write_text("base: scratch\nvariables: {A: b}\n")
    settings = {"ENVBUILD_WORKSPACE": f"oci:{tmp_path}/images", "ENVBUILD_CACHE_DIR": f"{tmp_path}/cache"}
    environment = {**os.environ, **settings, "GITHUB_ENV": str(tmp_path / "written")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    if known:
        subprocess.run(["envbuild", "resolve", "envs/train.yml"], cwd=tmp_path, env=environment, check=True)
    # What GitHub runs a step with: https://docs.github.com/actions/reference/workflow-syntax-for-github-actions
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / "written").exists() == known


def test_each_decision_has_a_number_of_its_own() -> None:
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    numbers = [path.name[:4] for path in records]
    assert len(set(numbers)) == len(numbers)
    for path in records:
        assert path.read_text().startswith(f"# {int(path.name[:4])}. "), path.name


def test_the_readme_names_no_place_of_a_machine() -> None:
    assert not re.search(r"/(home|root|work|tmp)/", (ROOT / "README.md").read_text())
