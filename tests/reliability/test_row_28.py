"""Row 28: tokens that run out many times during one upload. It succeeds; what is stored stays."""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from random import Random
from typing import IO, TYPE_CHECKING, Any

import pytest

from envbuild.deadline import Deadline
from envbuild.digest import Descriptor, Digest
from envbuild.oci.manifest import OCI_LAYER_GZIP
from envbuild.oci.open import Settings
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository
from parts.fault_proxy import Case, proxying
from parts.toxic import login

if TYPE_CHECKING:
    from pathlib import Path

    from parts.registry_server import RegistryServer

SIZE, PIECE = 120_000, 10_000


class Slow(io.RawIOBase):
    """Bytes that take their time."""

    def __init__(self, content: bytes, seconds: float) -> None:
        super().__init__()
        self._content = io.BytesIO(content)
        self._pause = seconds / len(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        content = self._content.read(min(len(buffer), 1000))
        buffer[: len(content)] = content
        time.sleep(self._pause * len(content))
        return len(content)


def upload(
    server: RegistryServer, folder: Path, patch: pytest.MonkeyPatch, *, token: float, seconds: float
) -> None:
    """Send two blobs so slowly that tokens run out meanwhile."""
    with proxying(server.port, "127.0.0.1:9") as proxy:
        login(folder, patch, proxy)
        name = f"long-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
        case = proxy.add(name, Case(token_seconds=token))
        settings = Settings(read_timeout=20, chunk=PIECE)
        target = RemoteRegistry(Repository.parse(f"{proxy.host}/{name}/envs"), settings=settings)
        target = target.by(Deadline.after(3 * seconds + 30))
        blobs = []
        for number in range(2):
            content = Random(number).randbytes(SIZE)
            blob = Descriptor(OCI_LAYER_GZIP, Digest.of(content), SIZE)

            def opened(content: bytes = content) -> IO[bytes]:
                return io.BufferedReader(Slow(content, seconds / 2), 1000)

            assert target.put_blob(blob, opened) is True
            blobs.append(blob)
        for blob in blobs:
            assert target.put_blob(blob, io.BytesIO) is False
        target.close()
    done = Counter(operation for operation, _, status in case.answers if status in {201, 202})
    assert done == {"start upload": 2, "patch upload": 2 * SIZE // PIECE, "put upload": 2}
    tokens = sum(operation == "auth" for operation, _, _ in case.answers)
    print(f"{tokens} tokens in {seconds} s, each good for {token} s")  # noqa: T201
    assert tokens >= seconds / token


def test_tokens_run_out_during_an_upload(
    registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(registry, tmp_path, monkeypatch, token=0.5, seconds=2.0)


@pytest.mark.nightly
def test_tokens_run_out_during_a_long_upload(
    registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(registry, tmp_path, monkeypatch, token=5.0, seconds=60.0)
