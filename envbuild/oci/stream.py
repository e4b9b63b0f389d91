"""Blobs on their way: bodies that can be sent again, and streams that are taken up where they broke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from envbuild.digest import VerifyingReader
from envbuild.errors import StorageError, Unavailable
from envbuild.oci.transport import Trouble
from envbuild.oci.wire import call, failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.oci.registry import BlobOpener
    from envbuild.oci.transport import Settings

_CHUNK: Final = 1 << 17


class BlobSource:
    """The bytes of a blob, hashed while they are read, from any place on.

    Args:
        content: Opens the bytes; called again where reading must go back.
        descriptor: What they must be.
        deadline: When reading must end.
        what: Names the blob for messages.
    """

    def __init__(self, content: BlobOpener, descriptor: Descriptor, deadline: Deadline, what: str) -> None:
        self.descriptor = descriptor
        self._content = content
        self._deadline = deadline
        self._what = what
        self._stream: VerifyingReader | None = None
        self._at = 0

    def seek(self, position: int) -> None:
        """Have the next read begin at a byte; what stands before it is read and hashed again if need be."""
        if position < self._at:
            self.close()
        while self._at < position and self.read(min(position - self._at, _CHUNK)):
            pass

    def read(self, size: int) -> bytes:
        """The next bytes; the last ones of all only after the digest was compared.

        Raises:
            IntegrityError: The bytes are not the descriptor's.
            StorageError: They cannot be read.
            Unavailable: They come from another registry, which is in trouble.
        """
        self._deadline.check(f"sending {self._what}")
        try:
            if self._stream is None:
                self._stream = VerifyingReader(self._content(), self.descriptor, self._what)
            content = self._stream.read(size) or b""
        except Trouble as error:  # another registry's, which was tried often enough: not the target's
            raise Unavailable(error.message, hint=error.hint, retryable=error.retryable) from error
        except OSError as error:  # else it would be taken for the network's fault
            raise StorageError(f"{self._what} cannot be read: {error}") from error
        self._at += len(content)
        return content

    def close(self) -> None:
        """Close the bytes; the next read begins at the first one."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._at = None, 0


class BlobBody:
    """A request's body: a part of a blob, which can be sent again.

    Args:
        source: The blob.
        start: The first byte.
        size: How many bytes; None for all that are left.
    """

    def __init__(self, source: BlobSource, start: int = 0, size: int | None = None) -> None:
        self._source = source
        self._start = start
        self._size = source.descriptor.size - start if size is None else size
        self._left = self._size
        self._is_placed = False

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_CHUNK), b"")

    def read(self, size: int = _CHUNK) -> bytes:
        """The next bytes; errors as those of :meth:`BlobSource.read`."""
        if not self._is_placed:
            self._source.seek(self._start)
            self._is_placed = True
        content = self._source.read(min(size, self._left) if self._size else size)
        self._left -= len(content)
        return content if self._size else b""

    def rewind(self) -> None:
        """Begin again at the first byte."""
        self._left, self._is_placed = self._size, False


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
            except failures() as error:
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
