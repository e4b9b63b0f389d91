"""Bases that only a Docker Engine holds: their digest, what is built on them, and what is refused."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine_bases import base_of, small_system, tar_of
from envbuild.build.archive import image_chunks, unpack_image
from envbuild.build.bases import Bases
from envbuild.build.engine import Engine
from envbuild.build.local_images import FOLDER, LocalImages
from envbuild.build.steps_image import StepsBase
from envbuild.cli import exit_code_of
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import BuildError, SpecError
from envbuild.index import Index
from envbuild.lockfile import LockPolicy
from envbuild.locking import make_lock
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_LAYER, Manifest
from envbuild.oci.open import open_registry
from envbuild.oci.registries import Registries
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.reference import ENGINE_SCHEME, ImageReference, Repository, Tag, parse_engine_reference
from envbuild.resolver import Resolver, Source
from parts.docker_engine import DockerEngine
from parts.registry_server import RegistryServer
from tiny import World

pytestmark = pytest.mark.xdist_group("engine")
NOBODY = "unix:///nonexistent/docker.sock"
SYSTEM = small_system()


class Images:
    """Images of a name of their own in the engine."""

    def __init__(self, engine: DockerEngine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.name = f"envbuild-test-{uuid.uuid4().hex}"
        self.base = self.first("gzip")
        with Engine.connect(engine.host) as connected:
            connected.load(self.base, f"{self.name}:first")

    def first(self, compression: str) -> StepsBase:
        """An image that no other test has, so that all its images can be removed by their IDs."""
        layers = SYSTEM, tar_of({"first": b"1"})
        return base_of(*layers, compression=compression, settings={"Labels": {"of": self.name}})

    def build(self, tag: str, *lines: str) -> str:
        """Have the engine build on the first image; gives the new one's ID."""
        (self.folder / "Dockerfile").write_text("\n".join([f"FROM {self.name}:first", *lines]))
        self.engine.docker("build", "-q", "-t", f"{self.name}:{tag}", str(self.folder))
        return self.identity(tag)

    def identity(self, tag: str) -> str:
        return self.engine.docker("image", "inspect", "-f", "{{.Id}}", f"{self.name}:{tag}").stdout.strip()

    def reference(self, tag: str) -> str:
        return f"{ENGINE_SCHEME}{self.name}:{tag}"


@pytest.fixture
def images(engine: DockerEngine, tmp_path: Path) -> Iterator[Images]:
    """An image in the engine, and whatever the test builds on it; removed in the end."""
    (tmp_path / "context").mkdir()
    found = Images(engine, tmp_path / "context")
    yield found
    listed = engine.docker("image", "ls", "-q", "--filter", f"label=of={found.name}").stdout.split()
    engine.docker("image", "rm", "-f", *dict.fromkeys(listed), check=False)


@pytest.fixture
def world(tmp_path: Path, engine: DockerEngine) -> World:
    """A machine with the engine and a channel."""
    world = World.make(tmp_path)
    world.config = replace(world.config, docker_host=engine.host, base=None)
    return world


def definition(world: World, base: str, *names: str) -> Path:
    path = world.root / f"{uuid.uuid4().hex}.yaml"
    conda = {"channels": ["tiny"], "dependencies": list(names or ("thing", "tool=1"))}
    path.write_text(json.dumps({"base": base, "conda": conda}))
    return path


def digest_of(config: Config, base: str) -> Digest:
    bases = Bases(Registries(frozenset()), Index(config.cache_dir), 3600.0, config.docker_host)
    found = bases.digest(parse_engine_reference(base), LINUX_AMD64, NO_DEADLINE)
    assert found is not None
    return found


