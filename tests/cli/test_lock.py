"""``envbuild lock``: where it writes, what it says, and when a lock is stale."""

from __future__ import annotations

import json

import pytest

from cli_calls import Call
from envbuild.lockfile.document import LockFile
from tiny import World
from tiny_wheels import TinyWheel
from wheel_world import put, spec


def test_a_lock_is_written_beside_the_definition(world: World, call: Call) -> None:
    answer = call("lock", world.spec("pyth", "thing"))
    assert (answer.code, answer.out) == (0, f"{world.root}/envbuild.lock: 3 packages for linux/amd64\n")
    assert "solved: 3 packages" in answer.err
    lock = LockFile.read(world.root / "envbuild.lock")
    assert lock.definition == "environment.yml"
    assert not world.config.workspace.folder.exists()
    key = call("key", "--no-lock", world.spec("pyth", "thing")).out.strip()
    assert key == str(lock.entries[0].key)


def test_writing_again_says_what_changed(world: World, call: Call) -> None:
    call("lock", world.spec("tool=1"))
    answer = call("lock", world.spec("tool=2", "thing"))
    lines = answer.out.splitlines()
    assert lines[0].endswith("2 packages for linux/amd64")
    assert lines[1].startswith("  package thing added: 1.0 0")
    assert lines[2].startswith("  package tool: 1.0 0")
    again = call("lock", world.spec("tool=2", "thing"))
    assert len(again.out.splitlines()) == 1


def test_json(world: World, call: Call) -> None:
    (document,) = call("lock", "--json", world.spec("tool")).documents
    assert document["packages"] == 1
    assert document["lock"] == f"{world.root}/envbuild.lock"
    assert [change["kind"] for change in document["changes"]] == ["added"]


def test_standard_output_and_other_places(world: World, spawn: Call) -> None:
    spec = world.spec("tool")
    shown = spawn("lock", spec, "-o", "-")
    assert shown.code == 0
    assert not (world.root / "envbuild.lock").exists()
    other = world.root / "other.lock"
    assert spawn("lock", spec, "-o", other).code == 0
    assert other.read_text() == shown.out
    assert LockFile.read(other).to_bytes() == shown.out.encode()


def test_several_platforms_have_one_lock(world: World, call: Call) -> None:
    path = world.root / "envbuild.yaml"
    path.write_text("base: scratch\nplatforms: [linux/amd64, linux/arm64]\n")
    assert len(call("lock", path).out.splitlines()) == 2
    assert [str(entry.lock.platform) for entry in LockFile.read(world.root / "envbuild.lock").entries] == [
        "linux/amd64",
        "linux/arm64",
    ]
    assert call("lock", "--check", path).code == 0


def test_check_solves_nothing_and_says_what_is_stale(world: World, call: Call) -> None:
    missing = call("lock", "--check", world.spec("tool=1"))
    assert (missing.code, missing.out) == (1, "no lock for linux/amd64\n")
    call("lock", world.spec("tool=1"))
    assert call("lock", "--check", world.spec("tool=1")).code == 0
    stale = call("lock", "--check", world.spec("tool=2"))
    assert (stale.code, stale.out) == (1, "stale for linux/amd64: dependency tool: tool 1.* -> tool 2.*\n")
    (document,) = call("lock", "--check", "--json", world.spec("tool=2")).documents
    assert (document["part"], document["before"]) == ("dependency", "tool 1.*")


def test_the_lock_of_another_definition_is_not_overwritten(world: World, call: Call) -> None:
    call("lock", world.spec("tool=1"))
    before = (world.root / "envbuild.lock").read_bytes()
    answer = call("lock", world.spec("thing", name="other.yml"))
    assert answer.code == 2
    assert "is the lock of environment.yml" in answer.err
    assert "-o" in answer.err
    assert (world.root / "envbuild.lock").read_bytes() == before
    assert call("lock", world.spec("thing", name="other.yml"), "-o", world.root / "other.lock").code == 0


