"""What is shown while a call goes on."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import random
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

import conda_oracle
from cli_calls import ENVBUILD
from conda_packages import Entry, Package
from envbuild.cli.lines import describe
from envbuild.cli.live import Live
from envbuild.cli.progress import JsonLines, Plain, Quiet
from envbuild.cli.tally import Tally
from envbuild.progress import Event, Meter, Metered
from tiny import World


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Event("resolve", "ab" * 32, "start", text="building"), "abababababab: building"),
        (Event("solve", "k", "start", total=1), "solving 1 dependency"),
        (Event("solve", "k", "start", total=2), "solving 2 dependencies"),
        (Event("solve", "k", "done", done=7), "solved: 7 packages"),
        (Event("layer", "numpy-1-0", "done", 1_234_567, 9), "layer numpy-1-0: made, 1.2 MB"),
        (Event("layer", "numpy-1-0", "start", 0, 9), None),
        (Event("plan", "layers", "done", 73, 74), "74 layers: 73 known, 1 to make"),
        (Event("plan", "layers", "done", 0, 1), "1 layer: 0 known, 1 to make"),
        (Event("plan", "layers", "done", 0, 0), None),
        (
            Event("plan", "reused", "done", 212_300_000, 173_600_000),
            "reused: 212.3 MB of layers, 173.6 MB of packages need no fetching",
        ),
        (Event("plan", "reused", "done", 0, 0), None),
        (Event("plan", "packages", "start", 0, 9), None),
        (Event("fetch", "numpy-1-0", "progress", 5, 9), None),
        (Event("layer", "numpy-1-0", "reused"), None),
        (Event("push", "numpy-1-0", "done", 5, 5), None),
        (Event("step", "RUN true", "start"), "step RUN true"),
        (Event("step", "RUN true", "output", text="hello"), "step RUN true: hello"),
        (Event("something", "new", "start"), None),
    ],
)
def test_an_event_as_a_line(event: Event, line: str | None) -> None:
    assert describe(event) == line


def test_a_tally_counts_what_was_done() -> None:
    now = [0.0]
    tally = Tally(lambda: now[0])
    assert tally.headline() == "looking · 0:00"
    tally.add(Event("resolve", "k", "start", text="building"))
    tally.add(Event("solve", "k", "start", total=2))
    assert tally.headline() == "solving · 0:00"
    tally.add(Event("solve", "k", "done", done=3))
    for name, size in (("a", 10), ("b", 2_000_000), ("c", 0)):
        tally.add(Event("layer", name, "start", 0, size))
    assert tally.details() == ["making b: 2.0 MB", "making a: 10 B", "making c"]
    tally.add(Event("layer", "b", "done", 1500, 2_000_000))
    tally.add(Event("push", "b", "progress", 700, 1500))
    assert tally.details() == ["sending b: 700 B of 1.5 kB", "making a: 10 B", "making c"]
    tally.add(Event("push", "b", "done", 1500, 1500))
    tally.add(Event("layer", "d", "reused", 9, 9))
    now[0] = 75.5
    assert tally.headline() == "making layers · 2 of 3 packages · 1 made, 1 known · 1.5 kB sent · 1:15"
    assert tally.details() == ["making a: 10 B", "making c"]


def test_a_tally_names_a_few_and_counts_the_rest() -> None:
    tally = Tally()
    for number in range(9):
        tally.add(Event("layer", f"p{number}", "start", 0, 100 - number))
    names = [f"making p{number}: {100 - number} B" for number in range(4)]
    assert tally.details() == [*names, "and 5 more"]


def test_a_tally_says_how_long_it_will_take() -> None:
    now = [100.0]
    tally = Tally(lambda: now[0])
    assert tally.left() is None
    tally.add(Event("plan", "packages", "start", 0, 1000))
    now[0] = 102.0
    assert tally.left() is None, "nothing is known yet"
    tally.add(Event("fetch", "a", "start", 0, 600))
    tally.add(Event("fetch", "a", "progress", 400, 600))
    now[0] = 110.0  # 400 of 4000: fetching is a quarter of the work
    assert tally.left() == pytest.approx(90)
    assert tally.headline().endswith("0:10 · about 1:30 left")
    tally.add(Event("fetch", "a", "done", 600, 600))
    tally.add(Event("layer", "a", "start", 0, 600))
    tally.add(Event("layer", "a", "progress", 300, 600))  # 600 + 2 * 300
    assert tally.left() == pytest.approx(10 * 2800 / 1200)
    tally.add(Event("layer", "a", "done", 66, 600))
    tally.add(Event("push", "a", "progress", 33, 66))  # half of it is sent: 300 bytes of the package
    assert tally.left() == pytest.approx(10 * 1900 / 2100)
    tally.add(Event("push", "a", "done", 66, 66))
    tally.add(Event("fetch", "b", "done", 400, 400))
    tally.add(Event("layer", "b", "start", 0, 400))
    tally.add(Event("layer", "b", "done", 40, 400))
    tally.add(Event("push", "b", "done", 40, 40))
    assert tally.left() is None, "all is done"


def test_a_meter_tells_now_and_then() -> None:
    now = [0.0]
    told: list[Event] = []
    meter = Meter(told.append, "fetch", "a", 100, lambda: now[0])
    for _ in range(10):
        meter(10)
        now[0] += 0.09
    assert [event.done for event in told] == [40, 70, 100]
    assert told[0] == Event("fetch", "a", "progress", 40, 100)


def test_a_metered_stream_is_the_stream() -> None:
    counted: list[int] = []
    inner = io.BytesIO(b"0123456789")
    stream = Metered(inner, counted.append)
    assert stream.read(3) == b"012"
    assert stream.seekable()
    assert stream.seek(-1, io.SEEK_END) == 9
    assert stream.tell() == 9
    buffer = bytearray(4)
    assert stream.readinto(buffer) == 1
    assert bytes(buffer[:1]) == b"9"
    assert counted == [3, 1]
    stream.close()
    assert inner.closed


def test_plain_lines_say_now_and_then_what_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    display = Plain(lambda: now[0])
    for second in range(25):
        now[0] = second
        display(Event("fetch", "big", "progress", second * 1_000_000, 50_000_000))
    assert capsys.readouterr().err == ("fetching big: 10.0 MB of 50.0 MB\nfetching big: 20.0 MB of 50.0 MB\n")


def test_the_live_display_leaves_lines_and_takes_away_what_moves() -> None:
    drawn = io.StringIO()
    live = Live(Console(file=drawn, force_terminal=True, width=60, color_system=None))
    live(Event("solve", "k", "start", total=2))
    live(Event("layer", "numpy[1]-1", "start", 0, 5))
    live(Event("layer", "numpy[1]-1", "done", 5, 5))
    live.note("a remark that is longer than the terminal is wide, " * 2)
    live.pause()
    live.pause()
    text = drawn.getvalue()
    assert "layer numpy[1]-1: made, 5 B\n" in text
    assert "making layers" in text
    assert text.endswith("\x1b[?25h") or "\x1b[?25h" in text.rsplit("\n", 1)[1]
    live(Event("resolve", "k2", "start", text="building"))
    live.pause()
    assert "building" in drawn.getvalue()[len(text) :]


def test_the_live_display_is_safe_for_threads() -> None:
    live = Live(Console(file=io.StringIO(), force_terminal=True))

    def work(number: int) -> None:
        for turn in range(50):
            live(Event("layer", f"{number}-{turn}", "start", 0, 1))
            live(Event("layer", f"{number}-{turn}", "done", 1, 1))
            live.note("x")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "200 made" in live._tally.headline()
    live.pause()


def test_json_lines_hold_the_whole_event(capsys: pytest.CaptureFixture[str]) -> None:
    display = JsonLines()
    display(Event("step", "RUN", "output", 1, 2, "é"))
    display.note("for people")
    out, err = capsys.readouterr()
    assert out == ""
    assert [json.loads(line) for line in err.splitlines()] == [
        {"event": "step", "subject": "RUN", "state": "output", "done": 1, "total": 2, "text": "é"}
    ]


def test_plain_lines_go_to_standard_error_and_quiet_ones_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    for display in (Plain(), Quiet()):
        display(Event("solve", "k", "done", done=7))
        display.note("a remark")
        display.pause()
    assert capsys.readouterr() == ("", "solved: 7 packages\na remark\n")


def on_terminal(command: list[str], **variables: str) -> tuple[bytes, bytes]:
    """Run a command with standard error on a terminal; gives standard output, and what was drawn."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    for name in ("CI", "NO_COLOR"):
        if name not in variables:
            environment.pop(name, None)
    drawn = bytearray()

    def read() -> None:
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:
                return
            if not piece:
                return
            drawn.extend(piece)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment) as process:
        os.close(follower)
        reader = threading.Thread(target=read)
        reader.start()
        out, _ = process.communicate(timeout=60)
        reader.join()
    os.close(leader)
    assert process.returncode == 0
    return out, bytes(drawn)


