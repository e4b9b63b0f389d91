"""Docker steps on a base image, done by a Docker Engine. The only module that imports ``docker``.

The base goes into the engine as an archive and the new layers come out as one, so the engine needs no
registry, no credentials and no settings of its own. Steps are built by the BuildKit inside the engine.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any, Final, Self

from envbuild.build.engine_http import CONNECT_SECONDS, EngineHttp, knock, reason
from envbuild.build.engine_info import EngineInfo, usual_endpoints
from envbuild.build.secrets import Secrets
from envbuild.build.steps_build import BASE_REPOSITORY, BUILD_REPOSITORY, Work, build_steps
from envbuild.build.steps_image import STEPS_TEMPLATE, Limits
from envbuild.build.watch import Watch
from envbuild.deadline import NO_DEADLINE, cleaning_up
from envbuild.errors import BuildError
from envbuild.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import docker

    from envbuild.build.steps_image import BuiltSteps, StepsBase
    from envbuild.deadline import Deadline
    from envbuild.platform import Platform
    from envbuild.progress import Progress

_GET_ONE: Final = (
    "apt-get install docker.io, or set DOCKER_HOST to an engine, or leave out what needs one: Docker steps, "
    "sources in a pip section, a base that an engine holds"
)


class Engine:
    """A Docker Engine that answered. Threads may share it. Made by :meth:`connect`."""

    def __init__(self, client: docker.DockerClient, endpoint: str) -> None:
        from docker.errors import DockerException
        from urllib3.exceptions import HTTPError

        self._client = client
        self._http = EngineHttp(client.api, endpoint, (DockerException, HTTPError, OSError, ValueError))

    @classmethod
    def connect(cls, host: str | None = None) -> Self:
        """Find an engine and ask it for its version.

        Args:
            host: The engine's address. None means ``DOCKER_HOST``; where that is not set, the current Docker
                context, then the usual sockets of Docker (also rootless) and of Podman.

        Raises:
            BuildError: None answered; the message says what was tried.
        """
        import docker
        from docker.errors import DockerException

        tried = []
        for endpoint, options in _endpoints(host):
            try:
                knock(endpoint)
                client = docker.DockerClient(
                    base_url=endpoint, version="auto", timeout=CONNECT_SECONDS, **options
                )
            except (DockerException, OSError) as error:
                tried.append(f"{endpoint} ({reason(error)})")
            else:
                client.api.timeout = 600
                return cls(client, endpoint)
        raise BuildError(
            f"a Docker Engine is needed: none answered at {', '.join(tried)}",
            hint=_GET_ONE,
            retryable=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def http(self) -> EngineHttp:
        """The engine's HTTP API, for what has no method here."""
        return self._http

    def describe(self) -> EngineInfo:
        """What the engine is."""
        with self._http.errors("describe itself"):
            seen, info = self._client.version(), self._client.info()
        parts = [str(part.get("Name", "")) for part in seen.get("Components") or ()]
        podman = any(name.startswith("Podman") for name in parts)
        number = tuple(int(part) for part in str(self._client.api.api_version).split("."))
        status = dict(entry for entry in info.get("DriverStatus") or () if len(entry) == 2)
        return EngineInfo(
            self._http.endpoint,
            str(seen.get("Version", "")),
            str(info.get("Driver", "")),
            buildkit=not podman and number >= (1, 39) and info.get("OSType") == "linux",
            podman=podman,
            containerd_store="containerd" in str(status.get("driver-type", "")),
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
        """Run Dockerfile instructions on a base and give back what is new.

        Args:
            base: The image to start from.
            steps: Instructions as ``Steps.render`` writes them, without FROM.
            context: A tar of the files that COPY and ADD find, or None.
            args: Values of build arguments. They are no secrets: they stand in the image's history.
            secrets: Values, or files that hold them, by the ID that ``RUN --mount=type=secret`` names.
            platform: The platform to build for; None is the base's.
            limits: What the build may use.
            progress: Is told of each step and each line of its output.
            deadline: When the call must end.
            head: The template that the steps stand behind.

        Raises:
            BuildError: A step failed (its command, exit code and last lines are in the message), the engine
                cannot do what the steps ask for, or a secret was left in the image.
            BuildLimit: The build used more than ``limits``.
            DeadlineExceeded: The deadline passed.
            IntegrityError: The base's blobs, or what the engine built, are not what they should be.
        """
        work = Work(steps, context, args or {}, platform, limits, progress, head)
        return build_steps(self._http, self.describe(), base, work, Secrets.read(secrets or {}), deadline)

    def load(self, image: StepsBase, tag: str, *, deadline: Deadline = NO_DEADLINE) -> str:
        """Put an image into the engine under a tag, from its manifest and blobs; gives the engine's ID of it.

        Raises:
            BuildError: The engine refused it.
            IntegrityError: A blob is not what its descriptor says.
        """
        with Watch.over(deadline, None, "loading the image") as watch:
            self._http.load(image, tag, watch)
        return str((self._http.inspect(tag) or {})["Id"])

    def load_archive(self, stream: IO[bytes]) -> tuple[str, ...]:
        """Put the images of an archive (as of ``docker save``; Engine 25 also takes OCI's) into the engine.

        Returns:
            The engine's IDs of the images.
        """
        with self._http.errors("load the archive"):
            return tuple(str(image.id) for image in self._client.images.load(stream))

    def run(
        self,
        image: str,
        command: Sequence[str],
        *,
        output: Callable[[int, bytes], None],
        mounts: Mapping[Path, str] | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
    ) -> int:
        """Run a command in a new container, which is removed afterwards.

        Args:
            image: The image's ID or name in the engine.
            command: The command and its arguments; the image's entry point stays in force.
            output: Is given 1 (standard output) or 2 (standard error), and the bytes as they come.
            mounts: Folders of the engine's machine and where they shall be seen in the container.
            env: More environment variables.
            workdir: The working directory; None is the image's.
            user: The user; None is the image's.

        Returns:
            The command's exit code.
        """
        volumes = [f"{source.absolute()}:{target}" for source, target in (mounts or {}).items()]
        with self._http.errors(f"run {image}"):
            container = self._client.containers.create(
                image,
                list(command),
                volumes=volumes,
                environment=dict(env or {}),
                working_dir=workdir,
                user=user,
            )
            try:
                with self._http.attach(str(container.id)) as pieces:
                    container.start()
                    for stream, data in pieces:
                        output(stream, data)
                return int(container.wait(timeout=None)["StatusCode"])
            finally:
                with cleaning_up():
                    container.remove(force=True, v=True)

    def prune(self) -> int:
        """Remove the bases kept in the engine and what builds that were killed left; gives how many.

        BuildKit's own cache is not touched: ``docker builder prune`` is for that.
        """
        with self._http.errors("list its images"):
            tags = [
                tag
                for repository in (BASE_REPOSITORY, BUILD_REPOSITORY)
                for image in self._client.images.list(filters={"reference": repository})
                for tag in image.tags
                if tag.rpartition(":")[0].rpartition("/")[2] == repository
            ]
        for tag in tags:
            self._http.untag(tag)
        return len(tags)


def _endpoints(host: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where an engine may be, and the TLS settings for it."""
    from docker.utils import kwargs_from_env

    settings = dict(kwargs_from_env())
    from_environment = settings.pop("base_url", None)
    if chosen := host or from_environment:
        yield str(chosen), settings
        return
    yield from _context_endpoint()
    for endpoint in usual_endpoints():
        yield endpoint, {}


def _context_endpoint() -> Iterator[tuple[str, dict[str, Any]]]:
    from docker.context import ContextAPI

    try:
        context: Any = ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT") or None)
    except Exception:  # noqa: BLE001 - docker-py raises a bare Exception for a broken context file
        return
    if context is not None and context.Host and context.Host.removeprefix("http+") not in usual_endpoints():
        yield context.Host, {"tls": context.TLSConfig} if context.TLSConfig else {}
