"""Calling the command line, in this process and as one of its own, in a tiny world."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cli_calls import ENVBUILD, Answer, Call
from envbuild.cli import exit_code_of
from tiny import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine with a channel, a base and places for images, told by variables; the current folder."""
    world = World.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = {
        "WORKSPACE": str(world.config.workspace),
        "BASE": str(world.config.base),
        "CHANNEL_ALIAS": world.config.channel_alias,
        "CACHE_DIR": str(world.config.cache_dir),
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"ENVBUILD_{name}", value)
    return world


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""

    def call(*words: str | Path) -> Answer:
        capfd.readouterr()
        code = exit_code_of([str(word) for word in words])
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def spawn(world: World) -> Call:
    """Runs the command line as a process."""

    def spawn(*words: str | Path, stdin: str = "", **variables: str) -> Answer:
        done = subprocess.run(
            [*ENVBUILD, *(str(word) for word in words)],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=world.root,
            env={**os.environ, **variables},
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return spawn
