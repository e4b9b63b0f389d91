"""Deadlines and interrupts are noticed within a second while layers are packed and packages are fetched."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import conda_oracle
from conda_packages import Entry, Package
from envbuild import deadline as deadlines
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import DeadlineExceeded
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.config import Config

DEADLINE = 1.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A machine with a channel that has packages which take seconds to pack."""
    world = World.make(tmp_path_factory.mktemp("interrupts"))
    folder = world.root / "channels" / "tiny"
    block = random.Random(1).randbytes(200_000)
    files = tuple(Entry(f"lib/{number}", block + bytes([number % 256])) for number in range(1500))
    Package(files, name="many").put(folder)
    Package((Entry("lib/one", b"".join(each.content for each in files)),), name="one").put(folder)
    asyncio.run(conda_oracle.index(folder))
    return world


@pytest.fixture
def stalled() -> Iterator[str]:
    """A server that accepts and never answers."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    held.append(server.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for each in held:
        each.close()


def fresh(world: World, name: str) -> Config:
    return world.other_machine(workspace=Repository("", f"{world.root}/{name}-{time.time_ns()}"))


@pytest.mark.parametrize("name", ["many", "one"])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_deadline_while_packing(world: World, name: str, compression: str) -> None:
    config = replace(fresh(world, name), compression=compression)  # type: ignore[arg-type]
    with Resolver(config) as resolver:
        resolver.resolve(world.spec("tool=1"))  # what is imported, and the solver's first start
        spec = world.spec(name, name=f"{name}.yml")
        started = time.monotonic()
        with contextlib.suppress(DeadlineExceeded):
            resolver.resolve(spec, timeout=DEADLINE)
        assert time.monotonic() - started < DEADLINE + 1.0


BEGUN = """
import envbuild.__main__
print("begun", flush=True)
envbuild.__main__.main()
"""


def end(world: World, config: Config, spec: Path, number: signal.Signals, after: float) -> tuple[int, float]:
    """Signal the command after some seconds; its code, and how long it took then."""
    words = ["--workspace", str(config.workspace), "--cache-dir", str(config.cache_dir), "--quiet"]
    words += ["--base", str(config.base), "--channel-alias", config.channel_alias]
    process = subprocess.Popen(
        [sys.executable, "-c", BEGUN, "resolve", str(spec), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    time.sleep(after)
    process.send_signal(number)
    sent = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    return process.returncode, time.monotonic() - sent


@pytest.mark.parametrize("name", ["many", "one"])
def test_an_interrupt_while_packing(world: World, name: str) -> None:
    spec = world.spec(name, name=f"{name}.yml")
    for number, code, after in ((signal.SIGINT, 130, 1.5), (signal.SIGTERM, 143, 2.5)):
        ended, seconds = end(world, fresh(world, name), spec, number, after)
        assert ended in {0, code}
        assert seconds < 1.5


def test_an_interrupt_while_servers_do_not_answer(world: World, stalled: str) -> None:
    spec = world.spec("tool=1", name="stalled.yml")
    config = fresh(world, "stalled")
    for waiting in (
        replace(config, workspace=Repository(stalled, "team/envs")),
        replace(config, channel_alias=f"http://{stalled}"),
    ):
        ended, seconds = end(world, waiting, spec, signal.SIGINT, 2.0)
        assert ended == 130
        assert seconds < 1.5


WAITING = """
import os, sys, threading, time
from envbuild import cli
from envbuild.deadline import cleaning_up

def wait(arguments=None):
    threading.Thread(target=time.sleep, args=(60,)).start()
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        with cleaning_up():
            time.sleep(float(sys.argv[1]))
        print("cleaned", flush=True)
    return 0

cli.exit_code_of = wait
cli.main()
"""


@pytest.mark.parametrize("cleaning", [0.0, 2.0])
def test_a_thread_that_never_notices_does_not_keep_it(cleaning: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(cleaning)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"cleaned\n", b"")
    assert cleaning <= time.monotonic() - sent < cleaning + 1.9


def test_calls_that_are_under_way_end_and_later_ones_do_not() -> None:
    first, later = Deadline.after(None), Deadline.after(60)
    deadlines.end_all()
    for deadline in (first, later):
        with pytest.raises(DeadlineExceeded, match="interrupted while waiting"):
            deadline.check("waiting")
        assert deadline.remaining() == 0
        deadline.sleep(60)
    Deadline.after(None).check("waiting")
    NO_DEADLINE.end()
    NO_DEADLINE.check("waiting")
