"""``envbuild doctor``."""

from __future__ import annotations

import importlib.metadata
import json
import platform as machine
import sqlite3
from typing import TYPE_CHECKING

import click

from envbuild.cli.diagnosis import Check, attempt, registries
from envbuild.cli.options import ENGINE, LOOKUP, Command, common
from envbuild.errors import EnvbuildError, counted
from envbuild.index import Index

if TYPE_CHECKING:
    from envbuild.cli.options import Common

_NO_ENGINE = (
    "only Docker steps and `envbuild run` need one: apt-get install docker.io, or set DOCKER_HOST, or start "
    "Podman's: podman system service --time=0"
)
_NO_BUILDX = "only build secrets and named builders need it: apt-get install docker-buildx"


@click.command(cls=Command)
@common(LOOKUP, ENGINE)
def doctor(options: Common) -> int:
    """Check what envbuild needs on this machine. Nothing is written to any registry."""
    checks = [
        _versions(),
        attempt("index", lambda: str(_index(options))),
        *registries(options.config),
        _solver(),
        _engine(options),
        _buildx(options),
    ]
    for check in checks:
        if options.as_json:
            document = {"name": check.name, "state": check.state, "seen": check.seen, "hint": check.hint}
            click.echo(json.dumps(document))
        else:
            click.echo(f"{check.state:<8} {check.name:<18} {check.seen}")
            if check.hint:
                click.echo(f"{'':<28}{check.hint}")
    return next((check.exit_code for check in checks if check.state == "broken"), 0)


def _versions() -> Check:
    own = importlib.metadata.version("envbuild")
    return Check(
        "envbuild", "ok", f"{own} on Python {machine.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def _index(options: Common) -> str:
    index = Index(options.config.cache_dir)
    stats = index.stats()
    index.close()
    return f"{index.folder}: {counted(stats.images, 'image')}, {counted(stats.layers, 'layer')}"


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
        return attempt("buildx", lambda: str(BuildxBuilder.connect(name).describe()))
    if (version := buildx.version()) is None:
        return Check("buildx", "missing", "the docker command has no buildx, or is not there", _NO_BUILDX)
    named = ", ".join(f"{name} ({driver})" for name, driver in buildx.builders())
    return Check("buildx", "ok", f"{version}; builders with a name: {named or 'none'}")
