"""``key``, ``inspect``, ``cache``, ``doctor`` and ``prewarm``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cli_calls import Call
from parts.registry_server import RegistryServer
from tiny import World


class TestKey:
    """Prints keys, and what they are made of."""

    def test_a_key_a_line(self, world: World, call: Call) -> None:
        one, two = world.spec("tool=1", name="1.yml"), world.spec("tool=2", name="2.yml")
        answer = call("key", one, two, one)
        keys = answer.out.split()
        assert answer.code == 0
        assert [len(key) for key in keys] == [64, 64, 64]
        assert keys[0] == keys[2] != keys[1]
        assert not (world.root / "workspace").exists()

    def test_the_canonical_form_is_what_is_hashed(self, world: World, call: Call) -> None:
        spec = world.spec("tool=1")
        (document,) = call("key", spec, "--json").documents
        key = document["key"]
        assert document == {"spec": str(spec), "key": key, "tag": f"k1-{key}", "kind": "key"}
        form = call("key", spec, "--json", "--explain").out.removesuffix("\n")
        assert hashlib.sha256(b"envbuild/key/v1\0" + form.encode()).hexdigest() == document["key"]
        assert json.loads(call("key", spec, "--explain").out) == json.loads(form)

    def test_options_are_laid_over_the_definition(self, world: World, call: Call) -> None:
        spec = world.spec("tool=1")
        bare = call("key", spec).out
        assert call("key", spec, "--base", "scratch").out != bare
        assert call("key", spec, "--as-of", "2026-01-01").out != bare
        steps = world.root / "steps"
        steps.write_text("RUN true\n")
        assert call("key", spec, "--steps", steps).out != bare

    def test_one_that_fails_does_not_stop_the_rest(self, world: World, call: Call) -> None:
        answer = call("key", "not-there.yml", world.spec("tool=1"))
        assert answer.code == 2
        assert len(answer.out.strip()) == 64
        assert "not-there.yml" in answer.err


class TestInspect:
    """Shows images, and changes nothing."""

    def test_by_definition_and_by_reference(self, world: World, call: Call) -> None:
        spec = world.spec("tool=1", variables={"A": "1"})
        built = call("resolve", spec, "--json").documents[0]
        by_spec = call("inspect", spec, "--json").documents[0]
        by_reference = call("inspect", built["reference"], "--json").documents[0]
        assert by_spec == by_reference
        assert by_spec["reference"] == built["reference"]
        assert by_spec["annotations"]["io.envbuild.key"] == built["key"]
        assert by_spec["labels"]["io.envbuild.lock"] == built["lock"]
        assert by_spec["platform"] == "linux/amd64"
        assert "A=1" in by_spec["environment"]
        assert [layer["title"] for layer in by_spec["layers"]] == [
            "the base",
            "envbuild tool-1.0-0",
            "envbuild history",
        ]
        assert by_spec["size"] >= sum(layer["size"] for layer in by_spec["layers"])

    def test_people_read_the_same(self, world: World, call: Call) -> None:
        reference = call("resolve", world.spec("tool=1")).out.strip()
        answer = call("inspect", reference)
        assert answer.out.splitlines()[0] == reference
        assert "tool-1.0-0" in answer.out
        assert "in 3 layers" in answer.out

    def test_a_miss_says_what_to_do(self, world: World, call: Call) -> None:
        spec = world.spec("tool=1")
        answer = call("inspect", spec)
        assert answer.code == 3
        assert f"hint: build it with `envbuild resolve {spec}`" in answer.err

    def test_a_reference_to_nothing(self, world: World, call: Call) -> None:
        answer = call("inspect", f"{world.config.workspace}@sha256:{'0' * 64}", "--json")
        assert answer.code == 4
        assert answer.errors[0]["error"] == "NotFound"


class TestCache:
    """Looks at the index, and clears it."""

    def test_what_was_built_is_there_until_it_is_cleared(self, world: World, call: Call) -> None:
        built = call("resolve", world.spec("tool=1"), "--json").documents[0]
        (info,) = call("cache", "info", "--json").documents
        assert info["folder"] == str(world.config.cache_dir)
        assert (info["images"], info["layers"], info["bases"]) == (1, 1, 1)
        assert info["bytes"] > 0
        (entry,) = call("cache", "ls", "--json").documents
        assert (entry["key"], entry["reference"], entry["lock"]) == (
            built["key"],
            built["reference"],
            built["lock"],
        )
        assert built["reference"] in call("cache", "ls").out
        assert "images  1\n" in call("cache", "info").out
        (cleared,) = call("cache", "clear", "--json").documents
        assert cleared["forgotten"] == {"images": 1, "layers": 1, "bases": 1}
        assert cleared["freed"] >= info["bytes"]
        assert call("cache", "ls").out == ""
        again = call("cache", "clear")
        assert (again.out, again.err.partition(";")[0]) == ("", "forgot 0 images and 0 layers")
        assert call("resolve", world.spec("tool=1"), "--json").documents[0]["source"] == "workspace"

    def test_the_folder_is_an_option(self, world: World, call: Call) -> None:
        other = world.root / "other"
        assert call("cache", "info", "--cache-dir", other, "--json").documents[0]["folder"] == str(other)


class TestDoctor:
    """Says what is there, what is not, and what to do."""

    def test_without_an_engine_all_is_well(
        self, world: World, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(world.root))
        answer = call("doctor", "--json", "--docker-host", f"unix://{world.root}/no.sock")
        assert answer.code == 0
        states = {document["name"]: document["state"] for document in answer.documents}
        assert states == {
            "envbuild": "ok",
            "index": "ok",
            "workspace": "ok",
            "global": "missing",
            "proxy": "missing",
            "authorities": "ok",
            "mirrors": "missing",
            "trust": "missing",
            "solver": "ok",
            "engine": "missing",
            "buildx": "missing",
        }
        engine, buildx = answer.documents[-2:]
        assert engine["hint"].startswith("only Docker steps")
        assert "docker-buildx" in buildx["hint"]

    def test_a_stopped_registry_is_broken(
        self, world: World, call: Call, stoppable_registry: RegistryServer
    ) -> None:
        options = ["--global", str(stoppable_registry.repository())]
        healthy = call("doctor", *options)
        assert healthy.code == 0
        assert f"{world.config.workspace} answers" in healthy.out
        assert f"ok       global             {options[1]} answers" in healthy.out
        stoppable_registry.stop()
        broken = call("doctor", *options)
        assert broken.code == 4
        assert "broken   global" in broken.out


class TestPrewarm:
    """Many at once: a table, and an exit code for all."""

    def test_all_are_there(self, world: World, call: Call) -> None:
        folder = world.root / "envs"
        (folder / "deep").mkdir(parents=True)
        for number, name in enumerate(("a.yml", "b.yaml", "deep/c.yml")):
            world.spec("tool=1", name=f"envs/{name}", variables={"N": str(number)})
        answer = call("prewarm", folder, folder / "a.yml", "--jobs", "2")
        assert answer.code == 0
        rows = answer.out.splitlines()
        assert [row.split()[1] for row in rows] == ["built"] * 3
        assert all("@sha256:" in row for row in rows)
        assert answer.err.splitlines()[-1] == "3 there, 0 failed"
        again = call("prewarm", folder, "--json", "--no-build")
        assert {document["source"] for document in again.documents} == {"workspace"}
        assert {Path(document["spec"]).name for document in again.documents} == {"a.yml", "b.yaml", "c.yml"}

    def test_one_that_fails_does_not_stop_the_rest(self, world: World, call: Call) -> None:
        good = world.spec("tool=1", name="good.yml")
        unsolvable = world.spec("nowhere", name="unsolvable.yml")
        (world.root / "broken.yml").write_text("dependencies: [\n")
        places = [unsolvable, world.root / "broken.yml", good]
        answer = call("prewarm", *places)
        assert answer.code == 5
        rows = answer.out.splitlines()
        assert [row.split()[1] for row in rows] == ["failed", "failed", "built"]
        assert "hint: " in answer.err
        assert answer.err.splitlines()[-1] == "1 there, 2 failed"
        as_json = call("prewarm", *places, "--json")
        assert as_json.code == 5
        codes = {Path(each["spec"]).name: each.get("exit_code", 0) for each in as_json.documents}
        assert codes == {"unsolvable.yml": 5, "broken.yml": 2, "good.yml": 0}

    def test_only_looking_builds_nothing(self, world: World, call: Call) -> None:
        answer = call("prewarm", world.spec("tool=1"), "--no-build")
        assert answer.code == 3
        assert not (world.root / "workspace").exists()


@pytest.mark.parametrize("word", ["resolve", "key", "build", "run", "inspect", "prewarm", "doctor"])
def test_every_command_says_what_it_is_for(call: Call, word: str) -> None:
    answer = call(word, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: envbuild {word}")
    assert answer.err == ""
