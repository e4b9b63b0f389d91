"""What is shown while a call goes on."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import threading

import pytest
from rich.console import Console

from cli_calls import ENVBUILD
from envbuild.cli.lines import describe
from envbuild.cli.live import Live, Tally
from envbuild.cli.progress import JsonLines, Plain, Quiet
from envbuild.progress import Event
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
    assert tally.details() == "b (2.0 MB), a (10 B), c"
    tally.add(Event("push", "b", "done", 1500, 1500))
    tally.add(Event("layer", "b", "done", 1500, 2_000_000))
    tally.add(Event("layer", "d", "reused"))
    now[0] = 75.5
    assert tally.headline() == "making layers · 2 of 3 packages · 1 made, 1 known · 1.5 kB sent · 1:15"
    assert tally.details() == "a (10 B), c"


def test_a_tally_names_a_few_and_counts_the_rest() -> None:
    tally = Tally()
    for number in range(9):
        tally.add(Event("layer", f"p{number}", "start", 0, 100 - number))
    assert tally.details() == "p0 (100 B), p1 (99 B), p2 (98 B), p3 (97 B) and 5 more"


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
