"""Row 39: somebody who may write a registry, and has no key of ours, plants poison in every tag family.

Each call does what it does without the poison, byte for byte, or refuses with a typed error; and nothing is
written that an honest call does not write. Real layouts, real signatures, real builds of small packages.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import conda_oracle
from conda_packages import Entry, Package
from envbuild.attach import FORM_TYPE, LOCK_TYPE
from envbuild.build.assemble import BASE_DIGEST_ANNOTATION, STEPS_ANNOTATION
from envbuild.build.base import BaseImage
from envbuild.foreign import load
from envbuild.key import steps_key
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, ImageIndex, Manifest, encode
from envbuild.oci.registry import publish
from envbuild.platform import Platform
from envbuild.reference import Repository, Tag
from envbuild.trust import sign
from oci_contract import put
from reliability.poison import FAMILIES, Outcome, Poison, Stage, faults
from test_trust import pem, public
from tiny import LIBC, World, make_base

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from oci_contract import put
    from parts.registry_server import RegistryServer

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
TOOLS: Final = ("tool", "pyth", "thing")


@dataclass(frozen=True)
class Call:
    """A call of the command line among repositories that an honest team left.

    Attributes:
        words: The command.
        source: The repository that has what the team made; it is the only one that has anything.
        target: The repository that is written.
        settings: Variables beside those of all calls.
        reads: The families of tags, and the attachments, that the call may act on.
    """

    words: tuple[str, ...]
    source: str = "workspace"
    target: str = "workspace"
    settings: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ()


def _calls() -> Iterator[tuple[str, Call]]:
    built = ("k1-", "l1-", "s1-", "l-", "m-")
    image = "@A@"
    for place, settings in (("workspace", {}), ("global", {"GLOBAL": "{global}"})):
        there: dict[str, Any] = {"source": place, "settings": settings}
        yield f"resolve-{place}", Call(("resolve", "--json", "@B@"), reads=built, **there)
        yield f"output-{place}", Call(("resolve", "--output", "a.tar", image), reads=("k1-",), **there)
        yield f"build-{place}", Call(("build", "--json", "@B@"), reads=built, **there)
        yield f"prewarm-{place}", Call(("prewarm", "--json", image, "@B@"), reads=built, **there)
        yield f"platforms-{place}", Call(("resolve", "--json", "@N@"), reads=("k1-", "l1-", "l-"), **there)
        yield (
            f"rebase-{place}",
            Call(
                ("rebase", "--json", f"{{{place}}}:k1-@KEY@", "--base", "@NEW@"),
                reads=("k1-", "l1-", "s1-", "f1-"),
                **there,
            ),
        )
        yield (
            f"rebase-index-{place}",
            Call(
                ("rebase", "--json", f"{{{place}}}:k1-@INDEX@", "--base", "@NEW@"),
                reads=("k1-", "l1-", "f1-"),
                **there,
            ),
        )
        yield (
            f"lock-{place}",
            Call(("lock", "--from", f"{{{place}}}:k1-@KEY@"), reads=("k1-", "lock", "form"), **there),
        )
    yield "hit", Call(("resolve", "--json", image), reads=("k1-",))
    yield "hit-index", Call(("resolve", "--json", "@M@"), reads=("k1-",))
    yield (
        "rebase-all",
        Call(
            ("rebase", "--json", "--all", "--from", "@OLD@", "--to", "@NEW@"),
            reads=("k1-", "l1-", "s1-", "f1-"),
        ),
    )
    yield (
        "restore",
        Call(
            ("build", "--json", "--from-lock", "{global}:k1-@KEY@", "--base", "@OLD@"),
            "global",
            reads=("k1-", "l1-", "s1-", "lock", "form"),
        ),
    )
    for name, wanted in (("image", image), ("index", "@M@")):
        yield (
            f"promote-{name}",
            Call(
                ("promote", "--json", "--referrers", wanted, "--to", "{other}"),
                "workspace",
                "other",
                reads=("k1-", "f1-", "lock", "form"),
            ),
        )
        yield (
            f"on-hit-{name}",
            Call(
                ("resolve", "--json", wanted),
                "global",
                settings={"GLOBAL": "{global}", "PROMOTE": "on-hit"},
                reads=("k1-", "f1-", "lock", "form"),
            ),
        )


CALLS: Final = dict(_calls())


@dataclass(frozen=True)
class Team:
    """What an honest team left, and the machine of somebody who uses it.

    Attributes:
        world: Its packages and bases.
        stage: Its repository, as the workspace.
        names: What the names in calls stand for.
    """

    world: World
    stage: Stage
    names: Mapping[str, str]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """Images of a definition with steps, and of one for two platforms; all of it signed."""
    root = tmp_path_factory.mktemp("team")
    world = World.make(root)
    folder = root / "channels" / "tiny"
    arm = {"subdir": "linux-aarch64"}
    Package((Entry("share/tool/data", b"arm"),), name="tool", version="2.0", index=arm).put(folder)
    asyncio.run(conda_oracle.index(folder))
    world.patch("linux-64", "tool", license="other")  # each image of it corrects its record
    bases = Repository.parse(f"oci:{root}/bases")
    make_base(bases, "minimal-arm64", {"lib/libc.so.6": LIBC, "arm": b"x"}, architecture="arm64")
    make_base(bases, "new-amd64", {"lib/libc.so.6": LIBC, "new": b"x"})
    make_base(bases, "new-arm64", {"lib/libc.so.6": LIBC, "new": b"arm"}, architecture="arm64")
    layout = LayoutRegistry(bases)
    for name, tags in (("old", ("minimal", "minimal-arm64")), ("new", ("new-amd64", "new-arm64"))):
        entries = [
            replace(layout.get_manifest(Tag(tag)).descriptor, platform=platform)
            for tag, platform in zip(tags, (AMD64, ARM64), strict=True)
        ]
        publish(layout, ImageIndex.build(tuple(entries), {}), Tag(name))
    ours = ec.generate_private_key(ec.SECP256R1())
    (root / "ours.pem").write_bytes(pem(ours))
    (root / "ours.pub").write_bytes(public(ours))
    (root / "reader.toml").write_text('require_signed = true\nkeys = ["ours.pub"]\n')
    (root / "trust.toml").write_text('sign_key = "ours.pem"\nrequire_signed = true\nkeys = ["ours.pub"]\n')
    (root / "team").mkdir()
    stage = Stage(
        root / "team",
        {
            "WORKSPACE": "{workspace}",
            "BASE": f"oci:{root}/bases:old",
            "CHANNEL_ALIAS": world.config.channel_alias,
            "TRUST": str(root / "trust.toml"),
            "DOCKER_HOST": f"unix://{root}/no-engine.sock",
        },
    )
    names = _definitions(root) | {"@NEW@": f"oci:{root}/bases:new", "@OLD@": f"oci:{root}/bases:old"}
    for tag in ("minimal", "new-amd64"):
        _steps(stage, root, BaseImage.read(layout, Tag(tag), AMD64))
    for name, kind in (("@A@", "@KEY@"), ("@M@", "@INDEX@")):
        done = stage.call(("resolve", "--json", names[name]))
        assert done.code == 0, done.told
        (names[kind],) = done.keys
    assert stage.call(("resolve", "--json", names["@C@"])).code == 0
    return Team(world, stage, names)


def _definitions(root: Path) -> dict[str, str]:
    """The definitions: one with steps, one that shares its layers, a small one, two for two platforms."""
    small = {"conda": {"channels": ["tiny"], "dependencies": ["tool"]}}
    whole = {"conda": {"channels": ["tiny"], "dependencies": list(TOOLS)}, "steps": "RUN install\n"}
    both = {"platforms": [str(AMD64), str(ARM64)]}
    documents = {
        "A": whole,
        "B": {**whole, "variables": {"COLOUR": "red"}},
        "C": {**small, "variables": {"COLOUR": "blue"}},
        "M": {**small, **both},
        "N": {**small, **both, "variables": {"COLOUR": "green"}},
    }
    for name, document in documents.items():
        (root / f"{name}.yaml").write_text(json.dumps(document))
    return {f"@{name}@": f"{root}/{name}.yaml" for name in documents}


def _steps(stage: Stage, root: Path, base: BaseImage) -> None:
    """The image of the definition's steps on a base, as an engine of the team's made it."""
    steps = load(root / "A.yaml").steps
    assert steps is not None
    name = steps_key(base.digest, steps, AMD64)
    registry = LayoutRegistry(stage.store("workspace"))
    made = registry.get_manifest(make_base(registry.repository, "made", {"installed": b"by the steps"}))
    assert isinstance(made, Manifest)
    assert base.registry is not None
    config, above = (json.loads(registry.open_blob(made.config).read()), base.config)
    document = {**above, "rootfs": {**above["rootfs"]}, "history": [*above["history"], {"created_by": "RUN"}]}
    document["rootfs"]["diff_ids"] = [*above["rootfs"]["diff_ids"], *config["rootfs"]["diff_ids"]]
    for layer in base.manifest.layers:
        registry.put_blob(layer, lambda layer=layer: base.open_layer(layer))  # type: ignore[misc]
    manifest = Manifest.build(
        put(registry, encode(document), OCI_CONFIG),
        (*base.manifest.layers, *made.layers),
        {STEPS_ANNOTATION: name, BASE_DIGEST_ANNOTATION: str(base.digest)},
    )
    registry.put_manifest(manifest)
    sign(registry, manifest, str(root / "ours.pem"), locks=root)
    registry.put_manifest(manifest, Tag(f"s1-{name}"))


class Cells:
    """Runs calls among poison, and keeps what each comes to without."""

    def __init__(self, team: Team, folder: Path, server: RegistryServer | None = None) -> None:
        self.team, self._folder, self._number, self._server = team, folder, 0, server
        self._honest: dict[tuple[str, str], tuple[Poison, Stage]] = {}

    def stage(self, call: Call) -> Stage:
        """Repositories as the team left them."""
        self._number += 1
        stage = self.team.stage.copy(self._folder / f"cell-{self._number}")
        if call.source != "workspace":
            stage.store("workspace").folder.rename(stage.store(call.source).folder)
        return stage if self._server is None else stage.on(self._server)

    def run(self, call: Call, stage: Stage, *, mode: str) -> Outcome:
        """Make the call."""
        words = []
        for word in call.words:
            for name, text in self.team.names.items():
                word = word.replace(name, text)  # noqa: PLW2901
            words.append(word)
        policies = {"open": "", "reader": str(self.team.world.root / "reader.toml")}
        trust = {"TRUST": policies[mode]} if mode in policies else {}
        return stage.call(words, **call.settings, **trust)

    def honest(self, name: str, *, mode: str) -> Poison:
        """What there is to poison for a call."""
        call = CALLS[name]
        if (name, mode) not in self._honest:
            stage = self.stage(call)
            before = stage.written()
            outcome = self.run(call, stage, mode=mode)
            assert outcome.code == 0, outcome.told
            self._honest[name, mode] = Poison(call.source, call.target, before, outcome, stage), stage
        return self._honest[name, mode][0]

    def faults(self, name: str, plant: str, *, mode: str) -> list[str] | None:
        """What a call did among poison that it must not; None where there is nothing to poison."""
        call, poison = CALLS[name], self.honest(name, mode=mode)
        stage = self.stage(call)
        kind, family = plant.partition(" ")[0], plant.rpartition(" ")[2]
        if kind == "attached":
            count = poison.attached(stage, {"lock": LOCK_TYPE, "form": FORM_TYPE}[family])
        else:
            action = poison.evil if kind == "evil" else poison.swapped
            count = action(stage, family, coming="coming" in plant)
        if not count:
            return None
        before = stage.written()
        outcome = self.run(call, stage, mode=mode)
        found = faults(outcome, poison.honest, before, names_only=mode == "open" and kind == "evil")
        several = {"--all", "prewarm"} & set(call.words)
        if outcome.code and outcome.after != before and not several:
            found.append("refused, and wrote before it did")
        return [f"{plant}: {fault}; exit code {outcome.code}" for fault in found]


SOME: Final = (
    "resolve-workspace",
    "platforms-workspace",
    "rebase-workspace",
    "rebase-index-workspace",
    "rebase-all",
    "lock-workspace",
    "restore",
    "promote-index",
    "on-hit-index",
)
"""Between them they go each way; all calls are made nightly."""
PLANTS: Final = (
    *(
        f"{kind}{when} {family}"
        for family in FAMILIES
        for kind in ("evil", "swapped")
        for when in ("", " coming")
    ),
    "attached lock",
    "attached form",
)


@pytest.fixture(scope="module")
def cells(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    return Cells(team, tmp_path_factory.mktemp("cells"))


def poisoned(name: str) -> list[str]:
    """The poison that a call may act on."""
    return [plant for plant in PLANTS if plant.rpartition(" ")[2] in CALLS[name].reads]


def told(cells: Cells, name: str, plants: list[str], *, mode: str) -> str:
    """What a call does among poisons that it must not, one a line."""
    found = [cells.faults(name, plant, mode=mode) for plant in plants]
    assert any(each is not None for each in found)
    return "\n".join(fault for each in found for fault in each or ())


@pytest.mark.parametrize("name", SOME)
def test_where_signatures_are_asked_for_poison_is_as_good_as_not_there(cells: Cells, name: str) -> None:
    plants = [plant for plant in poisoned(name) if not plant.startswith("swapped")]
    assert told(cells, name, plants, mode="strict") == ""


@pytest.mark.parametrize(
    "name", ["build-workspace", "rebase-workspace", "restore", "promote-index", "on-hit-index"]
)
def test_where_nobody_asks_for_signatures_comparisons_come_before_writing(cells: Cells, name: str) -> None:
    assert told(cells, name, poisoned(name), mode="open") == ""


@pytest.mark.parametrize("name", ["build-workspace", "rebase-workspace", "promote-index"])
def test_whoever_signs_nothing_writes_nothing_where_they_would_lose_the_tag(cells: Cells, name: str) -> None:
    plants = [plant for plant in poisoned(name) if "coming" in plant]
    assert told(cells, name, plants, mode="reader") == ""


@pytest.mark.parametrize("name", ["rebase-workspace", "on-hit-index"])
def test_so_it_is_on_a_registry(
    team: Team, registry: RegistryServer, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    cells = Cells(team, tmp_path_factory.mktemp("registry"), registry)
    plants = [plant for plant in poisoned(name) if plant.startswith(("evil k1", "evil coming k1", "evil f1"))]
    assert told(cells, name, plants, mode="strict") == ""


@pytest.mark.nightly
@pytest.mark.parametrize("mode", ["strict", "reader", "open"])
@pytest.mark.parametrize("name", CALLS)
def test_every_poison_for_every_call(cells: Cells, name: str, mode: str) -> None:
    if (name, mode) != ("rebase-all", "reader"):  # an index over images that nobody signed is none
        assert told(cells, name, poisoned(name), mode=mode) == ""
