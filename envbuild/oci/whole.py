"""Whether an image is whole: whether everything that its manifest names is in the repository."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from envbuild.errors import IntegrityError
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.registry import find_manifest

if TYPE_CHECKING:
    from envbuild.digest import Descriptor
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import Registry

JOBS: Final = 8


def missing(
    registry: Registry, manifest: Manifest | ImageIndex, *, jobs: int = JOBS
) -> tuple[Descriptor, ...]:
    """What a manifest names and its repository lacks: blobs, and manifests of an index.

    Args:
        registry: The repository.
        manifest: The image, or an index whose images are looked at as well.
        jobs: How many questions are asked at once.
    """
    lost: list[Descriptor] = []
    if isinstance(manifest, ImageIndex):
        for entry in manifest.manifests:
            found = find_manifest(registry, entry.digest)
            lost += (entry,) if found is None else missing(registry, found, jobs=jobs)
        return tuple(lost)
    with ThreadPoolExecutor(jobs, thread_name_prefix="whole") as pool:
        present = pool.map(lambda blob: registry.has_blob(blob.digest), manifest.blobs)
        return tuple(blob for blob, there in zip(manifest.blobs, present, strict=True) if not there)


def require_whole(registry: Registry, manifest: Manifest | ImageIndex, *, jobs: int = JOBS) -> None:
    """See that an image is whole; arguments as :func:`missing`.

    Raises:
        IntegrityError: Something is missing.
    """
    if lost := missing(registry, manifest, jobs=jobs):
        what = f"{registry.repository}@{manifest.descriptor.digest}"
        raise IntegrityError(
            f"{what} lacks {len(lost)} of the things that it names, {lost[0].digest} for one"
        )
