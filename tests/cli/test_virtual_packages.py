"""What is said of the machines that run an image, and where channel names lead: every command keys it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import conda_oracle
import envbuild
from cli_calls import Call
from conda_packages import Entry, Package
from envbuild.config import Config
from envbuild.reference import ImageReference, parse_reference
from tiny import World

SETTINGS = (
    ("--cuda", "12.4", "gpu", "cuda"),
    ("--cuda-arch", "8.6", "device", "cuda_arch"),
    ("--archspec", "x86_64_v3", "fast", "archspec"),
    ("--glibc", "2.40", "modern", "glibc"),
)
"""An option, what it is given, a package with a build that needs it, and its name in a definition."""


def put(folder: Path, name: str, build: str, number: int, *depends: str) -> None:
    index = {"build_number": number, "depends": list(depends)}
    Package((Entry(f"share/{name}", build.encode()),), name=name, build=build, index=index).put(folder)


@pytest.fixture
def world(world: World) -> World:
    folder = world.root / "channels/tiny"
    needs = ("__cuda >=12", "__cuda_arch >=8", "__archspec 1 x86_64_v3", "__glibc >=2.40")
    for (_, _, name, _), need in zip(SETTINGS, needs, strict=True):
        put(folder, name, "plain_0", 0)
        put(folder, name, "special_1", 1, need)
    asyncio.run(conda_oracle.index(folder))
    return world


def builds(world: World, text: str) -> set[str]:
    """The builds of the packages of an image, as its layers are named."""
    reference = parse_reference(text.strip())
    assert isinstance(reference, ImageReference)
    layout = world.layout()
    manifest = layout.get_manifest(reference.digest)
    with layout.open_blob(manifest.config) as stream:  # type: ignore[union-attr]
        steps = [step.get("created_by", "") for step in json.load(stream)["history"]]
    return {
        step.rpartition("-")[2] for step in steps if step.startswith("envbuild ") and step.count("-") >= 2
    }


@pytest.mark.parametrize(("option", "value", "package", "_name"), SETTINGS)
@pytest.mark.parametrize("first", [False, True])
def test_each_has_the_image_that_it_asked_for(
    world: World, call: Call, option: str, value: str, package: str, _name: str, first: bool
) -> None:
    spec = world.spec(package)
    for given in (first, not first):
        answer = call("resolve", spec, *((option, value) if given else ()))
        assert answer.code == 0
        assert builds(world, answer.out) == {"special_1" if given else "plain_0"}, answer.err


@pytest.mark.parametrize(("option", "value", "package", "name"), SETTINGS)
def test_all_commands_and_the_library_agree(
    world: World, call: Call, option: str, value: str, package: str, name: str
) -> None:
    spec = world.spec(package)
    plain = call("key", spec).out.strip()
    key = call("key", spec, option, value).out.strip()
    assert key != plain
    form = json.loads(call("key", spec, option, value, "--explain").out)
    assert form["virtual_packages"] == {name: value}
    assert "virtual_packages" not in json.loads(call("key", spec, "--explain").out)

    assert json.loads(call("resolve", spec, option, value, "--dry-run", "--json").out)["key"] == key
    missed = call("resolve", spec, option, value, "--no-build", "--explain")
    assert (missed.code, key[:12] in missed.err) == (3, True)
    built = json.loads(call("prewarm", spec, option, value, "--json").out)
    assert built["key"] == key
    assert json.loads(call("resolve", spec, option, value, "--json").out)["source"] == "index"
    shown = json.loads(call("inspect", spec, option, value, "--json").out)
    assert shown["annotations"]["io.envbuild.key"] == key
    assert call("lint", spec, option, value).code == 0
    assert call("verify", spec, option, value).code == 0

    settings: dict[str, Any] = {
        "workspace": str(world.config.workspace),
        "channel_alias": world.config.channel_alias,
        "base": world.config.base,
        name: value,
    }
    assert str(envbuild.key(spec, **settings)) == key
    loaded = envbuild.load(spec)
    assert str(envbuild.key(loaded, config=Config.load(**settings))) == key

    own = world.root / "envbuild.yaml"
    conda = {"channels": ["tiny"], "dependencies": [package]}
    own.write_text(json.dumps({"conda": conda, "virtual_packages": {name: value}}))
    assert call("key", own).out.strip() == key
    assert call("diff", own, spec).out.startswith(f"virtual package {name}")
    assert call("diff", own, spec, option, value).code == 0


def test_an_option_lies_over_the_definition(world: World, call: Call) -> None:
    own = world.root / "envbuild.yaml"
    conda = {"channels": ["tiny"], "dependencies": ["gpu"]}
    own.write_text(json.dumps({"conda": conda, "virtual_packages": {"cuda": "11.8", "glibc": "2.36"}}))
    form = json.loads(call("key", own, "--cuda", "12.4.0", "--explain").out)
    assert form["virtual_packages"] == {"cuda": "12.4", "glibc": "2.36"}
    assert builds(world, call("resolve", own).out) == {"plain_0"}
    assert builds(world, call("resolve", own, "--cuda", "12.4").out) == {"special_1"}


def test_what_has_no_effect_on_a_definition_leaves_its_key(world: World, call: Call) -> None:
    own = world.root / "envbuild.yaml"
    own.write_text('{"variables": {"A": "b"}, "platform": "linux/amd64"}')
    options = ("--cuda", "12.4", "--pyc", "--channel-alias", "https://example.com")
    plain, given = call("key", own), call("key", own, *options)
    assert (plain.code, given.code, given.out) == (0, 0, plain.out)


def test_a_lock_is_of_the_machines_that_it_was_made_for(world: World, call: Call) -> None:
    spec = world.spec("gpu")
    assert call("lock", spec, "--cuda", "12.4").code == 0
    assert call("lock", spec, "--cuda", "12.4.0", "--check").code == 0
    stale = call("lock", spec, "--check")
    assert (stale.code, "virtual package cuda" in stale.out) == (1, True)
    held = call("resolve", spec, "--cuda", "12.4", "--locked")
    assert (held.code, builds(world, held.out)) == (0, {"special_1"})
    loose = call("resolve", spec)
    assert "stale" in loose.err
    assert builds(world, loose.out) == {"plain_0"}
    lock = world.root / "envbuild.lock"
    assert builds(world, call("resolve", lock).out) == {"special_1"}
    refused = call("resolve", lock, "--cuda", "11.8")
    assert (refused.code, "cuda cannot be laid over a lock" in refused.err) == (2, True)


def test_what_is_compiled_is_in_the_key_and_not_in_the_lock(world: World, call: Call) -> None:
    spec = world.spec("tool")
    assert call("lock", spec).code == 0
    plain, compiled = (call("key", spec, *given, "--locked") for given in ((), ("--pyc",)))
    assert (plain.code, compiled.code) == (0, 0)
    assert plain.out != compiled.out
    assert call("lock", spec, "--check", "--pyc").code == 0


def test_a_name_is_another_channel_under_another_alias(world: World, call: Call) -> None:
    put(world.root / "elsewhere/tiny", "tool", "other_9", 9)
    asyncio.run(conda_oracle.index(world.root / "elsewhere/tiny"))
    spec = world.spec("tool", "tiny::tool")
    elsewhere = ("--channel-alias", (world.root / "elsewhere").as_uri())
    assert "other_9" not in builds(world, call("resolve", spec).out)
    assert builds(world, call("resolve", spec, *elsewhere).out) == {"other_9"}
    form = json.loads(call("key", spec, "--explain", *elsewhere).out)["conda"]
    place = (world.root / "elsewhere/tiny").as_uri()
    assert form["channels"] == [place]
    assert form["dependencies"] == ["tool", f'tool[channel="{place}"]']
    written = world.spec("tool", f"{place}::tool", name="written.yml", channels=[place])
    assert call("key", written).out == call("key", spec, *elsewhere).out


def test_the_default_alias_may_be_written_in_many_ways(world: World, call: Call) -> None:
    spec = world.spec("tool", "bioconda::tool", channels=["conda-forge"])
    keys = {
        call("key", spec, "--channel-alias", alias).out
        for alias in (
            "https://conda.anaconda.org",
            "https://conda.anaconda.org/",
            "HTTPS://Conda.Anaconda.ORG:443",
            "https://me:pw@conda.anaconda.org/t/tk-1/",
        )
    }
    assert len(keys) == 1


def test_a_url_of_the_default_alias_is_not_moved_by_another(world: World, call: Call) -> None:
    url = "https://conda.anaconda.org/conda-forge"
    alias = ("--channel-alias", "https://user:s3cret@conda.example.com/t/tk-s3cret")
    both = world.spec("a", "conda-forge::a", f"{url}::a", channels=["conda-forge", url])
    shown = call("key", both, "--explain", *alias)
    form = json.loads(shown.out)["conda"]
    moved = "https://conda.example.com/conda-forge"
    assert form["channels"] == [moved, "conda-forge"]
    assert form["dependencies"] == ["a", 'a[channel="conda-forge"]', f'a[channel="{moved}"]']
    assert "s3cret" not in shown.out + shown.err
    assert "EB131" not in call("lint", both, *alias).out, "the credentials are the alias's"
    plain = json.loads(call("key", both, "--explain", "--channel-alias", "https://conda.anaconda.org").out)
    assert plain["conda"]["channels"] == ["conda-forge"]
    assert plain["conda"]["dependencies"] == ["a", 'a[channel="conda-forge"]']


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cuda", "twelve"), "--cuda: cuda is 'twelve', expected a version"),
        (("--glibc", ">=2.36"), "--glibc: glibc is '>=2.36'"),
        (("--archspec", "x86-64-v3"), "write it as archspec has it: x86_64_v3"),
        (("--archspec", "aarch64"), "archspec is aarch64, and the image is for linux/amd64"),
        (
            ("--archspec", "zen3", "--platform", "linux/amd64", "--platform", "linux/arm64"),
            "name one platform",
        ),
        (("--channel-alias", "mirror"), "expected a URL"),
        (("--channel-alias", "https://u:s3cret@exa mple.com"), "holds a space"),
        (("--channel-alias", "https://u:s3cret@example.com/a?b"), "a query or a fragment"),
    ],
)
def test_what_cannot_be_given_is_refused(
    world: World, call: Call, words: tuple[str, ...], message: str
) -> None:
    answer = call("key", world.spec("tool"), *words)
    assert (answer.code, message in answer.err) == (2, True), answer.err
    assert "s3cret" not in answer.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("virtual_packages: {cudda: '12'}", ":1:20: 'cudda' is not a virtual package that can be given"),
        ("virtual_packages: {cuda: x}", ":1:26: cuda is 'x', expected a version"),
        ("virtual_packages: {glibc: ''}", "glibc is empty"),
        ("virtual_packages: [cuda]", "virtual_packages is a list, expected a mapping"),
        ("virtual_packages: {osx: '11'}", "known: archspec, cuda, cuda_arch, glibc"),
    ],
)
def test_mistakes_in_a_definition_are_told_with_their_place(
    world: World, call: Call, content: str, message: str
) -> None:
    own = world.root / "envbuild.yaml"
    own.write_text(f"{content}\nbase: scratch\n")
    answer = call("key", own)
    assert (answer.code, message in answer.err) == (2, True), answer.err
