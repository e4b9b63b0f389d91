"""Copy an image from one repository to another, digest unchanged, moving only the bytes that are missing."""

from __future__ import annotations

import io
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import BuildError
from envbuild.oci.family import family
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.registry import shows_blob
from envbuild.progress import Event, silent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress

JOBS: Final = 4


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy moved.

    Attributes:
        blobs_copied: Blobs whose bytes were moved.
        blobs_mounted: Blobs that the target took over from the source without moving bytes.
        blobs_present: Blobs that were in the target before.
        bytes_copied: The size of the copied blobs in bytes.
    """

    blobs_copied: int = 0
    blobs_mounted: int = 0
    blobs_present: int = 0
    bytes_copied: int = 0

    def __add__(self, other: CopyReport) -> CopyReport:
        return CopyReport(
            self.blobs_copied + other.blobs_copied,
            self.blobs_mounted + other.blobs_mounted,
            self.blobs_present + other.blobs_present,
            self.bytes_copied + other.bytes_copied,
        )


def copy_image(
    source: Registry,
    target: Registry,
    manifest: Manifest | ImageIndex,
    *,
    jobs: int = JOBS,
    progress: Progress = silent,
    deadline: Deadline = NO_DEADLINE,
) -> CopyReport:
    """Copy a manifest with its blobs, or an index with all that it names; nothing is tagged.

    Blobs go first, then manifests, then the indexes that name them. Callers who want a tag call
    :func:`~envbuild.oci.registry.publish` afterwards.

    Args:
        source: Where the image is.
        target: Where it shall be.
        manifest: The image, as the source gave it.
        jobs: How many blobs are moved at once, at least 1.
        progress: Told of each blob, in whatever thread moves it.
        deadline: For the whole copy.

    Raises:
        NotFound: The source lacks something that the manifest names.
        IntegrityError: The source gave other bytes than a digest says; they were not stored.
    """
    copier = _Copier(source.by(deadline), target.by(deadline), progress)
    manifests = tuple(family(copier.source, manifest))
    blobs = {
        blob.digest: blob for each in manifests if not isinstance(each, ImageIndex) for blob in each.blobs
    }
    report = copier.run(sorted(blobs.values(), key=lambda blob: -blob.size), jobs)
    for each in manifests:
        copier.target.put_manifest(each)
    return report


class _Copier:
    """Copies blobs from one repository to another in parallel; the first failure stops the rest."""

    def __init__(self, source: Registry, target: Registry, progress: Progress) -> None:
        self.source = source
        self.target = target
        self._same_host = source.repository.host == target.repository.host
        self._progress = progress
        self._stopped = threading.Event()

    def run(self, blobs: Iterable[Descriptor], jobs: int) -> CopyReport:
        """Copy blobs, in the order given."""
        with ThreadPoolExecutor(max(jobs, 1), thread_name_prefix="copy") as pool:
            try:
                futures = [pool.submit(self._copy, blob) for blob in blobs]
                done = wait(futures, return_when=FIRST_EXCEPTION).done
                failed = [future for future in futures if future in done and future.exception()]
                if failed:
                    failed[0].result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return sum((future.result() for future in futures), CopyReport())

    def _copy(self, blob: Descriptor) -> CopyReport:
        self._tell(blob, "start", 0)
        if self._same_host:
            if shows_blob(self.target, blob.digest):
                self._tell(blob, "reused", blob.size)
                return CopyReport(blobs_present=1)
            if self.target.mount_blob(blob, self.source.repository):
                self._tell(blob, "reused", blob.size)
                return CopyReport(blobs_mounted=1)
        moved = self.target.put_blob(blob, lambda: self._open(blob))
        self._tell(blob, "done" if moved else "reused", blob.size)
        return CopyReport(blobs_copied=1, bytes_copied=blob.size) if moved else CopyReport(blobs_present=1)

    def _open(self, blob: Descriptor) -> IO[bytes]:
        return io.BufferedReader(_Watched(self, blob), 1 << 20)

    def _tell(self, blob: Descriptor, state: str, done: int) -> None:
        self._progress(Event("push", str(blob.digest), state, done, blob.size))

    def moved(self, blob: Descriptor, done: int) -> None:
        """Tell of bytes that were moved.

        Raises:
            BuildError: Another blob has failed, so that this one is of no use.
        """
        if self._stopped.is_set():
            raise BuildError(f"copying {blob.digest} was stopped because another blob failed")
        self._tell(blob, "progress", done)


class _Watched(io.RawIOBase):
    """A blob's stream whose reading is told to the copier."""

    def __init__(self, copier: _Copier, blob: Descriptor) -> None:
        super().__init__()
        self._stream = copier.source.open_blob(blob)
        self._copier = copier
        self._blob = blob
        self._done = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer``; 0 at the end."""
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._done += len(content)
        self._copier.moved(self._blob, self._done)
        return len(content)

    def close(self) -> None:
        """Close this reader and the stream under it."""
        if not self.closed:
            self._stream.close()
        super().close()
