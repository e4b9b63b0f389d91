"""Definitions for several platforms on the command line: a key and a plan for each, and one index."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

import conda_oracle
from cli_calls import Call
from conda_packages import Entry, Package
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.registry import publish
from envbuild.platform import Platform
from envbuild.reference import Repository, Tag
from tiny import LIBC, World, make_base

BOTH = ["linux/amd64", "linux/arm64"]


@pytest.fixture
def two(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The tiny world with a base and a package for a second platform."""
    folder = world.root / "channels" / "tiny"
    Package(
        (Entry("share/tool/data", b"arm"),), name="tool", version="2.0", index={"subdir": "linux-aarch64"}
    ).put(folder)
    asyncio.run(conda_oracle.index(folder))
    bases = Repository.parse(f"oci:{world.root}/bases")
    make_base(bases, "arm64", {"lib/libc.so.6": LIBC, "arm": b"x"}, architecture="arm64")
    layout = LayoutRegistry(bases)
    entries = [
        replace(layout.get_manifest(Tag(tag)).descriptor, platform=Platform.parse(platform))
        for tag, platform in (("minimal", BOTH[0]), ("arm64", BOTH[1]))
    ]
    publish(layout, ImageIndex.build(tuple(entries), {}), Tag("multi"))
    monkeypatch.setenv("ENVBUILD_BASE", f"oci:{world.root}/bases:multi")
    return world


def definition(world: World, *names: str) -> Path:
    path = world.root / "envbuild.yaml"
    conda = {"channels": ["tiny"], "dependencies": list(names or ("tool",))}
    path.write_text(json.dumps({"platforms": BOTH, "conda": conda}))
    return path


def test_each_platform_has_its_key_and_the_index_one(two: World, call: Call) -> None:
    spec = definition(two)
    words = [line.split("  ") for line in call("key", spec).out.splitlines()]
    assert [platform for _, platform in words] == [*BOTH, ",".join(BOTH)]
    keys = [key for key, _ in words]
    assert [call("key", "--platform", platform, spec).out.strip() for platform in BOTH] == keys[:2]
    (document,) = call("key", "--json", spec).documents
    assert document == {
        "spec": str(spec),
        "key": keys[2],
        "tag": f"k1-{keys[2]}",
        "kind": "key",
        "platforms": [
            {"platform": platform, "key": key, "tag": f"k1-{key}", "kind": "key"}
            for platform, key in zip(BOTH, keys, strict=False)
        ],
    }
    (built,) = call("resolve", "--json", spec).documents
    assert (built["key"], built["platforms"]) == (keys[2], BOTH)


def test_platforms_are_given_by_repeating_the_option(two: World, call: Call) -> None:
    spec = two.spec("tool")
    asked = ("--platform", BOTH[1], "--platform", BOTH[0])
    assert call("key", *asked, spec).out == call("key", definition(two)).out
    (one,) = call("resolve", "--json", spec).documents
    assert (one["platform"], one["platforms"]) == (BOTH[0], BOTH[:1])
    (both,) = call("resolve", "--json", *asked, spec).documents
    assert both["platforms"] == BOTH
    assert call("key", "--platform", "windows/amd64", spec).code == 2


def test_forms_are_a_list_or_a_line_each(two: World, call: Call) -> None:
    spec = definition(two)
    forms = json.loads(call("key", "--explain", spec).out)
    assert [form["platform"] for form in forms] == BOTH
    assert call("key", "--explain", "--json", spec).documents == forms


def test_a_dry_run_tells_each_platform(two: World, call: Call) -> None:
    spec = definition(two)
    keys = [line.split("  ")[0] for line in call("key", spec).out.splitlines()]
    lines = call("resolve", "--dry-run", spec).out.splitlines()
    headings = [line for line in lines if line.startswith(str(spec))]
    assert headings == [
        f"{spec} ({platform}): would be built as k1-{key}" for platform, key in zip(BOTH, keys, strict=False)
    ]
    (document,) = call("build", "--dry-run", "--json", spec).documents
    assert (document["source"], document["key"]) == ("dry-run", keys[2])
    assert [(each["platform"], each["key"], each["layers_to_make"]) for each in document["platforms"]] == [
        (platform, key, 1) for platform, key in zip(BOTH, keys, strict=False)
    ]
    assert not two.config.workspace.folder.exists()

    assert call("resolve", "--platform", BOTH[1], spec).code == 0
    (document,) = call("resolve", "--dry-run", "--json", spec).documents
    assert [each["source"] for each in document["platforms"]] == ["dry-run", "index"]
    assert call("resolve", spec).code == 0
    (document,) = call("resolve", "--dry-run", "--json", spec).documents
    assert (document["source"], document["platforms"]) == ("index", BOTH)


def test_a_miss_is_explained_for_each_platform_that_lacks_its_image(two: World, call: Call) -> None:
    assert call("resolve", "--platform", BOTH[1], definition(two)).code == 0
    answer = call("resolve", "--explain", "--no-build", definition(two))
    assert answer.code == 3
    first, second = answer.err.splitlines()[:2]
    assert first.startswith("linux/amd64: ")
    assert "differs" in first
    assert second.strip().startswith("base: ")
    assert "linux/arm64: " not in answer.err
    call("resolve", definition(two))
    answer = call("resolve", "--explain", "--no-build", "--json", definition(two, "tool", "nothing-yet"))
    events = [json.loads(line) for line in answer.err.splitlines()]
    explained = [event for event in events if event.get("event") == "explain"]
    assert [event["platform"] for event in explained] == BOTH
    for event in explained:
        (change,) = event["changes"]
        assert (change["part"], change["kind"], change["name"]) == ("dependency", "added", "nothing-yet")


def test_a_lock_of_both_holds_both(two: World, call: Call) -> None:
    spec = definition(two)
    assert call("lock", spec).code == 0
    before = call("key", "--locked", spec)
    assert before.code == 0
    assert call("lock", "--check", spec).code == 0
    assert call("resolve", "--locked", spec).code == 0
    warned = call("build", definition(two, "tool", "tool=2"))
    assert "stale" in warned.err
    assert call("key", "--locked", spec).code == 2
