"""A process that is forked from one which has solved, looked up and pushed: it does all that itself."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from envbuild.errors import BuildError
from envbuild.resolver import Resolver, Source
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from parts.registry_server import RegistryServer

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def forked(action: Callable[[], str]) -> str:
    """What an action gives in a forked child, or the name and text of its error."""
    reading, writing = FORK.Pipe(duplex=False)

    def work(out: Connection) -> None:
        try:
            out.send(action())
        except Exception as error:  # noqa: BLE001 - handed to the parent
            out.send(f"{type(error).__name__}: {error}")

    child = FORK.Process(target=work, args=(writing,))
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert not alive, "the child hangs"
    with reading, writing:
        said: str = reading.recv()
    return said


@pytest.mark.parametrize("remote", [False, True])
def test_a_child_builds_after_its_parent_has_solved(
    world: World, registry: RegistryServer, remote: bool
) -> None:
    config = replace(world.config, workspace=registry.repository("forked")) if remote else world.config
    first, second = world.spec("tool=1", "first"), world.spec("tool=2", "second", name="other.yml")
    with Resolver(config) as resolver:
        resolver.resolve(first)
        assert forked(lambda: resolver.resolve(first).source) == Source.INDEX
        assert forked(lambda: resolver.resolve(second).source) == Source.BUILT
        assert resolver.resolve(second).source in {Source.INDEX, Source.WORKSPACE}
        nothing = world.spec("tool=9", name="nothing.yml")
        assert forked(lambda: resolver.resolve(nothing).source).startswith("SolveError")


def test_a_child_is_not_kept_by_what_other_threads_hold(world: World) -> None:
    spec = world.spec("tool=1")
    with Resolver(world.config) as resolver:
        resolver.resolve(spec)
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with resolver.index._lock, resolver.index._file._lock:
                held.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        assert forked(lambda: resolver.resolve(spec).source) == Source.INDEX
        done.set()
        thread.join()


def test_without_an_interpreter_it_is_refused_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Resolver(world.config) as resolver:
        resolver.resolve(world.spec("tool=1"))
        monkeypatch.setattr(sys, "executable", "")
        second = world.spec("second", name="other.yml")
        assert forked(lambda: resolver.resolve(second).source).startswith(
            f"{BuildError.__name__}: the solver cannot"
        )
