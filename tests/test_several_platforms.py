"""Environments for several platforms: an image of each, composed here, and an index over them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import conda_oracle
from conda_packages import Entry, Package
from envbuild.config import Config
from envbuild.errors import BuildError, CacheMiss, SolveError, SpecError
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.registry import publish
from envbuild.output import write_archive
from envbuild.platform import Platform
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from envbuild.trust import Rule, Trust, check_rule
from tiny import LIBC, World, make_base

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
BOTH = ["linux/amd64", "linux/arm64"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with packages and a base for two platforms."""
    world = World.make(tmp_path)
    folder = tmp_path / "channels" / "tiny"
    arm = {"subdir": "linux-aarch64"}
    Package((Entry("share/tool/data", b"arm"),), name="tool", version="2.0", index=arm).put(folder)
    python = Entry("bin/python3.11", b"arm" * 100, 0o755)
    Package((python,), name="python", version="3.11.4", index=arm).put(folder)
    asyncio.run(conda_oracle.index(folder))
    bases = Repository.parse(f"oci:{tmp_path}/bases")
    make_base(bases, "arm64", {"lib/libc.so.6": LIBC, "arm": b"x"}, architecture="arm64")
    layout = LayoutRegistry(bases)
    entries = [
        replace(layout.get_manifest(Tag(tag)).descriptor, platform=platform)
        for tag, platform in (("minimal", AMD64), ("arm64", ARM64))
    ]
    publish(layout, ImageIndex.build(tuple(entries), {}), Tag("multi"))
    world.config = replace(world.config, base=f"oci:{tmp_path}/bases:multi")
    return world


def definition(world: World, *names: str, platforms: list[str] = BOTH) -> Path:
    path = world.root / "envbuild.yaml"
    conda = {"channels": ["tiny"], "dependencies": list(names or ("tool",))}
    path.write_text(json.dumps({"platforms": platforms, "conda": conda}))
    return path


def resolve(config: Config, spec: Path, *, build: bool = True) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(spec, build=build)


def index_of(image: ResolvedImage) -> ImageIndex:
    found = LayoutRegistry(image.reference.repository).get_manifest(image.reference.digest)
    assert isinstance(found, ImageIndex)
    return found


def test_each_platform_has_its_image_and_the_index_names_both(world: World) -> None:
    image = resolve(world.config, definition(world, "tool", "pyth"))
    assert image.source is Source.BUILT
    assert image.platforms == (AMD64, ARM64)
    index = index_of(image)
    assert [entry.platform for entry in index.manifests] == [AMD64, ARM64]
    layout = world.layout()
    for platform, entry in zip((AMD64, ARM64), index.manifests, strict=True):
        one = resolve(world.config, definition(world, "tool", "pyth", platforms=[str(platform)]))
        assert one.source is Source.INDEX
        assert one.reference.digest == entry.digest
        manifest = layout.get_manifest(entry.digest)
        assert isinstance(manifest, Manifest)
        with layout.open_blob(manifest.config) as stream:
            assert json.load(stream)["architecture"] == platform.architecture
        assert all(layout.has_blob(blob.digest) for blob in manifest.blobs)


def test_built_then_index_then_workspace_and_always_one_digest(world: World) -> None:
    spec = definition(world)
    built = resolve(world.config, spec)
    again = resolve(world.config, spec)
    elsewhere = resolve(world.other_machine(), spec, build=False)
    assert (again.source, elsewhere.source) == (Source.INDEX, Source.WORKSPACE)
    assert {built.reference, again.reference, elsewhere.reference} == {built.reference}
    apart = world.other_machine(workspace=Repository.parse(f"oci:{world.root}/apart"))
    assert resolve(apart, spec).reference.digest == built.reference.digest


def test_the_order_of_platforms_does_not_matter(world: World) -> None:
    built = resolve(world.config, definition(world))
    turned = resolve(world.other_machine(), definition(world, platforms=BOTH[::-1]))
    assert turned.source is Source.WORKSPACE
    assert turned.reference == built.reference


