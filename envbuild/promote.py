"""Taking an image to another repository on purpose: digest unchanged, under the name that was asked for.

All that can be compared is compared before anything is written, and the tag of the name comes last.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envbuild.admission import Admitted, require_name
from envbuild.build.recipe import (
    held_recipe,
    name_of,
    names_of,
    recipe_artifact,
    recipe_tag,
    require_together,
)
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import IntegrityError, SpecError, TagMoved
from envbuild.key import LOCK_TAG
from envbuild.lockkey import name_in
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import put_artifact
from envbuild.oci.registry import find_manifest, publish_over
from envbuild.progress import Event, silent
from envbuild.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Collection

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.lockkey import Name
    from envbuild.oci.copy import CopyReport
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference, Tag
    from envbuild.transfer import Held

_PARTS: Final = re.compile(r"(?:k\d+|l\d+|s1|f1|l|m|v)-[0-9a-f]{64}|sha256-[0-9a-f]{64}.*")
"""The tags of what is kept beside images, and of names that this version does not know."""
_MOST_IMAGES: Final = 64
"""How many images of an index are taken along."""
_MAX_CONFIG: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Promoted:
    """An image that is now in another repository too.

    Attributes:
        reference: Where it is now; the digest is the one it had.
        tags: The tags that name it there.
        report: What was moved.
        attached: How many artifacts went along.
    """

    reference: ImageReference
    tags: tuple[Tag, ...]
    report: CopyReport
    attached: int


@dataclass(frozen=True, slots=True)
class Promotion:
    """Promotes images from one repository to another.

    Attributes:
        source: Where images are.
        target: Where they shall be.
        config: The settings, with the policy.
        progress: Told of each blob, and of what is left out.
        deadline: For the whole of it.
    """

    source: Registry
    target: Registry
    config: Config
    progress: Progress = silent
    deadline: Deadline = NO_DEADLINE

    def promote(
        self,
        wanted: Tag | Digest,
        *,
        name: Name | None = None,
        platforms: Collection[Platform] | None = None,
        platform: Platform | None = None,
        with_referrers: bool = False,
    ) -> Promoted:
        """Copy an image, or an index with all its images, then tag it with the name that was asked for.

        No other name that the image carries, and none of an index's images, is written: nobody asked for
        them, and whoever made the image says what they are.

        Args:
            wanted: What to copy. A tag is kept, beside that of the name.
            name: The name that was looked up; if None, the one that the tag says, else the image's own: its
                key, or the lock key of what carries none.
            platforms: The platforms that were looked up: one is an image's, several an index's; None for
                either.
            platform: The one image of an index to take; None to take what is named.
            with_referrers: Whether what is attached to it goes along.

        Raises:
            NotFound: The source lacks it.
            SpecError: It is no image, or has none for the platform.
            IntegrityError: It is not what its name says.
            Untrusted: The target's rule does not accept it.
            TagMoved: A tag names another image in the target, where it was left as it is.
        """
        found = self.source.by(self.deadline).get_manifest(wanted)
        said = name_in(wanted)
        self._require(found, wanted, name or said, platforms)
        manifest = found if platform is None else self._for_platform(found, platform)
        transfer = Transfer(self.source, self.target, self.config, self.progress, self.deadline)
        if manifest is not found:  # whoever wrote the index says which image it is
            transfer.hold(found)
            if (of_all := said or name_of(found)) is not None:
                self._family(found, of_all)
            said = None  # it was the name of the index
        own = name or said or name_of(manifest)
        family = [transfer.hold(each) for each in self._family(manifest, own)]
        named = wanted if not isinstance(wanted, Digest) and name_in(wanted) is None else None
        tags = [tag for tag in (named, own.tag if own else None) if tag is not None]
        free = {tag: self._is_free(transfer, tag, manifest) for tag in tags}
        report, attached = transfer.copy(manifest), 0
        for each in reversed(family):  # an index is signed after its images
            attached += transfer.vouch(each, with_referrers=with_referrers)
            if with_referrers:
                attached += self._recipe(each)
        for tag in tags:
            if free[tag]:
                self._tag(transfer, manifest, tag)
        kept = tuple(tag for tag in tags if free[tag] is not None)
        return Promoted(self.target.repository.at(manifest.descriptor.digest), kept, report, attached)

    def _require(
        self,
        manifest: Manifest | ImageIndex,
        wanted: Tag | Digest,
        name: Name | None,
        platforms: Collection[Platform] | None,
    ) -> None:
        """See that what is promoted is an image, and the one that was asked for."""
        what = f"{self.source.repository}{'@' if isinstance(wanted, Digest) else ':'}{wanted}"
        if name is None and not isinstance(wanted, Digest) and _PARTS.fullmatch(wanted.name):
            raise SpecError(f"{what} is kept beside images, and is none")
        if isinstance(manifest, Manifest) and manifest.artifact_type is not None:
            raise SpecError(f"{what} is an artifact of the type {manifest.artifact_type!r:.80}, no image")
        if name is not None:
            require_name(manifest, name, what, platforms)

    def _for_platform(self, found: Manifest | ImageIndex, platform: Platform) -> Manifest:
        image = found
        if isinstance(found, ImageIndex):
            entry = found.for_platform(platform)
            if entry is None:
                known = ", ".join(str(each.platform) for each in found.manifests if each.platform)
                raise SpecError(f"the image is for {known or 'no platform'}, and {platform} is asked for")
            image = self.source.by(self.deadline).get_manifest(entry.digest)
        if isinstance(image, ImageIndex):
            raise IntegrityError(f"{found.descriptor.digest} names the index {image.descriptor.digest}")
        if (seen := self._platform(image)) != (platform.os, platform.architecture):
            raise SpecError(f"the image is for {'/'.join(map(str, seen))}, and {platform} is asked for")
        return image

    def _platform(self, manifest: Manifest) -> tuple[str | None, str | None]:
        if manifest.config.size > _MAX_CONFIG:
            raise IntegrityError(f"the config {manifest.config.digest} has {manifest.config.size} bytes")
        with self.source.by(self.deadline).open_blob(manifest.config) as stream:
            content = stream.read()
        try:
            config = json.loads(content)
            return config.get("os"), config.get("architecture")
        except (ValueError, AttributeError, RecursionError):
            raise IntegrityError(f"the config {manifest.config.digest} is not a JSON object") from None

    def _family(
        self, manifest: Manifest | ImageIndex, name: Name | None
    ) -> tuple[Manifest | ImageIndex, ...]:
        """The manifest and, of an index, its images, whose names together are that of the index.

        Raises:
            IntegrityError: They are not, or it has very many, or names something else than images.
        """
        if isinstance(manifest, Manifest):
            return (manifest,)
        what = f"the index {self.source.repository}@{manifest.descriptor.digest}"
        if len(manifest.manifests) > _MOST_IMAGES:
            raise IntegrityError(
                f"{what} has {len(manifest.manifests)} images, at most {_MOST_IMAGES} go along"
            )
        images = []
        for entry in manifest.manifests:
            image = self.source.by(self.deadline).get_manifest(entry.digest)
            if not isinstance(image, Manifest):
                raise IntegrityError(f"{what} names the index {entry.digest}, expected an image")
            images.append(image)
        if name is not None:
            require_together(manifest, images, name, what)
        return manifest, *images

    def _is_free(self, transfer: Transfer, tag: Tag, manifest: Manifest | ImageIndex) -> bool | None:
        """Whether a tag is to be written; None where another image of the same solution holds it.

        Raises:
            TagMoved: It names another image, which the target's rule accepts.
        """
        seen = find_manifest(self.target.by(self.deadline), tag)
        if seen is None:
            return True
        if seen.descriptor.digest == manifest.descriptor.digest:
            return False
        if transfer.is_strict and self._refuses(transfer, seen):
            return True
        if tag.name.startswith(LOCK_TAG):
            return None
        raise _moved(self.target, tag, seen, manifest)

    def _refuses(self, transfer: Transfer, seen: Manifest | ImageIndex) -> bool:
        """Whether the target's rule does not accept what is there: it is as good as not there."""
        target = self.target.by(self.deadline)
        return transfer.admission.image(seen, target, self.deadline) is None

    def _recipe(self, held: Held) -> int:
        """Write the recipe beside an image, with which it can be put on another base, if it is its own.

        It is written as it was read: its artifact may name anything beside.
        """
        source, target = self.source.by(self.deadline), self.target.by(self.deadline)
        image = Admitted(held.manifest, held.is_vouched, held.claims)
        for name in names_of(held.manifest) if isinstance(held.manifest, Manifest) else ():
            tag = recipe_tag(name)
            if (found := find_manifest(source, tag)) is None:
                continue
            try:
                recipe = held_recipe(found, name, image, source.repository)
            except IntegrityError as error:
                text = f"left out: {error.message}"
                self.progress(Event("push", str(source.repository), "output", text=text))
                continue
            own, there = recipe_artifact(recipe.to_text()), find_manifest(target, tag)
            if there is not None and (there.raw == own.raw or not held.is_vouched):
                return 0
            put_artifact(target, own, tag)
            return 1
        return 0

    def _tag(self, transfer: Transfer, manifest: Manifest | ImageIndex, tag: Tag) -> None:
        """Write a tag, unless somebody was there first."""
        if self._is_free(transfer, tag, manifest):
            publish_over(self.target.by(self.deadline), manifest, tag)


def _moved(
    target: Registry, tag: Tag, seen: Manifest | ImageIndex, manifest: Manifest | ImageIndex
) -> TagMoved:
    return TagMoved(
        f"{target.repository}:{tag} names {seen.descriptor.digest} already, not "
        f"{manifest.descriptor.digest}; it was left as it is",
        hint="use the image that the tag names, or delete that one first",
    )
