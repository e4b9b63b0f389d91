"""Signatures with keys, in cosign's format.

A signature is over a small payload that names the digest of a manifest; it is kept in an image under the
tag ``sha256-<hex>.sig``, as cosign keeps it. Keys are ECDSA on P-256. Sources: cosign's "Signature
Specification" and containers/image's "Simple Signing" payload.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor
from envbuild.errors import EnvbuildError, IntegrityError, NotFound, SpecError
from envbuild.oci.manifest import OCI_CONFIG, Manifest, encode
from envbuild.oci.registry import find_manifest
from envbuild.reference import Tag
from envbuild.storage import key_lock
from envbuild.trust.claims import check_claims, claims_of
from envbuild.trust.policy import Untrusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry
    from envbuild.reference import Repository

SIGNATURE: Final = "dev.cosignproject.cosign/signature"
PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
TYPE: Final = "cosign container image signature"
_MAX_PAYLOAD: Final = 64 << 10
_MAX_SIGNATURES: Final = 64


def check(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    keys: Iterable[bytes],
    *,
    now: datetime | None = None,
) -> None:
    """See that an image is signed with one of the keys.

    Args:
        registry: The repository that it is in, with its signatures.
        manifest: The image.
        keys: Public keys in PEM.
        now: The time for signatures that expire; that of the machine if None.

    Raises:
        Untrusted: There is no such signature; the message says what was wrong with each that there is.
    """
    subject = manifest.descriptor.digest
    what = f"{registry.repository}@{subject}"
    found = find_manifest(registry, signature_tag(subject))
    if not isinstance(found, Manifest):
        raise Untrusted(f"{what} is not signed", hint="sign it, or let the policy accept it unsigned")
    public = [_public(key) for key in keys]
    reasons = []
    for layer in found.layers[:_MAX_SIGNATURES]:
        try:
            content = _payload(registry, layer)
            if not any(_is_signed(key, layer, content) for key in public):
                raise Untrusted("it was not made with a key that is accepted")
            _check_payload(content, manifest, now or datetime.now(UTC))
        except EnvbuildError as error:
            if not isinstance(error, IntegrityError | NotFound):
                raise
            reasons.append(error.message)
        else:
            return
    raise Untrusted(f"no signature of {what} holds: {'; '.join(dict.fromkeys(reasons)) or 'there is none'}")


def signature_tag(subject: Digest) -> Tag:
    """The tag under which cosign keeps signatures."""
    return Tag(f"sha256-{subject.hex}.sig")


def _payload(registry: Registry, layer: Descriptor) -> bytes:
    if layer.media_type != PAYLOAD or layer.size > _MAX_PAYLOAD:
        raise Untrusted(f"it is {layer.media_type!r:.80} of {layer.size} bytes, not a payload")
    with registry.open_blob(layer) as stream:
        return stream.read()


def _is_signed(key: Any, layer: Descriptor, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        signature = base64.b64decode(layer.annotations.get(SIGNATURE, ""), validate=True)
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _check_payload(content: bytes, manifest: Manifest | ImageIndex, now: datetime) -> None:
    """Compare a payload that is signed with the image.

    Raises:
        Untrusted: It is about something else, or about nothing.
    """
    try:
        document = json.loads(content.decode())
        critical, optional = document["critical"], document.get("optional") or {}
        kind, named = critical["type"], critical["image"]["docker-manifest-digest"]
        optional = dict(optional)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Untrusted("its payload is not one of cosign") from None
    if kind != TYPE:
        raise Untrusted(f"its payload is a {kind!r:.80}, expected {TYPE!r}")
    if named != str(manifest.descriptor.digest):
        raise Untrusted(f"it is for {named!r:.90}")
    check_claims(optional, manifest, now)


def sign(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    sign_key: str,
    *,
    locks: Path,
    deadline: Deadline = NO_DEADLINE,
    expires: datetime | None = None,
) -> bool:
    """Sign an image, unless it is signed with that key already.

    Args:
        registry: The repository; signatures that are there stay.
        manifest: The image.
        sign_key: The private key in PEM: a file, or ``env:NAME`` for a variable.
        locks: The folder of the local cache, whose locks make writers take turns.
        deadline: When to give up.
        expires: When the signature stops to hold; None for never.

    Returns:
        False if it was signed with the key before.

    Raises:
        SpecError: The key cannot be used.
    """
    private = _private(sign_key)
    subject = manifest.descriptor.digest
    with key_lock(locks, f"sign-{subject.hex}", deadline):
        try:
            check(registry, manifest, [_public_pem(private)])
        except Untrusted:
            _put_signature(registry, manifest, private, expires)
            check(registry, manifest, [_public_pem(private)])  # read back: the tag may be written by others
            return True
        return False


def payload(
    manifest: Manifest | ImageIndex, repository: Repository, expires: datetime | None = None
) -> bytes:
    """What is signed for an image."""
    optional = claims_of(manifest, expires)
    critical = {
        "identity": {"docker-reference": str(repository)},
        "image": {"docker-manifest-digest": str(manifest.descriptor.digest)},
        "type": TYPE,
    }
    return encode({"critical": critical, "optional": optional or None})


def _put_signature(
    registry: Registry, manifest: Manifest | ImageIndex, private: Any, expires: datetime | None
) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    content = payload(manifest, registry.repository, expires)
    signature = private.sign(content, ec.ECDSA(hashes.SHA256()))
    layer = Descriptor.of(content, PAYLOAD).annotated(**{SIGNATURE: base64.b64encode(signature).decode()})
    tag = signature_tag(manifest.descriptor.digest)
    before = find_manifest(registry, tag)
    layers = (*(before.layers if isinstance(before, Manifest) else ()), layer)
    config = encode(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(each.digest) for each in layers]},
        }
    )
    described = Descriptor.of(config, OCI_CONFIG)
    registry.put_blob(layer, lambda: io.BytesIO(content))
    registry.put_blob(described, lambda: io.BytesIO(config))
    registry.put_manifest(Manifest.build(described, layers, {}), tag)


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        hint = "install it with: pip install 'envbuild[trust]'"
        raise SpecError("signatures need the package `cryptography`", hint=hint) from None
    return serialization


def _public(pem: bytes) -> Any:
    serialization = _library()
    try:
        return _on_p256(serialization.load_pem_public_key(pem))
    except (ValueError, TypeError):
        raise SpecError("a public key of the trust policy is not a key in PEM") from None


def _on_p256(key: Any) -> Any:
    if getattr(getattr(key, "curve", None), "name", None) != "secp256r1":
        raise SpecError(
            "a key is not an ECDSA key on P-256",
            hint="make one with: openssl ecparam -genkey -name prime256v1",
        )
    return key


def _public_pem(private: Any) -> bytes:
    serialization = _library()
    pem: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


def _private(sign_key: str, environ: Mapping[str, str] = os.environ) -> Any:
    """The key to sign with; nothing of its content gets into a message."""
    serialization = _library()
    name = sign_key.removeprefix("env:")
    try:
        pem = environ.get(name, "").encode() if sign_key.startswith("env:") else Path(name).read_bytes()
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, OSError):
        raise SpecError(
            f"the key to sign with ({sign_key}) cannot be used",
            hint="give a PKCS 8 key in PEM without a password: openssl ecparam -genkey -name prime256v1 | "
            "openssl pkcs8 -topk8 -nocrypt",
        ) from None
    return _on_p256(key)
