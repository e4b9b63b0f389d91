"""What people read when a registry cannot be reached."""

from __future__ import annotations

import socket

import pytest

from envbuild.digest import Digest
from envbuild.errors import Unavailable
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository


def test_a_refused_connection_is_told_in_words() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        registry = RemoteRegistry(Repository.parse(f"{host}/envs"))
        with pytest.raises(Unavailable) as caught:
            registry.get_manifest(Digest("a" * 64))
        registry.close()
    assert str(caught.value) == f"{host} could not be asked: [Errno 111] Connection refused"
