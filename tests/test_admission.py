"""What nobody vouches for is made again: planted layers, records, steps and recipes, and replayed statements.

The attacker of these tests writes the registry as they like and has no key that is accepted.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from envbuild.admission import VOUCHER_ANNOTATION, Admission, Admitted
from envbuild.build.assemble import STEPS_ANNOTATION
from envbuild.build.known import layers_repository, statement_tag, vouched_for
from envbuild.build.recipe import RECIPE_ANNOTATION, read_recipe, recipe_tag
from envbuild.build.records import RECORD_ANNOTATION
from envbuild.build.sources import SourceBuilder
from envbuild.build.steps import known_steps
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor, Digest
from envbuild.errors import IntegrityError, Unavailable
from envbuild.index import MADE, Index
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_LAYER_GZIP, ImageIndex, Manifest
from envbuild.oci.referrers import Artifact, attach, put_artifact, read_artifact, referrers
from envbuild.oci.registries import Registries
from envbuild.oci.remote import RemoteRegistry
from envbuild.platform import LINUX_AMD64
from envbuild.progress import Event, silent
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver
from envbuild.trust import RECIPE, Identity, Rule, Trust, Untrusted, check, check_rule, sign, signature_tag
from envbuild.trust.cosign import SIGNATURE, sign_bytes
from envbuild.trust.identity import BUNDLE
from envbuild.trust.statement import (
    BUNDLE_ANNOTATION,
    PREDICATE,
    SIGNATURE_ANNOTATION,
    STATEMENT_ANNOTATION,
    envelope,
    fingerprint,
    read_statement,
    sign_statement,
)
from parts.sigstore_server import ISSUER, Sigstore, running_sigstore, token
from tiny import World, make_base
from tiny_wheels import TinyWheel
from wheel_world import spec as pip_spec
from wheel_world import wheel_world

if TYPE_CHECKING:
    from envbuild.oci.registry import Registry
    from parts.registry_server import RegistryServer

OURS, THEIRS = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
MODES = ("strict", "signing")
PLACES = ("workspace", "global")


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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A channel and a base, made once."""
    return World.make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    for name in ("channels", "bases"):
        shutil.copytree(made.root / name, tmp_path / name)
    (tmp_path / "ours.pem").write_bytes(pem(OURS))
    (tmp_path / "theirs.pem").write_bytes(pem(THEIRS))
    config = replace(
        made.config,
        workspace=Repository.parse(f"oci:{tmp_path}/workspace"),
        base=f"oci:{tmp_path}/bases:minimal",
        channel_alias=(tmp_path / "channels").as_uri(),
        cache_dir=tmp_path / "cache",
    )
    return World(tmp_path, config)


def policy(world: World, mode: str, owner: str = "ours", **rule: Any) -> Trust:
    """Who signs, and in strict mode takes signed images alone."""
    accepted = Rule(True, (public(OURS if owner == "ours" else THEIRS),), **rule)
    return Trust(accepted if mode == "strict" else Rule(), sign_key=str(world.root / f"{owner}.pem"))


def resolve(config: Config, spec: Path, said: list[Event] | None = None) -> ResolvedImage:
    with Resolver(config, progress=silent if said is None else said.append) as resolver:
        return resolver.resolve(spec)


def opened(repository: Repository) -> Registry:
    return LayoutRegistry(repository) if repository.is_layout else RemoteRegistry(repository)


def manifest_of(image: ResolvedImage) -> Manifest:
    found = opened(image.reference.repository).get_manifest(image.reference.digest)
    assert isinstance(found, Manifest)
    return found


def beside(config: Config, prefix: str = "l-") -> dict[Tag, Manifest]:
    """What is kept beside the layers."""
    registry = opened(layers_repository(config.workspace))
    found = {tag: registry.get_manifest(tag) for tag in registry.tags() if tag.name.startswith(prefix)}
    return {tag: each for tag, each in found.items() if isinstance(each, Manifest)}


