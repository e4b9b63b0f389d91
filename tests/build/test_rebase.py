"""Rebasing: what it makes is what resolving on the new base makes, and nothing is built or fetched."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

import conda_oracle
from conda_packages import Entry, Package
from envbuild.build.base import decompressed
from envbuild.build.needs import allows
from envbuild.build.rebase import Failed, Rebased, Rebaser
from envbuild.build.recipe import MAX_RECIPE, RECIPE_ANNOTATION, Recipe, recipe_tag
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import BuildError, IntegrityError, SolveError, SpecError
from envbuild.key import Key
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.reference import ImageReference, Repository, Tag, TaggedReference, parse_reference
from envbuild.resolver import ResolvedImage, Resolver, Source
from fixtures_channel import Bases
from parts.docker_engine import DockerEngine
from tiny import LIBC, World, make_base


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel, an old base and a new one whose variables are others."""
    world = World.make(tmp_path)
    make_base(bases_of(world), "new", {"lib/libc.so.6": LIBC, "new": b"x"}, Env=["PATH=/bin:/new", "NEW=1"])
    return world


def bases_of(world: World) -> Repository:
    return Repository.parse(f"oci:{world.root}/bases")


def base(world: World, tag: str) -> TaggedReference:
    return bases_of(world).tagged(Tag(tag))


def resolve(config: Config, spec: Path) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(spec)


def rebase(
    config: Config, image: ImageReference | TaggedReference, new: ImageReference | TaggedReference | None
) -> Rebased:
    with Resolver(config) as resolver:
        return rebaser(resolver).rebase(image, new, NO_DEADLINE)


def rebaser(resolver: Resolver) -> Rebaser:
    return Rebaser(
        resolver.config, resolver.index, resolver.registries, resolver.progress, bases=resolver.bases
    )


def offline(world: World, **changes: Any) -> Config:
    """A machine that has seen nothing and has no channel: it cannot solve or make a layer."""
    return world.other_machine(channel_alias=(world.root / "nowhere").as_uri(), **changes)


def manifest_of(reference: ImageReference) -> Manifest:
    found = LayoutRegistry(reference.repository).get_manifest(reference.digest)
    assert isinstance(found, Manifest)
    return found


def test_a_rebase_is_byte_for_byte_what_resolving_on_the_new_base_gives(world: World) -> None:
    spec = world.spec("pyth", "thing", variables={"A": "1", "BASE": "mine", "NEW": "2"})
    image = resolve(world.config, spec)
    done = rebase(offline(world), image.reference, base(world, "new"))
    apart = world.other_machine(
        base=f"{base(world, 'new')}", workspace=Repository.parse(f"oci:{world.root}/apart")
    )
    expected = resolve(apart, spec)
    assert (done.reference.digest, done.key, done.lock_key) == (
        expected.reference.digest,
        expected.key,
        expected.lock_key,
    )
    assert done.source == image.reference
    assert done.made


def test_whoever_resolves_on_the_new_base_finds_the_rebased_image(world: World) -> None:
    spec = world.spec("pyth", "thing")
    done = rebase(world.config, resolve(world.config, spec).reference, base(world, "new"))
    found = resolve(world.other_machine(base=str(base(world, "new"))), spec)
    assert found.source is Source.WORKSPACE
    assert found.reference == done.reference
    again = rebase(world.config, done.source, base(world, "new"))
    assert not again.made
    assert again.reference == done.reference


def test_a_rebased_image_can_be_rebased_and_back_again_is_the_first(world: World) -> None:
    image = resolve(world.config, world.spec("pyth", "tool"))
    there = rebase(offline(world), image.reference, base(world, "new"))
    back_elsewhere = offline(world, workspace=Repository.parse(f"oci:{world.root}/elsewhere"))
    back = rebase(back_elsewhere, there.reference, base(world, "minimal"))
    assert back.key == image.key
    assert back.reference.digest == image.reference.digest
    layout = LayoutRegistry(back.reference.repository)
    assert all(layout.has_blob(blob.digest) for blob in manifest_of(back.reference).blobs)


def test_a_second_definition_with_the_same_solution_has_a_recipe_too(world: World) -> None:
    resolve(world.config, world.spec("tool=2"))
    same = resolve(world.config, world.spec("tool>1", name="same.yml"))
    done = rebase(offline(world), same.reference, base(world, "new"))
    wanted = world.other_machine(base=str(base(world, "new")))
    assert resolve(wanted, world.root / "same.yml").reference == done.reference


