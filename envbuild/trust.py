"""Which images are trusted: signatures in cosign's format, and a policy for each repository.

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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor
from envbuild.errors import EnvbuildError, IntegrityError, NotFound, SpecError
from envbuild.oci.manifest import OCI_CONFIG, Manifest, encode
from envbuild.oci.registry import find_manifest
from envbuild.reference import Tag
from envbuild.storage import key_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry
    from envbuild.reference import Repository

OnFailure = Literal["miss", "fail"]

SIGNATURE: Final = "dev.cosignproject.cosign/signature"
PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
TYPE: Final = "cosign container image signature"
EXPIRES: Final = "io.envbuild.expires"
_CLAIMS: Final = ("io.envbuild.key", "io.envbuild.scheme")
"""Annotations of the manifest that a payload may repeat; if it does, they must agree."""
_MAX_PAYLOAD: Final = 64 << 10
_MAX_SIGNATURES: Final = 64
_MEMBERS: Final = {"require_signed", "keys", "on_failure"}


class Untrusted(IntegrityError):  # noqa: N818 - named for what it is, as all errors are
    """An image without a signature that its repository's policy accepts."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked of the images of a repository.

    Attributes:
        require_signed: Whether an image must be signed.
        keys: The public keys that are accepted, in PEM.
        on_failure: Whether an image that is not trusted is a miss, with a warning, or a failure.
    """

    require_signed: bool = False
    keys: tuple[bytes, ...] = ()
    on_failure: OnFailure = "miss"


@dataclass(frozen=True, slots=True)
class Trust:
    """The policy; most callers want :meth:`parse`.

    Attributes:
        default: For repositories that no rule is about.
        rules: By repository, or a path of components at its start.
        sign_key: Where the key is with which what is built here is signed: a file or ``env:NAME``; or None.
    """

    default: Rule = field(default_factory=Rule)
    rules: tuple[tuple[str, Rule], ...] = ()
    sign_key: str | None = None

    @classmethod
    def parse(cls, value: Any, where: str, folder: Path | None) -> Self:
        """Read the table ``[trust]``, or the TOML file that a text names.

        Args:
            value: The table, the file's name, or what was parsed before.
            where: The setting's name for messages.
            folder: What relative names of files are relative to.

        Raises:
            SpecError: A member is unknown or does not fit, or a key cannot be read.
        """
        folder = folder or Path.cwd()
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            path = folder / Path(value).expanduser()
            return cls.parse(_toml(path), str(path), path.parent)
        if not isinstance(value, dict):
            raise SpecError(f"{where} is {value!r:.80}, expected a table or the name of a TOML file")
        given = dict(value)
        rules, sign_key = given.pop("repositories", {}), given.pop("sign_key", None)
        default = _rule(given, Rule(), where, folder)
        if not isinstance(rules, dict):
            raise SpecError(f"{where}.repositories is {rules!r:.80}, expected a table")
        if sign_key is not None:
            sign_key = _sign_key(sign_key, f"{where}.sign_key", folder)
        named = [
            (name, _rule(rule, default, f"{where}.repositories.{name}", folder))
            for name, rule in rules.items()
        ]
        return cls(default, tuple(sorted(named, key=lambda each: -len(each[0]))), sign_key)

    def rule(self, repository: Repository) -> Rule:
        """The rule of a repository: the longest that names it or what it is in."""
        text = str(repository)
        for name, rule in self.rules:
            if text == name or text.startswith(f"{name.rstrip('/')}/"):
                return rule
        return self.default


def _toml(path: Path) -> Any:
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot be read as TOML: {error}", source=str(path)) from None


def _rule(table: Any, default: Rule, where: str, folder: Path) -> Rule:
    if not isinstance(table, dict):
        raise SpecError(f"{where} is {table!r:.80}, expected a table")
    if unknown := sorted(set(table) - _MEMBERS):
        raise SpecError(f"{where}: {unknown[0]!r} is not known", hint=f"known: {', '.join(sorted(_MEMBERS))}")
    rule = default
    if "require_signed" in table:
        if not isinstance(table["require_signed"], bool):
            seen = table["require_signed"]
            raise SpecError(f"{where}.require_signed is {seen!r:.80}, expected true or false")
        rule = replace(rule, require_signed=table["require_signed"])
    if "on_failure" in table:
        if table["on_failure"] not in ("miss", "fail"):
            raise SpecError(f"{where}.on_failure is {table['on_failure']!r:.80}, expected miss or fail")
        rule = replace(rule, on_failure=table["on_failure"])
    if "keys" in table:
        rule = replace(rule, keys=_keys(table["keys"], f"{where}.keys", folder))
    if rule.require_signed and not rule.keys:
        raise SpecError(
            f"{where} requires signatures and names no keys", hint="name public keys under `keys`"
        )
    return rule


def _keys(names: Any, where: str, folder: Path) -> tuple[bytes, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SpecError(f"{where} is {names!r:.80}, expected a list of files")
    return tuple(read_key(folder / Path(name).expanduser()) for name in names)


def read_key(path: Path) -> bytes:
    """A public key's file.

    Raises:
        SpecError: It cannot be read, or is a private key.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"the key cannot be read: {error.strerror}", source=str(path)) from None
    if b"-----BEGIN PUBLIC KEY-----" not in content:
        raise SpecError("this is not a public key in PEM", source=str(path), hint="name the public half")
    return content


def _sign_key(value: Any, where: str, folder: Path) -> str:
    if not isinstance(value, str) or not value:
        # The value is not shown: somebody may have put the key itself here.
        raise SpecError(f"{where} is not text", hint="name a file, or a variable as env:NAME")
    if value.startswith("-----BEGIN"):
        raise SpecError(f"{where} holds a key", hint="name a file, or a variable as env:NAME")
    return value if value.startswith("env:") else str(folder / Path(value).expanduser())


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
        claims = {name: optional.get(name) for name in (*_CLAIMS, EXPIRES)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Untrusted("its payload is not one of cosign") from None
    if kind != TYPE:
        raise Untrusted(f"its payload is a {kind!r:.80}, expected {TYPE!r}")
    if named != str(manifest.descriptor.digest):
        raise Untrusted(f"it is for {named!r:.90}")
    for name in _CLAIMS:
        if claims[name] is not None and claims[name] != manifest.annotations.get(name):
            raise Untrusted(f"it is for {name} {claims[name]!r:.80}")
    if claims[EXPIRES] is not None and now >= _moment(claims[EXPIRES]):
        raise Untrusted(f"it expired at {claims[EXPIRES]}")


def _moment(text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise Untrusted(f"it expires at {text!r:.80}, which is no time") from None
    if moment.tzinfo is None:
        raise Untrusted(f"it expires at {text!r:.80}, which has no time zone")
    return moment


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
    optional = {name: manifest.annotations[name] for name in _CLAIMS if name in manifest.annotations}
    if expires is not None:
        optional[EXPIRES] = expires.isoformat()
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
        raise SpecError("a key is not an ECDSA key on P-256", hint="make one with `cosign generate-key-pair`")
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