def poison(manifest: Manifest, registry: Registry, **notes: str) -> Manifest:
    """The same layer with other files in it; all that it says of itself is true."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo("opt/env/bin/evil")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    packed = gzip.compress(raw.getvalue(), mtime=0)
    blob = Descriptor.of(packed, OCI_LAYER_GZIP)
    registry.put_blob(blob, lambda: io.BytesIO(packed))
    annotations = {**manifest.annotations, "io.envbuild.diff-id": str(Digest.of(raw.getvalue())), **notes}
    return Manifest.build(manifest.config, (blob,), annotations, artifact_type=manifest.artifact_type)


def without_voucher(manifest: Manifest) -> Manifest:
    notes = {name: text for name, text in manifest.annotations.items() if name != VOUCHER_ANNOTATION}
    return Manifest.build(manifest.config, manifest.layers, notes, artifact_type=manifest.artifact_type)


def in_place(world: World, place: str, repository: Repository, trust: Trust | None) -> Config:
    """A new machine that reads a repository as its workspace, or as the global one."""
    if place == "workspace":
        return world.other_machine(workspace=repository, trust=trust)
    mine = Repository(repository.host, f"{repository.path}-mine")
    return world.other_machine(workspace=mine, global_=repository, trust=trust)


@pytest.mark.parametrize("kind", ["layout", "registry"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", MODES)
def test_a_planted_layer_is_made_again(
    world: World, registry: RegistryServer, mode: str, place: str, kind: str
) -> None:
    where = world.config.workspace if kind == "layout" else registry.repository("planted")
    honest = resolve(world.other_machine(workspace=where), world.spec("tool=1", "thing"))
    target = opened(layers_repository(where))
    good = beside(replace(world.config, workspace=where))
    for tag, manifest in good.items():
        target.put_manifest(poison(manifest, target), tag)
    spec = world.spec("tool=1", "thing", name="other.yml", variables={"OTHER": "1"})
    open_ = resolve(in_place(world, place, Repository(where.host, f"{where.path}-x"), None), spec)
    assert open_.layers_made == 2
    said: list[Event] = []
    config = in_place(world, place, where, policy(world, mode))
    # The honest image of the same solution is no way round: nobody vouches for it either.
    built = resolve(config, spec, said)
    assert built.layers_made == 2
    assert manifest_of(built).layers == manifest_of(honest).layers
    assert [event.text for event in said if "made again" in (event.text or "")] != []
    assert len([event for event in said if "made again" in (event.text or "")]) == 1, "said once"
    kept = beside(config)
    assert set(kept) == set(good)
    assert {without_voucher(each).raw for each in kept.values()} == {each.raw for each in good.values()}
    again = replace(config, cache_dir=world.root / "again")
    last = resolve(again, world.spec("tool=1", name="last.yml"))
    assert (last.layers_made, last.layers_reused) == (0, 1), "and is vouched for now"


def test_without_a_rule_and_a_key_a_planted_layer_is_taken(world: World) -> None:
    """What these tests plant would be used: they can fail."""
    resolve(world.config, world.spec("tool=1"))
    target = world.layout()
    for tag, manifest in beside(world.config).items():
        target.put_manifest(poison(manifest, target), tag)
    built = resolve(world.other_machine(), world.spec("tool=1", "thing", name="other.yml"))
    assert (built.layers_made, built.layers_reused) == (1, 1)


def test_who_asks_for_signatures_and_makes_none_takes_nothing_planted_either(world: World) -> None:
    asking = replace(policy(world, "strict"), sign_key=None)
    honest = resolve(replace(world.config, trust=policy(world, "strict")), world.spec("tool=1", "thing"))
    vouched, target = beside(world.config), world.layout()
    built = resolve(world.other_machine(trust=asking), world.spec("tool=1", "first", name="1.yml"))
    assert (built.layers_made, built.layers_reused) == (1, 1), "what is vouched for is taken"
    for tag, manifest in vouched.items():
        target.put_manifest(poison(manifest, target), tag)
    built = resolve(world.other_machine(trust=asking), world.spec("tool=1", "second", name="2.yml"))
    assert built.layers_made == 2
    assert set(manifest_of(honest).layers) & set(manifest_of(built).layers[1:])
    assert len(beside(world.config, "v-")) == 1, "it says nothing of its own"
    built = resolve(world.other_machine(trust=asking), world.spec("tool=1", "second", "thing", name="3.yml"))
    assert built.layers_made == 3, "and what it shared counts for nobody who asks"


def test_a_statement_that_cannot_be_asked_for_costs_time_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = policy(world, "strict", on_failure="fail")
    resolve(replace(world.config, trust=trust), world.spec("tool=1", "thing"))
    (statement,) = beside(world.config, "v-").values()
    usual = LayoutRegistry.get_manifest

    def broken(self: LayoutRegistry, reference: Tag | Digest) -> Manifest | ImageIndex:
        if reference == statement.descriptor.digest:
            raise Unavailable("out of order")
        return usual(self, reference)

    monkeypatch.setattr(LayoutRegistry, "get_manifest", broken)
    said: list[Event] = []
    fresh = world.other_machine(trust=trust)
    built = resolve(fresh, world.spec("tool=1", "first", name="other.yml"), said)
    assert built.layers_made == 2
    assert any("done without shared layers: out of order" in (event.text or "") for event in said)


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_are_vouched_for_are_taken_over(
    world: World, registry: RegistryServer, mode: str
) -> None:
    trust = policy(world, mode)
    config = world.other_machine(workspace=registry.repository("vouched"), trust=trust)
    first = resolve(config, world.spec("tool=1", "thing", "pyth"))
    assert first.layers_made == 4
    kept = beside(config)
    (statement,) = {each.annotations[VOUCHER_ANNOTATION] for each in kept.values()}
    found = opened(layers_repository(config.workspace)).get_manifest(statement_tag(Digest.parse(statement)))
    assert str(found.descriptor.digest) == statement
    document = json.loads(found.annotations[STATEMENT_ANNOTATION])
    assert document["predicateType"] == PREDICATE
    assert {each["name"] for each in document["subject"]} == {tag.name for tag in kept}
    before = len(registry.requests)
    fresh = replace(config, cache_dir=world.root / "fresh")
    second = resolve(fresh, world.spec("tool=1", "thing", name="other.yml"))
    assert (second.layers_made, second.layers_reused) == (0, 2)
    assert set(manifest_of(second).layers[:-1]) < set(manifest_of(first).layers)
    asked = registry.requests[before:]
    assert sum(statement in line for line in asked) == 1, "one statement, read once"
    before = len(registry.requests)
    third = resolve(fresh, world.spec("tool=1", "pyth", name="third.yml"))
    assert (third.layers_made, third.layers_reused) == (0, 3)
    assert not [line for line in registry.requests[before:] if statement in line], "and remembered"


# Replays: each of them with statements that somebody signed, in the place of others


Change = Callable[[World, Config, "Registry", Tag, Manifest], Manifest]


def _other_annotation(_: World, __: Config, ___: Registry, ____: Tag, manifest: Manifest) -> Manifest:
    notes = {**manifest.annotations, "io.envbuild.activation": '{"etc/conda/activate.d/a.sh":"export A=1"}'}
    return Manifest.build(manifest.config, manifest.layers, notes, artifact_type=manifest.artifact_type)


def _other_content(_: World, __: Config, target: Registry, ___: Tag, manifest: Manifest) -> Manifest:
    return poison(manifest, target)


def _stripped(_: World, __: Config, target: Registry, ___: Tag, manifest: Manifest) -> Manifest:
    return without_voucher(poison(manifest, target))


def _other_layer(_: World, config: Config, __: Registry, tag: Tag, manifest: Manifest) -> Manifest:
    other = next(each for name, each in beside(config).items() if name != tag)
    notes = {**other.annotations, "io.envbuild.layer": manifest.annotations["io.envbuild.layer"]}
    return Manifest.build(other.config, other.layers, notes, artifact_type=other.artifact_type)


def _signed_by_them(world: World, _: Config, target: Registry, tag: Tag, manifest: Manifest) -> Manifest:
    evil = without_voucher(poison(manifest, target))
    trust = Trust(sign_key=str(world.root / "theirs.pem"))
    statement = sign_statement({tag.name: evil.descriptor.digest}, trust, None)
    put_artifact(target, statement, statement_tag(statement.descriptor.digest))
    return vouched_for(evil, statement.descriptor.digest)


def _unsigned(world: World, _: Config, target: Registry, tag: Tag, manifest: Manifest) -> Manifest:
    evil = without_voucher(poison(manifest, target))
    statement = sign_statement({tag.name: evil.descriptor.digest}, Trust(), None)
    put_artifact(target, statement, statement_tag(statement.descriptor.digest))
    return vouched_for(evil, statement.descriptor.digest)


def _added_to(world: World, config: Config, target: Registry, tag: Tag, manifest: Manifest) -> Manifest:
    """A statement of ours with one more subject and its old signature."""
    evil = without_voucher(poison(manifest, target))
    statement = target.get_manifest(Digest.parse(manifest.annotations[VOUCHER_ANNOTATION]))
    assert isinstance(statement, Manifest)
    document = json.loads(statement.annotations[STATEMENT_ANNOTATION])
    document["subject"].append({"name": tag.name, "digest": {"sha256": evil.descriptor.digest.hex}})
    notes = {**statement.annotations, STATEMENT_ANNOTATION: json.dumps(document)}
    changed = Manifest.build(statement.config, statement.layers, notes, artifact_type=statement.artifact_type)
    put_artifact(target, changed, statement_tag(changed.descriptor.digest))
    return vouched_for(evil, changed.descriptor.digest)


def _nowhere(_: World, __: Config, target: Registry, ___: Tag, manifest: Manifest) -> Manifest:
    return vouched_for(without_voucher(poison(manifest, target)), Digest.of(b"no such statement"))


def _no_digest(_: World, __: Config, target: Registry, ___: Tag, manifest: Manifest) -> Manifest:
    evil = poison(manifest, target)
    notes = {**evil.annotations, VOUCHER_ANNOTATION: "md5:0"}
    return Manifest.build(evil.config, evil.layers, notes, artifact_type=evil.artifact_type)


def _an_image(_: World, config: Config, target: Registry, ___: Tag, manifest: Manifest) -> Manifest:
    """A signed image in the place of the statement."""
    workspace = opened(config.workspace)
    image = next(
        each
        for each in map(workspace.get_manifest, workspace.tags())
        if "io.envbuild.key" in each.annotations
    )
    target.put_manifest(image)
    return vouched_for(without_voucher(poison(manifest, target)), image.descriptor.digest)


REPLAYS: dict[str, Change] = {
    "another annotation": _other_annotation,
    "another content": _other_content,
    "no voucher": _stripped,
    "another layer": _other_layer,
    "a statement of others": _signed_by_them,
    "an unsigned statement": _unsigned,
    "a statement with one more subject": _added_to,
    "a statement that is not there": _nowhere,
    "no digest": _no_digest,
    "a signed image": _an_image,
}


@pytest.mark.parametrize("case", REPLAYS)
def test_what_a_statement_does_not_vouch_for_is_made_again(world: World, case: str) -> None:
    config = replace(world.config, trust=policy(world, "strict"))
    honest = resolve(config, world.spec("tool=1", "thing"))
    target, kept = world.layout(), beside(config)
    changed = {tag: REPLAYS[case](world, config, target, tag, each) for tag, each in kept.items()}
    for tag, manifest in changed.items():
        target.put_manifest(manifest, tag)
    assert beside(config) == changed != kept
    fresh = world.other_machine(trust=config.trust)
    spec = world.spec("tool=1", "thing", "first", name="other.yml")
    built = resolve(fresh, spec)
    assert built.layers_made == 3
    assert set(manifest_of(honest).layers[1:-1]) < set(manifest_of(built).layers)
    for tag, manifest in changed.items():
        target.put_manifest(manifest, tag)
    failing = world.other_machine(trust=policy(world, "strict", on_failure="fail"))
    with pytest.raises(Untrusted):
        resolve(failing, world.spec("tool=1", "thing", "second", name="third.yml"))


def test_a_statement_of_another_workspace_counts_as_far_as_its_signer_does(world: World) -> None:
    """The same words of the same layer by somebody who is accepted are no lie, wherever they stand."""
    theirs = world.other_machine(
        workspace=Repository.parse(f"oci:{world.root}/theirs"), trust=policy(world, "strict", "theirs")
    )
    ours = world.other_machine(
        workspace=Repository.parse(f"oci:{world.root}/ours"), trust=policy(world, "strict")
    )
    for number, (config, taken) in enumerate(((theirs, 0), (ours, 1))):
        resolve(config, world.spec("tool=1"))
        place = Repository.parse(f"oci:{world.root}/victim-{number}")
        target, source = opened(place), opened(config.workspace)
        for tag, manifest in {**beside(config, "v-"), **beside(config)}.items():
            for blob in manifest.blobs:
                target.put_blob(blob, lambda blob=blob, source=source: source.open_blob(blob))  # type: ignore[misc]
            target.put_manifest(manifest, tag)
        built = resolve(
            world.other_machine(workspace=place, trust=policy(world, "strict")),
            world.spec("tool=1", name=f"{number}.yml"),
        )
        assert built.layers_reused == taken


# What the index remembers


def test_the_index_keeps_who_vouched_and_nobody_is_not_enough(world: World) -> None:
    resolve(world.config, world.spec("tool=1"))
    cache = world.other_machine()
    resolve(cache, world.spec("tool=1", "thing", name="other.yml"))
    with contextlib.closing(Index(cache.cache_dir)) as index:
        vouchers = {each.voucher for each in index.layers(_keys(world)).values()}
    assert vouchers == {f"{cache.workspace}@", MADE}, "one was taken from others, one was made"
    strict = replace(cache, trust=policy(world, "strict"))
    said: list[Event] = []
    built = resolve(strict, world.spec("tool=1", "thing", "first", name="third.yml"), said)
    assert (built.layers_made, built.layers_reused) == (2, 1)
    assert len([event for event in said if "made again" in (event.text or "")]) == 1


@pytest.mark.parametrize("case", ["open", "strict", "other keys"])
def test_what_one_workspace_shares_is_no_other_workspace_s_layer(world: World, case: str) -> None:
    """A project names its workspace; what is taken from there stays away from other projects."""
    theirs = Repository.parse(f"oci:{world.root}/theirs")
    trusts = policy(world, "strict", "theirs")
    ours = replace(
        policy(world, "strict"), rules=((str(theirs), trusts.default),) if case == "other keys" else ()
    )
    planter = world.other_machine(workspace=theirs, trust=trusts if case == "other keys" else None)
    resolve(planter, world.spec("tool=1"))
    target = opened(theirs)
    evil = {tag: poison(without_voucher(each), target) for tag, each in beside(planter).items()}
    if planter.trust is not None:
        named = {tag.name: each.descriptor.digest for tag, each in evil.items()}
        statement = sign_statement(named, planter.trust, None)
        put_artifact(target, statement, statement_tag(statement.descriptor.digest))
        evil = {tag: vouched_for(each, statement.descriptor.digest) for tag, each in evil.items()}
    for tag, manifest in evil.items():
        target.put_manifest(manifest, tag)
    victim = world.other_machine(trust=None if case == "open" else replace(ours, sign_key=None))
    project = replace(victim, workspace=theirs)
    taken = resolve(project, world.spec("tool=1", "thing", name="project.yml"))
    assert taken.layers_reused == (0 if case == "strict" else 1), "whose workspace it is, believes it"
    built = resolve(victim, world.spec("tool=1", "first", name="ours.yml"))
    own = case == "strict"  # made for the project, of what was verified here
    assert (built.layers_made, built.layers_reused) == ((1, 1) if own else (2, 0))
    assert not {each.layers[0].digest for each in evil.values()} & {
        each.digest for each in manifest_of(built).layers
    }


def _keys(world: World) -> list[str]:
    return [tag.name.removeprefix("l-") for tag in beside(world.config)]


def test_a_change_of_keys_is_a_change_of_what_is_believed(world: World, registry: RegistryServer) -> None:
    config = world.other_machine(workspace=registry.repository("rotated"), trust=policy(world, "strict"))
    resolve(config, world.spec("tool=1", "thing"))
    cache = replace(config, cache_dir=world.root / "reader")
    assert resolve(cache, world.spec("tool=1", name="other.yml")).layers_made == 0
    changed = replace(cache, trust=policy(world, "strict", "theirs"))
    assert resolve(changed, world.spec("tool=1", "first", name="third.yml")).layers_made == 2
    both = Trust(Rule(True, (public(THEIRS), public(OURS))), sign_key=str(world.root / "theirs.pem"))
    fresh = replace(config, cache_dir=world.root / "fresh", trust=both)
    assert resolve(fresh, world.spec("thing", "tool=1", "second", name="4.yml")).layers_made == 1


def test_the_fingerprint_of_a_rule_names_all_that_accepts(tmp_path: Path) -> None:
    root, other = tmp_path / "a.json", tmp_path / "b.json"
    root.write_text("a")
    other.write_text("b")
    who = (Identity("https://i", "me"),)
    rules = [
        Rule(keys=(b"1",)),
        Rule(keys=(b"1", b"2")),
        Rule(keys=(b"12",)),
        Rule(identities=who),
        Rule(identities=who, trusted_root=str(root)),
        Rule(identities=who, trusted_root=str(other)),
        Rule(identities=(Identity("https://i", "you"),)),
    ]
    assert len({fingerprint(rule) for rule in rules}) == len(rules)
    assert fingerprint(Rule(keys=(b"1", b"2"))) == fingerprint(Rule(True, (b"2", b"1"), "fail"))


def test_a_kill_between_the_statement_and_the_tags_leaves_something_harmless(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(world.config, trust=policy(world, "strict"))
    usual = LayoutRegistry.put_manifest

    def cut(self: LayoutRegistry, manifest: Any, tag: Tag | None = None) -> None:
        if tag is not None and tag.name.startswith("l-"):
            raise KeyboardInterrupt
        usual(self, manifest, tag)

    with monkeypatch.context() as patch:
        patch.setattr(LayoutRegistry, "put_manifest", cut)
        with pytest.raises(KeyboardInterrupt):
            resolve(config, world.spec("tool=1"))
    assert len(beside(config, "v-")) == 1
    assert beside(config) == {}
    fresh = world.other_machine(trust=config.trust)
    built = resolve(fresh, world.spec("tool=1", "thing", name="other.yml"))
    assert built.layers_made == 2
    assert len(beside(config)) == 2


# One kind of signature does not pass for another


def test_no_signature_of_ours_passes_for_another(world: World, tmp_path: Path) -> None:
    config = replace(world.config, trust=policy(world, "strict"))
    image = manifest_of(resolve(config, world.spec("tool=1")))
    rule, layout = policy(world, "strict").default, world.layout()
    (statement,) = beside(config, "v-").values()
    assert read_statement(statement, rule).keys() == {tag.name for tag in beside(config)}
    signature = layout.get_manifest(signature_tag(image.descriptor.digest))
    assert isinstance(signature, Manifest)
    (layer,) = signature.layers
    with layout.open_blob(layer) as stream:
        payload = stream.read().decode()
    notes = {STATEMENT_ANNOTATION: payload, SIGNATURE_ANNOTATION: layer.annotations[SIGNATURE]}
    with pytest.raises(Untrusted, match="not signed with a key"):
        read_statement(Manifest.build(statement.config, (), notes), rule)
    # What is signed of a statement, as the payload of an image's signature
    content = envelope(statement.annotations[STATEMENT_ANNOTATION].encode())
    evil = Manifest.build(image.config, image.layers[:1], image.annotations)
    layout.put_manifest(evil)
    blob = Descriptor.of(content, layer.media_type)
    layout.put_blob(blob, lambda: io.BytesIO(content))
    blob = blob.annotated(**{SIGNATURE: statement.annotations[SIGNATURE_ANNOTATION]})
    layout.put_manifest(Manifest.build(signature.config, (blob,), {}), signature_tag(evil.descriptor.digest))
    with pytest.raises(Untrusted, match="not one of cosign"):
        check(layout, evil, rule.keys)


@pytest.mark.parametrize("case", ["another type", "another predicate", "no subjects", "text", "no hash"])
def test_a_signed_statement_of_something_else_is_refused(world: World, case: str) -> None:
    rule = policy(world, "strict").default
    document: Any = {"_type": "https://in-toto.io/Statement/v1", "predicateType": PREDICATE, "subject": []}
    document |= {
        "another type": {"_type": "https://in-toto.io/Statement/v0.1"},
        "another predicate": {"predicateType": "https://slsa.dev/provenance/v1"},
        "no subjects": {"subject": None},
        "no hash": {"subject": [{"name": "l-a", "digest": {"sha256": "short"}}]},
        "text": {},
    }[case]
    content = json.dumps(document if case != "text" else "signed").encode()
    raw = sign_bytes(str(world.root / "ours.pem"), envelope(content))
    notes = {STATEMENT_ANNOTATION: content.decode(), SIGNATURE_ANNOTATION: base64.b64encode(raw).decode()}
    empty = sign_statement({}, Trust(), None)
    with pytest.raises(Untrusted, match="statement"):
        read_statement(Manifest.build(empty.config, (), notes), rule)
    for broken in ("?", "", base64.b64encode(b"x").decode()):
        with pytest.raises(Untrusted, match="not signed"):
            read_statement(Manifest.build(empty.config, (), {**notes, SIGNATURE_ANNOTATION: broken}), rule)
    assert BUNDLE_ANNOTATION not in notes


# Records, steps, recipes and images


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", MODES)
def test_a_planted_record_is_read_from_its_package_again(world: World, mode: str, place: str) -> None:
    world.patch("linux-64", "thing", license="MIT")
    where = world.config.workspace
    signing = replace(world.config, trust=policy(world, mode))
    honest = resolve(signing, world.spec("thing"))
    ((tag, good),) = beside(signing, "m-").items()
    record = json.loads(_unpacked(good.annotations[RECORD_ANNOTATION]))
    evil = _packed(json.dumps({**record, "files": ["bin/evil"], "paths_data": {"paths": []}}).encode())
    notes = {**good.annotations, RECORD_ANNOTATION: evil}
    for planted, more in ((notes, "tool"), ({RECORD_ANNOTATION: evil}, "first")):
        target = opened(where)
        target.put_manifest(
            Manifest.build(good.config, good.layers, planted, artifact_type=good.artifact_type), tag
        )
        config = in_place(world, place, where, signing.trust)
        built = resolve(config, world.spec("thing", more, name=f"{more}.yml"))
        assert b"bin/evil" not in _history_of(built)
        kept = beside(config, "m-")[tag]
        assert without_voucher(kept).raw == without_voucher(good).raw
        assert VOUCHER_ANNOTATION in kept.annotations
    open_ = replace(config, trust=None, cache_dir=world.root / "open", workspace=where)
    target.put_manifest(
        Manifest.build(good.config, good.layers, notes, artifact_type=good.artifact_type), tag
    )
    taken = resolve(open_, world.spec("thing", "second", name="open.yml"))
    assert b"bin/evil" in _history_of(taken), "this test can fail"
    assert manifest_of(honest).layers[-1] != manifest_of(taken).layers[-1]


def _unpacked(text: str) -> bytes:
    return zstandard.ZstdDecompressor().decompress(base64.b64decode(text))


def _packed(content: bytes) -> str:
    return base64.b64encode(zstandard.ZstdCompressor().compress(content)).decode()


def _history_of(image: ResolvedImage) -> bytes:
    """The uppermost layer, which has the records that channels corrected."""
    with opened(image.reference.repository).open_blob(manifest_of(image).layers[-1]) as stream:
        return gzip.decompress(stream.read())


def test_who_vouched_for_a_remembered_record_counts_too(world: World) -> None:
    world.patch("linux-64", "thing", license="MIT")
    resolve(world.config, world.spec("thing"))
    ((tag, good),) = beside(world.config, "m-").items()
    record = json.loads(_unpacked(good.annotations[RECORD_ANNOTATION]))
    evil = _packed(json.dumps({**record, "files": ["bin/evil"]}).encode())
    world.layout().put_manifest(
        Manifest.build(good.config, good.layers, {RECORD_ANNOTATION: evil}, artifact_type=good.artifact_type),
        tag,
    )
    victim = world.other_machine()
    assert b"bin/evil" in _history_of(resolve(victim, world.spec("thing", "tool", name="2.yml")))
    strict = replace(victim, trust=policy(world, "strict"))
    assert b"bin/evil" not in _history_of(resolve(strict, world.spec("thing", "first", name="3.yml")))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", MODES)
def test_the_image_of_steps_counts_where_it_is_signed(world: World, mode: str, place: str) -> None:
    name, where = "c" * 64, world.config.workspace
    layout = world.layout()
    made = layout.get_manifest(make_base(where, "made", {"etc/evil": b"evil"}))
    assert isinstance(made, Manifest)
    steps = Manifest.build(made.config, made.layers, {STEPS_ANNOTATION: name})
    layout.put_manifest(steps, Tag(f"s1-{name}"))
    said: list[Event] = []

    def known(trust: Trust | None) -> Digest | None:
        config, registries = in_place(world, place, where, trust), Registries(frozenset())
        found = known_steps(name, LINUX_AMD64, config, registries, said.append, NO_DEADLINE)
        return None if found is None else found.manifest.descriptor.digest

    digest = steps.descriptor.digest
    assert known(None) == digest
    assert known(policy(world, mode)) is None
    assert any("is not signed" in (event.text or "") for event in said)
    if mode == "strict":
        with pytest.raises(Untrusted):
            known(policy(world, mode, on_failure="fail"))
    sign(layout, steps, str(world.root / "theirs.pem"), locks=world.root)
    assert known(policy(world, mode)) is None
    sign(layout, steps, str(world.root / "ours.pem"), locks=world.root)
    assert known(policy(world, mode)) == digest
    for manifest in (Manifest.build(made.config, made.layers, {STEPS_ANNOTATION: "d" * 64}), made):
        layout.put_manifest(manifest, Tag(f"s1-{name}"))
        with pytest.raises(IntegrityError, match="name of steps"):
            known(None)


def test_a_recipe_counts_as_the_image_s_signature_says(world: World) -> None:
    config = replace(world.config, trust=policy(world, "strict"))
    image = resolve(config, world.spec("tool=1"))
    manifest, layout, tag = manifest_of(image), world.layout(), recipe_tag(image.key)
    admission, registries = Admission(config, silent), Registries(frozenset())
    admitted = admission.require(manifest, layout, NO_DEADLINE, part=True, every=True)
    recipe = read_recipe(registries, config.workspace, admitted, NO_DEADLINE)
    assert [each for claims in admitted.claims if (each := claims.get(RECIPE))] == [recipe.claim[RECIPE]]
    plain = Admitted(manifest)
    activation = {"etc/conda/activate.d/a.sh": "export LD_PRELOAD=/opt/env/evil.so"}
    good = layout.get_manifest(tag)
    assert isinstance(good, Manifest)
    for changed in (replace(recipe, activation=activation), replace(recipe, layers=recipe.layers[1:])):
        for text in (changed.to_text(), changed.to_json().decode()):
            notes = {RECIPE_ANNOTATION: text}
            layout.put_manifest(
                Manifest.build(good.config, good.layers, notes, artifact_type=good.artifact_type), tag
            )
            assert read_recipe(registries, config.workspace, plain, NO_DEADLINE) == changed
            with pytest.raises(Untrusted, match="vouches for the recipe"):
                read_recipe(registries, config.workspace, admitted, NO_DEADLINE)
    notes = {RECIPE_ANNOTATION: recipe.to_json().decode()}
    layout.put_manifest(
        Manifest.build(good.config, good.layers, notes, artifact_type=good.artifact_type), tag
    )
    assert read_recipe(registries, config.workspace, admitted, NO_DEADLINE) == recipe, "not compressed"


def test_a_recipe_whose_packages_are_others_is_no_recipe_of_the_image(world: World) -> None:
    """Also without a rule: what it is solved to is computed again."""
    image, other = (
        resolve(world.config, world.spec(name, name=f"{name}.yml")) for name in ("tool=1", "first")
    )
    registries, layout = Registries(frozenset()), world.layout()
    recipes = [
        read_recipe(registries, world.config.workspace, Admitted(manifest_of(each)), NO_DEADLINE)
        for each in (image, other)
    ]
    changed = replace(recipes[0], lock=recipes[1].lock)
    good = layout.get_manifest(recipe_tag(image.key))
    assert isinstance(good, Manifest)
    layout.put_manifest(
        Manifest.build(good.config, good.layers, {RECIPE_ANNOTATION: changed.to_text()}),
        recipe_tag(image.key),
    )
    with pytest.raises(IntegrityError, match="another solution"):
        read_recipe(registries, world.config.workspace, Admitted(manifest_of(image)), NO_DEADLINE)


def test_an_image_with_a_signature_of_before_is_signed_for_its_recipe_too(
    world: World,
) -> None:
    image = manifest_of(resolve(world.config, world.spec("tool=1")))
    layout, key = world.layout(), str(world.root / "ours.pem")
    claim = {RECIPE: str(Digest.of(b"recipe"))}
    options: dict[str, Any] = {"locks": world.root}
    assert sign(layout, image, key, **options)
    assert not sign(layout, image, key, **options)
    assert sign(layout, image, key, claims=claim, **options)
    assert not sign(layout, image, key, claims=claim, **options)
    rule = Rule(True, (public(OURS),))
    assert not any(RECIPE in each for each in check_rule(layout, image, rule).claims)
    assert any(
        each.get(RECIPE) == claim[RECIPE] for each in check_rule(layout, image, rule, every=True).claims
    )


@pytest.mark.parametrize("prefix", ["k1-", "l1-"])
def test_a_planted_image_loses_its_tag_to_the_one_that_is_signed(world: World, prefix: str) -> None:
    spec, layout = world.spec("tool=1"), world.layout()
    honest = resolve(world.other_machine(workspace=Repository.parse(f"oci:{world.root}/x")), spec)
    notes = manifest_of(honest).annotations
    tag = Tag(f"k1-{honest.key}" if prefix == "k1-" else f"l1-{honest.lock_key}")
    evil = layout.get_manifest(make_base(world.config.workspace, "evil", {"etc/evil": b"evil"}))
    assert isinstance(evil, Manifest)
    layout.put_manifest(Manifest.build(evil.config, evil.layers, notes), tag)
    config = world.other_machine(trust=policy(world, "strict"))
    built = resolve(config, spec)
    assert manifest_of(built).layers == manifest_of(honest).layers
    assert layout.get_manifest(tag).annotations == notes
    assert getattr(layout.get_manifest(tag), "layers", ()) == manifest_of(honest).layers
    check_rule(layout, layout.get_manifest(tag), policy(world, "strict").default)


def test_what_is_no_image_of_the_platforms_is_no_hit(world: World) -> None:
    spec = world.spec("tool=1")
    image = resolve(world.config, spec)
    manifest, layout = manifest_of(image), world.layout()
    tag = Tag(f"k1-{image.key}")
    index = ImageIndex.build((replace(manifest.descriptor, platform=LINUX_AMD64),), manifest.annotations)
    artifact = Manifest.build(
        manifest.config, manifest.layers, manifest.annotations, artifact_type="application/x"
    )
    for planted, message in ((index, "is an index"), (artifact, "is an artifact")):
        layout.put_manifest(planted, tag)
        with pytest.raises(IntegrityError, match=message):
            resolve(world.other_machine(), spec)


# Identities


@pytest.fixture(scope="module")
def sigstore() -> Iterator[Sigstore]:
    with running_sigstore() as running:
        yield running


def test_an_identity_vouches_for_layers_too(
    world: World, sigstore: Sigstore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, client = "https://ci.example.com/team/envs", world.root / "client.json"
    client.write_text(json.dumps(sigstore.client_config))
    monkeypatch.setenv("TOKEN", token(job))
    rule = Rule(True, identities=(Identity(ISSUER, job),), trusted_root=str(client))
    trust = Trust(rule, sign_identity="env:TOKEN")
    config = replace(world.config, trust=trust)
    image = manifest_of(resolve(config, world.spec("tool=1", "thing")))
    (statement,) = beside(config, "v-").values()
    assert set(statement.annotations) == {STATEMENT_ANNOTATION, BUNDLE_ANNOTATION}
    assert read_statement(statement, rule).keys() == {tag.name for tag in beside(config)}
    built = resolve(world.other_machine(trust=trust), world.spec("tool=1", "first", name="other.yml"))
    assert (built.layers_made, built.layers_reused) == (1, 1)
    # Others, other words, and bundles that are about something else
    bundle = statement.annotations[BUNDLE_ANNOTATION]
    text = statement.annotations[STATEMENT_ANNOTATION]
    for notes, message in (
        ({BUNDLE_ANNOTATION: bundle, STATEMENT_ANNOTATION: text.replace("l-", "l-0")}, "another statement"),
        ({BUNDLE_ANNOTATION: "{}", STATEMENT_ANNOTATION: text}, "not accepted"),
        ({STATEMENT_ANNOTATION: text}, "nobody signed"),
    ):
        with pytest.raises(Untrusted, match=message):
            read_statement(Manifest.build(statement.config, (), notes), rule)
    others = replace(rule, identities=(Identity(ISSUER, f"{job}/other"),))
    with pytest.raises(Untrusted, match="not accepted"):
        read_statement(statement, others)
    layout = world.layout()
    (listed, *_) = referrers(layout, image.descriptor.digest, BUNDLE)
    attached = layout.get_manifest(listed.digest)
    assert isinstance(attached, Manifest)
    of_image = read_artifact(layout, attached).decode()
    stated = base64.b64decode(json.loads(of_image)["dsseEnvelope"]["payload"]).decode()
    notes = {BUNDLE_ANNOTATION: of_image, STATEMENT_ANNOTATION: stated}
    with pytest.raises(Untrusted, match="expected 'urn:envbuild:shared:v1'"):
        read_statement(Manifest.build(statement.config, (), notes), rule)
    layer = next(iter(beside(config).values()))
    content = without_voucher(layer)
    layout.put_manifest(content)
    attach(layout, content.descriptor, [Artifact(BUNDLE, BUNDLE, bundle.encode(), {})], locks=world.root)
    with pytest.raises(Untrusted, match="it states"):
        check_rule(layout, content, rule)


# Wheels that are built from source


def test_a_built_wheel_is_taken_again_where_the_same_are_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stood below it when it was built was believed for the word of somebody who may be out by now."""
    world = wheel_world(tmp_path)
    (tmp_path / "ours.pem").write_bytes(pem(OURS))
    TinyWheel("backend").put(tmp_path / "links")
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text('[build-system]\nrequires = ["backend"]\nbuild-backend = "b"\n')
    wheel = TinyWheel("project").put(tmp_path / "built")
    built: list[str] = []

    def build(_: SourceBuilder, source: Any, __: Any) -> tuple[str, bytes]:
        built.append(source.what)
        return wheel.name, wheel.read_bytes()

    monkeypatch.setattr(SourceBuilder, "_build", build)
    ours, theirs = public(OURS), public(THEIRS)
    key = str(tmp_path / "ours.pem")
    policies = (
        None,
        Trust(Rule(True, (ours,)), sign_key=key),
        Trust(Rule(True, (ours, theirs)), sign_key=key),
        Trust(Rule(True, (ours,)), sign_key=key),
        Trust(sign_key=key),
        None,
    )
    counts = []
    for number, trust in enumerate(policies):
        before = len(built)
        workspace = Repository.parse(f"oci:{tmp_path}/workspace-{number}")
        resolve(replace(world.config, workspace=workspace, trust=trust), pip_spec(world, "./project"))
        counts.append(len(built) - before)
    assert counts == [1, 1, 1, 0, 0, 1], "without a rule each workspace is believed by its own readers alone"


