"""The circuit breaker: a host in trouble is asked rarely, whoever asks."""

from __future__ import annotations

import contextlib
import itertools
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
    MOST_TRIALS,
    PATIENCE,
    PAUSES,
    STRANGERS,
    WINDOW,
    Breaker,
    Breakers,
    CircuitOpen,
)
from envbuild.oci.probe import Prober
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.transport import Settings
from envbuild.progress import Event
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
        with breaker.guard(NO_DEADLINE, 0.0) as outcome:
            outcome.answered, outcome.reason = False, "refused"


def answer(breaker: Breaker) -> None:
    with breaker.guard(NO_DEADLINE, 0.0) as outcome:
        outcome.answered = True


def is_open(breaker: Breaker) -> bool:
    """Whether who does not wait is refused."""
    try:
        with breaker.guard(NO_DEADLINE, 0.0):
            return False
    except CircuitOpen:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("registry.example.com", clock)


def test_failures_in_a_row_open_it(breaker: Breaker, clock: Clock) -> None:
    answer(breaker)
    fail(breaker, FAILURES - 1)
    assert not is_open(breaker)
    fail(breaker)
    clock.now += 0.05
    with pytest.raises(
        CircuitOpen, match=r"registry\.example\.com has been in trouble for 0 s: refused"
    ) as caught:
        fail(breaker)
    assert caught.value.retryable
    assert "--timeout" in str(caught.value.hint)


def test_an_outage_names_what_is_on_the_way(breaker: Breaker) -> None:
    with breaker.guard(NO_DEADLINE, 0.0) as outcome:
        outcome.answered, outcome.way = False, "it is asked through the proxy http://proxy.example.com"
    with pytest.raises(CircuitOpen) as caught:
        fail(breaker)
    assert "through the proxy http://proxy.example.com; --timeout" in str(caught.value.hint)


def test_one_failure_of_a_host_that_never_answered_opens_it(breaker: Breaker) -> None:
    fail(breaker)
    assert is_open(breaker)


def test_an_answer_in_between_keeps_it_closed(breaker: Breaker) -> None:
    answer(breaker)
    for _ in range(10):
        fail(breaker, FAILURES - 1)
        answer(breaker)
    assert not is_open(breaker)


def test_a_trial_that_succeeds_closes_it(breaker: Breaker, clock: Clock) -> None:
    answer(breaker)
    fail(breaker, FAILURES)
    clock.now += 1.1 * PAUSES[0]
    answer(breaker)
    fail(breaker, FAILURES - 1)
    assert not is_open(breaker)


def test_one_caller_is_on_trial_and_the_rest_are_refused(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 1.1 * PAUSES[0]
    with breaker.guard(NO_DEADLINE, 0.0) as outcome:
        assert is_open(breaker)
        outcome.answered = True
    assert not is_open(breaker)


def test_trials_are_as_rare_as_they_may_be_and_as_frequent_as_they_must(
    breaker: Breaker, clock: Clock
) -> None:
    """At most ten in any minute; in the first half minute the end of an outage is seen within 5 s."""
    start = clock.now
    trials = []
    while clock.now - start < 600:
        with contextlib.suppress(CircuitOpen), breaker.guard(NO_DEADLINE, 0.0) as outcome:
            trials.append(clock.now - start)
            outcome.answered = False
        clock.now += 0.01
    assert all(len([each for each in trials if at <= each < at + WINDOW]) <= MOST_TRIALS for at in trials)
    early = [each for each in trials if each < 35]
    assert early[-1] >= 30
    assert max(after - before for before, after in itertools.pairwise(early)) < 5
    assert any(WINDOW <= each <= PATIENCE for each in trials), "who waits for a minute sees its end"
    assert len(trials) > 40, "a host is never forgotten"


def test_a_trial_without_an_outcome_is_a_failure(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += 1.1 * PAUSES[0]
    assert not is_open(breaker)
    assert is_open(breaker)


def test_requests_that_were_under_way_together_fail_once(breaker: Breaker) -> None:
    answer(breaker)
    guards = [breaker.guard(NO_DEADLINE) for _ in range(20)]
    outcomes = [guard.__enter__() for guard in guards]
    for guard, outcome in zip(guards, outcomes, strict=True):
        outcome.answered = False
        guard.__exit__(None, None, None)
    assert not is_open(breaker)


def test_a_host_that_asks_to_be_left_alone_is(breaker: Breaker, clock: Clock) -> None:
    with breaker.guard(NO_DEADLINE) as outcome:
        outcome.answered, outcome.pause = False, 20.0
    clock.now += 19
    assert is_open(breaker)
    clock.now += 3
    assert not is_open(breaker)


def test_an_outage_is_waited_out_by_all(breaker: Breaker) -> None:
    """On the real clock: one asks, nobody is refused, and all go on when it answers."""
    breaker = Breaker("registry.example.com")
    asked: list[float] = []
    back = time.monotonic() + 1.5

    def ask(_: int) -> bool:
        while True:
            with breaker.guard(NO_DEADLINE) as outcome:
                asked.append(time.monotonic())
                outcome.answered = time.monotonic() > back
                if outcome.answered:
                    return True

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(32)))
    assert len([each for each in asked if each <= back]) <= 4
    assert max(asked) - back < 5


