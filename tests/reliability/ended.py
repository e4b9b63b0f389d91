"""Whole builds in a forked process that may be ended at any instant, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import tempfile
import time
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from envbuild import cli
from envbuild.digest import Digest
from envbuild.errors import EnvbuildError, NotFound
from envbuild.oci.manifest import Manifest
from envbuild.oci.open import open_registry
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from envbuild.config import Config
    from envbuild.oci.registry import Registry
    from envbuild.reference import Repository, Tag
    from tiny import World

# Children come from a server process that has imported all this and runs no threads.
_PRELOAD = ("envbuild.attach", "envbuild.build.compose", "envbuild.build.layers", "envbuild.conda.solve")
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([*_PRELOAD, "envbuild.oci.remote", "reliability.ended"])
DEPENDENCIES = ("pyth", "tool=2.0", "first", "second", "thing")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: what it said (nothing, if it was killed before), and after how many seconds."""

    said: str
    exit_code: int | None
    seconds: float


def build(config: Config, spec: Path, *, end: signal.Signals | None = None, after: float = 0.0) -> Ended:
    """Resolve in a forked child, which gets a signal after some seconds unless it is done by then."""
    return _ended(_resolve, config, spec, end, after)


def command(config: Config, spec: Path, *, end: signal.Signals | None = None, after: float = 0.0) -> Ended:
    """The same by the command line, whose temporary files go into ``tmp`` beside the cache folder's."""
    ended = _ended(_command, config, spec, end, after)
    said = config.cache_dir.with_suffix(".said")
    return replace(ended, said=said.read_text() if said.exists() else "")


def _ended(
    target: Callable[[Config, Path, Connection], None],
    config: Config,
    spec: Path,
    end: signal.Signals | None,
    after: float,
) -> Ended:
    reading, writing = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=target, args=(config, spec, writing))
    started = time.monotonic()
    process.start()
    writing.close()
    if end is not None:
        process.join(after)
        if process.is_alive() and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, end)
    with reading:
        try:
            said = reading.recv()
        except EOFError:
            said = ""
    process.join(120)
    return Ended(said, process.exitcode, time.monotonic() - started)


def _resolve(config: Config, spec: Path, writing: Connection) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with Resolver(config) as resolver:
            said = str(resolver.resolve(spec).reference.digest)
    except EnvbuildError as error:
        said = type(error).__name__
    writing.send(said)


def _command(config: Config, spec: Path, writing: Connection) -> None:
    temporary = config.cache_dir.with_suffix(".tmp")
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    words = ["--workspace", str(config.workspace), "--cache-dir", str(config.cache_dir), "--quiet"]
    words += ["--base", str(config.base), "--channel-alias", config.channel_alias]
    writing.close()
    with config.cache_dir.with_suffix(".said").open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    cli.main(["resolve", str(spec), *words])


def fresh(world: World, workspace: Repository) -> Config:
    """The settings of a machine that has seen nothing, with an empty workspace."""
    name = uuid.uuid4().hex
    workspace = replace(workspace, path=f"{workspace.path}-{name}")
    return replace(world.config, workspace=workspace, cache_dir=world.root / name)


def check(config: Config) -> set[str]:
    """All that has a tag is whole, and the index is intact; the names of the tags."""
    path = config.cache_dir / "index.sqlite"
    if path.exists():
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    registry = open_registry(config.workspace)
    try:
        tags = list(registry.tags())
        for tag in tags:
            _check_image(registry, tag)
    except NotFound:  # not even the repository is there
        return set()
    finally:
        registry.close()
    return {tag.name for tag in tags}


def _check_image(registry: Registry, tag: Tag) -> None:
    manifest = registry.get_manifest(tag)
    assert isinstance(manifest, Manifest)
    for blob in manifest.blobs:
        try:
            with registry.open_blob(blob) as stream:
                assert Digest.of(stream.read()) == blob.digest
        except NotFound as error:
            raise AssertionError(f"{tag} names an image without {blob.digest}") from error
