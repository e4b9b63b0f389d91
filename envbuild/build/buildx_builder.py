"""Docker steps in a BuildKit that ``docker buildx`` knows by name: in a container, elsewhere, in a cluster.

Such a BuildKit sees no engine's images. The base goes to it as an OCI layout, of which buildx serves the
blobs that are asked for, and the image comes back as an archive; no registry is needed on the way.
"""

from __future__ import annotations

import io
import re
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from envbuild.build import buildx
from envbuild.build.archive import DOCKERFILE, context_chunks, diff_ids, unpack_image
from envbuild.build.engine_info import EngineInfo
from envbuild.build.secrets import Secrets
from envbuild.build.steps_image import STEPS_TEMPLATE, Limits, as_written, finish, steps_dockerfile
from envbuild.build.trace import StepLog
from envbuild.build.watch import Watch, watched
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import BuildError
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.registry import publish
from envbuild.progress import silent
from envbuild.reference import Repository, Tag
from envbuild.spec.steps import BASE_ARGUMENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.build.archive import SavedImage
    from envbuild.build.steps_image import BuiltSteps, StepsBase
    from envbuild.deadline import Deadline
    from envbuild.platform import Platform
    from envbuild.progress import Progress

_BASE: Final = "envbuild-base"
_SHOWN: Final = re.compile(rf"docker\.io/library/{_BASE}(?:@sha256:[0-9a-f]{{64}})?")


@dataclass(frozen=True, slots=True)
class BuildxBuilder:
    """A builder of buildx. Made by :meth:`connect`; what it does is what ``Engine`` does.

    Attributes:
        name: Its name.
        driver: Its driver, as ``remote``.
        version: The version of its BuildKit.
    """

    name: str
    driver: str
    version: str

    @classmethod
    def connect(cls, name: str) -> Self:
        """Find a builder, and start it where that is up to its driver.

        Raises:
            BuildError: There is no buildx, or no such builder, or it does not answer.
        """
        found = buildx.inspect(name)
        if found.get("Driver") == "docker":
            raise BuildError(
                f"the buildx builder {name!r} is a Docker Engine's own",
                hint="leave buildx out: the engine is used as it is; DOCKER_HOST names it",
            )
        return cls(name, found.get("Driver", ""), found.get("BuildKit version", ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def describe(self) -> EngineInfo:
        """What the builder is."""
        endpoint = f"buildx:{self.name}"
        return EngineInfo(
            endpoint,
            self.version,
            self.driver,
            buildkit=True,
            podman=False,
            containerd_store=False,
            named=True,
        )

    def run_steps(  # noqa: PLR0913
        self,
        base: StepsBase,
        steps: str,
        context: IO[bytes] | None = None,
        *,
        args: Mapping[str, str] | None = None,
        secrets: Mapping[str, Path | bytes] | None = None,
        platform: Platform | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        progress: Progress = silent,
        deadline: Deadline = NO_DEADLINE,
        head: str = STEPS_TEMPLATE,
    ) -> BuiltSteps:
        """Run Dockerfile instructions on a base and give back what is new; as ``Engine.run_steps``.

        Raises:
            BuildError: A step failed, or there are limits that BuildKit does not take.
            BuildLimit: The build took too long, or wrote too much.
            DeadlineExceeded: The deadline passed.
            IntegrityError: The base's blobs, or what was built, are not what they should be.
        """
        if BASE_ARGUMENT in (args or {}):
            raise BuildError(f"the build argument {BASE_ARGUMENT} is envbuild's own: choose another name")
        if limits.memory is not None or limits.cpus is not None:
            raise BuildError(
                f"the buildx builder {self.name!r} takes no limits of memory or processors for one build",
                hint="limit the builder itself: docker buildx create --driver-opt memory=…",
            )
        known = Secrets.read(secrets or {})
        folder = tempfile.TemporaryDirectory(prefix="envbuild-steps-")
        try:
            with Watch.over(deadline, limits.seconds, "running the Docker steps") as watch:
                options = [f"--build-arg={name}={value}" for name, value in (args or {}).items()]
                options += [f"--platform={platform}"] if platform else []
                options += [f"--network={limits.network}"] if limits.network else []
                chunks = watch.each(context_chunks(context, steps_dockerfile(steps, head)))
                build = _Build(Path(folder.name), base.without_triggers(), known, watch)
                log = StepLog(progress, lambda text: _shown(known.redact(text)), known.longest)
                saved = build.run(self.name, options, chunks, log, limits.disk)
            return finish(base, saved, known, folder)
        except BaseException:
            folder.cleanup()
            raise


def _shown(text: str) -> str:
    return _SHOWN.sub("the base image", as_written(text))


@dataclass(frozen=True, slots=True)
class _Build:
    folder: Path
    base: StepsBase
    secrets: Secrets
    watch: Watch

    def run(
        self, name: str, options: list[str], chunks: object, log: StepLog, max_bytes: int | None
    ) -> SavedImage:
        """Build, and unpack what was built."""
        built, layers = self.folder / "image.tar", self.folder / "layers"
        layers.mkdir()
        buildx.build(
            None,
            [*self._named_base(), f"--file={DOCKERFILE}", "--provenance=false", *options],
            self.secrets.values,
            chunks,  # type: ignore[arg-type]
            log,
            self.watch.on_expiry,
            target=(f"--builder={name}", f"--output=type=docker,dest={built}"),
        )
        self.watch.check()
        if log.error:
            raise log.failure()
        known = {*diff_ids(self.base.config), *(layer.digest for layer in self.base.manifest.layers)}
        with built.open("rb") as archive:
            saved = unpack_image(
                watched(archive, self.watch),
                layers,
                known=known,
                needles=self.secrets.found_in,
                overlap=self.secrets.overlap,
                max_bytes=max_bytes,
            )
        built.unlink()
        return saved

    def _named_base(self) -> list[str]:
        """The options that make the base known to the build."""
        base = self.base
        if not base.manifest.layers:
            return [f"--build-arg={BASE_ARGUMENT}=scratch"]
        place = self.folder / "base"
        layout = LayoutRegistry(Repository.parse(f"oci:{place}"))
        for layer in base.manifest.layers:
            self.watch.check()
            layout.put_blob(layer, partial(base.open_blob, layer))
        layout.put_blob(base.manifest.config, lambda: io.BytesIO(base.config))
        digest = publish(layout, base.manifest, Tag("base")).descriptor.digest
        return [
            f"--build-context={_BASE}=oci-layout://{place}@{digest}",
            f"--build-arg={BASE_ARGUMENT}={_BASE}",
        ]
