"""One environment for several platforms: an image index over the image of each."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from envbuild.attach import LOCK_TYPE, lock_artifact, provenance, provenance_artifact
from envbuild.errors import IntegrityError
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.lockfile.document import LockFile
from envbuild.lockkey import LockKey
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.progress import silent
from envbuild.publishing import Publisher
from envbuild.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.lockkey import Name
    from envbuild.oci.referrers import Artifact
    from envbuild.oci.registries import Registries
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference
    from envbuild.transfer import Held


def publish_index(
    name: Name,
    images: Mapping[Platform, ImageReference],
    config: Config,
    registries: Registries,
    deadline: Deadline,
    *,
    progress: Progress = silent,
) -> ImageReference:
    """Put an index over images into the workspace, signed and under its key's tag; an existing tag wins.

    An image that is elsewhere, as in the global repository, is copied first, if it may go into the workspace:
    an index names only what stands beside it. Equal images give equal bytes.

    Args:
        name: The key of the environment on these platforms, or the lock key where it is locked on any.
        images: The image of each platform.
        config: The settings; the workspace is written.
        registries: Opens repositories.
        deadline: When to give up.
        progress: Told of blobs that are copied.

    Raises:
        IntegrityError: An image is an index itself.
        Untrusted: An image that is elsewhere is not accepted by the workspace's rule; nothing was written.
        RegistryError: A repository could not be read or written.
    """
    workspace = config.workspace
    started, target = datetime.now(UTC), registries.open(workspace).by(deadline)
    entries: list[Descriptor] = []
    elsewhere: list[tuple[Transfer, Held]] = []
    for platform, reference in sorted(images.items(), key=lambda item: str(item[0])):
        source = registries.open(reference.repository).by(deadline)
        manifest = source.get_manifest(reference.digest)
        if isinstance(manifest, ImageIndex):
            raise IntegrityError(f"{reference} is an index, expected the image of {platform}")
        if reference.repository != workspace:
            transfer = Transfer(source, target, config, progress, deadline)
            elsewhere.append((transfer, transfer.hold(manifest)))
        entries.append(replace(manifest.descriptor, platform=platform))
    for transfer, held in elsewhere:  # nothing is written before all of them may be taken
        transfer.copy(held.manifest)
        transfer.vouch(held)
    carried = LOCK_ANNOTATION if isinstance(name, LockKey) else KEY_ANNOTATION
    index = ImageIndex.build(tuple(entries), {carried: str(name)})

    def artifacts() -> Iterator[Artifact]:
        return _describe(index, name, target, started)

    seen = Publisher(config, target, deadline, progress).publish(index, name, artifacts)
    return workspace.at(seen.descriptor.digest)


def _describe(index: ImageIndex, name: Name, target: Registry, started: datetime) -> Iterator[Artifact]:
    """What is attached to an index: the locks of its images as one, and of which images it is."""
    locks = [lock for entry in index.manifests for lock in _locks(target, entry.digest)]
    if len(locks) == len(index.manifests):
        definitions = {lock.definition for lock in locks}
        definition = definitions.pop() if len(definitions) == 1 else ""
        yield lock_artifact(LockFile.of(definition, [each for lock in locks for each in lock.entries]))
    images = [
        {"name": str(entry.platform), "digest": {"sha256": entry.digest.hex}} for entry in index.manifests
    ]
    parameters = {"externalParameters": {"key": str(name)}, "resolvedDependencies": images}
    times = started, datetime.now(UTC)
    document = provenance(parameters, str(name), str(target.repository), index.descriptor.digest, times)
    yield provenance_artifact(document)


def _locks(target: Registry, image: Digest) -> Iterator[LockFile]:
    """The lock that is attached to an image, if there is one."""
    for entry in referrers(target, image, LOCK_TYPE)[:1]:
        manifest = target.get_manifest(entry.digest)
        if isinstance(manifest, Manifest):
            yield LockFile.parse(read_artifact(target, manifest), f"the lock of {image}")
