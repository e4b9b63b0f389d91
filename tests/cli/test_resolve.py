"""``envbuild resolve`` and ``build``: what they print, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_calls import Answer, Call
from envbuild.oci.layout import LayoutRegistry
from envbuild.reference import Repository, parse_reference
from tiny import World

FIELDS = {
    "reference",
    "repository",
    "digest",
    "key",
    "lock",
    "locked",
    "source",
    "platform",
    "seconds",
    "layers_made",
    "layers_reused",
    "bytes_uploaded",
    "platforms",
}


def files_under(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()


def test_the_reference_alone_is_on_standard_output(world: World, spawn: Call) -> None:
    answer = spawn("resolve", world.spec("pyth", "thing"))
    assert answer.code == 0
    reference = parse_reference(answer.out.removesuffix("\n"))
    found = LayoutRegistry(reference.repository).get_manifest(reference.digest)  # type: ignore[union-attr]
    assert f"@{found.descriptor.digest}" in answer.out
    assert answer.err.splitlines()[-1].startswith("built in ")
    assert "3 layers made, 0 reused" in answer.err
    again = spawn("resolve", world.spec("pyth", "thing"))
    assert (again.code, again.out) == (0, answer.out)
    assert again.err.startswith("found in the local index in ")
    assert again.err.count("\n") == 1


def test_plain_progress_is_one_line_an_event(world: World, call: Call) -> None:
    answer = call("resolve", world.spec("thing", "tool=1"))
    lines = [line for line in answer.err.splitlines() if " EB1" not in line]
    assert lines[0].endswith(": building")
    assert lines[1:3] == ["solving 2 dependencies", "solved: 2 packages"]
    assert lines[3] == "2 layers: 0 known, 2 to make"
    assert {line.split(":")[0] for line in lines[4:-1]} == {"layer thing-1.0-0", "layer tool-1.0-0"}
    assert "\x1b" not in answer.err


def test_quiet_says_nothing_but_the_answer(world: World, call: Call) -> None:
    answer = call("resolve", world.spec("tool=1"), "--quiet")
    assert answer.code == 0
    assert answer.err == ""


def test_json_is_one_object_a_line_on_both_streams(world: World, call: Call) -> None:
    answer = call("resolve", world.spec("tool=1"), "--json")
    (document,) = answer.documents
    assert set(document) == FIELDS
    assert document["source"] == "built"
    assert document["reference"] == f"{document['repository']}@{document['digest']}"
    assert document["platform"] == "linux/amd64"
    events = [json.loads(line) for line in answer.err.splitlines()]
    assert ("layer", "tool-1.0-0", "done") in [
        (each["event"], each["subject"], each["state"]) for each in events
    ]


def test_several_definitions_are_answered_though_one_fails(world: World, call: Call) -> None:
    good, bad = world.spec("tool=1", name="good.yml"), world.spec("nowhere", name="bad.yml")
    answer = call("resolve", good, bad, good, "--json")
    assert answer.code == 5
    assert [Path(document["spec"]).name for document in answer.documents] == ["good.yml", "good.yml"]
    assert [document["source"] for document in answer.documents] == ["built", "index"]
    (error,) = answer.errors
    assert (error["error"], error["exit_code"], error["retryable"]) == ("SolveError", 5, False)
    assert Path(error["spec"]).name == "bad.yml"
    plain = call("resolve", bad, good)
    assert plain.code == 5
    assert f"error: {bad}: no set of packages" in plain.err
    assert plain.out.count("\n") == 1


def test_a_definition_on_standard_input_has_the_same_key(world: World, spawn: Call) -> None:
    spec = world.spec("tool=1")
    named = spawn("resolve", spec, "--json")
    piped = spawn("resolve", "-", "--json", stdin=spec.read_text())
    assert piped.documents[0]["key"] == named.documents[0]["key"]
    assert piped.documents[0]["source"] == "index"


def test_build_keeps_what_is_there(world: World, call: Call) -> None:
    spec = world.spec("tool=1")
    first = call("build", spec, "--json").documents[0]
    second = call("build", spec, "--json").documents[0]
    assert (first["source"], second["source"]) == ("built", "built")
    assert first["digest"] == second["digest"]
    assert (second["layers_made"], second["bytes_uploaded"]) == (0, 0)


@pytest.mark.parametrize("flag", [["--promote"], ["--no-promote"], []])
def test_promotion_is_an_option_above_the_variable(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch, flag: list[str]
) -> None:
    spec = world.spec("tool=1")
    assert call("resolve", spec).code == 0
    monkeypatch.setenv("ENVBUILD_PROMOTE", "yes")
    options = ["--workspace", f"oci:{world.root}/mine", "--global", str(world.config.workspace), "--json"]
    document = call("resolve", spec, *options, "--cache-dir", world.root / "c2", *flag).documents[0]
    promoted = flag != ["--no-promote"]
    assert document["source"] == "global"
    assert document["repository"] == f"oci:{world.root}/mine" if promoted else str(world.config.workspace)
    assert bool(files_under(world.root / "mine")) == promoted


def test_settings_come_from_the_file_too(world: World, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENVBUILD_WORKSPACE")
    (world.root / "envbuild.toml").write_text('workspace = "oci:from-file"\n')
    answer = call("resolve", world.spec("tool=1"), "--json")
    assert answer.documents[0]["repository"] == f"oci:{world.root}/from-file"


def test_a_checkout_has_no_password_sent_in_clear(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line of the project's file must not do what its user never said."""
    for name, text in (("USERNAME", "ci"), ("PASSWORD", "S3cret"), ("HOST", "registry.invalid")):
        monkeypatch.setenv(f"ENVBUILD_{name}", text)
    monkeypatch.setenv("ENVBUILD_WORKSPACE", "registry.invalid/envs")
    (world.root / "envbuild.toml").write_text('insecure = ["registry.invalid"]\n')
    answer = call("resolve", world.spec("tool=1"), "--timeout", "5")
    assert answer.code == 2
    assert "insecure is not a project's to set" in answer.err
    assert "ENVBUILD_INSECURE" in answer.err
    assert f"ENVBUILD_CONFIG={world.root}/envbuild.toml" in answer.err
    monkeypatch.setenv("ENVBUILD_CONFIG", str(world.root / "envbuild.toml"))
    assert call("resolve", world.spec("tool=1"), "--timeout", "5").code == 4


