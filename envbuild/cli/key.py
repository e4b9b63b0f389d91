"""``envbuild key``."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import click
import rfc8785

from envbuild.cli import report
from envbuild.cli.options import DEFINITION, LOCKS, Command, common
from envbuild.cli.progress import shown
from envbuild.errors import EnvbuildError
from envbuild.key import Key
from envbuild.resolver import Resolver, name_for

if TYPE_CHECKING:
    from envbuild.cli.options import Common
    from envbuild.lockkey import Name
    from envbuild.platform import Platform
    from envbuild.resolver import Wanted

    Requests = dict[Platform, Wanted]


@click.command(cls=Command)
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option("--explain", is_flag=True, help="Print the form that is hashed, as JSON.")
@common(DEFINITION, LOCKS)
def key(specs: tuple[str, ...], explain: bool, options: Common) -> int:
    """Print what `resolve` looks for: the key of each definition, or the lock key where it is locked.

    Either is 64 hex digits, equal for equal meanings; which of the two it is is told on standard error, and
    with --json beside it. A definition for several platforms has one for each, printed with the platform, and
    one for the index over them. A base that is a tag is resolved to a digest first; nothing is written to any
    registry.
    """
    code = 0
    with (
        shown(options) as display,
        Resolver(options.config, progress=display, locks=options.locks) as resolver,
    ):
        for spec in specs:
            try:
                requests = resolver.wanted(options.load(spec))
            except EnvbuildError as error:
                display.pause()
                report(error, as_json=options.as_json, subject=spec if len(specs) > 1 else None)
                code = code or error.exit_code
                continue
            display.pause()
            if not (options.as_json or options.quiet):
                _tell(spec, requests)
            click.echo(_explained(requests, options) if explain else _text(spec, requests, options))
    return code


def _tell(spec: str, requests: Requests) -> None:
    """Say which of the two is printed, and why a lock that is there is not used."""
    for platform, request in requests.items():
        subject = spec if len(requests) == 1 else f"{spec} ({platform})"
        kind = "key of the definition" if request.lock_key is None else "lock key"
        with contextlib.suppress(OSError):  # the answer does not depend on who listens
            click.echo(f"{subject}: {kind}{f'; {request.note}' if request.note else ''}", err=True)


def _explained(requests: Requests, options: Common) -> str:
    """The form that is hashed; of several platforms one a line, or a list of them."""
    documents = [request.hashed for request in requests.values()]
    if options.as_json:
        return "\n".join(rfc8785.dumps(document).decode() for document in documents)
    shown = documents[0] if len(documents) == 1 else documents
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _text(spec: str, requests: Requests, options: Common) -> str:
    together = name_for(requests)
    if options.as_json:
        document: dict[str, Any] = {"spec": spec, **_named(together)}
        if len(requests) > 1:
            document["platforms"] = [
                {"platform": str(platform), **_named(request.name)} for platform, request in requests.items()
            ]
        return json.dumps(document, ensure_ascii=False)
    if len(requests) == 1:
        return str(together)
    lines = [f"{request.name}  {platform}" for platform, request in requests.items()]
    return "\n".join([*lines, f"{together}  {','.join(map(str, requests))}"])


def _named(name: Name) -> dict[str, str]:
    return {"key": str(name), "tag": str(name.tag), "kind": "key" if isinstance(name, Key) else "lock key"}
