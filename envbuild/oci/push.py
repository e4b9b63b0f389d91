"""Blobs on their way to a registry: small ones in one request, large ones in pieces.

What a registry has of a large blob is not sent again. A piece that it accepted counts as sent, whatever its
``Range`` says: ECR's stays at the first piece (aws/containers-roadmap issue 2831), and others answer zero.
After a failure it is asked how far it came. Sources: OCI Distribution Specification 1.1 ("Pushing a blob in
chunks"); Distribution's API V2 ("Upload Progress").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from envbuild.errors import IntegrityError, RegistryError
from envbuild.oci.exchange import cancel, location_of, shows_blob
from envbuild.oci.stream import BlobBody
from envbuild.oci.transport import Trouble, failure
from envbuild.url import read_url

if TYPE_CHECKING:
    from envbuild.oci.exchange import Host, Response
    from envbuild.oci.stream import BlobSource

_OCTETS: Final = "application/octet-stream"
_LOST: Final = frozenset({404, 410, 416})
_NO_CHUNKS: Final = frozenset({400, 405, 411, 415, 501})
_RANGE: Final = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})")
_ROUNDS: Final = 2
"""How often a registry may refuse the very piece that it asks for before the blob is sent whole."""


class WholeUpload:
    """A blob that is sent in one request.

    Args:
        source: The bytes.
        what: Names the blob for messages.
    """

    def __init__(self, source: BlobSource, what: str) -> None:
        self._source = source
        self._what = what
        self._tried = False

    def step(self, host: Host) -> bool:
        """Send it, unless an earlier attempt did so and only its answer was lost; then True."""
        source = self._source
        if self._tried and shows_blob(host, source.descriptor.digest, self._what):
            return True
        self._tried = True
        _, location = _start(host, self._what)
        try:
            response, answer = _put(host, location, source, BlobBody(source))
        except IntegrityError:
            cancel(host, location)
            raise
        _require_stored(response, answer, self._what)
        return True


class ChunkedUpload:
    """A blob that is sent piece by piece, each in a request of its own that may be repeated.

    Args:
        source: The bytes.
        chunk: Bytes of a piece.
        restarts: How often it may begin anew because the registry lost what it had.
        what: Names the blob for messages.
    """

    def __init__(self, source: BlobSource, chunk: int, restarts: int, what: str) -> None:
        self._source = source
        self._chunk = chunk
        self._restarts = restarts
        self._what = what
        self._location: str | None = None
        self._offset = 0
        self._is_sure = True
        self._is_refused = False
        self._reached = 0
        self._rounds = 0
        self._whole: WholeUpload | None = None

    def step(self, host: Host) -> bool:
        """Say one more thing to the registry: begin, ask how far it came, send a piece, or end.

        Returns:
            Whether the blob is stored.

        Raises:
            IntegrityError: The content is not what the descriptor says; the upload was given up.
        """
        if self._whole is not None:
            return self._whole.step(host)
        if self._location is None:
            response, self._location = _start(host, self._what)
            least = response.headers.get("OCI-Chunk-Min-Length", "")
            self._chunk = max(self._chunk, int(least) if re.fullmatch("[0-9]{1,12}", least) else 0)
            return False
        if not self._is_sure:
            return self._ask(host, self._location)
        self._is_sure = False
        if self._offset < self._source.descriptor.size:
            self._send(host, self._location)
        elif self._end(host, self._location):
            return True
        self._is_sure = True
        return False

    def _send(self, host: Host, location: str) -> None:
        """The next piece."""
        start, size = self._offset, min(self._chunk, self._source.descriptor.size - self._offset)
        body = BlobBody(self._source, start, size)
        headers = {
            "Content-Type": _OCTETS,
            "Content-Length": str(size),
            "Content-Range": f"{start}-{start + size - 1}",
        }
        try:
            response = host.do_request(location, "PATCH", body, headers, stream=True)
        except IntegrityError:
            self._location = None
            cancel(host, location)
            raise
        answer = host.body(response)
        if response.status_code in _LOST:
            self._is_refused = True
            raise Trouble(f"{self._what}: the registry does not go on from byte {start}")
        if response.status_code in _NO_CHUNKS and not start:
            self._send_whole(host)
            return
        if response.status_code not in {200, 201, 202, 204}:
            raise failure(response.status_code, response.headers, answer, self._what)
        self._offset = start + size
        self._go_on(response, location)

    def _end(self, host: Host, location: str) -> bool:
        """Have the registry put the pieces together; False if it has others than were sent to it."""
        response, answer = _put(host, location, self._source, b"")
        if response.status_code == 400:  # every byte was hashed on its way: the registry counted wrongly
            self._send_whole(host)
            return False
        _require_stored(response, answer, self._what)
        return True

    def _ask(self, host: Host, location: str) -> bool:
        """How far the registry came; if it knows nothing of the upload, whether it has the blob."""
        response = host.do_request(location, "GET", stream=True)
        answer = host.body(response)
        if 400 <= response.status_code < 500 and response.status_code not in {401, 403, 408, 425, 429}:
            self._is_refused = False
            return self._restart(host)
        if response.status_code not in {200, 202, 204}:
            raise failure(response.status_code, response.headers, answer, self._what)
        self._go_on(response, location)
        said = _RANGE.fullmatch(response.headers.get("Range", "").strip())
        # "0-0" stands for one byte and for none, and nobody sends one byte.
        self._offset = int(said[1]) + 1 if said is not None and int(said[1]) else 0
        self._is_sure = True
        self._judge(host)
        return False

    def _judge(self, host: Host) -> None:
        """End the rounds of sending and asking in which the registry takes nothing more.

        Raises:
            Trouble: It took no byte more than the last time; it may later.
        """
        refused, self._is_refused = self._is_refused, False
        has_advanced = self._reached < self._offset <= self._source.descriptor.size
        self._rounds = 0 if has_advanced else self._rounds + 1
        self._reached = max(self._reached, self._offset)
        if self._offset > self._source.descriptor.size or (refused and self._rounds >= _ROUNDS):
            self._send_whole(host)
        elif self._rounds >= _ROUNDS:
            raise Trouble(f"{self._what}: the registry has {self._offset} bytes and takes no more")

    def _go_on(self, response: Response, location: str) -> None:
        """Take over where the registry says that the upload goes on."""
        if response.headers.get("Location"):
            location = location_of(location, response, self._what)
        self._location = location

    def _send_whole(self, host: Host) -> None:
        """Give the pieces up: the next step sends the blob in one request."""
        if self._location is not None:
            cancel(host, self._location)
        self._whole = WholeUpload(self._source, self._what)

    def _restart(self, host: Host) -> bool:
        if shows_blob(host, self._source.descriptor.digest, self._what):
            return True
        if not self._restarts:
            raise RegistryError(
                f"{self._what}: the registry lost the upload too often", hint="try again later"
            )
        self._restarts -= 1
        self._location, self._offset, self._is_sure = None, 0, True
        return False


def _start(host: Host, what: str) -> tuple[Response, str]:
    url = host.at(host.container.upload_blob_url())
    response = host.do_request(url, "POST", b"", stream=True)
    answer = host.body(response)
    if response.status_code == 404:
        raise RegistryError(
            f"{what}: there is no such repository", hint="make the repository in the registry first"
        )
    if response.status_code not in {201, 202}:
        raise failure(response.status_code, response.headers, answer, what)
    return response, location_of(url, response, what)


def _put(host: Host, location: str, source: BlobSource, body: BlobBody | bytes) -> tuple[Response, bytes]:
    """The request that ends an upload, with the bytes that were not sent before; its answer."""
    query = urlencode({"digest": str(source.descriptor.digest)})
    location += f"{'&' if read_url(location).query else '?'}{query}"
    # A body of no bytes would never be read, and so never be compared.
    data = body if len(body) or isinstance(body, bytes) else body.read()
    headers = {"Content-Type": _OCTETS, "Content-Length": str(len(body))}
    response = host.do_request(location, "PUT", data, headers, stream=True)
    return response, host.body(response)


def _require_stored(response: Response, answer: bytes, what: str) -> None:
    if response.status_code in _LOST:
        raise Trouble(f"{what}: the registry lost the upload in its middle")
    if response.status_code not in {200, 201, 204}:
        raise failure(response.status_code, response.headers, answer, what)
