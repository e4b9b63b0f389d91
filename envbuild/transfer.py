"""Taking an image to another repository: its bytes as they are, with signatures that count there.

Whether it may go there is seen before anything is written. Where signatures are asked for, or where we sign
what it becomes part of, somebody must vouch for it: with a signature that counts in the target, which goes
along; else with one that counts where it is, and then it is signed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from envbuild.admission import Admission
from envbuild.deadline import NO_DEADLINE
from envbuild.oci.copy import copy_image
from envbuild.oci.manifest import Manifest
from envbuild.oci.referrers import enlist, referrers
from envbuild.oci.registry import find_manifest
from envbuild.progress import silent
from envbuild.storage import key_lock
from envbuild.trust.cosign import MAX_PAYLOAD, made_with, put_signatures, signature_tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.copy import CopyReport
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress
    from envbuild.reference import Tag
    from envbuild.trust import Rule, Trust, Untrusted

_DEPTH: Final = 3
"""How far referrers of referrers are followed, as a signature of an SBOM of an image."""
_BUNDLES: Final = "application/vnd.dev.sigstore.bundle"
_MOST: Final = 64
"""How many artifacts, and how many signatures, go along with an image: others may attach things, too."""
_MAX_BUNDLES: Final = 32 << 20
"""How many bytes of signatures by identities go along: as many as are read to find one that counts."""
_MAX_ARTIFACT: Final = 64 << 20
"""The largest artifact that goes along, in bytes."""


@dataclass(frozen=True, slots=True)
class Held:
    """An image or index that may be taken along.

    Attributes:
        manifest: The image or index.
        is_vouched: Whether a signature was asked for, and is there.
        claims: What each accepted signature says of it beside its digest.
        signs: Whether it is signed anew, for the target does not accept those who signed it.
    """

    manifest: Manifest | ImageIndex
    is_vouched: bool = False
    claims: tuple[Mapping[str, Any], ...] = ()
    signs: bool = False


@dataclass(frozen=True)
class Transfer:
    """Takes images from one repository to another. May be used by several threads.

    Attributes:
        source: Where images are.
        target: Where they shall be.
        config: The settings, with the policy.
        progress: Told of each blob.
        deadline: For the whole of it.
    """

    source: Registry
    target: Registry
    config: Config
    progress: Progress = silent
    deadline: Deadline = NO_DEADLINE
    admission: Admission = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """What goes into the target is asked for what goes into a workspace is."""
        config = replace(self.config, workspace=self.target.repository, deep=False)
        object.__setattr__(self, "admission", Admission(config, self.progress))

    @property
    def is_strict(self) -> bool:
        """Whether the target's rule asks for signatures."""
        return self.admission.rule(self.target.repository) is not None

    def hold(self, manifest: Manifest | ImageIndex) -> Held:
        """See that an image, or an index apart from its images, may be taken along; nothing is written.

        Raises:
            Untrusted: Nobody whom the target's rule accepts vouches for it, and what is signed here must not
                be signed for it either; or the rule of where it is refuses it.
        """
        trust, source = self.config.trust, self.source.by(self.deadline)
        there = self._there()
        if trust is None or there is None:
            held = self.admission.require(manifest, source, self.deadline, platforms=(), every=True)
            return Held(manifest, held.is_vouched, held.claims)
        from envbuild.trust import Untrusted, check_rule

        try:
            found = check_rule(source, manifest, there, platforms=(), deadline=self.deadline, every=True)
        except Untrusted as error:
            if not trust.signs:
                raise self._refused(error) from None
        else:
            return Held(manifest, is_vouched=True, claims=found.claims)
        try:
            held = self.admission.require(
                manifest, source, self.deadline, part=True, platforms=(), every=True
            )
        except Untrusted as error:
            if self.is_strict:
                raise self._refused(error) from None
            self.admission.require(manifest, source, self.deadline, platforms=())
            return Held(manifest)
        return Held(manifest, is_vouched=True, claims=held.claims, signs=True)

    def _there(self) -> Rule | None:
        """Whose signatures count in the target: those of its rule; where that asks for none, also ours."""
        repository = self.target.repository
        return self.admission.rule(repository) or self.admission.rule(repository, part=True)

    def _refused(self, error: Untrusted) -> Untrusted:
        from envbuild.trust import Untrusted

        hint = f"sign it for {self.target.repository}, whose rule asks for that"
        return Untrusted(f"not copied to {self.target.repository}: {error.message}", hint=hint)

    def copy(self, manifest: Manifest | ImageIndex) -> CopyReport:
        """Copy an image, or an index with all that it names; nothing is tagged."""
        return copy_image(
            self.source,
            self.target,
            manifest,
            jobs=self.config.jobs,
            progress=self.progress,
            deadline=self.deadline,
        )

    def vouch(self, held: Held, *, with_referrers: bool = False) -> int:
        """Have what was copied signed where it is now; of an index, after its images.

        Args:
            held: What :meth:`hold` said of it.
            with_referrers: Whether all that is attached to it goes along; else the signatures that count.

        Returns:
            How many artifacts went along.

        Raises:
            Untrusted: The target's rule does not accept it after all.
        """
        manifest, trust = held.manifest, self.config.trust
        attached = 0
        if with_referrers or (held.is_vouched and not held.signs):
            attached = self._attachments(manifest.descriptor.digest, every=with_referrers)
        if held.signs and trust is not None:
            self._sign(held, trust)
        if self.is_strict:
            self.admission.require(manifest, self.target.by(self.deadline), self.deadline, platforms=())
        return attached

    def _sign(self, held: Held, trust: Trust) -> None:
        """Sign it here; what others say of its recipe, and was accepted, is said again."""
        from envbuild.trust import RECIPE, sign_built

        said = [str(claim[RECIPE]) for claim in held.claims if RECIPE in claim]
        sign_built(
            self.target.by(self.deadline),
            held.manifest,
            trust,
            locks=self.config.cache_dir,
            deadline=self.deadline,
            claims={RECIPE: said[0]} if said else {},
        )

    def _attachments(self, subject: Digest, *, every: bool) -> int:
        """Copy what is attached to a manifest, before anything is tagged: a signature must be there first.

        What is attached to that goes along as well, as a signature of an SBOM of an image.
        """
        source, target = self.source.by(self.deadline), self.target.by(self.deadline)
        count, left, room, subjects = 0, _MOST, _MAX_BUNDLES, [(subject, 0)]
        while subjects:
            about, depth = subjects.pop(0)
            manifests = []
            for entry in referrers(source, about):
                is_bundle = (entry.artifact_type or "").startswith(_BUNDLES)
                if not is_bundle and (not every or left <= 0):
                    continue
                artifact = source.get_manifest(entry.digest)
                size = sum(blob.size for blob in artifact.blobs) if isinstance(artifact, Manifest) else 0
                left, room = (left, room - entry.size - size) if is_bundle else (left - 1, room)
                if room < 0:
                    break
                if _is_about(artifact, about) and size <= _MAX_ARTIFACT:
                    self.copy(artifact)
                    manifests.append(artifact)
            if manifests:
                enlist(target, about, manifests, locks=self.config.cache_dir, deadline=self.deadline)
            count += len(manifests) + self._signatures(signature_tag(about), every=every)
            if depth < _DEPTH:
                subjects += [(each.descriptor.digest, depth + 1) for each in manifests]
        return count

    def _signatures(self, tag: Tag, *, every: bool) -> int:
        """Have an image's signatures in the target, beside those that it has there; whether there are any."""
        source, target = self.source.by(self.deadline), self.target.by(self.deadline)
        signed = find_manifest(source, tag)
        if not isinstance(signed, Manifest):
            return 0
        layers = self._signing(signed, every=every)
        for layer in layers:
            target.put_blob(layer, partial(source.open_blob, layer))
        with key_lock(self.config.cache_dir, f"sign-{tag.name}", self.deadline):
            there = find_manifest(target, tag)
            before = there.layers if isinstance(there, Manifest) else ()
            new = tuple(layer for layer in layers if layer not in before)
            if not before and layers == signed.layers:
                self.copy(signed)
                target.put_manifest(signed, tag)
            elif new:
                put_signatures(target, tag, (*before, *new))
        return 1 if layers else 0

    def _signing(self, signed: Manifest, *, every: bool) -> tuple[Descriptor, ...]:
        """Those of an image's signatures that go along: others may have written far more of them."""
        rule = self._there()
        counting = made_with(rule.keys if rule is not None else (), signed.layers)
        others = [layer for layer in signed.layers if layer.size <= MAX_PAYLOAD] if every else []
        chosen = {*counting[:_MOST], *others[:_MOST]}
        return tuple(layer for layer in signed.layers if layer in chosen)


def _is_about(artifact: Manifest | ImageIndex, subject: Digest) -> TypeGuard[Manifest]:
    return (
        isinstance(artifact, Manifest) and artifact.subject is not None and artifact.subject.digest == subject
    )