# The base


@pytest.mark.parametrize("named", ["by its tag", "by its digest"])
@pytest.mark.parametrize("kind", ["image", "index"])
def test_a_base_must_be_signed_where_a_rule_names_its_repository(world: World, kind: str, named: str) -> None:
    bases = LayoutRegistry(Repository.parse(f"oci:{world.root}/bases"))
    found = bases.get_manifest(Tag("minimal"))
    if kind == "index":
        found = ImageIndex.build((replace(found.descriptor, platform=LINUX_AMD64),), {})
        bases.put_manifest(found, Tag("minimal"))
    base = f"oci:{world.root}/bases:minimal"
    if named == "by its digest":
        base = f"oci:{world.root}/bases@{found.descriptor.digest}"
    rule = Rule(True, (public(OURS),))

    def built(policy: Trust, number: int) -> ResolvedImage:
        config = world.other_machine(base=base, trust=policy)
        return resolve(config, world.spec("tool=1", name=f"{number}.yml", variables={"N": str(number)}))

    others = ((f"oci:{world.root}/workspace-of-others", rule),)
    built(Trust(rules=others), 0)
    built(Trust(rule, sign_key=str(world.root / "ours.pem")), 1)  # the rule of all others is none about bases
    strict = Trust(rules=((f"oci:{world.root}/bases", rule),))
    with pytest.raises(Untrusted, match="is not used: "):
        built(strict, 2)
    sign(bases, found, str(world.root / "theirs.pem"), locks=world.root)
    with pytest.raises(Untrusted, match="is not used: "):
        built(strict, 2)
    sign(bases, found, str(world.root / "ours.pem"), locks=world.root)
    built(strict, 2)


