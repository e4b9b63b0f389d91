"""What goes from one repository to another: held against the target's rule before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from envbuild.admission import Admission
from envbuild.attach import lock_artifact
from envbuild.build.rebase import Rebased, Rebaser
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import EnvbuildError, IntegrityError, SpecError, TagMoved
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION, CanonicalForm, Key, index_key
from envbuild.lock import Lock
from envbuild.lockfile.document import LockEntry, LockFile
from envbuild.lockkey import LockKey, Name, index_name, name_in, together
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import Artifact, attach, fallback_tag, referrers
from envbuild.platform import Platform
from envbuild.progress import Event, silent
from envbuild.promote import Promotion
from envbuild.reference import ImageReference, Repository, Tag, TaggedReference
from envbuild.resolver import ResolvedImage, Resolver, Source
from envbuild.restore import build_again, restored
from envbuild.trust import PAYLOAD, RECIPE, Rule, Trust, Untrusted, check, check_rule, sign, signature_tag
from envbuild.trust.cosign import put_signatures
from oci_contract import put, put_image
from reliability.poison import Written
from test_trust import pem, public
from tiny import LIBC, World, make_base
from tiny_wheels import TinyWheel, index
from wheel_world import spec as wheel_spec
from wheel_world import wheel_world

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel, and another base."""
    world = World.make(tmp_path)
    make_base(Repository.parse(f"oci:{tmp_path}/bases"), "new", {"lib/libc.so.6": LIBC, "new": b"x"})
    return world