def test_options_reach_the_build(world: World, call: Call) -> None:
    spec = world.spec("newer")
    assert call("resolve", spec).code == 5
    assert call("resolve", spec, "--glibc", "2.99").code == 0
    packed = call("resolve", world.spec("tool=1"), "--compression", "zstd", "--json").documents[0]
    repository = Repository.parse(packed["repository"])
    reference = parse_reference(packed["reference"])
    manifest = LayoutRegistry(repository).get_manifest(reference.digest)  # type: ignore[union-attr]
    assert manifest.layers[1].media_type.endswith("+zstd")  # type: ignore[union-attr]
    assert call("resolve", world.spec("tool=2"), "--max-layers", "1").code == 6
    assert call("resolve", world.spec("tool=2"), "--max-layers", "0").code == 2


class TestDryRun:
    """Says what would be done, and writes to no registry."""

    def test_of_a_miss_nothing_is_written(self, world: World, call: Call) -> None:
        answer = call("resolve", world.spec("pyth", "thing"), "--dry-run", "--json")
        assert answer.code == 0
        (document,) = answer.documents
        assert document["source"] == "dry-run"
        assert document["packages"] == ["pyth-1.0-0", "python-3.11.4-0", "thing-1.0-0"]
        assert {layer["place"] for layer in document["layers"]} == {"nowhere"}
        assert document["layers_to_make"] == 3
        assert document["bytes_to_fetch"] == sum(layer["size"] for layer in document["layers"]) > 0
        assert document["base_bytes_to_copy"] > 0
        assert files_under(world.root / "workspace") == set()

    def test_what_it_says_is_what_the_build_does(self, world: World, call: Call) -> None:
        call("resolve", world.spec("pyth", "thing", "tool=1", "first", "second"))
        spec = world.spec("pyth", "thing", "tool=2", "first", "second")
        before = files_under(world.root / "workspace")
        said = call("resolve", spec, "--dry-run", "--json").documents[0]
        assert files_under(world.root / "workspace") == before
        done = call("resolve", spec, "--json").documents[0]
        assert (said["key"], said["lock"]) == (done["key"], done["lock"])
        assert said["layers_to_make"] == done["layers_made"] == 1
        assert len(said["layers"]) == done["layers_made"] + done["layers_reused"]
        assert said["base_bytes_to_copy"] == 0

    def test_people_read_what_would_be_made(self, world: World, call: Call) -> None:
        call("resolve", world.spec("thing"))
        answer = call("resolve", world.spec("thing", "tool=1"), "--dry-run")
        lines = [" ".join(line.split()) for line in answer.out.splitlines()]
        assert "would be built as k1-" in lines[0]
        assert lines[1] == "packages 2"
        assert lines[2].startswith("layers 1 known, 1 to make (")
        assert lines[3].startswith("make tool-1.0-0 ")

    def test_of_a_hit_it_is_the_hit(self, world: World, call: Call) -> None:
        spec = world.spec("tool=1")
        reference = call("resolve", spec).out.strip()
        assert reference in call("resolve", spec, "--dry-run").out
        assert call("resolve", spec, "--dry-run", "--json").documents[0]["source"] == "index"

    def test_build_plans_without_looking(self, world: World, call: Call) -> None:
        spec = world.spec("tool=1")
        call("resolve", spec)
        document = call("build", spec, "--dry-run", "--json").documents[0]
        assert document["source"] == "dry-run"
        assert document["same_solution"] is True
        assert document["layers_to_make"] == 0
        assert "all known" in call("build", spec, "--dry-run").out

    def test_a_layer_of_another_repository_is_known(self, world: World, call: Call) -> None:
        spec = world.spec("tool=1")
        call("resolve", spec)
        document = call(
            "resolve", spec, "--dry-run", "--json", "--workspace", f"oci:{world.root}/other"
        ).documents[0]
        assert [layer["place"] for layer in document["layers"]] == ["elsewhere"]
        assert document["layers_to_make"] == 0

    def test_a_layer_that_was_deleted_is_to_be_made(self, world: World, call: Call) -> None:
        call("resolve", world.spec("tool=1"))
        for path in (world.root / "workspace").rglob("*"):
            if path.is_file() and path.parent.name == "sha256":
                path.unlink()
        document = call("build", world.spec("tool=1", "thing"), "--dry-run", "--json").documents[0]
        assert document["layers_to_make"] == 2

    def test_promotes_nothing(self, world: World, call: Call) -> None:
        spec = world.spec("tool=1")
        call("resolve", spec)
        options = ["--workspace", f"oci:{world.root}/mine", "--global", str(world.config.workspace)]
        answer: Answer = call(
            "resolve", spec, "--dry-run", "--promote", "--json", *options, "--cache-dir", world.root / "c2"
        )
        assert answer.documents[0]["source"] == "global"
        assert files_under(world.root / "mine") == set()

    def test_without_building_a_miss_stays_a_miss(self, world: World, call: Call) -> None:
        assert call("resolve", world.spec("tool=1"), "--dry-run", "--no-build").code == 3

    def test_one_that_fails_does_not_stop_the_rest(self, world: World, call: Call) -> None:
        bad, good = world.spec("nowhere", name="bad.yml"), world.spec("tool=1", name="good.yml")
        answer = call("resolve", bad, good, "--dry-run")
        assert answer.code == 5
        assert f"{good}: would be built" in answer.out
        assert f"{bad}: no set of packages" in answer.err
