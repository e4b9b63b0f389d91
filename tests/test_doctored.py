"""Images that somebody with access to the repository changed: the check that is about the lie finds it.

Each case begins with an image that envbuild built, in which every check passes, and changes one thing. What
hangs together with it by digest is made to fit, as whoever attacks would do.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from envbuild.attach import FORM_TYPE, IN_TOTO_TYPE, LOCK_TYPE, SPDX_TYPE
from envbuild.build.recipe import RECIPE_ANNOTATION, Recipe, recipe_tag
from envbuild.checks import Report
from envbuild.config import Config
from envbuild.deadline import Deadline
from envbuild.digest import Descriptor, Digest
from envbuild.errors import DeadlineExceeded
from envbuild.inflate import Bounds
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION, Key, index_key
from envbuild.lock import Lock
from envbuild.lockfile.document import LockFile
from envbuild.lockkey import LockKey, index_name
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_ZSTD,
    ImageIndex,
    Manifest,
    encode,
)
from envbuild.oci.referrers import Artifact, attach, fallback_tag, read_artifact, referrers
from envbuild.oci.registry import Registry, find_manifest
from envbuild.oci.remote import RemoteRegistry
from envbuild.platform import Platform
from envbuild.promote import Promotion
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from envbuild.trust import Trust
from envbuild.verify import verify
from oci_contract import flipped, put
from parts.registry_server import RegistryServer
from tiny import World

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
OTHER = "c" * 64


class Doctor:
    """An image that can be changed, under its key's tag."""

    def __init__(self, registry: Registry, key: Key, other: Digest, locks: Path) -> None:
        self.registry, self.key, self.tag, self.locks = registry, str(key), key.tag, locks
        self.image = self._manifest(key.tag)
        self.other = self._manifest(other)

    def _manifest(self, digest: Digest | Tag) -> Manifest:
        found = self.registry.get_manifest(digest)
        assert isinstance(found, Manifest)
        return found

    @property
    def config(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.registry.open_blob(self.image.config).read())
        return document

    def attached(self, kind: str, image: Manifest | None = None) -> bytes:
        """The content of what is attached to an image."""
        (entry,) = referrers(self.registry, (image or self.image).descriptor.digest, kind)
        return read_artifact(self.registry, self._manifest(entry.digest))

    def publish(
        self,
        *,
        config: Any = None,
        layers: tuple[Descriptor, ...] | None = None,
        annotations: dict[str, str | None] | None = None,
        config_type: str = OCI_CONFIG,
    ) -> None:
        """Put the image under its tag with some of it changed, and attach what was attached to it."""
        before, image = self.image, self.image
        content = config if isinstance(config, bytes) else encode(config or self.config)
        notes = {**image.annotations, **(annotations or {})}
        self.image = Manifest.build(
            put(self.registry, content, config_type),
            image.layers if layers is None else layers,
            {name: text for name, text in notes.items() if text is not None},
        )
        self.registry.put_manifest(self.image, self.tag)
        for kind in (FORM_TYPE, LOCK_TYPE):
            self.attach(kind, self.attached(kind, before))

    def attach(self, kind: str, content: bytes) -> None:
        """Attach something, in place of what is attached of its type."""
        self.detach(kind)
        attach(self.registry, self.image.descriptor, [Artifact(kind, kind, content, {})], locks=self.locks)

    def detach(self, kind: str) -> None:
        """Take away what is attached of a type."""
        tag = fallback_tag(self.image.descriptor.digest)
        if isinstance(listed := find_manifest(self.registry, tag), ImageIndex):
            kept = tuple(entry for entry in listed.manifests if entry.artifact_type != kind)
            self.registry.put_manifest(ImageIndex.build(kept, {}), tag)

    def repack(self, change: Callable[[bytes], bytes], *, fits: bool = True, media_type: str = "") -> None:
        """Put another highest layer in place of the one that is there.

        Args:
            change: Makes its compressed bytes of the tar.
            fits: Whether the config's diff id is that of what the bytes unpack to.
            media_type: What the layer says it is; as before if empty.
        """
        layer, config = self.image.layers[-1], self.config
        packed = change(gzip.decompress(self.registry.open_blob(layer).read()))
        if fits:
            config["rootfs"]["diff_ids"][-1] = str(Digest.of(gzip.decompress(packed)))
        new = put(self.registry, packed, media_type or layer.media_type)
        self.publish(config=config, layers=(*self.image.layers[:-1], new))

    def report(self, tag: Tag | None = None, **options: Any) -> Report:
        return verify(self.registry, tag or self.tag, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Key, Digest]:
    """A workspace with two images that are as they should be."""
    world = World.make(tmp_path_factory.mktemp("built"))
    path = world.spec("tool", "thing", variables={"COLOUR": "red"})
    with Resolver(world.config) as resolver:
        key = resolver.resolve(path).key
        other = resolver.resolve(world.spec("tool", name="other.yml"))
    assert isinstance(key, Key)
    return world, key, other.reference.digest