class Keys:
    """Keys of two parties, and policies with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ours", "theirs")}
        for name, key in self.private.items():
            (folder / f"{name}.pem").write_bytes(pem(key))

    def rule(self, *names: str, strict: bool = True) -> Rule:
        return Rule(strict, tuple(public(self.private[name]) for name in names))

    def policy(self, *, signs: str | None = None, **rules: Rule) -> Trust:
        """Nothing is asked but where a rule says so; rules are by the folders of layouts."""
        named = tuple((f"oci:{self.folder}/{name}", rule) for name, rule in rules.items())
        return Trust(Rule(), named, str(self.folder / f"{signs}.pem") if signs else None)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def layout(world: World, name: str) -> LayoutRegistry:
    return LayoutRegistry(Repository.parse(f"oci:{world.root}/{name}"))


def machine(world: World, workspace: str, trust: Trust | None = None, **more: Any) -> Config:
    return world.other_machine(workspace=layout(world, workspace).repository, trust=trust, **more)


def resolve(config: Config, spec: Path, **options: Any) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(spec, **options)


def rebase(config: Config, image: ImageReference, new: TaggedReference) -> Rebased:
    with Resolver(config) as resolver:
        rebaser = Rebaser(config, resolver.index, resolver.registries, silent, bases=resolver.bases)
        return rebaser.rebase(image, new, NO_DEADLINE)


def nothing_in(world: World, name: str) -> bool:
    return not layout(world, name).repository.folder.exists()


# Promotion


def test_where_the_target_asks_for_signatures_only_those_that_it_accepts_get_in(
    world: World, keys: Keys
) -> None:
    trust = keys.policy(signs="theirs", shared=keys.rule("theirs"), target=keys.rule("ours"))
    image = resolve(machine(world, "shared", trust), world.spec("tool"))
    reader = machine(world, "target", replace(trust, sign_key=None))
    promotion = Promotion(layout(world, "shared"), layout(world, "target"), reader)
    with pytest.raises(Untrusted, match="not copied to"):
        promotion.promote(image.reference.digest)
    assert nothing_in(world, "target")
    manifest = layout(world, "shared").get_manifest(image.reference.digest)
    sign(layout(world, "shared"), manifest, str(world.root / "ours.pem"), locks=world.root)
    assert promotion.promote(image.reference.digest).tags == (image.key.tag,)
    check(layout(world, "target"), manifest, keys.rule("ours").keys)


def test_whoever_signs_signs_what_the_source_accepts_and_says_again_which_recipe_it_has(
    world: World, keys: Keys
) -> None:
    rules = {"shared": keys.rule("theirs"), "target": keys.rule("ours")}
    image = resolve(machine(world, "shared", keys.policy(signs="theirs", **rules)), world.spec("tool"))
    config = machine(world, "target", keys.policy(signs="ours", **rules))
    target = layout(world, "target")
    done = Promotion(layout(world, "shared"), target, config).promote(image.key.tag, with_referrers=True)
    found = check_rule(target, target.get_manifest(done.reference.digest), rules["target"], every=True)
    assert [RECIPE in claim for claim in found.claims] == [True]
    new = Repository.parse(f"oci:{world.root}/bases").tagged(Tag("new"))
    assert rebase(config, done.reference, new).made  # for which the recipe must be vouched for


def test_whoever_signs_does_not_sign_what_nobody_vouches_for(world: World, keys: Keys) -> None:
    image = resolve(machine(world, "shared"), world.spec("tool"))
    config = machine(world, "target", keys.policy(signs="ours", target=keys.rule("ours")))
    with pytest.raises(Untrusted, match="not signed"):
        Promotion(layout(world, "shared"), layout(world, "target"), config).promote(image.key.tag)
    assert nothing_in(world, "target")


def test_junk_goes_along_in_small_numbers_and_hides_no_signature(world: World, keys: Keys) -> None:
    trust = keys.policy(signs="ours", shared=keys.rule("ours"), target=keys.rule("ours"))
    image = resolve(machine(world, "shared", trust), world.spec("tool"))
    shared, target = layout(world, "shared"), layout(world, "target")
    subject = shared.get_manifest(image.reference.digest).descriptor
    tag = signature_tag(subject.digest)
    signed = shared.get_manifest(tag)
    assert isinstance(signed, Manifest)
    junk = tuple(put(shared, b"%d" % number, PAYLOAD) for number in range(100))
    put_signatures(shared, tag, (*junk, *signed.layers))
    notes = [Artifact(f"text/x-{number}", "text/plain", b"%d" % number, {}) for number in range(100)]
    attach(shared, subject, notes, locks=world.root)
    reader = machine(world, "target", replace(trust, sign_key=None))
    for with_referrers, limit in ((False, 1), (True, 65)):
        Promotion(shared, target, reader).promote(image.key.tag, with_referrers=with_referrers)
        found = target.get_manifest(tag)
        assert isinstance(found, Manifest)
        assert len(found.layers) <= limit
        check(target, target.get_manifest(image.key.tag), keys.rule("ours").keys)
    assert len(referrers(target, subject.digest)) <= 64


def test_a_global_hit_that_the_workspace_does_not_accept_stays_where_it_is(world: World, keys: Keys) -> None:
    image = resolve(machine(world, "shared"), world.spec("tool"))
    shared = layout(world, "shared").repository
    trust = keys.policy(mine=keys.rule("ours"))
    events: list[Event] = []
    config = machine(world, "mine", trust, global_=shared, promote=True)
    with Resolver(config, progress=events.append) as resolver:
        found = resolver.resolve(world.spec("tool"))
    assert (found.source, found.reference) == (Source.GLOBAL, image.reference)
    assert any("not promoted: " in event.text for event in events)
    assert nothing_in(world, "mine")


def test_what_nobody_vouches_for_holds_no_tag(world: World, keys: Keys) -> None:
    trust = keys.policy(signs="ours", shared=keys.rule("ours"), target=keys.rule("ours"))
    image = resolve(machine(world, "shared", trust), world.spec("tool"))
    target = layout(world, "target")
    config = machine(world, "target", trust)
    for key in (str(image.key), ONE):
        planted = put_image(target, "planted", annotations={KEY_ANNOTATION: key})
        target.put_manifest(planted, image.key.tag)
        done = Promotion(layout(world, "shared"), target, config).promote(image.key.tag)
        assert target.get_manifest(image.key.tag).descriptor.digest == done.reference.digest
    other = put_image(target, "other", annotations={KEY_ANNOTATION: str(image.key)})
    sign(target, other, str(world.root / "ours.pem"), locks=world.root)
    target.put_manifest(other, image.key.tag)
    with pytest.raises(TagMoved):
        Promotion(layout(world, "shared"), target, config).promote(image.key.tag)


def test_a_tag_must_name_what_it_says(tmp_path: Path) -> None:
    source, target = (LayoutRegistry(Repository.parse(f"oci:{tmp_path}/{name}")) for name in "ab")
    promotion = Promotion(source, target, Config(workspace=target.repository, cache_dir=tmp_path / "c"))
    image = put_image(source, "image", annotations={KEY_ANNOTATION: ONE, LOCK_ANNOTATION: TWO})
    artifact = Manifest.build(image.config, image.layers, {}, artifact_type="text/x-note")
    for manifest in (image, artifact):
        source.put_manifest(manifest)
    named = {
        f"k1-{TWO}": image,
        f"l1-{ONE}": image,
        f"k1-{ONE}": artifact,
        "note": artifact,
        f"s1-{ONE}": image,
        f"f1-{ONE}": image,
        f"l-{ONE}": image,
        f"sha256-{ONE}.sig": image,
        f"k2-{ONE}": image,
    }
    for name, manifest in named.items():
        source.put_manifest(manifest, Tag(name))
        with pytest.raises((SpecError, IntegrityError)):
            promotion.promote(Tag(name))
    with pytest.raises(IntegrityError, match="one image, expected an index"):
        promotion.promote(image.descriptor.digest, name=Key(ONE), platforms=(AMD64, ARM64))
    assert not target.repository.folder.exists()
    source.put_manifest(image, Tag(f"l1-{TWO}"))
    assert promotion.promote(Tag(f"l1-{TWO}")).tags == (Tag(f"l1-{TWO}"),)
    assert list(target.tags()) == [Tag(f"l1-{TWO}")]


def test_the_images_of_an_index_are_those_that_its_name_was_made_of(tmp_path: Path) -> None:
    source, target = (LayoutRegistry(Repository.parse(f"oci:{tmp_path}/{name}")) for name in "ab")
    promotion = Promotion(source, target, Config(workspace=target.repository, cache_dir=tmp_path / "c"))
    images = {
        platform: put_image(source, key[:3], annotations={KEY_ANNOTATION: key, LOCK_ANNOTATION: THREE})
        for platform, key in ((AMD64, ONE), (ARM64, TWO))
    }
    entries = []
    for platform, image in images.items():
        source.put_manifest(image)
        entries.append(replace(image.descriptor, platform=platform))
    right = index_key({AMD64: Key(ONE), ARM64: Key(TWO)})
    for key, order in ((ONE, entries), (str(right), entries[:1]), (str(right), [entries[0], entries[0]])):
        index = ImageIndex.build(tuple(order), {KEY_ANNOTATION: key})
        source.put_manifest(index)
        with pytest.raises(IntegrityError, match="not the name of its images"):
            promotion.promote(index.descriptor.digest)
    assert not target.repository.folder.exists()
    index = ImageIndex.build(tuple(entries), {KEY_ANNOTATION: str(right)})
    source.put_manifest(index)
    assert promotion.promote(index.descriptor.digest).tags == (right.tag,)
    assert list(target.tags()) == [right.tag]  # and none of its images


def test_names_of_indexes() -> None:
    both = {AMD64: (Key(ONE), LockKey(TWO)), ARM64: (Key(TWO), LockKey(THREE))}
    keys = {AMD64: Key(ONE), ARM64: Key(TWO)}
    mixed: dict[Platform, Name] = {AMD64: LockKey(TWO), ARM64: Key(TWO)}
    assert together(index_key(keys), both) == keys
    assert together(index_name(mixed), both) == mixed
    assert together(LockKey(ONE), both) is None
    assert together(index_key(keys), {AMD64: (Key(ONE),)}) is None
    assert together(index_key(keys), {AMD64: (Key(ONE),), ARM64: (LockKey(TWO),)}) is None
    assert name_in(Tag(f"k1-{ONE}")) == Key(ONE)
    assert name_in(Tag(f"l1-{ONE}")) == LockKey(ONE)
    assert (name_in(Tag("v1")), name_in(Tag(f"f1-{ONE}")), name_in(Digest(ONE))) == (None, None, None)


# Rebase


def test_who_signs_nothing_rebases_nothing_onto_a_tag_that_nobody_vouches_for(
    world: World, keys: Keys
) -> None:
    trust = keys.policy(signs="ours", workspace=keys.rule("ours"))
    image = resolve(machine(world, "workspace", trust), world.spec("tool"))
    new = Repository.parse(f"oci:{world.root}/bases").tagged(Tag("new"))
    with Resolver(machine(world, "workspace", trust, base=str(new))) as resolver:
        tag = resolver.name(world.spec("tool")).tag
    planted = put_image(world.layout(), "planted", annotations={KEY_ANNOTATION: tag.name[3:]})
    world.layout().put_manifest(planted, tag)
    before = Written.of(world.config.workspace)
    with pytest.raises(Untrusted, match="is not accepted"):
        rebase(machine(world, "workspace", replace(trust, sign_key=None)), image.reference, new)
    assert Written.of(world.config.workspace) == before
    assert rebase(machine(world, "workspace", trust), image.reference, new).made
    assert world.layout().get_manifest(tag).descriptor.digest != planted.descriptor.digest


# Restoring


def test_what_is_signed_is_not_built_of_the_lock_of_an_image_that_nobody_vouches_for(
    world: World, keys: Keys
) -> None:
    image = resolve(machine(world, "shared"), world.spec("tool"))
    config = machine(world, "mine", keys.policy(signs="ours", mine=keys.rule("ours")))
    shared = layout(world, "shared")
    with pytest.raises(Untrusted) as caught:
        restored(shared, image.reference.digest, None, Admission(config, silent), part=True)
    assert "its lock is not used" in (caught.value.hint or "")
    assert restored(shared, image.reference.digest, None, Admission(config, silent)).images  # it may be read


def relocked(
    registry: LayoutRegistry, image: Manifest, lock: LockFile, folder: Path, *, beside: bool = False
) -> None:
    """Attach a lock in place of what is attached to an image, or in front of it."""
    tag = fallback_tag(image.descriptor.digest)
    before = registry.get_manifest(tag)
    registry.delete_manifest(before.descriptor.digest)
    attach(registry, image.descriptor, [lock_artifact(lock)], locks=folder)
    if beside:
        after = registry.get_manifest(tag)
        assert isinstance(before, ImageIndex)
        assert isinstance(after, ImageIndex)
        registry.put_manifest(ImageIndex.build((*after.manifests, *before.manifests), {}), tag)


def other(value: Any, name: str) -> Any:
    """Another value of the type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, Digest):
        return Digest(ONE)
    if isinstance(value, tuple):
        return (*value, "evil")
    named = {"url": "http://evil.example/x.conda", "noarch": "generic", "built_from": ONE}
    named |= {"metadata": '{"license":"evil"}', "md5": ONE[:32]}
    if name in {"size", "build_number"}:
        return 7
    return named.get(name, f"{value}1" if value else "evil")


