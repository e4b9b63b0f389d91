"""``envbuild promote``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envbuild.cli.options import DEFINITION, LOOKUP, Command, amount, common
from envbuild.cli.progress import shown
from envbuild.cli.target import named
from envbuild.deadline import Deadline
from envbuild.errors import counted
from envbuild.reference import Repository

if TYPE_CHECKING:
    from envbuild.cli.options import Common
    from envbuild.promote import Promoted


@click.command(cls=Command)
@click.argument("image", metavar="REF|SPEC")
@click.option("--to", "target", metavar="REPOSITORY", required=True, help="The repository to copy it to.")
@click.option("--referrers", is_flag=True, help="Copy what is attached to it too: lock, SBOM, signatures.")
@common(DEFINITION, LOOKUP)
def promote(image: str, target: str, referrers: bool, options: Common) -> None:
    """Copy an image to another repository, digest unchanged, under the tag of its key.

    Give a reference, or a definition whose image is looked up; nothing is built. Of a definition that is
    locked the tag of its lock key is written, and not that of a key. An image for several platforms is
    copied whole, or with --platform only that one. A tag that names another image there stays as it is, and
    the call fails. Where the policy asks for signatures there, nothing is copied that it does not accept.
    """
    from envbuild.promote import Promotion

    repository = Repository.parse(target)
    with shown(options) as display:
        with named(image, options, display) as (resolver, found, wanted, name, looked_up):
            platforms = options.overrides["platforms"]
            deadline = Deadline.after(options.config.timeout)
            promotion = Promotion(
                resolver.registries.open(found.repository),
                resolver.registries.open(repository),
                options.config,
                display,
                deadline,
            )
            done = promotion.promote(
                wanted,
                name=name,
                platforms=looked_up,
                platform=platforms[0] if platforms and name is None else None,
                with_referrers=referrers,
            )
        display.pause()
        display.note(_summary(done))
        click.echo(json.dumps(_as_json(done)) if options.as_json else str(done.reference))


def _summary(done: Promoted) -> str:
    report = done.report
    attached = f", {done.attached} attached" if done.attached else ""
    return (
        f"{counted(report.blobs_copied, 'blob')} copied ({amount(report.bytes_copied)}), "
        f"{report.blobs_mounted} mounted, {report.blobs_present} there before{attached}"
    )


def _as_json(done: Promoted) -> dict[str, object]:
    return {
        "reference": str(done.reference),
        "digest": str(done.reference.digest),
        "tags": [str(tag) for tag in done.tags],
        "blobs_copied": done.report.blobs_copied,
        "blobs_mounted": done.report.blobs_mounted,
        "blobs_present": done.report.blobs_present,
        "bytes_copied": done.report.bytes_copied,
        "attached": done.attached,
    }
