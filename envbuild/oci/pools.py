"""urllib3's connections as :mod:`envbuild.oci.remote` uses them: every wait bounded."""

from __future__ import annotations

import socket
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from envbuild.oci.client import timed_response
from envbuild.oci.names import connect
from envbuild.oci.wire import CURRENT


def _bounded(connection: Any) -> None:
    """Waits for the answer end by the deadline of the thread's call."""
    if CURRENT.settings is not None and CURRENT.deadline is not None:
        name = (
            connection.host if connection.port in {None, 80, 443} else f"{connection.host}:{connection.port}"
        )
        connection.response_class = timed_response(CURRENT.settings, CURRENT.deadline, name)


def _patient(connection: Any) -> None:
    """Sending may take as long as reading: the time for connecting is over once the connection stands."""
    if CURRENT.settings is not None and CURRENT.deadline is not None and connection.sock is not None:
        connection.sock.settimeout(CURRENT.settings.read_within(CURRENT.deadline))


class _Plain(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        """As urllib3 has it, the look-up of the name within the time limit."""
        limit = self.timeout if isinstance(self.timeout, int | float) else None
        try:
            return connect((self._dns_host, self.port), limit, self.source_address, self.socket_options or ())
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"connecting to {self.host} took too long: {error}") from error
        except OSError as error:
            raise NewConnectionError(self, f"there is no connection to {self.host}: {error}") from error

    def connect(self) -> None:
        super().connect()
        _patient(self)

    def getresponse(self) -> Any:
        _bounded(self)
        return super().getresponse()


class _Secure(_Plain, HTTPSConnection):
    """The same with TLS."""


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


POOLS: Final = {"http": _PlainPool, "https": _SecurePool}
"""For ``PoolManager.pool_classes_by_scheme``."""
