"""The library as its users import it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import envbuild
from envbuild.locking import make_lock
from envbuild.progress import Event
from tiny import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A machine whose current folder has no settings."""
    monkeypatch.chdir(tmp_path)
    return World.make(tmp_path)


def settings(world: World) -> dict[str, Any]:
    return {
        "workspace": str(world.config.workspace),
        "channel_alias": world.config.channel_alias,
        "cache_dir": str(world.config.cache_dir),
    }


def test_every_public_name_is_there() -> None:
    for name in envbuild.__all__:
        assert getattr(envbuild, name).__doc__, name
    with pytest.raises(AttributeError, match="frobnicate"):
        envbuild.frobnicate  # noqa: B018


def test_importing_it_imports_nothing_else() -> None:
    program = "import sys, envbuild; print(*(m for m in sys.modules if m.startswith('envbuild')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["envbuild"]


def test_the_function_for_keys_and_the_module_of_that_name_live_together(world: World) -> None:
    program = (
        "import sys, envbuild\n"
        "before = str(envbuild.key(sys.argv[1], base='scratch'))\n"
        "import envbuild.key as module\n"
        "from envbuild.key import CanonicalForm\n"
        "assert module.CanonicalForm is CanonicalForm\n"
        "assert str(envbuild.key(sys.argv[1], base='scratch')) == before\n"
    )
    spec = str(world.spec("tool=1"))
    subprocess.run([sys.executable, "-c", program, spec], check=True)


def test_resolve_with_settings_by_name(world: World) -> None:
    spec = world.spec("tool=1")
    image = envbuild.resolve(str(spec), base=world.config.base, **settings(world))
    assert image.source is envbuild.Source.BUILT
    assert str(image.reference) == f"{world.config.workspace}@{image.reference.digest}"
    assert image.key == envbuild.key(spec, base=world.config.base, **settings(world))
    assert envbuild.resolve(spec, base=world.config.base, **settings(world)).source is envbuild.Source.INDEX


def test_resolve_with_a_config(world: World) -> None:
    spec = world.spec("tool=1")
    events: list[Event] = []
    image = envbuild.resolve(spec, config=world.config, progress=events.append)
    assert image.source is envbuild.Source.BUILT
    assert {event.phase for event in events} >= {"resolve", "solve", "layer"}
    assert envbuild.key(spec, config=world.config) == image.key
    with pytest.raises(TypeError, match="workspace"):
        envbuild.resolve(spec, config=world.config, workspace="oci:other")


def test_a_loaded_definition(world: World) -> None:
    loaded = envbuild.load(world.spec("tool=1"), base="scratch")
    assert envbuild.key(loaded, config=world.config) == envbuild.key(
        world.spec("tool=1"), base="scratch", config=world.config
    )
    with pytest.raises(TypeError, match="give them to load"):
        envbuild.key(loaded, base="scratch", config=world.config)


def test_locks_are_definitions_as_on_the_command_line(world: World) -> None:
    spec = world.spec("tool=1")
    lock = world.root / "apart" / "envbuild.lock"
    lock.parent.mkdir()
    with envbuild.Resolver(world.config) as resolver:
        made = make_lock(resolver, envbuild.load(spec), lock.parent)
    made.write(lock)
    built = envbuild.resolve(lock, config=world.config)
    assert built.key == made.entries[0].key
    assert built.lock_key == str(envbuild.key(str(lock), config=world.config))
    assert envbuild.key(str(lock), config=world.config).tag.name == f"l1-{built.lock_key}"
    unlocked = envbuild.resolve(spec, config=world.config)
    assert (unlocked.key, unlocked.lock_key) == (built.key, built.lock_key)
    assert (unlocked.locked, built.locked) == (False, True)
    with pytest.raises(envbuild.EnvbuildError, match="laid over a lock"):
        envbuild.load(lock, base="scratch")


def test_lists_of_urls_are_definitions_as_on_the_command_line(world: World) -> None:
    spec = world.spec("tool=1")
    with envbuild.Resolver(world.config) as resolver:
        (package,) = make_lock(resolver, envbuild.load(spec), world.root).entries[0].lock.packages
    listed = world.root / "explicit.txt"
    listed.write_text(f"@EXPLICIT\n{package.url}#{package.md5}\n")
    image = envbuild.resolve(listed, config=world.config)
    assert image.source is envbuild.Source.BUILT
    assert image.lock_key == envbuild.resolve(spec, config=world.config).lock_key
    assert envbuild.key(envbuild.load(listed), config=world.config) == image.key


def test_a_miss_and_a_mistake_are_errors_with_a_code(world: World) -> None:
    with pytest.raises(envbuild.EnvbuildError) as miss:
        envbuild.resolve(world.spec("tool=1"), build=False, config=world.config)
    assert miss.value.exit_code == 3
    with pytest.raises(envbuild.EnvbuildError) as mistake:
        envbuild.resolve("not-there.yml", config=world.config)
    assert mistake.value.exit_code == 2
    with pytest.raises(envbuild.EnvbuildError) as late:
        envbuild.resolve(world.spec("tool=1"), timeout=0.0, config=replace(world.config, index_ttl=0.0))
    assert late.value.exit_code == 8
    assert late.value.retryable


def test_a_resolver_is_for_many_threads(world: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    spec = world.spec("pyth", "thing")
    with envbuild.Resolver(world.config) as resolver, ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: resolver.resolve(spec), range(8)))
    assert len({image.reference for image in images}) == 1
    assert [image.source for image in images].count(envbuild.Source.BUILT) == 1