def test_a_damaged_lock_is_told_with_its_place(world: World, call: Call) -> None:
    spec = world.spec("tool=1")
    call("lock", spec)
    path = world.root / "envbuild.lock"
    path.write_bytes(path.read_bytes().replace(b'"noarch"', b'"noarsch"').replace(b'"1.0"', b'"1.00"'))
    answer = call("resolve", spec)
    assert answer.code == 2
    assert f"{path}:" in answer.err


def test_an_unwritable_place_is_an_error(world: World, call: Call) -> None:
    answer = call("lock", world.spec("tool"), "-o", world.root / "none" / "envbuild.lock")
    assert answer.code == 1
    assert "cannot be written" in answer.err


def test_wheels_are_told_and_compared(world: World, call: Call) -> None:
    put(world, TinyWheel("small"), TinyWheel("dep"))
    answer = call("lock", spec(world, "small"))
    assert answer.out.splitlines() == [f"{world.root}/envbuild.lock: 1 package and 1 wheel for linux/amd64"]
    first = (world.root / "envbuild.lock").rename(world.root / "first.lock")
    (document,) = call("lock", "--json", spec(world, "small", "dep")).documents
    assert (document["packages"], document["wheels"]) == (1, 2)
    assert {(change["part"], change["kind"]) for change in document["changes"]} == {
        ("package", "added"),
        ("wheel", "added"),
    }
    told = call("diff", first, world.root / "envbuild.lock")
    assert told.code == 1
    assert [line for line in told.out.splitlines() if line.startswith("wheel")] == [
        f"wheel dep added: 1.0, sha256 {TinyWheel('dep').distribution().sha256.hex[:12]}"
    ]
    assert call("lock", "--check", spec(world, "small", "dep")).code == 0
    assert call("lock", "--check", spec(world, "small")).code == 1


def test_what_is_no_wheel_cannot_be_locked(world: World, call: Call) -> None:
    answer = call("lock", spec(world, "git+https://example.org/x.git", local=False))
    assert answer.code == 6
    assert "expected a wheel" in answer.err


@pytest.mark.parametrize("platform", ["linux/amd64"])
def test_a_lock_is_plain_json(world: World, call: Call, platform: str) -> None:
    call("lock", world.spec("tool"))
    document = json.loads((world.root / "envbuild.lock").read_bytes())
    assert document["envbuild_lock"] == 1
    assert document["platforms"][platform]["packages"][0]["name"] == "tool"
    assert document["platforms"][platform]["pip"] == []


def test_the_file_name_says_the_format_and_the_option_says_more(world: World, call: Call) -> None:
    spec = world.spec("tool")
    answer = call("lock", spec, "-o", world.root / "pixi.lock")
    assert (answer.code, answer.out) == (0, f"{world.root}/pixi.lock: 1 package for linux/amd64\n")
    assert call("lock", spec, "--format", "conda-lock").out.startswith(f"{world.root}/conda-lock.yml: ")
    assert call("lock", spec, "--format", "explicit").code == 0
    shown = call("lock", spec, "-o", "-", "--format", "explicit").out
    assert shown == (world.root / "explicit.txt").read_text()
    assert shown.splitlines()[:2] == ["# platform: linux-64", "@EXPLICIT"]
    assert not (world.root / "envbuild.lock").exists()
    keys = {call("key", world.root / name).out for name in ("pixi.lock", "conda-lock.yml", "explicit.txt")}
    assert len(keys) == 1


def test_what_another_format_cannot_hold_comes_from_options(world: World, call: Call) -> None:
    path = world.root / "envbuild.yaml"
    conda = {"channels": ["tiny"], "dependencies": ["tool"]}
    path.write_text(json.dumps({"base": "scratch", "conda": conda}))
    answer = call("lock", path, "--format", "pixi")
    assert answer.code == 2
    assert "the definition has a base, which a lock of the format pixi does not hold" in answer.err
    assert "--base" in answer.err
    assert not (world.root / "pixi.lock").exists()
    assert call("lock", path, "--format", "pixi", "--base", "scratch").code == 0


def test_only_an_own_lock_is_checked(world: World, call: Call) -> None:
    answer = call("lock", "--check", "--format", "pixi", world.spec("tool"))
    assert answer.code == 2
    assert "--check compares a definition with its envbuild.lock" in answer.err
