"""Solving in a process of its own, for one that was forked after its parent had solved.

The solver's threads and their locks do not outlive a fork: a solve in the child would wait for them for ever.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from envbuild.child import said
from envbuild.deadline import Deadline
from envbuild.errors import BuildError, EnvbuildError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PROGRAM: Final = """
import os, pickle, sys
sys.path[:], work = pickle.load(sys.stdin.buffer)
from envbuild.conda.elsewhere import answer
from envbuild.conda.solve import solve
sys.stdout.buffer.write(answer(work, solve))
sys.stdout.flush()
os._exit(0)
"""
"""The solver's threads may not be at their end, which Python would not bear."""


def solve_elsewhere(request: Any, cache_dir: Path, deadline: Deadline) -> Any:
    """As :func:`envbuild.conda.solve.solve`, whose request and solution they are.

    Raises:
        BuildError: There is no other process, or it ended without an answer: that says nothing of a solution.
    """
    if not sys.executable:
        raise BuildError(
            "the solver cannot run in a process that was forked after its parent had solved",
            hint="start processes with the method spawn or forkserver, or solve in the parent alone",
        )
    work = pickle.dumps((request, cache_dir, deadline.remaining()))
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        content, complaint = said(process, deadline, "solving", pickle.dumps((sys.path, work)))
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise BuildError(f"the solver's own process ended with exit code {process.returncode}: {last}")
    outcome = pickle.loads(content)  # noqa: S301 - of the process that was just started
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def answer(work: bytes, solve: Callable[..., Any]) -> bytes:
    """What the other process does: the pickled solution, or the error."""
    request, cache_dir, seconds = pickle.loads(work)  # noqa: S301 - of the process that started this one
    try:
        return pickle.dumps(solve(request, cache_dir=cache_dir, deadline=Deadline.after(seconds)))
    except EnvbuildError as error:
        return pickle.dumps(error)
