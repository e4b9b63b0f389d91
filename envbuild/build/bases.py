"""From the name of a base to its digest, and from there to its bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuild.errors import NotFound, SpecError
from envbuild.index import BaseEntry
from envbuild.reference import ImageReference, TaggedReference

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.index import Index
    from envbuild.oci.registries import Registries
    from envbuild.platform import Platform

BaseReference = ImageReference | TaggedReference | None
"""A pinned base, a tag of one, or ``scratch``."""


@dataclass(frozen=True, slots=True)
class Bases:
    """Knows what bases are called.

    Attributes:
        registries: Opens the repositories that hold bases.
        index: Remembers what tags named.
        ttl: Seconds for which that is believed.
    """

    registries: Registries
    index: Index
    ttl: float

    def digest(self, reference: BaseReference, platform: Platform, deadline: Deadline) -> Digest | None:
        """The digest that stands for a base in a key; None for ``scratch``.

        A pinned base stands for itself and needs no network. A tag is resolved to the digest of the
        platform's manifest, and that is remembered for a while.

        Raises:
            SpecError: The repository answers that there is no such base.
        """
        if reference is None:
            return None
        if isinstance(reference, ImageReference):
            return reference.digest
        name = f"{reference} {platform}"
        known = self.index.base(name)
        if known is not None and 0 <= time.time() - known.resolved_at < self.ttl:
            return known.digest
        digest = self.image(reference, platform, deadline).digest
        if digest is not None:
            self.index.put_base(name, BaseEntry(digest, time.time()))
        return digest

    def image(self, reference: BaseReference, platform: Platform, deadline: Deadline) -> BaseImage:
        """The base itself.

        Raises:
            SpecError: The repository answers that there is no such base.
        """
        from envbuild.build.base import BaseImage

        if reference is None:
            return BaseImage.scratch(platform)
        registry = self.registries.open(reference.repository).by(deadline)
        wanted = reference.digest if isinstance(reference, ImageReference) else reference.tag
        try:
            return BaseImage.read(registry, wanted, platform)
        except NotFound as error:
            raise SpecError(
                f"the base {reference} does not exist: {error.message}",
                hint="check its name and tag, or give another with --base",
            ) from None
