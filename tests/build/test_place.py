"""What a base has where the environment goes: folded over its layers, kept, or refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder_contract import tree_of
from engine_bases import base_of
from envbuild.build.base import BaseImage
from envbuild.build.place import Node, folder_above
from envbuild.build.rebase import Rebased, Rebaser
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.errors import DeadlineExceeded, IntegrityError, SpecError
from envbuild.index import Index
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.oci.registry import publish
from envbuild.platform import LINUX_AMD64
from envbuild.reference import ImageReference, Repository, Tag, TaggedReference
from envbuild.resolver import ResolvedImage, Resolver
from tiny import World

FOLDER, LINK, FILE, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.REGTYPE, tarfile.LNKTYPE
Entry = tuple[str, bytes, dict[str, Any]]


def folder(path: str, mode: int = 0o755, **more: Any) -> Entry:
    return path, FOLDER, {"mode": mode, **more}


def link(path: str, target: str) -> Entry:
    return path, LINK, {"linkname": target}


def file(path: str) -> Entry:
    return path, FILE, {}


def layer(*entries: Entry) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, kind, settings in entries:
            entry = tarfile.TarInfo(path)
            entry.type = kind
            for name, value in settings.items():
                setattr(entry, name, value)
            archive.addfile(entry)
    return out.getvalue()


def put(place: Repository, *layers: bytes, tag: str = "base") -> None:
    """A base of layers, in a layout."""
    image, registry = base_of(*layers), LayoutRegistry(place)
    for each in image.manifest.layers:
        registry.put_blob(each, lambda each=each: image.open_blob(each))  # type: ignore[misc]
    registry.put_blob(image.manifest.config, lambda: io.BytesIO(image.config))
    publish(registry, image.manifest, Tag(tag))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    found = Index(tmp_path / "cache")
    yield found
    found.close()


def resolve(config: Config, spec: Path) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(spec)


def rebase(config: Config, image: ImageReference, new: TaggedReference) -> Rebased:
    with Resolver(config) as found:
        rebaser = Rebaser(found.config, found.index, found.registries, found.progress, bases=found.bases)
        return rebaser.rebase(image, new, NO_DEADLINE)


def offline(world: World, **changes: Any) -> Config:
    """A machine that has seen nothing and has no channel: it cannot solve or make a layer."""
    return world.other_machine(channel_alias=(world.root / "nowhere").as_uri(), **changes)


def manifest_of(reference: ImageReference) -> Manifest:
    found = LayoutRegistry(reference.repository).get_manifest(reference.digest)
    assert isinstance(found, Manifest)
    return found


def read(tmp_path: Path, index: Index, *layers: bytes) -> Node | None:
    """What is to be given back, by the rules; a second machine that knows some layers says the same."""
    place = Repository.parse(f"oci:{tmp_path}/bases")
    put(place, *layers)
    base = BaseImage.read(LayoutRegistry(place), Tag("base"), LINUX_AMD64)
    found = folder_above(base, "/opt/env", index, 2, NO_DEADLINE)
    nothing_is_read = replace(base, registry=None)
    assert folder_above(nothing_is_read, "/opt/env", index, 2, NO_DEADLINE) == found
    return found


OPEN = Node("folder", mode=0o1777)
USUAL: list[tuple[bytes, ...]] = [
    (),
    (layer(),),
    (layer(folder("usr"), file("usr/opt")),),
    (layer(folder("opt")),),
    (layer(folder("./opt/"), folder("./opt/other/env"), file("./opt/other/env/f")),),
    (layer(file("opt/f")),),
    (layer(folder("opt", 0o1777)), layer(folder("opt"))),
    (layer(folder("opt"), folder("opt/env", 0o700)),),
    (layer(file("opt/env/f")), layer(file("opt/env/.wh.f"))),
    (layer(file("opt/env/f")), layer(file("opt/.wh.env"))),
    (layer(file("opt/env/f")), layer(file("opt/.wh..wh..opq"))),
    (layer(file("opt/env/f")), layer(file("opt/env/.wh..wh..opq"))),
    (layer(file("opt/env/f")), layer(file(".wh.opt"))),
    (layer(link("opt/env", "elsewhere")), layer(file(".wh..wh..opq"))),
    (layer(link("opt", "var/opt")), layer(file(".wh.opt"), folder("opt"))),
    (layer(link("opt", "var/opt")), layer(folder("opt"))),
    (layer(file("opt/env/f")), layer(link("opt", "var/opt")), layer(folder("opt"))),
    (layer(file("opt/env/f")), layer(file("opt/env")), layer(folder("opt/env"))),
    (layer(folder("opt", 0o1777)), layer(file(".wh.opt")), layer(file("opt/x"))),
]
KEPT = [
    ((layer(folder("opt", 0o1777)),), OPEN),
    ((layer(folder("opt", 0o1777)), layer(file("opt/f"))), OPEN),
    ((layer(folder("opt")), layer(folder("/opt/", 0o1777))), OPEN),
    ((layer(folder("opt", 0o2775, uid=1000, gid=50)),), Node("folder", "", 0o2775, 1000, 50)),
    ((layer(folder("opt", uid=3_000_000)),), Node("folder", uid=3_000_000)),
    ((layer(folder("opt", 0o1777), file("opt/env/f")), layer(file("opt/.wh..wh..opq"))), OPEN),
]
REFUSED = [
    ((layer(link("opt", "var/opt")),), "a link to var/opt at /opt, expected a folder"),
    ((layer(folder("opt")), layer(link("opt", "/x"))), "a link to /x at /opt"),
    ((layer(file("opt")),), "a file at /opt"),
    ((layer(folder("opt"), link("opt/env", "../srv")),), r"a link to \.\./srv at /opt/env, expected nothing"),
    ((layer(file("a"), ("opt/env", HARD, {"linkname": "a"})),), "a file at /opt/env"),
    ((layer(file("opt/env/bin/python")),), "a folder with bin at /opt/env"),
    ((layer(*map(file, ("opt/env/d", "opt/env/c", "opt/env/b", "opt/env/a"))),), "with a, b, c, … at"),
    ((layer(file("opt/env/a"), file("opt/env/b")), layer(file("opt/env/.wh.a"))), "a folder with b at"),
    (
        (layer(file("opt/env/a")), layer(file("opt/env/.wh..wh..opq"), file("opt/env/b"))),
        "a folder with b at",
    ),
    (
        (layer(*(file(f"opt/env/{n}") for n in range(5000))), layer(folder("opt"))),
        "a folder with 0, 1, 10, …",
    ),
    ((layer(file("opt/env/f")), layer(folder("opt", 0o1777))), "a folder with f at"),
]


@pytest.mark.parametrize("layers", USUAL)
def test_nothing_is_given_back_where_all_is_as_usual(
    tmp_path: Path, index: Index, layers: tuple[bytes, ...]
) -> None:
    assert read(tmp_path, index, *layers) is None


@pytest.mark.parametrize(("layers", "expected"), KEPT)
def test_mode_and_owner_are_the_bases(
    tmp_path: Path, index: Index, layers: tuple[bytes, ...], expected: Node
) -> None:
    assert read(tmp_path, index, *layers) == expected


@pytest.mark.parametrize(("layers", "message"), REFUSED)
def test_what_stands_in_the_way_is_named_with_the_way_out(
    tmp_path: Path, index: Index, layers: tuple[bytes, ...], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        read(tmp_path, index, *layers)
    assert "oci:" in str(caught.value), "the base is named"
    assert "RUN m" in (caught.value.hint or "") or "RUN rm" in (caught.value.hint or "")


def test_reading_ends_with_the_deadline(tmp_path: Path, index: Index) -> None:
    place = Repository.parse(f"oci:{tmp_path}/bases")
    put(place, layer(folder("opt")))
    base = BaseImage.read(LayoutRegistry(place), Tag("base"), LINUX_AMD64)
    with pytest.raises(DeadlineExceeded):
        folder_above(base, "/opt/env", index, 2, Deadline.after(0.0))
    assert folder_above(base, "/opt/env", index, 2, NO_DEADLINE) is None, "nothing is remembered of it"


def test_a_layer_that_is_no_archive_is_refused(tmp_path: Path, index: Index) -> None:
    with pytest.raises(IntegrityError, match="has a tar header with the number"):
        read(tmp_path, index, b"nonsense" * 1000)


def test_an_environment_and_a_rebased_one_leave_the_folder_above_as_it_is(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    place = Repository.parse(f"oci:{tmp_path}/bases")
    above = {"open": folder("opt", 0o1777), "plain": folder("opt"), "group": folder("opt", gid=7)}
    for tag, entry in above.items():
        put(place, layer(entry, file(f"opt/{tag}")), tag=tag)
    spec = world.spec("tool=1")
    made = {tag: resolve(replace(world.config, base=f"{place}:{tag}"), spec) for tag in ("plain", "open")}
    assert tree_of(made["plain"])["opt"].mode == 0o755
    assert tree_of(made["open"])["opt"].mode == 0o1777
    plain, opened = (manifest_of(made[tag].reference).layers[1:] for tag in ("plain", "open"))
    assert opened[:-1] == plain, "the environment's own layers are shared"
    elsewhere = offline(world, workspace=Repository.parse(f"oci:{tmp_path}/elsewhere"))
    for source, tag, expected in (
        ("open", "group", (0o755, (0, 7))),
        ("open", "plain", (0o755, (0, 0))),
        ("plain", "open", (0o1777, (0, 0))),
    ):
        rebased = rebase(elsewhere, made[source].reference, place.tagged(Tag(tag)))
        node = tree_of(replace(made[source], reference=rebased.reference))["opt"]
        assert (node.mode, node.owner) == expected
        if tag in made:
            digest = made[tag].reference.digest
            assert rebased.reference.digest == digest, "byte for byte what a build makes"


def test_a_base_with_a_link_is_refused_where_an_environment_goes_there(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    place = Repository.parse(f"oci:{tmp_path}/bases")
    put(place, layer(link("opt", "srv")), tag="linked")
    linked = replace(world.config, base=f"{place}:linked")
    image = resolve(world.config, world.spec("tool=1"))
    with pytest.raises(SpecError, match="a link to srv at /opt"):
        rebase(world.config, image.reference, place.tagged(Tag("linked")))
    with pytest.raises(SpecError, match="a link to srv at /opt"):
        resolve(linked, world.spec("tool=1"))
    assert resolve(linked, world.spec(variables={"ONLY": "this"}, name="variables.yml")).layers_made == 0
