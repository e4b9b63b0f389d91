"""A registry server as a process on a free loopback port, whichever program it is."""

from __future__ import annotations

import abc
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from envbuild.reference import Repository

_START_SECONDS = 20


class ServerProcess(abc.ABC):
    """One server; its data, if it keeps any, is in a folder of its own.

    Args:
        folder: Where logs are kept, and what the program needs.
    """

    scheme = "http"
    name = "127.0.0.1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def host(self) -> str:
        """The server's name with its port."""
        return f"{self.name}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in front of ``/v2/``."""
        return f"{self.scheme}://{self.host}"

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
        return self._requests_in(log.read_text(errors="replace").splitlines())

    @property
    def cpu_seconds(self) -> float:
        """The processor time that the server took so far; 0 if it does not run."""
        if self._process is None:
            return 0.0
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing if it runs."""
        if self._process is not None:
            return
        with (
            (self.folder / "access.log").open("ab") as out,
            (self.folder / "errors.log").open("ab") as errors,
        ):
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=out, stderr=errors
            )
        limit = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.stop()
                raise RuntimeError(f"{self._command()[0]} did not start: {self.folder / 'errors.log'}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server; does nothing if it does not run."""
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
        """Whether the server says what it should to who shows no credentials."""
        untrusting = ssl.create_default_context()
        untrusting.check_hostname, untrusting.verify_mode = False, ssl.CERT_NONE
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=untrusting)
        )
        try:
            with opener.open(f"{self.url}/v2/", timeout=5) as answer:
                status = int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            status = error.code
        except OSError:
            return False
        return status == self._welcome()

    def _welcome(self) -> int:
        return 200

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """What is run."""

    @abc.abstractmethod
    def _requests_in(self, lines: list[str]) -> list[str]:
        """The requests that lines of the log tell of."""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
