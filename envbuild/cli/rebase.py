"""``envbuild rebase``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envbuild.cli import report
from envbuild.cli.options import BUILD, LOOKUP, REBASE, Command, common
from envbuild.cli.progress import shown
from envbuild.deadline import Deadline
from envbuild.errors import EnvbuildError
from envbuild.lockkey import LockKey
from envbuild.reference import parse_reference
from envbuild.resolver import Resolver
from envbuild.spec.fields import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.build.rebase import BaseName, Failed, Rebased, Rebaser
    from envbuild.cli.options import Common
    from envbuild.reference import ImageReference, TaggedReference

    Outcomes = Iterator[Rebased | Failed]


@click.command(cls=Command)
@click.argument("images", metavar="[REF]...", nargs=-1)
@click.option("--base", "--to", "new", metavar="IMAGE", required=True, help="The new base; or scratch.")
@click.option("--all", "every", is_flag=True, help="Rebase every image of the workspace that is on --from.")
@click.option("--from", "old", metavar="IMAGE", help="The base that those images are on; best by its digest.")
@common(LOOKUP, BUILD, REBASE)
def rebase(images: tuple[str, ...], new: str, every: bool, old: str | None, options: Common) -> int:
    """Put the environments of images on another base, building and downloading nothing.

    Prints the reference of each image that came out, one a line; they are in the workspace, under the keys
    of the same definitions on the new base. Docker steps and post-link scripts, where an environment has
    them, are run again. An image that cannot be rebased does not keep the others from it.
    """
    if every == bool(images):
        raise click.UsageError("name images, or say --all --from OLD --to NEW")
    if every != (old is not None):
        raise click.UsageError("--all and --from go together")
    started = time.monotonic()
    deadline = Deadline.after(options.config.timeout)
    base = reference(new, Path.cwd(), None)
    code = count = 0
    from envbuild.build.rebase import Failed, Rebaser

    with shown(options) as display, Resolver(options.config, progress=display) as resolver:
        worker = Rebaser(resolver.config, resolver.index, resolver.registries, display, bases=resolver.bases)
        outcomes = (
            _each(worker, tuple(map(parse_reference, images)), base, deadline)
            if old is None
            else worker.rebase_all(worker.digests(parse_reference(old), deadline), base, deadline)
        )
        for outcome in outcomes:
            display.pause()
            if isinstance(outcome, Failed):
                report(outcome.error, as_json=options.as_json, subject=outcome.source)
                code = code or outcome.error.exit_code
            else:
                count += outcome.made
                _print(outcome, as_json=options.as_json)
        display.note(f"rebased {count} in {time.monotonic() - started:.2f} s")
    return code


def _each(
    worker: Rebaser, images: tuple[ImageReference | TaggedReference, ...], base: BaseName, deadline: Deadline
) -> Outcomes:
    from envbuild.build.rebase import Failed

    for image in images:
        try:
            yield worker.rebase(image, base, deadline)
        except EnvbuildError as error:
            yield Failed(str(image), error)


def _print(outcome: Rebased, *, as_json: bool) -> None:
    document = {
        "reference": str(outcome.reference),
        "digest": str(outcome.reference.digest),
        "key": str(outcome.key),
        "lock": outcome.lock_key,
        "locked": isinstance(outcome.name, LockKey),
        "from": str(outcome.source),
        "made": outcome.made,
    }
    click.echo(json.dumps(document) if as_json else str(outcome.reference))
