"""The engine's HTTP API where docker-py has no call of its own for it: streams in, streams out."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from envbuild.build.archive import image_chunks
from envbuild.build.watch import watched
from envbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envbuild.build.steps_image import StepsBase
    from envbuild.build.watch import Watch

CONNECT_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class EngineHttp:
    """A connection to an engine.

    Attributes:
        session: docker-py's API client, which is a ``requests`` session.
        endpoint: The engine's address.
        failures: What the session raises.
    """

    session: Any
    endpoint: str = field(repr=False)
    failures: tuple[type[Exception], ...]

    @contextlib.contextmanager
    def errors(self, doing: str, watch: Watch | None = None) -> Iterator[None]:
        """Whatever the session raises as errors of ours."""
        try:
            yield
        except self.failures as error:
            if watch is not None:
                watch.check()
            raise BuildError(
                f"the Docker Engine could not {doing}: {reason(error)}", retryable=True
            ) from error

    @contextlib.contextmanager
    def send(
        self, path: str, parameters: Mapping[str, str], chunks: Iterator[bytes], watch: Watch
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """Send a tar and give the JSON objects of the answer as they come."""
        response = self.session.post(
            self._url(path),
            params=dict(parameters),
            data=watch.each(chunks),
            headers={"Content-Type": "application/x-tar"},
            stream=True,
            timeout=watch.timeout(CONNECT_SECONDS),
        )
        with contextlib.closing(response):
            _check(response)
            watch.on_expiry(response.raw.shutdown)  # the reader sees the end of the stream
            yield _json_lines(response)

    def load(self, image: StepsBase, tag: str, watch: Watch) -> None:
        """Put an image into the engine under a tag."""
        chunks = image_chunks(image.config, image.manifest.layers, image.open_blob, tag)
        with (
            self.errors("load the image", watch),
            self.send("/images/load", {"quiet": "1"}, chunks, watch) as events,
        ):
            for event in events:
                if "error" in event:
                    raise BuildError(f"the engine could not load the image: {event['error']}")

    @contextlib.contextmanager
    def save(self, tag: str, watch: Watch) -> Iterator[IO[bytes]]:
        """An image's archive, as ``docker save`` gives it."""
        with self.errors("give back what it built", watch):
            response = self.session.get(
                self._url(f"/images/{tag}/get"), stream=True, timeout=watch.timeout(CONNECT_SECONDS)
            )
            with contextlib.closing(response):
                _check(response)
                watch.on_expiry(response.raw.shutdown)
                yield watched(response.raw, watch)

    @contextlib.contextmanager
    def attach(self, container: str) -> Iterator[Iterator[tuple[int, bytes]]]:
        """What a container without a terminal writes, from now on: 1 or 2, and the bytes."""
        response = self.session.post(
            self._url(f"/containers/{container}/attach"),
            params={"stream": 1, "stdout": 1, "stderr": 1},
            stream=True,
            timeout=(CONNECT_SECONDS, None),
        )
        with contextlib.closing(response):
            _check(response)
            yield _frames(response.raw)

    def inspect(self, tag: str) -> dict[str, Any] | None:
        """What the engine knows of an image, or None if it knows none of that name."""
        with self.errors(f"look for {tag}"):
            response = self.session.get(self._url(f"/images/{tag}/json"), timeout=CONNECT_SECONDS)
            if response.status_code == 404:
                return None
            _check(response)
            seen: dict[str, Any] = response.json()
            return seen

    def untag(self, tag: str) -> None:
        """Take a name from an image, and with its last name the image; one that is not there is all right."""
        with contextlib.suppress(*self.failures):  # prune() finds what could not be removed now
            knock(self.endpoint)
            self.session.delete(self._url(f"/images/{tag}"), timeout=60)

    def cancel_build(self, build_id: str) -> None:
        """Have BuildKit stop a build; one that has ended, or is not BuildKit's, is all right."""
        with contextlib.suppress(*self.failures):
            knock(self.endpoint)
            self.session.post(self._url("/build/cancel"), params={"id": build_id}, timeout=CONNECT_SECONDS)

    def _url(self, path: str) -> str:
        return f"{self.session.base_url}/v{self.session.api_version}{path}"


def _json_lines(response: Any) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines(chunk_size=None):
        if line.strip():
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _frames(stream: Any) -> Iterator[tuple[int, bytes]]:
    """The engine's framing of two streams in one: the stream's number, three zeros, the length, the bytes."""
    while len(header := stream.read(8)) == 8:
        number, length = struct.unpack(">BxxxL", header)
        if length:
            yield number, stream.read(length)


def knock(endpoint: str) -> None:
    """Connect to a socket and hang up; docker-py leaves sockets open that did not connect.

    Raises:
        OSError: Nobody listens there.
    """
    scheme, _, path = endpoint.removeprefix("http+").partition("://")
    if scheme == "unix":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(CONNECT_SECONDS)
            probe.connect(path)


def _check(response: Any) -> None:
    if response.ok:
        return
    try:
        message = response.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason
    raise BuildError(f"the Docker Engine refused: {message}", retryable=response.status_code >= 500)


def reason(error: BaseException) -> str:
    """The innermost cause that says something, in one line."""
    for cause in (error.__cause__, error.__context__, *error.args):
        if isinstance(cause, OSError) or (cause in error.args and isinstance(cause, BaseException)):
            return reason(cause)
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())
