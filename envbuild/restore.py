"""An environment from its image alone: the lock that is attached to it, and the image built of it again."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from envbuild import lockfile
from envbuild.admission import require_name
from envbuild.attach import LOCK_TYPE
from envbuild.build.assemble import BASE_DIGEST_ANNOTATION
from envbuild.build.job import Again
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import IntegrityError, SpecError
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.lockfile.document import LockEntry, LockFile
from envbuild.lockkey import name_in
from envbuild.oci.family import entries
from envbuild.oci.manifest import OCI_LAYER_ZSTD, Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.resolver import Resolver
from envbuild.spec import fields
from envbuild.spec.environment import EnvironmentSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.admission import Admission
    from envbuild.config import CompressionName, Config
    from envbuild.deadline import Deadline
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference, Tag, TaggedReference
    from envbuild.resolver import ResolvedImage

_MOST_LOCKS: Final = 16
"""How many attached locks are read to find the image's own: others may attach some, too."""


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
    admission: Admission | None = None,
    *,
    part: bool = False,
    deadline: Deadline | None = None,
) -> Restored:
    """The lock that is attached to an image; of an index the locks of its images, as one.

    A lock is nothing that was signed: it must have the lock key that the image carries, and its key if it
    carries one, as what was built without a lock does.

    Args:
        registry: The repository of the image.
        reference: Its tag or digest.
        platforms: Which platforms of an index to take; all if None.
        admission: Decides whether the image may be used; None for every one.
        part: Whether what is made of the lock is put into the workspace.
        deadline: When to give up; when the repository does, if None.

    Raises:
        NotFound: There is no such image.
        Untrusted: The policy does not accept the image.
        SpecError: It has no lock, or is not for such a platform.
        IntegrityError: The lock is damaged, or is that of another image; or what the tag names is.
    """
    registry = registry if deadline is None else registry.by(deadline)
    manifest = registry.get_manifest(reference)
    if (name := name_in(reference)) is not None:
        require_name(manifest, name, f"{registry.repository}:{reference}")
    wanted = None if platforms is None else set(platforms)
    if admission is not None:
        _require_trust(admission, registry, manifest, wanted, deadline or NO_DEADLINE, part=part)
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


def _require_trust(
    admission: Admission,
    registry: Registry,
    manifest: Manifest | ImageIndex,
    platforms: set[Platform] | None,
    deadline: Deadline,
    *,
    part: bool,
) -> None:
    try:
        admission.require(manifest, registry, deadline, part=part, platforms=platforms)
    except IntegrityError as error:
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
    digest = image.descriptor.digest
    refused: IntegrityError | None = None
    for listed in referrers(registry, digest, LOCK_TYPE)[:_MOST_LOCKS]:
        artifact = registry.get_manifest(listed.digest)
        if not isinstance(artifact, Manifest):
            continue
        try:
            return _lock_in(registry, artifact, image)
        except (IntegrityError, SpecError) as error:  # another one may be the image's
            what = f"the attached lock {listed.digest}"
            refused = refused or IntegrityError(f"{what}: {error.message}", hint=error.hint)
    if refused is not None:
        raise refused
    return None


def _lock_in(registry: Registry, artifact: Manifest, image: Manifest) -> LockFile:
    """The lock in an artifact, held against the image that it is attached to."""
    key = image.annotations.get(KEY_ANNOTATION)
    lock = LockFile.parse(read_artifact(registry, artifact), f"the lock of {image.descriptor.digest}")
    if len(lock.entries) != 1 or key not in {None, str(lock.entries[0].key)}:
        raise IntegrityError(f"it is not that of the key {key}")
    _require_solution(image, lock.entries[0])
    return lock


def _require_solution(image: Manifest, entry: LockEntry) -> None:
    """See that an image carries the lock key of an attached lock."""
    carried = image.annotations.get(LOCK_ANNOTATION)
    named = image.annotations.get(BASE_DIGEST_ANNOTATION)  # an image's, also where the form names an index
    found = entry.lock_key(Digest.parse(named) if named is not None else None)
    if str(found) != carried:
        raise IntegrityError(
            f"it has the lock key {found}, and the image carries {carried or 'none'}",
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

    Nothing is solved, and layers are compressed as that image's are. What has not the image's own lock key is
    not published, nor is another image, unless steps after the environment were run again. The image of the
    Docker steps on the base is looked for in the repository of the image too: run again, they need not give
    the same bytes.

    Args:
        config: The settings.
        registry: The repository of the image.
        found: The image and its lock.
        base: The repository that has the base; where the lock says, if None.
        deadline: When to give up.
        progress: Told what is going on.

    Raises:
        SpecError: The lock is for several platforms, or its steps or requirements read files.
        IntegrityError: The lock key is not that of the image, or another image came out.
        EnvbuildError: As :meth:`envbuild.resolver.Resolver.build` raises it.
    """
    with tempfile.TemporaryDirectory(prefix="envbuild-") as folder:
        path = Path(folder) / lockfile.FILE_NAME
        in_folder(found.lock, path.parent, base).write(path)
        spec = lockfile.load(path)
        image = found.images[0]
        config = replace(config, compression=compression(image))
        again = Again(image, registry.repository, must=spec.steps_after is None)
        with Resolver(config, progress=progress, locks=policy(path, image), again=again) as resolver:
            return resolver.build(spec, timeout=deadline.remaining())


def policy(path: Path, image: Manifest) -> lockfile.LockPolicy:
    """The policy that holds a build to an image's lock: the same solution."""
    return lockfile.LockPolicy(path, required=True, lock_key=image.annotations.get(LOCK_ANNOTATION))


def compression(image: Manifest) -> CompressionName:
    """How the layers of an environment are compressed."""
    return "zstd" if image.layers and image.layers[-1].media_type == OCI_LAYER_ZSTD else "gzip"
