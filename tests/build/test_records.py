"""``conda-meta`` says what the channel says, also where it was corrected after the package was built."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rattler import PrefixRecord

import conda_oracle as oracle
from conda_packages import Entry, Package
from envbuild.build.job import Job
from envbuild.build.layers import LayersBuilder
from envbuild.build.rebase import Rebaser
from envbuild.build.records import ARTIFACT_TYPE, RECORD_ANNOTATION
from envbuild.build.upload import Upload
from envbuild.conda.meta import corrected, corrections, metadata_of
from envbuild.conda.solve import Solution
from envbuild.deadline import NO_DEADLINE
from envbuild.key import Key
from envbuild.lock import encode_metadata
from envbuild.lockfile import FILE_NAME, LockPolicy, load
from envbuild.lockfile.document import LockFile
from envbuild.locking import make_lock
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.progress import Event, silent
from envbuild.rebuild import Rebuild
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver
from tiny import LIBC, World, make_base

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.config import Config

PATCH: dict[str, Any] = {
    "depends": ["__glibc >=2.17,<3"],
    "constrains": ["other <2"],
    "license": "MIT",
    "license_family": "MIT",
    "timestamp": 1700000000000,
    "purls": ["pkg:pypi/thing@1.0"],
    "track_features": "slow",
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def resolve(config: Config, spec: Path, **options: Any) -> ResolvedImage:
    with Resolver(config, **options) as resolver:
        return resolver.resolve(spec)


def files_of(image: ResolvedImage) -> dict[str, bytes]:
    """The files of an image's environment, as its layers leave them."""
    registry = LayoutRegistry(image.reference.repository)
    manifest = registry.get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    found: dict[str, bytes] = {}
    for layer in manifest.layers[1:]:
        with (
            registry.open_blob(layer) as stream,
            tarfile.open(fileobj=io.BytesIO(stream.read()), mode="r:gz") as archive,
        ):
            for member in archive:
                if (content := archive.extractfile(member)) is not None:
                    found[member.name.removeprefix("opt/env/")] = content.read()
    return found


def record_of(image: ResolvedImage, stem: str = "thing-1.0-0") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(files_of(image)[f"conda-meta/{stem}.json"])
    return document


def layers_of(image: ResolvedImage) -> list[str]:
    manifest = LayoutRegistry(image.reference.repository).get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    return [str(layer.digest) for layer in manifest.layers]


def without_packages(world: World) -> None:
    for package in (world.root / "channels").rglob("*.conda"):
        package.unlink()


def kept(world: World) -> int:
    """How many records stand beside the layers."""
    return sum(tag.name.startswith("m-") for tag in world.layout().tags())


def test_a_corrected_record_is_as_rattler_installs_it(world: World) -> None:
    world.patch("linux-64", "thing", **PATCH)
    image = resolve(world.config, world.spec("thing"))
    channel = oracle.records(world.root / "channels" / "tiny", world.root / "repodata")
    record = next(each for each in channel if each.name.normalized == "thing")
    expected = oracle.install(record, None, world.root / "prefix", world.root / "packages")
    seen = {name: oracle.Installed("file", content, 0o644) for name, content in files_of(image).items()}
    del seen["conda-meta/history"]
    wanted, found = (oracle.normalise(each, ()) for each in (expected, seen))
    name = "conda-meta/thing-1.0-0.json"
    meta = {field: value for field, value in wanted.items() if field.startswith(name)}
    assert meta == {field: value for field, value in found.items() if field.startswith(name)}
    assert {member: meta[f"{name}:{member}"] for member in PATCH} == PATCH
    path = world.root / "thing-1.0-0.json"
    path.write_bytes(files_of(image)[name])
    assert PrefixRecord.from_path(path).constrains == PATCH["constrains"]


def test_a_channel_that_says_what_the_package_says_corrects_nothing(world: World) -> None:
    image = resolve(world.config, world.spec("thing", "pyth", "tool"))
    plain = {name for name in files_of(image) if name.startswith("conda-meta/")}
    assert "conda-meta/history" in plain
    registry = LayoutRegistry(image.reference.repository)
    manifest = registry.get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    with (
        registry.open_blob(manifest.layers[-1]) as stream,
        tarfile.open(fileobj=stream, mode="r|gz") as archive,
    ):
        names = [member.name for member in archive if member.isfile()]
    assert names == ["opt/env/conda-meta/history"]
    assert kept(world) == 0


