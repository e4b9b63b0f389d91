"""``envbuild key``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envbuild.cli import report
from envbuild.cli.options import DEFINITION, LOCKS, Command, common
from envbuild.errors import EnvbuildError
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from envbuild.cli.options import Common
    from envbuild.key import CanonicalForm


@click.command(cls=Command)
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option("--explain", is_flag=True, help="Print the canonical form that is hashed, as JSON.")
@common(DEFINITION, LOCKS)
def key(specs: tuple[str, ...], explain: bool, options: Common) -> int:
    """Print the key of each definition: 64 hex digits, equal for equal meanings.

    A base that is a tag is resolved to a digest first; nothing is written to any registry.
    """
    code = 0
    with Resolver(options.config, locks=options.locks) as resolver:
        for spec in specs:
            try:
                form = resolver.form(options.load(spec))
            except EnvbuildError as error:
                report(error, as_json=options.as_json, subject=spec if len(specs) > 1 else None)
                code = code or error.exit_code
            else:
                click.echo(_text(spec, form, explain=explain, as_json=options.as_json))
    return code


def _text(spec: str, form: CanonicalForm, *, explain: bool, as_json: bool) -> str:
    if explain and as_json:
        return form.to_json().decode()
    if explain:
        return json.dumps(json.loads(form.to_json()), indent=2, ensure_ascii=False)
    if as_json:
        document = {"spec": spec, "key": str(form.key), "tag": str(form.key.tag)}
        return json.dumps(document, ensure_ascii=False)
    return str(form.key)
