"""What the process exits with, and what it says then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cli_calls import ENVBUILD, Call
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.registry import publish
from envbuild.reference import Tag
from parts.fault_server import Asked, FaultServer, serving
from parts.fault_server import Call as Connection
from parts.registry_server import RegistryServer
from tiny import World

HOST = "127.0.0.1"


def test_0_done(world: World, spawn: Call) -> None:
    assert spawn("resolve", world.spec("tool=1")).code == 0
    assert spawn("--help").code == 0
    assert spawn("--version").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Usage: envbuild"),
        (["reslove"], "did you mean 'resolve'?"),
        (["frobnicate"], "the commands are resolve, key, "),
        (["resolve"], "Missing argument 'SPEC...'"),
        (["resolve", "--jobs", "x", "a.yml"], "'x' is not a valid integer"),
        (["resolve", "--workspace", "Nope//", "a.yml"], "--workspace"),
        (["resolve", "--platform", "amiga", "a.yml"], "amiga"),
        (["resolve", "not-there.yml"], "not-there.yml"),
        (["resolve", "--builder", "magic", "a.yml"], "'magic' is not one of"),
        (["run", "a.yml"], "Missing argument '-- CMD...'"),
        (["run", "a.yml", "--"], "there is no command after --"),
        (["run", "--mount", "x", "a.yml", "--", "true"], "expected FOLDER:/PATH"),
        (["run", "--env", "x", "a.yml", "--", "true"], "expected NAME=VALUE"),
        (["prewarm", "not-there"], "give definition files, or folders of them"),
    ],
)
def test_2_usage_or_bad_definition(world: World, call: Call, words: list[str], said: str) -> None:
    answer = call(*words)
    assert answer.code == 2
    assert answer.out == ""
    assert said in answer.err
    if words:
        as_json = call(*words[:1], "--json", *words[1:])
        assert as_json.code == 2
        assert [error["exit_code"] for error in as_json.errors] == [2]


def test_2_says_where_in_the_definition(world: World, call: Call) -> None:
    path = world.root / "bad.yml"
    path.write_text("channels: [tiny]\ndependencies:\n  - tool==\n  - 'a b c d'\n")
    answer = call("resolve", path)
    assert answer.code == 2
    assert answer.err.startswith(f"error: {path}:3:")


@pytest.mark.parametrize(
    ("variable", "value"), [("JOBS", "many"), ("ON_UNAVAILABLE", "panic"), ("WORKSPACE", "//")]
)
def test_2_a_bad_setting_is_named(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"ENVBUILD_{variable}", value)
    answer = call("resolve", world.spec("tool=1"))
    assert answer.code == 2
    assert f"ENVBUILD_{variable}" in answer.err


def test_3_a_miss(world: World, call: Call) -> None:
    answer = call("resolve", world.spec("tool=1"), "--no-build", "--json")
    assert answer.code == 3
    (error,) = answer.errors
    assert error["error"] == "CacheMiss"
    assert not (world.root / "workspace").exists()


def test_4_a_stopped_registry_builds_nothing_unless_asked_to(
    world: World, call: Call, stoppable_registry: RegistryServer
) -> None:
    spec = world.spec("tool=1")
    options = ["--global", str(stoppable_registry.repository()), "--json"]
    stoppable_registry.stop()
    answer = call("resolve", spec, *options, "--timeout", "5")
    assert answer.code == 4
    (error,) = answer.errors
    assert (error["error"], error["retryable"]) == ("Unavailable", True)
    assert error["hint"]
    assert stoppable_registry.host in error["message"]
    assert not (world.root / "workspace").exists()
    assert call("resolve", spec, *options, "--on-unavailable", "build").documents[0]["source"] == "built"


def test_4_what_is_waited_for_is_said(world: World, call: Call, stoppable_registry: RegistryServer) -> None:
    options = ["--workspace", str(stoppable_registry.repository())]
    stoppable_registry.stop()
    answer = call("resolve", world.spec("tool=1"), *options, "--timeout", "4")
    assert answer.code == 4
    (line,) = [line for line in answer.err.splitlines() if line.startswith("waiting for ")]
    assert line.startswith(
        f"waiting for {stoppable_registry.host}: [Errno 111] Connection refused (for up to "
    )


@pytest.mark.parametrize(
    "words",
    [
        "key SPEC --base IMAGE",
        "inspect IMAGE",
        "verify IMAGE",
        "diff IMAGE SPEC",
        "promote IMAGE --to oci:other",
        "lock --from IMAGE",
        "build --from-lock IMAGE",
    ],
)
def test_4_every_command_says_what_it_waits_for(
    world: World, call: Call, stoppable_registry: RegistryServer, words: str
) -> None:
    meant = {"SPEC": str(world.spec("tool=1")), "IMAGE": f"{stoppable_registry.repository()}:v1"}
    stoppable_registry.stop()
    begun = time.monotonic()
    answer = call(*(meant.get(word, word) for word in words.split()), "--timeout", "3")
    assert time.monotonic() - begun < 20
    assert answer.code == 4
    assert f"waiting for {stoppable_registry.host}: " in answer.err


@pytest.mark.parametrize("jobs", ["1", "8"])
def test_130_while_a_registry_is_waited_for(
    world: World, stoppable_registry: RegistryServer, jobs: str
) -> None:
    specs = [world.spec("tool=1", name=f"{number}.yml") for number in range(4)]
    stoppable_registry.stop()
    command = [*ENVBUILD, "prewarm", *map(str, specs), "--workspace", str(stoppable_registry.repository())]
    command += ["--base", "scratch", "--jobs", jobs]
    environment = {**os.environ, "ENVBUILD_CACHE_DIR": str(world.root / "cache")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        while line and not line.startswith("waiting for "):
            line = process.stderr.readline()
        assert line, "it said what it waits for"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - started < 2


def test_8_a_server_that_accepts_and_never_answers(world: World, call: Call) -> None:
    def stall(connection: Connection, _: Asked) -> None:
        connection.server.ended.wait(30)
        connection.hang_up()

    with serving(stall) as server:
        options = ["--workspace", f"{server.host}/envs"]
        answer = call("resolve", world.spec("tool=1"), *options, "--timeout", "7")
    assert answer.code == 8
    assert f"waiting for {server.host}: no answer for 5 s (for up to 2 s more)" in answer.err


def test_4_unauthorised(world: World, call: Call, htpasswd_registry: RegistryServer) -> None:
    answer = call("resolve", world.spec("tool=1"), "--workspace", str(htpasswd_registry.repository()))
    assert answer.code == 4
    assert "hint: " in answer.err


@pytest.mark.parametrize("channel", ["http://127.0.0.1:1/gone", "no-such-channel"])
def test_4_a_channel_that_cannot_be_read(world: World, call: Call, channel: str) -> None:
    answer = call("resolve", "--json", world.spec("tool=1", channels=["tiny", channel]))
    assert answer.code == 4
    (error,) = answer.errors
    assert (error["error"], error["retryable"]) == ("ChannelError", channel.startswith("http"))
    assert channel in error["message"]


def test_5_no_solution_names_the_line_and_what_there_is(world: World, call: Call) -> None:
    path = world.root / "environment.yml"
    path.write_text("channels: [tiny]\ndependencies:\n  - tool=9\n  - firts\n")
    answer = call("resolve", path)
    assert answer.code == 5
    assert f"{path}:3:5: no version of tool is 9.*: tiny has 2.0, 1.0" in answer.err
    assert f"{path}:4:5: no package firts is in the channel tiny: did you mean first?" in answer.err


def test_5_no_solution_reads_as_a_tree(world: World, call: Call) -> None:
    answer = call("resolve", world.spec("tool=9"))
    assert answer.code == 5
    assert "tool" in answer.err
    assert "└─" in call("resolve", world.spec("newer")).err
    assert "hint: choose a version of tool that exists" in answer.err
    assert "Traceback" not in answer.err
    glibc = call("resolve", world.spec("newer"))
    assert (glibc.code, "the base offers glibc 2.36" in glibc.err) == (5, True)


def test_6_a_package_that_cannot_be_built_in(world: World, call: Call) -> None:
    answer = call("resolve", world.spec("scripted"), "--docker-host", f"unix://{world.root}/no.sock")
    assert answer.code == 6
    assert "post-link" in answer.err
    assert "hint: " in answer.err


def test_6_steps_without_an_engine(world: World, call: Call) -> None:
    steps = world.root / "steps.Dockerfile"
    steps.write_text("RUN true\n")
    host = f"unix://{world.root}/no.sock"
    answer = call("resolve", world.spec("tool=1"), "--steps", steps, "--docker-host", host)
    assert answer.code == 6
    assert host in answer.err
    assert "hint: apt-get install docker.io" in answer.err


def test_7_another_image_under_the_tag(world: World, call: Call) -> None:
    one, two = world.spec("tool=1", name="one.yml"), world.spec("tool=2", name="two.yml")
    digest = call("resolve", one, "--json").documents[0]["digest"]
    key = call("key", two).out.strip()
    layout = world.layout()
    manifest = next(layout.get_manifest(tag) for tag in layout.tags() if tag.name.startswith("k1-"))
    assert str(manifest.descriptor.digest) == digest
    publish(LayoutRegistry(world.config.workspace), manifest, Tag(f"k1-{key}"))
    answer = call("resolve", two)
    assert answer.code == 7
    assert "hint: the tag was moved or written by something else" in answer.err


def stalling(connection: Connection, _asked: Asked) -> None:
    """Never answers while the test runs."""
    assert isinstance(connection.server, FaultServer)
    connection.server.ended.wait()


def test_8_the_deadline(world: World, call: Call) -> None:
    with serving(stalling) as server:
        started = time.monotonic()
        answer = call(
            "resolve", world.spec("tool=1"), "--workspace", f"{server.host}/x", "--timeout", "0.5", "--json"
        )
    assert answer.code == 8
    assert time.monotonic() - started < 10
    assert answer.errors[0]["retryable"] is True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_registry_is_asked(world: World, number: int, code: int) -> None:
    with serving(stalling) as server:
        command = [*ENVBUILD, "resolve", str(world.spec("tool=1")), "--workspace", f"{server.host}/x"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: server.asked)
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_build_leaves_nothing_behind(
    world: World, call: Call, number: int
) -> None:
    channel = world.root / "channels"
    reached = threading.Event()

    def serve(connection: Connection, asked: Asked) -> None:
        path = channel / asked.path.lstrip("/")
        if path.suffix == ".conda" and path.name.startswith("thing"):
            reached.set()
            stalling(connection, asked)
        elif path.is_file():
            connection.answer(200, path.read_bytes())
        else:
            connection.answer(404)

    spec = world.spec("thing", "tool=1")
    with serving(serve) as server:
        command = [*ENVBUILD, "resolve", str(spec), "--channel-alias", server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert reached.wait(30)
            started = time.monotonic()
            process.send_signal(number)
            out, _ = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert time.monotonic() - started < 10
    assert out == ""
    assert list((world.root / "cache" / "spool").iterdir()) == []
    blobs = world.root / "workspace" / "blobs" / "sha256"
    assert all(len(path.name) == 64 for path in blobs.glob("*"))  # where one was stored at all
    assert call("resolve", spec, "--timeout", "30").code == 0


SWALLOWED = """
import os, signal, time, weakref
from envbuild import cli