def test_on_a_real_terminal(world: World) -> None:
    command = [*ENVBUILD, "resolve", str(world.spec("pyth", "thing"))]
    out, drawn = on_terminal(command)
    assert out.startswith(b"oci:")
    assert b"\x1b" not in out
    assert "⠋".encode() in drawn
    assert b"layer thing-1.0-0: made" in drawn
    assert drawn.count(b"\x1b[?25l") == drawn.count(b"\x1b[?25h") == 1
    assert b"built in " in drawn.rsplit(b"\x1b[?25h", 1)[1]


@pytest.mark.parametrize("variables", [{"CI": "true"}, {"TERM": "dumb"}])
def test_a_terminal_that_should_not_be_redrawn_gets_plain_lines(
    world: World, variables: dict[str, str]
) -> None:
    _, drawn = on_terminal([*ENVBUILD, "resolve", str(world.spec("thing"))], **variables)
    assert b"layer thing-1.0-0: made" in drawn
    assert b"\x1b" not in drawn


def test_without_color_the_display_has_none(world: World) -> None:
    _, drawn = on_terminal([*ENVBUILD, "resolve", str(world.spec("thing"))], NO_COLOR="1")
    assert b"layer thing-1.0-0: made" in drawn
    assert b"\x1b[3" not in drawn