@pytest.fixture
def doctor(built: tuple[World, Key, Digest], tmp_path: Path) -> Doctor:
    world, key, other = built
    shutil.copytree(world.config.workspace.folder, tmp_path / "images")
    return Doctor(LayoutRegistry(Repository.parse(f"oci:{tmp_path}/images")), key, other, tmp_path)


def failed(report: Report) -> set[str]:
    names = {check.name for check in report.checks if check.passed is False}
    assert report.passed is not bool(names)
    return names


def test_what_was_built_passes(doctor: Doctor) -> None:
    report = doctor.report(full=True, platforms=[AMD64])
    assert failed(report) == set()
    assert {check.name for check in report.checks if check.passed is None} == {"signature"}
    (archives,) = (check for check in report.checks if check.name == "archives")
    assert archives.detail.startswith("4 layers with the diff ids of the config")
    doctor.publish()
    assert failed(doctor.report(full=True)) == set()


def members(**changes: Any) -> Callable[[Doctor], None]:
    """Another config."""
    return lambda doctor: doctor.publish(config={**doctor.config, **changes})


def runtime(change: Callable[[dict[str, Any]], None]) -> Callable[[Doctor], None]:
    def doctored(doctor: Doctor) -> None:
        config = doctor.config
        change(config)
        doctor.publish(config=config)

    return doctored


def text(before: bytes, after: bytes) -> Callable[[Doctor], None]:
    """Other bytes in the config."""

    def doctored(doctor: Doctor) -> None:
        content = encode(doctor.config)
        assert before in content
        doctor.publish(config=content.replace(before, after, 1))

    return doctored


def notes(**changes: str | None) -> Callable[[Doctor], None]:
    """Other annotations; a name is written without what all of ours begin with."""
    named: dict[str, str | None] = {f"io.envbuild.{name}": value for name, value in changes.items()}
    return lambda doctor: doctor.publish(annotations=named)


def label(name: str, value: str | None) -> Callable[[Doctor], None]:
    def change(config: dict[str, Any]) -> None:
        del config["config"]["Labels"][f"io.envbuild.{name}"]
        if value is not None:
            config["config"]["Labels"][f"io.envbuild.{name}"] = value

    return runtime(change)


def twice_the_layer(doctor: Doctor) -> None:
    config, layers = doctor.config, doctor.image.layers
    config["rootfs"]["diff_ids"].append(f"sha256:{OTHER}")
    config["history"].append({"created_by": "somebody"})
    doctor.publish(config=config, layers=(*layers, layers[-1]))


def many_layers(doctor: Doctor) -> None:
    config, layers = doctor.config, doctor.image.layers
    config["rootfs"]["diff_ids"] = [config["rootfs"]["diff_ids"][-1]] * 128
    del config["history"]
    doctor.publish(config=config, layers=layers[-1:] * 128)


def layer_of_text(doctor: Doctor) -> None:
    layers = doctor.image.layers
    doctor.publish(layers=(*layers[:-1], replace(layers[-1], media_type="text/plain")))


def recipe(change: Callable[[dict[str, Any]], None]) -> Callable[[Doctor], None]:
    """Another recipe beside the image, as for whoever rebases it."""

    def doctored(doctor: Doctor) -> None:
        tag = recipe_tag(Key(doctor.key))
        found = doctor.registry.get_manifest(tag)
        assert isinstance(found, Manifest)
        document = json.loads(
            Recipe.parse(found.annotations[RECIPE_ANNOTATION], Key(doctor.key), "it").to_json()
        )
        change(document)
        annotations = {RECIPE_ANNOTATION: json.dumps(document)}
        doctor.registry.put_manifest(
            Manifest.build(found.config, found.layers, annotations, artifact_type=found.artifact_type), tag
        )

    return doctored


