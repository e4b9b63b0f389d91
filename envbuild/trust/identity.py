"""Signatures by identities, as Sigstore has them: nobody keeps a key.

A certificate authority vouches for a moment that a key belongs to an identity, a log keeps what was signed
with it, and a bundle holds both proofs beside the signature. It is attached to the image as a referrer.
What is signed is an in-toto statement about the manifest's digest, as cosign writes it. Sources: Sigstore's
"Bundle Format", in-toto's "Statement v1".
"""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import IntegrityError, NotFound, SpecError, Unauthorized, Unavailable
from envbuild.oci.manifest import Manifest
from envbuild.oci.referrers import Artifact, attach, read_artifact, referrers
from envbuild.spec.files import read_file
from envbuild.trust.claims import check_claims, claims_of
from envbuild.trust.policy import MAX_POLICY, Identity, Untrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry

BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
_BUNDLES: Final = "application/vnd.dev.sigstore.bundle"
_STATEMENT: Final = "application/vnd.in-toto+json"
_CLIENT_CONFIG: Final = "application/vnd.dev.sigstore.clienttrustconfig"
_MAX_BUNDLE: Final = 1 << 20
_MAX_READ: Final = 32 << 20
"""How many bytes of bundles are read for one image: others may attach some, too."""
_LEAST: Final = 4 << 10
"""What each of them counts at least: a small one costs two questions as well."""
_MOST_REASONS: Final = 5


def check_identities(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    identities: Iterable[Identity],
    trusted_root: str | None,
    *,
    now: datetime | None = None,
    deadline: Deadline = NO_DEADLINE,
    every: bool = False,
) -> tuple[dict[str, Any], ...]:
    """See that an image is signed by one of the identities; nobody but the registry is asked.

    Whose a bundle is shows only when it is read, so what is about another image is put aside before anything
    is computed, and a budget of bytes ends the reading: some thousand bundles of the usual size.

    Args:
        registry: The repository that it is in, with what is attached to it.
        manifest: The image.
        identities: Who is accepted.
        trusted_root: The file that says whose word counts; None for Sigstore's public service.
        now: The time for claims that expire; that of the machine if None.
        deadline: When to give up.
        every: Whether all such signatures are read, and not only the first.

    Returns:
        What each of them claims of the image beside its digest.

    Raises:
        Untrusted: There is no such signature; the message says what was wrong with each that there is.
        SpecError: The library is missing, or the file is no trusted root.
    """
    verifier, accepted = _verifier(trusted_root), tuple(identities)
    what = f"{registry.repository}@{manifest.descriptor.digest}"
    reasons: dict[str, None] = {}
    found: list[dict[str, Any]] = []
    left = _MAX_READ
    for entry in referrers(registry, manifest.descriptor.digest):
        if not (entry.artifact_type or "").startswith(_BUNDLES):
            continue
        deadline.check(f"reading the signatures of {what}")
        try:
            if entry.size > _MAX_BUNDLE:
                raise Untrusted("it is far too large for a bundle")
            content = _bundle(registry, registry.get_manifest(entry.digest))
            if (left := left - max(entry.size + len(content), _LEAST)) < 0:
                reasons[f"only {_MAX_READ} bytes of signatures are read"] = None
                break
            _check_statement(_stated(content), manifest, now or datetime.now(UTC))
            found.append(_check_bundle(verifier, content, accepted, manifest, now or datetime.now(UTC)))
        except (IntegrityError, NotFound) as error:
            reasons[error.message] = None
        if found and not every:
            break
    if found:
        return tuple(found)
    if not reasons:
        raise Untrusted(f"{what} is not signed by anybody", hint="sign it, or let the policy accept it")
    raise Untrusted(f"no signature of {what} holds: {'; '.join(list(reasons)[-_MOST_REASONS:])}")


def _bundle(registry: Registry, found: Manifest | ImageIndex) -> bytes:
    if not isinstance(found, Manifest) or sum(layer.size for layer in found.layers) > _MAX_BUNDLE:
        raise Untrusted("it is not a bundle, or far too large for one")
    content = read_artifact(registry, found)
    if len(content) > _MAX_BUNDLE:
        raise Untrusted("it is far too large for a bundle when it is decompressed")
    return content


