"""Getting blobs into the repository that an image is pushed to, by the cheapest way there is."""

from __future__ import annotations

import io
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import IO, TYPE_CHECKING, Any, TypeVar

from envbuild.digest import CHUNK
from envbuild.errors import IntegrityError, NotFound
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envbuild.digest import Descriptor
    from envbuild.oci.registry import BlobOpener, Registry
    from envbuild.progress import Progress

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Upload:
    """The blobs that one build puts into its target. May be used by several threads.

    Args:
        target: The repository that is written.
        progress: Told of each blob.
    """

    def __init__(self, target: Registry, progress: Progress) -> None:
        self.target = target
        self._progress = progress
        self._guard = threading.Lock()
        self._bytes = 0

    @property
    def bytes_sent(self) -> int:
        """Bytes of blobs that were sent so far."""
        return self._bytes

    def put(self, descriptor: Descriptor, content: BlobOpener, title: str) -> None:
        """Store a blob that was just made, unless it is there."""
        if self.target.put_blob(descriptor, content):
            self._sent(descriptor, title)

    def put_bytes(self, descriptor: Descriptor, content: bytes, title: str) -> None:
        """Store a small blob that is held in memory, unless it is there."""
        self.put(descriptor, lambda: io.BytesIO(content), title)

    def require(self, descriptor: Descriptor, source: Registry | None, title: str) -> None:
        """Have a blob of an image in the target.

        Raises:
            IntegrityError: It is neither there nor in ``source``: that image is not whole.
        """
        if not self.bring(descriptor, source, title):
            where = source.repository if source else self.target.repository
            raise IntegrityError(
                f"the blob {descriptor.digest} of {title} is missing from {where}",
                hint="push that image again, or choose another base",
            )

    def bring(self, descriptor: Descriptor, source: Registry | None, title: str) -> bool:
        """Have a blob in the target that is there, or is in another repository.

        Returns:
            False if it is in neither: then it must be made.
        """
        if self.target.has_blob(descriptor.digest):
            return True
        if source is None or source.repository == self.target.repository:
            return False
        if self.target.mount_blob(descriptor, source.repository):
            return True
        try:
            if self.target.put_blob(descriptor, lambda: source.open_blob(descriptor)):
                self._sent(descriptor, title)
        except NotFound:
            return False
        return True

    def _sent(self, descriptor: Descriptor, title: str) -> None:
        with self._guard:
            self._bytes += descriptor.size
        self._progress(Event("push", title, "done", descriptor.size, descriptor.size))


def rewound(file: IO[bytes]) -> IO[bytes]:
    """A stream over a file that somebody else owns: from the first byte, and closing it closes nothing."""
    file.seek(0)
    return io.BufferedReader(_Borrowed(file), CHUNK)


class _Borrowed(io.RawIOBase):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def in_parallel(jobs: int, action: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """``action`` of each item, in the items' order; the first error cancels what has not begun."""
    executor = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="envbuild")
    try:
        futures = [executor.submit(action, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        return [future.result() for future in futures]
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
