"""``envbuild verify``."""

from __future__ import annotations

from pathlib import Path

from cli_calls import Call
from envbuild.oci.manifest import Manifest
from envbuild.reference import Tag
from tiny import World


def test_the_command_prints_each_check(world: World, call: Call, tmp_path: Path) -> None:
    built = call("resolve", world.spec("first"), "--json").documents[0]
    done = call("verify", built["reference"], "--full")
    assert done.code == 0
    assert done.out.splitlines()[0] == built["reference"]
    assert "ok      blobs" in done.out
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
    assert f"ok      rebuild      gave {built['digest']}" in done.out
    other = call("verify", built["reference"], "--rebuild", "--max-layers", "3", "--json")
    assert other.code == 7
    assert [check["name"] for check in other.documents[0]["checks"] if check["passed"] is False] == [
        "rebuild"
    ]
