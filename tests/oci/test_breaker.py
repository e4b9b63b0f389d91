"""The circuit breaker: a host in trouble is asked rarely, whoever asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import DeadlineExceeded, EnvbuildError, NotFound, Unavailable
from envbuild.index import Index
from envbuild.oci.breaker import (
    FAILURES,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    STRANGERS,
    Breaker,
    Breakers,
    CircuitOpen,
)
from envbuild.oci.probe import Prober
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.transport import Settings
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from parts.fault_server import Asked, Call, FaultServer, serving
from tiny import World


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with breaker.guard(NO_DEADLINE) as outcome:
            outcome.answered, outcome.reason = False, "refused"


def answer(breaker: Breaker) -> None:
    with breaker.guard(NO_DEADLINE) as outcome:
        outcome.answered = True


def is_open(breaker: Breaker) -> bool:
    try:
        with breaker.guard(NO_DEADLINE):
            return False
    except CircuitOpen:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("registry.example.com", clock)


def test_failures_in_a_row_open_it(breaker: Breaker) -> None:
    fail(breaker, FAILURES - 1)
    assert not is_open(breaker)
    fail(breaker)
    with pytest.raises(CircuitOpen, match=r"registry\.example\.com was not asked.*refused") as caught:
        fail(breaker)
    assert caught.value.retryable
    assert f"{FIRST_PAUSE:.0f} s" in str(caught.value.hint)


def test_an_answer_in_between_keeps_it_closed(breaker: Breaker) -> None:
    for _ in range(10):
        fail(breaker, FAILURES - 1)
        answer(breaker)
    assert not is_open(breaker)


def test_a_trial_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    clock.now += FIRST_PAUSE
    answer(breaker)
    fail(breaker, FAILURES - 1)
    assert not is_open(breaker)


def test_one_caller_is_on_trial_and_the_rest_are_refused(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    clock.now += FIRST_PAUSE
    with breaker.guard(NO_DEADLINE) as outcome:
        assert is_open(breaker)
        outcome.answered = True
    assert not is_open(breaker)


def test_pauses_grow_and_a_trial_without_an_outcome_is_a_failure(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES)
    pauses = []
    for _ in range(5):
        start = clock.now
        while is_open(breaker):  # the trial itself says nothing: it counts as failed
            clock.now += 1
        pauses.append(clock.now - start)
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_requests_that_were_on_their_way_do_not_lengthen_the_pause(breaker: Breaker, clock: Clock) -> None:
    answer(breaker)
    guards = [breaker.guard(NO_DEADLINE) for _ in range(20)]
    outcomes = [guard.__enter__() for guard in guards]
    for guard, outcome in zip(guards, outcomes, strict=True):
        outcome.answered = False
        guard.__exit__(None, None, None)
        clock.now += 0.1
    clock.now += FIRST_PAUSE - 0.1 * (20 - FAILURES + 1)
    assert not is_open(breaker)


def test_an_exception_inside_says_nothing(breaker: Breaker) -> None:
    for _ in range(20):
        with pytest.raises(KeyError), breaker.guard(NO_DEADLINE):
            raise KeyError
    assert not is_open(breaker)


def test_strangers_wait_for_the_first_answer(breaker: Breaker) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def ask(_: int) -> None:
        nonlocal inside, most
        with breaker.guard(Deadline.after(30)) as outcome:
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with guard:
                inside -= 1
            outcome.answered = None

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    assert most == STRANGERS


def test_waiting_for_others_ends_at_the_deadline(breaker: Breaker) -> None:
    with (
        breaker.guard(NO_DEADLINE),
        breaker.guard(NO_DEADLINE),
        pytest.raises(DeadlineExceeded),
        breaker.guard(Deadline.after(0.2)),
    ):
        pass


def test_hosts_are_apart(clock: Clock) -> None:
    breakers = Breakers(clock)
    fail(breakers["a:1"], FAILURES)
    assert is_open(breakers["a:1"])
    assert not is_open(breakers["a:2"])


# On connections


def down(call: Call, asked: Asked) -> None:
    call.fail(503)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving(down) as server:
        yield server


def quick(clock: Clock, **changes: float) -> Settings:
    return replace(Settings(retries=4, breakers=Breakers(clock)), **changes)  # type: ignore[arg-type]


def test_prober_and_registry_share_it(server: FaultServer, clock: Clock) -> None:
    settings = quick(clock)
    repository = Repository.parse(f"{server.host}/envs")
    with Prober(settings) as prober, pytest.raises(Unavailable):
        prober.probe(repository, Tag("k1-a"))
    assert len(server.asked) == FAILURES
    registry = RemoteRegistry(Repository.parse(f"{server.host}/other"), settings=settings)
    with pytest.raises(CircuitOpen, match="503"):
        registry.get_manifest(Tag("k1-b"))
    assert len(server.asked) == FAILURES
    clock.now += FIRST_PAUSE
    server.script = lambda call, _: call.fail(404, "MANIFEST_UNKNOWN")
    with pytest.raises(NotFound):
        registry.get_manifest(Tag("k1-b"))
    registry.close()


def test_an_answer_that_is_an_error_of_ours_is_an_answer(server: FaultServer, clock: Clock) -> None:
    server.script = lambda call, _: call.fail(403, "DENIED")
    registry = RemoteRegistry(Repository.parse(f"{server.host}/envs"), settings=quick(clock))
    for _ in range(3 * FAILURES):
        with pytest.raises(EnvbuildError, match="403"):
            registry.get_manifest(Tag("v1"))
    registry.close()


def test_sixty_four_jobs_while_the_registry_is_down(tmp_path: Path, server: FaultServer) -> None:
    """Row 27: none builds, and together they ask at most ten times a minute."""
    world = World.make(tmp_path)
    config = replace(world.config, workspace=Repository.parse(f"{server.host}/envs"), timeout=30)
    spec = world.spec("one")
    with Resolver(config) as resolver:
        clock = Clock()
        resolver.registries._known = quick(clock)

        def job(_: int) -> type[Exception]:
            with pytest.raises(Unavailable) as caught:
                resolver.resolve(spec)
            return caught.type

        for minute in range(3):
            before = len(server.asked)
            for _ in range(6):
                with ThreadPoolExecutor(64) as pool:
                    list(pool.map(job, range(64)))
                clock.now += 10
            assert 1 <= len(server.asked) - before <= 10, minute
    assert {asked.method for asked in server.asked} == {"GET"}
    assert not (tmp_path / "workspace").exists()
    assert Index(config.cache_dir).stats().images == 0


def test_repositories_of_a_host_share_connections(server: FaultServer) -> None:
    settings = Settings()
    one, two = (RemoteRegistry(Repository.parse(f"{server.host}/{name}"), settings=settings) for name in "ab")
    assert one._host.lease.value is two._host.lease.value
    one.close()
    one.close()
    three = RemoteRegistry(Repository.parse(f"{server.host}/c"), settings=settings)
    assert three._host.lease.value is two._host.lease.value
    for registry in (two, three):
        registry.close()
    four = RemoteRegistry(Repository.parse(f"{server.host}/d"), settings=settings)
    assert four._host.lease.value is not two._host.lease.value
    four.close()
    apart = RemoteRegistry(Repository.parse(f"{server.host}/d"), settings=Settings())
    assert apart._host.lease.value is not four._host.lease.value
    apart.close()
