"""Timing a process, and tables."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """What one run cost.

    Attributes:
        seconds: Wall-clock seconds.
        cpu: Seconds of the processes that were started; an engine's own are not among them.
        sent: Bytes that the registry has more than before.
    """

    seconds: float
    cpu: float
    sent: int = 0


def timed(
    command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Figure:
    """Run a command to its end; a failure shows what it printed and ends the benchmark."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        list(command),
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return Figure(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def median(figures: Sequence[Figure]) -> Figure:
    """The median of each figure on its own."""
    return Figure(
        statistics.median(figure.seconds for figure in figures),
        statistics.median(figure.cpu for figure in figures),
        int(statistics.median(figure.sent for figure in figures)),
    )


def folder_size(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown, so that it can be pasted."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