def test_a_base_is_looked_at_again_when_the_rule_changes(world: World) -> None:
    bases = LayoutRegistry(Repository.parse(f"oci:{world.root}/bases"))
    found = bases.get_manifest(Tag("minimal"))
    sign(bases, found, str(world.root / "ours.pem"), locks=world.root)
    for owner in (OURS, THEIRS):
        rule = Rule(True, (public(owner),))
        config = replace(world.config, trust=Trust(rules=((f"oci:{world.root}/bases", rule),)))
        if owner is OURS:
            resolve(config, world.spec("tool=1"))
            (bases.repository.folder / "blobs/sha256" / _signature_of(bases, found).hex).unlink()
            resolve(config, world.spec("first", name="other.yml"))  # remembered
        else:
            with pytest.raises(Untrusted):
                resolve(config, world.spec("second", name="third.yml"))


def test_a_signature_of_a_base_that_ends_is_no_fact(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = LayoutRegistry(Repository.parse(f"oci:{world.root}/bases"))
    found = bases.get_manifest(Tag("minimal"))
    soon = datetime.now(UTC) + timedelta(hours=1)
    sign(bases, found, str(world.root / "ours.pem"), locks=world.root, expires=soon)
    rule = Rule(True, (public(OURS),))
    config = replace(world.config, trust=Trust(rules=((f"oci:{world.root}/bases", rule),)))
    resolve(config, world.spec("tool=1"))

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) + timedelta(hours=2)

    monkeypatch.setattr("envbuild.trust.cosign.datetime", Later)
    with pytest.raises(Untrusted, match="expired"):
        resolve(config, world.spec("first", name="other.yml"))