def test_the_digest_is_of_config_and_uncompressed_layers_however_they_are_stored(
    world: World, images: Images, tmp_path: Path
) -> None:
    found = digest_of(world.config, images.reference("first"))
    manifest = LayoutRegistry(Repository.parse(f"oci:{world.config.cache_dir}/{FOLDER}")).get_manifest(found)
    assert isinstance(manifest, Manifest)
    assert manifest.config.digest == Digest.of(images.base.config)
    assert [layer.media_type for layer in manifest.layers] == [OCI_LAYER, OCI_LAYER]
    assert [layer.digest for layer in manifest.layers] == [
        Digest.of(SYSTEM),
        Digest.of(tar_of({"first": b"1"})),
    ]
    # The containerd store hands out the layers as they were compressed, in an archive of the same form.
    for compression in ("gzip", "none"):
        image = images.first(compression)
        chunks = image_chunks(image.config, image.manifest.layers, image.open_blob, "any:tag")
        (folder := tmp_path / compression).mkdir()
        saved = unpack_image(io.BytesIO(b"".join(chunks)), folder)
        elsewhere = LocalImages(tmp_path / f"cache-{compression}")
        assert elsewhere._store(saved, Tag("id-1")) == found


def test_what_is_built_on_it_can_be_pushed_pulled_and_run(
    world: World, images: Images, registry: RegistryServer
) -> None:
    images.build("made", "ENV MADE=by-docker", "RUN touch /made")
    workspace = registry.repository(f"local-{uuid.uuid4().hex}")
    config = replace(world.config, workspace=workspace)
    with Resolver(config) as resolver:
        built = resolver.resolve(definition(world, images.reference("made")))
    assert built.source is Source.BUILT
    with Resolver(replace(config, cache_dir=world.root / "elsewhere")) as resolver:
        again = resolver.resolve(definition(world, images.reference("made")))
    assert (again.reference, again.source) == (built.reference, Source.WORKSPACE)
    script = "cat /opt/env/share/tool/data; echo $MADE; ls /made /first"
    try:
        seen = images.engine.docker("run", "--rm", str(built.reference), "sh", "-c", script)
    finally:
        images.engine.docker("image", "rm", "-f", str(built.reference), check=False)
    assert seen.stdout.split() == ["oneby-docker", "/first", "/made"]


def test_a_name_is_asked_each_time_and_an_id_for_ever(world: World, images: Images) -> None:
    first = images.build("made", "ENV A=1")
    keys = []
    with Resolver(world.config) as resolver:
        keys.append(resolver.key(definition(world, images.reference("made"))))
        keys.append(resolver.key(definition(world, images.reference("made"))))
        images.build("made", "ENV A=2")
        keys.append(resolver.key(definition(world, images.reference("made"))))
        keys.append(resolver.key(definition(world, f"{ENGINE_SCHEME}{first}")))
    assert keys[0] == keys[1] == keys[3] != keys[2]


