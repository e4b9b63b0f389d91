"""Names that no resolver answers for: the deadline cuts the look-up, too, and the error is typed."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from conda_packages import Entry, Package
from envbuild.conda.fetch import fetch_package
from envbuild.deadline import Deadline
from envbuild.errors import ChannelError, DeadlineExceeded, Unavailable
from envbuild.oci.names import addresses, connect
from envbuild.oci.open import Settings
from envbuild.oci.probe import Prober
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Package((Entry("share/x", b"x"),))
CONTENT = PACKAGE.write_conda()


def fetches(deadline: Deadline) -> None:
    fetch_package(
        PACKAGE.record(CONTENT, f"http://hangs.example/c/linux-64/{PACKAGE.stem}.conda"), deadline=deadline
    ).close()


def probes(deadline: Deadline) -> None:
    with Prober(Settings()) as prober:
        prober.probe(Repository.parse("hangs.example/team/envs"), Tag("v1"), deadline)


def asks(deadline: Deadline) -> None:
    registry = RemoteRegistry(Repository.parse("hangs.example/team/envs"), deadline=deadline)
    try:
        registry.get_manifest(Tag("v1"))
    finally:
        registry.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the resolver was asked; it hangs for ``hangs.example`` until the test ends."""
    over, names, real = threading.Event(), [], socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **named: Any) -> Any:
        if host != "hangs.example":
            return real(host, *args, **named)
        names.append(host)
        over.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield names
    over.set()


@pytest.mark.parametrize("ask", [fetches, probes, asks])
def test_a_look_up_that_hangs_ends_by_the_deadline(ask: Callable[[Deadline], None], asked: list[str]) -> None:
    start = time.monotonic()
    with pytest.raises((DeadlineExceeded, ChannelError, Unavailable)) as caught:
        ask(Deadline.after(1.0))
    assert time.monotonic() - start < 2.0
    assert caught.value.retryable
    assert asked


def test_those_who_ask_again_wait_for_the_same_look_up(asked: list[str]) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"hangs\.example was not looked up in time"):
            addresses("hangs.example", 4443, 0.05)
    assert asked == ["hangs.example"]


def test_a_name_that_does_not_exist() -> None:
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            addresses("no-such-host.invalid", 443, 30)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_every_address_of_a_name_is_tried(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with connect((host, port), 5.0, options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]) as stream:
            assert stream.getpeername() == ("127.0.0.1", port)
            assert stream.gettimeout() == 5.0
    with pytest.raises(ConnectionRefusedError):
        connect((host, port), 5.0)