def test_a_wait_for_an_outage_ends_at_the_deadline(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    started = time.monotonic()
    with pytest.raises(CircuitOpen, match="refused"), breaker.guard(Deadline.after(0.3)):
        pass
    assert 0.2 < time.monotonic() - started < 1


def test_without_a_deadline_an_outage_is_waited_out_for_a_minute(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    assert breaker.waits(NO_DEADLINE, None)
    clock.now += 60
    assert breaker.waits(NO_DEADLINE, None)
    clock.now += 2
    assert not breaker.waits(NO_DEADLINE, None)
    assert breaker.waits(Deadline.after(300), None), "who gave a deadline waits for it"


def test_people_are_told_once_what_is_waited_for(breaker: Breaker) -> None:
    breaker = Breaker("registry.example.com")
    told: list[str] = []
    breaker._next = time.monotonic() + 1.5
    breaker._failures, breaker._since, breaker._reason = 1, time.monotonic(), "connection refused"

    def ask(_: int) -> None:
        with breaker.guard(NO_DEADLINE, None, told.append) as outcome:
            outcome.answered = True

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    (line,) = told
    assert line.startswith("connection refused (for up to ")


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
        pytest.raises(DeadlineExceeded),
        breaker.guard(Deadline.after(0.2)),
    ):
        pass


def test_hosts_are_apart(clock: Clock) -> None:
    breakers = Breakers(clock)
    fail(breakers["a:1"])
    assert is_open(breakers["a:1"])
    assert not is_open(breakers["a:2"])


# On connections


def down(call: Call, asked: Asked) -> None:
    call.fail(503)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving(down) as server:
        yield server


def quick(clock: Clock) -> Settings:
    """Settings under which nobody waits for a host, as on a clock that a test turns nobody could."""
    return Settings(retries=4, patience=0.0, breakers=Breakers(clock))


def test_prober_and_registry_share_it(server: FaultServer, clock: Clock) -> None:
    settings = quick(clock)
    repository = Repository.parse(f"{server.host}/envs")
    with Prober(settings) as prober, pytest.raises(Unavailable):
        prober.probe(repository, Tag("k1-a"))
    assert len(server.asked) == 1
    registry = RemoteRegistry(Repository.parse(f"{server.host}/other"), settings=settings)
    with pytest.raises(CircuitOpen, match="503"):
        registry.get_manifest(Tag("k1-b"))
    assert len(server.asked) == 1
    clock.now += 1.1 * PAUSES[0]
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
            for _ in range(15):
                with ThreadPoolExecutor(64) as pool:
                    list(pool.map(job, range(64)))
                clock.now += 4
            assert 1 <= len(server.asked) - before <= 10, minute
    assert {asked.method for asked in server.asked} == {"GET"}
    assert not (tmp_path / "workspace").exists()
    assert Index(config.cache_dir).stats().images == 0


def test_sixty_four_jobs_wait_for_a_registry_that_is_down(tmp_path: Path, server: FaultServer) -> None:
    """On the real clock: all wait, few ask, and all fail in time with the reason."""
    world = World.make(tmp_path)
    config = replace(world.config, workspace=Repository.parse(f"{server.host}/envs"), timeout=4)
    spec = world.spec("one")
    told: list[Event] = []
    with Resolver(config, progress=told.append) as resolver:
        started = time.monotonic()

        def job(_: int) -> None:
            with pytest.raises(Unavailable, match="503"):
                resolver.resolve(spec)

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(job, range(64)))
        assert 3 < time.monotonic() - started < 8
    assert len(server.asked) <= 5
    waits = [event for event in told if event.phase == "wait"]
    assert len(waits) == 1
    assert waits[0].subject == server.host


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