def test_scratch_is_a_base(world: World) -> None:
    image = resolve(world.config, world.spec("tool"))
    done = rebase(offline(world), image.reference, None)
    assert manifest_of(done.reference).layers == manifest_of(image.reference).layers[1:]


def test_all_images_on_a_base_are_rebased_and_no_other(world: World) -> None:
    old = [
        resolve(world.config, world.spec(*names, name=f"{'-'.join(names)}.yml"))
        for names in (["tool"], ["pyth"], ["pyth", "tool"])
    ]
    new = make_base(bases_of(world), "other", {"lib/libc.so.6": LIBC, "other": b"x"})
    resolve(replace(world.config, base=f"oci:{world.root}/bases:other"), world.root / "tool.yml")
    with Resolver(offline(world)) as resolver:
        worker = rebaser(resolver)
        known = worker.digests(base(world, "minimal"), NO_DEADLINE)
        done = list(worker.rebase_all(known, base(world, "new"), NO_DEADLINE))
        assert new not in known
        assert worker.digests(bases_of(world).at(new), NO_DEADLINE) == {new}
        assert list(worker.rebase_all(frozenset({new.of(b"")}), base(world, "new"), NO_DEADLINE)) == []
    assert all(isinstance(each, Rebased) and each.made for each in done)
    assert {each.source for each in done if isinstance(each, Rebased)} == {each.reference for each in old}


def test_one_that_fails_does_not_stop_the_others(world: World) -> None:
    resolve(world.config, world.spec("tool"))
    needy = resolve(world.config, world.spec("thing", name="needy.yml"))
    make_base(bases_of(world), "musl", {"lib/ld-musl": b"x"})
    with Resolver(offline(world)) as resolver:
        worker = rebaser(resolver)
        known = worker.digests(base(world, "minimal"), NO_DEADLINE)
        done = list(worker.rebase_all(known, base(world, "musl"), NO_DEADLINE))
    failed = [each for each in done if isinstance(each, Failed)]
    assert len(done) == 2
    assert len(failed) == 1
    assert isinstance(failed[0].error, SolveError)
    assert failed[0].source.endswith(str(needy.key.tag))


def test_a_packages_need_of_glibc_is_held_against_the_new_base(world: World) -> None:
    image = resolve(world.config, world.spec("thing"))
    make_base(bases_of(world), "old", {"libc": b"GNU C Library (x) stable release version 2.12."})
    with pytest.raises(SolveError, match=r"has glibc 2\.12, .* need __glibc >=2\.17"):
        rebase(offline(world), image.reference, base(world, "old"))
    with pytest.raises(SolveError, match="no glibc"):
        rebase(offline(world), image.reference, None)
    assert rebase(offline(world, glibc="2.40"), image.reference, base(world, "old")).made


def test_what_is_given_for_the_machines_is_in_the_key_on_the_new_base(world: World) -> None:
    """A rebase answers with the key that a resolve with the same settings asks for."""
    given = replace(world.config, glibc="2.39", cuda="12.4", step_network="none")
    image = resolve(given, world.spec("thing"))
    make_base(bases_of(world), "old", {"libc": b"GNU C Library (x) stable release version 2.12."})
    kept = rebase(offline(world), image.reference, base(world, "old"))
    again = rebase(offline(world, glibc="2.40.0", step_network="none"), image.reference, base(world, "old"))
    for done, changes in ((kept, {}), (again, {"glibc": "2.40"})):
        config = replace(given, base=str(base(world, "old")), **changes)  # type: ignore[arg-type]
        with Resolver(config) as resolver:
            assert done.key == resolver.key(world.spec("thing"))
    assert kept.key != again.key


def test_a_glibc_is_not_laid_over_what_has_no_packages(world: World) -> None:
    definition = world.root / "envbuild.yaml"
    definition.write_text('{"variables": {"A": "b"}, "platform": "linux/amd64"}')
    config = replace(world.config, glibc="2.36")
    image = resolve(config, definition)
    make_base(bases_of(world), "other", {"file": b"other"})
    new = base(world, "other")
    rebased = rebase(config, image.reference, new)
    with Resolver(replace(config, base=str(new))) as resolver:
        assert resolver.key(definition) == rebased.key


