"""``envbuild key``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from envbuild.cli import report
from envbuild.cli.options import DEFINITION, LOCKS, Command, common
from envbuild.errors import EnvbuildError
from envbuild.key import index_key
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from envbuild.cli.options import Common
    from envbuild.key import CanonicalForm
    from envbuild.platform import Platform

    Forms = dict[Platform, CanonicalForm]


@click.command(cls=Command)
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option("--explain", is_flag=True, help="Print the canonical form that is hashed, as JSON.")
@common(DEFINITION, LOCKS)
def key(specs: tuple[str, ...], explain: bool, options: Common) -> int:
    """Print the key of each definition: 64 hex digits, equal for equal meanings.

    A definition for several platforms has a key for each, printed with the platform, and one for the index
    over them. A base that is a tag is resolved to a digest first; nothing is written to any registry.
    """
    code = 0
    with Resolver(options.config, locks=options.locks) as resolver:
        for spec in specs:
            try:
                forms = resolver.forms(options.load(spec))
            except EnvbuildError as error:
                report(error, as_json=options.as_json, subject=spec if len(specs) > 1 else None)
                code = code or error.exit_code
            else:
                click.echo(_explained(forms, options) if explain else _text(spec, forms, options))
    return code


def _explained(forms: Forms, options: Common) -> str:
    """The canonical form; of several platforms one a line, or a list of them."""
    if options.as_json:
        return "\n".join(form.to_json().decode() for form in forms.values())
    documents = [json.loads(form.to_json()) for form in forms.values()]
    shown = documents[0] if len(documents) == 1 else documents
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _text(spec: str, forms: Forms, options: Common) -> str:
    together = index_key({platform: form.key for platform, form in forms.items()})
    if options.as_json:
        document: dict[str, Any] = {"spec": spec, "key": str(together), "tag": str(together.tag)}
        if len(forms) > 1:
            document["platforms"] = [
                {"platform": str(platform), "key": str(form.key), "tag": str(form.key.tag)}
                for platform, form in forms.items()
            ]
        return json.dumps(document, ensure_ascii=False)
    if len(forms) == 1:
        return str(together)
    lines = [f"{form.key}  {platform}" for platform, form in forms.items()]
    return "\n".join([*lines, f"{together}  {','.join(map(str, forms))}"])
