"""The published vectors hold, on every machine, and are apart where they are not said to be the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import rfc8785

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCRIPT = FIXTURES / "vectors.py"
FOLDERS = sorted(path.parent for path in FIXTURES.glob("vectors/*/case.json"))


def check(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--check"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("seed", "locale", "zone"),
    [("0", "C", "UTC"), ("1", "C.UTF-8", "Asia/Tokyo"), ("2", "POSIX", "America/Lima")],
)
def test_every_vector_holds(seed: str, locale: str, zone: str) -> None:
    done = check(PYTHONHASHSEED=seed, LC_ALL=locale, TZ=zone)
    assert (done.returncode, done.stdout) == (0, f"{len(FOLDERS)} vectors hold\n"), done.stdout + done.stderr


def test_there_are_many() -> None:
    assert len(FOLDERS) >= 200


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_key_can_be_computed_from_its_form_alone(folder: Path) -> None:
    content = (folder / "canonical.json").read_bytes()
    assert content == rfc8785.dumps(json.loads(content))
    key = hashlib.sha256(b"envbuild/key/v1\x00" + content).hexdigest()
    assert (folder / "key.txt").read_text() == key + "\n"


def test_keys_are_the_same_only_where_a_case_says_so() -> None:
    own = {
        folder.name: (folder / "key.txt").read_text()
        for folder in FOLDERS
        if "same_as" not in json.loads((folder / "case.json").read_text())
    }
    assert [key for key, count in Counter(own.values()).items() if count > 1] == []


def test_no_published_form_holds_a_secret() -> None:
    for folder in FOLDERS:
        assert not re.search(rb"secret@|/t/token|me:", (folder / "canonical.json").read_bytes()), folder.name


def test_the_check_sees_a_vector_that_moved(tmp_path: Path) -> None:
    script = tmp_path / "vectors.py"
    script.write_bytes(SCRIPT.read_bytes())
    case = tmp_path / "vectors" / "base-only"
    case.mkdir(parents=True)
    for path in (FIXTURES / "vectors" / "base-only").iterdir():
        (case / path.name).write_bytes(path.read_bytes())
    (case / "key.txt").write_text("0" * 64 + "\n")
    for arguments in (["--check"], []):
        done = subprocess.run(
            [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "published is 000" in done.stdout
    assert (case / "key.txt").read_text() == "0" * 64 + "\n"
