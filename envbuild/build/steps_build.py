"""Docker steps on a base, from the base's blobs to the new layers: the same way whatever the engine is."""

from __future__ import annotations

import json
import re
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from envbuild.build import buildx
from envbuild.build.archive import DOCKERFILE, context_chunks, diff_ids, unpack_image
from envbuild.build.engine_info import builder_parameters, lowered
from envbuild.build.steps_image import STEPS_TEMPLATE, as_written, finish, steps_dockerfile
from envbuild.build.trace import StepLog
from envbuild.build.watch import Watch
from envbuild.deadline import cleaning_up
from envbuild.digest import Digest
from envbuild.errors import BuildError
from envbuild.spec.steps import BASE_ARGUMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.build.archive import SavedImage
    from envbuild.build.engine_http import EngineHttp
    from envbuild.build.engine_info import EngineInfo
    from envbuild.build.secrets import Secrets
    from envbuild.build.steps_image import BuiltSteps, Limits, StepsBase
    from envbuild.deadline import Deadline
    from envbuild.platform import Platform
    from envbuild.progress import Progress

BASE_REPOSITORY: Final = "envbuild-base"
"""Bases that were given to the engine stay there under this name and the digest of their config."""
BUILD_REPOSITORY: Final = "envbuild-build"
"""What is being built has this name, and a random tag, until it has been read back."""