def fewer_layers(document: dict[str, Any]) -> None:
    document["layers"] = document["layers"][::-1]


def other_diff_id(document: dict[str, Any]) -> None:
    document["layers"][0][3] = f"sha256:{OTHER}"


def fewer_packages(document: dict[str, Any]) -> None:
    del document["packages"][0]


def other_lock(document: dict[str, Any]) -> None:
    document["lock_key"] = OTHER


def of_the_other(kind: str) -> Callable[[Doctor], None]:
    return lambda doctor: doctor.attach(kind, doctor.attached(kind, doctor.other))


def listed_of_the_other(doctor: Doctor) -> None:
    """What is attached to another image, in the list of this one."""
    entries = referrers(doctor.registry, doctor.other.descriptor.digest, FORM_TYPE)
    doctor.detach(FORM_TYPE)
    tag = fallback_tag(doctor.image.descriptor.digest)
    listed = doctor.registry.get_manifest(tag)
    assert isinstance(listed, ImageIndex)
    doctor.registry.put_manifest(ImageIndex.build((*listed.manifests, *entries), {}), tag)


def changed_form(**changes: Any) -> Callable[[Doctor], None]:
    return lambda doctor: doctor.attach(
        FORM_TYPE, encode({**json.loads(doctor.attached(FORM_TYPE)), **changes})
    )


def changed_lock(doctor: Doctor) -> None:
    """A lock whose packages are others, sealed again."""
    lock = LockFile.parse(doctor.attached(LOCK_TYPE), "it")
    (entry,) = lock.entries
    fewer = replace(entry, lock=Lock.of(entry.lock.platform, entry.lock.packages[1:]))
    doctor.attach(LOCK_TYPE, replace(lock, entries=(fewer,)).to_bytes())


def other_statement(doctor: Doctor) -> None:
    """A provenance that names the image, and another definition."""
    document = json.loads(doctor.attached(IN_TOTO_TYPE))
    document["predicate"]["buildDefinition"]["externalParameters"]["variables"] = {"COLOUR": "blue"}
    doctor.attach(IN_TOTO_TYPE, encode(document))


def filled(doctor: Doctor) -> None:
    """So much that the definition, which is not that of the image, could be overlooked."""
    of_the_other(FORM_TYPE)(doctor)
    junk = [Artifact(SPDX_TYPE, SPDX_TYPE, b"%d" % number, {}) for number in range(65)]
    attach(doctor.registry, doctor.image.descriptor, junk, locks=doctor.locks)


def invented_lock_key(doctor: Doctor) -> None:
    label("lock", OTHER)(doctor)
    notes(lock=OTHER)(doctor)


