"""Connections by name: the look-up of the name is bounded, too, which the system's own is not."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


class _LookUp:
    """One question to the system's resolver, in a thread that nobody has to wait for."""

    def __init__(self, host: str, port: int) -> None:
        self.done = threading.Event()
        self.found: list[str] = []
        self.error: OSError | UnicodeError | None = None
        self._asked = host, port
        threading.Thread(target=self._run, name=f"look-up of {host}", daemon=True).start()

    def _run(self) -> None:
        host, port = self._asked
        try:
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
            self.found = list(dict.fromkeys(str(address[0]) for *_, address in found))
        except (OSError, UnicodeError) as error:
            self.error = error
        finally:
            self.done.set()


_running: Final[dict[tuple[int, str, int], _LookUp]] = {}
"""Look-ups under way: who asks again waits for the same, so that those that hang are no more than hosts.

A fork takes no threads along, so its own look-ups are others.
"""
_guard: Final = threading.Lock()


def addresses(host: str, port: int, seconds: float | None) -> list[str]:
    """The addresses of a host, in the system's order.

    Raises:
        TimeoutError: The resolver gave no answer in that time.
        OSError: There is no such host, or no resolver.
    """
    if _is_address(host):
        return [host]
    asked = os.getpid(), host, port
    with _guard:
        look_up = _running.get(asked)
        if look_up is None or look_up.done.is_set():
            look_up = _running[asked] = _LookUp(host, port)
    if not look_up.done.wait(seconds):
        raise TimeoutError(f"the name {host} was not looked up in time")
    with _guard:
        if _running.get(asked) is look_up:
            del _running[asked]
    if look_up.error is not None:
        raise look_up.error
    return look_up.found


def connect(
    address: tuple[str, int],
    timeout: float | None = None,
    source_address: tuple[str, int] | None = None,
    options: Iterable[tuple[int, int, int | bytes]] = (),
) -> socket.socket:
    """As :func:`socket.create_connection`, the look-up within the time limit.

    Raises:
        TimeoutError: No address answered in time, or the resolver did not.
        OSError: There is no way to the host.
    """
    host, port = address
    end = None if timeout is None else time.monotonic() + timeout
    failed: OSError = OSError(f"{host} has no address")
    for each in addresses(host, port, timeout):
        left = None if end is None else max(end - time.monotonic(), 0.001)
        try:
            stream = socket.create_connection((each, port), left, source_address)
        except OSError as error:
            failed = error
            continue
        if timeout is not None:  # for connecting some of it is gone; what follows has all of it
            stream.settimeout(timeout)
        for option in options:
            stream.setsockopt(*option)
        return stream
    raise failed


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, UnicodeError):
            continue
        return True
    return False
