"""Whether an image is whole: whether everything that its manifest names is in the repository."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from envbuild.errors import IntegrityError
from envbuild.oci.family import family
from envbuild.oci.manifest import Manifest

if TYPE_CHECKING:
    from envbuild.digest import Descriptor
    from envbuild.oci.manifest import ImageIndex
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
    images = [each for each in family(registry, manifest, lost) if isinstance(each, Manifest)]
    blobs = {blob.digest: blob for image in images for blob in image.blobs}
    with ThreadPoolExecutor(jobs, thread_name_prefix="whole") as pool:
        present = pool.map(registry.has_blob, blobs)
        lost += [blob for blob, there in zip(blobs.values(), present, strict=True) if not there]
    return tuple(lost)


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
