"""``envbuild doctor``."""

from __future__ import annotations

import importlib.metadata
import json
import platform as machine
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from envbuild.cli.options import ENGINE, LOOKUP, Command, common
from envbuild.deadline import Deadline
from envbuild.errors import EnvbuildError, NotFound
from envbuild.index import Index
from envbuild.oci.registries import Registries
from envbuild.reference import Tag

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.cli.options import Common
    from envbuild.reference import Repository

_ANSWER_SECONDS = 10.0
_NO_ENGINE = (
    "only Docker steps and `envbuild run` need one: apt-get install docker.io, or set DOCKER_HOST, or start "
    "Podman's: podman system service --time=0"
)
_NO_BUILDX = "only build secrets and named builders need it: apt-get install docker-buildx"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        state: ``ok``, ``missing`` (envbuild works without it) or ``broken``.
        seen: What was seen.
        hint: What to do, or None.
        exit_code: What the command exits with if it is broken.
    """

    name: str
    state: str
    seen: str
    hint: str | None = None
    exit_code: int = 0


@click.command(cls=Command)
@common(LOOKUP, ENGINE)
def doctor(options: Common) -> int:
    """Check what envbuild needs on this machine. Nothing is written to any registry."""
    checks = [
        _versions(),
        _attempt("index", lambda: str(_index(options))),
        _repository("workspace", options.config.workspace, options),
        *(
            [_repository("global", options.config.global_, options)]
            if options.config.global_ is not None
            else [Check("global", "missing", "none is configured")]
        ),
        _solver(),
        _engine(options),
        _buildx(options),
    ]
    for check in checks:
        if options.as_json:
            document = {"name": check.name, "state": check.state, "seen": check.seen, "hint": check.hint}
            click.echo(json.dumps(document))
        else:
            click.echo(f"{check.state:<8} {check.name:<10} {check.seen}")
            if check.hint:
                click.echo(f"{'':<20}{check.hint}")
    return next((check.exit_code for check in checks if check.state == "broken"), 0)


def _attempt(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", look())
    except EnvbuildError as error:
        return Check(name, "broken", str(error), error.hint, error.exit_code)


def _versions() -> Check:
    own = importlib.metadata.version("envbuild")
    return Check(
        "envbuild", "ok", f"{own} on Python {machine.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def _index(options: Common) -> str:
    index = Index(options.config.cache_dir)
    stats = index.stats()
    index.close()
    return f"{index.folder}: {stats.images} images, {stats.layers} layers"


def _repository(name: str, repository: Repository, options: Common) -> Check:
    """Whether a repository answers: that it has no such tag is the answer hoped for."""
    registries = Registries(options.config.insecure)

    def look() -> str:
        try:
            registries.probe(repository, Tag("envbuild-doctor"), Deadline.after(_ANSWER_SECONDS))
        except NotFound:
            pass
        finally:
            registries.close()
        return f"{repository} answers"

    return _attempt(name, look)


def _solver() -> Check:
    try:
        return Check("solver", "ok", f"py-rattler {importlib.metadata.version('py-rattler')}")
    except importlib.metadata.PackageNotFoundError:
        return Check("solver", "broken", "py-rattler is not installed", "pip install py-rattler", 5)


def _engine(options: Common) -> Check:
    from envbuild.build.engine import Engine

    try:
        engine = Engine.connect(options.config.docker_host)
    except EnvbuildError:
        seen = f"none answered at {options.config.docker_host or 'DOCKER_HOST or the usual sockets'}"
        return Check("engine", "missing", seen, _NO_ENGINE)
    try:
        return Check("engine", "ok", str(engine.describe()))
    finally:
        engine.close()


def _buildx(options: Common) -> Check:
    """The builders that buildx knows, and whether the one that is configured answers."""
    from envbuild.build import buildx
    from envbuild.build.buildx_builder import BuildxBuilder

    if options.config.buildx is not None:
        name = options.config.buildx
        return _attempt("buildx", lambda: str(BuildxBuilder.connect(name).describe()))
    if (version := buildx.version()) is None:
        return Check("buildx", "missing", "the docker command has no buildx, or is not there", _NO_BUILDX)
    named = ", ".join(f"{name} ({driver})" for name, driver in buildx.builders())
    return Check("buildx", "ok", f"{version}; builders with a name: {named or 'none'}")