class Thing: pass

def run(arguments):
    thing = Thing()
    held = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    try:
        del thing
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
        return 130

cli.exit_code_of = run
cli.main()
"""


def ended(program: str) -> tuple[int, str, str]:
    """The exit code of a program and what it printed on both streams."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    return done.returncode, done.stdout, done.stderr


def test_a_signal_that_comes_in_a_callback_is_not_lost() -> None:
    assert ended(SWALLOWED) == (143, "interrupted\n", "")


LATE = """
import os, signal, sys
from envbuild import cli

def run(arguments):
    sys.stdout.write("answer\\n")
    os.kill(os.getpid(), signal.SIGTERM)

cli.exit_code_of = run
cli.main()
"""


def test_a_signal_after_the_answer_is_told_by_the_exit_code_alone() -> None:
    assert ended(LATE) == (143, "answer\n", "")


def until(condition: object, seconds: float = 30.0) -> None:
    """Wait for something that another process does."""
    limit = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_reader_that_goes_away_is_no_error(world: World) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*ENVBUILD, "key", str(world.spec("tool=1"))],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 141
    assert "rror" not in done.stderr


def test_the_answer_is_written_though_nobody_reads_progress(world: World) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*ENVBUILD, "resolve", "--quiet", str(world.spec("tool=1"))],
        stdout=subprocess.PIPE,
        stderr=write,
        check=False,
    )
    os.close(write)
    assert done.returncode == 0
    assert b"@sha256:" in done.stdout


def test_a_cache_that_is_not_ours_is_refused(world: World, call: Call) -> None:
    (world.root / "elsewhere").mkdir()
    (world.root / "link").symlink_to(world.root / "elsewhere")
    answer = call("cache", "info", "--cache-dir", Path(world.root / "link"))
    assert answer.code == 1
    assert "symbolic link" in answer.err
