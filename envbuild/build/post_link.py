"""Packages' post-link scripts: run by an engine, on the image of the environment.

A script is part of its package, so what it does follows from the lock as the rest does. Which packages have
one is known from their layers' path hashes, also of layers that nobody fetches.
"""

from __future__ import annotations

import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from envbuild.build.assemble import assemble
from envbuild.build.base import BaseImage
from envbuild.build.engines import connect
from envbuild.build.scripts import script_of
from envbuild.build.steps_image import template
from envbuild.build.times import settled
from envbuild.build.trace import OUT_OF_MEMORY
from envbuild.conda.order import installation_order
from envbuild.errors import BuildError, BuildLimit, StepFailed
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from envbuild.build.buildx_builder import BuildxBuilder
    from envbuild.build.engine import Engine
    from envbuild.build.steps import StepsBuilder
    from envbuild.build.steps_image import BuiltSteps
    from envbuild.deadline import Deadline
    from envbuild.lock import PackageRecord
    from envbuild.platform import Platform
    from envbuild.progress import Progress

_BEGIN: Final = "envbuild: post-link "
_END: Final = "envbuild: exit code "
_TAIL: Final = 20
_MISSING: Final = re.compile(
    r"""exec: "/bin/sh": |["'`]/bin/sh["'`]:? (?:not found|no such file)|unable to find user"""
)
_NO_SHELL: Final = "they need a shell: choose a base that has one, or add bash to the dependencies"
_OTHER_PACKAGE: Final = "exclude the package, or choose another build of it"
_NO_ENGINE: Final = (
    "apt-get install docker.io, or set DOCKER_HOST to an engine, or choose a build of it without the script"
)


@dataclass(frozen=True)
class PostLink:
    """Runs scripts.

    Attributes:
        builder: Brings layers to the target.
        prefix: Where the environment is in the image.
        variables: What is set before the scripts of activation run, which post-link scripts are run behind.
    """

    builder: StepsBuilder
    prefix: str
    variables: Mapping[str, str]

    def run(
        self,
        image: BaseImage,
        packages: Iterable[PackageRecord],
        scripted: frozenset[str],
        platform: Platform,
        deadline: Deadline,
    ) -> BaseImage:
        """The image with the scripts run, as root, each after those of the packages that its package needs.

        Only files are taken from it: the image's settings stay as they are.

        Args:
            image: The image of the environment, complete in the target.
            packages: All packages of the environment.
            scripted: The names of those that have a script.
            platform: The platform.
            deadline: When to give up.

        Returns:
            The image; its config and its layers are in the target, its manifest is not.

        Raises:
            BuildError: A script failed, or there is no engine, or the engine failed.
        """
        records = [record for record in installation_order(packages) if record.name in scripted]
        base = self.builder.as_steps_base(image)
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        log = _Log(self.builder.progress, {record.name: record for record in records})
        started = time.time()
        with _engine(self.builder, records[0]) as engine:
            built = log.explain(
                lambda: engine.run_steps(
                    base.with_settings(Env=variables),
                    template("post-link.Dockerfile"),
                    args={"ENVBUILD_PREFIX": self.prefix, "ENVBUILD_PACKAGES": _listed(records)},
                    platform=platform,
                    limits=self.builder.limits,
                    progress=log.hear,
                    deadline=deadline,
                )
            )
        title = f"post-link scripts of {', '.join(record.name for record in records)}"
        with built:
            layers = self.builder.put_all(settled(built, started), title)
        assembled = assemble(image, layers, environment={}, labels={}, annotations=image.manifest.annotations)
        upload = self.builder.upload
        upload.put_bytes(assembled.manifest.config, assembled.config, "config")
        return BaseImage(None, assembled.manifest, assembled.config, upload.target)


def _listed(records: Iterable[PackageRecord]) -> str:
    return " ".join(f"{record.name} {record.version} {record.build_number}" for record in records)


def _engine(builder: StepsBuilder, record: PackageRecord) -> Engine | BuildxBuilder:
    try:
        return connect(builder.config)
    except BuildError as error:
        raise BuildError(
            f"{record} runs a script when it is installed ({script_of(record.name)}), and {error.message}",
            hint=_NO_ENGINE,
            retryable=error.retryable,
        ) from error


@dataclass
class _Log:
    """Follows the scripts: tells which one runs, and explains which one failed."""

    progress: Progress
    records: dict[str, PackageRecord]
    current: PackageRecord | None = None
    code: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))

    def hear(self, event: Event) -> None:
        """Take an event of the build; what is no line of a script's output is the engine's own affair."""
        if event.state != "output":
            return
        if (name := event.text.removeprefix(_BEGIN)) != event.text and name in self.records:
            self._tell("done")
            self.current = self.records[name]
            self.tail.clear()
            self._tell("start")
        elif event.text.startswith(_END):
            self.code = event.text.removeprefix(_END)
        else:
            self.tail.append(event.text)
            self._tell("output", event.text)

    def _tell(self, state: str, text: str = "") -> None:
        if self.current is not None:
            self.progress(Event("step", f"post-link script of {self.current}", state, text=text))

    def explain(self, build: Callable[[], BuiltSteps]) -> BuiltSteps:
        """What ``build`` gives, or its error in terms of packages."""
        try:
            built = build()
        except BuildLimit:
            raise
        except BuildError as error:
            raise self._failure(error) from error
        self._tell("done")
        return built

    def _failure(self, error: BuildError) -> BuildError:
        """Whose fault it is: a script's is one that ended with an exit code, all others are the engine's."""
        if self.current is not None and self.code:
            lines = "; its last lines:\n" + "\n".join(f"  {line}" for line in self.tail) if self.tail else ""
            return StepFailed(
                f"the post-link script of {self.current} failed with exit code {self.code}{lines}",
                hint=OUT_OF_MEMORY if self.code == "137" else _OTHER_PACKAGE,
            )
        if self.current is not None:
            return BuildError(
                f"the engine failed while the post-link script of {self.current} ran: {error.message}",
                hint=error.hint,
                retryable=error.retryable,
            )
        names = ", ".join(str(record) for record in self.records.values())
        return BuildError(
            f"the post-link scripts of {names} could not be run in the image: {error.message}",
            hint=_NO_SHELL if _MISSING.search(error.message) else error.hint,
            retryable=error.retryable,
        )
