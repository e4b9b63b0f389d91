"""``envbuild resolve`` and ``envbuild build``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from envbuild.cli import report
from envbuild.cli.options import common
from envbuild.cli.progress import shown
from envbuild.errors import EnvbuildError
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.cli.options import Common
    from envbuild.resolver import ResolvedImage
    from envbuild.spec.environment import EnvironmentSpec


@click.command()
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option("--no-build", is_flag=True, help="Exit with 3 where the image is nowhere.")
@common
def resolve(specs: tuple[str, ...], no_build: bool, options: Common) -> int:
    """Answer with the digest-pinned reference of each definition's image.

    SPEC is an environment.yml, an envbuild.yaml, a requirements.txt, an Azure ML environment, or - for
    standard input. The image is looked up in the local index, the workspace and the global repository; if it
    is in none of them, it is built and pushed to the workspace.
    """
    return _each(specs, options, lambda resolver, spec: resolver.resolve(spec, build=not no_build))


@click.command()
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@common
def build(specs: tuple[str, ...], options: Common) -> int:
    """Build an image without asking whether it is there, and push it to the workspace.

    If the workspace has an image of the same key already, that one stays and is the answer.
    """
    return _each(specs, options, lambda resolver, spec: resolver.build(spec))


def _each(
    specs: tuple[str, ...], options: Common, action: Callable[[Resolver, EnvironmentSpec], ResolvedImage]
) -> int:
    """One answer a line; a definition that fails does not keep the others from being answered."""
    code = 0
    with shown(options) as progress, Resolver(options.config, progress=progress) as resolver:
        for spec in specs:
            try:
                image = action(resolver, options.load(spec))
            except EnvbuildError as error:
                report(error, as_json=options.as_json, subject=spec if len(specs) > 1 else None)
                code = code or error.exit_code
            else:
                click.echo(json.dumps(as_json(image)) if options.as_json else str(image.reference))
    return code


def as_json(image: ResolvedImage) -> dict[str, Any]:
    """A resolved image as a JSON object."""
    return {
        "reference": str(image.reference),
        "repository": str(image.reference.repository),
        "digest": str(image.reference.digest),
        "key": str(image.key),
        "lock": image.lock_key,
        "source": str(image.source),
        "platform": str(image.platform),
        "seconds": round(image.seconds, 4),
        "layers_made": image.layers_made,
        "layers_reused": image.layers_reused,
        "bytes_uploaded": image.bytes_uploaded,
    }