def mutations(entry: LockEntry) -> Iterator[tuple[str, Callable[[], LockEntry]]]:
    """An entry with one member changed, for each member."""
    record, wheel = entry.lock.packages[0], entry.pip[0]

    def package(name: str) -> LockEntry:
        changed = replace(record, **{name: other(getattr(record, name), name)})
        return replace(entry, lock=Lock.of(entry.lock.platform, [changed, *entry.lock.packages[1:]]))

    def distribution(name: str) -> LockEntry:
        changed = replace(wheel, **{name: other(getattr(wheel, name), name)})
        return replace(entry, pip=(changed, *entry.pip[1:]))

    def form(name: str) -> LockEntry:
        value = entry.form.fields[name]
        changed = {**value, "EVIL": "1"} if isinstance(value, dict) else other(value, name)
        return replace(entry, form=CanonicalForm({**entry.form.fields, name: changed}))

    for each in fields(record):
        yield f"package {each.name}", lambda name=each.name: package(name)  # type: ignore[misc]
    for each in fields(wheel):
        yield f"wheel {each.name}", lambda name=each.name: distribution(name)  # type: ignore[misc]
    for name in entry.form.fields:
        yield f"form {name}", lambda name=name: form(name)  # type: ignore[misc]
    yield "base", lambda: replace(entry, base="evil.example/base:1")
    yield "manifest", lambda: replace(entry, manifest=Digest(ONE))


