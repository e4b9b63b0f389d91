"""``resolve`` and ``key`` under a lock, with warnings, and with misses explained."""

from __future__ import annotations

import json

import pytest

from cli_calls import Call
from envbuild.reference import Repository
from tiny import LIBC, World, make_base
from tiny_wheels import TinyWheel
from wheel_world import put
from wheel_world import spec as with_wheels


def test_a_stale_lock_is_told_and_locked_fails(world: World, call: Call) -> None:
    call("lock", world.spec("tool=1"))
    assert call("resolve", "--locked", world.spec("tool=1")).code == 0
    stale = call("resolve", world.spec("tool=2"))
    assert stale.code == 0
    assert "envbuild.lock is stale: dependency tool: tool 1.* -> tool 2.*" in stale.err
    failed = call("resolve", "--locked", world.spec("tool=2"))
    assert (failed.code, failed.out) == (2, "")
    assert "is stale" in failed.err
    assert call("key", "--locked", world.spec("tool=2")).code == 2
    assert "stale" not in call("resolve", "--no-lock", world.spec("tool=2")).err


def test_a_stale_lock_is_told_once(world: World, call: Call) -> None:
    call("lock", world.spec("tool=1"))
    for words in (("resolve", "--explain"), ("build",), ("resolve", "--explain", "--json")):
        assert call(*words, world.spec("tool=2", variables={"A": words[-1]})).err.count("is stale") == 1


@pytest.mark.parametrize("spelling", ["oci:BASES", "oci:./deep/../BASES", "oci:link", "oci:ROOT/BASES"])
def test_a_lock_holds_a_layout_by_any_of_its_names(world: World, call: Call, spelling: str) -> None:
    (world.root / "deep/er").mkdir(parents=True)
    (world.root / "short").symlink_to("deep/er")
    (world.root / "link").symlink_to("bases")
    base = spelling.replace("BASES", "bases").replace("ROOT", str(world.root)) + ":minimal"
    document = {"conda": {"channels": ["tiny"], "dependencies": ["tool"]}}
    (world.root / "deep/er/envbuild.yaml").write_text(json.dumps(document))
    for place, other in (("short", "deep/er"), ("deep/er", "short")):
        assert call("lock", f"{place}/envbuild.yaml", "--base", base).code == 0
        for named in (base, f"oci:{world.root}/bases:minimal", "oci:bases:minimal"):
            answer = call("resolve", "--locked", f"{other}/envbuild.yaml", "--base", named)
            assert answer.code == 0, answer.err
        assert call("resolve", f"{other}/envbuild.lock").out == answer.out
        make_base(Repository.parse(f"oci:{world.root}/others"), "minimal", {"lib/libc.so.6": LIBC + b"2"})
        other_base = call("resolve", "--locked", f"{other}/envbuild.yaml", "--base", "oci:others:minimal")
        assert (other_base.code, "stale: base" in other_base.err) == (2, True)


def test_a_base_for_another_platform_is_the_definitions_fault(world: World, call: Call) -> None:
    for words in (("resolve",), ("lock",), ("key",), ("resolve", "--dry-run")):
        answer = call(*words, world.spec("tool"), "--platform", "linux/arm64")
        assert (answer.code, answer.out) == (2, "")
        assert "is for linux/amd64, not for linux/arm64" in answer.err


def test_a_lock_can_be_named_and_be_the_definition(world: World, call: Call) -> None:
    spec = world.spec("tool=1")
    call("lock", spec, "-o", "other.lock")
    first = call("resolve", spec, "--lock", "other.lock", "--locked")
    assert first.code == 0
    assert call("resolve", "other.lock").out == first.out
    locked = call("key", "other.lock")
    assert locked.out == call("key", spec, "--lock", "other.lock").out
    assert locked.err == "other.lock: lock key\n"
    assert locked.out != call("key", spec).out


def test_warnings_are_shown_when_something_is_built(world: World, call: Call) -> None:
    spec = world.spec("tool")
    built = call("resolve", spec)
    assert "EB104 tool has no version" in built.err
    assert "EB121" in built.err
    assert "EB104" not in call("resolve", spec).err
    assert "EB104" not in call("build", "--quiet", spec).err


def test_a_lock_settles_the_warnings_that_it_can(world: World, call: Call) -> None:
    spec = world.spec("tool")
    call("lock", spec)
    assert "EB1" not in call("resolve", spec).err


def test_a_miss_is_explained(world: World, call: Call) -> None:
    first = call("resolve", "--explain", "--no-build", world.spec("tool=1"))
    assert first.code == 3
    assert "is the first key that this index sees" in first.err
    assert call("resolve", "--explain", world.spec("tool=1")).code == 0
    second = call("resolve", "--explain", world.spec("tool=2"))
    assert second.code == 0
    assert "  dependency tool: tool 1.* -> tool 2.*" in second.err.splitlines()
    assert "differs" not in call("resolve", "--explain", world.spec("tool=2")).err


def test_an_explanation_is_no_dry_run(world: World, call: Call) -> None:
    answer = call("resolve", "--explain", "--dry-run", world.spec("tool"))
    assert answer.code == 2
    assert "--no-build" in answer.err


def test_a_dry_run_is_held_to_the_lock(world: World, call: Call) -> None:
    spec = world.spec("tool")
    call("lock", spec)
    for path in (world.root / "channels").rglob("repodata*"):
        path.unlink()
    fresh = ("--cache-dir", world.root / "fresh")
    assert call("resolve", "--dry-run", "--no-lock", spec, *fresh).code == 4
    answer = call("resolve", "--dry-run", "--json", spec, *fresh)
    assert answer.code == 0
    assert "tool-2.0-0" in str(answer.documents[0]["packages"])


def test_a_dry_run_tells_the_wheels_of_a_lock_and_else_that_they_are_resolved_later(
    world: World, call: Call
) -> None:
    put(world, TinyWheel("small"))
    path = with_wheels(world, "small")
    answer = call("resolve", "--dry-run", path)
    assert (answer.code, "  wheels    resolved at the build" in answer.out.splitlines()) == (0, True)
    (document,) = call("resolve", "--dry-run", "--json", path).documents
    assert (document["wheels"], document["lock"]) == (None, None)
    assert [layer["title"] for layer in document["layers"]] == ["python-3.11.4-0"]
    call("lock", path)
    (document,) = call("resolve", "--dry-run", "--json", path).documents
    assert document["wheels"] == ["small 1.0"]
    assert "  wheels    1" in call("resolve", "--dry-run", path).out.splitlines()
    assert not world.config.workspace.folder.exists()
