"""Row 5: what is built is what was hashed, though the files change in between."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from envbuild.build.base import decompressed
from envbuild.digest import Digest
from envbuild.key import CanonicalForm, Key
from envbuild.lockfile import FILE_NAME, LockPolicy
from envbuild.locking import make_lock
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.platform import LINUX_AMD64
from envbuild.reference import Repository
from envbuild.resolver import Resolver, Source
from envbuild.spec.environment import load
from tiny import World
from tiny_wheels import TinyWheel
from wheel_world import wheel_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.progress import Event
    from envbuild.resolver import ResolvedImage

DATA = "opt/env/share/tool/data"
CONTENT = {"1.0": b"one", "2.0": b"two"}


def data_of(image: ResolvedImage) -> bytes:
    """The file that tells the versions of the tool apart."""
    registry = LayoutRegistry(image.reference.repository)
    manifest = registry.get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    for layer in manifest.layers:
        with registry.open_blob(layer) as stream:
            raw = b"".join(decompressed(stream, layer.media_type))
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            for member in archive:
                if member.name.lstrip("./") == DATA and (content := archive.extractfile(member)) is not None:
                    return content.read()
    raise AssertionError(f"no {DATA}")


def swap_in_mid_build(world: World, seed: int) -> None:
    """Resolve a definition that is overwritten at some event of its own build."""
    random = Random(seed)
    first, second = random.sample(sorted(CONTENT), 2)
    extra = f"V{seed}"
    path = world.spec(f"tool=={first}", name=f"environment-{seed}.yml", variables={extra: "1"})
    left = random.randint(0, 3)
    swapped = False

    def swap(_: Event) -> None:
        nonlocal left, swapped
        left -= 1
        if left < 0 and not swapped:
            world.spec(f"tool=={second}", name=path.name, variables={extra: "1"})
            swapped = True

    with Resolver(world.config) as resolver:
        expected = resolver.key(path)
    with Resolver(world.config, progress=swap) as resolver:
        image = resolver.resolve(path)
    assert swapped, f"seed {seed}: nothing was told of the build"
    with Resolver(world.config) as resolver:
        assert resolver.key(path) != expected
    assert image.key == expected, f"seed {seed}"
    assert data_of(image) == CONTENT[first], f"seed {seed}"
    manifest = LayoutRegistry(image.reference.repository).get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    assert manifest.annotations["io.envbuild.key"] == str(expected)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel and a base."""
    return World.make(tmp_path)


def test_a_definition_swapped_in_mid_build(world: World) -> None:
    for seed in range(6):
        swap_in_mid_build(world, seed)