CASES: dict[str, tuple[str, Callable[[Doctor], None]]] = {
    "for another architecture": ("definition", members(architecture="arm64")),
    "for another system": ("definition", members(os="windows")),
    "for no platform": ("platform", members(os=None)),
    "a diff id more": (
        "layers",
        runtime(lambda config: config["rootfs"]["diff_ids"].append(f"sha256:{OTHER}")),
    ),
    "a diff id less": ("layers", runtime(lambda config: config["rootfs"]["diff_ids"].pop())),
    "no diff ids": ("layers", members(rootfs={"type": "layers"})),
    "one layer with two diff ids": ("layers", twice_the_layer),
    "more layers than engines run": ("layers", many_layers),
    "a layer that is text": ("layers", layer_of_text),
    "a layer more in the history": ("history", runtime(lambda config: config["history"].append({}))),
    "a history of text": ("history", members(history=["somebody"])),
    "another lock key in the label": ("labels", label("lock", OTHER)),
    "no lock key in the label": ("labels", label("lock", None)),
    "another scheme in the label": ("labels", label("scheme", "2")),
    "no lock key in the annotations": ("labels", notes(lock=None)),
    "no scheme in the annotations": ("labels", notes(scheme=None)),
    "labels of a list": ("config", runtime(lambda config: config["config"].update(Labels=["a"]))),
    "labels that are numbers": ("config", runtime(lambda config: config["config"].update(Labels={"a": 1}))),
    "variables in an object": ("config", runtime(lambda config: config["config"].update(Env={"A": "1"}))),
    "a runtime of text": ("config", members(config="none")),
    "layers of another type": (
        "layers",
        runtime(lambda config: config["rootfs"].update(type="windows")),
    ),
    "an entry of the history that is empty in words": (
        "history",
        runtime(lambda config: config["history"].append({"empty_layer": "false"})),
    ),
    "a name twice": ("config", text(b'"os":"linux"', b'"os":"windows","os":"linux"')),
    "a name in capitals": ("config", text(b'"os":"linux"', b'"OS":"windows","os":"linux"')),
    "a runtime's name in capitals": ("config", text(b'"Env":', b'"ENV":["LD_PRELOAD=/x"],"Env":')),
    "layers in capitals": ("config", text(b'"diff_ids":', b'"Diff_IDs":[],"diff_ids":')),
    "no JSON": ("config", text(b'"linux"', b"NaN")),
    "no image": ("config", lambda doctor: doctor.publish(config_type="application/vnd.other+json")),
    "an invented key": ("key", notes(key=OTHER)),
    "another scheme": ("key", notes(scheme="2")),
    "an invented lock key": (
        "lock",
        lambda doctor: (label("lock", OTHER)(doctor), notes(lock=OTHER)(doctor))[1],
    ),
    "another base": (
        "lock",
        lambda doctor: doctor.publish(
            annotations={"org.opencontainers.image.base.digest": f"sha256:{OTHER}"}
        ),
    ),
    "a base that is none": (
        "lock",
        lambda doctor: doctor.publish(annotations={"org.opencontainers.image.base.digest": "latest"}),
    ),
    "the lock of another image": ("lock", of_the_other(LOCK_TYPE)),
    "another lock of the definition": ("lock", changed_lock),
    "no lock": ("lock", lambda doctor: doctor.attach(LOCK_TYPE, b"{}")),
    "the definition of another image": ("definition", of_the_other(FORM_TYPE)),
    "a changed definition": ("definition", changed_form(variables={"COLOUR": "blue"})),
    "a definition that is none": ("definition", lambda doctor: doctor.attach(FORM_TYPE, b"[[[")),
    "a variable of the definition changed": (
        "definition",
        runtime(lambda config: config["config"].update(Env=["COLOUR=blue"])),
    ),
    "a variable of the definition twice": (
        "definition",
        runtime(lambda config: config["config"]["Env"].append("COLOUR=blue")),
    ),
    "attached to another image": ("attached", listed_of_the_other),
    "a statement about another image": ("attached", of_the_other(IN_TOTO_TYPE)),
    "a statement that is none": ("attached", lambda doctor: doctor.attach(IN_TOTO_TYPE, b"[]")),
    "a statement about another definition": ("attached", other_statement),
    "more attached than is read": ("attached", filled),
    "a recipe with other layers": ("recipe", recipe(fewer_layers)),
    "a recipe with another diff id": ("recipe", recipe(other_diff_id)),
    "a recipe with fewer packages": ("recipe", recipe(fewer_packages)),
    "a recipe of another lock": ("recipe", recipe(other_lock)),
    "a recipe that is none": ("recipe", recipe(lambda document: document.clear())),
}


@pytest.mark.parametrize("case", CASES)
def test_a_doctored_image_fails_the_check_that_is_about_it(doctor: Doctor, case: str) -> None:
    name, change = CASES[case]
    change(doctor)
    assert name in failed(doctor.report())


def test_another_platform_than_the_one_asked_for_fails(doctor: Doctor) -> None:
    assert failed(doctor.report(platforms=[ARM64])) == {"platform"}
    assert failed(doctor.report(platforms=[AMD64])) == set()


def test_what_is_not_attached_is_not_checked(doctor: Doctor) -> None:
    for kind in (FORM_TYPE, LOCK_TYPE, IN_TOTO_TYPE):
        doctor.detach(kind)
    seen = {check.name: check.passed for check in doctor.report().checks}
    assert {name for name, passed in seen.items() if passed is None} >= {"attached", "definition", "lock"}


def test_steps_images_carry_the_name_of_their_tag(doctor: Doctor) -> None:
    tag = Tag(f"s1-{OTHER}")
    doctor.registry.put_manifest(doctor.image, tag)
    assert "steps key" in failed(doctor.report(tag))
    doctor.publish(annotations={"io.envbuild.steps": OTHER})
    doctor.registry.put_manifest(doctor.image, tag)
    assert failed(doctor.report(tag)) == set()


