"""What a builder is given, and what it gives back. One contract suite runs on each builder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.key import Key
    from envbuild.lockfile.document import LockEntry
    from envbuild.platform import Platform
    from envbuild.spec.environment import EnvironmentSpec


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
    """

    spec: EnvironmentSpec
    key: Key
    platform: Platform
    base: BaseImage
    deadline: Deadline
    locked: LockEntry | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """An image that is complete in the workspace, under its key's tag.

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
            BuildError: The build failed.
            RegistryError: The workspace could not be written.
            DeadlineExceeded: The time ran out.
        """
        ...
