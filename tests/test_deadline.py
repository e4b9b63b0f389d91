"""A deadline is one moment, however often it is asked."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import DeadlineExceeded
from envbuild.foreign import load


def test_none_means_no_end() -> None:
    assert Deadline.after(None) == NO_DEADLINE
    assert NO_DEADLINE.remaining() == math.inf
    assert NO_DEADLINE.remaining(at_most=5.0) == 5.0
    NO_DEADLINE.check("waiting")


def test_time_runs_down_and_is_capped() -> None:
    deadline = Deadline.after(60)
    first = deadline.remaining()
    time.sleep(0.002)
    assert 59 < deadline.remaining() < first <= 60
    assert deadline.remaining(at_most=2.0) == 2.0
    deadline.check("waiting")


@pytest.mark.parametrize("seconds", [0, -1, -math.inf])
def test_past_it_nothing_is_left(seconds: float) -> None:
    deadline = Deadline.after(seconds)
    assert deadline.remaining() == 0.0
    assert deadline.remaining(at_most=9.0) == 0.0
    with pytest.raises(DeadlineExceeded, match="while solving") as caught:
        deadline.check("solving")
    assert caught.value.retryable
    assert caught.value.hint is not None
    assert "--timeout" in caught.value.hint


LONG = {
    "requirements.txt": "".join(
        f"a{number}[x,y] >=1.0,<2.{number} ; python_version<'3.{number}'\n" for number in range(6000)
    ),
    "environment.yml": "dependencies:\n"
    + "".join(f"- a{number}[version='>=1.0,<2.{number}|3.*']\n" for number in range(9000)),
    "envbuild.yaml": "base: scratch\nsteps: |\n"
    + "".join(
        f"  ENV A{number}='${{A{number - 1}:-x}}y z' {' '.join(f'B{each}={each}' for each in range(90))}\n"
        for number in range(900)
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_a_definition_is_read_until_the_deadline(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LONG[name])
    with pytest.raises(DeadlineExceeded, match="while reading"):
        load(path, deadline=Deadline.after(0.02))
