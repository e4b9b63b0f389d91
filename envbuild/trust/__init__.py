"""Which images are trusted: signatures with keys and by identities, and a policy for each repository."""

from __future__ import annotations

from envbuild.trust.claims import EXPIRES
from envbuild.trust.cosign import PAYLOAD, SIGNATURE, check, payload, sign, signature_tag
from envbuild.trust.policy import OnFailure, Rule, Trust, Untrusted, read_key

__all__ = [
    "EXPIRES",
    "PAYLOAD",
    "SIGNATURE",
    "OnFailure",
    "Rule",
    "Trust",
    "Untrusted",
    "check",
    "payload",
    "read_key",
    "sign",
    "signature_tag",
]
