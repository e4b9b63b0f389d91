"""A small Sigstore of our own: an authority that certifies identities, and a transparency log.

It does what Fulcio and Rekor do as far as a client can tell, with keys made on the spot, and knows its own
trust root. Sources: RFC 6962 (signed certificate timestamps, Merkle trees), Fulcio's "Certificate
Specification", Rekor's API v1, C2SP's "signed-note", Sigstore's protobuf specifications for the documents.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ISSUER: Final = "https://tokens.example.com"
_SECRET: Final = "of the issuer of tokens, known to the authority"
_ISSUER_V1, _ISSUER_V2 = (x509.ObjectIdentifier(f"1.3.6.1.4.1.57264.1.{number}") for number in (1, 8))
_TIMESTAMPS: Final = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_LIFETIME: Final = timedelta(minutes=10)
_ORIGIN: Final = "127.0.0.1"


def token(identity: str, issuer: str = ISSUER) -> str:
    """An identity token, as a CI service gives one to its jobs."""
    now = int(time.time())
    claims = {"iss": issuer, "sub": identity, "aud": "sigstore", "iat": now, "exp": now + 300}
    return jwt.encode(claims, _SECRET, algorithm="HS256")


def _der(key: Any) -> bytes:
    raw: bytes = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return raw


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _sign(key: Any, content: bytes) -> bytes:
    signature: bytes = key.sign(content, ec.ECDSA(hashes.SHA256()))
    return signature


class Sigstore(ThreadingHTTPServer):
    """The authority and the log, on loopback.

    Attributes:
        now: The time that both go by; a test may set it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Call)
        self.now = datetime.now(UTC)
        self._root_key, self._log_key, self._ct_key = (ec.generate_private_key(ec.SECP256R1()) for _ in "rlc")
        self._root = self._root_certificate()

    @property
    def url(self) -> str:
        """Where both are."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def trusted_root(self) -> dict[str, Any]:
        """What a verifier needs, and all of it."""
        since = {"start": "2020-01-01T00:00:00Z"}

        def log(key: Any) -> dict[str, Any]:
            details = {"keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            return {
                "baseUrl": self.url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {"rawBytes": _b64(_der(key)), **details},
                "logId": {"keyId": _b64(hashlib.sha256(_der(key)).digest())},
            }

        chain = {"certificates": [{"rawBytes": _b64(self._root.public_bytes(serialization.Encoding.DER))}]}
        authority = {
            "subject": {"organization": "example.com", "commonName": "authority"},
            "uri": self.url,
            "certChain": chain,
            "validFor": since,
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self._log_key)],
            "certificateAuthorities": [authority],
            "ctlogs": [log(self._ct_key)],
        }

    @property
    def client_config(self) -> dict[str, Any]:
        """What a signer needs: the root, and where the services are."""
        service = {
            "url": self.url,
            "majorApiVersion": 1,
            "validFor": {"start": "2020-01-01T00:00:00Z"},
            "operator": "example.com",
        }
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [service],
            "rekorTlogUrls": [service],
            "tsaUrls": [],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted_root,
            "signingConfig": signing,
        }

    def certify(self, bearer: str, request: bytes) -> list[str]:
        """A certificate for whoever has the token, and the authority's own, in PEM."""
        claims = jwt.decode(bearer, _SECRET, algorithms=["HS256"], audience="sigstore")
        key: Any = x509.load_pem_x509_csr(request).public_key()
        builder = self._leaf(key, claims["sub"], claims["iss"])
        before = builder.sign(self._root_key, hashes.SHA256())
        timestamp = x509.UnrecognizedExtension(_TIMESTAMPS, self._timestamp(before.tbs_certificate_bytes))
        leaf = builder.add_extension(timestamp, critical=False).sign(self._root_key, hashes.SHA256())
        return [each.public_bytes(serialization.Encoding.PEM).decode() for each in (leaf, self._root)]

    def enter(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Take an entry into the log, which is its only one, and give it with its proofs."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])

        def hashed(raw: bytes) -> dict[str, str]:
            return {"algorithm": "sha256", "value": hashlib.sha256(raw).hexdigest()}

        spec: dict[str, Any] = {
            "envelopeHash": hashed(content["envelope"].encode()),
            "payloadHash": hashed(payload),
            "signatures": [
                {"signature": envelope["signatures"][0]["sig"], "verifier": content["verifiers"][0]}
            ],
        }
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        root = hashlib.sha256(b"\0" + body).digest()
        log_id = hashlib.sha256(_der(self._log_key)).digest()
        entry: dict[str, Any] = {
            "body": _b64(body),
            "integratedTime": int(self.now.timestamp()),
            "logID": log_id.hex(),
            "logIndex": 0,
        }
        note = f"{_ORIGIN}\n1\n{_b64(root)}\n"
        signature = _b64(log_id[:4] + _sign(self._log_key, note.encode()))
        entry["verification"] = {
            "signedEntryTimestamp": _b64(_sign(self._log_key, rfc8785.dumps(entry))),
            "inclusionProof": {
                "logIndex": 0,
                "rootHash": root.hex(),
                "treeSize": 1,
                "hashes": [],
                "checkpoint": f"{note}\n\N{EM DASH} {_ORIGIN} {signature}\n",
            },
        }
        return {hashlib.sha256(body).hexdigest(): entry}

    def _root_certificate(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        return (
            self._certificate(self._root_key.public_key(), name, timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signing=False), critical=True)
            .sign(self._root_key, hashes.SHA256())
        )

    def _leaf(self, key: Any, identity: str, issuer: str) -> x509.CertificateBuilder:
        kind = x509.UniformResourceIdentifier if "://" in identity else x509.RFC822Name
        issued = issuer.encode()
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._root_key.public_key())
        return (
            self._certificate(key, x509.Name([]), _LIFETIME)
            .add_extension(_usage(signing=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectAlternativeName([kind(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_V1, issued), critical=False)
            .add_extension(
                x509.UnrecognizedExtension(_ISSUER_V2, bytes([0x0C, len(issued)]) + issued), critical=False
            )
        )

    def _certificate(self, key: Any, subject: x509.Name, lifetime: timedelta) -> x509.CertificateBuilder:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(minutes=1))
            .not_valid_after(self.now + lifetime)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def _timestamp(self, certificate: bytes) -> bytes:
        """A list of one signed certificate timestamp, as the extension holds it."""
        moment = int(self.now.timestamp() * 1000)
        issuer = hashlib.sha256(_der(self._root_key)).digest()
        entry = issuer + struct.pack("!I", len(certificate))[1:] + certificate
        signature = _sign(self._ct_key, struct.pack("!BBQH", 0, 0, moment, 1) + entry + b"\0\0")
        log_id = hashlib.sha256(_der(self._ct_key)).digest()
        single = b"\0" + log_id + struct.pack("!QHBBH", moment, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(single) + 2, len(single)) + single
        return bytes([0x04, *([0x81] if len(listed) > 127 else []), len(listed)]) + listed


def _usage(*, signing: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signing,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not signing,
        crl_sign=not signing,
        encipher_only=False,
        decipher_only=False,
    )


class _Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Sigstore

    def do_POST(self) -> None:
        """A certificate, or an entry in the log."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/v2/signingCert":
            bearer = self.headers["Authorization"].removeprefix("Bearer ")
            chain = self.server.certify(bearer, base64.b64decode(asked["certificateSigningRequest"]))
            self._answer({"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})
        else:
            self._answer(self.server.enter(asked))

    def _answer(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def running_sigstore() -> Iterator[Sigstore]:
    """A running Sigstore."""
    server = Sigstore()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