# Indexes


class Indexes:
    """An index over two images, as envbuild makes it, that can be changed."""

    def __init__(self, doctor: Doctor) -> None:
        self.doctor, self.registry = doctor, doctor.registry
        self.entries: list[Descriptor] = []
        keys = {}
        for platform in (AMD64, ARM64):
            key = Key(Digest.of(str(platform).encode()).hex)
            keys[platform] = key
            self.entries.append(self.child(platform, key))
        self.notes = {KEY_ANNOTATION: str(index_key(keys))}

    def child(self, platform: Platform, key: Key | None, says: Platform | None = None) -> Descriptor:
        """An image, and its entry; its config may say another platform."""
        config = {
            **(says or platform).to_json(),
            "config": {"Labels": {LOCK_ANNOTATION: OTHER, "io.envbuild.scheme": "1"}},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
        notes = {KEY_ANNOTATION: str(key)} if key is not None else {}
        notes |= {LOCK_ANNOTATION: OTHER, "io.envbuild.scheme": "1"}
        image = Manifest.build(put(self.registry, encode(config), OCI_CONFIG), (), notes)
        self.registry.put_manifest(image)
        return replace(image.descriptor, platform=platform)

    def failed(self, **options: Any) -> set[str]:
        index = ImageIndex.build(tuple(self.entries), self.notes)
        # Behind the registry's back, which takes no index whose entries are not what they name.
        folder = self.registry.repository.folder / "blobs/sha256"
        (folder / index.descriptor.digest.hex).write_bytes(index.raw)
        return failed(verify(self.registry, index.descriptor.digest, **options))


@pytest.fixture
def indexes(doctor: Doctor) -> Indexes:
    return Indexes(doctor)


def test_an_index_passes_whose_key_is_that_of_its_images(indexes: Indexes) -> None:
    assert indexes.failed() == set()
    assert indexes.failed(platforms=[ARM64]) == set()
    assert indexes.failed(platforms=[Platform("linux", "s390x")]) == {"platforms"}


def test_an_index_under_an_invented_key_fails(indexes: Indexes) -> None:
    indexes.notes[KEY_ANNOTATION] = OTHER
    assert indexes.failed() == {"key"}


def test_an_index_that_lacks_one_of_the_images_of_its_key_fails(indexes: Indexes) -> None:
    del indexes.entries[1]
    assert indexes.failed() == {"key"}


def test_an_index_whose_images_changed_places_fails(indexes: Indexes) -> None:
    first, second = indexes.entries
    indexes.entries = [replace(first, platform=ARM64), replace(second, platform=AMD64)]
    assert indexes.failed() == {"key", "linux/amd64 platform", "linux/arm64 platform"}


def test_an_index_with_an_image_of_another_key_fails(indexes: Indexes) -> None:
    indexes.entries[1] = indexes.child(ARM64, Key(OTHER))
    assert indexes.failed() == {"key"}
    indexes.entries[1] = indexes.child(ARM64, None)
    assert indexes.failed() == {"key"}


def test_an_index_with_an_image_for_another_platform_fails(indexes: Indexes) -> None:
    key = Key(Digest.of(b"linux/arm64").hex)
    indexes.entries[1] = indexes.child(ARM64, key, says=AMD64)
    assert indexes.failed() == {"linux/arm64 platform"}


@pytest.mark.parametrize("case", ["size", "media type"])
def test_an_entry_that_is_not_what_it_names_fails(indexes: Indexes, case: str) -> None:
    (first, second) = indexes.entries
    wrong = (
        replace(second, size=second.size + 1)
        if case == "size"
        else replace(second, media_type=DOCKER_MANIFEST)
    )
    indexes.entries = [first, wrong]
    assert indexes.failed() == {"linux/arm64 manifest", "key"}


def test_an_index_with_two_images_for_one_platform_fails(indexes: Indexes) -> None:
    indexes.entries.append(indexes.child(AMD64, Key(OTHER)))
    assert "platforms" in indexes.failed()


def test_an_index_of_more_images_than_are_built_fails(indexes: Indexes) -> None:
    indexes.entries = [
        indexes.child(Platform("linux", f"a{number}"), Key(Digest.of(b"%d" % number).hex))
        for number in range(11)
    ]
    indexes.notes = {LOCK_ANNOTATION: OTHER}
    assert indexes.failed() == {"lock key"}


def test_an_index_in_an_index_and_an_empty_one_fail(indexes: Indexes) -> None:
    inner = ImageIndex.build(tuple(indexes.entries), {})
    indexes.registry.put_manifest(inner)
    indexes.entries, indexes.notes = [replace(inner.descriptor, platform=AMD64)], {}
    assert indexes.failed() == {"linux/amd64 manifest"}
    indexes.entries = []
    assert indexes.failed() == {"platforms"}


@pytest.mark.parametrize("locked", [(AMD64,), (AMD64, ARM64)])
def test_the_lock_key_of_an_index_is_that_of_its_images(
    indexes: Indexes, locked: tuple[Platform, ...]
) -> None:
    names: dict[Platform, Key | LockKey] = {
        platform: LockKey(OTHER) if platform in locked else Key(Digest.of(str(platform).encode()).hex)
        for platform in (AMD64, ARM64)
    }
    indexes.notes = {LOCK_ANNOTATION: str(index_name(names))}
    assert indexes.failed() == set()
    indexes.notes = {LOCK_ANNOTATION: "d" * 64}
    assert indexes.failed() == {"lock key"}


# Layers, with --full


def entry(name: str, kind: bytes = tarfile.REGTYPE, **changes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    return info


def archive(*entries: tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as written:
        for each in entries:
            written.addfile(each, io.BytesIO(bytes(each.size)))
    return content.getvalue()


def holds(*entries: tarfile.TarInfo) -> Callable[[Doctor], None]:
    """Another archive in place of the highest layer, with its own diff id."""
    return lambda doctor: doctor.repack(lambda _: gzip.compress(archive(*entries)))


def packs(change: Callable[[bytes], bytes], media_type: str = "") -> Callable[[Doctor], None]:
    """Other compressed bytes of the highest layer's tar, whose diff id stays."""
    return lambda doctor: doctor.repack(change, fits=False, media_type=media_type)


def is_(change: Callable[[bytes], bytes]) -> Callable[[Doctor], None]:
    """Another content of the highest layer, with its own diff id."""
    return lambda doctor: doctor.repack(lambda tar: gzip.compress(change(tar)))


LARGE = archive(entry("large", size=100_000))
UNSOUND: dict[str, Callable[[Doctor], None]] = {
    "another archive": packs(lambda _: gzip.compress(archive(entry("usr/bin/python")))),
    "text": is_(lambda _: b"not an archive\n" * 100),
    "a cut archive": is_(lambda _: LARGE[:50_000]),
    "a cut header": is_(lambda _: LARGE[:300]),
    "a wrong checksum": is_(lambda tar: flipped(tar, 3)),
    "an archive behind the end": is_(lambda tar: tar + archive(entry("hidden"))),
    "not compressed": packs(lambda tar: tar),
    "cut": packs(lambda tar: gzip.compress(tar)[:-10]),
    "a wrong sum": packs(lambda tar: flipped(gzip.compress(tar), -6)),
    "bytes behind the end": packs(lambda tar: gzip.compress(tar) + b"hidden"),
    "another compression": packs(gzip.compress, OCI_LAYER_ZSTD),
    "a frame of nothing": packs(lambda tar: zstandard.compress(tar)[:-4], OCI_LAYER_ZSTD),
    "a path out of the image": holds(entry("../etc/passwd")),
    "a path that turns round": holds(entry("opt/../../etc/passwd")),
    "a hard link out of the image": holds(entry("link", tarfile.LNKTYPE, linkname="../../etc/shadow")),
    "a whiteout of the folder above": holds(entry("opt/.wh...")),
    "a whiteout of nothing": holds(entry("opt/.wh.")),
    "a name of 300 bytes": holds(entry("n" * 300)),
    "a path of 5,000 bytes": holds(entry("/".join(["name" * 25] * 50))),
    "an unknown type": holds(entry("odd", b"Z")),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_layer_fails_when_it_is_unpacked(doctor: Doctor, case: str) -> None:
    UNSOUND[case](doctor)
    shallow = doctor.report()
    assert failed(shallow) <= {"recipe"}
    assert next(check for check in shallow.checks if check.name == "archives").passed is None
    assert failed(doctor.report(full=True)) - {"recipe"} == {"archives"}


SOUND: dict[str, Callable[[Doctor], None]] = {
    "zstd": packs(zstandard.compress, OCI_LAYER_ZSTD),
    "two frames": packs(
        lambda tar: zstandard.compress(tar[:100]) + zstandard.compress(tar[100:]), OCI_LAYER_ZSTD
    ),
    "no compression": packs(lambda tar: tar, OCI_LAYER),
    "two members": packs(lambda tar: gzip.compress(tar[:100]) + gzip.compress(tar[100:])),
    "no blocks at the end": is_(lambda _: archive(entry("x"))[:512]),
    "more blocks at the end": is_(lambda tar: tar + bytes(100_000)),
    "nothing": is_(lambda _: bytes(1024)),
    "what distributions ship": holds(
        entry("./", tarfile.DIRTYPE),
        entry("/dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("run/pipe", tarfile.FIFOTYPE),
        entry("etc/mtab", tarfile.SYMTYPE, linkname="../../../proc/mounts"),
        entry("var/.wh.cache"),
        entry("var/.wh..wh..opq"),
        entry("usr/ü", size=700),
        entry("usr/" + "n" * 200),
        entry("./usr/b", tarfile.LNKTYPE, linkname="./usr/ü"),
        entry("name with..two dots"),
    ),
}


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_layer_passes_when_it_is_unpacked(doctor: Doctor, case: str) -> None:
    SOUND[case](doctor)
    assert failed(doctor.report(full=True)) <= {"recipe"}


def test_wrong_bytes_are_told_apart_from_unsound_archives(doctor: Doctor) -> None:
    layer = doctor.image.layers[-1]
    path = doctor.registry.repository.folder / "blobs/sha256" / layer.digest.hex
    path.write_bytes(flipped(path.read_bytes()))
    report = doctor.report(full=True)
    assert failed(report) == {"blobs"}
    (archives,) = (check for check in report.checks if check.name == "archives")
    assert (archives.passed, archives.asked) == (None, True)


def test_unpacking_is_bounded(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor.repack(lambda _: gzip.compress(archive(entry("zeros", size=50 << 20))))
    with pytest.raises(DeadlineExceeded):
        doctor.report(full=True, deadline=Deadline.after(0))
    monkeypatch.setattr("envbuild.build.base.LAYER_BOUNDS", Bounds(free=1 << 20, ratio=10, most=1 << 30))
    report = doctor.report(full=True)
    assert failed(report) - {"recipe"} == {"archives"}
    (archives,) = (check for check in report.checks if check.name == "archives")
    assert "far more than its size allows" in archives.detail


def test_doctored_images_fail_on_a_registry_too(
    built: tuple[World, Key, Digest], registry: RegistryServer, tmp_path: Path
) -> None:
    world, key, other = built
    target = RemoteRegistry(registry.repository())
    promotion = Promotion(world.layout(), target, Config(workspace=target.repository, cache_dir=tmp_path))
    for wanted in (key.tag, other):
        promotion.promote(wanted, with_referrers=True)
    doctor = Doctor(target, key, other, tmp_path)
    assert failed(doctor.report(full=True)) == set()
    UNSOUND["another archive"](doctor)
    assert failed(doctor.report(full=True)) - {"recipe"} == {"archives"}
    CASES["the lock of another image"][1](doctor)
    assert failed(doctor.report()) - {"recipe"} == {"lock"}
    target.close()


def test_the_signature_names_the_recipe(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    private = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "key").write_bytes(private.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    config = replace(world.config, trust=Trust(sign_key=str(tmp_path / "key")))
    with Resolver(config) as resolver:
        key = resolver.resolve(world.spec("tool")).key
    assert isinstance(key, Key)
    doctor = Doctor(world.layout(), key, world.layout().get_manifest(key.tag).descriptor.digest, tmp_path)
    assert failed(doctor.report(keys=(public,))) == set()
    # Everything that the image carries fits such a recipe, and what a rebase makes of it is another image.
    recipe(lambda document: document.update(scripted=["tool"]))(doctor)
    assert failed(doctor.report()) == set()
    assert failed(doctor.report(keys=(public,))) == {"recipe"}
