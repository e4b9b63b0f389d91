"""``envbuild run``, the job runner and the demo: a real environment, run by a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cli_calls import ENVBUILD, Answer
from fixtures_channel import Bases, ChannelFolder
from parts.docker_engine import DockerEngine

pytestmark = pytest.mark.xdist_group("engine")

ROOT = Path(__file__).resolve().parents[2]
SPEC = {"channels": ["fixtures", "nodefaults"], "dependencies": ["python=3.11", "tabulate"]}


class Machine:
    """A folder with a definition, and the settings under which processes run in it."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **settings}
        (folder / "environment.yml").write_text(json.dumps(SPEC))

    def call(self, *command: str) -> Answer:
        """Run a command to its end."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self.environment,
            timeout=300,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def run(self, *words: str) -> Answer:
        """``envbuild run`` of the definition."""
        return self.call(*ENVBUILD, "run", *words)


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory, channel: ChannelFolder, bases: Bases, engine: DockerEngine
) -> Machine:
    """A machine with an engine, whose workspace is a layout on disk."""
    folder = tmp_path_factory.mktemp("run")
    settings = {
        "ENVBUILD_WORKSPACE": f"oci:{folder}/images",
        "ENVBUILD_BASE": f"oci:{bases.minimal}",
        "ENVBUILD_CHANNEL_ALIAS": channel.alias,
        "ENVBUILD_CACHE_DIR": str(folder / "cache"),
        "DOCKER_HOST": engine.host,
    }
    return Machine(folder, settings)


def no_container_is_left(engine: DockerEngine) -> bool:
    """Whether the engine has, in the end, no container of an image that was run here."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        images = engine.docker("ps", "--all", "--format", "{{.Image}}").stdout.split()
        if not any(image.startswith("envbuild-run:") for image in images):
            return True
        time.sleep(0.2)
    return False


def test_runs_what_the_environment_holds(machine: Machine, engine: DockerEngine) -> None:
    program = "import sys, tabulate; print(sys.prefix, tabulate.tabulate([[1]]).split()[1])"
    answer = machine.run("environment.yml", "--", "python", "-c", program)
    assert answer.code == 0, answer.err
    assert answer.out == "/opt/env 1\n"
    assert no_container_is_left(engine)
    again = machine.run("environment.yml", "--", "python", "-c", "print(2)")
    assert again.out == "2\n"
    assert again.err.count("\n") == 1
    assert "found in the local index" in again.err


def test_passes_on_both_streams_and_the_exit_code(machine: Machine) -> None:
    program = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    answer = machine.run("--quiet", "environment.yml", "--", "python", "-c", program)
    assert (answer.code, answer.out, answer.err) == (7, "out\n", "err\n")


def test_passes_folders_variables_and_places(machine: Machine) -> None:
    (machine.folder / "data").mkdir()
    (machine.folder / "data" / "x").write_text("from outside")
    program = "import os; print(open('x').read(), os.environ['A'], os.getcwd(), os.getuid())"
    options = ["--mount", "data:/data:ro", "--env", "A=b=c", "--workdir", "/data", "--user", "1234"]
    answer = machine.run(*options, "environment.yml", "--", "python", "-c", program)
    assert answer.out == "from outside b=c /data 1234\n"


def test_a_command_that_is_not_there(machine: Machine, engine: DockerEngine) -> None:
    answer = machine.run("--json", "environment.yml", "--", "no-such-command")
    assert answer.code == 6
    assert "no-such-command" in answer.errors[0]["message"]
    assert "not found" in answer.errors[0]["message"]
    assert no_container_is_left(engine)


def test_an_interrupted_run_leaves_no_container(machine: Machine, engine: DockerEngine) -> None:
    program = "import time; print('here', flush=True); time.sleep(300)"
    command = [*ENVBUILD, "run", "--quiet", "environment.yml", "--", "python", "-c", program]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=machine.folder,
        env=machine.environment,
    ) as process:
        timer = threading.Timer(120, process.kill)
        timer.start()
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        timer.cancel()
    assert process.returncode == 130
    assert no_container_is_left(engine)


def test_the_job_runner(machine: Machine) -> None:
    (machine.folder / "script.py").write_text(
        "import sys, tabulate\nprint(tabulate.tabulate([sys.argv[1:]], tablefmt='plain'))\nsys.exit(3)\n"
    )
    command = [sys.executable, str(ROOT / "examples" / "job_runner.py"), "environment.yml", "script.py"]
    workspace = ["--workspace", machine.environment["ENVBUILD_WORKSPACE"]]
    base = ["--base", machine.environment["ENVBUILD_BASE"]]
    answer = machine.call(*command, *workspace, *base, "--", "a", "b")
    assert (answer.code, answer.out) == (3, "a  b\n"), answer.err
    assert "@sha256:" in answer.err
    missing = machine.call(*command[:2], "nowhere.yml", "script.py")
    assert missing.code == 2
    assert "nowhere.yml" in missing.err


def test_the_demo_and_again(machine: Machine, channel: ChannelFolder, bases: Bases, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--state", str(tmp_path / "demo")]
    for _ in range(2):
        answer = machine.call(*command)
        assert answer.code == 0, answer.err
        rows = answer.out.splitlines()
        start = next(number for number, row in enumerate(rows) if row.startswith("---"))
        sources = [row[26:37].strip() for row in rows[start + 1 : start + 6]]
        assert sources == ["built", "index", "workspace", "built", "built"]
        assert "· numpy " in answer.out


def test_the_demo_without_an_engine(
    machine: Machine, channel: ChannelFolder, bases: Bases, tmp_path: Path
) -> None:
    alone = Machine(machine.folder, {**machine.environment, "DOCKER_HOST": f"unix://{tmp_path}/none"})
    answer = alone.call(sys.executable, str(ROOT / "examples" / "demo.py"), "--state", str(tmp_path / "demo"))
    assert answer.code == 0, answer.err
    assert "No Docker Engine answers here" in answer.out
