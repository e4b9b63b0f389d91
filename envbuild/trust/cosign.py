"""Signatures with keys, in cosign's format.

A signature is over a small payload that names the digest of a manifest; it is kept in an image under the
tag ``sha256-<hex>.sig``, as cosign keeps it. Keys are ECDSA on P-256. Sources: cosign's "Signature
Specification" and containers/image's "Simple Signing" payload.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor
from envbuild.errors import IntegrityError, NotFound, RegistryError, SpecError
from envbuild.oci.manifest import MAX_MANIFEST, OCI_CONFIG, Manifest, encode
from envbuild.oci.referrers import EMPTY, put_artifact
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
MAX_PAYLOAD: Final = 64 << 10
"""The largest payload that is read, in bytes."""
_MAX_READ: Final = 16 << 20
"""How many bytes of payloads are read for one image: others may write signatures, too."""
_MAX_ENCODED: Final = 200
"""An ECDSA signature on P-256 has at most 72 bytes, which are 96 letters of base64."""
_MOST_REASONS: Final = 5


def check(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    keys: Iterable[bytes],
    *,
    now: datetime | None = None,
    deadline: Deadline = NO_DEADLINE,
    every: bool = False,
) -> tuple[dict[str, Any], ...]:
    """See that an image is signed with one of the keys.

    A signature is over the payload's SHA-256, which is the digest that the descriptor names: whose it is
    shows before anything is read. So however many signatures of others stand beside it, all are looked at.

    Args:
        registry: The repository that it is in, with its signatures.
        manifest: The image.
        keys: Public keys in PEM.
        now: The time for signatures that expire; that of the machine if None.
        deadline: When to give up.
        every: Whether all such signatures are read, and not only the first.

    Returns:
        What each of them claims of the image beside its digest.

    Raises:
        Untrusted: There is no such signature; the message says what was wrong with each that there is.
    """
    found = find_manifest(registry, signature_tag(manifest.descriptor.digest))
    return _accepted(registry, manifest, found, keys, now=now, deadline=deadline, every=every)


def _accepted(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    found: Manifest | ImageIndex | None,
    keys: Iterable[bytes],
    *,
    now: datetime | None,
    deadline: Deadline,
    every: bool,
) -> tuple[dict[str, Any], ...]:
    """As :func:`check`, of the signatures that were found."""
    what = f"{registry.repository}@{manifest.descriptor.digest}"
    if not isinstance(found, Manifest):
        raise Untrusted(f"{what} is not signed", hint="sign it, or let the policy accept it unsigned")
    public = [_public(key) for key in keys]
    reasons: dict[str, None] = {}
    accepted: list[dict[str, Any]] = []
    left = _MAX_READ
    for layer in found.layers:
        deadline.check(f"reading the signatures of {what}")
        try:
            _require_signed(public, layer)
            if (left := left - layer.size) < 0:
                raise Untrusted(f"only {_MAX_READ} bytes of signatures are read")
            with registry.open_blob(layer) as stream:  # gives no other bytes than those of the digest
                accepted.append(_check_payload(stream.read(), manifest, now or datetime.now(UTC)))
        except (IntegrityError, NotFound) as error:
            reasons[error.message] = None
        if accepted and not every:
            break
    if accepted:
        return tuple(accepted)
    told = "; ".join(list(reasons)[:_MOST_REASONS]) or "there is none"
    raise Untrusted(f"no signature of {what} holds: {told}")


def signature_tag(subject: Digest) -> Tag:
    """The tag under which cosign keeps signatures."""
    return Tag(f"sha256-{subject.hex}.sig")


def made_with(keys: Iterable[bytes], layers: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
    """Those of an image's signatures that were made with one of some keys.

    Args:
        keys: Public keys in PEM.
        layers: The layers of the manifest that holds signatures.
    """
    public, found = [_public(key) for key in keys], []
    for layer in layers if public else ():
        with contextlib.suppress(Untrusted):
            _require_signed(public, layer)
            found.append(layer)
    return tuple(found)


def _require_signed(keys: list[Any], layer: Descriptor) -> None:
    """See that a payload that nobody has read yet is signed with one of the keys.

    Raises:
        Untrusted: It is not, or is no payload.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    encoded = layer.annotations.get(SIGNATURE, "")
    if layer.media_type != PAYLOAD or layer.size > MAX_PAYLOAD:
        raise Untrusted(f"it is {layer.media_type!r:.80} of {layer.size} bytes, not a payload")
    algorithm = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
    for key in keys if len(encoded) <= _MAX_ENCODED else ():
        try:
            key.verify(base64.b64decode(encoded, validate=True), bytes.fromhex(layer.digest.hex), algorithm)
        except (InvalidSignature, binascii.Error, ValueError):
            continue
        return
    raise Untrusted("it was not made with a key that is accepted")


