"""Wheels of projects and source archives: built by an engine, in the environment that they are for."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform as machine
import tarfile
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Final

import rfc8785

from envbuild.build.assemble import assemble, oci_layer
from envbuild.build.base import BaseImage
from envbuild.build.engines import connect
from envbuild.build.steps import StepsBuilder
from envbuild.conda.link import FIXED_TIME
from envbuild.errors import BuildError, BuildLimit, IntegrityError, StepFailed
from envbuild.pip.copies import keep, place_of
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.resolve import resolve
from envbuild.pip.source import ProjectSource, applies, archive_digest, build_section, is_source
from envbuild.pip.sources import Sources, bare
from envbuild.pip.tags import MACHINES
from envbuild.pip.uv import program
from envbuild.progress import Event
from envbuild.spec.context import ContextFile
from envbuild.spec.local import LocalSource, Origin, local_url
from envbuild.spec.requirement import name_from_url
from envbuild.storage import key_lock, read_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envbuild.build.buildx_builder import BuildxBuilder
    from envbuild.build.compose import Composer, Composition
    from envbuild.build.engine import Engine
    from envbuild.build.steps_image import BuiltSteps
    from envbuild.config import Config
    from envbuild.lock import Lock
    from envbuild.pip.resolve import PipRequest, PipSolution
    from envbuild.spec.pip import PipSection
    from envbuild.spec.requirement import PipRequirement

_FORMAT: Final = 2
_OUT: Final = ".envbuild-wheel/out/"
_NO_ENGINE: Final = (
    "apt-get install docker.io, or set DOCKER_HOST to an engine, or build a wheel and name that"
)


@dataclass(frozen=True)
class SourceBuilder:
    """Builds the wheels of one section.

    Attributes:
        config: The settings.
        composer: The composer of Conda's layers.
        base: The base with its steps.
        conda: Gives Conda's layers.
        lock: The packages in them.
        python: The path of the environment's python in the image.
        request: What the section's wheels must fit.
    """

    config: Config
    composer: Composer
    base: BaseImage
    conda: Callable[[], Composition]
    lock: Lock
    python: str
    request: PipRequest

    def built(self) -> PipSection:
        """The section with a wheel in place of each project and source archive.

        A wheel that was built before is taken where sources, build requirements and the image that it was
        built in are the same.

        Raises:
            BuildError: There is no engine, or a build failed.
            SolveError: What a build asks for is not there.
        """
        section, python = self.request.section, self.request.python
        if not any(is_source(each) for each in section.requirements):
            return section
        name = MACHINES.get(self.request.platform.architecture, "")
        wanted = [each for each in section.requirements if not is_source(each) or applies(each, python, name)]
        requirements = tuple(self._wheel(each) if is_source(each) else each for each in wanted)
        return replace(section, requirements=requirements)

    def _wheel(self, requirement: PipRequirement) -> PipRequirement:
        composer = self.composer
        request = self.request
        sources = Sources.of(request.section, request.pypi, composer.deadline, request.variables)
        source = ProjectSource.read(requirement, sources.fetch_url, composer.deadline)
        asked = replace(self.request, section=build_section(self.request.section, source, requirement))
        needs = resolve(asked, cache_dir=self.config.cache_dir, deadline=composer.deadline)
        key = self._key(source, needs)
        with key_lock(self.config.cache_dir, f"wheel-{key}", composer.deadline):
            wheel = self._known(key)
            if wheel is None:
                self._tell(source, "start")
                wheel = self._keep(key, *self._build(source, needs))
                self._tell(source, "done")
            else:
                self._tell(source, "reused")
        file = ContextFile.of(wheel.name, read_own(wheel))
        section = self.request.section
        hashed = any(each.hashes for each in (*section.requirements, *section.constraints))
        hashes = (f"sha256:{file.sha256}",) if hashed or "--require-hashes" in section.switches else ()
        return requirement._replace(
            name=name_from_url(wheel.name)[0],
            local=LocalSource(wheel, wheel.name, (file,), origin_of(requirement, wheel)),
            url=None,
            fetch_url=None,
            editable=False,
            hashes=hashes,
        )

    def _tell(self, source: ProjectSource, state: str) -> None:
        self.composer.progress(Event("step", f"wheel of {source.what}", state))

    def _key(self, source: ProjectSource, needs: PipSolution) -> str:
        """The name of a wheel: what is built, with what, and all that is in the image that the build runs in.

        A build reads what it likes of its image: a compiler, a plug-in, a ``.pth`` file. So a wheel is taken
        again only in an equal one, also where its name says that it fits any.
        """
        composer, target = self.composer, self.composer.target
        form: dict[str, Any] = {
            "format": _FORMAT,
            "image": {
                "base": hashlib.sha256(self.base.raw_config).hexdigest(),
                "layers": [layer.digest.hex for layer in self.base.manifest.layers],
                "packages": [{**record.identity, "url": record.url} for record in self.lock.packages],
                "prefix": target.prefix,
                "pyc": None if target.pyc is None else target.pyc.mode,
            },
            "interpreter": self.python,
            "uv": hashlib.sha256(program().read_bytes()).hexdigest(),
            "files": source.identity,
            "needs": needs.identity(),
            "python": self.request.python.version,
            "platform": str(self.request.platform),
            # Below what was built when others were believed there may have been other layers.
            "accepted": composer.shared.accepted,
        }
        return hashlib.sha256(b"envbuild/built-wheel/v1\x00" + rfc8785.dumps(form)).hexdigest()

    def _known(self, key: str) -> Path | None:
        if (known := self.composer.index.fact(f"wheel {key}")) is not None:
            digest, name = json.loads(known)
            path = place_of(self.config.cache_dir, name, digest)
            with contextlib.suppress(OSError):
                if hashlib.sha256(read_own(path)).hexdigest() == digest:
                    return path
        return None

    def _keep(self, key: str, name: str, content: bytes) -> Path:
        digest = hashlib.sha256(content).hexdigest()
        self.composer.index.put_fact(f"wheel {key}", json.dumps([digest, name]))
        return keep(self.config.cache_dir, name, content)

    @cached_property
    def _image(self) -> BaseImage:
        """The environment's image without its wheels, complete in the target."""
        composer = self.composer
        assembled = assemble(self.base, self.conda().layers, environment={}, labels={}, annotations={})
        sources = () if self.base.registry is None else (self.base.registry,)
        for layer in self.base.manifest.layers:
            composer.upload.expect(oci_layer(layer), sources, "base")
        composer.upload.put_bytes(assembled.manifest.config, assembled.config, "config")
        composer.upload.complete(assembled.manifest, composer.index, self.config.jobs)
        return BaseImage(None, assembled.manifest, assembled.config, composer.upload.target)

    def _build(self, source: ProjectSource, needs: PipSolution) -> tuple[str, bytes]:
        own = MACHINES.get(self.request.platform.architecture)
        if own != machine.machine():
            raise BuildError(
                f"{source.what} is built from source, which this {machine.machine()} machine does not do for "
                f"{self.request.platform}",
                hint="build it on a machine of that kind, or name a wheel",
            )
        composer = self.composer
        steps = StepsBuilder(
            self.config, composer.registries, composer.upload, composer.progress, offline=True
        )
        with self._engine(source) as engine, tempfile.TemporaryFile(dir=composer.spool) as context:
            self._write(source, needs, context)
            try:
                built = engine.run_steps(
                    steps.as_steps_base(self._image),
                    "",
                    context,
                    args={"UV_PYTHON": self.python},
                    platform=self.request.platform,
                    limits=steps.limits,
                    progress=composer.progress,
                    deadline=composer.deadline,
                    head="wheel.Dockerfile",
                )
            except StepFailed as error:
                raise BuildError(
                    f"{source.what} could not be built from source: {error.message}",
                    hint="a build has no network, and no more files than the environment: "
                    "name a wheel, or install it in a Docker step",
                ) from error
            except BuildLimit:
                raise
            except BuildError as error:
                raise BuildError(
                    f"the engine failed while it built {source.what}: {error.message}",
                    hint=error.hint,
                    retryable=error.retryable,
                ) from error
        with built:
            return _wheel_of(built, source.what)

    def _engine(self, source: ProjectSource) -> Engine | BuildxBuilder:
        try:
            return connect(self.config)
        except BuildError as error:
            raise BuildError(
                f"{source.what} is built from source, by its own code, and {error.message}",
                hint=_NO_ENGINE,
                retryable=error.retryable,
            ) from error

    def _write(self, source: ProjectSource, needs: PipSolution, out: IO[bytes]) -> None:
        """The build context."""
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for file in source.files:
                _add(archive, replace(file, path=f"source/{file.path}"))
            _add(archive, ContextFile("wheels", executable=True, content=None))
            for wheel in needs.distributions:
                url = needs.urls.get(wheel.url)
                with fetch_wheel(wheel, url=url, deadline=self.composer.deadline) as stream:
                    _add(archive, ContextFile.of(f"wheels/{wheel.file_name}", stream.read()))
            _add(archive, ContextFile.of("uv", program().read_bytes(), executable=True))
        out.seek(0)


