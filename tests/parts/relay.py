"""A host that passes every request on to a registry, and may change what it answers."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from parts.fault_server import Asked, Call, Script

_HOP_BY_HOP: Final = frozenset({"connection", "content-length", "transfer-encoding", "date", "server"})
Answer = tuple[int, dict[str, str], bytes]
Change = Callable[["Asked", Answer], Answer]


def as_it_is(_: Asked, answer: Answer) -> Answer:
    """Change nothing."""
    return answer


def passing_on(upstream: str, change: Change = as_it_is) -> Script:
    """A script that has a registry answer.

    Args:
        upstream: The registry's host and port.
        change: Makes of a request and the registry's answer what is answered.
    """

    def script(call: Call, asked: Asked) -> None:
        connection = http.client.HTTPConnection(upstream, timeout=20)
        try:
            connection.request(asked.method, asked.path, asked.body, asked.headers)
            response = connection.getresponse()
            headers = {
                name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP
            }
            answer = response.status, headers, response.read()
        finally:
            connection.close()
        status, headers, body = change(asked, answer)
        call.answer(status, body, headers)

    return script


def forbidding(_: Asked, answer: Answer) -> Answer:
    """Answer 403 for whatever is missing, as Artifactory does for what one part of it may not be read."""
    return (403, {}, b'{"errors":[{"code":"DENIED"}]}') if answer[0] == 404 else answer
