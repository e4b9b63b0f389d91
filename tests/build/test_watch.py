"""Ending what does not end by itself."""

from __future__ import annotations

import io
import threading
import time

import pytest

from envbuild.build.watch import Watch, watched
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import BuildLimit, DeadlineExceeded


def test_what_was_given_is_called_once_when_the_time_is_up() -> None:
    called: list[int] = []
    rang = threading.Event()
    with Watch.over(NO_DEADLINE, 0.05, "waiting") as watch:
        watch.on_expiry(lambda: called.append(1))
        watch.on_expiry(lambda: called.remove(7))
        watch.on_expiry(rang.set)
        assert rang.wait(5)
        watch.on_expiry(lambda: called.append(2))
    assert called == [1, 2]
    assert watch.expired


def test_nothing_is_called_when_the_work_ends_first() -> None:
    called: list[int] = []
    with Watch.over(NO_DEADLINE, 0.4, "waiting") as watch:
        watch.on_expiry(lambda: called.append(1))
    time.sleep(0.5)
    assert called == []
    assert not watch.expired


@pytest.mark.parametrize(
    ("deadline", "seconds", "error"),
    [
        (0.0, None, DeadlineExceeded),
        (None, 0.0, BuildLimit),
        (5.0, 0.0, BuildLimit),
        (0.0, 5.0, DeadlineExceeded),
    ],
)
def test_whose_time_it_was(deadline: float | None, seconds: float | None, error: type[Exception]) -> None:
    watch = Watch.over(Deadline.after(deadline), seconds, "building")
    with pytest.raises(error, match="building"):
        watch.check()
    with pytest.raises(error):
        watch.__enter__()
    with pytest.raises(error):
        list(watch.each([b"chunk"]))
    with pytest.raises(error):
        watched(io.BytesIO(b"content"), watch).read(1)


def test_streams_pass_through_while_there_is_time() -> None:
    with Watch.over(Deadline.after(60), 30, "reading") as watch:
        assert list(watch.each([b"a", b"b"])) == [b"a", b"b"]
        with watched(io.BytesIO(b"x" * 3_000_000), watch) as stream:
            assert len(stream.read()) == 3_000_000
        connect, read = watch.timeout(10)
        assert connect == 10
        assert read is not None
        assert 30 < read <= 35
    assert Watch.over(NO_DEADLINE, None, "x").timeout(10) == (10, None)
