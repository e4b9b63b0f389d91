"""What a builder is given, and what it gives back. One contract suite runs on each builder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from envbuild.attach import Made
from envbuild.build.assemble import difference
from envbuild.errors import IntegrityError
from envbuild.key import KEY_ANNOTATION, CanonicalForm, Key
from envbuild.lockfile import base_text
from envbuild.reference import ImageReference

if TYPE_CHECKING:
    from datetime import datetime

    from envbuild.build.base import BaseImage
    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.lock import Lock, PipDistribution
    from envbuild.lockfile.document import LockEntry
    from envbuild.lockkey import LockKey, Name
    from envbuild.oci.manifest import Manifest
    from envbuild.platform import Platform
    from envbuild.reference import Repository
    from envbuild.spec.environment import EnvironmentSpec


@dataclass(frozen=True, slots=True)
class Again:
    """An image that is built again from the lock attached to it.

    Attributes:
        image: The image.
        repository: Where it is; the image of its steps is looked for there too.
        must: Whether nothing is published unless just that image comes out.
    """

    image: Manifest
    repository: Repository
    must: bool = True

    @property
    def key(self) -> Key | None:
        """The key that it carries."""
        key = self.image.annotations.get(KEY_ANNOTATION)
        return Key(key) if key is not None else None

    def require(self, made: Manifest) -> None:
        """Refuse another image.

        Raises:
            IntegrityError: It is one.
        """
        told = difference(self.image, made) if self.must else None
        if told is not None:
            raise IntegrityError(
                f"not the image {self.repository}@{self.image.descriptor.digest}: building it again {told}",
                hint="settings that change layers must be those that it was built with",
            )


@dataclass(frozen=True)
class Job:
    """One image to build.

    Attributes:
        spec: The definition.
        key: Its key.
        platform: The platform to build for.
        base: The base, read from where it is.
        deadline: When to give up.
        locked: What a lock says it was solved to, or None.
        lock_key: The lock key of what is locked: it must come out, and names the image; else None.
        again: What it was built as before, where it is built again from its lock: it carries the key of that
            image, and so has its bytes; else None.
    """

    spec: EnvironmentSpec
    key: Key
    platform: Platform
    base: BaseImage
    deadline: Deadline
    locked: LockEntry | None = None
    lock_key: LockKey | None = None
    again: Again | None = None

    @property
    def name(self) -> Name:
        """What the image is published as: what is locked never under the key of its definition."""
        return self.lock_key or self.key

    @property
    def carried(self) -> Key | None:
        """The key that the image carries; a locked one has none, so that no key can answer with it."""
        if self.lock_key is None:
            return self.key
        return self.again.key if self.again is not None else None


def folder_of(spec: EnvironmentSpec) -> Path:
    """The folder that paths in a definition start from."""
    source = Path(spec.source)
    return source.parent if source.is_file() else Path.cwd()


def made_of(job: Job, lock: Lock, wheels: tuple[PipDistribution, ...], started: datetime) -> Made:
    """What an image was made from, for what is attached to it.

    Args:
        job: What was built.
        lock: The packages.
        wheels: What the pip section installs; the definition's own files by their path.
        started: When the build began, in UTC.
    """
    folder, source = folder_of(job.spec), Path(job.spec.source)
    return Made(
        job_form(job),
        job.base.digest,
        _base_name(job, folder),
        lock,
        wheels,
        started,
        source.name if source.is_file() else "",
    )


def _base_name(job: Job, folder: Path) -> str:
    """The base as the definition names it: a lock has put its digest in place of the tag."""
    pinned = base_text(job.spec, folder)
    if job.locked is None or job.locked.is_pinned or pinned == job.locked.base:
        return pinned
    return f"{pinned.rpartition('@')[0]}:{job.locked.base.rpartition(':')[2]}"


def job_form(job: Job) -> CanonicalForm:
    """The form that the job's key was made of; a pinned base stands for itself there."""
    named = job.spec.base
    digest = named.digest if isinstance(named, ImageReference) else job.base.digest
    return CanonicalForm.of(job.spec, digest, job.platform)


@dataclass(frozen=True, slots=True)
class Built:
    """An image that is complete in the workspace, under the tag of its name.

    Attributes:
        digest: The digest of what the tag names.
        lock_key: The key of the solution, 64 hex digits.
        layers_made: Package layers that were made.
        layers_reused: Package layers that were known already.
        bytes_uploaded: Bytes of blobs that were sent.
    """

    digest: Digest
    lock_key: str
    layers_made: int
    layers_reused: int
    bytes_uploaded: int


class Builder(Protocol):
    """Builds an image and publishes it to the workspace."""

    def build(self, job: Job) -> Built:
        """Build, push blobs, then the manifest, then the tag; an existing tag wins.

        Raises:
            SolveError: Nothing satisfies the definition.
            IntegrityError: The lock key is not the one that must come out; nothing was published.
            BuildError: The build failed.
            RegistryError: The workspace could not be written.
            DeadlineExceeded: The time ran out.
        """
        ...
