"""Whatever somebody wrote beside our images costs time: no raw error, and nothing of it is kept in mind."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import conda_oracle
from conda_packages import Entry, Package
from envbuild import lockfile
from envbuild.build.known import describe, parse
from envbuild.build.needs import check_glibc
from envbuild.build.rebase import Rebaser
from envbuild.build.recipe import RECIPE_ANNOTATION, Recipe, recipe_tag
from envbuild.build.transplant import as_spec
from envbuild.conda.activate import activate
from envbuild.deadline import NO_DEADLINE
from envbuild.diff import compare
from envbuild.digest import Descriptor, Digest
from envbuild.errors import EnvbuildError, IntegrityError
from envbuild.index import LayerEntry
from envbuild.key import CanonicalForm
from envbuild.lockkey import lock_key
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_LAYER_GZIP, Manifest
from envbuild.progress import Event
from envbuild.reference import Repository, Tag, parse_reference
from envbuild.resolver import ResolvedImage, Resolver
from envbuild.restore import attached_lock
from envbuild.verify import verify
from hostile_notes import mutants
from tiny import LIBC, World, make_base

SCRIPT = Entry("etc/conda/activate.d/act.sh", b"export ACT=1\n")
STEPS = 'RUN <<EOF\necho "$A"\nEOF\nENV A=1 B=2'


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel, in which a package has an activation script, and two bases."""
    world = World.make(tmp_path)
    Package((SCRIPT,), name="act").put(tmp_path / "channels" / "tiny")
    asyncio.run(conda_oracle.index(tmp_path / "channels" / "tiny"))
    make_base(Repository.parse(f"oci:{tmp_path}/bases"), "new", {"lib/libc.so.6": LIBC, "new": b"x"})
    return world


def built(world: World, *names: str, **changes: Any) -> ResolvedImage:
    with Resolver(world.other_machine(**changes)) as resolver:
        return resolver.build(world.spec(*names, name=f"{'-'.join(names)}.yml"))


def notes_of(world: World, tag: Tag) -> Manifest:
    manifest = world.layout().get_manifest(tag)
    assert isinstance(manifest, Manifest)
    return manifest


def put(world: World, tag: Tag, manifest: Manifest, **notes: str) -> None:
    """Write other annotations under a tag."""
    changed = {**manifest.annotations, **notes}
    world.layout().put_manifest(
        Manifest.build(manifest.config, manifest.layers, changed, artifact_type=manifest.artifact_type), tag
    )


HOSTILE = (
    ("activation", "["), ("activation", "7"), ("activation", '{"bin/x": "export A=1"}'),
    ("activation", '{"etc/conda/activate.d/act.sh": 7}'), ("activation", '{"conda-meta/state": "\\ud800"}'),
    ("activation", "[" * 100_000), ("clobbers", "{}"), ("clobbers", "[[1, 2]]"), ("clobbers", "[7]"),
    ("clobbers", '[["a", "b", "c", "d"]]'), ("files", "QQ=="), ("folders", "QUJD"), ("files", "é"),
    ("diff-id", "sha512:" + "0" * 128), ("records", "[" * 100_000), ("records", '{"x": 1}'),
)  # fmt: skip


def test_layers_whose_notes_are_odd_are_made_and_not_remembered(world: World) -> None:
    built(world, "act", "thing")
    layout = world.layout()
    layers = [tag for tag in layout.tags() if tag.name.startswith("l-")]
    good = {tag: notes_of(world, tag) for tag in layers}
    machine = world.other_machine()
    said: list[Event] = []
    for number, (note, text) in enumerate(HOSTILE):
        for tag, manifest in good.items():
            put(world, tag, manifest, **{f"io.envbuild.{note}": text})
        spec = world.spec("act", "thing", name=f"{number}.yml", variables={"N": str(number)})
        with Resolver(
            replace(machine, cache_dir=world.root / f"m{number}"), progress=said.append
        ) as resolver:
            assert resolver.build(spec).layers_made == (0 if note == "records" else 2), (note, text)
            kept = resolver.index.layers(tag.name.removeprefix("l-") for tag in layers)
            assert all(text not in {entry.activation, entry.clobbers} for entry in kept.values())
    assert sum("done without shared layers" in event.text for event in said) >= len(HOSTILE) - 2


