"""One environment for several platforms: an image index over the image of each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from envbuild.errors import IntegrityError
from envbuild.lookup import KEY_ANNOTATION
from envbuild.oci.copy import copy_image
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.registry import publish
from envbuild.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.key import Key
    from envbuild.oci.registries import Registries
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference, Repository


def publish_index(
    key: Key,
    images: Mapping[Platform, ImageReference],
    workspace: Repository,
    registries: Registries,
    deadline: Deadline,
    *,
    progress: Progress = silent,
) -> ImageReference:
    """Put an index over images into the workspace, under its key's tag; an existing tag wins.

    An image that is elsewhere, as in the global repository, is copied first: an index names only what stands
    beside it. Equal images give equal bytes.

    Args:
        key: The key of the environment on these platforms.
        images: The image of each platform.
        workspace: The repository that is written.
        registries: Opens repositories.
        deadline: When to give up.
        progress: Told of blobs that are copied.

    Raises:
        IntegrityError: An image is an index itself.
        RegistryError: A repository could not be read or written.
    """
    target = registries.open(workspace).by(deadline)
    entries: list[Descriptor] = []
    for platform, reference in sorted(images.items(), key=lambda item: str(item[0])):
        source = registries.open(reference.repository).by(deadline)
        manifest = source.get_manifest(reference.digest)
        if isinstance(manifest, ImageIndex):
            raise IntegrityError(f"{reference} is an index, expected the image of {platform}")
        if reference.repository != workspace:
            copy_image(source, target, manifest, progress=progress, deadline=deadline)
        entries.append(replace(manifest.descriptor, platform=platform))
    index = ImageIndex.build(tuple(entries), {KEY_ANNOTATION: str(key)})
    return workspace.at(publish(target, index, key.tag).descriptor.digest)
