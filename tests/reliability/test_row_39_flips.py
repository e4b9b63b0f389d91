"""Row 39, in time: a registry that answers one question otherwise than all others, whichever question it is.

What was admitted is what is used. So no single answer about a tag, between two others, changes what a call
gives or puts under a name, where signatures are asked for: it costs time, or ends in a typed error.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from envbuild.cli import exit_code_of
from envbuild.config import Config
from envbuild.digest import Digest
from envbuild.errors import NotFound
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_LAYER_GZIP, ImageIndex, Manifest
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from envbuild.trust import check
from oci_contract import put
from test_trust import pem, public
from tiny import LIBC, World, make_base

if TYPE_CHECKING:
    from collections.abc import Callable

REAL = LayoutRegistry.get_manifest
KINDS = ("evil", "replayed", "gone", "an artifact")
CALLS = ("miss", "hit", "build", "rebase", "promote", "restore")


@dataclass(frozen=True)
class Team:
    """What an honest team left.

    Attributes:
        world: Its packages, bases, and repository.
        ours: The public key that is accepted.
        calls: The words of each call.
        image: An image of its own.
        other: Another image, which is signed as well.
        evil: The digest of a layer that nobody signed.
    """

    world: World
    ours: bytes
    calls: dict[str, tuple[str, ...]]
    image: Manifest
    other: Manifest
    evil: Digest


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    root = tmp_path_factory.mktemp("flips")
    world = World.make(root)
    make_base(Repository.parse(f"oci:{root}/bases"), "new", {"lib/libc.so.6": LIBC, "new": b"n"})
    key = ec.generate_private_key(ec.SECP256R1())
    (root / "ours.pem").write_bytes(pem(key))
    (root / "ours.pub").write_bytes(public(key))
    (root / "trust.toml").write_text('sign_key = "ours.pem"\nrequire_signed = true\nkeys = ["ours.pub"]\n')
    trust = Config.load(trust=str(root / "trust.toml")).trust
    workspace = LayoutRegistry(world.config.workspace)
    specs = {"a": ("tool=1", "thing"), "b": ("first", "thing")}
    with Resolver(replace(world.config, trust=trust)) as resolver:
        made = {name: resolver.resolve(world.spec(*of, name=f"{name}.yml")) for name, of in specs.items()}
    world.spec("tool=1", "thing", name="c.yml", variables={"COLOUR": "red"})
    image, other = (REAL(workspace, each.reference.digest) for each in made.values())
    assert isinstance(image, Manifest)
    assert isinstance(other, Manifest)
    named = f"{{workspace}}:k1-{made['a'].key}"
    calls = {
        "miss": ("resolve", f"{root}/c.yml"),
        "hit": ("resolve", f"{root}/a.yml"),
        "build": ("build", f"{root}/a.yml"),
        "rebase": ("rebase", named, "--base", f"oci:{root}/bases:new"),
        "promote": ("promote", "--referrers", f"{root}/a.yml", "--to", "{target}"),
        "restore": ("build", "--from-lock", named, "--base", f"oci:{root}/bases:minimal"),
    }
    evil = put(workspace, b"evil", OCI_LAYER_GZIP).digest
    return Team(world, public(key), calls, image, other, evil)


def flipped(team: Team, kind: str, honest: Callable[[], Manifest | ImageIndex], tag: Tag) -> Manifest:
    """One answer that is another than the honest one."""
    if kind == "gone":
        raise NotFound("it is gone for a moment")
    if kind == "replayed":
        return team.other
    if kind == "an artifact":
        image = team.image
        return Manifest.build(image.config, image.layers, image.annotations, artifact_type="text/x")
    try:
        found = honest()
    except NotFound:
        found = team.image
    if isinstance(found, ImageIndex):  # a list of what is attached
        return team.other
    carried = {"k1-": KEY_ANNOTATION, "l1-": LOCK_ANNOTATION}.get(tag.name[:3])
    notes = {**found.annotations, **({carried: tag.name[3:]} if carried else {})}
    last = replace(found.layers[-1], digest=team.evil, size=4)
    return Manifest.build(found.config, (*found.layers[:-1], last), notes, artifact_type=found.artifact_type)


@dataclass
class Flips:
    """Runs a call among repositories of its own, one of whose answers is another."""

    team: Team
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    number: int = 0
    asked: int = 0
    told: str = ""

    def run(self, call: str, kind: str | None, at: int) -> tuple[int, Manifest | ImageIndex | None, Path]:
        """The exit code, the answer, and where the repositories are."""
        self.number, self.asked = self.number + 1, 0
        place, guard, team = self.folder / str(self.number), threading.Lock(), self.team
        shutil.copytree(team.world.config.workspace.folder, place / "workspace")

        def answer(registry: LayoutRegistry, reference: Tag | Digest) -> Manifest | ImageIndex:
            if not isinstance(reference, Tag) or not registry.repository.folder.is_relative_to(place):
                return REAL(registry, reference)
            with guard:
                mine, self.asked = self.asked, self.asked + 1
            if kind is None or mine != at:
                return REAL(registry, reference)
            return flipped(team, kind, lambda: REAL(registry, reference), reference)

        self.monkeypatch.setattr(LayoutRegistry, "get_manifest", answer)
        settings = {
            "WORKSPACE": f"oci:{place}/workspace",
            "BASE": team.world.config.base,
            "CHANNEL_ALIAS": team.world.config.channel_alias,
            "CACHE_DIR": f"{place}/cache",
            "TRUST": f"{team.world.root}/trust.toml",
        }
        places = {"{workspace}": f"oci:{place}/workspace", "{target}": f"oci:{place}/target"}
        words = [team.calls[call][0], "--json", *team.calls[call][1:]]
        for name, text in places.items():
            words = [word.replace(name, text) for word in words]
        with mock.patch.dict(os.environ, {f"ENVBUILD_{name}": str(text) for name, text in settings.items()}):
            code = exit_code_of(words)
        self.monkeypatch.setattr(LayoutRegistry, "get_manifest", REAL)
        out, self.told = self.capsys.readouterr()
        lines = [json.loads(line) for line in out.splitlines() if line[:1] == "{"]
        found = [line["reference"].rpartition("@") for line in lines if line.get("reference")]
        if code or not found:
            return code, None, place
        (repository, _, digest) = found[-1]
        registry = LayoutRegistry(Repository.parse(repository))
        seen = REAL(registry, Digest.parse(digest))
        check(registry, seen, [team.ours])
        return code, seen, place

    def faults(self, call: str, kinds: tuple[str, ...]) -> list[str]:
        """What the call did that it must not, for each answer that was another."""
        code, honest, place = self.run(call, None, 0)
        assert code == 0, self.told
        assert honest is not None
        shutil.rmtree(place)
        found = []
        for kind in kinds:
            for at in range(self.asked):
                code, answer, place = self.run(call, kind, at)
                if answer is not None and answer.raw != honest.raw:
                    found.append(f"{call}, {kind} as answer {at}: another image")
                if code == 1:
                    found.append(f"{call}, {kind} as answer {at}: an error that is not typed")
                named = [each for name in ("workspace", "target") for each in _named(place / name)]
                if any(self.team.evil.hex.encode() in raw for raw in named):
                    found.append(f"{call}, {kind} as answer {at}: it has a name now")
                shutil.rmtree(place)
        return found


def _named(folder: Path) -> list[bytes]:
    """The manifests that have a tag, apart from lists of signatures, where anybody may add some."""
    if not (folder / "index.json").exists():
        return []
    entries = json.loads((folder / "index.json").read_bytes())["manifests"]
    names = {each["digest"]: (each.get("annotations") or {}).values() for each in entries}
    tagged = [digest for digest, texts in names.items() if any(texts) and not any(".sig" in t for t in texts)]
    return [(folder / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes() for digest in tagged]


@pytest.fixture
def flips(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Flips:
    return Flips(team, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("call", ["hit", "rebase"])
def test_no_answer_between_two_others_changes_what_a_call_gives(flips: Flips, call: str) -> None:
    assert flips.faults(call, KINDS[:2]) == []


@pytest.mark.nightly
@pytest.mark.parametrize("call", CALLS)
def test_no_answer_at_all_changes_what_any_call_gives(flips: Flips, call: str) -> None:
    assert flips.faults(call, KINDS) == []
