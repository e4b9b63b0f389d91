"""What a hit costs as a process, beside the imports that any such tool has.

The processes start in the definition's folder, which holds no ``pyproject.toml`` to be read.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from measure import Figure, median, table, timed
from tiny import World

LIBRARIES = ("-c", "import click, yaml")


def run(repeats: int) -> None:
    """Print the table of hits."""
    folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
    try:
        _run(folder, max(repeats, 1) * 7)
    finally:
        shutil.rmtree(folder)


def _run(folder: Path, turns: int) -> None:
    world = World.make(folder)
    spec = world.spec("pyth", "thing", "tool")
    settings = {
        "ENVBUILD_WORKSPACE": str(world.config.workspace),
        "ENVBUILD_BASE": "scratch",
        "ENVBUILD_CACHE_DIR": str(world.config.cache_dir),
        "ENVBUILD_CHANNEL_ALIAS": world.config.channel_alias,
        "ENVBUILD_GLIBC": "2.36",
        "ENVBUILD_INDEX_TTL": "1000000",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    cases = {
        "`python -c 'import click, yaml'`": [sys.executable, *LIBRARIES],
        "`envbuild key`": [sys.executable, "-m", "envbuild", "key", str(spec)],
        "`envbuild resolve`, index hit": [sys.executable, "-m", "envbuild", "resolve", str(spec)],
        "`envbuild resolve`, layout hit": [
            *(sys.executable, "-m", "envbuild", "resolve", "--index-ttl", "0", str(spec))
        ],
    }
    timed(cases["`envbuild resolve`, index hit"], settings, folder)
    seen: dict[str, list[Figure]] = {name: [] for name in cases}
    for _ in range(turns):
        for name, command in cases.items():
            seen[name].append(timed(command, settings, folder))
    floor = median(next(iter(seen.values())))
    rows = []
    for name, figures in seen.items():
        figure = median(figures)
        rows.append(
            [
                name,
                f"{figure.seconds * 1000:.0f} ms",
                f"{figure.cpu * 1000:.0f} ms",
                f"{figure.seconds / floor.seconds:.2f}×",
                f"{figure.cpu / floor.cpu:.2f}×",
            ]
        )
    table(f"A hit as a process (median of {turns})", ["case", "wall", "CPU", "wall ratio", "CPU ratio"], rows)