def _stated(content: bytes) -> bytes:
    """What a bundle says is signed; whether it is shows later, and costs more."""
    try:
        return base64.b64decode(json.loads(content)["dsseEnvelope"]["payload"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Untrusted("it is not a bundle with a statement") from None


def _check_bundle(
    verifier: Any,
    content: bytes,
    accepted: tuple[Identity, ...],
    manifest: Manifest | ImageIndex,
    now: datetime,
) -> dict[str, Any]:
    return _check_statement(_verified(verifier, content, accepted), manifest, now)


def _verified(verifier: Any, content: bytes, accepted: tuple[Identity, ...]) -> bytes:
    """The statement in a bundle that one of the identities signed."""
    from sigstore.models import Bundle
    from sigstore.verify import policy

    anybody = policy.AnyOf(
        [
            policy.Identity(identity=each.identity, issuer=each.issuer)
            for each in accepted
            if each.identity and each.issuer  # the library takes an empty issuer for any
        ]
    )
    try:
        kind, payload = verifier.verify_dsse(Bundle.from_json(content), anybody)
    except Exception as error:  # noqa: BLE001 - written by anybody: whatever it does to the library, it fails
        raise Untrusted(f"it is not accepted: {type(error).__name__}: {error!s:.200}") from None
    if kind != _STATEMENT:
        raise Untrusted(f"it is over {kind!r:.80}, expected a statement")
    return bytes(payload)


def _check_statement(payload: bytes, manifest: Manifest | ImageIndex, now: datetime) -> dict[str, Any]:
    """What a statement claims of the image beside its digest."""
    try:
        statement = json.loads(payload.decode())
        kind, subjects = statement["predicateType"], statement["subject"]
        digests = [subject["digest"].get("sha256") for subject in subjects]
        claims = dict(statement.get("predicate") or {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Untrusted("its statement is not one of in-toto") from None
    if kind != PREDICATE:
        raise Untrusted(f"it states {kind!r:.80}, expected {PREDICATE!r}")
    if digests != [manifest.descriptor.digest.hex]:
        raise Untrusted(f"it is for {digests!r:.90}")
    check_claims(claims, manifest, now)
    return claims


def sign_as(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    source: str,
    trusted_root: str | None,
    *,
    locks: Path,
    deadline: Deadline = NO_DEADLINE,
    expires: datetime | None = None,
    claims: Mapping[str, str] | None = None,
) -> Identity:
    """Sign an image in the name that an identity token has, and attach the bundle.

    Args:
        registry: The repository; signatures that are there stay.
        manifest: The image.
        source: ``ambient`` for the token of the CI job that this is, or ``env:NAME`` for a variable.
        trusted_root: A client trust configuration, which says where to sign; None for the public service.
        locks: The folder of the local cache, whose locks make writers take turns.
        deadline: When to give up; the library's own requests are not bounded by it.
        expires: When the signature stops to hold; None for never.
        claims: What is said of the image beside what it carries.

    Returns:
        Who signed.

    Raises:
        SpecError: The library is missing, or the file says nothing of signing.
        Unauthorized: There is no token, or none that holds.
        Unavailable: The authority or the log could not be asked, or refused.
    """
    bundle, signer = _signed(
        lambda: _statement(registry, manifest, expires, claims), source, trusted_root, deadline
    )
    annotations = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": PREDICATE,
    }
    artifact = Artifact(BUNDLE, BUNDLE, bundle.encode(), annotations)
    attach(registry, manifest.descriptor, [artifact], locks=locks, deadline=deadline)
    return signer


def sign_text(content: bytes, source: str, trusted_root: str | None) -> str:
    """Sign a statement of another kind in the name that an identity token has; errors as :func:`sign_as`.

    Args:
        content: The statement.
        source: As :func:`sign_as` takes it.
        trusted_root: As :func:`sign_as` takes it.

    Returns:
        The bundle.
    """

    def statement() -> Any:
        from sigstore.dsse import Statement

        return Statement(content)

    return _signed(statement, source, trusted_root, NO_DEADLINE)[0]


def stated(bundle: bytes, identities: Iterable[Identity], trusted_root: str | None) -> bytes:
    """What one of the identities signed, in a bundle with a statement of whatever kind; nobody is asked.

    Raises:
        Untrusted: None of them did.
        SpecError: The library is missing, or the file is no trusted root.
    """
    if len(bundle) > _MAX_BUNDLE:
        raise Untrusted("it is far too large for a bundle")
    return _verified(_verifier(trusted_root), bundle, tuple(identities))


def _signed(
    statement: Callable[[], Any], source: str, trusted_root: str | None, deadline: Deadline
) -> tuple[str, Identity]:
    """The bundle of a statement, and who signed it."""
    _library()
    token, context = _token(source), _context(trusted_root)
    deadline.check("signing")
    try:
        with context.signer(token) as signer:
            bundle: str = signer.sign_dsse(statement()).to_json()
    except Exception as error:  # noqa: BLE001 - the library lets through what requests raises
        # What the error says is not shown: it may hold the request with the token.
        message = f"signing as {token.identity} failed: {type(error).__name__}"
        raise Unavailable(message, hint="check that the authority and the log can be reached") from None
    return bundle, Identity(token.federated_issuer, token.identity)


def identity_of(source: str) -> Identity:
    """Whom a token is for; errors as :func:`sign_as`."""
    _library()
    token = _token(source)
    return Identity(token.federated_issuer, token.identity)


def _statement(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    expires: datetime | None,
    claims: Mapping[str, str] | None,
) -> Any:
    from sigstore.dsse import StatementBuilder, Subject

    digest = {"sha256": manifest.descriptor.digest.hex}
    subject = Subject(name=str(registry.repository), digest=digest)  # type: ignore[arg-type]
    builder = StatementBuilder().subjects([subject]).predicate_type(PREDICATE)
    return builder.predicate(claims_of(manifest, expires, claims)).build()


def _token(source: str, environ: Mapping[str, str] = os.environ) -> Any:
    """The identity token; nothing of it gets into a message."""
    from sigstore.oidc import IdentityError, IdentityToken, detect_credential

    try:
        raw = detect_credential() if source == "ambient" else environ.get(source.removeprefix("env:"))
        if not raw:
            raise Unauthorized(
                f"there is no identity token ({source})",
                hint="let the CI job have one (in GitHub: permissions: id-token: write), or name a variable",
            )
        return IdentityToken(raw)
    except IdentityError as error:
        raise Unauthorized(f"the identity token ({source}) cannot be used: {error!s:.200}") from None


def _context(trusted_root: str | None) -> Any:
    from sigstore.models import ClientTrustConfig
    from sigstore.sign import SigningContext

    if trusted_root is None:
        return SigningContext.from_trust_config(ClientTrustConfig.production())
    raw = _read(trusted_root)
    if not _is_client_config(raw):
        raise SpecError(
            "this says whom to trust, and not where to sign",
            source=trusted_root,
            hint="name a client trust configuration, which says both",
        )
    return SigningContext.from_trust_config(_parsed(ClientTrustConfig.from_json, raw, trusted_root))


def _verifier(trusted_root: str | None) -> Any:
    _library()
    from sigstore.models import ClientTrustConfig, TrustedRoot
    from sigstore.verify import Verifier

    if trusted_root is None:
        return Verifier.production(offline=True)
    raw = _read(trusted_root)
    if _is_client_config(raw):
        root = _parsed(ClientTrustConfig.from_json, raw, trusted_root).trusted_root
    else:
        root = _parsed(TrustedRoot.from_file, trusted_root, trusted_root)
    return _parsed(lambda found: Verifier(trusted_root=found), root, trusted_root)


def _is_client_config(raw: str) -> bool:
    try:
        return str(json.loads(raw).get("mediaType")).startswith(_CLIENT_CONFIG)
    except (ValueError, AttributeError, RecursionError):
        return False


def _parsed(parse: Any, given: Any, source: str) -> Any:
    try:
        return parse(given)
    except Exception as error:  # noqa: BLE001 - pydantic's, the library's and others
        raise SpecError(f"this is no trusted root of Sigstore: {error!s:.200}", source=source) from None


def _read(path: str) -> str:
    try:
        return read_file(path, MAX_POLICY)[:MAX_POLICY].decode()
    except (OSError, ValueError) as error:
        raise SpecError(f"the trusted root cannot be read: {error}", source=path) from None


def _library() -> None:
    try:
        import sigstore  # noqa: F401
    except ImportError:
        hint = "install it with: pip install 'envbuild[sigstore]'"
        raise SpecError("signatures by identities need the package `sigstore`", hint=hint) from None
