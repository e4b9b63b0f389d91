"""Images as OCI archives and in an engine: other tools read what is written."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from cli_calls import Answer
from envbuild.build.engine import Engine
from envbuild.cli import exit_code_of
from envbuild.errors import BuildError, IntegrityError, SpecError, StorageError
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.output import load_image, write_archive
from envbuild.reference import Tag
from envbuild.resolver import ResolvedImage, Resolver
from parts.docker_engine import DockerEngine
from parts.programs import program
from tiny import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def resolve(world: World, *names: str) -> ResolvedImage:
    with Resolver(world.config) as resolver:
        return resolver.resolve(world.spec(*(names or ("pyth", "thing"))))


def write(world: World, image: ResolvedImage, path: Path) -> None:
    with Resolver(world.config) as resolver:
        write_archive(image.reference, path, registries=resolver.registries)


def skopeo(*words: str) -> str:
    command = [program("skopeo", "skopeo"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_skopeo_reads_the_archive_as_the_image(world: World) -> None:
    image = resolve(world)
    path = world.root / "image.tar"
    write(world, image, path)
    manifest = world.layout().get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    assert skopeo("inspect", "--raw", f"oci-archive:{path}").encode() == manifest.raw
    copied = world.root / "copied"
    skopeo("--insecure-policy", "copy", "--quiet", f"oci-archive:{path}", f"oci:{copied}:it")
    assert all((copied / "blobs" / "sha256" / blob.digest.hex).exists() for blob in manifest.blobs)


def test_the_same_image_gives_the_same_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    image = resolve(world)
    first, second = world.root / "first.tar", world.root / "second.tar"
    write(world, image, first)
    os.utime(world.root / "workspace" / "index.json", (1, 1))
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    write(world, image, second)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        members = archive.getmembers()
    assert {(one.uid, one.gid, one.mtime, one.uname) for one in members} == {(0, 0, 0, "")}
    assert [one.name for one in members if "sha256/" in one.name] == sorted(
        one.name for one in members if "sha256/" in one.name
    )


def test_the_archive_takes_its_name_when_it_is_whole(world: World) -> None:
    image = resolve(world)
    path = world.root / "image.tar"
    path.write_text("what was there")
    manifest = world.layout().get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    blob = world.root / "workspace" / "blobs" / "sha256" / manifest.layers[-1].digest.hex
    blob.write_bytes(bytes(len(blob.read_bytes())))
    with pytest.raises(IntegrityError):
        write(world, image, path)
    assert path.read_text() == "what was there"
    assert not list(world.root.glob(".image.tar*"))


def test_the_archive_has_the_modes_of_any_new_file(world: World) -> None:
    image = resolve(world, "tool")
    path = world.root / "image.tar"
    before = os.umask(0o027)
    try:
        write(world, image, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "told"), [("-", "standard output"), (".", "is a folder"), ("nowhere/image.tar", "not there")]
)
def test_what_cannot_be_a_file_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.chdir(world.root)
    with pytest.raises(SpecError, match=told):
        write(world, resolve(world, "tool"), Path(name))


def test_a_full_disk_is_told_as_such(world: World) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write(world, resolve(world, "tool"), Path("/proc/image.tar"))


def test_an_index_is_refused(world: World) -> None:
    image = resolve(world, "tool")
    layout = world.layout()
    index = ImageIndex.build((layout.get_manifest(image.reference.digest).descriptor,), {})
    layout.put_manifest(index, Tag("index"))
    with Resolver(world.config) as resolver, pytest.raises(BuildError, match="index of images"):
        write_archive(
            layout.repository.at(index.descriptor.digest),
            world.root / "image.tar",
            registries=resolver.registries,
        )


@pytest.mark.xdist_group("engine")
def test_an_engine_holds_the_image_either_way(world: World, engine: DockerEngine) -> None:
    image = resolve(world)
    path = world.root / "image.tar"
    write(world, image, path)
    with Resolver(world.config) as resolver, Engine.connect(engine.host) as connected:
        found, name = load_image(image.reference, engine=connected, registries=resolver.registries)
        with path.open("rb") as stream:
            (loaded,) = connected.load_archive(stream)
    assert loaded == found
    shown = json.loads(engine.docker("image", "inspect", name).stdout)[0]
    assert shown["Id"] == found
    assert "CONDA_PREFIX=/opt/env" in shown["Config"]["Env"]
    engine.docker("rmi", name)


@pytest.mark.xdist_group("engine")
def test_the_command_line_delivers(
    world: World, engine: DockerEngine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world.spec("tool")
    settings = ("WORKSPACE", "BASE", "CHANNEL_ALIAS", "CACHE_DIR")
    for name in settings:
        monkeypatch.setenv(f"ENVBUILD_{name}", str(getattr(world.config, name.lower())))

    def call(*words: str) -> Answer:
        capfd.readouterr()
        code = exit_code_of(list(words))
        return Answer(code, *capfd.readouterr())

    path = world.root / "image.tar"
    answer = call("resolve", str(spec), "--load", "--output", str(path), "--docker-host", engine.host or "")
    assert answer.code == 0, answer.err
    digest = answer.out.strip().rpartition("@")[2]
    assert f"loaded into the engine as envbuild:{digest.removeprefix('sha256:')}, sha256:" in answer.err
    assert f"written to {path}" in answer.err
    with tarfile.open(path) as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        assert json.load(index)["manifests"][0]["digest"] == digest
    engine.docker("rmi", f"envbuild:{digest.removeprefix('sha256:')}")
    assert call("resolve", str(spec), str(spec), "--output", str(path)).code == 2
    refused = call("build", str(world.spec("newer", name="never.yml")), "--output", "-")
    assert (refused.code, refused.out) == (2, "")
    assert "standard output" in refused.err


def test_a_layout_is_a_workspace(world: World) -> None:
    image = resolve(world, "tool")
    assert image.reference.repository.is_layout
    assert LayoutRegistry(image.reference.repository).has_blob(image.reference.digest)