@pytest.mark.nightly
def test_a_definition_swapped_in_mid_build_100_times(world: World) -> None:
    print("seeds 100 to 199")  # noqa: T201
    for seed in range(100, 200):
        swap_in_mid_build(world, seed)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Files of a context that change all the time, in every way that a file can."""
    stop = threading.Event()

    def change() -> None:
        random = Random(0)
        while not stop.is_set():
            path = folder / f"f{random.randint(0, 4)}"
            replacement = folder.parent / "replacement"
            replacement.write_bytes(random.randbytes(random.randint(0, 4000)))
            replacement.chmod(random.choice([0o644, 0o755]))
            if random.random() < 0.5:
                replacement.replace(path)
            else:
                path.write_bytes(random.randbytes(random.randint(0, 4000)))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_context_swapped_while_it_is_read_100_times(tmp_path: Path) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    for number in range(5):
        (folder / f"f{number}").write_bytes(b"x")
    (tmp_path / "envbuild.yaml").write_text("base: debian\nsteps: {file: s, context: context}\n")
    (tmp_path / "s").write_text("COPY . /d\n")
    keys: set[Key] = set()
    with changing(folder):
        for _ in range(100):
            spec = load(tmp_path / "envbuild.yaml")
            assert spec.steps is not None
            form = CanonicalForm.of(spec, Digest("a" * 64), LINUX_AMD64)
            hashed = {
                entry["path"]: (entry["sha256"], entry["executable"])
                for entry in json.loads(form.to_json())["steps"]["context"]
            }
            keys.add(form.key)
            with spec.steps.build_context() as stream, tarfile.open(fileobj=stream) as archive:
                built = {}
                for member in archive:
                    content = archive.extractfile(member)
                    assert content is not None
                    built[member.name] = (
                        hashlib.sha256(content.read()).hexdigest(),
                        bool(member.mode & 0o100),
                    )
            assert built == hashed
    assert len(keys) > 1, "the files did change between the turns"


@dataclass(frozen=True)
class Input:
    """A file that a definition reads.

    Attributes:
        path: The file, relative to the definition.
        content: What takes its place; None takes it away.
        in_key: Whether the definition's key depends on it.
    """

    path: str
    content: bytes | None
    in_key: bool = True


def newer(wheel: TinyWheel) -> bytes:
    return replace(wheel, files={"new.py": b"new"}).to_bytes()


MINE, DEP = TinyWheel("mine"), TinyWheel("dep", "2.0")
INPUTS = {
    "the definition": Input("envbuild.yaml", b"pip: [small]\n"),
    "the Conda file": Input("environment.yml", b"channels: [tiny]\ndependencies: [tool=2]\n"),
    "the requirements": Input("requirements.txt", b"--no-index\n"),
    "an included file": Input("more.txt", b"top\n"),
    "constraints": Input("limits.txt", b"dep<2\n"),
    "a wheel": Input(MINE.file_name, newer(MINE)),
    "a wheel that goes away": Input(MINE.file_name, None),
    "a wheel in links": Input(f"links/{DEP.file_name}", newer(DEP)),
    "a wheel that comes into links": Input(
        "links/dep-9.0-py3-none-any.whl", TinyWheel("dep", "9.0").to_bytes()
    ),
    "a wheel that goes out of links": Input(f"links/{DEP.file_name}", None),
    "the lock": Input("envbuild.lock", b"{}", in_key=False),
}


def definition(root: Path) -> tuple[World, Path]:
    """A machine with a definition that reads files of every kind."""
    world = wheel_world(root)
    MINE.put(root)
    (root / "environment.yml").write_text("channels: [tiny]\ndependencies: [python, tool=1]\n")
    lines = f"--no-index\n--find-links ./links\n-r more.txt\n-c limits.txt\n./{MINE.file_name}\n"
    (root / "requirements.txt").write_text(lines)
    (root / "more.txt").write_text("top\nsmall\n")
    (root / "limits.txt").write_text("dep<99\n")
    path = root / "envbuild.yaml"
    path.write_text("conda: environment.yml\npip: requirements.txt\n")
    return world, path


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("after", [0, 4])
def test_an_input_swapped_between_key_and_build(tmp_path: Path, name: str, after: int) -> None:
    """The image is that of the bytes that were hashed, whenever in its build an input is swapped."""
    swapped = INPUTS[name]
    world, path = definition(tmp_path)
    policy = LockPolicy(required=name == "the lock", ignored=name != "the lock")
    with Resolver(world.config) as resolver:
        make_lock(resolver, load(path, base=world.config.base), tmp_path).write(tmp_path / FILE_NAME)
    elsewhere = world.other_machine(workspace=Repository.parse(f"oci:{tmp_path}/undisturbed"))
    with Resolver(elsewhere, locks=policy) as resolver:
        undisturbed = resolver.resolve(path)
    left = after

    def swap(_: Event) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            file = tmp_path / swapped.path
            file.unlink(missing_ok=True)
            if swapped.content is not None:
                file.write_bytes(swapped.content)

    with Resolver(world.other_machine(), progress=swap, locks=policy) as resolver:
        image = resolver.resolve(path)
    assert left < 0, "nothing was swapped"
    assert image.source is Source.BUILT
    assert image.reference.digest == undisturbed.reference.digest
    assert image.key == undisturbed.key
    if swapped.in_key and swapped.content is not None:
        with Resolver(world.config) as resolver:
            assert resolver.key(path) != image.key
