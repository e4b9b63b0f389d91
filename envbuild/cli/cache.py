"""``envbuild cache info|ls|clear``."""

from __future__ import annotations

import json

import click

from envbuild.cli.options import amount, moment
from envbuild.config import Config
from envbuild.index import Index


@click.group()
def cache() -> None:
    """Look at the local index, or clear it. It is a hint: clearing it costs time only."""


_folder = click.option("--cache-dir", metavar="FOLDER", help="The folder of the local index.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@cache.command()
@_folder
@_json
def info(cache_dir: str | None, as_json: bool) -> None:
    """Where the index is, and how much is in it."""
    index = Index(Config.load(cache_dir=cache_dir).cache_dir)
    stats = index.stats()
    index.close()
    document = {
        "folder": str(index.folder),
        "images": stats.images,
        "layers": stats.layers,
        "bases": stats.bases,
        "bytes": stats.size,
    }
    if as_json:
        click.echo(json.dumps(document))
        return
    click.echo(f"folder  {index.folder}")
    click.echo(f"images  {stats.images}\nlayers  {stats.layers}\nbases   {stats.bases}")
    click.echo(f"size    {amount(stats.size)}")


@cache.command()
@_folder
@_json
def ls(cache_dir: str | None, as_json: bool) -> None:
    """The images that are known, the newest confirmation first."""
    index = Index(Config.load(cache_dir=cache_dir).cache_dir)
    for entry in index.images():
        if as_json:
            document = {
                "key": entry.key,
                "reference": str(entry.reference),
                "lock": entry.lock_key,
                "confirmed": moment(entry.confirmed_at),
            }
            click.echo(json.dumps(document))
        else:
            click.echo(f"{entry.key[:12]}  {moment(entry.confirmed_at)}  {entry.reference}")
    index.close()


@cache.command()
@_folder
def clear(cache_dir: str | None) -> None:
    """Forget everything. No image is deleted."""
    index = Index(Config.load(cache_dir=cache_dir).cache_dir)
    index.clear()
    index.close()
