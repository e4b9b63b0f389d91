"""Taking an image from one repository to another on purpose: digest unchanged, key tags kept, tags last."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import IntegrityError, SpecError, TagMoved
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION, LOCK_TAG
from envbuild.oci.copy import JOBS, copy_image
from envbuild.oci.family import family
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import enlist, referrers
from envbuild.oci.registry import find_manifest, publish
from envbuild.progress import silent
from envbuild.reference import Tag
from envbuild.storage import key_lock
from envbuild.trust.cosign import put_signatures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.oci.copy import CopyReport
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference

_HEX: Final = re.compile("[0-9a-f]{64}")
_DEPTH: Final = 3
_MAX_CONFIG: Final = 8 << 20
"""How far referrers of referrers are followed, as a signature of an SBOM of an image."""


@dataclass(frozen=True, slots=True)
class Promoted:
    """An image that is now in another repository too.

    Attributes:
        reference: Where it is now; the digest is the one it had.
        tags: The tags that name it, or its images, there.
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
        locks: The folder of the local cache.
        jobs: How many blobs are moved at once.
        progress: Told of each blob.
        deadline: For the whole of it.
    """

    source: Registry
    target: Registry
    locks: Path
    jobs: int = JOBS
    progress: Progress = silent
    deadline: Deadline = NO_DEADLINE

    def promote(
        self,
        wanted: Tag | Digest,
        *,
        platform: Platform | None = None,
        with_referrers: bool = False,
        locked: bool = False,
    ) -> Promoted:
        """Copy an image, or an index with all its images, then its tags.

        Args:
            wanted: What to copy. A tag is kept, beside the tags of the keys that the images carry.
            platform: The one image of an index to take; None to take an index whole.
            with_referrers: Whether what is attached to it goes along.
            locked: Whether only the tags of lock keys are kept: who asks for what is locked writes no key.

        Raises:
            NotFound: The source lacks it.
            SpecError: It has no image for the platform.
            TagMoved: A tag names another image in the target, where it was left as it is.
        """
        manifest = self._chosen(self.source.by(self.deadline).get_manifest(wanted), platform)
        *below, _ = family(self.source.by(self.deadline), manifest)
        images = (manifest, *below)
        report = self._copy(manifest)
        attached = 0
        for each in images if with_referrers else ():
            attached += self._attachments(each.descriptor.digest, 0) + self._recipe(each)
        tags = tuple(self._tags(wanted, manifest, images, locked=locked))
        return Promoted(self.target.repository.at(manifest.descriptor.digest), tags, report, attached)

    def _copy(self, manifest: Manifest | ImageIndex) -> CopyReport:
        return copy_image(
            self.source, self.target, manifest, jobs=self.jobs, progress=self.progress, deadline=self.deadline
        )

    def _chosen(self, manifest: Manifest | ImageIndex, platform: Platform | None) -> Manifest | ImageIndex:
        if platform is None:
            return manifest
        if isinstance(manifest, ImageIndex):
            entry = manifest.for_platform(platform)
            if entry is None:
                known = ", ".join(str(each.platform) for each in manifest.manifests if each.platform)
                raise SpecError(f"the image is for {known or 'no platform'}, and {platform} is asked for")
            return self.source.by(self.deadline).get_manifest(entry.digest)
        if (seen := self._platform(manifest)) != (platform.os, platform.architecture):
            raise SpecError(f"the image is for {'/'.join(map(str, seen))}, and {platform} is asked for")
        return manifest

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

    def _attachments(self, subject: Digest, depth: int) -> int:
        """Copy what is attached to a manifest, before anything is tagged: a signature must be there first."""
        source, target = self.source.by(self.deadline), self.target.by(self.deadline)
        manifests = []
        for entry in referrers(source, subject):
            artifact = source.get_manifest(entry.digest)
            if isinstance(artifact, Manifest) and artifact.subject and artifact.subject.digest == subject:
                self._copy(artifact)
                manifests.append(artifact)
        enlist(target, subject, manifests, locks=self.locks, deadline=self.deadline)
        count = len(manifests)
        signature = Tag(f"sha256-{subject.hex}.sig")
        if isinstance(signed := find_manifest(source, signature), Manifest):
            self._copy(signed)
            self._sign(signed, signature)
            count += 1
        if depth < _DEPTH:
            count += sum(self._attachments(each.descriptor.digest, depth + 1) for each in manifests)
        return count

    def _sign(self, signed: Manifest, tag: Tag) -> None:
        """Have an image's signatures in the target, beside those that it has there."""
        target = self.target.by(self.deadline)
        with key_lock(self.locks, f"sign-{tag.name}", self.deadline):
            there = find_manifest(target, tag)
            before = there.layers if isinstance(there, Manifest) else ()
            new = tuple(layer for layer in signed.layers if layer not in before)
            if not before:
                target.put_manifest(signed, tag)
            elif new:
                put_signatures(target, tag, (*before, *new))

    def _recipe(self, manifest: Manifest | ImageIndex) -> int:
        """Copy the recipes beside an image, with which it can be put on another base; how many there were."""
        count = 0
        for name in (KEY_ANNOTATION, LOCK_ANNOTATION):
            key = manifest.annotations.get(name, "")
            if not _HEX.fullmatch(key):
                continue
            tag = Tag(f"f1-{key}")
            found = find_manifest(self.source.by(self.deadline), tag)
            if found is None or find_manifest(self.target.by(self.deadline), tag) is not None:
                continue
            self._copy(found)
            self.target.by(self.deadline).put_manifest(found, tag)
            count += 1
        return count

    def _tags(
        self,
        wanted: Tag | Digest,
        manifest: Manifest | ImageIndex,
        images: tuple[Manifest | ImageIndex, ...],
        *,
        locked: bool,
    ) -> Iterator[Tag]:
        for each in images:
            for tag in key_tags(each):
                if locked and not tag.name.startswith(LOCK_TAG):
                    continue
                if self._tag(each, tag) or not tag.name.startswith(LOCK_TAG):
                    yield tag
        if isinstance(wanted, Tag) and wanted not in {tag for each in images for tag in key_tags(each)}:
            self._tag(manifest, wanted)
            yield wanted

    def _tag(self, manifest: Manifest | ImageIndex, tag: Tag) -> bool:
        """Whether a tag names the manifest in the end; another image of the same lock may hold its tag."""
        target = self.target.by(self.deadline)
        try:
            seen = publish(target, manifest, tag, stored=True).descriptor.digest
        except IntegrityError:  # what stands there does not even carry the key
            seen = target.get_manifest(tag).descriptor.digest
        if seen == manifest.descriptor.digest:
            return True
        if tag.name.startswith(LOCK_TAG):
            return False
        raise TagMoved(
            f"{target.repository}:{tag} names {seen} already, not {manifest.descriptor.digest}; "
            "it was left as it is",
            hint="use the image that the tag names, or delete that one first; ours is there by its digest",
        )


def key_tags(manifest: Manifest | ImageIndex) -> tuple[Tag, ...]:
    """The tags under which an image is looked up, from the keys that it carries."""
    carried = ((prefix, manifest.annotations.get(name, "")) for prefix, name in _TAGS)
    return tuple(Tag(f"{prefix}{key}") for prefix, key in carried if _HEX.fullmatch(key))


_TAGS: Final = ((LOCK_TAG, LOCK_ANNOTATION), ("k1-", KEY_ANNOTATION))
"""The key's tag comes last: whoever finds it finds the rest."""
