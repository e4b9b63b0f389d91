"""Row 34: the command line, interrupted or terminated at any instant, leaves nothing behind."""

from __future__ import annotations

import shutil
import signal
from random import Random
from typing import TYPE_CHECKING

import pytest

from envbuild.storage import TEMPORARY
from reliability.ended import DEPENDENCIES, build, check, command, fresh
from tiny import World

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.config import Config

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def left_in(config: Config) -> list[Path]:
    """Files on their way that nobody will take further."""
    temporary = [*config.cache_dir.with_suffix(".tmp").rglob("*"), *config.cache_dir.glob("spool/*")]
    images = config.workspace.folder
    return [*temporary, *images.rglob(f"{TEMPORARY}*")] if images.exists() else temporary


def interrupted(world: World, rounds: int, seed: int) -> int:
    """Signal builds at random instants; how many felt it."""
    print(f"seed {seed}")  # noqa: T201
    random = Random(seed)
    spec = world.spec(*DEPENDENCIES)
    workspace = world.config.workspace
    command(fresh(world, workspace), spec)  # starts the server of the children
    whole = command(fresh(world, workspace), spec)
    assert whole.exit_code == 0, whole
    assert "@sha256:" in whole.said
    count = 0
    for number in range(rounds):
        config = fresh(world, workspace)
        end = random.choice(sorted(CODES))
        ended = command(config, spec, end=end, after=random.uniform(0.3, 1.0) * whole.seconds)
        unready = {-end, 1} if not ended.said else set()  # the command line had not begun
        assert ended.exit_code in {0, CODES[end], *unready}, f"round {number}: {ended}"
        assert "Traceback" not in ended.said, ended.said
        assert left_in(config) == [], f"round {number}"
        check(config)
        count += ended.exit_code == CODES[end]
        assert build(config, spec).said.startswith("sha256:")
        shutil.rmtree(config.cache_dir, ignore_errors=True)
    return count


def test_interrupted_at_random_instants(tmp_path: Path) -> None:
    assert interrupted(World.make(tmp_path), 8, 34) > 0


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_interrupted_at_200_random_instants(tmp_path: Path) -> None:
    assert interrupted(World.make(tmp_path), 200, 340) > 50