def test_a_correction_costs_the_small_layer_and_no_other(world: World) -> None:
    spec = world.spec("thing", "tool")
    first = resolve(world.config, spec)
    world.patch("linux-64", "thing", **PATCH)
    elsewhere = world.other_machine(workspace=Repository.parse(f"oci:{world.root}/elsewhere"))
    again = resolve(elsewhere, spec)
    assert layers_of(again)[:-1] == layers_of(first)[:-1]
    assert layers_of(again)[-1] != layers_of(first)[-1]
    assert again.lock_key != first.lock_key
    other = resolve(world.other_machine(), world.spec("thing", "tool=1", name="other.yml"))
    assert (other.layers_made, record_of(other)["license"]) == (1, "MIT")


def test_a_package_with_json_of_its_own_beside_the_records_is_built(world: World) -> None:
    notes = Entry("conda-meta/more/notes.json", b"no JSON")
    Package((notes,), name="noted").put(world.root / "channels/tiny")
    asyncio.run(oracle.index(world.root / "channels/tiny"))
    image = resolve(world.config, world.spec("noted"))
    assert files_of(image)["conda-meta/more/notes.json"] == b"no JSON"


def test_known_layers_are_corrected_without_their_packages(world: World) -> None:
    world.patch("linux-64", "thing", **PATCH)
    first = resolve(world.config, world.spec("thing", "tool"))
    assert kept(world) == 1
    without_packages(world)
    fresh = resolve(world.other_machine(), world.spec("thing", name="other.yml"))
    assert fresh.layers_made == 0
    assert record_of(fresh) == record_of(first)
    world.patch("linux-64", "thing", license="ISC")
    third = resolve(world.other_machine(), world.spec("thing", name="third.yml", variables={"A": "1"}))
    assert (third.layers_made, record_of(third)["license"]) == (0, "ISC")
    fourth = resolve(world.config, world.spec("thing", name="fourth.yml", variables={"A": "2"}))
    assert record_of(fourth) == record_of(first), "the channel is remembered for a while"


def test_a_layer_that_nobody_corrected_yet_is_fetched_once_for_it(world: World) -> None:
    resolve(world.config, world.spec("thing", "tool"))
    assert kept(world) == 0
    world.patch("linux-64", "thing", **PATCH)
    second = resolve(world.other_machine(), world.spec("thing", name="second.yml", variables={"A": "1"}))
    assert (second.layers_made, record_of(second)["license"]) == (0, "MIT")
    assert kept(world) == 1
    without_packages(world)
    third = resolve(world.other_machine(), world.spec("thing", name="third.yml", variables={"A": "2"}))
    assert record_of(third) == record_of(second)


def test_the_same_lock_is_the_same_image_whether_layers_were_known_or_not(world: World) -> None:
    world.patch("linux-64", "thing", **PATCH)
    spec = world.spec("thing", "first", "second")
    places = [Repository.parse(f"oci:{world.root}/place-{number}") for number in range(2)]
    digests = {resolve(world.other_machine(workspace=place), spec).reference.digest for place in places}
    known = world.other_machine(workspace=places[0])
    resolve(known, world.spec("thing", name="a.yml"))
    digests.add(resolve(replace(known, workspace=world.config.workspace), spec).reference.digest)
    assert len(digests) == 1


