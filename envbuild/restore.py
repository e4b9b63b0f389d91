"""An environment from its image alone: the lock that is attached to it, and the image built of it again."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envbuild import lockfile
from envbuild.attach import LOCK_TYPE
from envbuild.errors import IntegrityError, SpecError
from envbuild.key import steps_key
from envbuild.lockfile.document import LockFile
from envbuild.lookup import KEY_ANNOTATION
from envbuild.oci.copy import copy_image
from envbuild.oci.manifest import Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.oci.registry import find_manifest, publish
from envbuild.reference import Tag
from envbuild.resolver import Resolver
from envbuild.spec import fields
from envbuild.spec.environment import EnvironmentSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.lockfile.document import LockEntry
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference, TaggedReference
    from envbuild.resolver import ResolvedImage


def attached_lock(
    registry: Registry, reference: Tag | Digest, platforms: Iterable[Platform] | None = None
) -> LockFile:
    """The lock that is attached to an image; of an index the locks of its images, as one.

    Args:
        registry: The repository of the image.
        reference: Its tag or digest.
        platforms: Which platforms of an index to take; all if None.

    Raises:
        NotFound: There is no such image.
        SpecError: It has no lock, or is not for such a platform.
        IntegrityError: The lock is damaged, or is that of another image.
    """
    manifest = registry.get_manifest(reference)
    wanted = None if platforms is None else set(platforms)
    locks = [_lock(registry, image) for image in _images(registry, manifest, wanted)]
    entries = [entry for lock in locks for entry in lock.entries]
    if not entries or not (wanted or set()) <= {entry.lock.platform for entry in entries}:
        names = ", ".join(sorted(map(str, wanted or ())))
        raise SpecError(
            f"{registry.repository}@{manifest.descriptor.digest} has no image for {names or 'any platform'}",
            hint="`envbuild inspect` tells which it has",
        )
    return LockFile.of(locks[0].definition, entries)


def _images(
    registry: Registry, manifest: Manifest | ImageIndex, wanted: set[Platform] | None
) -> list[Manifest]:
    if isinstance(manifest, Manifest):
        return [manifest]
    parts = [
        registry.get_manifest(entry.digest)
        for entry in manifest.manifests
        if wanted is None or entry.platform in wanted
    ]
    return [part for part in parts if isinstance(part, Manifest)]


def _lock(registry: Registry, image: Manifest) -> LockFile:
    digest, key = image.descriptor.digest, image.annotations.get(KEY_ANNOTATION)
    found = [registry.get_manifest(each.digest) for each in referrers(registry, digest, LOCK_TYPE)]
    for artifact in found:
        if not isinstance(artifact, Manifest):
            continue
        lock = LockFile.parse(read_artifact(registry, artifact), f"the lock of {digest}")
        if len(lock.entries) != 1 or str(lock.entries[0].key) != key:
            raise IntegrityError(
                f"the attached lock {artifact.descriptor.digest} is not that of the key {key}"
            )
        return lock
    raise SpecError(
        f"no lock is attached to {registry.repository}@{digest}",
        hint="images have one where envbuild built them and `attach` is on; `envbuild lock SPEC` makes one",
    )


def in_folder(lock: LockFile, folder: Path, base: ImageReference | TaggedReference | None = None) -> LockFile:
    """The lock as it stands in a folder: bases that are layouts on disk are named from there.

    An attached lock names them from where its definition was, which is taken to be the current folder.

    Args:
        lock: The attached lock.
        folder: Where it will be.
        base: The repository that has the bases; where the lock says, if None.
    """
    return replace(lock, entries=tuple(_placed(entry, folder, base) for entry in lock.entries))


def _placed(entry: LockEntry, folder: Path, base: ImageReference | TaggedReference | None) -> LockEntry:
    named = fields.reference(entry.base, Path.cwd(), None)
    if base is not None and entry.digest is not None:
        named = base.repository.at(entry.digest)
    return replace(entry, base=lockfile.base_text(EnvironmentSpec(source="", base=named), folder))


def build_again(
    config: Config,
    registry: Registry,
    lock: LockFile,
    base: ImageReference | TaggedReference | None,
    deadline: Deadline,
    progress: Progress,
) -> ResolvedImage:
    """Build an image of an attached lock for one platform, and push it to the workspace.

    Nothing is solved. The image of the Docker steps on the base is taken from the repository of the image
    where it is there: run again, they need not give the same bytes.

    Args:
        config: The settings.
        registry: The repository of the image.
        lock: Its lock.
        base: The repository that has the base; where the lock says, if None.
        deadline: When to give up.
        progress: Told what is going on.

    Raises:
        SpecError: The lock is for several platforms, or its steps or requirements read files.
        EnvbuildError: As :meth:`envbuild.resolver.Resolver.build` raises it.
    """
    with tempfile.TemporaryDirectory(prefix="envbuild-") as folder:
        path = Path(folder) / lockfile.FILE_NAME
        in_folder(lock, path.parent, base).write(path)
        spec = lockfile.load(path)
        with Resolver(config, progress=progress, locks=lockfile.LockPolicy(path, required=True)) as resolver:
            bring_steps(resolver, registry, spec, deadline)
            return resolver.build(spec, timeout=deadline.remaining())


def bring_steps(resolver: Resolver, registry: Registry, spec: EnvironmentSpec, deadline: Deadline) -> None:
    """Copy the image of a definition's steps from a repository that has it to the workspace."""
    if spec.steps is None or registry.repository == resolver.config.workspace:
        return
    (platform,) = spec.platforms
    base = resolver.bases.image(spec.require_base(), platform, deadline)
    tag = Tag(f"s1-{steps_key(base.digest, spec.steps, platform)}")
    if isinstance(stepped := find_manifest(registry, tag), Manifest):
        target = resolver.registries.open(resolver.config.workspace).by(deadline)
        copy_image(registry, target, stepped, progress=resolver.progress, deadline=deadline)
        publish(target, stepped, tag, stored=True)
