"""Podman's service of our own, as root: the same API as a Docker Engine's, from Debian's ``podman``."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

from parts.docker_engine import DockerEngine
from parts.programs import program

_START_SECONDS = 60
_STOP_SECONDS = 30
_PROCESSES = 32_768


class PodmanEngine(DockerEngine):
    """Podman's service on a socket in a folder, with images and settings of its own.

    Containers are on the host's network: Podman's own needs programs that a minimal machine lacks.
    """

    @classmethod
    def in_folder(cls, folder: Path) -> PodmanEngine:
        """The service that belongs to a folder, whether it runs or not."""
        return cls(f"unix://{folder / 'podman.sock'}", folder)

    @property
    def settings(self) -> dict[str, str]:
        """What the ``podman`` command needs in its environment to use the same images."""
        folder = self._own_folder()
        return {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "REGISTRY_AUTH_FILE": str(folder / "auth.json"),
        }

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the ``podman`` command on the images of this service."""
        return subprocess.run(
            [program("podman", "podman"), *arguments],
            check=check,
            capture_output=True,
            text=True,
            env={**os.environ, **self.settings},
        )

    def start(self) -> None:
        """Start the service and wait until it answers."""
        folder = self._own_folder()
        folder.mkdir(parents=True, exist_ok=True)
        self._configure(folder)
        # Its standard input is empty and it has a session of its own: it outlives the worker that starts it.
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [program("podman", "podman"), "system", "service", "--time=0", self.host],
                env={**os.environ, **self.settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.returncode = 0  # nobody waits for it here
        (folder / "pid").write_text(str(process.pid))
        limit = time.monotonic() + _START_SECONDS
        while not self.answers():
            if time.monotonic() > limit:
                self.stop()
                tail = (folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"podman did not start (it needs root):\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the service, and delete its folder."""
        folder = self._own_folder()
        if (process := self._process()) is not None:
            os.kill(process, signal.SIGTERM)
            limit = time.monotonic() + _STOP_SECONDS
            while self._process() is not None and time.monotonic() < limit:
                time.sleep(0.05)
        for mounted in sorted(_mounts_under(folder), reverse=True):
            subprocess.run([program("umount", "mount"), "--lazy", mounted], check=False)
        shutil.rmtree(folder, ignore_errors=True)

    def _configure(self, folder: Path) -> None:
        # Podman asks for more than some machines give to anybody.
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        limits = f'["nofile={files}:{files}", "nproc={_PROCESSES}:{_PROCESSES}"]'
        (folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = {limits}\nnetns = "host"\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
        )
        (folder / "auth.json").write_text("{}")
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n'
            '[storage.options.overlay]\nskip_mount_home = "true"\n'
        )

    def _process(self) -> int | None:
        """The process id of our service, or None if it does not run."""
        try:
            process = int((self._own_folder() / "pid").read_text())
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return process if self.host.encode() in command else None


def _mounts_under(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [place for line in lines if (place := line.split()[4]).startswith(f"{folder}/")]