@pytest.mark.parametrize(
    ("constraint", "version", "allowed"),
    [
        (">=2.17", "2.17", True),
        (">=2.17", "2.9", False),
        (">=2.17,<2.30", "2.36", False),
        ("<2.17|>=2.30", "2.36", True),
        ("2.3.*", "2.36", False),
        ("2.36.*", "2.36", True),
        ("!=2.36", "2.36", False),
        ("!=2.3.*", "2.36", True),
        (">2.36", "2.36", False),
        ("<=2.36", "2.36", True),
        ("*", "2.36", True),
    ],
)
def test_constraints(constraint: str, version: str, allowed: bool) -> None:
    assert allows(constraint, version) is allowed


def test_what_is_no_image_of_ours_or_has_no_recipe_is_refused(world: World) -> None:
    with pytest.raises(SpecError, match="that envbuild made"):
        rebase(world.config, base(world, "minimal"), base(world, "new"))
    with pytest.raises(SpecError, match="there is no image"):
        rebase(world.config, base(world, "nothing"), base(world, "new"))
    image = resolve(world.config, world.spec("tool"))
    layout = LayoutRegistry(image.reference.repository)
    layout.delete_manifest(layout.get_manifest(recipe_tag(image.key)).descriptor.digest)
    with pytest.raises(BuildError, match="no recipe") as failure:
        rebase(offline(world), image.reference, base(world, "new"))
    assert "--base" in str(failure.value.hint)


def test_the_recipe_of_another_key_is_refused(world: World) -> None:
    image = resolve(world.config, world.spec("tool"))
    other = resolve(world.config, world.spec("pyth", name="other.yml"))
    layout = LayoutRegistry(image.reference.repository)
    layout.put_manifest(layout.get_manifest(recipe_tag(other.key)), recipe_tag(image.key))
    with pytest.raises(IntegrityError, match=f"recipe of {other.key}"):
        rebase(offline(world), image.reference, base(world, "new"))
    assert not list(Path(world.root).glob("cache-*/spool/*"))


def packed(content: bytes) -> str:
    return base64.b64encode(zstandard.compress(content)).decode()


DAMAGED = ["", "[]", "{}", '{"envbuild_recipe": 2}', '{"envbuild_recipe": 1}', "é", "AAAA", packed(b"{}")]


@pytest.mark.parametrize("text", [*DAMAGED, packed(b"{}")[:-4], packed(b" " * (MAX_RECIPE + 1))])
def test_a_damaged_recipe_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match="no recipe that this version reads"):
        Recipe.parse(text, Key("0" * 64), "it")


def test_a_recipe_is_read_compressed_and_as_it_is(world: World) -> None:
    image = resolve(world.config, world.spec("tool"))
    text = world.layout().get_manifest(recipe_tag(image.key)).annotations[RECIPE_ANNOTATION]
    recipe = Recipe.parse(text, image.key, "it")
    assert recipe.to_text() == text
    assert Recipe.parse(recipe.to_json().decode(), image.key, "it") == recipe
    assert len(text) < len(recipe.to_json())


def test_too_many_layers_are_refused_with_the_way_out(world: World) -> None:
    image = resolve(world.config, world.spec("pyth", "tool"))
    with pytest.raises(BuildError, match="5 layers, at most 4") as failure:
        rebase(offline(world, max_layers=4), image.reference, base(world, "new"))
    assert "max_layers" in str(failure.value.hint)


def test_a_base_without_its_layers_publishes_nothing(world: World) -> None:
    image = resolve(world.config, world.spec("tool"))
    layout = LayoutRegistry(bases_of(world))
    new = layout.get_manifest(Tag("new"))
    assert isinstance(new, Manifest)
    (layout.repository.folder / "blobs" / "sha256" / new.layers[0].digest.hex).unlink()
    before = set(world.layout().tags())
    with pytest.raises(IntegrityError, match="missing"):
        rebase(offline(world), image.reference, base(world, "new"))
    assert set(world.layout().tags()) == before


