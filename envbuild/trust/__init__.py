"""Which images are trusted: signatures with keys and by identities, and a policy for each repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuild.trust.claims import EXPIRES
from envbuild.trust.cosign import PAYLOAD, SIGNATURE, check, payload, sign, signature_tag
from envbuild.trust.policy import Identity, OnFailure, Rule, Trust, Untrusted, read_key

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registry import Registry

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
    "sign_built",
    "signature_tag",
]


def check_rule(registry: Registry, manifest: Manifest | ImageIndex, rule: Rule) -> str:
    """See that an image has a signature that a rule accepts: one with a key, or else by an identity.

    Returns:
        Which, in words.

    Raises:
        Untrusted: It has none; the message says what was wrong with each that there is.
        SpecError: A key, a library or a file that the rule needs cannot be used.
    """
    refused: Untrusted | None = None
    if rule.keys or not rule.identities:
        try:
            check(registry, manifest, rule.keys)
        except Untrusted as error:
            refused = error
        else:
            return "made with a key that is accepted"
    if rule.identities:
        from envbuild.trust.identity import check_identities

        try:
            check_identities(registry, manifest, rule.identities, rule.trusted_root)
        except Untrusted as error:
            refused = Untrusted(f"{refused.message}; {error.message}") if refused else error
        else:
            return "made by an identity that is accepted"
    raise refused or Untrusted(f"{registry.repository}@{manifest.descriptor.digest} is not signed")


def sign_built(
    registry: Registry, manifest: Manifest | ImageIndex, trust: Trust, *, locks: Path, deadline: Deadline
) -> None:
    """Sign what was built, with whatever the policy says: a key, an identity, both, or neither."""
    if trust.sign_key is not None:
        sign(registry, manifest, trust.sign_key, locks=locks, deadline=deadline)
    if trust.sign_identity is not None:
        from envbuild.trust.identity import sign_as

        root = trust.rule(registry.repository).trusted_root
        sign_as(registry, manifest, trust.sign_identity, root, locks=locks, deadline=deadline)
