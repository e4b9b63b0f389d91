"""``envbuild lint``: findings, JSON and exit codes."""

from __future__ import annotations

from cli_calls import Call
from tiny import World


def test_findings_are_explained_once_a_rule(world: World, call: Call) -> None:
    path = world.root / "environment.yml"
    path.write_text("channels: [tiny]\ndependencies:\n- tool\n- thing\n- python>=3.9\n")
    answer = call("lint", "environment.yml", "--base", "debian:12")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert "environment.yml:3:3: EB104 warning: tool has no version" in lines
    assert "environment.yml:4:3: EB104 warning: thing has no version" in lines
    assert answer.out.count("    do: pin it, as NAME=1.26") == 1
    assert lines[-1] == "4 warnings, 0 notes"


def test_one_finding_is_counted_as_one(world: World, call: Call) -> None:
    answer = call("lint", "--base", "scratch", world.spec("tool"))
    assert answer.out.splitlines()[-1] == "1 warning, 0 notes"


def test_the_configured_base_is_looked_at(world: World, call: Call) -> None:
    answer = call("lint", world.spec("tool=1"))
    assert "EB121" in answer.out
    assert f"{world.config.base}" in answer.out


def test_json_is_one_object_a_finding(world: World, call: Call) -> None:
    answer = call("lint", world.spec("tool"), "--base", "scratch", "--json")
    (document,) = answer.documents
    assert (document["code"], document["line"], document["severity"]) == ("EB104", 1, "warning")


def test_strict_fails_for_warnings_and_not_for_notes(world: World, call: Call) -> None:
    assert call("lint", "--strict", "--base", "scratch", world.spec("tool")).code == 2
    assert call("lint", "--strict", "--base", "scratch", world.spec("tool>=1")).code == 0
    clean = call("lint", "--strict", "--base", "scratch", world.spec("tool=1"))
    assert (clean.code, clean.out) == (0, "")


def test_a_definition_that_cannot_be_read_does_not_keep_others_from_being_checked(
    world: World, call: Call
) -> None:
    (world.root / "bad.yml").write_text("dependancies: []\n")
    answer = call("lint", "bad.yml", world.spec("tool"), "--base", "scratch")
    assert answer.code == 2
    assert "bad.yml" in answer.err
    assert "EB104" in answer.out


def test_nothing_is_written(world: World, call: Call) -> None:
    call("lint", world.spec("tool"))
    assert not world.config.cache_dir.exists()
    assert not world.config.workspace.folder.exists()
