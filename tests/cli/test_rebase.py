"""``envbuild rebase`` as a user calls it."""

from __future__ import annotations

import pytest

from cli_calls import Call
from envbuild.reference import Repository
from tiny import LIBC, World, make_base


@pytest.fixture
def new(world: World) -> str:
    """Another base."""
    make_base(Repository.parse(f"oci:{world.root}/bases"), "new", {"lib/libc.so.6": LIBC, "new": b"x"})
    return f"oci:{world.root}/bases:new"


def test_one_image_and_the_answer_of_resolve_on_the_new_base(world: World, call: Call, new: str) -> None:
    spec = world.spec("pyth", "thing")
    image = call("resolve", spec).out.strip()
    answer = call("rebase", image, "--base", new, "--json")
    assert answer.code == 0
    (document,) = answer.documents
    assert (document["from"], document["made"]) == (image, True)
    assert call("resolve", spec, "--no-build", "--base", new).out.strip() == document["reference"]
    again = call("rebase", image, "--base", new)
    assert (again.code, again.out.strip()) == (0, document["reference"])
    assert "rebased 0 " in again.err


def test_all_on_a_base_with_one_that_cannot(world: World, call: Call, new: str) -> None:
    images = {call("resolve", world.spec(name, name=f"{name}.yml")).out.strip() for name in ("tool", "pyth")}
    answer = call("rebase", "--all", "--from", world.config.base or "", "--to", new, "--json")
    assert (answer.code, {each["from"] for each in answer.documents}) == (0, images)
    call("resolve", world.spec("thing", name="needy.yml"))
    mixed = call("rebase", "--all", "--from", world.config.base or "", "--to", "scratch")
    assert mixed.code == 5
    assert len(mixed.out.splitlines()) == 2
    assert "no glibc" in mixed.err


def test_an_image_that_is_not_there_does_not_stop_the_next(world: World, call: Call, new: str) -> None:
    image = call("resolve", world.spec("tool")).out.strip()
    answer = call("rebase", f"{world.config.workspace}:nothing", image, "--base", new)
    assert answer.code == 2
    assert len(answer.out.splitlines()) == 1
    assert "there is no image" in answer.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--base", "debian:12"),
        ("debian:12", "--all", "--to", "debian:13"),
        ("--all", "--to", "debian:13"),
        ("oci:x", "--from", "debian:12", "--base", "debian:13"),
    ],
)
def test_usage(world: World, call: Call, words: tuple[str, ...]) -> None:
    answer = call("rebase", *words)
    assert answer.code == 2
    assert not (world.root / "workspace").exists()