def _is_utf8(text: Any) -> bool:
    return isinstance(text, str) and "\ud800" not in text


def entry() -> LayerEntry:
    blob = Descriptor(OCI_LAYER_GZIP, Digest.of(b"layer"), 5)
    activation = json.dumps(
        {"conda-meta/state": '{"env_vars": {"A": "1"}}', "etc/conda/activate.d/a.sh": None}
    )
    clobbers = json.dumps([["a-1-0", "b-1-0", "share/x", 1]])
    return LayerEntry(blob, Digest.of(b"tar"), bytes(16), b"", Repository("h", "l"), activation, "", clobbers)


def test_what_a_layer_says_is_read_or_refused() -> None:
    key, random = "a" * 64, Random(7)
    good = describe(key, entry())
    read = 0
    for changed in mutants(dict(good.annotations), random, 400):
        notes = {name: text for name, text in changed.items() if _is_utf8(text)}
        for name in ("io.envbuild.activation", "io.envbuild.clobbers"):
            with suppress(ValueError, KeyError):
                note = next(mutants({"": json.loads(notes[name])}, random, 1))
                notes[name] = json.dumps(note.get(""))
        manifest = Manifest.build(good.config, good.layers, notes, artifact_type=good.artifact_type)
        with suppress(IntegrityError):
            found = parse(key, manifest, Repository("h", "l"))
            activate(json.loads(found.activation or "{}"), {})
            read += 1
    assert read > 20


def used(recipe: Recipe) -> None:
    """All that is made of a recipe before anything is written."""
    as_spec(recipe, None)
    check_glibc(recipe, lambda: "2.36")
    activate(recipe.activation, {})
    lock_key(recipe.form, Digest("0" * 64), recipe.lock, recipe.pip.wheels if recipe.pip is not None else ())
    compare(recipe.form.fields, recipe.form.fields)
    Recipe.parse(recipe.to_text(), recipe.form.key, "again")


def test_a_recipe_is_read_whole_or_refused(world: World) -> None:
    image = built(world, "act", "thing", base=f"oci:{world.root}/bases:minimal")
    name = recipe_tag(image.key)
    text = notes_of(world, name).annotations[RECIPE_ANNOTATION]
    document = json.loads(Recipe.parse(text, image.key, "it").to_json())
    instruction = {"arguments": ["make"], "exec": False, "flags": [], "heredocs": [], "keyword": "RUN"}
    document["form"]["steps"] = {"args": {"V": "1"}, "context": [], "instructions": [instruction]}
    document["form"]["variables"] = {"A": "1"}
    document["form"]["virtual_packages"] = {"glibc": "2.36"}
    document["pip"] = {"python": ["/usr/bin/python3", "3.11"], "wheels": [
        {"name": "a", "version": "1", "file_name": "a-1-py3-none-any.whl", "url": "https://h/a-1-py3-none-any.whl",
         "sha256": "0" * 64},
    ]}  # fmt: skip
    read = 0
    for changed in (document, *mutants(document, Random(11), 1500)):
        with suppress(AttributeError, KeyError, TypeError, UnicodeEncodeError):
            own = CanonicalForm(changed["form"]).key  # whoever writes the recipe chooses its name, too
        with suppress(EnvbuildError):
            used(Recipe.parse(json.dumps(changed), own, "it"))
            read += 1
    assert 100 < read < 1400


def rebaser(resolver: Resolver) -> Rebaser:
    known = (resolver.config, resolver.index, resolver.registries, resolver.progress)
    return Rebaser(*known, bases=resolver.bases)


