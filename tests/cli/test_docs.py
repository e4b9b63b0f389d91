"""The documented command line is the one that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("document", ["README.md", "docs/cli.md"])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_readme_names_no_place_of_a_machine() -> None:
    assert not re.search(r"/(home|root|work|tmp)/", (ROOT / "README.md").read_text())