def test_what_a_shared_record_says_of_another_package_is_not_believed(world: World) -> None:
    world.patch("linux-64", "thing", **PATCH)
    first = resolve(world.config, world.spec("thing"))
    layout = world.layout()
    (tag,) = (tag for tag in layout.tags() if tag.name.startswith("m-"))
    good = layout.get_manifest(tag)
    assert isinstance(good, Manifest)
    assert (good.artifact_type, layout.has_blob(good.config.digest)) == (ARTIFACT_TYPE, True)
    for text in ("", "!", "e30=", "KLUv/SACEQAAe30="):
        poison = Manifest.build(
            good.config, good.layers, {RECORD_ANNOTATION: text}, artifact_type=ARTIFACT_TYPE
        )
        layout.put_manifest(poison, tag)
        spec = world.spec("thing", name="other.yml", variables={"TEXT": text})
        assert record_of(resolve(world.other_machine(), spec)) == record_of(first)
    assert layout.get_manifest(tag).annotations == good.annotations


def test_a_lock_holds_what_the_channel_said(world: World) -> None:
    world.patch("linux-64", "thing", **PATCH)
    spec = world.spec("thing")
    with Resolver(world.config) as resolver:
        lock = make_lock(resolver, load(spec), spec.parent)
    content = lock.to_bytes()
    assert LockFile.parse(content, "x") == lock
    assert b'"license": "MIT"' in content
    (spec.parent / FILE_NAME).write_bytes(content)
    world.patch("linux-64", "thing", **{**PATCH, "license": "ISC", "depends": []})
    policy = LockPolicy(required=True)
    image = resolve(world.other_machine(), spec, locks=policy)
    assert {name: record_of(image)[name] for name in PATCH} == PATCH
    (spec.parent / FILE_NAME).unlink()
    newer = resolve(world.other_machine(workspace=Repository.parse(f"oci:{world.root}/newer")), spec)
    assert (record_of(newer)["license"], record_of(newer)["depends"]) == ("ISC", [])
    assert newer.lock_key != image.lock_key


def test_each_image_names_the_channel_that_its_definition_names(world: World) -> None:
    channels = world.root / "channels"
    shutil.copytree(channels / "tiny", channels / "twin")
    first = resolve(world.config, world.spec("thing"))
    text = (world.root / "environment.yml").read_text().replace("tiny", "twin")
    (world.root / "environment.yml").write_text(text)
    second = resolve(world.config, world.root / "environment.yml")
    assert first.lock_key != second.lock_key, "the same bytes, and other records in conda-meta"
    assert [record_of(image)["url"].split("/")[-3] for image in (first, second)] == ["tiny", "twin"]


def test_packages_that_share_a_layer_are_corrected_too(world: World) -> None:
    world.patch("linux-64", "first", license="MIT")
    world.patch("linux-64", "second", license="ISC")
    image = resolve(world.config, world.spec("first", "second"))
    assert record_of(image, "first-1.0-0")["license"] == "MIT"
    assert record_of(image, "second-1.0-0")["license"] == "ISC"
    paths = [record_of(image, f"{name}-1.0-0")["paths_data"]["paths"] for name in ("first", "second")]
    assert "share/one-path" in {each.get("original_path") for listed in paths for each in listed}
    bucket = resolve(world.other_machine(max_layers=3), world.spec("first", "tool", "thing", name="b.yml"))
    assert record_of(bucket, "first-1.0-0")["license"] == "MIT"


OWN = {
    "build_number": 3,
    "constrains": ["a"],
    "depends": ["b"],
    "features": "f",
    "license": "L",
    "subdir": "linux-64",
    "timestamp": 5,
    "track_features": ["x", "y"],
}


def record(**said: Any) -> Any:
    own = Package((Entry("a"),)).record(b"x")
    known: dict[str, Any] = {"build_number": 3, "depends": ("b",)} | {
        name: said.pop(name) for name in ("build_number", "depends", "noarch", "subdir") if name in said
    }
    return replace(own, metadata=encode_metadata(said), **known)


SAME = {"constrains": ["a"], "features": "f", "license": "L", "timestamp": 5, "track_features": "x y"}


def test_what_is_said_alike_is_no_correction() -> None:
    assert corrections(metadata_of(OWN), record(**SAME)) == {}


@pytest.mark.parametrize("name", ["license", "timestamp", "license_family", "purls"])
def test_what_the_channel_leaves_out_the_package_says(name: str) -> None:
    said = {member: value for member, value in SAME.items() if member != name}
    assert corrections(metadata_of(OWN), record(**said)) == {}


