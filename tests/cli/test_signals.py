"""SIGINT and SIGTERM at any moment of a process, its imports and its end too: the code, and no traceback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tiny import World

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
PROGRAM = """
import os, sys
import envbuild.__main__
os.write(1, b"begun\\n")
sys.argv[0] = "envbuild"
envbuild.__main__.main()
"""
"""Says when envbuild's first lines have run: before that, Python's own start answers signals."""


@dataclass(frozen=True)
class Ended:
    code: int
    seconds: float
    err: str


def run(words: list[str], *, number: signal.Signals | None = None, after: float = 0.0) -> Ended:
    """Run a command; it gets a signal so many seconds after its first lines ran."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 6) == b"begun\n"
    started = time.monotonic()
    if number is not None:
        time.sleep(after)
        process.send_signal(number)
    sent = time.monotonic()
    _, err = process.communicate(timeout=60)
    return Ended(process.returncode, time.monotonic() - (started if number is None else sent), err.decode())


def signalled(words: list[str], rounds: int, seed: int) -> tuple[int, float]:
    """Signal a command at random instants; how many felt it, and the longest end."""
    print(f"seed {seed}")  # noqa: T201
    draw = random.Random(seed)
    wholes = [run(words) for _ in range(3)]
    assert [whole.code for whole in wholes] == [0, 0, 0], wholes
    usual = min(whole.seconds for whole in wholes)
    felt, longest = 0, 0.0
    for round_number in range(rounds):
        number = draw.choice(list(CODES))
        ended = run(words, number=number, after=draw.uniform(0, 1.1) * usual)
        assert ended.code in {0, CODES[number]}, (round_number, ended)
        assert "Traceback" not in ended.err, (round_number, ended)
        assert "Error" not in ended.err, (round_number, ended)
        felt += ended.code != 0
        longest = max(longest, ended.seconds)
    return felt, longest


def test_at_random_instants_of_a_short_command(world: World) -> None:
    felt, longest = signalled(["key", str(world.spec("tool=1"))], 40, 1)
    assert felt > 5
    assert longest < 3


def test_at_random_instants_of_a_build(world: World) -> None:
    words = ["build", str(world.spec("pyth", "tool=1", "first", "second", "thing"))]
    felt, longest = signalled(words, 30, 2)
    assert felt > 5
    assert longest < 3


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_at_many_random_instants(world: World) -> None:
    assert signalled(["key", str(world.spec("tool=1"))], 200, 3)[0] > 60
    assert signalled(["build", str(world.spec("pyth", "tool=1", "first"))], 200, 4)[0] > 60


def test_before_anything_is_imported(tmp_path: Path) -> None:
    for number, code in CODES.items():
        ended = run(["--version"], number=number)
        assert (ended.code, ended.err) == (code, "")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    program = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{PROGRAM}"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 6) == b"begun\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
