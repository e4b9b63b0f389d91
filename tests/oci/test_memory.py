"""Memory stays flat, however large a blob is: measured from outside, in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from parts.registry_server import RegistryServer

SCRIPT = """
import hashlib, io, json, resource, sys
from envbuild.digest import Descriptor, Digest
from envbuild.oci.copy import copy_image
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, Manifest
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository

source, target, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
PIECE = bytes(1 << 20)

class Zeros(io.RawIOBase):
    def __init__(self, size):
        self.left = size
    def readable(self):
        return True
    def readinto(self, buffer):
        count = min(len(buffer), self.left, len(PIECE))
        buffer[:count] = PIECE[:count]
        self.left -= count
        return count

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

def blob(size):
    hashed = hashlib.sha256()
    for _ in range(size >> 20):
        hashed.update(PIECE)
    return Descriptor(OCI_LAYER_GZIP, Digest(hashed.hexdigest()), size)

def move(size):
    first, second = (RemoteRegistry(Repository.parse(each)) for each in (source, target))
    layer, config = blob(size), Descriptor.of(b"{}", OCI_CONFIG)
    assert first.put_blob(layer, lambda: Zeros(size))
    first.put_blob(config, lambda: io.BytesIO(b"{}"))
    manifest = Manifest.build(config, (layer,), {})
    first.put_manifest(manifest)
    with first.open_blob(layer) as stream:
        seen = 0
        while content := stream.read(1 << 20):
            seen += len(content)
    assert seen == size
    assert copy_image(first, second, manifest).bytes_copied >= size
    first.close()
    second.close()

move(1 << 20)
idle = peak()
move(size)
print(json.dumps({"idle": idle, "peak": peak()}))
"""


def rise(first: RegistryServer, second: RegistryServer, size: int) -> int:
    """Bytes by which the memory rises above that of a small transfer: up, down, and from host to host."""
    command = [sys.executable, "-c", SCRIPT, str(first.repository()), str(second.repository()), str(size)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print(f"{size >> 20} MiB: {seen['idle'] >> 20} MiB idle, {seen['peak'] >> 20} MiB at most")  # noqa: T201
    risen: int = seen["peak"] - seen["idle"]
    return risen


def test_memory_of_a_blob_of_100_mib(registry: RegistryServer, second_registry: RegistryServer) -> None:
    assert rise(registry, second_registry, 100 << 20) < 20 << 20


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_memory_of_a_blob_of_4_gib(registry: RegistryServer, second_registry: RegistryServer) -> None:
    assert rise(registry, second_registry, 4 << 30) < 100_000_000
