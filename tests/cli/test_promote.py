"""``envbuild promote``."""

from __future__ import annotations

from pathlib import Path

from cli_calls import Call
from envbuild.oci.layout import LayoutRegistry
from envbuild.reference import Repository
from tiny import World


def test_a_definitions_image_is_promoted(world: World, call: Call, tmp_path: Path) -> None:
    spec = world.spec("first")
    missing = call("promote", spec, "--to", f"oci:{tmp_path}/shared")
    assert missing.code == 3
    assert not (tmp_path / "shared").exists()
    built = call("resolve", spec, "--json").documents[0]
    done = call("promote", spec, "--to", f"oci:{tmp_path}/shared", "--json")
    assert done.code == 0
    (answer,) = done.documents
    assert answer["digest"] == built["digest"]
    assert answer["tags"] == [f"k1-{built['key']}"]
    shared = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/shared"))
    assert {str(tag) for tag in shared.tags()} == set(answer["tags"])
    again = call("promote", built["reference"], "--to", f"oci:{tmp_path}/shared")
    assert again.code == 0
    assert again.out == f"oci:{tmp_path}/shared@{built['digest']}\n"
    assert "0 blobs copied" in again.err


def test_a_wrong_platform_or_place_is_refused(world: World, call: Call, tmp_path: Path) -> None:
    built = call("resolve", world.spec("first"), "--json").documents[0]
    wrong = call("promote", built["reference"], "--to", "oci:shared", "--platform", "linux/arm64")
    assert wrong.code == 2
    assert "arm64" in wrong.err
    assert call("promote", built["reference"], "--to", "UPPER/case:tag").code == 2
    assert call("promote", built["reference"]).code == 2
