"""``--load`` and ``--output``: where an image goes besides the workspace."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envbuild.cli.options import Option
from envbuild.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.config import Config
    from envbuild.resolver import ResolvedImage, Resolver

_SECTION = "Where the image goes besides the workspace"


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the options say.

    Attributes:
        load: Whether to put the image into the Docker Engine.
        file: The OCI archive to write, or None.
    """

    load: bool = False
    file: Path | None = None

    def check(self, specs: int) -> None:
        """Refuse what cannot be done, before anything is resolved.

        Raises:
            SpecError: The file cannot be written.
        """
        if self.file is None:
            return
        if specs != 1:
            raise click.UsageError("--output takes the image of one definition")
        from envbuild.output import check_file

        check_file(self.file)

    def deliver(self, resolver: Resolver, image: ResolvedImage, config: Config) -> list[str]:
        """Bring the image where it shall go; says what was done, a line each."""
        notes: list[str] = []
        if not self.load and self.file is None:
            return notes
        from envbuild import output

        deadline = Deadline.after(config.timeout)
        registries, progress = resolver.registries, resolver.progress
        if self.file is not None:
            output.write_archive(
                image.reference, self.file, registries=registries, progress=progress, deadline=deadline
            )
            notes.append(f"written to {self.file}")
        if self.load:
            from envbuild.build.engine import Engine

            with Engine.connect(config.docker_host) as engine:
                found, name = output.load_image(
                    image.reference,
                    engine=engine,
                    registries=registries,
                    progress=progress,
                    deadline=deadline,
                )
            notes.append(f"loaded into the engine as {name}, {found}")
        return notes


def outputs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options; it receives them as one ``Outputs`` named ``where``."""

    @functools.wraps(command)
    def wrapper(load: bool, output: Path | None, **values: Any) -> Any:
        return command(where=Outputs(load, output), **values)

    decorate = (
        click.option(
            "--load", is_flag=True, cls=Option, section=_SECTION, help="Put it into the Docker Engine."
        ),
        click.option(
            "--output",
            metavar="FILE",
            type=click.Path(path_type=Path),
            cls=Option,
            section=_SECTION,
            help="Write it as an OCI archive (a tar), which docker load and skopeo read.",
        ),
    )
    return functools.reduce(lambda inner, option: option(inner), reversed(decorate), wrapper)