class Dripping(SimpleHTTPRequestHandler):
    """Serves a channel, packages slowly."""

    def send_head(self) -> Any:
        del self.headers["If-Modified-Since"]  # rattler wants no 304
        return super().send_head()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        pause = 0.1 if self.path.endswith(".conda") else 0
        while piece := source.read(1 << 16):
            outputfile.write(piece)
            time.sleep(pause)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def slowly(world: World) -> Iterator[tuple[World, str]]:
    """A world with a package that takes two seconds, and the URL of its channels."""
    channel = world.root / "channels" / "tiny"
    Package((Entry("share/data", random.Random(1).randbytes(20 << 16)),), name="slow").put(channel)
    asyncio.run(conda_oracle.index(channel))
    handler = partial(Dripping, directory=str(world.root / "channels"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield world, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_bytes_and_the_time_left_are_shown_on_a_real_terminal(slowly: tuple[World, str]) -> None:
    world, alias = slowly
    command = [*ENVBUILD, "resolve", "--channel-alias", alias, str(world.spec("slow", "thing"))]
    _, drawn = on_terminal(command, COLUMNS="120")
    text = drawn.decode()
    assert "2 layers: 0 known, 2 to make" in text
    shown = re.findall(r"fetching slow-1\.0-0: ([0-9.]+) kB of 1\.3 MB", text)
    assert len({float(each) for each in shown}) >= 3, "the bytes move"
    assert re.search(r"about 0:\d\d left", text)


def plans_in(events: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {event["subject"]: (event["done"], event["total"]) for event in events if event["event"] == "plan"}


def test_events_in_json_follow_a_package(slowly: tuple[World, str]) -> None:
    world, alias = slowly
    command = [*ENVBUILD, "resolve", "--json", "--channel-alias", alias, str(world.spec("slow", "thing"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    slow = [event for event in events if event["subject"] == "slow-1.0-0"]
    states = [(event["event"], event["state"]) for event in slow if event["state"] != "progress"]
    assert states == [
        ("layer", "start"), ("fetch", "start"), ("fetch", "done"), ("push", "done"), ("layer", "done"),
    ]  # fmt: skip
    moved = [event["done"] for event in slow if (event["event"], event["state"]) == ("fetch", "progress")]
    assert len(moved) >= 3
    assert moved == sorted(moved)
    plans = {
        event["subject"]: (event["done"], event["total"]) for event in events if event["event"] == "plan"
    }
    assert plans["layers"] == (0, 2)
    assert plans["reused"] == (0, 0)
    assert plans["packages"][1] > 20 << 16
    command[-1] = str(world.spec("slow", "tool", name="other.yml"))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in again.stderr.splitlines()]
    plans = {
        event["subject"]: (event["done"], event["total"]) for event in events if event["event"] == "plan"
    }
    assert plans["layers"] == (1, 2)
    assert min(plans["reused"]) > 20 << 16, "the slow package is neither fetched nor made again"
    assert not [event for event in events if event["event"] == "fetch" and event["subject"] == "slow-1.0-0"]
