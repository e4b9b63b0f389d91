"""Blobs on their way: bodies that can be sent again, and streams that are taken up where they broke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from envbuild.digest import VerifyingReader
from envbuild.errors import StorageError
from envbuild.oci.transport import Trouble
from envbuild.oci.wire import FAILURES, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.oci.registry import BlobOpener
    from envbuild.oci.transport import Settings

_CHUNK: Final = 1 << 17


class BlobBody:
    """A request's body of known length, hashed while it is sent.

    Args:
        content: Opens the bytes; called again by :meth:`rewind`.
        descriptor: What they must be.
        deadline: When sending must end.
        what: Names the blob for messages.
    """

    def __init__(self, content: BlobOpener, descriptor: Descriptor, deadline: Deadline, what: str) -> None:
        self._content = content
        self._descriptor = descriptor
        self._deadline = deadline
        self._what = what
        self._stream: VerifyingReader | None = None

    def __len__(self) -> int:
        return self._descriptor.size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_CHUNK), b"")

    def read(self, size: int = _CHUNK) -> bytes:
        """The next bytes; the last ones only after the digest was compared.

        Raises:
            IntegrityError: The bytes are not the descriptor's.
            StorageError: They cannot be read.
        """
        self._deadline.check(f"sending {self._what}")
        try:
            if self._stream is None:
                self._stream = VerifyingReader(self._content(), self._descriptor, self._what)
            return self._stream.read(size) or b""
        except OSError as error:  # else it would be taken for the network's fault
            raise StorageError(f"{self._what} cannot be read: {error}") from error

    def rewind(self) -> None:
        """Begin again at the first byte."""
        self.close()
        self._stream = None

    def close(self) -> None:
        """Close the bytes' source."""
        if self._stream is not None:
            self._stream.close()


class BlobStream:
    """A blob's bytes as a registry sends them. A connection that breaks is made again from the next byte on.

    Args:
        opened: Asks for the blob from a byte on; gives a response of requests.
        descriptor: What the bytes should be; they are compared elsewhere.
        settings: How often to try again without one more byte.
        deadline: When reading must end.
        what: Names the blob for messages.
    """

    def __init__(
        self,
        opened: Callable[[int], Any],
        descriptor: Descriptor,
        settings: Settings,
        deadline: Deadline,
        what: str,
    ) -> None:
        self._opened = opened
        self._size = descriptor.size
        self._settings = settings
        self._deadline = deadline
        self._what = what
        self._at = 0
        self._failures = 0
        self._response = opened(0)

    def read(self, size: int) -> bytes:
        """The next bytes, at most ``size``.

        Raises:
            Unavailable: The connection broke once too often.
            DeadlineExceeded: The time ran out.
        """
        while True:
            self._deadline.check(f"reading {self._what}")
            try:
                with call(self._settings, self._deadline):
                    content: bytes = self._response.raw.read(size)
            except FAILURES as error:
                if self._at == self._size:  # all bytes are here: the caller only looks for more
                    return b""
                self._again(error)
            else:
                self._at += len(content)
                self._failures = 0 if content else self._failures
                return content

    def close(self) -> None:
        """Close the connection, or give it back if everything was read."""
        self._response.close()

    def _again(self, error: Exception) -> None:
        self._response.close()
        self._deadline.check(f"reading {self._what}")
        self._failures += 1
        if self._failures > self._settings.retries:
            raise Trouble(f"{self._what} broke off after {self._at} of {self._size} bytes: {error}") from None
        self._response = self._opened(self._at)