@pytest.mark.parametrize("name", ["constrains", "features", "track_features"])
def test_what_the_channel_takes_back_is_gone(name: str) -> None:
    said = {member: value for member, value in SAME.items() if member != name}
    assert corrections(metadata_of(OWN), record(**said)) == {name: None}
    content = json.dumps(OWN).encode()
    assert name not in json.loads(corrected(content, record(**said)))


def test_requirements_may_be_taken_back_whole() -> None:
    assert json.loads(corrected(json.dumps(OWN).encode(), record(**SAME, depends=())))["depends"] == []


def test_without_a_channels_word_nothing_is_corrected() -> None:
    unsaid = replace(record(**SAME, depends=("other",)), metadata="")
    assert corrections(metadata_of(OWN), unsaid) == {}
    assert corrected(b"{}", unsaid) == b"{}"


def test_one_layer_for_an_engine_has_the_same_records(world: World) -> None:
    world.patch("linux-64", "thing", **PATCH)
    world.patch("linux-64", "first", license="MIT")
    image = resolve(world.config, world.spec("thing", "first", "second"))
    expected = {name: content for name, content in files_of(image).items() if name.startswith("conda-meta/")}
    out = io.BytesIO()
    with Resolver(world.config) as resolver:
        lock = make_lock(resolver, load(world.spec("thing", "first", "second")), world.root).entries[0].lock
        target = resolver.registries.open(world.config.workspace)
        with Upload(target, silent) as upload:
            builder = LayersBuilder(world.config, resolver.index, resolver.registries, silent)
            composer = builder._composer(
                Job(load(world.spec("thing")), Key("0" * 64), lock.platform, None, NO_DEADLINE),  # type: ignore[arg-type]
                Solution(lock, {}),
                upload,
            )
            composer.archive(lock, out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), mode="r:gz") as archive:
        seen = {
            member.name.removeprefix("opt/env/"): content.read()
            for member in archive
            if "conda-meta/" in member.name and (content := archive.extractfile(member)) is not None
        }
    assert seen == expected


def test_two_packages_with_one_path_are_told_whether_made_or_known(world: World) -> None:
    for config in (world.config, world.other_machine()):
        said: list[Event] = []
        spec = world.spec("first", "second", variables={"FOR": config.cache_dir.name})
        resolve(config, spec, progress=said.append)
        (warning,) = (event for event in said if "both have" in event.text)
        assert "first-1.0-0" in warning.text
        assert "second-1.0-0" in warning.text
        assert "share/one-path" in warning.text
        assert warning.text.startswith("warning: ")
    said = []
    resolve(world.other_machine(), world.spec("first", "tool", name="other.yml"), progress=said.append)
    assert not [event for event in said if "both have" in event.text]


def test_a_rebase_keeps_what_the_channel_said(world: World) -> None:
    world.patch("linux-64", "thing", **PATCH)
    spec = world.spec("thing")
    image = resolve(world.config, spec)
    bases = Repository.parse(f"oci:{world.root}/bases")
    make_base(bases, "new", {"lib/libc.so.6": LIBC, "new": b"x"})
    with Resolver(world.other_machine()) as resolver:
        rebaser = Rebaser(resolver.config, resolver.index, resolver.registries, silent, bases=resolver.bases)
        done = rebaser.rebase(image.reference, bases.tagged(Tag("new")), NO_DEADLINE)
    apart = world.other_machine(base=f"{bases}:new", workspace=Repository.parse(f"oci:{world.root}/apart"))
    expected = resolve(apart, spec)
    assert (done.reference.digest, done.lock_key) == (expected.reference.digest, expected.lock_key)
    assert record_of(expected)["license"] == "MIT"


def test_an_image_with_corrections_is_built_again_alike(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.root)
    world.patch("linux-64", "thing", **PATCH)
    image = resolve(world.config, world.spec("thing", "tool"))
    registry = world.layout()
    manifest = registry.get_manifest(image.reference.digest)
    found = {check.name: check for check in Rebuild(world.config, registry).checks(manifest)}
    assert found["rebuild"].passed, found["rebuild"].detail
