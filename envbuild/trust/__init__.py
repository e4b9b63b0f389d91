"""Which images are trusted: signatures with keys and by identities, and a policy for each repository."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import counted
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.registry import find_manifest
from envbuild.trust.claims import EXPIRES
from envbuild.trust.cosign import PAYLOAD, SIGNATURE, check, payload, public_half, sign, signature_tag
from envbuild.trust.policy import Identity, OnFailure, Rule, Trust, Untrusted, read_key

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform

__all__ = [
    "EXPIRES",
    "PAYLOAD",
    "SIGNATURE",
    "Identity",
    "OnFailure",
    "Rule",
    "Trust",
    "Untrusted",
    "check",
    "check_rule",
    "payload",
    "read_key",
    "sign",
    "sign_admitted",
    "sign_built",
    "signature_tag",
]


_MOST_IMAGES: Final = 64
"""How many images of an index are looked at."""


def check_rule(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    rule: Rule,
    *,
    platforms: Collection[Platform] | None = None,
    deadline: Deadline = NO_DEADLINE,
) -> str:
    """See that an image is signed as a rule asks; of an index, that it is and that its images are.

    Args:
        registry: The repository that it is in, with its signatures.
        manifest: The image or index.
        rule: The rule.
        platforms: Whose images of an index are used; None for all that it names.
        deadline: When to give up.

    Returns:
        By whom, in words.

    Raises:
        Untrusted: A signature is missing; the message says what was wrong with each that there is.
        SpecError: A key, a library or a file that the rule needs cannot be used.
    """
    by = _check_one(registry, manifest, rule, deadline)
    if isinstance(manifest, Manifest):
        return by
    count = _check_images(registry, manifest, rule, platforms, deadline)
    return f"{by}, as {counted(count, 'image')} of the index" + (" is" if count == 1 else " are")


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


def _check_one(registry: Registry, manifest: Manifest | ImageIndex, rule: Rule, deadline: Deadline) -> str:
    """See that a manifest has a signature that a rule accepts: one with a key, or else by an identity."""
    refused: Untrusted | None = None
    if rule.keys or not rule.identities:
        try:
            check(registry, manifest, rule.keys, deadline=deadline)
        except Untrusted as error:
            refused = error
        else:
            return "made with a key that is accepted"
    if rule.identities:
        from envbuild.trust.identity import check_identities

        try:
            check_identities(registry, manifest, rule.identities, rule.trusted_root, deadline=deadline)
        except Untrusted as error:
            refused = Untrusted(f"{refused.message}; {error.message}") if refused else error
        else:
            return "made by an identity that is accepted"
    raise refused or Untrusted(f"{registry.repository}@{manifest.descriptor.digest} is not signed")


def sign_built(
    registry: Registry, manifest: Manifest | ImageIndex, trust: Trust, *, locks: Path, deadline: Deadline
) -> None:
    """Sign what was built, with whatever the policy says: a key, an identity, both, or neither.

    Raises:
        Untrusted: It is an index, and one of its images is signed neither by us nor as the rule asks: our
            signature over the index would pass for one over the image.
    """
    if trust.signs and isinstance(manifest, ImageIndex):
        _check_images(registry, manifest, _ours(registry, trust), None, deadline)
    if trust.sign_key is not None:
        sign(registry, manifest, trust.sign_key, locks=locks, deadline=deadline)
    if trust.sign_identity is not None:
        from envbuild.trust.identity import sign_as

        root = trust.rule(registry.repository).trusted_root
        sign_as(registry, manifest, trust.sign_identity, root, locks=locks, deadline=deadline)


def sign_admitted(
    source: Registry,
    target: Registry,
    manifest: Manifest,
    trust: Trust,
    *,
    locks: Path,
    deadline: Deadline,
) -> None:
    """Sign an image that was copied from a repository whose rule asks for signatures.

    Raises:
        Untrusted: The rule of where it comes from does not accept it.
    """
    rule = trust.rule(source.repository)
    if trust.signs and rule.require_signed:
        check_rule(source, manifest, rule, deadline=deadline)
        sign_built(target, manifest, trust, locks=locks, deadline=deadline)


def _ours(registry: Registry, trust: Trust) -> Rule:
    """What a repository's rule accepts, and our own signature."""
    rule = trust.rule(registry.repository)
    keys, identities = rule.keys, rule.identities
    if trust.sign_key is not None:
        keys += (public_half(trust.sign_key),)
    if trust.sign_identity is not None:
        from envbuild.trust.identity import identity_of

        identities += (identity_of(trust.sign_identity),)
    return replace(rule, require_signed=True, keys=keys, identities=identities)
