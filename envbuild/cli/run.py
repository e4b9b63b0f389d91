"""``envbuild run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from envbuild.cli.answers import summary
from envbuild.cli.options import BUILD, DEFINITION, LOOKUP, Command, common
from envbuild.cli.progress import shown
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from envbuild.cli.options import Common


def _mounts(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[Path, str]:
    mounts = {}
    for value in values:
        source, colon, target = value.partition(":")
        if not (source and colon and target.startswith("/")):
            raise click.BadParameter(f"{value!r}, expected FOLDER:/PATH/IN/THE/CONTAINER[:ro]")
        mounts[Path(source)] = target
    return mounts


def _variables(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise click.BadParameter(f"{name!r}, expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.argument("spec", metavar="SPEC")
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--no-build", is_flag=True, help="Exit with 3 where the image is nowhere.")
@click.option(
    "--mount",
    "mounts",
    metavar="FOLDER:PATH",
    multiple=True,
    callback=_mounts,
    help="A folder and where it is seen in the container; may be given again.",
)
@click.option(
    "--env",
    "variables",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_variables,
    help="An environment variable; may be given again.",
)
@click.option("--workdir", metavar="PATH", help="The working directory in the container.")
@click.option("--user", metavar="USER", help="The user in the container.")
@common(DEFINITION, LOOKUP, BUILD)
def run(
    spec: str,
    command: tuple[str, ...],
    no_build: bool,
    mounts: dict[Path, str],
    variables: dict[str, str],
    workdir: str | None,
    user: str | None,
    options: Common,
) -> int:
    """Run a command in a definition's image, in a container that is removed afterwards.

    The image is resolved as by `envbuild resolve`, put into the Docker Engine unless it is there, and the
    command is run with its output passed on; it gets no standard input. Exits with the command's exit code.
    Options come before SPEC. --timeout is for getting the image, not for the command.
    """
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("there is no command after --")
    from envbuild.build.engine import Engine
    from envbuild.deadline import Deadline
    from envbuild.run import Command as Words
    from envbuild.run import run_image

    deadline = Deadline.after(options.config.timeout)
    with (
        shown(options) as display,
        Resolver(options.config, progress=display) as resolver,
        Engine.connect(options.config.docker_host) as engine,
    ):
        image = resolver.resolve(options.load(spec), build=not no_build)
        display.note(summary(image))

        def output(stream: int, content: bytes) -> None:
            display.pause()
            target = sys.stderr.buffer if stream == 2 else sys.stdout.buffer
            target.write(content)
            target.flush()

        return run_image(
            image.reference,
            Words(command, mounts, variables, workdir, user),
            engine=engine,
            registries=resolver.registries,
            output=output,
            progress=display,
            deadline=deadline,
        )