def test_a_global_image_is_brought_beside_its_index(world: World) -> None:
    resolve(world.config, definition(world, platforms=["linux/arm64"]))
    other = world.other_machine(
        workspace=Repository.parse(f"oci:{world.root}/mine"), global_=world.config.workspace
    )
    image = resolve(other, definition(world))
    layout = LayoutRegistry(image.reference.repository)
    for entry in index_of(image).manifests:
        manifest = layout.get_manifest(entry.digest)
        assert isinstance(manifest, Manifest)
        assert all(layout.has_blob(blob.digest) for blob in manifest.blobs)


def test_a_global_index_is_promoted_whole(world: World) -> None:
    spec = definition(world)
    built = resolve(world.config, spec)
    mine = Repository.parse(f"oci:{world.root}/mine")
    other = world.other_machine(workspace=mine, global_=world.config.workspace, promote=True)
    found = resolve(other, spec)
    assert found.source is Source.GLOBAL
    assert found.reference == mine.at(built.reference.digest)
    assert all(LayoutRegistry(mine).get_manifest(entry.digest) for entry in index_of(found).manifests)


def test_a_miss_or_a_failure_on_one_platform_publishes_no_index(world: World) -> None:
    with pytest.raises(CacheMiss):
        resolve(world.config, definition(world), build=False)
    with pytest.raises(SolveError):
        resolve(world.config, definition(world, "thing"))
    tags = [tag.name for tag in world.layout().tags() if tag.name.startswith("k1-")]
    manifests = [world.layout().get_manifest(Tag(name)) for name in tags]
    assert not [each for each in manifests if isinstance(each, ImageIndex)]


def test_build_adopts_the_index_that_is_there(world: World) -> None:
    spec = definition(world)
    built = resolve(world.config, spec)
    with Resolver(world.other_machine()) as resolver:
        assert resolver.build(spec).reference == built.reference


def test_an_index_is_no_archive(world: World) -> None:
    image = resolve(world.config, definition(world))
    with Resolver(world.config) as resolver, pytest.raises(BuildError, match="index of images"):
        write_archive(image.reference, world.root / "x.tar", registries=resolver.registries)
    with Resolver(world.config) as resolver, pytest.raises(SpecError, match="one platform"):
        resolver.form(definition(world))


def signing(folder: Path, *, strict: str | None) -> Trust:
    """A policy that signs with a key, and trusts it in one repository."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8, plain = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    (folder / "private.pem").write_bytes(private.private_bytes(pem, pkcs8, plain))
    public = private.public_key().public_bytes(pem, PublicFormat.SubjectPublicKeyInfo)
    rules = ((strict, Rule(True, (public,))),) if strict is not None else ()
    return Trust(Rule(keys=(public,)), rules, str(folder / "private.pem"))


def test_an_unsigned_image_of_others_is_made_again_for_an_index_that_is_signed(
    world: World, tmp_path: Path
) -> None:
    shared = Repository.parse(f"oci:{tmp_path}/shared")
    resolve(world.other_machine(workspace=shared), definition(world, platforms=BOTH[:1]))
    trust = signing(tmp_path, strict=None)
    image = resolve(world.other_machine(global_=shared, trust=trust), definition(world))
    assert image.source is Source.BUILT
    assert image.layers_made == len(BOTH)  # the layer that is shared there has no voucher either
    assert "2 images" in check_rule(world.layout(), index_of(image), trust.default).by


def test_a_signed_image_from_elsewhere_is_signed_where_an_index_names_it(
    world: World, tmp_path: Path
) -> None:
    shared = Repository.parse(f"oci:{tmp_path}/shared")
    trust = signing(tmp_path, strict=str(shared))
    resolve(world.other_machine(workspace=shared, trust=trust), definition(world, platforms=BOTH[:1]))
    image = resolve(world.other_machine(global_=shared, trust=trust), definition(world))
    assert image.source is Source.BUILT
    assert "2 images" in check_rule(world.layout(), index_of(image), trust.default).by