_FILE: Final = ".envbuild.secret-"
_FORGET_SECONDS: Final = 2.0
_FORGET_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do: the arguments of ``Engine.run_steps``."""

    steps: str
    context: IO[bytes] | None
    args: Mapping[str, str]
    platform: Platform | None
    limits: Limits
    progress: Progress
    head: str = STEPS_TEMPLATE


def build_steps(
    engine: EngineHttp, info: EngineInfo, base: StepsBase, work: Work, secrets: Secrets, deadline: Deadline
) -> BuiltSteps:
    """Give the engine the base, have it build the steps, read what is new back, and leave nothing behind."""
    if BASE_ARGUMENT in work.args:
        raise BuildError(f"the build argument {BASE_ARGUMENT} is envbuild's own: choose another name")
    folder = tempfile.TemporaryDirectory(prefix="envbuild-steps-")
    tag = f"{BUILD_REPOSITORY}:{uuid.uuid4().hex}"
    try:
        with Watch.over(deadline, work.limits.seconds, "running the Docker steps") as watch:
            build = _Build(engine, info, work, secrets, watch, tag)
            build.run(base.without_triggers())
            saved = build.read_back(base, Path(folder.name))
        return finish(base, saved, secrets, folder)
    except BaseException:
        folder.cleanup()
        raise
    finally:
        with cleaning_up():
            engine.untag(tag)


def provide(engine: EngineHttp, info: EngineInfo, base: StepsBase, watch: Watch) -> str:
    """Make sure that the engine has the base, and give the name that it has there."""
    if not base.manifest.layers:
        return "scratch"
    tag = f"{BASE_REPOSITORY}:{Digest.of(base.config).hex}"
    if not _has(engine, info, base, tag):
        engine.untag(tag)
        engine.load(base, tag, watch)
        if not _has(engine, info, base, tag):
            raise BuildError(f"the engine took the base image in and does not know it as {tag}")
    return tag


def _has(engine: EngineHttp, info: EngineInfo, base: StepsBase, tag: str) -> bool:
    seen = engine.inspect(tag)
    if seen is None:
        return False
    config = str(seen.get("Id", "")).removeprefix("sha256:")
    layers = (seen.get("RootFS") or {}).get("Layers") or []
    same_layers = layers == [str(diff_id) for diff_id in diff_ids(base.config)]
    return same_layers and (info.containerd_store or config == Digest.of(base.config).hex)


@dataclass(frozen=True, slots=True)
class _Build:
    engine: EngineHttp
    info: EngineInfo
    work: Work
    secrets: Secrets
    watch: Watch
    tag: str

    def run(self, base: StepsBase) -> None:
        """Build; when this returns, the image is in the engine under the tag."""
        steps = lowered(self.work.steps, base, self.info)
        name = provide(self.engine, self.info, base, self.watch)
        args = {**self.work.args, BASE_ARGUMENT: name}
        log = StepLog(self.work.progress, lambda text: self._shown(text, name), self.secrets.longest)
        if self.secrets.values and not self.info.podman:
            self._with_buildx(steps, args, log)
        else:
            self._over_http(steps, args, log)
        self.watch.check()
        if log.error:
            raise log.failure()

    def _shown(self, text: str, base: str) -> str:
        text = as_written(self.secrets.redact(text))
        named = re.compile(rf"(?:docker\.io/library/|localhost/)?{re.escape(base)}")
        return named.sub("the base image", text) if ":" in base else text

    def _over_http(self, steps: str, args: Mapping[str, str], log: StepLog) -> None:
        build_id = uuid.uuid4().hex
        parameters = {
            **builder_parameters(steps, self.work.limits, self.info),
            "t": self.tag,
            "dockerfile": DOCKERFILE,
            "buildid": build_id,
            "buildargs": json.dumps(args),
            "rm": "1",
            "forcerm": "1",
        }
        if self.work.platform is not None:
            parameters["platform"] = str(self.work.platform)
        files = {f"{_FILE}{number}": value for number, value in enumerate(self.secrets.values.values())}
        if files:  # Podman takes them from the context, out of which it moves them
            named = zip(self.secrets.values, files, strict=True)
            parameters["secrets"] = json.dumps([f"id={name},src={file}" for name, file in named])
        chunks = context_chunks(self.work.context, steps_dockerfile(steps, self.work.head), files)
        ended = False
        try:
            with (
                self.engine.errors("build the steps", self.watch),
                self.engine.send("/build", parameters, chunks, self.watch) as events,
            ):
                for event in events:
                    log.feed(event)
            ended = not self.watch.expired
        finally:
            if not ended:
                with cleaning_up():
                    self.engine.cancel_build(build_id)
                    self._forget()

    def _forget(self) -> None:
        """A build that is cancelled at its very end may still name its image; wait a little for that."""
        for _ in range(_FORGET_TRIES):
            self.engine.untag(self.tag)
            time.sleep(_FORGET_SECONDS / _FORGET_TRIES)

    def _with_buildx(self, steps: str, args: Mapping[str, str], log: StepLog) -> None:
        if self.info.buildx is None:
            raise BuildError(
                "steps that mount secrets need the docker command with buildx, and there is none",
                hint="install buildx (apt-get install docker-buildx, or Docker's docker-buildx-plugin)",
            )
        if self.work.limits.memory is not None or self.work.limits.cpus is not None:
            raise BuildError("steps that mount secrets cannot have limits of memory or processors")
        options = [f"--tag={self.tag}", f"--file={DOCKERFILE}", "--provenance=false"]
        options += [f"--build-arg={name}={value}" for name, value in args.items()]
        options += [f"--platform={self.work.platform}"] if self.work.platform else []
        options += [f"--network={self.work.limits.network}"] if self.work.limits.network else []
        chunks = self.watch.each(context_chunks(self.work.context, steps_dockerfile(steps, self.work.head)))
        buildx.build(self.engine.endpoint, options, self.secrets.values, chunks, log, self.watch.on_expiry)

    def read_back(self, base: StepsBase, folder: Path) -> SavedImage:
        """The image that was built, from the engine; the base's own layers are not kept."""
        with self.engine.save(self.tag, self.watch) as archive:
            return unpack_image(
                archive,
                folder,
                known={*diff_ids(base.config), *(layer.digest for layer in base.manifest.layers)},
                needles=self.secrets.found_in,
                overlap=self.secrets.overlap,
                max_bytes=self.work.limits.disk,
            )
