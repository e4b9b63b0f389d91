"""What one build vouches for beside its image: shared layers and records, all in one signed statement.

The statement is an in-toto Statement v1 whose subjects are tags with the digests of what they name; it is
signed as DSSE says, with a key, by an identity (then the envelope is in a Sigstore bundle), or with both.
Text and signatures are annotations of one artifact, so that writing it is one request and reading it one.

A signature of an image cannot pass for one of a statement, nor the other way round: with keys, what is
signed begins in another way; in bundles, the statements are of another type. Sources: in-toto's "Statement
v1", DSSE's "Protocol".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild.digest import Descriptor, Digest
from envbuild.errors import SpecError
from envbuild.oci.manifest import MAX_MANIFEST, OCI_EMPTY, Manifest, encode
from envbuild.oci.referrers import EMPTY
from envbuild.trust.cosign import is_signed, sign_bytes
from envbuild.trust.policy import Untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.oci.manifest import ImageIndex
    from envbuild.trust.policy import Rule, Trust

ARTIFACT_TYPE: Final = "application/vnd.envbuild.statement.v1+json"
PREDICATE: Final = "urn:envbuild:shared:v1"
STATEMENT_ANNOTATION: Final = "io.envbuild.statement"
SIGNATURE_ANNOTATION: Final = "io.envbuild.statement.signature"
BUNDLE_ANNOTATION: Final = "io.envbuild.statement.bundle"
_TYPE: Final = "https://in-toto.io/Statement/v1"
_PAYLOAD: Final = "application/vnd.in-toto+json"


def sign_statement(subjects: Mapping[str, Digest], trust: Trust, trusted_root: str | None) -> Manifest:
    """The artifact of a statement, signed with whatever the policy says.

    Args:
        subjects: The digest of what each tag names, without the reference to the statement.
        trust: The policy, which signs.
        trusted_root: Where identities are signed; None for Sigstore's public service.

    Raises:
        SpecError: The key to sign with cannot be used, or there are more subjects than one artifact holds.
        Unauthorized: There is no identity token, or none that holds.
        Unavailable: The authority or the log could not be asked, or refused.
    """
    content = encode(
        {
            "_type": _TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": digest.hex}} for name, digest in sorted(subjects.items())
            ],
            "predicateType": PREDICATE,
            "predicate": {},
        }
    )
    annotations = {STATEMENT_ANNOTATION: content.decode()}
    if trust.sign_key is not None:
        signature = sign_bytes(trust.sign_key, envelope(content))
        annotations[SIGNATURE_ANNOTATION] = base64.b64encode(signature).decode()
    if trust.sign_identity is not None:
        from envbuild.trust.identity import sign_text

        annotations[BUNDLE_ANNOTATION] = sign_text(content, trust.sign_identity, trusted_root)
    empty = Descriptor.of(EMPTY, OCI_EMPTY)
    manifest = Manifest.build(empty, (empty,), annotations, artifact_type=ARTIFACT_TYPE)
    if len(manifest.raw) > MAX_MANIFEST:
        raise SpecError(f"a statement of {len(subjects)} subjects is too large for a registry")
    return manifest


def read_statement(manifest: Manifest | ImageIndex, rule: Rule) -> dict[str, Digest]:
    """The subjects of a statement that a rule accepts: the digest of what each tag names.

    Raises:
        Untrusted: It is no statement of that kind, or nobody signed it whom the rule accepts.
        SpecError: A key, a library or a file that the rule needs cannot be used.
    """
    notes = manifest.annotations
    content = notes.get(STATEMENT_ANNOTATION, "").encode()
    _require_signed(content, notes, rule)
    try:
        document = json.loads(content)
        kind, predicate = document["_type"], document["predicateType"]
        subjects = {
            str(subject["name"]): Digest(subject["digest"]["sha256"]) for subject in document["subject"]
        }
    except (ValueError, KeyError, TypeError, RecursionError, SpecError):
        raise Untrusted("the statement is not one of in-toto") from None
    if (kind, predicate) != (_TYPE, PREDICATE):
        raise Untrusted(f"the statement is {predicate!r:.80}, expected {PREDICATE!r}")
    return subjects


def _require_signed(content: bytes, notes: Mapping[str, str], rule: Rule) -> None:
    reasons = ["the statement is not signed with a key that is accepted"] if rule.keys else []
    signature = notes.get(SIGNATURE_ANNOTATION)
    if signature is not None and rule.keys:
        try:
            raw = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if is_signed(rule.keys, envelope(content), raw):
            return
    bundle = notes.get(BUNDLE_ANNOTATION)
    if bundle is not None and rule.identities:
        from envbuild.trust.identity import stated

        try:
            if stated(bundle.encode(), rule.identities, rule.trusted_root) == content:
                return
            reasons.append("the bundle is over another statement")
        except Untrusted as error:
            reasons.append(f"the bundle of the statement: {error.message}")
    raise Untrusted("; ".join(reasons) or "nobody signed the statement whom the policy accepts")


def envelope(content: bytes) -> bytes:
    """What is signed for a statement: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD), _PAYLOAD.encode(), len(content), content)


def fingerprint(rule: Rule) -> str:
    """Names whose signatures a rule accepts: what was found under another name must be looked at again.

    Raises:
        SpecError: The trusted root cannot be read.
    """
    root: Any = None
    if rule.identities and rule.trusted_root is not None:
        try:
            root = hashlib.sha256(Path(rule.trusted_root).read_bytes()).hexdigest()
        except OSError as error:
            raise SpecError(
                f"the trusted root cannot be read: {error.strerror}", source=rule.trusted_root
            ) from None
    keys = sorted({hashlib.sha256(key).hexdigest() for key in rule.keys})
    identities = sorted({(each.issuer, each.identity) for each in rule.identities})
    return hashlib.sha256(encode([keys, identities, root])).hexdigest()
