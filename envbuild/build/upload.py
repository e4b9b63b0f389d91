"""Getting blobs into the repository that an image is pushed to, by the cheapest way there is."""

from __future__ import annotations

import contextlib
import io
import secrets
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Self, TypeVar

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import CHUNK, Descriptor, Digest
from envbuild.errors import (
    BuildError,
    IntegrityError,
    NotFound,
    RegistryError,
    Unauthorized,
    Unavailable,
)
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, Manifest
from envbuild.oci.registry import shows_blob
from envbuild.oci.transport import MissingContent
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envbuild.deadline import Deadline
    from envbuild.index import Index
    from envbuild.oci.registry import BlobOpener, Registry
    from envbuild.progress import Progress

SMALL: Final = 1 << 18
"""A blob up to this size that was just made is sent at once: to ask whether it is there costs as much."""
_THREADS: Final = 4
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class RemadeError(BuildError):
    """A layer that was to be taken over is nowhere, and what was made in its place is another one.

    Whoever shared it was wrong about it. The new one is known by now, so whoever composes again gets there.
    """


@dataclass(frozen=True, slots=True)
class _Expected:
    """A blob that is thought to be in the target; see :meth:`Upload.expect`."""

    descriptor: Descriptor
    sources: tuple[Registry, ...]
    title: str
    make: Callable[[], Descriptor] | None
    arrived: Callable[[], None] | None