def test_nothing_but_manifests_and_configs_is_written(world: World) -> None:
    image = resolve(world.config, world.spec("pyth", "thing"))
    blobs = world.layout().repository.folder / "blobs" / "sha256"
    rebase(offline(world), image.reference, base(world, "new"))
    before = {path.name for path in blobs.iterdir()}
    make_base(bases_of(world), "newer", {"lib/libc.so.6": LIBC, "new": b"x"}, Env=["NEWER=1"])
    shutil.rmtree(world.root / "channels")
    done = rebase(offline(world), image.reference, base(world, "newer"))
    new = {path.name: path.read_bytes() for path in blobs.iterdir() if path.name not in before}
    # a config, a manifest, a recipe; definition, lock and provenance, each with its manifest, and their list
    assert len(new) == 3 + 6 + 1
    documents = [gzip.decompress(each) if each[:2] == b"\x1f\x8b" else each for each in new.values()]
    assert all(isinstance(json.loads(content), dict) for content in documents)
    assert parse_reference(str(done.reference)) == done.reference


@pytest.fixture
def lively(world: World, bases: Bases, engine: DockerEngine) -> World:
    """A machine whose base has a shell, with an engine, and a package whose script writes a file."""
    folder = world.root / "channels" / "tiny"
    script = Entry("bin/.scribe-post-link.sh", b'echo ran > "$PREFIX/ran"\n', 0o755)
    Package((script,), name="scribe").put(folder)
    asyncio.run(conda_oracle.index(folder))
    world.config = replace(
        world.config, base=f"oci:{bases.minimal}:latest", docker_host=engine.host, glibc="2.36"
    )
    return world


def lively_spec(world: World) -> Path:
    path = world.root / "envbuild.yaml"
    document = {
        "conda": {"channels": ["tiny"], "dependencies": ["scribe", "tool"]},
        "steps": "RUN echo before > /etc/before\nENV STEP=1\n",
        "steps_after": "RUN cat /opt/env/ran /etc/before > /etc/after\nENV AFTER=$STEP\n",
    }
    path.write_text(json.dumps(document))
    return path


@pytest.mark.xdist_group("engine")
def test_what_runs_in_an_image_is_run_again_on_the_new_base(lively: World, bases: Bases) -> None:
    spec = lively_spec(lively)
    image = resolve(lively.config, spec)
    new = parse_reference(f"oci:{bases.minimal_rebuilt}:latest")
    done = rebase(offline(lively), image.reference, new)
    registry = LayoutRegistry(done.reference.repository)
    manifest = manifest_of(done.reference)
    with registry.open_blob(manifest.config) as stream:
        config = json.load(stream)
    assert {"STEP=1", "AFTER=1", "CONDA_PREFIX=/opt/env"} <= set(config["config"]["Env"])
    with registry.open_blob(manifest.layers[-1]) as stream:
        raw = b"".join(decompressed(stream, manifest.layers[-1].media_type))
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        after = archive.extractfile("etc/after")
        assert after is not None
        assert after.read() == b"ran\nbefore\n"
    found = resolve(lively.other_machine(base=str(new)), spec)
    assert (found.source, found.reference) == (Source.WORKSPACE, done.reference)
    assert found.lock_key == done.lock_key


@pytest.mark.xdist_group("engine")
def test_without_an_engine_such_an_image_is_refused_by_name(lively: World, bases: Bases) -> None:
    image = resolve(lively.config, lively_spec(lively))
    before = set(lively.layout().tags())
    with pytest.raises(BuildError, match="Docker Engine"):
        rebase(
            offline(lively, docker_host="unix:///nowhere/docker.sock"),
            image.reference,
            parse_reference(f"oci:{bases.minimal_rebuilt}:latest"),
        )
    assert set(lively.layout().tags()) == before


@pytest.mark.xdist_group("engine")
def test_steps_that_read_files_are_refused_with_the_way_out(lively: World, bases: Bases) -> None:
    (lively.root / "greeting").write_text("hello")
    path = lively.root / "files.yaml"
    path.write_text(
        json.dumps(
            {
                "conda": {"channels": ["tiny"], "dependencies": ["tool"]},
                "steps": "COPY greeting /etc/greeting\n",
            }
        )
    )
    image = resolve(lively.config, path)
    with pytest.raises(BuildError, match="read files") as failure:
        rebase(offline(lively), image.reference, parse_reference(f"oci:{bases.minimal_rebuilt}:latest"))
    assert "--base" in str(failure.value.hint)
