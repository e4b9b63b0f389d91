"""What every ``Builder`` does, as tests that each builder runs on real parts.

A builder's test module derives from :class:`BuilderContract` and names the builder:

    class TestLayers(BuilderContract):
        builder = "layers"
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from engine_bases import small_system, tar_of
from envbuild.build.base import decompressed
from envbuild.config import Config
from envbuild.digest import Descriptor
from envbuild.errors import BuildError, DeadlineExceeded, SolveError, SpecError
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, Manifest, encode
from envbuild.oci.registry import publish
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from envbuild.trust import Rule, Trust, check_rule
from parts.docker_engine import DockerEngine
from test_admission import OURS, pem, public
from tiny import World, make_base_of


@dataclass(frozen=True, slots=True)
class Node:
    """A file, folder or link of an image; hard links are files like others."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    mtime: int
    target: str
    content: str


def manifest_of(image: ResolvedImage) -> Manifest:
    """The image's manifest, from the layout that it is in."""
    found = LayoutRegistry(image.reference.repository).get_manifest(image.reference.digest)
    assert isinstance(found, Manifest)
    return found


def config_of(image: ResolvedImage) -> Any:
    """The image's config."""
    with LayoutRegistry(image.reference.repository).open_blob(manifest_of(image).config) as stream:
        return json.load(stream)


def tree_of(image: ResolvedImage, top: str = "opt") -> dict[str, Node]:
    """What is under a folder of an image, upper layers over lower ones."""
    registry, tree = LayoutRegistry(image.reference.repository), dict[str, Node]()
    for layer in manifest_of(image).layers:
        with registry.open_blob(layer) as stream:
            content = io.BytesIO(b"".join(decompressed(stream, layer.media_type)))
        with tarfile.open(fileobj=content) as archive:
            for entry in archive:
                name = posixpath.normpath(entry.name)
                if name.split("/")[0] == top:
                    _put(tree, name, archive, entry)
    return tree