def test_rebasing_by_a_hostile_recipe_fails_typed_and_the_next_one_works(world: World) -> None:
    image = built(world, "act", "thing")
    tag = recipe_tag(image.key)
    good = notes_of(world, tag)
    text = good.annotations[RECIPE_ANNOTATION]
    document = json.loads(Recipe.parse(text, image.key, "it").to_json())
    new = parse_reference(f"oci:{world.root}/bases:new")
    machine = world.other_machine()
    with Resolver(machine) as resolver:
        worker = Rebaser(
            machine, resolver.index, resolver.registries, resolver.progress, bases=resolver.bases
        )
        for changed in mutants({**document, "form": {}}, Random(5), 60):
            changed["form"] = document["form"]
            put(world, tag, good, **{RECIPE_ANNOTATION: json.dumps(changed)})
            with suppress(EnvbuildError):
                worker.rebase(image.reference, new, NO_DEADLINE)
    put(world, tag, good)
    elsewhere = replace(machine, workspace=Repository.parse(f"oci:{world.root}/elsewhere"))
    with Resolver(elsewhere) as resolver:
        worker = Rebaser(
            elsewhere, resolver.index, resolver.registries, resolver.progress, bases=resolver.bases
        )
        assert worker.rebase(image.reference, new, NO_DEADLINE).made


def test_a_lock_of_odd_members_is_refused_typed(world: World) -> None:
    image = built(world, "act", "thing")
    document = json.loads(attached_lock(world.layout(), image.reference.digest).to_bytes())
    path = world.root / "envbuild.lock"
    for changed in mutants(document, Random(3), 500):
        with suppress(EnvbuildError):
            path.write_bytes(sealed(changed))
            lockfile.load(path)


def sealed(document: dict[str, Any]) -> bytes:
    """A lock with the seal that it should have; whoever writes one can make it."""
    content = (json.dumps({**document, "seal": ""}, indent=1, ensure_ascii=True) + "\n").encode()
    body = content.replace(b',\n "seal": ""', b"")
    seal = hashlib.sha256(b"envbuild/lockfile/v1\0" + body).hexdigest()
    return content.replace(b'"seal": ""', f'"seal": "{seal}"'.encode())


def test_annotations_of_an_image_that_are_odd_are_told(world: World) -> None:
    image = built(world, "thing")
    layout, good = world.layout(), notes_of(world, image.key.tag)
    for odd in ("", "\n", "\0", "../..", "a\nFROM evil", "x" * 70_000, "sha256:" + "0" * 64, "0" * 64):
        for name in good.annotations:
            put(world, image.key.tag, good, **{name: odd})
            changed = layout.get_manifest(image.key.tag).descriptor.digest
            for ask in (lambda of: verify(layout, of), lambda of: attached_lock(layout, of)):
                with suppress(EnvbuildError):
                    ask(changed)
            with suppress(EnvbuildError):
                built(world, "thing")
    assert built(world, "act").layers_made == 1


@pytest.mark.parametrize("kind", ["nowhere", "of another size", "of other content"])
def test_a_layer_that_names_a_blob_which_is_not_it_is_made_again_in_the_same_call(
    world: World, kind: str
) -> None:
    """What is shared elsewhere is brought; where that fails, the call takes longer, and ends well."""
    theirs = Repository.parse(f"oci:{world.root}/theirs")
    built(world, "act", "thing", workspace=theirs)
    layout = LayoutRegistry(theirs)
    for tag in [tag for tag in layout.tags() if tag.name.startswith("l-")]:
        good = layout.get_manifest(tag)
        assert isinstance(good, Manifest)
        (blob,) = good.layers
        blobs = theirs.folder / "blobs" / "sha256"
        content = (blobs / blob.digest.hex).read_bytes()
        if kind == "nowhere":
            blob = Descriptor(blob.media_type, Digest.of(tag.name.encode()), 1)
        elif kind == "of another size":
            blob = replace(blob, size=blob.size + 1)
        (blobs / blob.digest.hex).write_bytes(bytes(blob.size))  # a layout takes no manifest without it
        changed = Manifest.build(good.config, (blob,), good.annotations, artifact_type=good.artifact_type)
        layout.put_manifest(changed, tag)
        if kind == "nowhere":
            (blobs / blob.digest.hex).unlink()
        elif kind == "of another size":
            (blobs / blob.digest.hex).write_bytes(content)
    for name in ("l1-", "k1-"):
        for tag in [tag for tag in layout.tags() if tag.name.startswith(name)]:
            layout.delete_manifest(layout.get_manifest(tag).descriptor.digest)
    image = built(world, "act", "thing", global_=theirs)
    assert image.reference.repository == world.config.workspace
    assert verify(world.layout(), image.reference.digest, full=True).passed
