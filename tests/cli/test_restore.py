"""Environments from their images alone: the attached lock, and the same image built of it elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli_calls import Call
from engine_bases import small_system
from envbuild.attach import LOCK_TYPE, lock_artifact
from envbuild.lockfile.document import LockFile
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.referrers import Artifact, attach, fallback_tag
from envbuild.reference import ImageReference, Repository
from envbuild.restore import attached_lock
from parts.docker_engine import DockerEngine
from tiny import World, make_base_of
from tiny_wheels import TinyWheel, index
from wheel_world import put
from wheel_world import spec as wheel_spec


def resolved(call: Call, *words: str | Path) -> str:
    answer = call("resolve", *words)
    assert answer.code == 0, answer.err
    return answer.out.strip()


def forgotten(world: World, *definitions: Path) -> None:
    """From now on nothing is left of an environment but its image, its packages and its base."""
    for path in definitions:
        path.unlink()
    shutil.rmtree(world.config.cache_dir)
    for path in (world.root / "channels").rglob("repodata*"):
        path.unlink()


def elsewhere(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of its own, whose workspace is empty."""
    monkeypatch.setenv("ENVBUILD_WORKSPACE", f"oci:{world.root}/elsewhere")
    monkeypatch.setenv("ENVBUILD_CACHE_DIR", str(world.root / "other-cache"))


