"""From the name of a base to its digest, and from there to its bytes."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from envbuild.digest import Digest
from envbuild.errors import IntegrityError, NotFound, SpecError
from envbuild.index import BaseEntry
from envbuild.reference import ImageReference, Tag, TaggedReference

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.deadline import Deadline
    from envbuild.index import Index
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registries import Registries
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.trust import Trust

MAX_REMEMBERED: Final = 1 << 18
"""Manifests and configs of more bytes together are read anew each time."""

_SIGN: Final = "sign it, choose another base, or let the policy accept bases of its repository"

BaseReference = ImageReference | TaggedReference | None
"""A pinned base, a tag of one, or ``scratch``."""


class Named(NamedTuple):
    """What the tag of a base named when it was asked.

    Attributes:
        digest: The digest of an image, or of an index over several.
        manifest: That image or index, where it was read just now.
    """

    digest: Digest
    manifest: Manifest | ImageIndex | None = None


@dataclass(frozen=True, slots=True)
class Bases:
    """Knows what bases are called.

    Attributes:
        registries: Opens the repositories that hold bases.
        index: Remembers what tags named.
        ttl: Seconds for which that is believed.
        docker_host: The address of the engine that bases may be in; None for the usual places.
        trust: The policy, whose rules by name hold for bases too; None for none.
    """

    registries: Registries
    index: Index
    ttl: float
    docker_host: str | None = field(default=None, repr=False)
    trust: Trust | None = None

    def named(self, reference: BaseReference, deadline: Deadline) -> Named | None:
        """What a tag names, asked at most once within :attr:`ttl`; None for all bases that need no asking.

        Raises:
            SpecError: The repository answers that there is no such base.
        """
        if not isinstance(reference, TaggedReference) or reference.repository.is_engine:
            return None
        known = self.index.base(str(reference))
        if known is not None and 0 <= time.time() - known.resolved_at < self.ttl:
            return Named(known.digest)
        return self.asked(reference, deadline)

    def asked(self, reference: TaggedReference, deadline: Deadline) -> Named:
        """What a tag names now; remembered for :meth:`named`.

        Raises:
            SpecError: The repository answers that there is no such base.
        """
        try:
            manifest = self.registries.open(reference.repository).by(deadline).get_manifest(reference.tag)
        except NotFound as error:
            raise _missing(reference, error) from None
        found = Named(manifest.descriptor.digest, manifest)
        self.index.put_base(str(reference), BaseEntry(found.digest, time.time()))
        return found

    def digest(
        self, reference: BaseReference, platform: Platform, deadline: Deadline, named: Named | None = None
    ) -> Digest | None:
        """The digest that stands for a base in a key; None for ``scratch``.

        A pinned base stands for itself and needs no network. A tag is resolved to the digest of the
        platform's manifest; an engine is asked each time.

        Args:
            reference: The base.
            platform: The platform.
            deadline: When to give up.
            named: What the tag names, where it was asked already: the platforms of one definition must come
                from one answer.

        Raises:
            SpecError: The repository answers that there is no such base.
            BuildError: The base is in an engine, and none answered.
        """
        if reference is None:
            return None
        if isinstance(reference, ImageReference):
            return reference.digest
        if (named := named or self.named(reference, deadline)) is None:
            return self.image(reference, platform, deadline).digest
        name = f"choice {reference.repository}@{named.digest} {platform}"
        if known := self.index.fact(name):
            return Digest.parse(known)
        digest = self._read(reference, platform, deadline, named).digest
        self.index.put_fact(name, str(digest))
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
            digest: What the base's tag was resolved to, an image or an index: a tag that moved since does not
                matter.

        Raises:
            SpecError: The repository answers that there is no such base.
        """
        from envbuild.build.base import BaseImage

        if reference is None:
            return BaseImage.scratch(platform)
        return self._read(reference, platform, deadline, Named(digest) if digest is not None else None)

    def _read(
        self,
        reference: ImageReference | TaggedReference,
        platform: Platform,
        deadline: Deadline,
        named: Named | None,
    ) -> BaseImage:
        image = self._found(reference, platform, deadline, named)
        if self.trust is not None and not reference.repository.is_engine:
            self._require_signed(self.trust, reference, image, named, deadline)
        return image

    def _require_signed(
        self,
        trust: Trust,
        reference: ImageReference | TaggedReference,
        image: BaseImage,
        named: Named | None,
        deadline: Deadline,
    ) -> None:
        """Hold a base against the rule that is about its repository by name, if there is one.

        The image's signature is enough, and so is that of the index which the base's name stands for: it
        names the image by its digest.

        Raises:
            Untrusted: Neither is there. Without its base nothing can be made, so this is never a miss.
        """
        scope, rule = trust.chosen(reference.repository)
        if scope is None or not rule.require_signed:
            return
        from envbuild.oci.registry import find_manifest
        from envbuild.trust import EXPIRES, Untrusted, check_rule
        from envbuild.trust.statement import fingerprint

        fact = f"signed base {image.digest} {fingerprint(rule)}"
        if self.index.fact(fact) is not None:
            return
        registry = self.registries.open(reference.repository).by(deadline)
        reasons = []
        wanted = reference.digest if isinstance(reference, ImageReference) else reference.tag
        for over in (image.manifest, named and named.manifest, wanted):
            found = find_manifest(registry, over) if isinstance(over, Digest | Tag) else over
            if found is None or (over is not image.manifest and not _names(found, image.digest)):
                continue
            try:
                accepted = check_rule(registry, found, rule, platforms=(), deadline=deadline)
            except Untrusted as error:
                reasons.append(error.message)
            else:
                if not any(EXPIRES in claims for claims in accepted.claims):  # what ends is no fact
                    self.index.put_fact(fact, "yes")
                return
        told = "; ".join(dict.fromkeys(reasons))
        raise Untrusted(f"the base {reference} is not used: {told}", hint=_SIGN)

    def _found(
        self,
        reference: ImageReference | TaggedReference,
        platform: Platform,
        deadline: Deadline,
        named: Named | None,
    ) -> BaseImage:
        from envbuild.build.base import BaseImage

        registry, wanted = self._place(reference, named.digest if named is not None else None, deadline)
        name = f"base {registry.repository}@{wanted} {platform}"
        if not isinstance(wanted, Tag) and (known := self._known(name, registry, platform)) is not None:
            return known
        try:
            manifest = named.manifest if named is not None else None
            image = BaseImage.of(registry, manifest or registry.get_manifest(wanted), platform)
        except NotFound as error:
            if named is not None:  # what the tag named is gone: ask for the tag again
                self.index.put_base(str(reference), BaseEntry(named.digest, 0.0))
            raise _missing(reference, error) from None
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


def _names(found: Manifest | ImageIndex, image: Digest | None) -> bool:
    """Whether something is an index that names an image."""
    return any(each.digest == image for each in getattr(found, "manifests", ()))


def _missing(reference: ImageReference | TaggedReference, error: NotFound) -> SpecError:
    return SpecError(
        f"the base {reference} does not exist: {error.message}",
        hint="check its name and tag, or give another with --base",
    )