UNBOUND = {
    "package size",
    "package md5",
    "package noarch",
    "wheel url",
    "wheel size",
    "wheel file_name",
    "base",
    "manifest",
}
"""Says where something is, how large, or what the package tells: what is there is bound by its digest."""


def test_each_member_of_an_attached_lock_is_bound_or_changes_nothing(tmp_path: Path) -> None:
    world = wheel_world(tmp_path)
    config = replace(world.config, base=f"oci:{tmp_path}/bases:python")
    with index([TinyWheel("far")]) as server:
        path = wheel_spec(world, f"--index-url {server.url}/simple", "far", conda=("tool",), local=False)
        image = resolve(config, path).reference
        registry = world.layout()
        (manifest,) = (found := restored(registry, image.digest)).images
        (entry,) = found.lock.entries
        followed, built, refused = set(), set(), set()
        for number, (name, change) in enumerate(mutations(entry)):
            try:
                relocked(registry, manifest, LockFile.of("", [change()]), tmp_path)
                found = restored(registry, image.digest)
            except (IntegrityError, SpecError):
                continue
            followed.add(name)
            workspace = Repository.parse(f"oci:{tmp_path}/again-{number}")
            again = replace(config, workspace=workspace, cache_dir=tmp_path / f"cache-{number}")
            base = Repository.parse(f"oci:{tmp_path}/bases").tagged(Tag("python")) if name != "base" else None
            try:
                made = build_again(again, registry, found, base, NO_DEADLINE, silent)
            except EnvbuildError as error:
                refused.add(error.message.partition(" ")[0])
                tags = Written.of(workspace).tags
                assert not [tag for tag in tags if tag.startswith(("k1-", "l1-", "f1-", "s1-"))], name
            else:
                built.add(name)
                assert made.reference.digest == image.digest, name
    assert followed == UNBOUND
    assert "not" not in refused  # "not the image": none of them leads to other bytes
    assert {"package size", "package md5", "wheel size"} <= built


def test_a_lock_of_something_else_hides_none_behind_it(world: World) -> None:
    image = resolve(world.config, world.spec("tool", "thing"))
    layout = world.layout()
    found = restored(layout, image.reference.digest)
    (entry,) = found.lock.entries
    less = replace(entry, lock=Lock.of(entry.lock.platform, entry.lock.packages[:1]))
    relocked(layout, found.images[0], LockFile.of("", [less]), world.root, beside=True)
    assert restored(layout, image.reference.digest).lock == found.lock
    relocked(layout, found.images[0], LockFile.of("", [less]), world.root)
    with pytest.raises(IntegrityError, match="the image carries"):
        restored(layout, image.reference.digest)


def test_a_tag_whose_image_is_another_gives_no_lock(world: World) -> None:
    image = resolve(world.config, world.spec("tool"))
    world.layout().put_manifest(world.layout().get_manifest(image.reference.digest), Tag(f"k1-{ONE}"))
    with pytest.raises(IntegrityError, match="expected 1111"):
        restored(world.layout(), Tag(f"k1-{ONE}"))
    assert isinstance(image.reference, ImageReference)
