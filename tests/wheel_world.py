"""A machine with wheels, a Conda package that installs a distribution, and a base with python."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import conda_oracle
from conda_packages import Entry, Package
from envbuild.reference import Repository
from tiny import LIBC, World, make_base
from tiny_wheels import TinyWheel

SITE = "lib/python3.11/site-packages"


def wheel_world(root: Path) -> World:
    """Make the channel, the bases and the folder of wheels."""
    world = World.make(root)
    info = f"{SITE}/dep-1.0.dist-info"
    record = b"dep.py,,\ndep-1.0.dist-info/METADATA,,\ndep-1.0.dist-info/RECORD,,\n../../../bin/dep,,\n"
    package = Package(
        (
            Entry(f"{SITE}/dep.py", b"version = 1\n"),
            Entry(f"{info}/METADATA", b"Metadata-Version: 2.1\nName: dep\nVersion: 1.0\n"),
            Entry(f"{info}/RECORD", record),
            Entry("bin/dep", b"#!/bin/sh\n", 0o755),
            Entry("share/dep/data", b"not pip's"),
        ),
        name="dep",
        version="1.0",
        index={"depends": ["python"]},
    )
    package.put(root / "channels/tiny")
    asyncio.run(conda_oracle.index(root / "channels/tiny"))
    make_base(
        Repository.parse(f"oci:{root}/bases"),
        "python",
        {"lib/libc.so.6": LIBC, "usr/bin/python3.11": b"elf"},
    )
    put(world, TinyWheel("top", requires=("dep",), files={"top/big": bytes(range(256)) * 300}))
    put(world, TinyWheel("small", entry_points="[console_scripts]\nsmall = small:main\n"))
    put(world, TinyWheel("dep", "1.0"), TinyWheel("dep", "2.0"))
    return world


def put(world: World, *wheels: TinyWheel) -> None:
    """Write wheels into the folder ``links``."""
    for wheel in wheels:
        wheel.put(world.root / "links")


def spec(world: World, *lines: str, conda: tuple[str, ...] = ("python",), local: bool = True) -> Path:
    """Write a definition with a pip section."""
    pip: Any = {"pip": [*(["--no-index", "--find-links ./links"] if local else []), *lines]}
    path = world.root / "environment.yml"
    path.write_text(json.dumps({"channels": ["tiny"], "dependencies": [*conda, pip]}))
    return path


def requirements(world: World, *lines: str) -> Path:
    """Write a requirements file."""
    path = world.root / "requirements.txt"
    path.write_text("\n".join(["--no-index", "--find-links ./links", *lines]))
    return path
