"""Running a command in an image that was resolved: what a job runner does with the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import BuildError
from envbuild.progress import Event, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from envbuild.build.engine import Engine
    from envbuild.deadline import Deadline
    from envbuild.oci.registries import Registries
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference

_NAME: Final = "envbuild-run"


@dataclass(frozen=True, slots=True)
class Command:
    """What is run in a container.

    Attributes:
        words: The command and its arguments; the image's entry point stays in force.
        mounts: Folders of the engine's machine and where they shall be seen in the container.
        env: More environment variables.
        workdir: The working directory; None is the image's.
        user: The user; None is the image's.
    """

    words: Sequence[str]
    mounts: Mapping[Path, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None


def run_image(
    reference: ImageReference,
    command: Command,
    *,
    engine: Engine,
    registries: Registries,
    output: Callable[[int, bytes], None],
    progress: Progress = silent,
    deadline: Deadline = NO_DEADLINE,
) -> int:
    """Run a command in a new container of an image, wherever the image is: in a registry or a layout.

    The image is put into the engine first unless it is there from an earlier run; the engine itself needs
    neither a registry nor credentials.

    Args:
        reference: The image.
        command: What to run.
        engine: Runs it.
        registries: Opens the repository that the image is in.
        output: Is given 1 (standard output) or 2 (standard error), and the bytes as they come.
        progress: Told of the image being loaded.
        deadline: When the image must be in the engine; the command itself may take as long as it likes.

    Returns:
        The command's exit code.

    Raises:
        BuildError: The engine cannot load or run the image.
        RegistryError: The image cannot be read.
        IntegrityError: A blob of it is not what its digest says.
    """
    name = f"{_NAME}:{reference.digest.hex}"

    def attempt() -> int:
        return engine.run(
            name,
            command.words,
            output=output,
            mounts=command.mounts,
            env=command.env,
            workdir=command.workdir,
            user=command.user,
        )

    try:
        return attempt()
    except BuildError as error:
        if type(error.__cause__).__name__ != "ImageNotFound":
            raise _explained(error, command) from error
    progress(Event("load", str(reference), "start"))
    _load(reference, name, engine, registries, deadline)
    progress(Event("load", str(reference), "done"))
    try:
        return attempt()
    except BuildError as error:
        raise _explained(error, command) from error


def _explained(error: BuildError, command: Command) -> BuildError:
    """The error with the engine's own words where it has some, as of a command that is not there."""
    said = getattr(error.__cause__, "explanation", None)
    if not said:
        return error
    return BuildError(
        f"the engine could not run {' '.join(command.words)!r}: {said}",
        hint="check that the command is in the environment or its base",
    )


def _load(
    reference: ImageReference, name: str, engine: Engine, registries: Registries, deadline: Deadline
) -> None:
    from envbuild.build.base import MAX_CONFIG, read_all
    from envbuild.build.steps_image import StepsBase
    from envbuild.oci.manifest import Manifest

    registry = registries.open(reference.repository).by(deadline)
    manifest = registry.get_manifest(reference.digest)
    if not isinstance(manifest, Manifest):
        raise BuildError(f"{reference} is an index of images, expected an image of one platform")
    with registry.open_blob(manifest.config) as stream:
        config = read_all(stream, MAX_CONFIG, f"the config of {reference}")
    engine.load(StepsBase(manifest, config, registry.open_blob), name, deadline=deadline)
