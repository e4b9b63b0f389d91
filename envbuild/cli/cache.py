"""``envbuild cache info|ls|clear``."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click

from envbuild.cli.options import Command, amount, moment
from envbuild.config import Config
from envbuild.errors import counted
from envbuild.index import Index

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


@click.group()
def cache() -> None:
    """Look at the local index, or clear it. It is a hint: clearing it costs time only."""


_folder = click.option("--cache-dir", metavar="FOLDER", help="The folder of the local index.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _open(cache_dir: str | None) -> AbstractContextManager[Index]:
    index = Index(
        Config.load(cache_dir=cache_dir).cache_dir, warn=lambda text: click.echo(f"index: {text}", err=True)
    )
    return contextlib.closing(index)


def _numbers(index: Index) -> dict[str, Any]:
    stats = index.stats()
    return {"images": stats.images, "layers": stats.layers, "bases": stats.bases, "bytes": stats.size}


@cache.command(cls=Command)
@_folder
@_json
def info(cache_dir: str | None, as_json: bool) -> None:
    """Show where the index is, and how much is in it."""
    with _open(cache_dir) as index:
        document = {"folder": str(index.folder), **_numbers(index)}
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    size = document.pop("bytes")
    for name, value in {**document, "size": amount(size)}.items():
        click.echo(f"{name:<8}{value}")


@cache.command(cls=Command)
@_folder
@_json
def ls(cache_dir: str | None, as_json: bool) -> None:
    """List the images that are known, the newest confirmation first."""
    with _open(cache_dir) as index:
        for entry in index.images():
            if not as_json:
                click.echo(f"{entry.key[:12]}  {moment(entry.confirmed_at)}  {entry.reference}")
                continue
            document = {
                "key": entry.key,
                "reference": str(entry.reference),
                "lock": entry.lock_key,
                "confirmed": moment(entry.confirmed_at),
            }
            click.echo(json.dumps(document, ensure_ascii=False))


@cache.command(cls=Command)
@_folder
@_json
def clear(cache_dir: str | None, as_json: bool) -> None:
    """Forget everything, and delete all that the cache holds. No image is deleted."""
    from envbuild.cleaning import clear_cache

    with _open(cache_dir) as index:
        forgotten = _numbers(index)
        freed = clear_cache(index)
    if as_json:
        del forgotten["bytes"]
        click.echo(json.dumps({"forgotten": forgotten, "freed": freed}))
        return
    images, layers = forgotten["images"], forgotten["layers"]
    click.echo(
        f"forgot {counted(images, 'image')} and {counted(layers, 'layer')}; freed {amount(freed)}",
        err=True,
    )