def _put(tree: dict[str, Node], name: str, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    """Lay an entry over what is there, as an engine does."""
    folder, base = posixpath.split(name)
    if base.startswith(".wh."):
        gone = f"{folder}/{base.removeprefix('.wh.')}"
        del tree[gone]
        for below in [path for path in tree if path.startswith(f"{gone}/")]:
            del tree[below]
        return
    node = _node(archive, entry, tree)
    if node.kind != tarfile.DIRTYPE:
        for below in [path for path in tree if path.startswith(f"{name}/")]:
            del tree[below]
    tree[name] = node


def _node(archive: tarfile.TarFile, entry: tarfile.TarInfo, tree: dict[str, Node]) -> Node:
    if entry.islnk():
        return tree[posixpath.normpath(entry.linkname)]
    content = archive.extractfile(entry) if entry.isreg() else None
    digest = hashlib.sha256(content.read()).hexdigest() if content is not None else ""
    kind = tarfile.REGTYPE if entry.isreg() else entry.type
    mode = 0 if entry.issym() else entry.mode
    return Node(kind, mode, (entry.uid, entry.gid), int(entry.mtime), entry.linkname, digest)


def text_of(image: ResolvedImage, name: str) -> str:
    """The text of a file in an image."""
    registry, text = LayoutRegistry(image.reference.repository), None
    for layer in manifest_of(image).layers:
        with registry.open_blob(layer) as stream:
            content = io.BytesIO(b"".join(decompressed(stream, layer.media_type)))
        with tarfile.open(fileobj=content) as archive:
            for entry in archive:
                if posixpath.normpath(entry.name) == name and (file := archive.extractfile(entry)):
                    text = file.read().decode()
    assert text is not None, f"{name} is not in the image"
    return text


def same(layers: ResolvedImage, docker: ResolvedImage) -> dict[str, Node]:
    """Both images have the same files and settings; gives the files."""
    assert (docker.key, docker.lock_key) == (layers.key, layers.lock_key)
    expected, seen = tree_of(layers), tree_of(docker)
    assert seen.keys() == expected.keys()
    assert {path: node for path, node in seen.items() if node != expected[path]} == {}
    ours, theirs = config_of(layers), config_of(docker)
    assert theirs["config"] == ours["config"]
    assert theirs["created"] == ours["created"]
    return seen


@dataclass
class Machine:
    """A world whose images one builder makes."""

    world: World
    config: Config

    def resolve(self, spec: Path, config: Config | None = None, **options: Any) -> ResolvedImage:
        """Resolve a definition."""
        with Resolver(config or self.config) as resolver:
            return resolver.resolve(spec, **options)

    def other(self, **changes: Any) -> Config:
        """The settings of a machine that has seen nothing yet."""
        settings = {"base": self.config.base, "builder": self.config.builder}
        return self.world.other_machine(**settings, docker_host=self.config.docker_host, **changes)

    def keys(self) -> list[str]:
        """The tags of environments in the workspace."""
        tags = [str(tag) for tag in LayoutRegistry(self.config.workspace).tags()]
        return [tag for tag in tags if tag.startswith(("k1-", "l1-"))]


class BuilderContract:
    """The tests; ``builder`` names the builder."""

    builder: Literal["layers", "docker"]

    @pytest.fixture
    def machine(self, tmp_path: Path, engine: DockerEngine) -> Machine:
        """A machine that has seen nothing yet, with a base that has a shell."""
        world = World.make(tmp_path)
        bases = Repository.parse(f"oci:{tmp_path}/bases")
        make_base_of(bases, "small", small_system())
        config = replace(world.config, base=f"{bases}:small", builder=self.builder, docker_host=engine.host)
        return Machine(world, config)

    def test_an_image_is_complete_under_its_keys_tag(self, machine: Machine) -> None:
        image = machine.resolve(machine.world.spec("pyth", "thing"))
        assert image.source is Source.BUILT
        manifest, registry = manifest_of(image), LayoutRegistry(machine.config.workspace)
        assert registry.get_manifest(image.key.tag).descriptor.digest == image.reference.digest
        assert manifest.annotations[KEY_ANNOTATION] == str(image.key)
        assert manifest.annotations[LOCK_ANNOTATION] == image.lock_key
        assert config_of(image)["config"]["Labels"][LOCK_ANNOTATION] == image.lock_key
        assert all(registry.has_blob(blob.digest) for blob in manifest.blobs)
        assert len(config_of(image)["rootfs"]["diff_ids"]) == len(manifest.layers)
        assert image.bytes_uploaded > 0

    def test_packages_are_installed(self, machine: Machine) -> None:
        image = machine.resolve(machine.world.spec("pyth", "thing", "tool=2", "first", "second"))
        tree = tree_of(image)
        assert text_of(image, "opt/env/bin/thing").startswith("#!/bin/sh\n# /opt/env")
        assert tree["opt/env/bin/pyth"].mode == 0o755
        assert "opt/env/lib/python3.11/site-packages/pyth/__init__.py" in tree
        assert text_of(image, "opt/env/share/tool/data") == "two"
        assert text_of(image, "opt/env/share/one-path") == "first"
        assert text_of(image, "opt/env/__clobbers__/second/share/one-path") == "second"
        assert text_of(image, "opt/env/conda-meta/history").count("\n+") == 6
        assert {node.owner for node in tree.values()} == {(0, 0)}
        assert {node.mode for node in tree.values() if node.kind == tarfile.DIRTYPE} == {0o755}

    def test_the_settings_are_the_bases_and_the_environments(self, machine: Machine) -> None:
        image = machine.resolve(machine.world.spec("tool", variables={"OWN": "x y"}))
        config = config_of(image)["config"]
        assert config["User"] == "1000"
        assert config["WorkingDir"] == "/work"
        assert set(config["Env"]) >= {
            "PATH=/opt/env/bin:/usr/bin:/bin",
            "BASE=yes",
            "CONDA_PREFIX=/opt/env",
            "OWN=x y",
        }

    def test_two_machines_give_one_digest(self, machine: Machine) -> None:
        spec = machine.world.spec("pyth", "thing")
        first = machine.resolve(spec)
        workspace = Repository.parse(f"oci:{machine.world.root}/elsewhere")
        second = machine.resolve(spec, machine.other(workspace=workspace))
        assert second.source is Source.BUILT
        assert second.reference.digest == first.reference.digest

    def test_an_equal_solution_is_not_built_again(self, machine: Machine) -> None:
        first = machine.resolve(machine.world.spec("tool=1"))
        again = machine.resolve(machine.world.spec("tool=1.0", name="other.yml"))
        assert (again.source, again.layers_made) == (Source.BUILT, 0)
        assert again.key != first.key
        assert again.lock_key == first.lock_key
        assert manifest_of(again).layers == manifest_of(first).layers

    def test_steps_and_scripts_run_around_the_environment(self, machine: Machine) -> None:
        spec = machine.world.root / "envbuild.yaml"
        spec.write_text(
            f"base: {machine.config.base}\nconda:\n  channels: [tiny]\n  dependencies: [tool, writes]\n"
            "steps: |\n  USER 0\n  RUN mkdir -p /opt && echo before > /opt/before\n"
            "steps_after: |\n  RUN cat /opt/before /opt/env/written > /opt/after\n"
        )
        image = machine.resolve(spec)
        assert text_of(image, "opt/after") == "before\nby the script\n"
        assert config_of(image)["config"]["User"] == "0"

    def test_planted_steps_are_run_again_where_signatures_are_asked_for(self, machine: Machine) -> None:
        spec, key = machine.world.root / "envbuild.yaml", machine.world.root / "ours.pem"
        key.write_bytes(pem(OURS))
        text = (
            f"base: {machine.config.base}\nconda:\n  channels: [tiny]\n  dependencies: [tool]\n"
            "steps: |\n  USER 0\n  RUN echo ran > /ran\n"
        )
        spec.write_text(text)
        strict = replace(machine.config, trust=Trust(Rule(True, (public(OURS),)), sign_key=str(key)))
        layout, evil = machine.world.layout(), b"evil"
        machine.resolve(spec)
        (tag,) = (tag for tag in layout.tags() if tag.name.startswith("s1-"))
        good = layout.get_manifest(tag)
        assert isinstance(good, Manifest)
        planted = layout.get_manifest(make_base_of(layout.repository, "evil", tar_of({"ran": evil})))
        assert isinstance(planted, Manifest)
        layout.put_manifest(Manifest.build(planted.config, planted.layers, good.annotations), tag)
        spec.write_text(f"{text}variables: {{A: '1'}}\n")
        assert text_of(machine.resolve(spec, machine.other()), "ran") == "evil", "this test can fail"
        spec.write_text(f"{text}variables: {{B: '1'}}\n")
        image = machine.resolve(spec, strict)
        assert text_of(image, "ran") == "ran\n"
        check_rule(layout, layout.get_manifest(tag), strict.trust.default if strict.trust else Rule())
        spec.write_text(f"{text}variables: {{C: '1'}}\n")
        again = replace(strict, cache_dir=machine.world.root / "again", docker_host="unix:///nowhere")
        if machine.config.builder == "layers":
            assert text_of(machine.resolve(spec, again), "ran") == "ran\n", "signed, so it is not run again"

    def test_nothing_but_variables(self, machine: Machine) -> None:
        image = machine.resolve(machine.world.spec(variables={"ONLY": "this"}))
        assert len(manifest_of(image).layers) == 1
        assert "ONLY=this" in config_of(image)["config"]["Env"]

    def test_on_nothing(self, machine: Machine) -> None:
        image = machine.resolve(machine.world.spec("tool=1"), replace(machine.config, base="scratch"))
        assert tree_of(image).keys() >= {"opt/env/share/tool/data", "opt/env/conda-meta/history"}
        assert config_of(image)["config"]["Env"][0].startswith("PATH=/opt/env/bin:")

    def test_the_folder_above_the_prefix_stays_as_the_base_has_it(self, machine: Machine) -> None:
        spec = machine.world.root / "envbuild.yaml"
        definition = (
            f"base: {machine.config.base}\nconda:\n  channels: [tiny]\n  dependencies: [tool=1, writes]\n"
        )
        steps = "steps: |\n  USER 0\n  RUN mkdir -m 1777 /opt && touch /opt/before\n"
        spec.write_text(definition + steps)
        tree = tree_of(machine.resolve(spec))
        assert tree["opt"].mode == 0o1777
        assert tree["opt/env"].mode == 0o755
        assert tree.keys() >= {"opt/before", "opt/env/share/tool/data", "opt/env/written"}

    @pytest.mark.parametrize(
        ("step", "message"),
        [
            ("mkdir -p /opt/env/bin", "a folder with bin at /opt/env"),
            (
                "mkdir -p /opt && cd /opt && mkdir /srv /srv/env && ln -s /srv/env env",
                "a link to /srv/env at",
            ),
            ("ln -s srv /opt && mkdir /srv", "a link to srv at /opt"),
        ],
    )
    def test_what_stands_in_the_way_is_refused(self, machine: Machine, step: str, message: str) -> None:
        spec = machine.world.root / "envbuild.yaml"
        definition = f"base: {machine.config.base}\nconda: {{channels: [tiny], dependencies: [tool=1]}}\n"
        spec.write_text(f"{definition}steps: |\n  USER 0\n  RUN {step}\n")
        with pytest.raises(SpecError, match=message) as caught:
            machine.resolve(spec)
        assert "step" in (caught.value.hint or "")
        assert machine.keys() == []

    def test_a_package_that_is_not_there_leaves_no_image(self, machine: Machine) -> None:
        for path in (machine.world.root / "channels/tiny").glob("*/tool-1.0-*"):
            path.unlink()
        with pytest.raises(BuildError, match="tool-1"):
            machine.resolve(machine.world.spec("tool=1"))
        with pytest.raises(SolveError):
            machine.resolve(machine.world.spec("tool=9"))
        assert machine.keys() == []

    def test_a_call_whose_time_is_up_leaves_no_image(self, machine: Machine) -> None:
        with pytest.raises(DeadlineExceeded):
            machine.resolve(machine.world.spec("tool=1"), timeout=0.0)
        assert machine.keys() == []

    def test_a_base_for_another_platform_is_refused(self, machine: Machine) -> None:
        arm = f"oci:{machine.world.root}/bases:arm"
        bases = LayoutRegistry(Repository.parse(arm.removesuffix(":arm")))
        document = config_of(machine.resolve(machine.world.spec(name="plain.yml")))
        content = encode({**document, "architecture": "arm64"})
        config = Descriptor.of(content, OCI_CONFIG)
        bases.put_blob(config, lambda: io.BytesIO(content))
        small = bases.get_manifest(Tag("small"))
        assert isinstance(small, Manifest)
        publish(bases, Manifest.build(config, small.layers, {}), Tag("arm"))
        before = machine.keys()
        with pytest.raises(SpecError, match="linux/arm64"):
            machine.resolve(machine.world.spec("tool=1"), replace(machine.config, base=arm))
        assert machine.keys() == before

    def test_nothing_is_left_in_the_spool(self, machine: Machine) -> None:
        machine.resolve(machine.world.spec("tool=1", "thing"))
        assert list((machine.config.cache_dir / "spool").iterdir()) == []
