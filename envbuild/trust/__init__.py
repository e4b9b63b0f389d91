"""Which images are trusted: signatures with keys and by identities, and a policy for each repository."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import counted
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.registry import find_manifest
from envbuild.trust.claims import EXPIRES, RECIPE
from envbuild.trust.cosign import PAYLOAD, SIGNATURE, check, payload, public_half, sign, signature_tag
from envbuild.trust.policy import Identity, OnFailure, Rule, Trust, Untrusted, read_key

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.reference import Repository

__all__ = [
    "EXPIRES",
    "PAYLOAD",
    "RECIPE",
    "SIGNATURE",
    "Accepted",
    "Identity",
    "OnFailure",
    "Rule",
    "Trust",
    "Untrusted",
    "accepted_here",
    "check",
    "check_rule",
    "payload",
    "read_key",
    "sign",
    "sign_built",
    "signature_tag",
]


_MOST_IMAGES: Final = 64
"""How many images of an index are looked at."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Why an image is accepted.

    Attributes:
        by: By whom it is signed, in words.
        claims: What each signature that was looked at says of it beside its digest.
    """

    by: str
    claims: tuple[Mapping[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.by


def check_rule(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    rule: Rule,
    *,
    platforms: Collection[Platform] | None = None,
    deadline: Deadline = NO_DEADLINE,
    every: bool = False,
) -> Accepted:
    """See that an image is signed as a rule asks; of an index, that it is and that its images are.

    Args:
        registry: The repository that it is in, with its signatures.
        manifest: The image or index.
        rule: The rule.
        platforms: Whose images of an index are used; None for all that it names.
        deadline: When to give up.
        every: Whether all accepted signatures are read, for what they claim, and not only the first.

    Returns:
        By whom, and with what claims; of an index, those about the index itself.

    Raises:
        Untrusted: A signature is missing; the message says what was wrong with each that there is.
        SpecError: A key, a library or a file that the rule needs cannot be used.
    """
    found = _check_one(registry, manifest, rule, deadline, every=every)
    if isinstance(manifest, Manifest):
        return found
    count = _check_images(registry, manifest, rule, platforms, deadline)
    told = f"{found.by}, as {counted(count, 'image')} of the index" + (" is" if count == 1 else " are")
    return replace(found, by=told)


def _check_images(
    registry: Registry,
    index: ImageIndex,
    rule: Rule,
    platforms: Collection[Platform] | None,
    deadline: Deadline,
) -> int:
    """See that the images of an index are signed: whoever signed it need not have made what it names."""
    entries = index.manifests
    if platforms is not None:
        entries = tuple(entry for each in platforms if (entry := index.for_platform(each)) is not None)
    digests = tuple(dict.fromkeys(entry.digest for entry in entries))
    what = f"the index {registry.repository}@{index.descriptor.digest}"
    if len(digests) > _MOST_IMAGES:
        raise Untrusted(f"{what} has {len(digests)} images, at most {_MOST_IMAGES} are looked at")
    for digest in digests:
        image = find_manifest(registry, digest)
        if not isinstance(image, Manifest):
            raise Untrusted(f"{what} names {digest}, which is {'no image' if image else 'not there'}")
        _check_one(registry, image, rule, deadline)
    return len(digests)


def _check_one(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    rule: Rule,
    deadline: Deadline,
    *,
    every: bool = False,
) -> Accepted:
    """See that a manifest has a signature that a rule accepts: one with a key, or else by an identity."""
    refused: Untrusted | None = None
    found: list[Accepted] = []
    if rule.keys or not rule.identities:
        try:
            claims = check(registry, manifest, rule.keys, deadline=deadline, every=every)
            found.append(Accepted("made with a key that is accepted", claims))
        except Untrusted as error:
            refused = error
    if rule.identities and (every or not found):
        from envbuild.trust.identity import check_identities

        names, root = rule.identities, rule.trusted_root
        try:
            claims = check_identities(registry, manifest, names, root, deadline=deadline, every=every)
            found.append(Accepted("made by an identity that is accepted", claims))
        except Untrusted as error:
            refused = Untrusted(f"{refused.message}; {error.message}") if refused else error
    if found:
        return replace(found[0], claims=tuple(claim for each in found for claim in each.claims))
    raise refused or Untrusted(f"{registry.repository}@{manifest.descriptor.digest} is not signed")


def sign_built(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    trust: Trust,
    *,
    locks: Path,
    deadline: Deadline,
    claims: Mapping[str, str] | None = None,
    has_config: bool = False,
) -> None:
    """Sign what was built, with whatever the policy says: a key, an identity, both, or neither.

    Args:
        registry: The repository.
        manifest: The image or index.
        trust: The policy.
        locks: The folder of the local cache.
        deadline: When to give up.
        claims: What is said of it beside what it carries, as :data:`RECIPE`.
        has_config: As :func:`envbuild.trust.cosign.put_signatures` takes it.

    Raises:
        Untrusted: It is an index, and one of its images is signed neither by us nor as the rule asks: our
            signature over the index would pass for one over the image.
    """
    if trust.signs and isinstance(manifest, ImageIndex):
        _check_images(registry, manifest, accepted_here(registry.repository, trust), None, deadline)
    if trust.sign_key is not None:
        key = trust.sign_key
        sign(registry, manifest, key, locks=locks, deadline=deadline, claims=claims, has_config=has_config)
    if trust.sign_identity is not None:
        from envbuild.trust.identity import sign_as

        root = trust.rule(registry.repository).trusted_root
        source = trust.sign_identity
        sign_as(registry, manifest, source, root, locks=locks, deadline=deadline, claims=claims)


def accepted_here(repository: Repository, trust: Trust) -> Rule:
    """What a repository's rule accepts, and our own signature."""
    rule = trust.rule(repository)
    keys, identities = rule.keys, rule.identities
    if trust.sign_key is not None:
        keys += (public_half(trust.sign_key),)
    if trust.sign_identity is not None:
        from envbuild.trust.identity import identity_of

        identities += (identity_of(trust.sign_identity),)
    return replace(rule, require_signed=True, keys=keys, identities=identities)