def origin_of(requirement: PipRequirement, wheel: Path) -> Origin:
    """What a wheel says that it was built from: the folder under the project's name, or the archive."""
    local = requirement.local
    if local is not None and not local.name:
        return Origin(local_url(name_from_url(wheel.name)[0]), "folder")
    if local is not None:
        return Origin(local_url(local.name), local.files[0].sha256)
    url = bare(requirement.url or "")
    return Origin(url, archive_digest(requirement).hex)


def _add(archive: tarfile.TarFile, file: ContextFile) -> None:
    entry = tarfile.TarInfo(file.path)
    entry.mtime, entry.mode = FIXED_TIME, 0o755 if file.executable else 0o644
    if file.content is not None:
        entry.size = len(file.content)
    elif file.target is not None:
        entry.type, entry.linkname = tarfile.SYMTYPE, file.target
    else:
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    archive.addfile(entry, io.BytesIO(file.content or b""))


def _wheel_of(built: BuiltSteps, what: str) -> tuple[str, bytes]:
    """Name and content of the one wheel that a build left."""
    found = list(_wheels(built))
    if len(found) != 1:
        raise IntegrityError(f"the build of {what} left {len(found)} wheels, expected one")
    return found[0]


def _wheels(built: BuiltSteps) -> Iterator[tuple[str, bytes]]:
    for layer in built.layers:
        with layer.open() as stream, tarfile.open(fileobj=stream) as archive:
            for member in archive:
                name = member.name.removeprefix("./").removeprefix(_OUT)
                if member.isreg() and name.endswith(".whl") and "/" not in name:
                    content = archive.extractfile(member)
                    yield name, content.read() if content else b""
