"""Locks of other tools cost no more than their bytes, and the deadline is seen while they are read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from envbuild.deadline import Deadline
from envbuild.errors import DeadlineExceeded, SpecError
from envbuild.foreign import load

if TYPE_CHECKING:
    from pathlib import Path

_CONDA_LOCK = b"version: 1\nmetadata:\n  platforms: [linux-64]\npackage:\n"
_PACKAGE = b"https://a.example/c/linux-64/d-1-0.conda#" + b"a" * 32 + b"\n"


@pytest.mark.parametrize("opening", [b"[", b"{", b"[{", b"\n    [", b"- [", b"{a: "])
def test_a_pixi_lock_of_brackets_is_refused_at_once(tmp_path: Path, opening: bytes) -> None:
    path = tmp_path / "pixi.lock"
    path.write_bytes(b"version: 5\nenvironments:\n  default: " + opening * 100_000)
    began = time.monotonic()
    with pytest.raises(SpecError, match="nested too deep"):
        load(path)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("content", [_CONDA_LOCK + b"- {}\n" * 800_000, b"@EXPLICIT\n" + _PACKAGE * 150_000])
def test_the_deadline_is_seen_while_a_lock_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "conda-lock.yml"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        load(path, deadline=Deadline.after(0.2))
    assert time.monotonic() - began < 1.2
