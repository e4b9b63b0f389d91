"""Standard streams that are closed, full or read by nobody: an answer that is an error, and no traceback."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cli_calls import ENVBUILD
from tiny_wheels import TinyWheel

if TYPE_CHECKING:
    from tiny import World


def shell(line: str, **variables: str) -> tuple[int, str]:
    """The exit code and standard error of a line in which ``$E`` is the command."""
    environment = {**os.environ, "E": " ".join(ENVBUILD), **variables}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=environment)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", ["key environment.yml", "--help", "--version", "cache info", "doctor"])
def test_a_standard_output_that_takes_nothing_is_told(world: World, words: str) -> None:
    world.spec("tool=1")
    code, err = shell(f"$E {words} >&-")
    assert code == 1
    assert "standard output cannot be written: Bad file descriptor" in err
    code, err = shell(f"$E {words} >/dev/full")
    assert code == 1
    assert "standard output cannot be written: No space left on device" in err


def test_a_standard_output_that_nobody_reads_ends_it_quietly(world: World) -> None:
    world.spec("tool=1")
    assert shell("$E key environment.yml 2>/dev/null | head -c0; exit ${PIPESTATUS[0]}") == (141, "")
    assert shell("$E resolve environment.yml 2>&1 | head -c0; exit ${PIPESTATUS[0]}") == (141, "")


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_errors_keep_their_code_where_they_cannot_be_told(world: World, closed: str) -> None:
    world.spec("tool=1")
    assert shell(f"$E key nothing.yml {closed}") == (2, "")
    assert shell(f"$E key environment.yml {closed}") == (0, "")


def test_a_definition_from_a_standard_input_that_is_closed(world: World) -> None:
    assert world.config is not None
    code, err = shell("$E key - <&-")
    assert code == 2
    assert "<stdin>: cannot be read" in err


def test_without_a_folder_for_temporary_files(world: World) -> None:
    """A wheel is resolved in such a folder; a build of small packages alone needs none, and goes through."""
    program = "import tempfile, sys; tempfile._candidate_tempdir_list = lambda: ['/nothing'];"
    program += "from envbuild.cli import main; main(['build', 'environment.yml'])"
    world.spec("tool=1", "pyth")
    assert shell(f'{ENVBUILD[0]} -c "{program}"')[0] == 0
    wheel = TinyWheel("tiny-wheel").put(world.root)
    path = world.spec("python", "pip")
    path.write_text(path.read_text().replace('"pip"', f'{{"pip": ["./{wheel.name}"]}}'))
    code, err = shell(f'{ENVBUILD[0]} -c "{program}"')
    assert code == 1
    assert "no usable temporary directory" in err
    assert "name a folder for temporary files in TMPDIR" in err