def _check_payload(content: bytes, manifest: Manifest | ImageIndex, now: datetime) -> dict[str, Any]:
    """What a payload that is signed claims of the image beside its digest.

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
    return optional


def sign(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    sign_key: str,
    *,
    locks: Path,
    deadline: Deadline = NO_DEADLINE,
    expires: datetime | None = None,
    claims: Mapping[str, str] | None = None,
    has_config: bool = False,
) -> bool:
    """Sign an image, unless a signature with that key says all of it already.

    Args:
        registry: The repository; signatures that are there stay.
        manifest: The image.
        sign_key: The private key in PEM: a file, or ``env:NAME`` for a variable.
        locks: The folder of the local cache, whose locks make writers take turns.
        deadline: When to give up.
        expires: When the signature stops to hold; None for never.
        claims: What is said of the image beside what it carries.
        has_config: As :func:`put_signatures` takes it.

    Returns:
        False if it was signed with the key before, and that was said.

    Raises:
        SpecError: The key cannot be used.
    """
    private = _private(sign_key)
    subject = manifest.descriptor.digest
    with key_lock(locks, f"sign-{subject.hex}", deadline):
        said, tag = (claims or {}).items(), signature_tag(subject)
        found = find_manifest(registry, tag)
        with contextlib.suppress(Untrusted):
            before = _accepted(
                registry,
                manifest,
                found,
                [_public_pem(private)],
                now=None,
                deadline=deadline,
                every=bool(said),
            )
            if any(said <= each.items() for each in before):
                return False
        content = payload(manifest, registry.repository, expires, claims)
        layer = _signed(private, content)
        registry.put_blob(layer, lambda: io.BytesIO(content), ask=False)
        layers = (*(found.layers if isinstance(found, Manifest) else ()), layer)
        put_signatures(registry, tag, layers, has_config=has_config)
        seen = find_manifest(registry, tag)  # others may write the tag at the same moment
        if not isinstance(seen, Manifest) or layer not in seen.layers:
            raise Untrusted(
                f"{registry.repository}:{tag} was written by somebody else at the same moment",
                hint="sign the image again",
            )
        return True


def payload(
    manifest: Manifest | ImageIndex,
    repository: Repository,
    expires: datetime | None = None,
    claims: Mapping[str, str] | None = None,
) -> bytes:
    """What is signed for an image."""
    optional = claims_of(manifest, expires, claims)
    critical = {
        "identity": {"docker-reference": str(repository)},
        "image": {"docker-manifest-digest": str(manifest.descriptor.digest)},
        "type": TYPE,
    }
    return encode({"critical": critical, "optional": optional or None})


def sign_bytes(sign_key: str, content: bytes) -> bytes:
    """A signature over some bytes, for what has another format than images'.

    Raises:
        SpecError: The key cannot be used.
    """
    private = _private(sign_key)
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    signature: bytes = private.sign(content, ec.ECDSA(hashes.SHA256()))
    return signature


def is_signed(keys: Iterable[bytes], content: bytes, signature: bytes) -> bool:
    """Whether a signature over some bytes was made with one of the keys, which are in PEM.

    Raises:
        SpecError: A key cannot be used.
    """
    public = [_public(key) for key in keys]
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    for key in public:
        try:
            key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            continue
        return True
    return False


def _signed(private: Any, content: bytes) -> Descriptor:
    """The descriptor of a payload, with a signature over it."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    signature = private.sign(content, ec.ECDSA(hashes.SHA256()))
    return Descriptor.of(content, PAYLOAD).annotated(**{SIGNATURE: base64.b64encode(signature).decode()})


def put_signatures(
    registry: Registry, tag: Tag, layers: tuple[Descriptor, ...], *, has_config: bool = False
) -> None:
    """Put the signatures of one image as cosign keeps them.

    Nobody reads the config, so it is that of artifacts, which is there already as a rule.

    Args:
        registry: The repository, in which the payloads are.
        tag: The tag of that image's signatures.
        layers: All signatures that it shall have.
        has_config: As :func:`envbuild.oci.referrers.put_artifact` takes it.

    Raises:
        RegistryError: They are so many that nobody could read any.
    """
    signatures = Manifest.build(Descriptor.of(EMPTY, OCI_CONFIG), layers, {})
    if len(signatures.raw) > MAX_MANIFEST:
        raise RegistryError(
            f"{registry.repository}:{tag} would hold so many signatures that none could be read",
            hint="somebody fills it: delete the tag, and see who may write to the repository",
        )
    put_artifact(registry, signatures, tag, has_config=has_config)


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


def public_half(sign_key: str) -> bytes:
    """The public half of a key to sign with, in PEM.

    Raises:
        SpecError: The key cannot be used.
    """
    return _public_pem(_private(sign_key))


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