def _signature_of(registry: LayoutRegistry, image: Manifest | ImageIndex) -> Digest:
    found = registry.get_manifest(signature_tag(image.descriptor.digest))
    assert isinstance(found, Manifest)
    return found.layers[0].digest


# Whose signatures are asked for


def test_what_becomes_part_of_an_image_is_asked_for_more_than_an_answer(world: World) -> None:
    ours, theirs = public(OURS), public(THEIRS)
    home, shared = world.config.workspace, Repository.parse("example.com/shared")
    key = str(world.root / "ours.pem")

    def rules(trust: Trust | None) -> list[tuple[bytes, ...] | None]:
        admission = Admission(replace(world.config, trust=trust), silent)
        found = [admission.rule(owner, part=part) for owner in (home, shared) for part in (False, True)]
        return [None if rule is None else rule.keys for rule in found]

    at_home = ((str(home), Rule(True, (theirs,))),)
    elsewhere = ((str(shared), Rule(True, (theirs,))),)
    assert rules(None) == [None] * 4
    assert rules(Trust()) == [None] * 4
    assert rules(Trust(sign_key=key)) == [None, (ours,), None, (ours,)]
    assert rules(Trust(rules=at_home)) == [(theirs,), (theirs,), None, (theirs,)]
    assert rules(Trust(rules=elsewhere)) == [None, None, (theirs,), (theirs,)]
    assert rules(Trust(rules=elsewhere, sign_key=key)) == [None, (ours,), (theirs,), (theirs, ours)]


