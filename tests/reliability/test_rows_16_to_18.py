"""Rows 16 to 18 for whole builds: killed at any instant, failing at any write, with the disk full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from envbuild.reference import Repository
from reliability.ended import DEPENDENCIES, build, check, fresh
from tiny import World

if TYPE_CHECKING:
    from envbuild.config import Config
    from parts.registry_server import RegistryServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def killed(world: World, workspace: Repository, rounds: int, seed: int) -> int:
    """Kill builds at random instants; each is whole or absent, the next one heals. How many were killed."""
    print(f"seed {seed}")  # noqa: T201
    random = Random(seed)
    spec = world.spec(*DEPENDENCIES)
    build(fresh(world, workspace), spec)  # starts the server of the children
    whole = build(fresh(world, workspace), spec)
    assert whole.said.startswith("sha256:"), whole
    count = 0
    for number in range(rounds):
        config = fresh(world, workspace)
        ended = build(config, spec, end=signal.SIGKILL, after=random.uniform(0, 1.0) * whole.seconds)
        count += ended.exit_code == -signal.SIGKILL
        assert ended.said in {"", whole.said}, f"round {number}"
        check(config)
        again = build(config, spec)
        assert again.said == whole.said, f"round {number}: the next run did not heal"
        assert sum(tag.startswith("k1-") for tag in check(config)) == 1
        shutil.rmtree(config.cache_dir)
    return count


def test_killed_at_random_instants(world: World, registry: RegistryServer) -> None:
    assert killed(world, world.config.workspace, 12, 16) > 1
    assert killed(world, registry.repository(), 8, 17) > 1


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_killed_at_500_random_instants(world: World, registry: RegistryServer) -> None:
    assert killed(world, world.config.workspace, 300, 160) > 100
    assert killed(world, registry.repository(), 200, 170) > 70


CALLS = {
    "write": "write,pwrite64,writev",
    "fsync": "fsync,fdatasync",
    "rename": "rename,renameat,renameat2,link,linkat",
    "open": "mkdir,mkdirat,ftruncate,unlink,unlinkat",
}
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")
TYPED, OWN_WRITE = 40, 41
"""Exit codes of the program, which may not be able to write a word."""
PROGRAM = f"""
import json, sys
from pathlib import Path
from envbuild.config import Config
from envbuild.errors import EnvbuildError
from envbuild.resolver import Resolver

config = Config.load(Path("/"), {{}}, **json.loads(sys.argv[1]))
try:
    with Resolver(config) as resolver:
        said = str(resolver.resolve(Path(sys.argv[2])).reference.digest)
except EnvbuildError:
    sys.exit({TYPED})
try:
    Path(sys.argv[3]).write_text(said)
except OSError:
    sys.exit({OWN_WRITE})
"""


def inject(config: Config, spec: Path, call: str, fault: str, when: int) -> tuple[bool, str | None]:
    """Build with a fault at the Nth such call of any thread; whether all went well, and the digest if any."""
    said = config.cache_dir.with_suffix(".said")
    settings = {"workspace": str(config.workspace), "cache_dir": str(config.cache_dir)}
    settings |= {"base": str(config.base), "channel_alias": config.channel_alias}
    strace = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={CALLS[call]}"]
    strace += ["-e", f"inject={CALLS[call]}:{fault}:when={when}"]
    done = subprocess.run(
        [*strace, sys.executable, "-B", "-c", PROGRAM, json.dumps(settings), str(spec), str(said)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    fine = done.returncode == 0
    assert fine or "KILL" in fault or done.returncode in {TYPED, OWN_WRITE}, done.stderr
    return fine, said.read_text() if said.exists() else None


def locked(world: World) -> str:
    """Write a definition and its lock, so that no solver runs, whose threads know no faults; the digest."""
    spec = world.spec(*DEPENDENCIES)
    command = [
        sys.executable,
        "-m",
        "envbuild",
        "lock",
        str(spec),
        "--cache-dir",
        str(world.root / "locking"),
    ]
    settings = ["--base", str(world.config.base), "--channel-alias", world.config.channel_alias]
    subprocess.run([*command, *settings], check=True, capture_output=True, cwd=ROOT)
    return build(fresh(world, world.config.workspace), spec).said


def fault_at(world: World, expected: str, call: str, fault: str, when: int) -> bool:
    """One fault: the old state or the new one, and the next run heals. Whether the fault did not matter."""
    config = fresh(world, world.config.workspace)
    spec = world.root / "environment.yml"
    fine, said = inject(config, spec, call, fault, when)
    assert said in {None, "", expected}
    check(config)
    assert build(config, spec).said == expected, f"{call} {fault} {when}: the next run did not heal"
    assert sum(tag.startswith("l1-") for tag in check(config)) == 1
    shutil.rmtree(config.cache_dir)
    return fine


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_some_calls(world: World, fault: str) -> None:
    random = Random(fault)
    expected = locked(world)
    fine = [
        fault_at(world, expected, call, fault, random.randint(first, last))
        for call, first, last in (("write", 1, 12), ("rename", 1, 6), ("rename", 1, 1))
    ]
    assert not all(fine)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_fault_at_each_call(world: World, call: str, fault: str) -> None:
    expected = locked(world)
    through = [fault_at(world, expected, call, fault, when) for when in range(1, 60)]
    assert not all(through)
    print(f"{call} {fault}: {through.count(False)} of {len(through)} faults were felt")  # noqa: T201


FULL = """
import json, subprocess, sys
from dataclasses import replace
from pathlib import Path
from envbuild.config import Config
from envbuild.errors import StorageError
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from reliability.ended import check

root, spec = Path(sys.argv[2]), Path(sys.argv[3])
config = Config.load(Path("/"), {}, **json.loads(sys.argv[1]))
config = replace(config, workspace=Repository("", f"{root}/images"), cache_dir=root / "cache")
said = []
for _ in range(2):
    try:
        with Resolver(config) as resolver:
            said.append(str(resolver.resolve(spec).reference.digest))
    except StorageError as error:
        said.append(type(error).__name__)
    check(config)
    subprocess.run(["mount", "-o", "remount,size=64m", str(root)], check=True)
print(json.dumps(said))
"""


def full(world: World, expected: str, size: int) -> bool:
    """Build on a disk of so many bytes, then on a bigger one; whether the first was too small."""
    folder = world.root / f"disk-{size}"
    folder.mkdir()
    settings = {"base": str(world.config.base), "channel_alias": world.config.channel_alias}
    mount = f'mount -t tmpfs -o size={size} none "$1" && shift && exec "$@"'
    spec = str(world.root / "environment.yml")
    command = [sys.executable, "-B", "-c", FULL, json.dumps(settings), str(folder), spec]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            mount,
            "sh",
            str(folder),
            *command,
            str(world.root / "environment.yml"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first in {"StorageFull", expected}, first
    assert second == expected
    return bool(first == "StorageFull")


def test_a_full_disk(world: World) -> None:
    expected = locked(world)
    felt = [full(world, expected, size) for size in (4 << 10, 40 << 10, 1 << 20)]
    assert (felt[0], felt[-1]) == (True, False)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_a_disk_that_is_full_at_50_points(world: World) -> None:
    expected = locked(world)
    felt = [full(world, expected, number * (4 << 10)) for number in range(1, 51)]
    assert 5 < felt.count(True) < 50
    print(f"{felt.count(True)} of 50 disks were too small")  # noqa: T201
