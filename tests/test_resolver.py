"""The main job on tiny parts: where an image is found, when one is built, and what a fault means."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envbuild.build.base import decompressed
from envbuild.config import Config
from envbuild.errors import (
    BuildError,
    CacheMiss,
    DeadlineExceeded,
    IntegrityError,
    SolveError,
    SpecError,
    Unavailable,
)
from envbuild.index import Index
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from tiny import World, make_base


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def resolve(config: Config, spec: Path, **options: Any) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(spec, **options)


def manifest_of(image: ResolvedImage) -> Manifest:
    found = LayoutRegistry(image.reference.repository).get_manifest(image.reference.digest)
    assert isinstance(found, Manifest)
    return found


def config_of(image: ResolvedImage) -> Any:
    manifest = manifest_of(image)
    with LayoutRegistry(image.reference.repository).open_blob(manifest.config) as stream:
        return json.load(stream)


def files_of(image: ResolvedImage) -> dict[str, bytes]:
    """The content of every file, upper layers over lower ones."""
    files: dict[str, bytes] = {}
    registry = LayoutRegistry(image.reference.repository)
    for layer in manifest_of(image).layers:
        with registry.open_blob(layer) as stream:
            raw = b"".join(decompressed(stream, layer.media_type))
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            for member in archive:
                if member.isfile():
                    content = archive.extractfile(member)
                    assert content is not None
                    files[member.name] = content.read()
    return files


def test_built_then_index_then_workspace_and_always_one_digest(world: World) -> None:
    spec = world.spec("pyth", "thing")
    built = resolve(world.config, spec)
    assert built.source is Source.BUILT
    assert built.layers_made == 3
    assert built.layers_reused == 0
    assert built.bytes_uploaded > 0
    again = resolve(world.config, spec)
    assert again.source is Source.INDEX
    elsewhere = resolve(world.other_machine(), spec)
    assert elsewhere.source is Source.WORKSPACE
    assert {built.reference, again.reference, elsewhere.reference} == {built.reference}
    assert elsewhere.lock_key == built.lock_key
    assert again.key == built.key == elsewhere.key


def test_the_image_holds_the_environment_on_the_base(world: World) -> None:
    image = resolve(world.config, world.spec("pyth", "thing", variables={"A": "1", "BASE": "mine"}))
    files = files_of(image)
    assert files["opt/env/lib/python3.11/site-packages/pyth/__init__.py"] == b"a = 1\n"
    assert files["opt/env/bin/thing"] == b"#!/bin/sh\n# /opt/env\n"
    assert files["opt/env/bin/pyth"].startswith(b"#!/opt/env/bin/python")
    assert b"tiny/linux-64::thing-1.0-0\n" in files["opt/env/conda-meta/history"]
    assert "opt/env/conda-meta/pyth-1.0-0.json" in files
    config = config_of(image)
    runtime = config["config"]
    assert runtime["Env"] == [
        "PATH=/opt/env/bin:/usr/bin:/bin",
        "BASE=mine",
        "CONDA_PREFIX=/opt/env",
        "A=1",
    ]
    assert (runtime["User"], runtime["WorkingDir"]) == ("1000", "/work")
    assert config["created"] == "2026-01-02T03:04:05Z"
    annotations = manifest_of(image).annotations
    assert annotations["io.envbuild.key"] == str(image.key)
    assert annotations["io.envbuild.lock"] == image.lock_key
    assert "io.envbuild.key" not in runtime["Labels"]


def test_one_package_changed_makes_one_layer(world: World) -> None:
    resolve(world.config, world.spec("pyth", "thing", "tool=1"))
    changed = resolve(world.config, world.spec("pyth", "thing", "tool=2"))
    assert (changed.layers_made, changed.layers_reused) == (1, 3)


def test_a_new_base_makes_no_layer(world: World) -> None:
    spec = world.spec("pyth", "thing")
    first = resolve(world.config, spec)
    bases = Repository.parse(f"oci:{world.root}/bases")
    make_base(
        bases, "rebuilt", {"lib/libc.so.6": b"GNU C Library (x) stable release version 2.36.", "new": b"x"}
    )
    rebased = resolve(replace(world.config, base=f"oci:{world.root}/bases:rebuilt"), spec)
    assert (rebased.layers_made, rebased.layers_reused) == (0, 3)
    assert rebased.key != first.key
    assert manifest_of(rebased).layers[1:] == manifest_of(first).layers[1:]


def test_the_same_definition_elsewhere_has_the_same_digest(world: World, tmp_path: Path) -> None:
    first = resolve(world.config, world.spec("pyth", "thing"))
    apart = world.other_machine(workspace=Repository.parse(f"oci:{tmp_path}/apart"))
    folder = world.root / "another" / "folder"
    folder.mkdir(parents=True)
    (folder / "env.yml").write_text("# words\nname: x\nchannels: [tiny]\ndependencies:\n- Thing\n- 'pyth'\n")
    second = resolve(apart, folder / "env.yml")
    assert second.source is Source.BUILT
    assert second.reference.digest == first.reference.digest


def test_another_definition_with_the_same_solution_costs_a_manifest(world: World) -> None:
    first = resolve(world.config, world.spec("pyth", "thing"))
    second = resolve(world.other_machine(), world.spec("pyth", "thing", "python"))
    assert second.key != first.key
    assert second.lock_key == first.lock_key
    assert (second.source, second.layers_made, second.bytes_uploaded) == (Source.BUILT, 0, 0)
    assert manifest_of(second).config == manifest_of(first).config
    assert manifest_of(second).layers == manifest_of(first).layers


def test_a_global_hit_is_used_in_place_or_promoted(world: World) -> None:
    spec = world.spec("tool")
    published = resolve(world.config, spec)
    user = world.other_machine(
        workspace=Repository.parse(f"oci:{world.root}/mine"), global_=world.config.workspace
    )
    found = resolve(user, spec)
    assert found.source is Source.GLOBAL
    assert found.reference == published.reference
    promoted = resolve(replace(user, promote=True, cache_dir=world.root / "c2"), spec)
    assert promoted.source is Source.GLOBAL
    assert promoted.reference.repository == user.workspace
    assert promoted.reference.digest == published.reference.digest
    assert resolve(replace(user, cache_dir=world.root / "c3"), spec).source is Source.WORKSPACE


def test_the_workspace_wins_over_the_global_repository(world: World) -> None:
    spec = world.spec("tool")
    resolve(world.config, spec)
    both = world.other_machine(
        workspace=world.config.workspace, global_=Repository.parse(f"oci:{world.root}/all")
    )
    resolve(world.other_machine(workspace=both.global_), spec)
    assert resolve(both, spec).source is Source.WORKSPACE


def test_a_miss_under_no_build_is_a_miss_and_writes_nothing(world: World) -> None:
    with pytest.raises(CacheMiss) as caught:
        resolve(world.config, world.spec("tool"), build=False)
    assert "build=True" in str(caught.value.hint)
    assert not world.config.workspace.folder.exists()


def test_an_image_that_is_gone_is_built_again_when_the_index_is_no_longer_trusted(world: World) -> None:
    spec = world.spec("tool")
    first = resolve(world.config, spec)
    shutil.rmtree(world.config.workspace.folder)
    assert resolve(world.config, spec).source is Source.INDEX
    again = resolve(replace(world.config, index_ttl=0.0), spec)
    assert again.source is Source.BUILT
    assert again.reference == first.reference


def test_a_confirmed_index_entry_is_an_index_hit(world: World) -> None:
    spec = world.spec("tool")
    resolve(world.config, spec)
    assert resolve(replace(world.config, index_ttl=0.0), spec).source is Source.INDEX


def test_a_tag_with_another_key_is_refused(world: World) -> None:
    right = resolve(world.config, world.spec("tool=1"))
    other = world.spec("tool=2", name="other.yml")
    with Resolver(world.config) as resolver:
        wrong_tag = resolver.key(other).tag
    world.layout().put_manifest(manifest_of(right), wrong_tag)
    with pytest.raises(IntegrityError, match="carries the key"):
        resolve(world.config, other)


def test_an_unknown_answer_is_no_miss(world: World) -> None:
    closed = replace(world.config, workspace=Repository.parse("127.0.0.1:1/envs"))
    with pytest.raises(Unavailable):
        resolve(closed, world.spec("tool"), timeout=3)
    assert not list((world.root / "cache").glob("repodata*"))


def test_an_unknown_global_answer_is_a_miss_only_where_the_user_says_so(world: World) -> None:
    config = replace(world.config, global_=Repository.parse("127.0.0.1:1/envs"))
    spec = world.spec("tool")
    with pytest.raises(Unavailable):
        resolve(config, spec, timeout=3)
    assert resolve(replace(config, on_unavailable="build"), spec, timeout=60).source is Source.BUILT


def test_a_hit_beside_an_unknown_answer_is_a_hit(world: World) -> None:
    spec = world.spec("tool")
    resolve(world.config, spec)
    config = world.other_machine(global_=Repository.parse("127.0.0.1:1/envs"))
    assert resolve(config, spec, timeout=20).source is Source.WORKSPACE


def test_a_packages_need_of_glibc_is_held_against_the_base(world: World) -> None:
    with pytest.raises(SolveError) as caught:
        resolve(world.config, world.spec("newer"))
    assert "2.36" in str(caught.value.hint)
    assert resolve(replace(world.config, glibc="3.0"), world.spec("newer")).source is Source.BUILT


def test_scratch_has_no_glibc(world: World) -> None:
    config = replace(world.config, base="scratch")
    assert resolve(config, world.spec("tool")).source is Source.BUILT
    with pytest.raises(SolveError, match="glibc"):
        resolve(config, world.spec("thing"))


def test_packages_that_carry_one_path_share_a_layer(world: World) -> None:
    image = resolve(world.config, world.spec("first", "second", "tool"))
    assert len(manifest_of(image).layers) == 1 + 2 + 1
    files = files_of(image)
    assert files["opt/env/share/a"] == b"a"
    assert files["opt/env/share/b"] == b"b"
    assert files["opt/env/share/one-path"] == b"first"
    assert files["opt/env/__clobbers__/second/share/one-path"] == b"second"
    again = resolve(world.other_machine(), world.spec("first", "second", "tool", "thing", name="more.yml"))
    assert again.layers_made == 1, "what shares a layer is known by its layer key too"


def test_packages_of_one_bucket_that_carry_one_path_are_put_in_order(world: World) -> None:
    config = replace(world.config, max_layers=3)
    apart = files_of(resolve(world.config, world.spec("first", "second", "tool", "thing")))
    bucket = resolve(
        world.other_machine(max_layers=3, workspace=Repository.parse(f"oci:{world.root}/few")),
        world.spec("first", "second", "tool", "thing"),
    )
    assert len(manifest_of(bucket).layers) == 3
    assert files_of(bucket) == apart
    again = resolve(config, world.spec("first", "second", "tool", "thing", variables={"A": "1"}))
    assert again.layers_made == 1
    once_more = resolve(config, world.spec("first", "second", "tool", "thing", variables={"A": "2"}))
    assert once_more.layers_made == 0


def test_many_packages_fit_a_small_budget(world: World) -> None:
    image = resolve(replace(world.config, max_layers=4), world.spec("pyth", "thing", "tool"))
    assert len(manifest_of(image).layers) <= 4
    assert "opt/env/share/tool/data" in files_of(image)


def test_a_post_link_script_that_cannot_be_run_leaves_no_image(world: World) -> None:
    lonely = replace(world.config, docker_host=f"unix://{world.root}/no.sock")
    with pytest.raises(BuildError, match="scripted"):
        resolve(lonely, world.spec("scripted"))
    with Resolver(lonely) as resolver, pytest.raises(CacheMiss):
        resolver.resolve(world.spec("scripted"), build=False)


def test_no_base_is_an_error_with_a_way_out(world: World) -> None:
    with pytest.raises(SpecError) as caught:
        resolve(replace(world.config, base=None), world.spec("tool"))
    assert "--base" in str(caught.value.hint)


def test_a_base_that_does_not_exist_is_the_definitions_fault(world: World) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        resolve(replace(world.config, base=f"oci:{world.root}/bases:none"), world.spec("tool"))


def test_a_deadline_that_has_passed_ends_the_call(world: World) -> None:
    with pytest.raises(DeadlineExceeded):
        resolve(world.config, world.spec("tool"), timeout=0.0)


def test_build_builds_and_keeps_what_is_there(world: World) -> None:
    spec = world.spec("tool")
    first = resolve(world.config, spec)
    with Resolver(world.config) as resolver:
        again = resolver.build(spec)
    assert again.source is Source.BUILT
    assert again.reference == first.reference


def test_a_damaged_layer_in_the_workspace_is_never_shipped_on(world: World) -> None:
    spec = world.spec("tool")
    image = resolve(world.config, spec)
    layer = manifest_of(image).layers[-1]
    blob = world.config.workspace.folder / "blobs" / "sha256" / layer.digest.hex
    blob.chmod(0o600)
    blob.write_bytes(b"x" * layer.size)
    user = world.other_machine(
        workspace=Repository.parse(f"oci:{world.root}/mine"), global_=world.config.workspace, promote=True
    )
    with pytest.raises(IntegrityError):
        resolve(user, spec)
    with Resolver(user) as resolver:
        key = resolver.key(spec)
    assert key.tag not in set(LayoutRegistry(user.workspace).tags())


def _resolve_at(config: Config, spec: Path, moment: float, answers: Any) -> None:
    time.sleep(max(0.0, moment - time.time()))
    image = resolve(config, spec)
    answers.put((str(image.source), str(image.reference)))


def test_sixteen_processes_that_ask_at_once_build_once(world: World) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    spec = world.spec("pyth", "thing", "tool")
    workers = [
        context.Process(target=_resolve_at, args=(world.config, spec, time.time() + 4, answers))
        for _ in range(16)
    ]
    for worker in workers:
        worker.start()
    seen = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [source for source, _ in seen].count("built") == 1
    assert len({reference for _, reference in seen}) == 1


def test_the_index_is_disposable(world: World) -> None:
    spec = world.spec("tool")
    first = resolve(world.config, spec)
    (world.config.cache_dir / "index.sqlite").write_bytes(b"garbage" * 1000)
    assert resolve(world.config, spec).reference == first.reference
    index = Index(world.config.cache_dir)
    index.clear()
    index.close()
    again = resolve(world.config, spec)
    assert (again.source, again.reference) == (Source.WORKSPACE, first.reference)


def test_the_tag_of_the_key_is_in_the_workspace(world: World) -> None:
    image = resolve(world.config, world.spec("tool"))
    tags = {tag.name for tag in world.layout().tags() if tag.name.startswith(("k1-", "l1-"))}
    assert tags == {f"k1-{image.key}", f"l1-{image.lock_key}"}
    assert world.layout().get_manifest(Tag(f"k1-{image.key}")).descriptor.digest == image.reference.digest
