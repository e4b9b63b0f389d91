"""Signatures and the trust policy: what must hold, and what must be refused."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import example, given
from hypothesis import strategies as st

from envbuild import trust
from envbuild.build.known import layers_repository
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.digest import Descriptor, Digest
from envbuild.errors import DeadlineExceeded, RegistryError, SpecError
from envbuild.key import KEY_ANNOTATION
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import MAX_MANIFEST, OCI_CONFIG, ImageIndex, Manifest, encode
from envbuild.platform import LINUX_AMD64
from envbuild.progress import Event
from envbuild.promote import Promotion
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver, Source
from envbuild.trust import (
    PAYLOAD,
    SIGNATURE,
    Trust,
    Untrusted,
    check,
    check_rule,
    sign,
    sign_built,
    signature_tag,
)
from envbuild.trust.scope import Scope
from oci_contract import put, put_image, put_index
from tiny import World

KEY = "a" * 64
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def pem(private: Any) -> bytes:
    content: bytes = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return content


def public(private: Any) -> bytes:
    content: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return content


OURS, OTHERS = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))


@pytest.fixture
def registry(tmp_path: Path) -> LayoutRegistry:
    return LayoutRegistry(Repository.parse(f"oci:{tmp_path}/images"))


@pytest.fixture
def image(registry: LayoutRegistry) -> Manifest:
    annotations = {KEY_ANNOTATION: KEY, "io.envbuild.scheme": "1"}
    manifest = put_image(registry, "signed", annotations=annotations)
    registry.put_manifest(manifest, Tag("v1"))
    return manifest


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (tmp_path / "private.pem").write_bytes(pem(OURS))
    return str(tmp_path / "private.pem")


def test_what_is_signed_is_trusted(
    registry: LayoutRegistry, image: Manifest, key_file: str, tmp_path: Path
) -> None:
    with pytest.raises(Untrusted, match="not signed"):
        check(registry, image, [public(OURS)])
    assert sign(registry, image, key_file, locks=tmp_path) is True
    assert sign(registry, image, key_file, locks=tmp_path) is False
    check(registry, image, [public(OTHERS), public(OURS)])
    with pytest.raises(Untrusted, match="not made with a key"):
        check(registry, image, [public(OTHERS)])
    with pytest.raises(Untrusted):
        check(registry, image, [])


def test_signatures_of_others_stay(
    registry: LayoutRegistry, image: Manifest, key_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", pem(OTHERS).decode())
    sign(registry, image, "env:THEIR_KEY", locks=tmp_path)
    sign(registry, image, key_file, locks=tmp_path)
    for key in (OURS, OTHERS):
        check(registry, image, [public(key)])
    assert list(registry.tags()) == [Tag("v1")]


def test_the_format_is_that_of_cosign(
    registry: LayoutRegistry, image: Manifest, key_file: str, tmp_path: Path
) -> None:
    sign(registry, image, key_file, locks=tmp_path)
    digest = image.descriptor.digest
    manifest = registry.get_manifest(Tag(f"sha256-{digest.hex}.sig"))
    assert isinstance(manifest, Manifest)
    (layer,) = manifest.layers
    assert layer.media_type == "application/vnd.dev.cosign.simplesigning.v1+json"
    content = registry.open_blob(layer).read()
    document = json.loads(content)
    assert document["critical"] == {
        "identity": {"docker-reference": str(registry.repository)},
        "image": {"docker-manifest-digest": str(digest)},
        "type": "cosign container image signature",
    }
    signature = base64.b64decode(layer.annotations["dev.cosignproject.cosign/signature"])
    OURS.public_key().verify(signature, content, ec.ECDSA(hashes.SHA256()))


# What must be refused. Each case changes one thing of a signature that would hold.


def good(image: Manifest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(trust.payload(image, Repository.parse("example.com/envs")))
    return content


def signed(content: bytes, private: Any = OURS) -> str:
    return base64.b64encode(private.sign(content, ec.ECDSA(hashes.SHA256()))).decode()


def put_signature(
    registry: LayoutRegistry,
    image: Manifest,
    content: bytes,
    signature: str | None,
    media_type: str = PAYLOAD,
) -> None:
    config = put(registry, b"{}", OCI_CONFIG)
    layer = put(registry, content, media_type)
    if signature is not None:
        layer = layer.annotated(**{SIGNATURE: signature})
    registry.put_manifest(Manifest.build(config, (layer,), {}), signature_tag(image.descriptor.digest))


def changed(*path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(document: dict[str, Any]) -> Any:
        inner = document
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
        return document

    return change


def without(*path: str) -> Callable[[dict[str, Any]], Any]:
    def change(document: dict[str, Any]) -> Any:
        inner = document
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        return document

    return change


OTHER = str(Digest.of(b"another"))
DIGEST = ("critical", "image", "docker-manifest-digest")
PAYLOADS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another digest": changed(*DIGEST, value=OTHER),
    "no digest": without(*DIGEST),
    "empty digest": changed(*DIGEST, value=""),
    "digest is null": changed(*DIGEST, value=None),
    "digest is a list": changed(*DIGEST, value=[OTHER]),
    "digest without algorithm": lambda document: changed(
        *DIGEST, value=document["critical"]["image"]["docker-manifest-digest"][7:]
    )(document),
    "digest in capitals": lambda document: changed(
        *DIGEST, value=document["critical"]["image"]["docker-manifest-digest"].upper()
    )(document),
    "no image": without("critical", "image"),
    "image is text": changed("critical", "image", value=OTHER),
    "no critical": without("critical"),
    "critical is null": changed("critical", value=None),
    "another type": changed("critical", "type", value="atomic container signature"),
    "no type": without("critical", "type"),
    "another key": changed("optional", "io.envbuild.key", value="b" * 64),
    "key is a number": changed("optional", "io.envbuild.key", value=1),
    "key is empty": changed("optional", "io.envbuild.key", value=""),
    "another scheme": changed("optional", "io.envbuild.scheme", value="2"),
    "scheme is a number": changed("optional", "io.envbuild.scheme", value=1),
    "expired": changed("optional", trust.EXPIRES, value=(NOW - timedelta(seconds=1)).isoformat()),
    "expires now": changed("optional", trust.EXPIRES, value=NOW.isoformat()),
    "expires without a zone": changed("optional", trust.EXPIRES, value="2099-01-01T00:00:00"),
    "expires at no time": changed("optional", trust.EXPIRES, value="soon"),
    "expires at a number": changed("optional", trust.EXPIRES, value=99999999999),
    "optional is a list": changed("optional", value=["io.envbuild.key"]),
    "a list": lambda document: [document],
    "text": lambda _: "signed",
    "deep": lambda _: None,
}


@pytest.mark.parametrize("case", PAYLOADS)
def test_a_payload_about_something_else_is_refused(
    registry: LayoutRegistry, image: Manifest, case: str
) -> None:
    content = b"[" * 50_000 if case == "deep" else encode(PAYLOADS[case](good(image)))
    put_signature(registry, image, content, signed(content))
    with pytest.raises(Untrusted):
        check(registry, image, [public(OURS)], now=NOW)


def test_the_cases_start_from_a_signature_that_holds(registry: LayoutRegistry, image: Manifest) -> None:
    later = changed("optional", trust.EXPIRES, value=(NOW + timedelta(seconds=1)).isoformat())
    for document in (good(image), later(good(image)), {**good(image), "optional": None}):
        content = encode(document)
        put_signature(registry, image, content, signed(content))
        check(registry, image, [public(OURS)], now=NOW)


SIGNATURES: dict[str, Callable[[bytes], str | None]] = {
    "none": lambda _: None,
    "empty": lambda _: "",
    "not base64": lambda _: "!!!",
    "garbage": lambda _: base64.b64encode(b"garbage").decode(),
    "of others": lambda content: signed(content, OTHERS),
    "of other bytes": lambda content: signed(content + b" "),
    "cut": lambda content: signed(content)[:-8],
    "in raw form": lambda _: base64.b64encode(bytes(64)).decode(),
    "with SHA-512": lambda content: base64.b64encode(OURS.sign(content, ec.ECDSA(hashes.SHA512()))).decode(),
    "not ASCII": lambda _: "ü",
}


@pytest.mark.parametrize("case", SIGNATURES)
def test_a_signature_that_is_none_is_refused(registry: LayoutRegistry, image: Manifest, case: str) -> None:
    content = encode(good(image))
    put_signature(registry, image, content, SIGNATURES[case](content))
    with pytest.raises(Untrusted):
        check(registry, image, [public(OURS)], now=NOW)


def test_a_signature_of_another_image_cannot_be_moved(
    registry: LayoutRegistry, image: Manifest, key_file: str, tmp_path: Path
) -> None:
    """Replayed: the whole signature under the tag of another image that has the same key."""
    sign(registry, image, key_file, locks=tmp_path)
    other = put_image(registry, "other", annotations=dict(image.annotations))
    registry.put_manifest(other)
    stolen = registry.get_manifest(signature_tag(image.descriptor.digest))
    registry.put_manifest(stolen, signature_tag(other.descriptor.digest))
    with pytest.raises(Untrusted, match=str(image.descriptor.digest)):
        check(registry, other, [public(OURS)])


@pytest.mark.parametrize("case", ["media type", "an index", "payload gone", "too large"])
def test_what_is_no_signature_image_is_refused(registry: LayoutRegistry, image: Manifest, case: str) -> None:
    content = encode(good(image)) + (b" " * (64 << 10) if case == "too large" else b"")
    kind = "application/json" if case == "media type" else PAYLOAD
    put_signature(registry, image, content, signed(content), kind)
    if case == "an index":
        registry.put_manifest(ImageIndex.build((), {}), signature_tag(image.descriptor.digest))
    if case == "payload gone":
        (registry.repository.folder / "blobs/sha256" / Digest.of(content).hex).unlink()
    with pytest.raises(Untrusted):
        check(registry, image, [public(OURS)], now=NOW)


@pytest.mark.parametrize(
    "private",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
)
def test_keys_of_other_kinds_are_refused(
    registry: LayoutRegistry, image: Manifest, tmp_path: Path, private: Any
) -> None:
    (tmp_path / "key").write_bytes(pem(private))
    with pytest.raises(SpecError, match="P-256"):
        sign(registry, image, str(tmp_path / "key"), locks=tmp_path)
    put_signature(registry, image, encode(good(image)), "")
    with pytest.raises(SpecError, match="P-256"):
        check(registry, image, [public(private)])


@pytest.mark.parametrize("content", ["", "canary-s3cret", "-----BEGIN PRIVATE KEY-----\ncanary-s3cret\n"])
def test_a_key_that_cannot_be_used_is_not_shown(
    registry: LayoutRegistry, image: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("SIGN", content)
    with pytest.raises(SpecError) as caught:
        sign(registry, image, "env:SIGN", locks=tmp_path)
    assert "canary" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__!r}"


# What others put beside a signature that holds


def put_signatures(
    registry: LayoutRegistry, image: Manifest | ImageIndex, signatures: list[tuple[bytes, str]]
) -> None:
    layers = [put(registry, content, PAYLOAD).annotated(**{SIGNATURE: text}) for content, text in signatures]
    config = put(registry, b"{}", OCI_CONFIG)
    registry.put_manifest(Manifest.build(config, tuple(layers), {}), signature_tag(image.descriptor.digest))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """The blobs that were read."""
    seen: list[Digest] = []
    usual = LayoutRegistry.open_blob

    def counted(self: LayoutRegistry, descriptor: Descriptor) -> Any:
        seen.append(descriptor.digest)
        return usual(self, descriptor)

    monkeypatch.setattr(LayoutRegistry, "open_blob", counted)
    return seen


def test_junk_hides_no_signature_and_is_not_read(
    registry: LayoutRegistry, image: Manifest, opened: list[Digest]
) -> None:
    content, stranger = encode(good(image)), signed(b"junk", OTHERS)
    odd = [None, "", "!", "A" * 100_000, stranger, signed(b"something else")]
    junk = [(b"junk", odd[number % 6] or "") for number in range(12)] + [(b"junk", stranger)] * 4000
    put_signatures(registry, image, [*junk, (content, signed(content))])
    started = time.monotonic()
    check(registry, image, [public(OURS)], now=NOW)
    assert time.monotonic() - started < 5
    assert opened == [Digest.of(content)]


def test_signatures_of_our_other_images_hide_none(
    registry: LayoutRegistry, image: Manifest, opened: list[Digest]
) -> None:
    replayed = []
    for number in range(100):
        content = encode(changed(*DIGEST, value=str(Digest.of(b"%d" % number)))(good(image)))
        replayed.append((content, signed(content)))
    content = encode(good(image))
    put_signatures(registry, image, [*replayed, (content, signed(content))])
    check(registry, image, [public(OURS)], now=NOW)
    assert len(opened) == 101


def test_signatures_are_read_up_to_a_limit_and_a_deadline(
    registry: LayoutRegistry, image: Manifest, opened: list[Digest]
) -> None:
    large = b" " * (64 << 10)
    put_signatures(registry, image, [(large, signed(large))] * 300)
    with pytest.raises(Untrusted, match="bytes of signatures are read") as caught:
        check(registry, image, [public(OURS)], now=NOW)
    assert len(opened) == 256
    assert len(str(caught.value)) < 1000
    with pytest.raises(DeadlineExceeded):
        check(registry, image, [public(OURS)], now=NOW, deadline=Deadline.after(0))


def test_no_signature_is_added_that_would_make_all_unreadable(
    registry: LayoutRegistry, image: Manifest, key_file: str, tmp_path: Path
) -> None:
    put_signatures(registry, image, [(b"junk", "A" * (MAX_MANIFEST - 700))])
    with pytest.raises(RegistryError, match="none could be read"):
        sign(registry, image, key_file, locks=tmp_path)
    assert isinstance(registry.get_manifest(signature_tag(image.descriptor.digest)), Manifest)


def test_promoting_makes_no_signature_unreadable(
    registry: LayoutRegistry, image: Manifest, key_file: str, tmp_path: Path
) -> None:
    target = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/target"))
    promotion = Promotion(registry, target, Config(workspace=target.repository, cache_dir=tmp_path))
    promotion.promote(Tag("v1"))
    sign(target, image, key_file, locks=tmp_path)
    put_signatures(registry, image, [(b"junk", "A" * (MAX_MANIFEST - 700))])
    with pytest.raises(RegistryError, match="none could be read"):
        promotion.promote(Tag("v1"), with_referrers=True)
    check(target, image, [public(OURS)])


# Indexes


@pytest.fixture
def index(registry: LayoutRegistry) -> ImageIndex:
    made = put_index(registry, "both")
    registry.put_manifest(made, Tag("both"))
    return made


def sign_digest(registry: LayoutRegistry, digest: Digest, key_file: str, tmp_path: Path) -> None:
    sign(registry, registry.get_manifest(digest), key_file, locks=tmp_path)


def test_an_index_counts_with_its_images(
    registry: LayoutRegistry, index: ImageIndex, key_file: str, tmp_path: Path
) -> None:
    rule = required().default
    amd, arm = (entry.digest for entry in index.manifests)
    sign(registry, index, key_file, locks=tmp_path)
    sign_digest(registry, amd, key_file, tmp_path)
    with pytest.raises(Untrusted, match=f"{arm} is not signed"):
        check_rule(registry, index, rule)
    check_rule(registry, index, rule, platforms=[LINUX_AMD64])
    sign_digest(registry, arm, key_file, tmp_path)
    assert (
        str(check_rule(registry, index, rule))
        == "made with a key that is accepted, as 2 images of the index are"
    )
    (registry.repository.folder / "blobs/sha256" / arm.hex).unlink()
    with pytest.raises(Untrusted, match="which is not there"):
        check_rule(registry, index, rule)


@pytest.mark.parametrize("case", ["an index in it", "too many"])
def test_an_index_of_something_else_is_refused(
    registry: LayoutRegistry, index: ImageIndex, key_file: str, tmp_path: Path, case: str
) -> None:
    entries: tuple[Descriptor, ...] = (index.descriptor,)
    if case == "too many":
        images = [put_image(registry, f"{number}", layers=0) for number in range(65)]
        for each in images:
            registry.put_manifest(each)
        entries = tuple(each.descriptor for each in images)
    outer = ImageIndex.build(entries, {})
    registry.put_manifest(outer, Tag("outer"))
    for made in (index, outer):
        sign(registry, made, key_file, locks=tmp_path)
    with pytest.raises(Untrusted, match="no image" if case == "an index in it" else "at most 64"):
        check_rule(registry, outer, required().default)


def test_an_index_over_images_of_others_gets_no_signature_of_ours(
    registry: LayoutRegistry,
    index: ImageIndex,
    key_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = Trust(sign_key=key_file)
    amd, arm = (entry.digest for entry in index.manifests)
    sign_digest(registry, amd, key_file, tmp_path)
    for policy in (ours, replace(ours, default=required().default)):
        with pytest.raises(Untrusted, match=f"{arm} is not signed"):
            sign_built(registry, index, policy, locks=tmp_path, deadline=NO_DEADLINE)
    monkeypatch.setenv("THEIR_KEY", pem(OTHERS).decode())
    sign_digest(registry, arm, "env:THEIR_KEY", tmp_path)
    with pytest.raises(Untrusted, match="not made with a key"):
        sign_built(registry, index, ours, locks=tmp_path, deadline=NO_DEADLINE)
    accepting = replace(ours, default=trust.Rule(keys=(public(OTHERS),)))
    sign_built(registry, index, accepting, locks=tmp_path, deadline=NO_DEADLINE)
    check(registry, index, [public(OURS)])


# The policy


def policy(tmp_path: Path, text: str) -> Trust:
    (tmp_path / "ours.pub").write_bytes(public(OURS))
    (tmp_path / "private.pem").write_bytes(pem(OURS))
    (tmp_path / "envbuild.toml").write_text(text)
    found = Config.load(tmp_path, {"ENVBUILD_CONFIG": str(tmp_path / "envbuild.toml")}).trust
    assert found is not None
    return found


def test_rules_are_chosen_by_the_longest_name(tmp_path: Path) -> None:
    found = policy(
        tmp_path,
        """
        [trust]
        require_signed = true
        keys = ["ours.pub"]
        on_failure = "fail"
        sign_key = "private.pem"
        [trust.repositories."example.com/team"]
        require_signed = false
        [trust.repositories."example.com/team/release"]
        require_signed = true
        on_failure = "miss"
        """,
    )
    seen = {
        name: (rule.require_signed, rule.on_failure)
        for name in ("other.com/a", "example.com/team/a", "example.com/team/release", "example.com/teams")
        for rule in [found.rule(Repository.parse(name))]
    }
    assert seen == {
        "other.com/a": (True, "fail"),
        "example.com/team/a": (False, "fail"),
        "example.com/team/release": (True, "miss"),
        "example.com/teams": (True, "fail"),
    }
    assert found.sign_key == str(tmp_path / "private.pem")
    (tmp_path / "policy.toml").write_text('keys = ["ours.pub"]\nrequire_signed = true\n')
    named = Config.load(None, {"ENVBUILD_TRUST": str(tmp_path / "policy.toml")}).trust
    assert named == Trust(trust.Rule(True, (public(OURS),)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("require_signed = true", "names no keys"),
        ("require_signed = true\nkeys = []", "names no keys"),
        ('keys = ["ours.pub"]', "says nowhere"),
        ('keys = ["ours.pub"]\n[trust.repositories."a.com/b"]\nrequire_signed = false', "says nowhere"),
        ('[trust.repositories."a.com/b"]\nkeys = ["ours.pub"]', "says nowhere"),
        ('require_signed = "true"', "expected true or false"),
        ("[trust.repositories.a.com]\nrequire_signed = true", "has tables in it"),
        ('[trust.repositories]\n"a.com/b" = true', "expected a table"),
        ('[trust.repositories."a.com/b"]\nrequired_signed = true', "not known"),
        ('[trust.repositories."a.com/b"]\nsign_key = "private.pem"', "not known"),
        ('require_signed = true\nkeys = ["ours.pub"]\n[trust.repository."a.com/b"]', "not known"),
        ("require_signed = 1", "expected true or false"),
        ('keys = "ours.pub"', "list of files"),
        ('keys = ["missing.pub"]', "cannot be read"),
        ('keys = ["private.pem"]', "not a public key"),
        ('on_failure = "ignore"', "miss or fail"),
        ("require_signatures = true", "not known"),
        ("repositories = 1", "expected a table"),
        ("sign_key = 1", "not text"),
        ('sign_key = "-----BEGIN PRIVATE KEY-----"', "holds a key"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        policy(tmp_path, f"[trust]\n{text}\n")
    (tmp_path / "policy.toml").write_text(text.replace("[trust.", "["))
    with pytest.raises(SpecError, match=message):
        Config.load(tmp_path / "other", {"ENVBUILD_TRUST": str(tmp_path / "policy.toml")})


def strict_for(name: str, folder: Path) -> Trust:
    quoted = json.dumps(name, ensure_ascii=False)
    rule = f"[trust.repositories.{quoted}]\nrequire_signed = true\n"
    return policy(folder, f'[trust]\nkeys = ["ours.pub"]\n{rule}')


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("team/envs", "docker.io/team/envs"),
        ("team/envs", "index.docker.io/team/envs"),
        ("index.docker.io/team/envs", "team/envs"),
        ("registry-1.docker.io/team/envs", "docker.io/team/envs"),
        ("index.docker.io", "team/envs"),
        ("docker.io/team/", "team/envs"),
        ("team/", "docker.io/team/envs"),
        ("library/debian", "debian"),
        ("library/debian", "docker.io:443/debian"),
        ("docker.io/library/debian", "index.docker.io/debian"),
        ("Registry.Example.COM/team", "registry.example.com/team/envs"),
        ("registry.example.com/team", "REGISTRY.example.com/team"),
        ("registry.example.com/team/", "registry.example.com/team/envs"),
        ("registry.example.com", "registry.example.com/team/envs"),
        ("registry.example.com/", "registry.example.com/team/envs"),
        ("registry.example.com:443/team", "registry.example.com/team"),
        ("registry.example.com/team", "registry.example.com:443/team"),
        ("registry.example.com:05000/team", "registry.example.com:5000/team"),
        ("registry:5000/", "registry:5000/team"),
        ("localhost:5000", "localhost:5000/team"),
        ("MyHost/team", "MYHOST/team"),
        ("[0:0::1]:5000/team", "[::1]:5000/team"),
        ("oci:images", "oci:{}/images"),
        ("oci:images/", "oci:{}/images"),
        ("oci:./x/../images", "oci:{}/images"),
        ("oci:{}", "oci:{}/images"),
        ("oci:link", "oci:{}/images"),
        ("oci:images", "oci:{}/link"),
    ],
)
def test_a_rule_holds_however_its_name_is_spelled(tmp_path: Path, name: str, repository: str) -> None:
    (tmp_path / "link").symlink_to("images")
    found = strict_for(name.format(tmp_path), tmp_path)
    assert found.rule(Repository.parse(repository.format(tmp_path))).require_signed


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("registry.example.com/team", "registry.example.com/teams"),
        ("registry.example.com/team", "registry.example.com:5000/team"),
        ("registry.example.com/team", "other.example.com/registry.example.com/team"),
        ("registry.example.com", "sub.registry.example.com/team"),
        ("team/envs", "team/envs-of-others"),
        ("registry.example.com/team", "registry.example.com/team-layers"),
        ("oci:images", "oci:{}/images-old"),
        ("oci:/registry.example.com", "registry.example.com/team"),
    ],
)
def test_a_rule_does_not_hold_for_neighbours(tmp_path: Path, name: str, repository: str) -> None:
    assert not strict_for(name, tmp_path).rule(Repository.parse(repository.format(tmp_path))).require_signed


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "*", "registry.example.com/*", "registry.example.com/team?", "*.example.com",
        "https://registry.example.com/team", "http://registry.example.com", "docker://registry.example.com/team",
        "oci://registry.example.com/team", "oci:", "oci:images:v1", f"oci:images@sha256:{'a' * 64}",
        "docker-daemon:team/envs", "debian", "docker.io/debian", "docker.io:443/debian", "team", "debian:12",
        "registry:5000", "registry.example.com/team:v1", f"registry.example.com/team@sha256:{'a' * 64}",
        "registry.example.com/Team", "registry.example.com//team", "registry.example.com/team//",
        " example.com", "registry.example.com/team ", "registry.example.com./team", "a@b.com/team",
        "registry.example.com:port/team", "registry.example.com:99999/team", "réseau.example.com/team", "..",
        "a" * 64,
    ],
)  # fmt: skip
def test_a_rule_whose_name_may_mean_something_else_is_refused_with_its_line(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(SpecError) as caught:
        strict_for(name, tmp_path)
    assert (caught.value.source, caught.value.line) == (str(tmp_path / "envbuild.toml"), 3)
    assert repr(name)[:20] in caught.value.message
    assert caught.value.hint
    with pytest.raises(SpecError):
        Trust(rules=((name, trust.Rule()),))


_PIECES = st.sampled_from(
    [
        "registry",
        "Registry",
        "example.com",
        "EXAMPLE.com",
        "docker.io",
        "index.docker.io",
        "localhost",
        "team",
        "library",
        "debian",
        ":443",
        ":80",
        ":5000",
        ":0443",
        "/",
        "//",
        ".",
        "-",
        "_",
        "oci:",
        "..",
        "[::1]",
        "[::0:1]",
        "@",
        "*",
        "127.0.0.1",
        "12",
    ]
)


@given(st.lists(_PIECES, min_size=1, max_size=7).map("".join))
@example("docker.io:443/debian")
@example("index.docker.io:443/team/envs")
@example("MyHost/team")
def test_a_rule_that_is_named_like_a_repository_holds_for_it_or_is_refused(name: str) -> None:
    try:
        repository = Repository.parse(name)
        scope = Scope.parse(name)
    except SpecError:
        return
    if not scope.parts:  # alone, a host's name would be that of an official image of Docker Hub
        assert repository == Repository("docker.io", f"library/{name}")
        return
    assert scope.matched(repository) == len(scope.place.parts)
    inner = Repository(repository.host, f"{repository.path}/inner")
    assert scope.matched(inner) == len(scope.place.parts)
    assert Scope(scope.host, scope.parts[:-1]).matched(repository) is not None


def test_rules_about_the_same_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("images")
    for first, second in [
        ("team/envs", "docker.io/team/envs"),
        ("a.com/x", "A.com:443/x/"),
        ("oci:images", "oci:link"),
    ]:
        tables = "".join(
            f"[trust.repositories.{json.dumps(name)}]\nrequire_signed = false\n" for name in (first, second)
        )
        with pytest.raises(SpecError, match="same repositories") as caught:
            policy(tmp_path, f"[trust]\n{tables}")
        assert caught.value.line == 4


def test_a_rule_inherits_from_the_one_around_it(tmp_path: Path) -> None:
    found = policy(
        tmp_path,
        """
        [trust]
        keys = ["ours.pub"]
        [trust.repositories."example.com/team/release"]
        on_failure = "fail"
        [trust.repositories."example.com/team"]
        require_signed = true
        """,
    )
    rule = found.rule(Repository.parse("example.com/team/release/envs"))
    assert (rule.require_signed, rule.on_failure) == (True, "fail")


def test_the_layers_of_a_repository_have_its_rule(tmp_path: Path) -> None:
    for name in ("team/envs", "registry.example.com/team", "oci:images"):
        repository = Repository.parse(name)
        found = Trust(rules=((name, required().default),))
        assert found.rule(layers_repository(repository)) is found.rule(repository)


def test_a_layout_that_a_link_names_later_has_its_rule(tmp_path: Path) -> None:
    found = strict_for("oci:link", tmp_path)
    (tmp_path / "link").symlink_to("images")
    assert found.rule(Repository.parse(f"oci:{tmp_path}/images")).require_signed


def required(on_failure: trust.OnFailure = "miss") -> Trust:
    return Trust(trust.Rule(True, (public(OURS),), on_failure))


def test_an_unsigned_hit_is_a_miss_with_a_warning_or_a_failure(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    spec = world.spec("first")
    shared = Repository.parse(f"oci:{tmp_path}/shared")
    with Resolver(world.other_machine(workspace=shared)) as resolver:
        unsigned = resolver.resolve(spec)
    rules = ((str(shared), required().default),)
    events: list[Event] = []
    config = world.other_machine(global_=shared, trust=Trust(rules=rules))
    with Resolver(config, progress=events.append) as resolver:
        assert resolver.resolve(spec).source is Source.BUILT
    assert any("not signed" in (event.text or "") for event in events)
    failing = ((str(shared), required("fail").default),)
    empty = Repository.parse(f"oci:{tmp_path}/empty")
    config = world.other_machine(workspace=empty, global_=shared, trust=Trust(rules=failing))
    with Resolver(config) as resolver, pytest.raises(Untrusted):
        resolver.resolve(spec)

    registry = LayoutRegistry(shared)
    (tmp_path / "key").write_bytes(pem(OURS))
    sign(registry, registry.get_manifest(unsigned.reference.digest), str(tmp_path / "key"), locks=tmp_path)
    for each in (rules, failing):
        config = world.other_machine(workspace=empty, global_=shared, trust=Trust(rules=each))
        with Resolver(config) as resolver:
            assert resolver.resolve(spec).source is Source.GLOBAL


def test_the_index_does_not_stand_in_for_a_signature(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    spec = world.spec("first")
    with Resolver(world.config) as resolver:
        resolver.resolve(spec)
        assert resolver.resolve(spec).source is Source.INDEX
    with Resolver(replace(world.config, trust=required("fail"))) as resolver, pytest.raises(Untrusted):
        resolver.resolve(spec)
