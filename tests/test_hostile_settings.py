"""A checkout's file of settings: whatever it holds or names, it ends in an answer or an error."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from envbuild.config import Config
from envbuild.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

_HUGE = "0x" + "F" * 6000


@pytest.mark.parametrize("number", ["9" * 5000, _HUGE], ids=["decimal", "hexadecimal"])
@pytest.mark.parametrize(
    "setting", ["timeout", "jobs", "step_memory", "step_cpus", "workspace", "pyc", "trust"]
)
def test_a_number_that_python_does_not_show_is_told(tmp_path: Path, setting: str, number: str) -> None:
    (tmp_path / "envbuild.toml").write_text(f"{setting} = {number}\n")
    with pytest.raises(SpecError):
        Config.load(tmp_path, {"HOME": str(tmp_path)})


@pytest.mark.parametrize("member", ["keys", "policy"])
@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_a_trust_policy_names_regular_files(tmp_path: Path, member: str, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "FIFO":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    rule = {
        "keys": f'[trust]\nrequire_signed = true\nkeys = ["{place}"]\n',
        "policy": f'trust = "{place}"\n',
    }[member]
    (tmp_path / "envbuild.toml").write_text(rule)
    with pytest.raises(SpecError, match="expected a file"):
        Config.load(tmp_path, {"HOME": str(tmp_path)})
