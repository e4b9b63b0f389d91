"""BuildKit's own daemon, which no Debian package has: the one on the PATH, or that a variable names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from parts.programs import program

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
