"""``envbuild verify``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_calls import Call
from envbuild.oci.manifest import Manifest
from envbuild.reference import Tag
from tiny import World


def test_the_command_prints_each_check(world: World, call: Call, tmp_path: Path) -> None:
    built = call("resolve", world.spec("first"), "--json").documents[0]
    done = call("verify", built["reference"], "--full")
    assert done.code == 0
    assert done.out.splitlines()[0] == built["reference"]
    assert "ok          blobs" in done.out
    registry = world.layout()
    manifest = registry.get_manifest(Tag(f"k1-{built['key']}"))
    assert isinstance(manifest, Manifest)
    (registry.repository.folder / "blobs/sha256" / manifest.layers[-1].digest.hex).unlink()
    broken = call("verify", built["reference"], "--json")
    assert broken.code == 7
    assert [check["name"] for check in broken.documents[0]["checks"] if check["passed"] is False] == ["blobs"]
    assert call("verify", "oci:nowhere:v1").code == 4
    assert call("verify", built["reference"], "--key", "missing.pub").code == 2


def test_an_image_is_built_again_and_compared(world: World, call: Call) -> None:
    built = call("resolve", world.spec("first", "tool"), "--json").documents[0]
    done = call("verify", built["reference"], "--rebuild")
    assert done.code == 0, done.err
    assert f"ok          rebuild      gave {built['digest']}" in done.out
    other = call("verify", built["reference"], "--rebuild", "--max-layers", "3", "--json")
    assert other.code == 7
    assert [check["name"] for check in other.documents[0]["checks"] if check["passed"] is False] == [
        "rebuild"
    ]


def test_what_was_not_checked_is_shown_as_that(world: World, call: Call) -> None:
    built = call("resolve", world.spec("first"), "--json").documents[0]
    done = call("verify", built["reference"])
    assert done.code == 0
    assert "not checked signature    neither a key nor the policy asks for one" in done.out


def test_an_image_that_cannot_be_built_again_does_not_pass_rebuild(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVBUILD_ATTACH", "false")
    bare = call("resolve", world.spec("first"), "--json").documents[0]
    assert call("verify", bare["reference"]).code == 0
    done = call("verify", bare["reference"], "--rebuild")
    assert done.code == 7
    assert "FAILED      rebuild      no lock is attached" in done.out
    monkeypatch.delenv("ENVBUILD_ATTACH")
    built = call("resolve", world.spec("tool", name="other.yml"), "--json").documents[0]
    (world.root / "bases").rename(world.root / "moved")
    done = call("verify", built["reference"], "--rebuild", "--json")
    assert done.code == 7
    document = done.documents[0]
    assert document["passed"] is False
    (check,) = (each for each in document["checks"] if each["name"] == "rebuild")
    assert check["passed"] is None
    assert "cannot be built again" in check["detail"]


def test_the_platform_that_is_asked_for_is_compared(world: World, call: Call) -> None:
    built = call("resolve", world.spec("first"), "--json").documents[0]
    assert call("verify", built["reference"], "--platform", "linux/amd64").code == 0
    done = call("verify", built["reference"], "--platform", "linux/arm64")
    assert done.code == 7
    assert "FAILED      platform     the config is for linux/amd64, expected linux/arm64" in done.out
