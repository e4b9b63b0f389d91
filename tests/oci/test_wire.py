"""What people read when a registry cannot be reached."""

from __future__ import annotations

import socket
import ssl

import pytest
import urllib3

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import Unavailable
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.transport import Settings, Trouble
from envbuild.oci.wire import translated
from envbuild.reference import Repository


def test_a_refused_connection_is_told_in_words() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        told = []
        for settings in (Settings(retries=0), Settings(patience=1.0)):
            registry = RemoteRegistry(Repository.parse(f"{host}/envs"), settings=settings)
            with pytest.raises(Unavailable) as caught:
                registry.get_manifest(Digest("a" * 64))
            registry.close()
            told.append(str(caught.value))
    assert told == [
        f"{host} could not be asked: [Errno 111] Connection refused",
        f"{host} has been in trouble for 1 s: [Errno 111] Connection refused",
    ]


@pytest.mark.parametrize(
    ("reason", "retryable"),
    [
        (ssl.SSLError("bad record mac"), True),
        (ssl.SSLCertVerificationError("self-signed certificate"), False),
    ],
)
def test_garbled_bytes_may_pass_and_a_certificate_that_is_not_trusted_does_not(
    reason: ssl.SSLError, retryable: bool
) -> None:
    pool = urllib3.HTTPSConnectionPool("registry.example.com")
    error = urllib3.exceptions.MaxRetryError(pool, "/v2/", urllib3.exceptions.SSLError(reason))
    for each in (error, reason):
        with pytest.raises(Trouble, match=str(reason.args[0])) as caught, translated("a.host", NO_DEADLINE):
            raise each
        assert caught.value.retryable is retryable
    pool.close()