def test_the_same_image_is_built_of_the_lock_alone(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world.spec("pyth", "thing", "tool=1", variables={"A": "b"})
    image = resolved(call, spec)
    forgotten(world, spec)
    elsewhere(world, monkeypatch)
    answer = call("build", "--from-lock", image)
    assert answer.code == 0, answer.err
    assert answer.out.strip() == f"oci:{world.root}/elsewhere@{ImageReference.parse(image).digest}"
    (document,) = call("build", "--json", "--from-lock", image).documents
    assert document["digest"] == str(ImageReference.parse(image).digest)


def test_the_attached_lock_is_the_one_that_was_not_written(world: World, call: Call) -> None:
    spec = world.spec("pyth", "tool=1")
    image = resolved(call, spec)
    answer = call("lock", "--from", image)
    assert (answer.code, answer.out) == (0, "envbuild.lock: 3 packages for linux/amd64\n")
    written = (world.root / "envbuild.lock").read_bytes()
    call("lock", spec)
    assert (world.root / "envbuild.lock").read_bytes() == written
    assert call("lock", "--from", image, "-o", "-").out.encode() == written
    assert resolved(call, "--locked", "--no-build", spec) == image
    forgotten(world, spec)
    assert call("build", world.root / "envbuild.lock").out.strip() == image


def test_a_lock_in_another_folder_names_the_base_from_there(world: World, call: Call) -> None:
    image = resolved(call, world.spec("tool"))
    (world.root / "deep" / "er").mkdir(parents=True)
    assert call("lock", "--from", image, "-o", "deep/er/envbuild.lock").code == 0
    lock = LockFile.read(world.root / "deep/er/envbuild.lock")
    assert lock.entries[0].base == "oci:../../bases:minimal"
    assert call("build", "deep/er/envbuild.lock").out.strip() == image


def test_the_base_may_have_moved(world: World, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    image = resolved(call, world.spec("tool"))
    (world.root / "bases").rename(world.root / "moved")
    elsewhere(world, monkeypatch)
    assert call("build", "--from-lock", image).code == 2
    answer = call("build", "--from-lock", image, "--base", "oci:moved")
    assert answer.out.strip().endswith(str(ImageReference.parse(image).digest))
    assert call("lock", "--from", image, "--base", "oci:moved", "--format", "explicit").code == 0
    assert "@EXPLICIT" in (world.root / "explicit.txt").read_text()
    assert "a base, which" in call("lock", "--from", image, "--format", "explicit").err


def test_wheels_are_in_the_lock_of_an_image(world: World, call: Call) -> None:
    put(world, TinyWheel("small"), TinyWheel("dep"))
    spec = wheel_spec(world, "small")
    image = resolved(call, spec)
    put(world, TinyWheel("unrelated"))
    spec = wheel_spec(world, "small")
    assert call("lock", "--from", image).out == "envbuild.lock: 1 package and 1 wheel for linux/amd64\n"
    (entry,) = LockFile.read(world.root / "envbuild.lock").entries
    assert [str(wheel) for wheel in entry.pip] == [f"small {TinyWheel('small').version}"]
    assert entry.pip[0].sha256 == TinyWheel("small").distribution().sha256
    answer = call("build", "--from-lock", image)
    assert (answer.code, "files, which a lock does not hold" in answer.err) == (2, True)


def test_wheels_of_an_index_are_installed_again(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with index([TinyWheel("far", "1.0")]) as served:
        spec = wheel_spec(world, f"--index-url {served.url}/simple", "far", local=False)
        image = resolved(call, spec)
        forgotten(world, spec)
        newer = TinyWheel("far", "2.0")
        served.kept[newer.file_name] = newer
        elsewhere(world, monkeypatch)
        answer = call("build", "--from-lock", image)
    assert answer.code == 0, answer.err
    assert answer.out.strip().endswith(str(ImageReference.parse(image).digest))


def test_an_index_has_the_locks_of_its_images(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.root / "envbuild.yaml"
    path.write_text(
        '{"base": "scratch", "platforms": ["linux/amd64", "linux/arm64"], "variables": {"A": "b"},'
        '"conda": {"channels": ["tiny"], "dependencies": []}}'
    )
    image = resolved(call, path)
    assert len(call("lock", "--from", image).out.splitlines()) == 2
    lock = LockFile.read(world.root / "envbuild.lock")
    assert lock.definition == "envbuild.yaml"
    locked = resolved(call, "--locked", path)
    assert (locked != image, _manifests(locked)) == (True, _manifests(image))
    elsewhere(world, monkeypatch)
    assert "--platform" in call("build", "--from-lock", image).err
    one = call("build", "--from-lock", image, "--platform", "linux/arm64").out.strip()
    digests = [entry.digest for entry in _manifests(image)]
    assert ImageReference.parse(one).digest == digests[1]
    answer = call("lock", "--from", image, "--platform", "linux/s390x")
    assert (answer.code, "no image for linux/s390x" in answer.err) == (2, True)


def _manifests(image: str) -> tuple:  # type: ignore[type-arg]
    reference = ImageReference.parse(image)
    return LayoutRegistry(reference.repository).get_manifest(reference.digest).manifests  # type: ignore[union-attr]


@pytest.mark.xdist_group("engine")
def test_steps_are_taken_from_where_the_image_is(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch, engine: DockerEngine
) -> None:
    make_base_of(Repository.parse(f"oci:{world.root}/bases"), "system", small_system(), User="root")
    monkeypatch.setenv("ENVBUILD_DOCKER_HOST", engine.host)
    path = world.root / "envbuild.yaml"
    path.write_text(
        f"base: oci:{world.root}/bases:system\nsteps: RUN head -c 20 /dev/urandom > /random\n"
        "conda: {channels: [tiny], dependencies: [tool]}\n"
    )
    image = resolved(call, path)
    forgotten(world, path)
    elsewhere(world, monkeypatch)
    answer = call("build", "--from-lock", image)
    assert answer.code == 0, answer.err
    assert answer.out.strip().endswith(str(ImageReference.parse(image).digest))


def test_an_image_without_a_lock_says_so(world: World, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVBUILD_ATTACH", "false")
    image = resolved(call, world.spec("tool"))
    answer = call("lock", "--from", image)
    assert (answer.code, "no lock is attached" in answer.err) == (2, True)
    assert call("lock", "--from", f"oci:{world.root}/workspace:nothing").code == 4


def test_a_lock_that_was_attached_as_it_is_is_read(world: World, call: Call) -> None:
    """Registries hold locks that are not compressed."""
    image = ImageReference.parse(resolved(call, world.spec("tool=1")))
    layout = LayoutRegistry(image.repository)
    lock = attached_lock(layout, image.digest)
    layout.put_manifest(ImageIndex.build((), {}), fallback_tag(image.digest))
    subject = layout.get_manifest(image.digest).descriptor
    plain = Artifact(LOCK_TYPE, LOCK_TYPE, lock.to_bytes(), {}, "envbuild.lock")
    attach(layout, subject, [plain], locks=world.config.cache_dir)
    answer = call("lock", "--from", str(image), "-o", str(world.root / "brought.lock"))
    assert answer.code == 0, answer.err
    (brought,), (entry,) = LockFile.read(world.root / "brought.lock").entries, lock.entries
    assert (brought.key, brought.lock) == (entry.key, entry.lock)


def test_the_lock_of_another_image_is_refused(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ImageReference.parse(resolved(call, world.spec("tool=1")))
    layout = LayoutRegistry(other.repository)
    lock = attached_lock(layout, other.digest)
    monkeypatch.setenv("ENVBUILD_ATTACH", "false")
    image = ImageReference.parse(resolved(call, world.spec("tool=2")))
    subject = layout.get_manifest(image.digest).descriptor
    attach(layout, subject, [lock_artifact(lock)], locks=world.config.cache_dir)
    answer = call("lock", "--from", str(image))
    assert (answer.code, "is not that of the key" in answer.err) == (7, True)


@pytest.mark.parametrize(
    "words",
    [
        ("lock",),
        ("lock", "--from", "x", "y"),
        ("lock", "--from", "x", "--check"),
        ("build",),
        ("build", "--from-lock", "x", "y"),
        ("build", "--from-lock", "x", "--dry-run"),
    ],
)
def test_usage(call: Call, words: tuple[str, ...]) -> None:
    assert call(*words).code == 2
