"""``envbuild resolve`` and ``envbuild build``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from envbuild.cli import report
from envbuild.cli.answers import as_json, summary
from envbuild.cli.options import BUILD, DEFINITION, LOCKS, LOOKUP, Command, common
from envbuild.cli.outputs import outputs
from envbuild.cli.progress import shown
from envbuild.errors import EnvbuildError, IntegrityError
from envbuild.resolver import Resolver, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.cli.options import Common
    from envbuild.cli.outputs import Outputs
    from envbuild.cli.progress import Display
    from envbuild.resolver import ResolvedImage
    from envbuild.spec.environment import EnvironmentSpec

    Action = Callable[[Resolver, EnvironmentSpec, Display], ResolvedImage]

_dry_run = click.option(
    "--dry-run", is_flag=True, help="Say what would be done; nothing is written to any registry."
)

_OTHER_IMAGE = (
    "settings that change layers must be those that it was built with; the workspace's own image stays"
)


@click.command(cls=Command)
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option("--no-build", is_flag=True, help="Exit with 3 where the image is nowhere.")
@click.option(
    "--explain", is_flag=True, help="Where the image is nowhere, say what differs from the nearest one."
)
@_dry_run
@outputs
@common(DEFINITION, LOCKS, LOOKUP, BUILD)
def resolve(
    specs: tuple[str, ...],
    no_build: bool,
    explain: bool,
    dry_run: bool,
    options: Common,
    where: Outputs,
) -> int:
    """Answer with the digest-pinned reference of each definition's image, one a line.

    SPEC is an environment.yml, an envbuild.yaml, a requirements.txt, an Azure ML environment, or - for
    standard input. The image is looked up in the local index, the workspace and the global repository; if it
    is in none of them, it is built and pushed to the workspace.
    """
    if dry_run:
        if explain:
            raise click.UsageError("--explain is for a resolve: give it with --no-build, or --dry-run alone")
        from envbuild.cli.dry_run import dry_run as run

        return run(specs, options, look=True, build=not no_build)
    if explain:
        from envbuild.cli.explain import explained

        def tell(resolver: Resolver, spec: EnvironmentSpec, display: Display) -> ResolvedImage:
            return explained(resolver, spec, display, build=not no_build, as_json=options.as_json)

        return _each(specs, options, where, tell)
    return _each(specs, options, where, lambda resolver, spec, _: resolver.resolve(spec, build=not no_build))


@click.command(cls=Command)
@click.argument("specs", metavar="[SPEC...]", nargs=-1)
@click.option(
    "--from-lock", "image", metavar="REF", help="Build what the lock says that is attached to an image."
)
@_dry_run
@outputs
@common(DEFINITION, LOCKS, LOOKUP, BUILD)
def build(specs: tuple[str, ...], image: str | None, dry_run: bool, options: Common, where: Outputs) -> int:
    """Build an image without asking whether it is there, and push it to the workspace.

    If the workspace has an image of the same key already, that one stays and is the answer.
    """
    if bool(specs) == (image is not None):
        raise click.UsageError("give definitions, or --from-lock with an image")
    if image is not None:
        if dry_run:
            raise click.UsageError("--dry-run needs a definition; `envbuild lock --from` writes one")
        return _build_again(image, options, where)
    if dry_run:
        from envbuild.cli.dry_run import dry_run as run

        return run(specs, options, look=False)
    return _each(specs, options, where, lambda resolver, spec, _: resolver.build(spec))


def _build_again(image: str, options: Common, where: Outputs) -> int:
    """Build from the lock that is attached to an image, and compare."""
    from envbuild.admission import Admission
    from envbuild.cli.target import source_image
    from envbuild.deadline import Deadline
    from envbuild.rebuild import comparison
    from envbuild.restore import build_again, restored

    deadline = Deadline.after(options.config.timeout)
    with shown(options) as display, source_image(image, options, display) as (registry, wanted, base):
        platforms, admission = options.overrides["platforms"], Admission(options.config, display)
        found = restored(registry, wanted, platforms, admission, part=True, deadline=deadline)
        built = build_again(options.config, registry, found, base, deadline, display)
        with Resolver(options.config, progress=display) as resolver:
            delivered = where.deliver(resolver, built, options.config)
            target = resolver.registries.open(built.reference.repository).by(deadline)
            made = target.get_manifest(built.reference.digest)
        runs = found.lock.entries[0].form.fields["steps_after"] is not None
        check = comparison(found.images[0], made, "rebuild", runs=runs)
        display.pause()
        for line in (summary(built), *delivered, *([check.detail] if check.passed is None else [])):
            display.note(line)
    document = as_json(built) | {"same": check.passed}
    click.echo(json.dumps(document, ensure_ascii=False) if options.as_json else str(built.reference))
    if check.passed is False:
        error = IntegrityError(f"not the image {image}: building it again {check.detail}", hint=_OTHER_IMAGE)
        report(error, as_json=options.as_json)
        return error.exit_code
    return 0


def _each(specs: tuple[str, ...], options: Common, where: Outputs, action: Action) -> int:
    """One answer a line; a definition that fails does not keep the others from being answered."""
    code = 0
    where.check(len(specs))
    with (
        shown(options) as display,
        Resolver(options.config, progress=display, locks=options.locks) as resolver,
    ):
        for spec in specs:
            subject = spec if len(specs) > 1 else None
            try:
                loaded = options.load(spec)
                image = action(resolver, loaded, display)
                delivered = where.deliver(resolver, image, options.config)
            except EnvbuildError as error:
                display.pause()
                report(error, as_json=options.as_json, subject=subject)
                code = code or error.exit_code
            else:
                display.pause()
                if image.source is Source.BUILT and not options.quiet:
                    from envbuild.cli.explain import warnings

                    for line in warnings(resolver, loaded):
                        display.note(line)
                for line in (summary(image, subject), *delivered):
                    display.note(line)
                click.echo(
                    json.dumps(({"spec": spec} if subject else {}) | as_json(image), ensure_ascii=False)
                    if options.as_json
                    else str(image.reference)
                )
    return code
