"""``envbuild lint``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envbuild.cli import report
from envbuild.cli.options import DEFINITION, Command, common
from envbuild.errors import EnvbuildError, counted
from envbuild.lint import Severity
from envbuild.lint import lint as find

if TYPE_CHECKING:
    from envbuild.cli.options import Common
    from envbuild.lint import Finding


@click.command(cls=Command)
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="Exit with 2 if there is a warning.")
@common(DEFINITION)
def lint(specs: tuple[str, ...], strict: bool, options: Common) -> int:
    """Point out what is allowed in a definition and still likely to hurt.

    Warnings should be dealt with, notes should be known. Nothing is read but the definitions.
    """
    findings: list[Finding] = []
    code = 0
    for source in specs:
        try:
            spec = options.config.over(options.load(source))
        except EnvbuildError as error:
            report(error, as_json=options.as_json, subject=source if len(specs) > 1 else None)
            code = code or error.exit_code
            continue
        findings += find(spec)
    if options.as_json:
        for finding in findings:
            click.echo(json.dumps(finding.to_json(), ensure_ascii=False))
    else:
        _print(findings)
    warned = any(finding.rule.severity is Severity.WARNING for finding in findings)
    return code or (2 if strict and warned else 0)


def _print(findings: list[Finding]) -> None:
    """Each finding on a line; why it matters and what to do below the first one of its rule."""
    explained: set[str] = set()
    for finding in findings:
        click.echo(str(finding))
        if finding.rule.code not in explained:
            explained.add(finding.rule.code)
            click.echo(f"    {finding.rule.why}\n    do: {finding.rule.advice}")
    warnings = sum(finding.rule.severity is Severity.WARNING for finding in findings)
    if findings:
        click.echo(f"{counted(warnings, 'warning')}, {counted(len(findings) - warnings, 'note')}")