def test_an_identity_counts_under_its_own_root_alone(world: World) -> None:
    home, shared = world.config.workspace, Repository.parse("example.com/shared")
    mine, other = Identity("https://i", "mine"), Identity("https://i", "other")
    for root, expected in (("root.json", {mine, other}), ("elsewhere.json", {mine}), (None, {mine})):
        trust = Trust(
            rules=(
                (str(home), Rule(True, identities=(mine,), trusted_root="root.json")),
                (str(shared), Rule(identities=(other,), trusted_root=root)),
            )
        )
        rule = Admission(replace(world.config, trust=trust), silent).rule(shared, part=True)
        assert rule is not None
        assert (set(rule.identities), rule.trusted_root) == (expected, "root.json")


# What the documentation says


def test_each_nothing_of_the_documentation_names_tests_that_there_are() -> None:
    tests = Path(__file__).parent
    there = "\n".join(path.read_text() for path in tests.rglob("*.py"))
    text = (tests.parent / "docs/trust.md").read_text()
    rows = text.partition("| who | open mode | strict mode |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == 8
    for row in rows:
        for cell in row.split("|")[2:4]:
            named = re.findall(r"`(test_\w+)…?`", cell)
            assert named or "nothing" not in cell, cell
            assert all(f"def {name}" in there for name in named), cell


# What it costs


def test_strict_mode_asks_a_fifth_more_at_most(world: World, registry: RegistryServer) -> None:
    packages = ("python", "pyth", "thing", "first", "tool=1")

    def requests(config: Config, *dependencies: str, name: str) -> int:
        before = len(registry.requests)
        resolve(config, world.spec(*dependencies, name=name))
        return len(registry.requests) - before

    counts: dict[str, list[int]] = {"cold": [], "known layers on a new machine": [], "one small package": []}
    for mode, trust in (("open", None), ("strict", policy(world, "strict"))):
        workspace = registry.repository(mode)
        config = world.other_machine(workspace=workspace, trust=trust)
        resolve(config, world.spec("second", name="warm.yml"))  # asks once a day what the host is like
        counts["cold"].append(requests(config, *packages, name="cold.yml"))
        fresh = replace(config, cache_dir=world.root / f"fresh-{mode}")
        counts["known layers on a new machine"].append(requests(fresh, *packages, "second", name="fresh.yml"))
        counts["one small package"].append(requests(config, "tool=2", name="small.yml"))
    for what, (open_, strict) in counts.items():
        # One more where two threads ask the same at the same moment.
        assert strict <= 1.2 * open_ + 1, f"{what}: {open_} requests, {strict} in strict mode"
