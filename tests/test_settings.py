"""Every setting, option and field of a definition: in the key, or why an image's content cannot depend on it.

What is new and has no answer here fails. Each answer is tried: what is in the key changes it, nothing else
does.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import pytest

from envbuild.cli import cli
from envbuild.config import Config
from envbuild.digest import Digest
from envbuild.key import CanonicalForm
from envbuild.lock import Lock
from envbuild.lockkey import lock_key
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.reference import Repository, parse_reference
from envbuild.spec.environment import ChannelPriority, EnvironmentSpec, load, parse
from envbuild.spec.virtual import NAMES, VirtualPackages
from envbuild.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
BASE: Final = Digest("b" * 64)
CONTENT: Final = b"""\
base: debian:12
steps: RUN a
conda: {channels: [conda-forge], dependencies: [python, 'bioconda::x']}
pip: [requests]
steps_after: RUN b
variables: {A: b}
"""


@dataclass(frozen=True)
class Answer:
    """What is known of a setting.

    Attributes:
        other: A value that it does not have by itself.
        why: Why the content of an image cannot depend on it; None where the key holds it.
    """

    other: Any
    why: str | None = None


FOUND: Final = "it says where an image is looked for, and an image that is found carries its key"
COUNTED: Final = "it says which answer counts, and not what is built"
BESIDE: Final = "what is attached stands beside the image"
BUILDER: Final = "both builders make the same files and settings; one contract suite holds them to it"
PACKED: Final = "the same files, packed in another way"
LIMIT: Final = "a limit ends a build, and what was ended is not published"
SPEED: Final = "it says how fast, how long and where to work; the order of layers is fixed"
ELSEWHERE: Final = "a mirror has the same content: packages and blobs are held against their digests"
SECRET: Final = "credentials open what the definition names, and are no content"

SETTINGS: Final = {
    "workspace": Answer(Repository.parse("r.example.com/w"), FOUND),
    "global_": Answer(Repository.parse("r.example.com/g"), FOUND),
    "base": Answer("debian:13"),
    "builder": Answer("docker", BUILDER),
    "on_unavailable": Answer("build", COUNTED),
    "promote": Answer(True, FOUND),
    "index_ttl": Answer(1.0, COUNTED),
    "base_ttl": Answer(
        1.0, "it says how long a tag's answer counts, and the digest that it gave is in the key"
    ),
    "deep": Answer(True, COUNTED),
    "attach": Answer(False, BESIDE),
    "sbom": Answer(True, BESIDE),
    "confine": Answer(True, "it refuses definitions, and changes none that is read"),
    "trust": Answer(Trust(), COUNTED),
    "channel_alias": Answer("https://conda.example.com"),
    "channels": Answer({"https://conda.anaconda.org": ("https://m.example.com",)}, ELSEWHERE),
    "login_variables": Answer({"TOKEN": ("https://c.example.com",)}, SECRET),
    "insecure": Answer(frozenset({"r.example.com"}), FOUND),
    "registries": Answer({"docker.io": ("m.example.com",)}, ELSEWHERE),
    "compression": Answer("zstd", PACKED),
    "pyc": Answer(True),
    "max_layers": Answer(50, PACKED),
    "glibc": Answer("2.40"),
    "cuda": Answer("12.4"),
    "cuda_arch": Answer("8.6"),
    "archspec": Answer("x86_64_v3"),
    "jobs": Answer(3, SPEED),
    "timeout": Answer(9.0, SPEED),
    "docker_host": Answer("unix:///elsewhere", BUILDER),
    "buildx": Answer("remote", BUILDER),
    "step_timeout": Answer(9.0, LIMIT),
    "step_memory": Answer(1 << 30, LIMIT),
    "step_cpus": Answer(0.5, LIMIT),
    "step_disk": Answer(1 << 30, LIMIT),
    "step_network": Answer("none"),
    "cache_dir": Answer(Path("/elsewhere"), SPEED),
}

DEFINITION: Final = {
    "source": Answer("elsewhere.yaml", "it is for messages alone"),
    "base": Answer(parse_reference("debian:13"), "the key has the digest that it leads to, not its name"),
    "has_base": Answer(False, "a definition without a base has no key"),
    "steps": Answer(None),
    "conda": Answer(None),
    "pip": Answer(None),
    "steps_after": Answer(None),
    "variables": Answer((("A", "c"),)),
    "channel_priority": Answer(ChannelPriority.FLEXIBLE),
    "platforms": Answer((Platform.parse("linux/arm64"),), "each platform has a key, which names it"),
    "as_of": Answer(datetime(2026, 11, 1, tzinfo=UTC)),
    "secrets": Answer(("token",), SECRET),
    "virtual_packages": Answer(VirtualPackages(cuda="12.4")),
    "pyc": Answer(True),
    "offline": Answer(True),
    "lock": Answer(b"x", "it is the lock that the rest was read from; what is locked has a key of its own"),
}

LAID_OVER: Final = {
    "base": "debian:13",
    "steps": "steps",
    "platforms": "linux/arm64",
    "as_of": "2026-11-01",
    "form": None,  # as what the source is read; what was read is in the key
    "content": None,  # the source itself, where it was read already
}
"""What is laid over a definition that is read."""

ONE_OF_LOAD: Final = "it is laid over the definition"
LOCK: Final = "a lock pins what the definition leaves open, and what is locked has a key of its own"
ANSWER: Final = "it says what to answer, and where to write it; the image is the same"
WHICH: Final = "it says which image is meant"
OTHER_BASE: Final = "the image has the key of its definition on that base"
RUN: Final = "it is about a container of the image"
OPTIONS: Final = {
    **dict.fromkeys(("base", "steps", "as_of", "platform", "form", "form_of_input"), ONE_OF_LOAD),
    **dict.fromkeys(("lock", "locked", "no_lock"), LOCK),
    **dict.fromkeys(
        ("as_json", "quiet", "explain", "output", "load", "dry_run", "no_build", "version"), ANSWER
    ),
    **dict.fromkeys(("check", "strict", "full", "rebuild", "keys"), ANSWER),
    **dict.fromkeys(("image", "every", "old"), WHICH),
    **dict.fromkeys(("target", "referrers"), FOUND),
    "new": OTHER_BASE,
    **dict.fromkeys(("mounts", "user", "variables", "workdir"), RUN),
}


def definition() -> EnvironmentSpec:
    return parse(CONTENT, "envbuild.yaml", Path("/nowhere"))


def key(spec: EnvironmentSpec, base: Digest = BASE, platform: Platform = LINUX_AMD64) -> str:
    return str(CanonicalForm.of(spec, base, platform).key)


def commands(group: click.Command = cli, name: str = "") -> Iterator[tuple[str, click.Command]]:
    yield name, group
    if isinstance(group, click.Group):
        context = click.Context(group)
        for each in group.list_commands(context):
            command = group.get_command(context, each)
            assert command is not None
            yield from commands(command, f"{name} {each}".strip())


def options(command: click.Command) -> set[str]:
    return {param.name for param in command.params if isinstance(param, click.Option) and param.name}


def test_each_setting_has_an_answer() -> None:
    assert SETTINGS.keys() == {field.name for field in fields(Config)}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_setting_is_in_the_key_or_has_a_reason(name: str) -> None:
    spec = definition()
    if name == "base":  # it is for definitions that have none
        spec = replace(spec, base=None, has_base=False)
    plain = Config() if name != "base" else Config(base="scratch")
    changed = replace(plain, **{name: SETTINGS[name].other})
    assert getattr(changed, name) != getattr(plain, name), "the other value is another one"
    before, after = plain.over(spec), changed.over(spec)
    if name == "base":
        assert (before.base, str(after.base)) == (None, "docker.io/library/debian:13")
    else:
        assert (key(before) == key(after)) is (SETTINGS[name].why is not None)


@pytest.mark.parametrize("name", ["pyc", "step_network"])
def test_what_changes_the_same_packages_is_in_the_lock_key(name: str) -> None:
    lock = Lock.of(LINUX_AMD64, ())
    forms = [
        CanonicalForm.of(config.over(definition()), BASE, LINUX_AMD64)
        for config in (Config(), Config(**{name: SETTINGS[name].other}))
    ]
    plain, changed = (lock_key(form, BASE, lock) for form in forms)
    assert plain != changed


@pytest.mark.parametrize("name", NAMES)
def test_what_chooses_packages_is_not_in_the_lock_key(name: str) -> None:
    """The lock key names the packages that were chosen."""
    config = Config(**{name: SETTINGS[name].other})
    form = CanonicalForm.of(config.over(definition()), BASE, LINUX_AMD64)
    plain = CanonicalForm.of(definition(), BASE, LINUX_AMD64)
    lock = Lock.of(LINUX_AMD64, ())
    assert lock_key(form, BASE, lock) == lock_key(plain, BASE, lock)


def test_each_field_of_a_definition_has_an_answer() -> None:
    assert DEFINITION.keys() == {field.name for field in fields(EnvironmentSpec)}


@pytest.mark.parametrize("name", sorted(set(DEFINITION) - {"has_base"}))
def test_a_field_is_in_the_key_or_has_a_reason(name: str) -> None:
    spec = definition()
    changed = replace(spec, **{name: DEFINITION[name].other})
    assert getattr(changed, name) != getattr(spec, name)
    assert (key(spec) == key(changed)) is (DEFINITION[name].why is not None)
    assert key(spec, Digest("c" * 64)) != key(spec)
    assert key(spec, platform=Platform.parse("linux/arm64")) != key(spec)


def test_what_is_laid_over_while_reading_has_an_answer() -> None:
    assert LAID_OVER.keys() == inspect.signature(load).parameters.keys() - {"source"}


@pytest.mark.parametrize("name", sorted(name for name, value in LAID_OVER.items() if value is not None))
def test_what_is_laid_over_while_reading_is_in_the_key(tmp_path: Path, name: str) -> None:
    path = tmp_path / "envbuild.yaml"
    path.write_bytes(CONTENT)
    (tmp_path / "steps").write_text("RUN c\n")
    value = tmp_path / "steps" if name == "steps" else LAID_OVER[name]
    spec, changed = load(path), load(path, **{name: value})  # type: ignore[arg-type]
    if name == "base":
        assert (str(spec.base), str(changed.base)) == tuple(
            f"docker.io/library/debian:{tag}" for tag in ("12", "13")
        )
    else:
        assert key(spec, platform=spec.platforms[0]) != key(changed, platform=changed.platforms[0])


def test_each_option_of_each_command_has_an_answer() -> None:
    unanswered = {
        f"{name} {option}"
        for name, command in commands()
        for option in options(command) - SETTINGS.keys() - OPTIONS.keys()
    }
    assert unanswered == set()
    assert OPTIONS.keys() <= {option for _, command in commands() for option in options(command)}


def test_every_command_that_takes_a_definition_takes_all_options_that_are_in_its_key() -> None:
    every = {option for _, command in commands() for option in options(command)}
    keyed = {name for name, answer in SETTINGS.items() if answer.why is None} & every
    assert keyed >= {"base", "channel_alias", "pyc", *NAMES}
    lay_over = {name for name, command in commands() if {"base", "steps", "as_of"} & options(command)}
    assert lay_over >= {
        "resolve",
        "build",
        "key",
        "lint",
        "lock",
        "diff",
        "inspect",
        "prewarm",
        "run",
        "verify",
    }
    lacking = {
        f"{name} {each}"
        for name, command in commands()
        if name in lay_over
        for each in keyed - options(command)
    }
    assert lacking == set()


def test_the_documentation_gives_a_reason_for_all_that_is_not_in_the_key() -> None:
    text = (ROOT / "docs/key.md").read_text().partition("## Settings")[2].partition("## Vectors")[0]
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    told = {name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)}
    assert told == {name.rstrip("_") for name, answer in SETTINGS.items() if answer.why is not None}
