"""An environment from its image alone: the lock that is attached to it, and the image built of it again."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from envbuild import lockfile
from envbuild.attach import LOCK_TYPE
from envbuild.build.assemble import BASE_DIGEST_ANNOTATION
from envbuild.digest import Digest
from envbuild.errors import IntegrityError, SpecError
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION, Key, steps_key
from envbuild.lockfile.document import LockEntry, LockFile
from envbuild.oci.copy import copy_image
from envbuild.oci.family import entries
from envbuild.oci.manifest import OCI_LAYER_ZSTD, Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.oci.registry import find_manifest, publish
from envbuild.reference import Tag
from envbuild.resolver import Resolver
from envbuild.spec import fields
from envbuild.spec.environment import EnvironmentSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.config import CompressionName, Config
    from envbuild.deadline import Deadline
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference, TaggedReference
    from envbuild.resolver import ResolvedImage
    from envbuild.trust import Trust


@dataclass(frozen=True, slots=True)
class Restored:
    """What is known of an image from itself.

    Attributes:
        images: The image; of an index those of its images that were asked for.
        lock: Their locks, as one.
    """

    images: tuple[Manifest, ...]
    lock: LockFile


def restored(
    registry: Registry,
    reference: Tag | Digest,
    platforms: Iterable[Platform] | None = None,
    trust: Trust | None = None,
) -> Restored:
    """The lock that is attached to an image; of an index the locks of its images, as one.

    A lock is nothing that was signed: it must have the lock key that the image carries, and its key if it
    carries one, as what was built without a lock does.

    Args:
        registry: The repository of the image.
        reference: Its tag or digest.
        platforms: Which platforms of an index to take; all if None.
        trust: The policy for images; None to trust all.

    Raises:
        NotFound: There is no such image.
        Untrusted: The policy does not accept the image.
        SpecError: It has no lock, or is not for such a platform.
        IntegrityError: The lock is damaged, or is that of another image.
    """
    manifest = registry.get_manifest(reference)
    _require_trust(registry, manifest, trust)
    wanted = None if platforms is None else set(platforms)
    images = _images(registry, manifest, wanted)
    locks = [_lock(registry, image) for image in images]
    entries = [entry for lock in locks for entry in lock.entries]
    if not entries or not (wanted or set()) <= {entry.lock.platform for entry in entries}:
        names = ", ".join(sorted(map(str, wanted or ())))
        raise SpecError(
            f"{registry.repository}@{manifest.descriptor.digest} has no image for {names or 'any platform'}",
            hint="`envbuild inspect` tells which it has",
        )
    return Restored(tuple(images), LockFile.of(locks[0].definition, entries))


def attached_lock(
    registry: Registry, reference: Tag | Digest, platforms: Iterable[Platform] | None = None
) -> LockFile:
    """The lock of :func:`restored`, of whatever image."""
    return restored(registry, reference, platforms).lock


def _require_trust(registry: Registry, manifest: Manifest | ImageIndex, trust: Trust | None) -> None:
    rule = trust.rule(registry.repository) if trust is not None else None
    if rule is None or not rule.require_signed:
        return
    from envbuild.trust import Untrusted, check_rule

    try:
        check_rule(registry, manifest, rule)
    except Untrusted as error:
        error.hint = f"its lock is not used: {error.hint or 'the policy `trust` wants another signature'}"
        raise


def _images(
    registry: Registry, manifest: Manifest | ImageIndex, wanted: set[Platform] | None
) -> list[Manifest]:
    if isinstance(manifest, Manifest):
        return [manifest]
    named = entries(manifest, str(registry.repository))
    if wanted is not None:
        named = tuple(entry for each in sorted(wanted) if (entry := manifest.for_platform(each)) is not None)
    parts = [registry.get_manifest(entry.digest) for entry in named]
    return [part for part in parts if isinstance(part, Manifest)]


def _lock(registry: Registry, image: Manifest) -> LockFile:
    found = lock_of(registry, image)
    if found is None:
        raise SpecError(
            f"no lock is attached to {registry.repository}@{image.descriptor.digest}",
            hint="what envbuild builds has one where `attach` is on; `envbuild lock SPEC` makes one",
        )
    return found


def lock_of(registry: Registry, image: Manifest) -> LockFile | None:
    """The lock that is attached to one image, or None.

    Raises:
        IntegrityError: It is damaged, or that of another image.
    """
    digest, key = image.descriptor.digest, image.annotations.get(KEY_ANNOTATION)
    for listed in referrers(registry, digest, LOCK_TYPE):
        artifact = registry.get_manifest(listed.digest)
        if not isinstance(artifact, Manifest):
            continue
        lock = LockFile.parse(read_artifact(registry, artifact), f"the lock of {digest}")
        if len(lock.entries) != 1 or key not in {None, str(lock.entries[0].key)}:
            raise IntegrityError(f"the attached lock {listed.digest} is not that of the key {key}")
        _require_solution(image, lock.entries[0], f"the attached lock {listed.digest}")
        return lock
    return None


def _require_solution(image: Manifest, entry: LockEntry, what: str) -> None:
    """See that an image carries the lock key of an attached lock."""
    carried = image.annotations.get(LOCK_ANNOTATION)
    named = image.annotations.get(BASE_DIGEST_ANNOTATION)  # an image's, also where the form names an index
    found = entry.lock_key(Digest.parse(named) if named is not None else None)
    if str(found) != carried:
        raise IntegrityError(
            f"{what} has the lock key {found}, and the image carries {carried or 'none'}",
            hint="somebody attached a lock of other packages; resolve the definition instead",
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
    text = lockfile.base_text(EnvironmentSpec(source="", base=named), folder)
    known = entry.manifest if entry.is_open or entry.manifest is not None else entry.digest
    return LockEntry.of(text, known, entry.form, entry.lock, entry.pip)


def build_again(
    config: Config,
    registry: Registry,
    found: Restored,
    base: ImageReference | TaggedReference | None,
    deadline: Deadline,
    progress: Progress,
) -> ResolvedImage:
    """Build an image of an attached lock for one platform, and push it to the workspace.

    Nothing is solved, layers are compressed as that image's are, and what was not solved to the image's own
    lock key is not published. The image of the Docker steps on the base is taken from the repository of the
    image where it is there: run again, they need not give the same bytes.

    Args:
        config: The settings.
        registry: The repository of the image.
        found: The image and its lock.
        base: The repository that has the base; where the lock says, if None.
        deadline: When to give up.
        progress: Told what is going on.

    Raises:
        SpecError: The lock is for several platforms, or its steps or requirements read files.
        IntegrityError: The lock key is not that of the image.
        EnvbuildError: As :meth:`envbuild.resolver.Resolver.build` raises it.
    """
    with tempfile.TemporaryDirectory(prefix="envbuild-") as folder:
        path = Path(folder) / lockfile.FILE_NAME
        in_folder(found.lock, path.parent, base).write(path)
        spec = lockfile.load(path)
        policy = again(path, found.images[0])
        config = replace(config, compression=compression(found.images[0]))
        with Resolver(config, progress=progress, locks=policy) as resolver:
            bring_steps(resolver, registry, spec, deadline)
            return resolver.build(spec, timeout=deadline.remaining())


def again(path: Path, image: Manifest) -> lockfile.LockPolicy:
    """What builds an image again from its lock: the same solution under the same annotations."""
    key, lock = (image.annotations.get(name) for name in (KEY_ANNOTATION, LOCK_ANNOTATION))
    return lockfile.LockPolicy(
        path, required=True, lock_key=lock, again=Key(key) if key is not None else None
    )


def compression(image: Manifest) -> CompressionName:
    """How the layers of an environment are compressed."""
    return "zstd" if image.layers and image.layers[-1].media_type == OCI_LAYER_ZSTD else "gzip"


def bring_steps(resolver: Resolver, registry: Registry, spec: EnvironmentSpec, deadline: Deadline) -> None:
    """Copy the image of a definition's steps from a repository that has it to the workspace."""
    if spec.steps is None or registry.repository == resolver.config.workspace:
        return
    (platform,) = spec.platforms
    base = resolver.bases.image(spec.require_base(), platform, deadline)
    tag = Tag(f"s1-{steps_key(base.digest, spec.steps, platform, offline=spec.offline)}")
    if isinstance(stepped := find_manifest(registry, tag), Manifest):
        target = resolver.registries.open(resolver.config.workspace).by(deadline)
        copy_image(registry, target, stepped, progress=resolver.progress, deadline=deadline)
        publish(target, stepped, tag, stored=True)