class Upload:
    """The blobs that one build puts into its target. May be used by several threads.

    Used as a context manager it does what may wait in threads of its own; else it does all at once.

    Args:
        target: The repository that is written.
        progress: Told of each blob.
    """

    def __init__(self, target: Registry, progress: Progress) -> None:
        self.target = target
        self._progress = progress
        self._guard = threading.Lock()
        self._bytes = 0
        self._expected: dict[Digest, _Expected] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._pending: list[Future[Any]] = []

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="upload")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)
            self._pool = None

    @property
    def bytes_sent(self) -> int:
        """Bytes of blobs that were sent so far."""
        return self._bytes

    def put(self, descriptor: Descriptor, content: BlobOpener, title: str) -> None:
        """Store a blob that was just made, unless it is there."""
        if self.target.put_blob(descriptor, content, ask=descriptor.size > SMALL):
            self._sent(descriptor, title)

    def later(self, action: Callable[[], _Out]) -> Future[_Out]:
        """Do something beside all else; :meth:`settle` and :meth:`complete` wait for it."""
        if self._pool is not None:
            future = self._pool.submit(action)
            with self._guard:
                self._pending.append(future)
            return future
        future = Future()
        future.set_result(action())
        return future

    def settle(self) -> None:
        """Wait for all that :meth:`later` began; fails where it failed."""
        with self._guard:
            pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def put_bytes(self, descriptor: Descriptor, content: bytes, title: str) -> None:
        """Store a small blob that is held in memory, unless it is there."""
        self.put(descriptor, lambda: io.BytesIO(content), title)

    def expect(
        self,
        descriptor: Descriptor,
        sources: tuple[Registry, ...],
        title: str,
        *,
        make: Callable[[], Descriptor] | None = None,
        arrived: Callable[[], None] | None = None,
    ) -> None:
        """Say that a blob is thought to be in the target; :meth:`complete` has it there.

        Args:
            descriptor: The blob.
            sources: Where it may be had from, best first.
            title: What people read.
            make: Makes and stores it where no source has it.
            arrived: Called when it had to be brought and is there.
        """
        with self._guard:
            self._expected[descriptor.digest] = _Expected(descriptor, sources, title, make, arrived)

    def complete(self, manifest: Manifest, index: Index, jobs: int) -> None:
        """Store a manifest under its digest, and before it all that it needs.

        What :meth:`later` began is waited for, and what :meth:`expect` named is brought where it is missing.

        A registry that refuses a manifest for want of a blob is asked by giving it the manifest: it names
        what is missing. Others, and layouts, are asked for each blob.

        Raises:
            IntegrityError: A blob is nowhere and cannot be made.
        """
        self.settle()
        self._complete(manifest, index, jobs)

    def _complete(self, manifest: Manifest, index: Index, jobs: int) -> None:
        wanted = {blob.digest: self._expected.get(blob.digest) for blob in manifest.blobs}
        expected = [each for each in wanted.values() if each is not None]
        if expected and self.refuses_dangling(index):
            for _ in range(2):
                try:
                    self.target.put_manifest(manifest)
                except MissingContent as error:
                    named = [each for digest in error.missing if (each := wanted.get(digest)) is not None]
                    if not named:
                        break
                    in_parallel(jobs, self._obtain, named)
                else:
                    return
        in_parallel(jobs, self._ensure, expected)
        self.target.put_manifest(manifest)

    def _ensure(self, expected: _Expected) -> None:
        if not shows_blob(self.target, expected.descriptor.digest):
            self._obtain(expected)

    def _obtain(self, expected: _Expected) -> None:
        """Get a blob that is missing from the target from wherever it is."""
        descriptor, title = expected.descriptor, expected.title
        spare = expected.make is not None
        if any(self._take(descriptor, source, title, spare=spare) for source in expected.sources):
            if expected.arrived is not None:
                expected.arrived()
            return
        if expected.make is None:
            places = ", ".join(str(source.repository) for source in expected.sources)
            raise IntegrityError(
                f"the blob {descriptor.digest} of {title} is missing from {places or self.target.repository}",
                hint="push that image again, or choose another base",
            )
        if (made := expected.make()) != descriptor:
            raise RemadeError(
                f"the layer of {title} was made again as {made.digest}, expected {descriptor.digest}",
                hint="resolve again: the new layer is known now",
                retryable=True,
            )

    def _take(self, descriptor: Descriptor, source: Registry, title: str, *, spare: bool) -> bool:
        """Whether a blob could be taken over from a repository.

        Args:
            descriptor: The blob.
            source: The repository.
            title: What people read.
            spare: Whether the blob can be made: then one that is damaged is as good as none.
        """
        if source.repository == self.target.repository:
            return False
        if self.target.mount_blob(descriptor, source.repository):
            return True
        try:
            opened = [source.open_blob(descriptor)]
        except (NotFound, Unauthorized, Unavailable):
            return False
        try:
            self.put(descriptor, lambda: opened.pop() if opened else source.open_blob(descriptor), title)
        except IntegrityError as error:
            if not spare:
                raise
            self._progress(Event("push", title, "output", text=f"made again: {error}"))
            return False
        finally:
            for stream in opened:
                stream.close()
        return True

    def refuses_dangling(self, index: Index) -> bool:
        """Whether the target is a registry that refuses a manifest whose blobs it lacks; asked once a day.

        Then nobody need ask for what should be there: the manifest is put, and after what it lacked again.
        """
        host = self.target.repository.host
        if not host:
            return False
        return index.daily(f"dangling {host}", self._probe_dangling) == "refused"

    def _probe_dangling(self) -> str:
        nothing = Descriptor(OCI_LAYER_GZIP, Digest(secrets.token_hex(32)), 1)
        config = Descriptor(OCI_CONFIG, Digest(secrets.token_hex(32)), 2)
        manifest = Manifest.build(config, (nothing,), {})
        try:
            self.target.put_manifest(manifest)
        except MissingContent:
            return "refused"
        with contextlib.suppress(RegistryError):
            self.target.delete_manifest(manifest.descriptor.digest)
        return "accepted"

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
        if shows_blob(self.target, descriptor.digest):
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


def in_parallel(
    jobs: int,
    action: Callable[[_In], _Out],
    items: Iterable[_In],
    *,
    deadline: Deadline = NO_DEADLINE,
) -> list[_Out]:
    """``action`` of each item, in the items' order; the first error cancels what has not begun.

    An interrupt ends the deadline, for what has begun heeds that.
    """
    executor = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="envbuild")
    try:
        futures = [executor.submit(action, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        return [future.result() for future in futures]
    except KeyboardInterrupt:
        deadline.end()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
