"""A real Docker Engine of our own, shared by all workers of one test session.

A second engine beside the machine's own gets a bridge of its own: two engines on ``docker0`` would give the
same addresses to different containers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from parts.programs import program

if TYPE_CHECKING:
    from collections.abc import Mapping

_START_SECONDS = 60
_STOP_SECONDS = 30


class DockerEngine:
    """An engine that listens on a socket in a folder, or one that runs already.

    Attributes:
        host: Its address, as in ``DOCKER_HOST``.
    """

    def __init__(self, host: str, folder: Path | None = None) -> None:
        self.host = host
        self._folder = folder

    @classmethod
    def in_folder(cls, folder: Path) -> DockerEngine:
        """The engine that belongs to a folder, whether it runs or not."""
        return cls(f"unix://{folder / 'docker.sock'}", folder)

    @classmethod
    def given(cls, environment: Mapping[str, str] = os.environ) -> DockerEngine | None:
        """The engine that ``DOCKER_HOST`` names, if it answers on a unix socket."""
        host = environment.get("DOCKER_HOST", "")
        engine = cls(host)
        return engine if host.startswith("unix://") and engine.answers() else None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this engine."""
        return {"DOCKER_HOST": self.host}

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the ``docker`` command of Debian against this engine."""
        return subprocess.run(
            [program("docker", "docker.io"), *arguments],
            check=check,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
        )

    def answers(self) -> bool:
        """Whether the engine answers."""
        import http.client
        import socket

        connection = http.client.HTTPConnection("localhost", timeout=5)
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(5)
            connection.sock.connect(unquote(urlsplit(self.host).path))
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def start(self) -> None:
        """Start the engine and wait until it answers."""
        folder = self._own_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # The engine outlives the worker that starts it: the session ends it.
        command = [program("setsid", "util-linux"), "--fork", program("dockerd", "docker.io")]
        command += [
            "--host",
            self.host,
            "--data-root",
            str(folder / "data"),
            "--exec-root",
            str(folder / "exec"),
        ]
        command += ["--pidfile", str(folder / "pid"), *self._bridge(folder)]
        with (folder / "log").open("ab") as log:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        limit = time.monotonic() + _START_SECONDS
        while not self.answers():
            if time.monotonic() > limit:
                self.stop()
                tail = (folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"dockerd did not start (it needs root):\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the engine if it is ours, and delete its folder."""
        folder = self._own_folder()
        if (process := self._process()) is not None:
            os.kill(process, signal.SIGTERM)
            limit = time.monotonic() + _STOP_SECONDS
            while self._process() is not None and time.monotonic() < limit:
                time.sleep(0.05)
        if (folder / "bridge").exists():
            bridge = (folder / "bridge").read_text()
            subprocess.run([program("ip", "iproute2"), "link", "delete", bridge], check=False)
        if self._process() is None:
            # An engine that is ended while it works may leave what it mounted, and a mount cannot be deleted.
            for line in reversed(Path("/proc/mounts").read_text().splitlines()):
                if (place := line.split()[1]).startswith(f"{folder}/"):
                    subprocess.run([program("umount", "mount"), "--lazy", place], check=False)
            shutil.rmtree(folder, ignore_errors=True)

    def _own_folder(self) -> Path:
        if self._folder is None:
            raise RuntimeError(f"{self.host} was not started by the tests")
        return self._folder

    def _process(self) -> int | None:
        """The process id of our dockerd, or None if it does not run."""
        folder = self._own_folder()
        try:
            process = int((folder / "pid").read_text())
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return process if str(folder / "data").encode() in command else None

    def _bridge(self, folder: Path) -> list[str]:
        if not Path("/sys/class/net/docker0").exists():
            return []
        ip, number = program("ip", "iproute2"), zlib.crc32(str(folder).encode()) % 65536
        name = f"envb{number}"
        subprocess.run([ip, "link", "add", name, "type", "bridge"], check=True)
        (folder / "bridge").write_text(name)
        address = f"10.{100 + number // 256 % 100}.{number % 256}.1/24"
        subprocess.run([ip, "address", "add", address, "dev", name], check=True)
        subprocess.run([ip, "link", "set", name, "up"], check=True)
        return ["--bridge", name]
