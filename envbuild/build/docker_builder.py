"""The builder for those who may build with an engine only: it makes the environment's one layer."""

from __future__ import annotations

import tarfile
import tempfile
import time
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Final

from envbuild.build.compose import Composition
from envbuild.build.engines import connect
from envbuild.build.layers import LayersBuilder, Parts
from envbuild.build.steps import StepsBuilder
from envbuild.build.times import settled
from envbuild.build.wheel_lock import WheelSolver
from envbuild.conda.layer import Compression
from envbuild.errors import BuildError
from envbuild.storage import private_folder

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.build.buildx_builder import BuildxBuilder
    from envbuild.build.engine import Engine
    from envbuild.build.engine_info import EngineInfo
    from envbuild.build.job import Job
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
        """What the image is composed of; package layers are made only to build wheels on them."""
        composer = replace(self._composer(job, solution, upload), compression=Compression.of("gzip"))
        if job.spec.pip is None:
            return Parts(base, solution, composer)
        solver = WheelSolver(self.config, self.index, self.registries, self.progress, job.deadline)
        locked = None if job.locked is None else job.locked.pip
        wheels = solver.wheels(job.spec, job.spec.pip, base, solution, locked, composer)
        return Parts(base, solution, composer, wheels)

    def _content(self, parts: Parts, reserved: int) -> Composition:  # noqa: ARG002 - it is one layer
        """The environment's layer as the engine made it, in the target."""
        lock, wheels, composer = parts.solution.lock, parts.wheels, parts.composer
        if not lock.packages and wheels is None:
            return Composition((), 0, 0)
        steps = StepsBuilder(self.config, self.registries, composer.upload, self.progress)
        spool = private_folder(self.config.cache_dir / "spool")
        with self._engine() as engine, tempfile.TemporaryFile(dir=spool) as context:
            context.seek(tarfile.BLOCKSIZE)
            archived = wheels.archive(composer, lock, context) if wheels else composer.archive(lock, context)
            _finish(context)
            started = time.time()
            built = engine.run_steps(
                steps.as_steps_base(parts.base),
                copy_onto_base(engine.describe()),
                context,
                platform=composer.target.platform,
                progress=self.progress,
                deadline=composer.deadline,
                head="environment.Dockerfile",
            )
        with built:
            return replace(archived, layers=steps.put_all(settled(built, started), _TITLE))

    def _engine(self) -> Engine | BuildxBuilder:
        try:
            return connect(self.config)
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
