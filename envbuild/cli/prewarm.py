"""``envbuild prewarm``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envbuild.cli import describe
from envbuild.cli.answers import as_json
from envbuild.cli.options import BUILD, DEFINITION, LOOKUP, Command, amount, common
from envbuild.cli.progress import shown
from envbuild.prewarm import definitions
from envbuild.prewarm import prewarm as run
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from envbuild.cli.options import Common
    from envbuild.prewarm import Outcome


@click.command(cls=Command)
@click.argument("places", metavar="FILE|FOLDER...", nargs=-1, required=True)
@click.option("--no-build", is_flag=True, help="Only look; a miss counts as failed.")
@common(DEFINITION, LOOKUP, BUILD)
def prewarm(places: tuple[str, ...], no_build: bool, options: Common) -> int:
    """Resolve many definitions at once; one that fails does not stop the rest.

    A folder stands for every .yml and .yaml file under it. With --jobs N, N definitions are under way at
    once. Registries are asked for every image, whatever this machine knows of it. Prints a table at the end,
    or with --json a line for each definition as it is done. Exits with 0 only if every image is there in the
    end, else with the code of the first failure in the table.
    """
    sources = definitions(places)
    outcomes: dict[str, Outcome] = {}
    with (
        shown(options) as display,
        Resolver(options.config, progress=display, confirm=True) as resolver,
    ):
        results = run(
            sources,
            lambda source: resolver.resolve(options.load(source), build=not no_build),
            jobs=options.config.jobs,
        )
        for outcome in results:
            outcomes[outcome.source] = outcome
            display.pause()
            if options.as_json:
                click.echo(json.dumps(_document(outcome), ensure_ascii=False))
            else:
                display.note(_line(outcome))
    ordered = [outcomes[source] for source in sources]
    if not options.as_json:
        _table(ordered)
    return next((outcome.error.exit_code for outcome in ordered if outcome.error), 0)


def _document(outcome: Outcome) -> dict[str, object]:
    if outcome.error is not None:
        return describe(outcome.error, outcome.source)
    assert outcome.image is not None  # noqa: S101 - an outcome has one of the two
    return {"spec": outcome.source, **as_json(outcome.image)}


def _line(outcome: Outcome) -> str:
    if outcome.error is None:
        return f"{outcome.source}: {outcome.image.source if outcome.image else 'there'}"
    hint = f"\n  hint: {outcome.error.hint}" if outcome.error.hint else ""
    return f"{outcome.source}: failed: {outcome.error}{hint}"


def _table(outcomes: list[Outcome]) -> None:
    width = max(len(outcome.source) for outcome in outcomes)
    for outcome in outcomes:
        image = outcome.image
        if image is None:
            first = str(outcome.error).split("\n", 1)[0].removesuffix(":")
            click.echo(f"{outcome.source:<{width}}  failed     {first}")
        else:
            sent = amount(image.bytes_uploaded)
            figures = f"{image.source:<9}  {image.seconds:7.2f} s  {sent:>9}"
            click.echo(f"{outcome.source:<{width}}  {figures}  {image.reference}")
    failed = sum(outcome.error is not None for outcome in outcomes)
    click.echo(f"{len(outcomes) - failed} there, {failed} failed", err=True)
