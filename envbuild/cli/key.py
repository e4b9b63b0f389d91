"""``envbuild key``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envbuild.cli.options import common
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from envbuild.cli.options import Common


@click.command()
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option("--explain", is_flag=True, help="Print the canonical form that is hashed, as JSON.")
@common
def key(specs: tuple[str, ...], explain: bool, options: Common) -> None:
    """Print the key of each definition: 64 hex digits, equal for equal meanings.

    A base that is a tag is resolved to a digest first; nothing is written to any registry.
    """
    with Resolver(options.config) as resolver:
        for spec in specs:
            form = resolver.form(options.load(spec))
            if explain:
                text = form.to_json().decode()
                click.echo(
                    text if options.as_json else json.dumps(json.loads(text), indent=2, ensure_ascii=False)
                )
            elif options.as_json:
                click.echo(json.dumps({"spec": spec, "key": str(form.key), "tag": str(form.key.tag)}))
            else:
                click.echo(str(form.key))
