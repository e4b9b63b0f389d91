"""``envbuild verify``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envbuild.cli.options import BUILD, DEFINITION, LOOKUP, Command, common
from envbuild.cli.progress import shown
from envbuild.cli.target import named
from envbuild.deadline import Deadline
from envbuild.errors import IntegrityError, plain
from envbuild.spec.fields import reference

if TYPE_CHECKING:
    from envbuild.checks import Check, Report
    from envbuild.cli.options import Common
    from envbuild.cli.progress import Display
    from envbuild.digest import Digest
    from envbuild.oci.registry import Registry

_MARKS = {True: "ok", False: "FAILED", None: "not checked"}


@click.command(cls=Command)
@click.argument("image", metavar="REF|SPEC")
@click.option(
    "--full",
    is_flag=True,
    help="Read and hash every blob instead of only looking for it, and unpack each layer.",
)
@click.option(
    "--key",
    "keys",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A public key, one of which must have signed the image; may be given again. "
    "If not given, those of the trust policy, where it requires signatures.",
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Build it again from the lock that is attached to it, in a temporary folder, and compare digests.",
)
@common(DEFINITION, LOOKUP, BUILD)
def verify(image: str, full: bool, keys: tuple[Path, ...], rebuild: bool, options: Common) -> int:
    """Check that an image is what it says it is, and print each check and its result.

    Give a reference, or a definition whose image is looked up; no repository is written. Exits with 7 where a
    check fails, or could not be made with --full or --rebuild; what else was not checked is shown as that.
    --rebuild says with --base where the base is, if it is not where it was.
    """
    from envbuild.trust import read_key
    from envbuild.verify import verify as run

    with (
        shown(options) as display,
        named(image, options, display) as (resolver, found, wanted, *_),
    ):
        deadline = Deadline.after(options.config.timeout)
        registry = resolver.registries.open(found.repository).by(deadline)
        accepted = tuple(read_key(path) for path in keys)
        trust = options.config.trust
        rule = trust.rule(found.repository) if trust is not None else None
        platforms = options.overrides["platforms"] or ()
        report = run(
            registry,
            wanted,
            full=full,
            keys=accepted,
            rule=rule,
            platforms=platforms,
            deadline=deadline,
        )
        if rebuild:
            report = replace(
                report,
                checks=report.checks
                + _rebuilt(registry, report.reference.digest, options, display, deadline),
            )
    _print(report, as_json=options.as_json)
    return 0 if report.passed else IntegrityError.exit_code


def _rebuilt(
    registry: Registry, digest: Digest, options: Common, display: Display, deadline: Deadline
) -> tuple[Check, ...]:
    from envbuild.rebuild import Rebuild

    base = options.overrides["base"]
    where = reference(base, Path.cwd(), None) if base else None
    again = Rebuild(options.config, registry, where, display, deadline)
    return tuple(again.checks(registry.get_manifest(digest)))


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        checks = [{"name": one.name, "passed": one.passed, "detail": one.detail} for one in report.checks]
        document = {"reference": str(report.reference), "passed": report.passed, "checks": checks}
        click.echo(plain(json.dumps(document, ensure_ascii=False)))
        return
    click.echo(report.reference)
    for check in report.checks:
        click.echo(plain(f"{_MARKS[check.passed]:<11} {check.name:<12} {check.detail}"))
