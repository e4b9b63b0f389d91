"""Signatures by identities, on a small Sigstore of our own: what must hold, and what must be refused."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import DeadlineExceeded, EnvbuildError, SpecError, Unauthorized, Unavailable
from envbuild.key import KEY_ANNOTATION
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import Artifact, attach, read_artifact, referrers
from envbuild.promote import Promotion
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver, Source
from envbuild.trust import Identity, Rule, Trust, Untrusted, check_rule, sign_built
from envbuild.trust.identity import BUNDLE, PREDICATE, check_identities, sign_as
from envbuild.verify import verify
from oci_contract import put_image, put_index
from parts.sigstore_server import ISSUER, Sigstore, running_sigstore, token
from tiny import World

JOB = "https://ci.example.com/team/envs/build.yml@refs/heads/main"
OURS = Identity(ISSUER, JOB)
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def sigstore() -> Iterator[Sigstore]:
    with running_sigstore() as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[Sigstore]:
    """Another authority and log, whose word does not count."""
    with running_sigstore() as running:
        yield running


@pytest.fixture
def registry(tmp_path: Path) -> LayoutRegistry:
    return LayoutRegistry(Repository.parse(f"oci:{tmp_path}/images"))


@pytest.fixture
def image(registry: LayoutRegistry) -> Manifest:
    annotations = {KEY_ANNOTATION: "a" * 64, "io.envbuild.scheme": "1"}
    manifest = put_image(registry, "signed", annotations=annotations)
    registry.put_manifest(manifest, Tag("v1"))
    return manifest


def written(folder: Path, document: dict[str, Any], name: str = "root.json") -> str:
    (folder / name).write_text(json.dumps(document))
    return str(folder / name)


@pytest.fixture
def root(sigstore: Sigstore, tmp_path: Path) -> str:
    """What a verifier is given: whom to trust, and nothing of where to sign."""
    return written(tmp_path, sigstore.trusted_root)


@pytest.fixture
def signed(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """The bundle that was attached to the image."""
    return sign_with(registry, image, sigstore, tmp_path, monkeypatch)


def sign_with(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    folder: Path,
    patch: pytest.MonkeyPatch,
    **options: Any,
) -> dict[str, Any]:
    patch.setenv("TOKEN", token(options.pop("identity", JOB), options.pop("issuer", ISSUER)))
    config = written(folder, sigstore.client_config, "config.json")
    before = {entry.digest for entry in referrers(registry, image.descriptor.digest, BUNDLE)}
    sign_as(registry, image, "env:TOKEN", config, locks=folder, **options)
    listed = referrers(registry, image.descriptor.digest, BUNDLE)
    (entry,) = (each for each in listed if each.digest not in before)
    found = registry.get_manifest(entry.digest)
    assert isinstance(found, Manifest)
    document: dict[str, Any] = json.loads(read_artifact(registry, found))
    return document


def put_bundle(
    registry: LayoutRegistry, image: Manifest, bundle: Any, folder: Path, kind: str = BUNDLE
) -> None:
    content = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    attach(registry, image.descriptor, [Artifact(kind, kind, content, {})], locks=folder)


def test_what_an_identity_signed_is_trusted(
    registry: LayoutRegistry, image: Manifest, root: str, signed: dict[str, Any]
) -> None:
    check_identities(registry, image, [OURS], root)
    check_identities(registry, image, [Identity("https://other.example.com", "x"), OURS], root)
    statement = json.loads(base64.b64decode(signed["dsseEnvelope"]["payload"]))
    assert statement["predicateType"] == PREDICATE
    assert statement["subject"][0]["digest"] == {"sha256": image.descriptor.digest.hex}
    assert statement["predicate"] == image.annotations
    rule = Rule(True, (), "fail", (OURS,), root)
    assert check_rule(registry, image, rule).by == "made by an identity that is accepted"


def test_the_client_configuration_is_a_trusted_root_too(
    registry: LayoutRegistry, image: Manifest, sigstore: Sigstore, signed: dict[str, Any], tmp_path: Path
) -> None:
    check_identities(registry, image, [OURS], written(tmp_path, sigstore.client_config))


def test_nothing_is_asked_of_anybody_but_the_registry(
    registry: LayoutRegistry,
    image: Manifest,
    root: str,
    signed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr("socket.socket.connect", refused)
    check_identities(registry, image, [OURS], root)


# What must be refused. The identities that are accepted, one thing changed each.

STRANGERS = {
    "another identity": Identity(ISSUER, JOB.replace("main", "fork")),
    "another issuer": Identity("https://evil.example.com", JOB),
    "both of others": Identity("https://evil.example.com", "mallory@example.com"),
    "the issuer's prefix": Identity(ISSUER[:-1], JOB),
    "the issuer with a slash": Identity(f"{ISSUER}/", JOB),
    "the issuer in capitals": Identity(ISSUER.upper(), JOB),
    "the identity's prefix": Identity(ISSUER, JOB[:-1]),
    "the identity with more": Identity(ISSUER, f"{JOB}-2"),
    "the identity in capitals": Identity(ISSUER, JOB.upper()),
    "swapped": Identity(JOB, ISSUER),
    "a pattern": Identity(ISSUER, "https://ci.example.com/.*"),
    "an empty identity": Identity(ISSUER, ""),
    "an empty issuer": Identity("", JOB),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_strangers_are_refused(
    registry: LayoutRegistry, image: Manifest, root: str, signed: dict[str, Any], case: str
) -> None:
    with pytest.raises(Untrusted):
        check_identities(registry, image, [STRANGERS[case]], root)


def test_nobody_is_accepted_where_nobody_is_named(
    registry: LayoutRegistry, image: Manifest, root: str, signed: dict[str, Any]
) -> None:
    with pytest.raises(Untrusted):
        check_identities(registry, image, [], root)


def changed(*path: str | int, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(bundle: dict[str, Any]) -> Any:
        inner: Any = bundle
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value(inner[path[-1]]) if callable(value) else value
        return bundle

    return change


def flipped(text: str) -> str:
    """Base64 of the same bytes with one bit changed."""
    raw = bytearray(base64.b64decode(text))
    raw[-1] ^= 1
    return base64.b64encode(raw).decode()


ENTRY = ("verificationMaterial", "tlogEntries", 0)
BUNDLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "payload changed": changed("dsseEnvelope", "payload", value=flipped),
    "signature changed": changed("dsseEnvelope", "signatures", 0, "sig", value=flipped),
    "no signature": changed("dsseEnvelope", "signatures", value=[]),
    "another payload type": changed("dsseEnvelope", "payloadType", value="text/plain"),
    "certificate changed": changed("verificationMaterial", "certificate", "rawBytes", value=flipped),
    "no log entry": changed("verificationMaterial", "tlogEntries", value=[]),
    "log's promise changed": changed(*ENTRY, "inclusionPromise", "signedEntryTimestamp", value=flipped),
    "no promise, so no time": changed(*ENTRY, "inclusionPromise", value=None),
    "log's time changed": changed(*ENTRY, "integratedTime", value=lambda text: str(int(text) + 1)),
    "log's body changed": changed(*ENTRY, "canonicalizedBody", value=flipped),
    "root of the tree changed": changed(*ENTRY, "inclusionProof", "rootHash", value=flipped),
    "checkpoint of another": changed(
        *ENTRY, "inclusionProof", "checkpoint", "envelope", value=lambda text: text.replace("\n1\n", "\n2\n")
    ),
    "another log": changed(*ENTRY, "logId", "keyId", value=flipped),
    "another version": changed("mediaType", value="application/vnd.dev.sigstore.bundle.v9+json"),
    "a list": lambda bundle: [bundle],
    "empty": lambda _: b"",
    "not JSON": lambda _: b"\xff{",
    "deep": lambda _: b"[" * 100_000,
    "too large": lambda bundle: json.dumps(bundle).encode() + b" " * (1 << 20),
}


@pytest.mark.parametrize("case", BUNDLES)
def test_a_changed_bundle_is_refused(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    elsewhere = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/elsewhere"))
    bundle = sign_with(elsewhere, image, sigstore, tmp_path, monkeypatch)
    put_bundle(registry, image, BUNDLES[case](bundle), tmp_path)
    with pytest.raises(Untrusted, match="no signature of"):
        check_identities(registry, image, [OURS], root)


def test_the_cases_start_from_a_bundle_that_holds(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/elsewhere"))
    bundle = sign_with(elsewhere, image, sigstore, tmp_path, monkeypatch)
    with pytest.raises(Untrusted, match="not signed by anybody"):
        check_identities(registry, image, [OURS], root)
    put_bundle(registry, image, BUNDLES["payload changed"](json.loads(json.dumps(bundle))), tmp_path)
    put_bundle(registry, image, bundle, tmp_path)
    check_identities(registry, image, [OURS], root)


def test_junk_hides_no_bundle(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    junk = [Artifact(BUNDLE, BUNDLE, b"{}%d" % number, {}) for number in range(100)]
    attach(registry, image.descriptor, junk, locks=tmp_path)
    attach(registry, image.descriptor, [Artifact(BUNDLE, BUNDLE, bytes(2 << 20), {})], locks=tmp_path)
    with pytest.raises(Untrusted, match="far too large"):
        check_identities(registry, image, [OURS], root)
    sign_with(registry, image, sigstore, tmp_path, monkeypatch)
    check_identities(registry, image, [OURS], root)
    with pytest.raises(DeadlineExceeded):
        check_identities(registry, image, [OURS], root, deadline=Deadline.after(0))
    monkeypatch.setattr("envbuild.trust.identity._MAX_READ", 50 * 4096)
    with pytest.raises(Untrusted, match="bytes of signatures are read"):
        check_identities(registry, image, [OURS], root)


def test_a_bundle_that_unpacks_to_much_is_refused(
    registry: LayoutRegistry, image: Manifest, root: str, tmp_path: Path
) -> None:
    packed = gzip.compress(bytes(32 << 20))
    attach(registry, image.descriptor, [Artifact(BUNDLE, f"{BUNDLE}+gzip", packed, {})], locks=tmp_path)
    with pytest.raises(Untrusted, match="when it is decompressed"):
        check_identities(registry, image, [OURS], root)


def test_an_index_is_signed_by_an_identity_where_its_images_are(
    registry: LayoutRegistry,
    sigstore: Sigstore,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = put_index(registry, "both")
    registry.put_manifest(index, Tag("both"))
    monkeypatch.setenv("TOKEN", token(JOB, ISSUER))
    config = written(tmp_path, sigstore.client_config, "config.json")
    policy = Trust(Rule(trusted_root=config), sign_identity="env:TOKEN")

    def sign(manifest: Manifest | ImageIndex) -> None:
        sign_built(registry, manifest, policy, locks=tmp_path, deadline=NO_DEADLINE)

    with pytest.raises(Untrusted, match="not signed by anybody"):
        sign(index)
    for entry in index.manifests:
        sign(registry.get_manifest(entry.digest))
    sign(index)
    check_rule(registry, index, Rule(True, (), "fail", (OURS,), root))


def test_a_bundle_of_another_image_cannot_be_moved(
    registry: LayoutRegistry, image: Manifest, root: str, signed: dict[str, Any], tmp_path: Path
) -> None:
    """Replayed: the whole bundle, attached to another image with the same key."""
    other = put_image(registry, "other", annotations=dict(image.annotations))
    registry.put_manifest(other)
    put_bundle(registry, other, signed, tmp_path)
    with pytest.raises(Untrusted, match=image.descriptor.digest.hex):
        check_identities(registry, other, [OURS], root)


def test_the_word_of_another_authority_does_not_count(
    registry: LayoutRegistry,
    image: Manifest,
    other: Sigstore,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sign_with(registry, image, other, tmp_path, monkeypatch)
    with pytest.raises(Untrusted, match="no signature of"):
        check_identities(registry, image, [OURS], root)
    check_identities(registry, image, [OURS], written(tmp_path, other.trusted_root, "other.json"))


def test_a_statement_that_expired_does_not_hold(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sign_with(registry, image, sigstore, tmp_path, monkeypatch, expires=NOW)
    check_identities(registry, image, [OURS], root, now=NOW - timedelta(seconds=1))
    with pytest.raises(Untrusted, match="expired"):
        check_identities(registry, image, [OURS], root, now=NOW)


@pytest.mark.parametrize("name", [KEY_ANNOTATION, "io.envbuild.scheme"])
def test_claims_that_are_not_the_images_are_refused(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr("envbuild.trust.identity.claims_of", lambda *_: {**image.annotations, name: "b" * 64})
    sign_with(registry, image, sigstore, tmp_path, monkeypatch)
    with pytest.raises(Untrusted, match=f"it is for {name}"):
        check_identities(registry, image, [OURS], root)


def test_a_certificate_that_had_run_out_is_refused(
    registry: LayoutRegistry, image: Manifest, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_sigstore() as late:
        certify = late.certify

        def then_an_hour_passes(bearer: str, request: bytes) -> list[str]:
            chain = certify(bearer, request)
            late.now += timedelta(hours=1)
            return chain

        monkeypatch.setattr(late, "certify", then_an_hour_passes)
        sign_with(registry, image, late, tmp_path, monkeypatch)
        with pytest.raises(Untrusted, match="no signature of"):
            check_identities(registry, image, [OURS], written(tmp_path, late.trusted_root))


def test_what_is_no_bundle_is_left_alone(
    registry: LayoutRegistry, image: Manifest, root: str, tmp_path: Path
) -> None:
    put_bundle(registry, image, {"mediaType": BUNDLE}, tmp_path, "application/vnd.example.note")
    with pytest.raises(Untrusted, match="not signed by anybody"):
        check_identities(registry, image, [OURS], root)


# Signing


@pytest.mark.parametrize("content", ["", "canary-s3cret", "canary.s3cret.token"])
def test_a_token_that_cannot_be_used_is_not_shown(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
) -> None:
    monkeypatch.setenv("TOKEN", content)
    config = written(tmp_path, sigstore.client_config)
    with pytest.raises(Unauthorized) as caught:
        sign_as(registry, image, "env:TOKEN", config, locks=tmp_path)
    assert "canary" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__!r}"


def test_without_a_job_there_is_no_ambient_token(
    registry: LayoutRegistry,
    image: Manifest,
    sigstore: Sigstore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    config = written(tmp_path, sigstore.client_config)
    with pytest.raises(Unauthorized, match="no identity token") as caught:
        sign_as(registry, image, "ambient", config, locks=tmp_path)
    assert "id-token" in str(caught.value.hint)
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: token(JOB))
    assert sign_as(registry, image, "ambient", config, locks=tmp_path) == OURS


def test_an_authority_that_does_not_answer(
    registry: LayoutRegistry, image: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_sigstore() as gone:
        config = written(tmp_path, gone.client_config)
    monkeypatch.setenv("TOKEN", secret := token(JOB))
    with pytest.raises(Unavailable) as caught:
        sign_as(registry, image, "env:TOKEN", config, locks=tmp_path)
    assert secret not in f"{caught.value}{caught.value.hint}{caught.value.__cause__!r}"


def test_a_root_says_nothing_of_where_to_sign(
    registry: LayoutRegistry, image: Manifest, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", token(JOB))
    with pytest.raises(SpecError, match="not where to sign"):
        sign_as(registry, image, "env:TOKEN", root, locks=tmp_path)


# The policy

TABLE = f'identities = [{{ issuer = "{ISSUER}", identity = "{JOB}" }}]\n'


def policy(folder: Path, text: str) -> Trust:
    (folder / "envbuild.toml").write_text(f"[trust]\n{text}")
    found = Config.load(folder, {"ENVBUILD_CONFIG": str(folder / "envbuild.toml")}).trust
    assert found is not None
    return found


def test_identities_of_a_policy(tmp_path: Path, root: str) -> None:
    text = f'require_signed = true\ntrusted_root = "root.json"\nsign_identity = "ambient"\n{TABLE}'
    found = policy(tmp_path, text)
    assert found == Trust(Rule(True, (), "miss", (OURS,), root), (), None, "ambient")
    assert found.signs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("require_signed = true", "no keys and no identities"),
        (f'identities = [{{ identity = "{JOB}" }}]', "expected an issuer and an identity"),
        (f'identities = [{{ issuer = "{ISSUER}" }}]', "expected an issuer and an identity"),
        (f'identities = [{{ issuer = "", identity = "{JOB}" }}]', "expected an issuer and an identity"),
        (f'identities = [{{ issuer = 1, identity = "{JOB}" }}]', "expected an issuer and an identity"),
        (TABLE.replace(" }]", ', pattern = "x" }]'), "expected an issuer and an identity"),
        (f'identities = ["{JOB}"]', "expected an issuer and an identity"),
        (f'identities = "{JOB}"', "list of tables"),
        ('trusted_root = "missing.json"', "a file that is there"),
        ("trusted_root = 1", "a file that is there"),
        ('sign_identity = "canary-s3cret"', "names no token"),
        ("sign_identity = 1", "names no token"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        policy(tmp_path, text)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mediaType": "text/plain"}', "\ufeff{", "[" * 100_000])
def test_a_trusted_root_that_is_none_is_the_policys_fault(
    registry: LayoutRegistry, image: Manifest, tmp_path: Path, content: str
) -> None:
    (tmp_path / "root.json").write_text(content)
    with pytest.raises(SpecError) as caught:
        check_identities(registry, image, [OURS], str(tmp_path / "root.json"))
    assert caught.value.source == str(tmp_path / "root.json")


def test_the_public_service_is_known_without_a_file(registry: LayoutRegistry, image: Manifest) -> None:
    with pytest.raises(Untrusted, match="not signed by anybody"):
        check_identities(registry, image, [OURS], None)


def test_a_build_is_signed_and_found_by_who_trusts_its_identity(
    tmp_path: Path, sigstore: Sigstore, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World.make(tmp_path)
    spec = world.spec("first")
    config = written(tmp_path, sigstore.client_config)
    rule = Rule(True, (), "fail", (OURS,), config)
    monkeypatch.setenv("TOKEN", token(JOB))
    trust = Trust(rule, sign_identity="env:TOKEN")
    with Resolver(replace(world.config, trust=trust)) as resolver:
        built = resolver.resolve(spec)
    assert built.source is Source.BUILT
    with Resolver(world.other_machine(trust=Trust(rule))) as resolver:
        assert resolver.resolve(spec).source is Source.WORKSPACE
    stranger = Trust(replace(rule, identities=(STRANGERS["another identity"],)))
    with Resolver(world.other_machine(trust=stranger)) as resolver, pytest.raises(Untrusted):
        resolver.resolve(spec)
    report = verify(world.layout(), built.reference.digest, rule=rule)
    assert report.passed
    assert report.checks[-1].detail == "made by an identity that is accepted"
    assert not verify(world.layout(), built.reference.digest, rule=stranger.default).passed


def test_a_key_or_an_identity_will_do(
    registry: LayoutRegistry, image: Manifest, root: str, signed: dict[str, Any], tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    check_rule(registry, image, Rule(True, (pem,), "fail", (OURS,), root))
    for refused in (Rule(True, (pem,)), Rule(True, (pem,), "fail", (Identity(ISSUER, "x"),), root)):
        with pytest.raises(EnvbuildError, match=r"not signed|not accepted"):
            check_rule(registry, image, refused)


@pytest.mark.usefixtures("signed")
def test_promotion_takes_along_what_counts_where_it_goes(
    registry: LayoutRegistry, image: Manifest, root: str, tmp_path: Path
) -> None:
    for number, identity in enumerate((replace(OURS, identity="https://ci.example.com/others"), OURS)):
        target = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/target-{number}"))
        rule = Rule(require_signed=True, identities=(identity,), trusted_root=root)
        trust = Trust(rules=((str(target.repository), rule),))
        config = Config(workspace=target.repository, cache_dir=tmp_path / "cache", trust=trust)
        promotion = Promotion(registry, target, config)
        if identity != OURS:
            with pytest.raises(Untrusted, match="not copied to"):
                promotion.promote(Tag("v1"))
            assert not target.repository.folder.exists()
        else:
            assert promotion.promote(Tag("v1")).attached == 1
            check_rule(target, image, rule)
