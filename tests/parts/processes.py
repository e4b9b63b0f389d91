"""Processes of this machine, those in containers included."""

from __future__ import annotations

import time
from pathlib import Path


def count(command: str) -> int:
    """How many processes have a command line that ends so; Python's own are left out."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        found += words.endswith(command) and "python" not in words
    return found


def running(command: str) -> bool:
    """Whether a process has a command line that ends so."""
    return count(command) > 0


def runs_within(seconds: float, command: str) -> None:
    """Wait until such a process runs."""
    limit = time.monotonic() + seconds
    while not running(command) and time.monotonic() < limit:
        time.sleep(0.05)
    assert running(command)


def gone_within(seconds: float, command: str) -> None:
    """Wait until no such process runs."""
    limit = time.monotonic() + seconds
    while running(command) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not running(command)