def test_it_is_read_once_and_again_where_it_was_deleted(
    world: World, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []
    export = LocalImages._export

    def counted(self: LocalImages, *arguments: object) -> Digest:
        exported.append("once")
        return export(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalImages, "_export", counted)
    found = digest_of(world.config, images.reference("first"))
    assert digest_of(world.config, images.reference("first")) == found
    assert len(exported) == 1
    (layer,) = world.config.cache_dir.glob(f"{FOLDER}/blobs/sha256/{Digest.of(SYSTEM).hex}")
    layer.unlink()
    assert digest_of(world.config, images.reference("first")) == found
    assert len(exported) == 2
    assert {path.name for path in world.config.cache_dir.glob(f"{FOLDER}*")} == {FOLDER}


def test_a_pinned_base_needs_an_engine_only_to_build(world: World, images: Images) -> None:
    digest = digest_of(world.config, images.reference("first"))
    pinned = definition(world, f"{ENGINE_SCHEME}{images.name}@{digest}")
    without = replace(world.other_machine(), docker_host=NOBODY)
    with Resolver(world.config) as resolver:
        built = resolver.resolve(pinned)
        assert resolver.resolve(definition(world, images.reference("first"))).reference == built.reference
    with Resolver(without) as resolver:
        found = resolver.resolve(pinned)
        assert (found.reference, found.source) == (built.reference, Source.WORKSPACE)
        other = definition(world, f"{ENGINE_SCHEME}{images.name}@{digest}", "tool=2")
        with pytest.raises(BuildError, match="none answered"):
            resolver.resolve(other)
    with Resolver(world.other_machine()) as resolver:
        images.build("later", "ENV A=1")
        assert resolver.resolve(other).source is Source.BUILT
        gone = definition(world, f"{ENGINE_SCHEME}{images.name}@{Digest('0' * 64)}", "tool=2")
        with pytest.raises(SpecError, match="has no image"):
            resolver.resolve(gone)


def test_a_lock_holds_the_base_though_its_name_moves(world: World, images: Images) -> None:
    images.build("made", "ENV A=1")
    spec = definition(world, images.reference("made"))
    with Resolver(world.config, locks=LockPolicy(ignored=True)) as resolver:
        lock = make_lock(resolver, resolver.load(spec), world.root)
        before = resolver.key(spec)
    lock.write(world.root / "envbuild.lock")
    assert lock.entries[0].base == images.reference("made")
    images.build("made", "ENV A=2")
    with Resolver(world.config) as resolver:
        assert resolver.key(spec) == before
        assert resolver.resolve(spec).source is Source.BUILT
        assert resolver.key(world.root / "envbuild.lock") == before


def test_environments_are_rebased_onto_it(
    world: World, images: Images, capfd: pytest.CaptureFixture[str]
) -> None:
    images.build("made", "ENV A=1")
    with Resolver(world.config) as resolver:
        old = resolver.resolve(definition(world, images.reference("first"))).reference
    words = ["--workspace", str(world.config.workspace), "--cache-dir", str(world.config.cache_dir)]
    words += ["--docker-host", images.engine.host, "--base", images.reference("made"), str(old)]
    assert exit_code_of(["rebase", "--quiet", *words]) == 0
    rebased = capfd.readouterr().out
    with Resolver(world.other_machine()) as resolver:
        found = resolver.resolve(definition(world, images.reference("made")), build=False)
    assert str(found.reference) in rebased


def test_what_is_no_such_image_is_refused(world: World, images: Images) -> None:
    with Resolver(world.config) as resolver:
        with pytest.raises(SpecError, match=f"has no image {ENGINE_SCHEME}{images.name}:none") as caught:
            resolver.key(definition(world, images.reference("none")))
        assert "docker image ls" in (caught.value.hint or "")
        arm = replace(
            resolver.load(definition(world, images.reference("first"))),
            platforms=(Platform("linux", "arm64"),),
        )
        with pytest.raises(SpecError, match="is for linux/amd64, not for linux/arm64"):
            resolver.key(arm)
    with (
        Resolver(replace(world.config, docker_host=NOBODY)) as resolver,
        pytest.raises(BuildError, match="none answered"),
    ):
        resolver.key(definition(world, images.reference("first")))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("docker-daemon:base", "docker-daemon:base:latest"),
        ("docker-daemon:localhost:5000/team/base:1.0", "docker-daemon:localhost:5000/team/base:1.0"),
        (f"docker-daemon:sha256:{'a' * 64}", f"docker-daemon:sha256:{'a' * 64}"),
        (f"docker-daemon:base:1@sha256:{'a' * 64}", f"docker-daemon:base@sha256:{'a' * 64}"),
    ],
)
def test_references(text: str, shown: str) -> None:
    found = parse_engine_reference(text)
    assert str(found) == shown
    assert parse_engine_reference(shown) == found
    assert isinstance(found, ImageReference) == ("@" in text)
    with pytest.raises(SpecError, match="is in a Docker Engine, expected a registry"):
        open_registry(found.repository)


@pytest.mark.parametrize("text", ["docker-daemon:", "docker-daemon:oci:/folder", "docker-daemon:Base"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(SpecError):
        parse_engine_reference(text)


def test_a_killed_export_leaves_nothing_that_stays(world: World, images: Images) -> None:
    left = world.config.cache_dir / f"{FOLDER}.id-{images.identity('first').removeprefix('sha256:')}"
    left.mkdir(parents=True)
    (left / "1").write_bytes(b"half")
    found = digest_of(world.config, images.reference("first"))
    assert not left.exists()
    assert exit_code_of(["cache", "clear", "--cache-dir", str(world.config.cache_dir)]) == 0
    assert not (world.config.cache_dir / FOLDER).exists()
    assert digest_of(world.config, images.reference("first")) == found
