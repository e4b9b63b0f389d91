"""Stores that pull images: Docker's classic one, Podman's, containerd's."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import ClassVar, Protocol

from parts.docker_engine import DockerEngine
from parts.podman_engine import PodmanEngine
from parts.programs import program

_START_SECONDS = 60
_STOP_SECONDS = 30


class Puller(Protocol):
    """A store of images.

    Attributes:
        title: The command, and the store it fills.
        zstd: Whether it reads layers that zstd compressed.
    """

    title: ClassVar[str]
    zstd: ClassVar[bool]

    def start(self) -> None:
        """Start what it needs."""

    def stop(self) -> None:
        """Stop it and delete all it has."""

    def forget(self, reference: str) -> None:
        """Delete an image, and whatever no other image needs."""

    def pull(self, reference: str) -> None:
        """Pull an image from a registry that speaks plain HTTP."""


class Docker:
    """Docker Engine's classic store: layers are named by all that is below them."""

    title: ClassVar[str] = "`docker pull` (classic store, overlay2)"
    zstd: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self.engine = DockerEngine.in_folder(folder)

    def start(self) -> None:
        """Start the engine."""
        self.engine.start()

    def stop(self) -> None:
        """Stop the engine."""
        self.engine.stop()

    def forget(self, reference: str) -> None:
        """Delete an image."""
        self.engine.docker("image", "rm", reference)

    def pull(self, reference: str) -> None:
        """Pull an image."""
        self.engine.docker("pull", "--quiet", reference)


class Podman:
    """containers/storage: no service is needed to pull."""

    title: ClassVar[str] = "`podman pull` (containers/storage, overlay)"
    zstd: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.engine = PodmanEngine.in_folder(folder)

    def start(self) -> None:
        """Start the service, and see that it does not copy whole folders for each layer."""
        self.engine.start()
        driver = self.engine.podman("info", "--format", "{{.Store.GraphDriverName}}").stdout.strip()
        if driver != "overlay":
            raise SystemExit(f"Podman's storage driver is {driver}, expected overlay")

    def stop(self) -> None:
        """Stop the service."""
        self.engine.stop()

    def forget(self, reference: str) -> None:
        """Delete an image."""
        self.engine.podman("rmi", reference)

    def pull(self, reference: str) -> None:
        """Pull an image."""
        self.engine.podman("pull", "--quiet", "--tls-verify=false", reference)


class Containerd:
    """What Kubernetes nodes use: contents by digest, snapshots by all that is below them."""

    title: ClassVar[str] = "`ctr images pull` (containerd, overlayfs)"
    zstd: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a daemon of our own and wait until it answers."""
        self.folder.mkdir(parents=True)
        (self.folder / "config.toml").write_text(
            f'version = 2\nroot = "{self.folder}/root"\nstate = "{self.folder}/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self._socket}"\n'
        )
        command = [program("containerd", "containerd"), "--config", str(self.folder / "config.toml")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        limit = time.monotonic() + _START_SECONDS
        while self._ctr("version", check=False).returncode:
            if time.monotonic() > limit or self._process.poll() is not None:
                tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise SystemExit(f"containerd did not start (it needs root):\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the daemon; its folder is the caller's to delete."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_STOP_SECONDS)

    def forget(self, reference: str) -> None:
        """Delete an image, and wait until its contents and snapshots are collected."""
        self._ctr("images", "remove", "--sync", reference)

    def pull(self, reference: str) -> None:
        """Pull an image, for this machine's platform."""
        self._ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference)

    @property
    def _socket(self) -> Path:
        return self.folder / "containerd.sock"

    def _ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [program("ctr", "containerd"), "--address", str(self._socket), "--namespace", "bench"]
        return subprocess.run([*command, *arguments], check=check, capture_output=True, text=True)
