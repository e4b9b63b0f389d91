"""``envbuild diff``: definitions, locks and images against each other."""

from __future__ import annotations

import shutil

import pytest

from cli_calls import Call
from tiny import World


def test_definitions(world: World, call: Call) -> None:
    first, second = world.spec("tool=1"), world.spec("tool=2", "thing", name="other.yml")
    answer = call("diff", first, second)
    assert answer.code == 1
    assert answer.out.splitlines() == ["dependency thing added", "dependency tool: tool 1.* -> tool 2.*"]
    same = call("diff", first, first)
    assert (same.code, same.out) == (0, "")
    documents = call("diff", "--json", first, second).documents
    assert [each["kind"] for each in documents] == ["added", "changed"]
    assert set(documents[0]) == {"part", "kind", "name", "before", "after"}


def test_locks_and_definitions(world: World, call: Call) -> None:
    spec = world.spec("tool")
    call("lock", spec, "-o", "new.lock")
    call("lock", world.spec("tool=1", name="other.yml"), "-o", "old.lock")
    answer = call("diff", "old.lock", "new.lock")
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert lines[0] == "dependency tool: tool 1.* -> tool"
    assert lines[1].startswith("package tool: 1.0 0, sha256")
    assert call("diff", "new.lock", spec).code == 0
    assert call("diff", spec, "old.lock").out == "dependency tool: tool -> tool 1.*\n"
    assert call("diff", "new.lock", "new.lock").code == 0


def test_a_lock_for_several_platforms_is_asked_which(world: World, call: Call) -> None:
    path = world.root / "envbuild.yaml"
    path.write_text("base: scratch\nplatforms: [linux/amd64, linux/arm64]\n")
    call("lock", path)
    answer = call("diff", "envbuild.lock", "envbuild.lock")
    assert answer.code == 2
    assert "--platform" in answer.err
    assert call("diff", "envbuild.lock", "envbuild.lock", "--platform", "linux/arm64").code == 0


def test_images_that_were_resolved_here(world: World, call: Call) -> None:
    first = call("resolve", "--quiet", world.spec("tool=1")).out.strip()
    second = call("resolve", "--quiet", world.spec("tool=2")).out.strip()
    lines = call("diff", first, second).out.splitlines()
    assert "dependency tool: tool 1.* -> tool 2.*" in lines
    assert any(line.startswith("package tool: 1.0 0, sha256") for line in lines)
    assert call("diff", second, world.spec("tool=2")).code == 0
    assert call("diff", first, world.spec("tool=2")).out == "dependency tool: tool 1.* -> tool 2.*\n"


@pytest.mark.parametrize("attached", ["true", "false"])
def test_a_lock_and_its_image_do_not_differ(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch, attached: str
) -> None:
    monkeypatch.setenv("ENVBUILD_ATTACH", attached)
    image = call("resolve", "--quiet", world.spec("tool=1", "pyth")).out.strip()
    call("lock", world.spec("tool=1", "pyth"))
    assert call("diff", "envbuild.lock", image).code == 0
    shutil.rmtree(world.config.cache_dir)
    assert call("diff", image, "envbuild.lock").code == 0
    call("lock", world.spec("tool=2"))
    assert "package tool: 1.0 0" in call("diff", image, "envbuild.lock").out


def test_an_image_from_elsewhere_is_known_by_its_lock(world: World, call: Call) -> None:
    first = call("resolve", "--quiet", world.spec("tool=1", variables={"A": "1"})).out.strip()
    second = call("resolve", "--quiet", world.spec("tool=1.0", variables={"A": "2"})).out.strip()
    shutil.rmtree(world.config.cache_dir)
    assert call("diff", first, second).out.splitlines() == [
        "dependency tool: tool 1.* -> tool 1.0.*",
        "variable A: 1 -> 2",
    ]
    answer = call("resolve", "--quiet", world.spec("tool=1"))
    assert call("diff", world.spec("tool=1"), answer.out.strip()).code == 0


def test_an_index_is_compared_for_a_platform(world: World, call: Call) -> None:
    path = world.root / "envbuild.yaml"
    content = '{"base": "scratch", "platforms": ["linux/amd64", "linux/arm64"], "variables": {"A": "%s"}, '
    content += '"conda": {"channels": ["tiny"], "dependencies": []}}'
    images = []
    for value in "12":
        path.write_text(content % value)
        images.append(call("resolve", "--quiet", path).out.strip())
    answer = call("diff", *images)
    assert (answer.code, "is for linux/amd64, linux/arm64" in answer.err) == (2, True)
    assert call("diff", "--platform", "linux/arm64", *images).out == "variable A: 1 -> 2\n"
    assert call("diff", "--platform", "linux/arm64", images[1], path).code == 0


def test_images_from_elsewhere_are_compared_by_what_they_say(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVBUILD_ATTACH", "false")
    first = call("resolve", "--quiet", world.spec("tool=1", variables={"A": "1"})).out.strip()
    second = call("resolve", "--quiet", world.spec("tool=2", variables={"A": "2"})).out.strip()
    shutil.rmtree(world.config.cache_dir)
    assert call("diff", first, second).out.splitlines() == [
        "package tool: 1.0 0 -> 2.0 0",
        "environment variable A: 1 -> 2",
    ]
    assert call("diff", first, first).code == 0


def test_keys_speak_where_nothing_else_does(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVBUILD_ATTACH", "false")
    first = call("resolve", "--quiet", world.spec("tool=2")).out.strip()
    second = call("resolve", "--quiet", world.spec("tool>=2")).out.strip()
    shutil.rmtree(world.config.cache_dir)
    answer = call("diff", first, second)
    assert answer.code == 1
    assert answer.out.startswith("key: ")


def test_other_images_are_refused(world: World, call: Call) -> None:
    answer = call("diff", str(world.config.base), str(world.config.base))
    assert answer.code == 2
    assert "no image that envbuild made" in answer.err
