"""From the name of a base to its digest, and from there to its bytes."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envbuild.digest import Digest
from envbuild.errors import IntegrityError, NotFound, SpecError
from envbuild.index import BaseEntry
from envbuild.reference import ImageReference, Tag, TaggedReference

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.deadline import Deadline
    from envbuild.index import Index
    from envbuild.oci.registries import Registries
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform

MAX_REMEMBERED: Final = 1 << 18
"""Manifests and configs of more bytes together are read anew each time."""

BaseReference = ImageReference | TaggedReference | None
"""A pinned base, a tag of one, or ``scratch``."""


@dataclass(frozen=True, slots=True)
class Bases:
    """Knows what bases are called.

    Attributes:
        registries: Opens the repositories that hold bases.
        index: Remembers what tags named.
        ttl: Seconds for which that is believed.
        docker_host: The address of the engine that bases may be in; None for the usual places.
    """

    registries: Registries
    index: Index
    ttl: float
    docker_host: str | None = None

    def digest(self, reference: BaseReference, platform: Platform, deadline: Deadline) -> Digest | None:
        """The digest that stands for a base in a key; None for ``scratch``.

        A pinned base stands for itself and needs no network. A tag is resolved to the digest of the
        platform's manifest, and that is remembered for a while; an engine is asked each time.

        Raises:
            SpecError: The repository answers that there is no such base.
            BuildError: The base is in an engine, and none answered.
        """
        if reference is None:
            return None
        if isinstance(reference, ImageReference):
            return reference.digest
        if reference.repository.is_engine:
            return self.image(reference, platform, deadline).digest
        name = f"{reference} {platform}"
        known = self.index.base(name)
        if known is not None and 0 <= time.time() - known.resolved_at < self.ttl:
            return known.digest
        digest = self.image(reference, platform, deadline).digest
        if digest is not None:
            self.index.put_base(name, BaseEntry(digest, time.time()))
        return digest

    def image(
        self,
        reference: BaseReference,
        platform: Platform,
        deadline: Deadline,
        digest: Digest | None = None,
    ) -> BaseImage:
        """The base itself; its manifest and config are read once.

        Args:
            reference: The base.
            platform: The platform.
            deadline: When to give up.
            digest: What the base's tag was resolved to: a tag that moved since does not matter.

        Raises:
            SpecError: The repository answers that there is no such base.
        """
        from envbuild.build.base import BaseImage

        if reference is None:
            return BaseImage.scratch(platform)
        registry, wanted = self._place(reference, digest, deadline)
        name = f"base {registry.repository}@{wanted} {platform}"
        if not isinstance(wanted, Tag) and (known := self._known(name, registry, platform)) is not None:
            return known
        try:
            image = BaseImage.read(registry, wanted, platform)
        except NotFound as error:
            if digest is not None:  # what the tag named is gone: ask for the tag again
                self.index.put_base(f"{reference} {platform}", BaseEntry(digest, 0.0))
            raise SpecError(
                f"the base {reference} does not exist: {error.message}",
                hint="check its name and tag, or give another with --base",
            ) from None
        for each in {wanted, image.digest}:
            if isinstance(each, Digest):
                self._remember(f"base {registry.repository}@{each} {platform}", image)
        return image

    def _place(
        self, reference: ImageReference | TaggedReference, digest: Digest | None, deadline: Deadline
    ) -> tuple[Registry, Tag | Digest]:
        """Where the base can be read, and as what."""
        if reference.repository.is_engine:
            from envbuild.build.local_images import LocalImages

            if digest is not None:
                reference = reference.repository.at(digest)
            registry, wanted = LocalImages(self.index.folder, self.docker_host).bring(reference, deadline)
            return registry.by(deadline), wanted
        named = reference.digest if isinstance(reference, ImageReference) else digest or reference.tag
        return self.registries.open(reference.repository).by(deadline), named

    def _remember(self, name: str, image: BaseImage) -> None:
        raw, config = image.manifest.raw, image.raw_config
        if len(raw) + len(config) > MAX_REMEMBERED:
            return
        with contextlib.suppress(UnicodeDecodeError):  # JSON may be in other encodings, and then is read anew
            document = [image.manifest.media_type, raw.decode(), config.decode()]
            self.index.put_fact(name, json.dumps(document, ensure_ascii=False))

    def _known(self, name: str, registry: Registry, platform: Platform) -> BaseImage | None:
        """A base that was read before, if its bytes are what their digests say."""
        from envbuild.build.base import BaseImage
        from envbuild.oci.manifest import Manifest, parse_manifest

        if (text := self.index.fact(name)) is None:
            return None
        try:
            media_type, raw, config = (str(part) for part in json.loads(text))
            manifest = parse_manifest(raw.encode(), media_type, name)
            if not isinstance(manifest, Manifest):
                return None
            manifest.config.digest.verify(config.encode(), name)
            base = BaseImage(
                registry.repository.at(manifest.descriptor.digest), manifest, config.encode(), registry
            )
            base.check(platform)
        except (ValueError, IntegrityError, SpecError):
            return None
        return base
