"""The builder for those who may build with an engine only: it makes the environment's one layer."""

from __future__ import annotations

import tarfile
import tempfile
import time
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Final

from envbuild.build.assemble import SCHEME_ANNOTATION, assemble, oci_layer
from envbuild.build.layers import LayersBuilder
from envbuild.build.times import settled
from envbuild.errors import BuildError
from envbuild.key import KEY_SCHEME
from envbuild.lookup import LOCK_ANNOTATION
from envbuild.storage import private_folder

if TYPE_CHECKING:
    from envbuild.build.assemble import Assembled, Layer
    from envbuild.build.base import BaseImage
    from envbuild.build.compose import Composition
    from envbuild.build.engine import Engine
    from envbuild.build.engine_info import EngineInfo
    from envbuild.build.job import Job
    from envbuild.build.layers import Parts
    from envbuild.build.upload import Upload
    from envbuild.conda.solve import Solution

_ARCHIVE: Final = "environment.tar.gz"
_TITLE: Final = "environment"


class DockerBuilder(LayersBuilder):
    """Has an engine put the environment on the base, in one build of ``dockerfiles/environment.Dockerfile``.

    The lock, the key, the image's settings and the files are those of the builder ``layers``; steps and
    scripts run as they do there.
    """

    def _parts(self, job: Job, base: BaseImage, solution: Solution, upload: Upload) -> Parts:
        if job.spec.pip is not None:
            raise BuildError(
                "the builder docker cannot install a pip section",
                hint="use --builder layers, or name the packages under conda dependencies",
            )
        return super()._parts(job, base, solution, upload)

    def _compose(
        self,
        job: Job,
        parts: Parts,
        lock_key: str,
        annotations: dict[str, str],
    ) -> tuple[Assembled, Composition]:
        from envbuild.build.compose import Composition

        base, solution, upload = parts.base, parts.solution, parts.composer.upload
        sources = () if base.registry is None else (base.registry,)
        for layer in base.manifest.layers:
            upload.expect(oci_layer(layer), sources, "base")
        layers: tuple[Layer, ...] = ()
        composition = Composition((), 0, 0)
        environment = dict(job.spec.variables)
        if solution.lock.packages:
            layers, composition = self._built(job, parts)
            environment = self._environment(job, base, composition)
        assembled = assemble(
            base,
            layers,
            environment=environment,
            labels={LOCK_ANNOTATION: lock_key, SCHEME_ANNOTATION: str(KEY_SCHEME)},
            annotations=annotations,
        )
        return assembled, composition

    def _built(self, job: Job, parts: Parts) -> tuple[tuple[Layer, ...], Composition]:
        """The environment's layer as the engine made it, stored in the target."""
        from envbuild.build.steps import StepsBuilder
        from envbuild.conda.layer import Compression

        steps = StepsBuilder(self.config, self.registries, parts.composer.upload, self.progress)
        composer = replace(parts.composer, compression=Compression.of("gzip"))
        spool = private_folder(self.config.cache_dir / "spool")
        with self._engine() as engine, tempfile.TemporaryFile(dir=spool) as context:
            context.seek(tarfile.BLOCKSIZE)
            composition = composer.archive(parts.solution.lock, context)
            _finish(context)
            started = time.time()
            built = engine.run_steps(
                steps.as_steps_base(parts.base),
                copy_onto_base(engine.describe()),
                context,
                platform=job.platform,
                progress=self.progress,
                deadline=job.deadline,
                head="environment.Dockerfile",
            )
        with built:
            return steps.put_all(settled(built, started), _TITLE), composition

    def _engine(self) -> Engine:
        from envbuild.build.engine import Engine

        try:
            return Engine.connect(self.config.docker_host)
        except BuildError as error:
            raise BuildError(
                f"the builder docker has no engine: {error.message}",
                hint="apt-get install docker.io, or set DOCKER_HOST to an engine, or use --builder layers",
                retryable=error.retryable,
            ) from error


def copy_onto_base(info: EngineInfo) -> str:
    """The instruction that puts the environment on the base; linked where the engine's own front end can."""
    return f"COPY {'--link ' if info.heredocs else ''}--from=environment / /\n"


def _finish(context: IO[bytes]) -> None:
    """Make a tar of a file that was written behind the room for its header."""
    end = context.seek(0, 2)
    entry = tarfile.TarInfo(_ARCHIVE)
    entry.size = end - tarfile.BLOCKSIZE
    context.write(bytes(-end % tarfile.BLOCKSIZE) + bytes(2 * tarfile.BLOCKSIZE))
    context.seek(0)
    context.write(entry.tobuf(tarfile.USTAR_FORMAT))
    context.seek(0)
