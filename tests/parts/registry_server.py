"""A real registry server: Debian's ``docker-registry`` (CNCF Distribution) on a free loopback port."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from envbuild.reference import Repository
from parts.programs import program

if TYPE_CHECKING:
    from pathlib import Path

USERNAME: Final = "alice"
PASSWORD: Final = "correct horse"
_PASSWORD_HASH: Final = "$2b$04$6EHKDzuupQlRdfjBwS6YAuh414xhmez6FPFohkuIp4n84DheqhBpy"
"""bcrypt of :data:`PASSWORD` at the lowest cost: ``htpasswd -nbB -C 4 alice 'correct horse'``."""


class RegistryServer:
    """One server with deletion enabled, its data in a folder of its own.

    Args:
        folder: Where configuration, data and log are kept.
        authenticated: Whether to ask for :data:`USERNAME` and :data:`PASSWORD`.
    """

    def __init__(self, folder: Path, *, authenticated: bool = False) -> None:
        self.folder = folder
        self.authenticated = authenticated
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "htpasswd").write_text(f"{USERNAME}:{_PASSWORD_HASH}\n")
        (folder / "config.yml").write_text(json.dumps(self._configuration()))  # JSON is YAML

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self.port}"

    def repository(self, name: str = "envs") -> Repository:
        """A repository that no other test uses."""
        return Repository.parse(f"{self.host}/{name}-{uuid.uuid4().hex[:12]}")

    @property
    def requests(self) -> list[str]:
        """The requests answered so far, each as ``METHOD PATH STATUS``."""
        log = self.folder / "access.log"
        size = -1
        while size != log.stat().st_size:  # a line is written after its answer
            size = log.stat().st_size
            time.sleep(0.1)
        lines = log.read_text(errors="replace").splitlines()
        parts = [line.split('"') for line in lines if ' HTTP/1.1" ' in line]
        return [
            f"{part[1].removesuffix(' HTTP/1.1')} {part[2].split()[0]}" for part in parts if len(part) > 2
        ]

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing if it runs."""
        if self._process is not None:
            return
        command = [program("docker-registry", "docker-registry"), "serve", str(self.folder / "config.yml")]
        with (
            (self.folder / "access.log").open("ab") as out,
            (self.folder / "errors.log").open("ab") as errors,
        ):
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
        limit = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.stop()
                raise RuntimeError(f"docker-registry did not start: {self.folder / 'errors.log'}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server, data kept; does nothing if it does not run."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == (401 if self.authenticated else 200)
        except OSError:
            return False
        finally:
            connection.close()

    def _configuration(self) -> dict[str, Any]:
        configuration: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "data")},
                "delete": {"enabled": True},
            },
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "of no use"},
        }
        if self.authenticated:
            configuration["auth"] = {
                "htpasswd": {"realm": "envbuild tests", "path": str(self.folder / "htpasswd")}
            }
        return configuration


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
