"""How the process ends: after a solve without taking Python apart, while the solver's threads may run."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
{first}

class Late:
    def __del__(self):
        print("taken apart")

late = Late()
atexit.register(print, "registered")
from envbuild.cli import main
main({arguments})
"""


@pytest.mark.parametrize(("first", "apart"), [("import rattler", False), ("pass", True)])
@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["nothing"], 2)])
def test_what_is_registered_runs_and_the_code_is_kept(
    first: str, apart: bool, arguments: list[str], code: int
) -> None:
    program = PROGRAM.format(first=first, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    words = done.stdout.splitlines()[-2:] if apart else done.stdout.splitlines()[-1:]
    assert words == (["registered", "taken apart"] if apart else ["registered"])
    assert ("no command" in done.stderr) == (code == 2)
