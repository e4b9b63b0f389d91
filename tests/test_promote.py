"""Promotion: digests unchanged, key tags kept, nothing moved that was there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from envbuild.config import Config
from envbuild.digest import Descriptor
from envbuild.errors import EnvbuildError, IntegrityError, SpecError, TagMoved
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import Artifact, attach, referrers
from envbuild.oci.registry import Registry
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.whole import missing
from envbuild.platform import Platform
from envbuild.promote import Promotion
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver, Source
from envbuild.trust import Rule, Trust, check, sign
from oci_contract import AMD64, ARM64, put_image, put_index
from parts.registry_server import RegistryServer
from test_trust import pem, public
from tiny import World

KEY, LOCK = "a" * 64, "b" * 64
KEYS = {KEY_ANNOTATION: KEY, LOCK_ANNOTATION: LOCK}


@pytest.fixture(params=["layouts", "one host", "two hosts", "to a host with the API", "from one"])
def promotion(request: pytest.FixtureRequest, tmp_path: Path) -> Promotion:
    source: Registry
    target: Registry
    if request.param == "layouts":
        source, target = (LayoutRegistry(Repository.parse(f"oci:{tmp_path}/{name}")) for name in "ab")
    else:
        names = {
            "one host": ("registry", "registry"),
            "two hosts": ("registry", "second_registry"),
            "to a host with the API": ("registry", "ocimem"),
            "from one": ("ocimem", "registry"),
        }
        first, second = (request.getfixturevalue(name) for name in names[request.param])
        source, target = RemoteRegistry(first.repository("from")), RemoteRegistry(second.repository("to"))
    return Promotion(source, target, settings(target, tmp_path / "cache"))


def settings(target: Registry, cache_dir: Path, **more: Any) -> Config:
    return Config(workspace=target.repository, cache_dir=cache_dir, **more)


def test_an_image_keeps_its_digest_and_its_tags(promotion: Promotion) -> None:
    manifest = put_image(promotion.source, "image", annotations=KEYS)
    promotion.source.put_manifest(manifest, Tag("v1"))
    done = promotion.promote(Tag("v1"))
    assert done.reference == promotion.target.repository.at(manifest.descriptor.digest)
    assert done.tags == (Tag("v1"), Tag(f"k1-{KEY}"))
    assert set(promotion.target.tags()) == set(done.tags)
    for tag in done.tags:
        assert promotion.target.get_manifest(tag).raw == manifest.raw
    assert missing(promotion.target, manifest) == ()
    again = promotion.promote(manifest.descriptor.digest)
    assert (again.report.blobs_copied, again.report.blobs_mounted) == (0, 0)


def test_a_key_tag_on_another_image_stays(promotion: Promotion) -> None:
    ours = put_image(promotion.source, "ours", annotations=KEYS)
    promotion.source.put_manifest(ours, Tag(f"k1-{KEY}"))
    theirs = put_image(promotion.target, "theirs")
    promotion.target.put_manifest(theirs, Tag(f"k1-{KEY}"))
    with pytest.raises(TagMoved, match=str(theirs.descriptor.digest)):
        promotion.promote(Tag(f"k1-{KEY}"))
    assert promotion.target.get_manifest(Tag(f"k1-{KEY}")).raw == theirs.raw


def test_another_image_of_the_same_lock_is_no_obstacle(promotion: Promotion) -> None:
    theirs = put_image(promotion.target, "theirs")
    promotion.target.put_manifest(theirs, Tag(f"l1-{LOCK}"))
    ours = put_image(promotion.source, "ours", annotations=KEYS)
    promotion.source.put_manifest(ours, Tag(f"k1-{KEY}"))
    assert promotion.promote(ours.descriptor.digest).tags == (Tag(f"k1-{KEY}"),)
    assert promotion.target.get_manifest(Tag(f"l1-{LOCK}")).raw == theirs.raw


@pytest.mark.parametrize("docker", [False, True])
def test_an_index_goes_whole_or_for_one_platform(promotion: Promotion, docker: bool) -> None:
    index = put_index(promotion.source, "both", docker=docker)
    promotion.source.put_manifest(index, Tag("v1"))
    entry = index.for_platform(ARM64)
    assert entry is not None
    one = promotion.promote(Tag("v1"), platform=ARM64)
    assert one.reference.digest == entry.digest
    assert one.tags == (Tag("v1"),)
    promotion.source.put_manifest(index, Tag("v2"))
    whole = promotion.promote(Tag("v2"))
    assert whole.reference.digest == index.descriptor.digest
    seen = promotion.target.get_manifest(Tag("v2"))
    assert isinstance(seen, ImageIndex)
    assert missing(promotion.target, seen) == ()
    with pytest.raises(SpecError, match="ppc64le"):
        promotion.promote(Tag("v2"), platform=Platform("linux", "ppc64le"))


def test_the_image_of_a_platform_is_what_its_index_and_its_config_say(tmp_path: Path) -> None:
    """Of an index that anybody can have written, no image of ours is given out for another."""
    source, target = (LayoutRegistry(Repository.parse(f"oci:{tmp_path}/{name}")) for name in "ab")
    (tmp_path / "ours.pem").write_bytes(pem(key := ec.generate_private_key(ec.SECP256R1())))
    strict = Trust(Rule(True, (public(key),)), sign_key=str(tmp_path / "ours.pem"))
    image = put_image(source, "another environment's", annotations=KEYS)
    source.put_manifest(image)
    sign(source, image, str(tmp_path / "ours.pem"), locks=tmp_path)
    cases = {
        "unsigned": ({KEY_ANNOTATION: "c" * 64}, AMD64, strict),
        "unsigned and without a key": ({}, AMD64, strict),
        "of others": ({KEY_ANNOTATION: "c" * 64}, AMD64, None),
        "of another platform": ({}, ARM64, None),
    }
    for case, (notes, platform, trust) in cases.items():
        entry = replace(image.descriptor, platform=platform)
        index = ImageIndex.build((entry,), notes)
        named = Tag(f"k1-{'c' * 64}" if notes else "v1")
        source.put_manifest(index, named)
        promotion = Promotion(source, target, settings(target, tmp_path / "cache", trust=trust))
        with pytest.raises(EnvbuildError):
            promotion.promote(named, platform=platform)
        assert list(target.tags()) == [], case
    for_all = Promotion(source, target, settings(target, tmp_path / "cache", trust=strict))
    assert for_all.promote(image.descriptor.digest, platform=AMD64).tags == (Tag(f"k1-{KEY}"),)


def test_an_image_of_another_platform_is_refused(promotion: Promotion) -> None:
    manifest = put_image(promotion.source, "image")
    promotion.source.put_manifest(manifest, Tag("v1"))
    assert promotion.promote(Tag("v1"), platform=AMD64).reference.digest == manifest.descriptor.digest
    with pytest.raises(SpecError, match="arm64"):
        promotion.promote(Tag("v1"), platform=ARM64)


def test_what_is_attached_goes_along(promotion: Promotion, tmp_path: Path) -> None:
    manifest = put_image(promotion.source, "image")
    promotion.source.put_manifest(manifest, Tag("v1"))
    subject = manifest.descriptor
    note = Artifact("text/x-note", "text/plain", b"a note", {}, "note.txt")
    (entry,) = attach(promotion.source, subject, [note], locks=tmp_path)
    inner = Artifact("text/x-note", "text/plain", b"of the note", {})
    attach(promotion.source, entry, [inner], locks=tmp_path)
    signature = put_image(promotion.source, "signature")
    promotion.source.put_manifest(signature, Tag(f"sha256-{subject.digest.hex}.sig"))

    assert promotion.promote(Tag("v1")).attached == 0
    assert referrers(promotion.target, subject.digest) == ()
    assert promotion.promote(Tag("v1"), with_referrers=True).attached == 3
    assert [each.digest for each in referrers(promotion.target, subject.digest)] == [entry.digest]
    assert len(referrers(promotion.target, entry.digest)) == 1
    assert promotion.target.get_manifest(Tag(f"sha256-{subject.digest.hex}.sig")).raw == signature.raw


def test_what_names_another_subject_does_not_go_along(tmp_path: Path) -> None:
    source, target = (LayoutRegistry(Repository.parse(f"oci:{tmp_path}/{name}")) for name in "ab")
    manifest = put_image(source, "image")
    source.put_manifest(manifest, Tag("v1"))
    stray = put_image(source, "stray")
    source.put_manifest(stray)
    entry = Descriptor(stray.media_type, stray.descriptor.digest, stray.descriptor.size)
    source.put_manifest(ImageIndex.build((entry,), {}), Tag(f"sha256-{manifest.descriptor.digest.hex}"))
    promotion = Promotion(source, target, settings(target, tmp_path / "cache"))
    done = promotion.promote(Tag("v1"), with_referrers=True)
    assert done.attached == 0


def test_a_workspace_image_never_goes_to_the_global_repository_by_itself(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    shared = Repository.parse(f"oci:{tmp_path}/global")
    config = world.other_machine(global_=shared, promote=True)
    spec = world.spec("first")
    with Resolver(config) as resolver:
        assert resolver.resolve(spec).source is Source.BUILT
    with Resolver(replace(config, cache_dir=tmp_path / "other")) as resolver:
        assert resolver.resolve(spec).source is Source.WORKSPACE
    assert not shared.folder.exists()


def test_signatures_go_beside_those_that_are_there(tmp_path: Path) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    registries = [LayoutRegistry(Repository.parse(f"oci:{tmp_path}/{name}")) for name in "ab"]
    for name, key, registry in zip("ab", keys, registries, strict=True):
        (tmp_path / f"{name}.pem").write_bytes(pem(key))
        manifest = put_image(registry, "image")
        registry.put_manifest(manifest, Tag("v1"))
        sign(registry, manifest, str(tmp_path / f"{name}.pem"), locks=tmp_path)
    promotion = Promotion(registries[0], registries[1], settings(registries[1], tmp_path / "cache"))
    for _ in range(2):
        promotion.promote(Tag("v1"), with_referrers=True)
        for key in keys:
            check(registries[1], manifest, [public(key)])
        found = registries[1].get_manifest(Tag(f"sha256-{manifest.descriptor.digest.hex}.sig"))
        assert isinstance(found, Manifest)
        assert len(found.layers) == 2
    with pytest.raises(IntegrityError):
        check(registries[0], manifest, [public(keys[1])])


@pytest.mark.parametrize("policy", ["never", "on-hit"])
def test_a_global_hit_comes_with_what_belongs_to_it(
    tmp_path: Path, registry: RegistryServer, second_registry: RegistryServer, policy: str
) -> None:
    world = World.make(tmp_path)
    shared, mine = registry.repository("shared"), second_registry.repository("mine")
    spec = world.spec("first")
    with Resolver(replace(world.config, workspace=shared)) as resolver:
        built = resolver.resolve(spec)
    config = Config.load(
        workspace=str(mine), global_=str(shared), promote=policy, cache_dir=str(tmp_path / "there")
    )
    config = replace(config, base=world.config.base, channel_alias=world.config.channel_alias)
    before = len(registry.requests)
    with Resolver(config) as resolver:
        found = resolver.resolve(spec)
    writes = [each for each in registry.requests[before:] if each.partition(" ")[0] not in {"GET", "HEAD"}]
    assert not writes
    assert found.source is Source.GLOBAL
    target = RemoteRegistry(mine)
    if policy == "never":
        assert found.reference.repository == shared
        assert list(target.tags()) == []
        return
    assert found.reference == mine.at(built.reference.digest)
    names = {f"k1-{built.key}", f"f1-{built.key}"}
    assert {tag.name for tag in target.tags()} == names
    assert len(referrers(target, built.reference.digest)) == 3
    assert missing(target, target.get_manifest(built.reference.digest)) == ()


def test_between_repositories_of_a_host_no_bytes_of_layers_move(registry: RegistryServer) -> None:
    source, target = (RemoteRegistry(registry.repository(name)) for name in ("from", "to"))
    manifest = put_image(source, "image", layers=3)
    source.put_manifest(manifest, Tag("v1"))
    before = len(registry.requests)
    report = copy_image(source, target, manifest)
    seen = registry.requests[before:]
    assert (report.blobs_copied, report.blobs_mounted) == (0, len(manifest.blobs))
    assert not [each for each in seen if "/blobs/" in each and each.startswith(("GET ", "PATCH ", "PUT "))]
