"""BuildKit's own daemon, which no Debian package has: the one on the PATH, or that a variable names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from parts.programs import program

if TYPE_CHECKING:
    from parts.docker_engine import DockerEngine

VARIABLE = "ENVBUILD_TEST_BUILDKITD"
_START_SECONDS = 60


def buildkitd() -> str | None:
    """Where the program is, or None."""
    return os.environ.get(VARIABLE) or shutil.which("buildkitd")


class BuildKit:
    """A BuildKit on a socket in a folder. It needs root, and ``runc``.

    Attributes:
        endpoint: Its address, as buildx's remote driver takes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.endpoint = f"unix://{folder / 'buildkitd.sock'}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until its socket is there."""
        found = buildkitd()
        assert found is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        options = ["--oci-worker=true", "--containerd-worker=false", "--oci-worker-net=host"]
        options += [f"--oci-worker-binary={program('runc', 'runc')}", f"--addr={self.endpoint}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [found, f"--root={self._folder / 'root'}", *options], stdout=log, stderr=log
            )
        limit = time.monotonic() + _START_SECONDS
        while not (self._folder / "buildkitd.sock").exists():
            ended = self._process.poll() is not None or time.monotonic() > limit
            assert not ended, (self._folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)


class BoxedBuildKit:
    """A BuildKit in a container of an engine, where buildx's driver ``docker-container`` looks for it.

    buildx would start it with all privileges there are, which a machine for tests may not have; it needs few.

    Args:
        engine: The engine.
        builder: The name of the builder that it is for.
    """

    def __init__(self, engine: DockerEngine, builder: str) -> None:
        self._engine = engine
        self._container = f"buildx_buildkit_{builder}0"
        self._image = f"envbuild-test-buildkit:{builder}"

    def start(self, root: Path) -> None:
        """Start it from an archive of a root file system, and wait until it answers."""
        entry = 'ENTRYPOINT ["/usr/bin/buildkitd", "--oci-worker-net=host"]'
        self._engine.docker("import", "--change", entry, str(root), self._image)
        options = ["--detach", "--name", self._container, "--network=host", "--tmpfs=/tmp"]
        options += ["--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN"]
        options += ["--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw", "--volume=/var/lib/buildkit"]
        options += [f"--security-opt={each}=unconfined" for each in ("seccomp", "apparmor", "systempaths")]
        self._engine.docker("run", *options, self._image)
        limit = time.monotonic() + _START_SECONDS
        while self._engine.docker(
            "exec", self._container, "buildctl", "debug", "workers", check=False
        ).returncode:
            assert time.monotonic() < limit, self._engine.docker("logs", self._container).stderr
            time.sleep(0.2)

    def stop(self) -> None:
        """End and delete it."""
        self._engine.docker("rm", "--force", "--volumes", self._container, check=False)
        self._engine.docker("image", "rm", self._image, check=False)
