"""Environments from their images: only from images that the policy trusts, and only what those are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cli_calls import Call
from envbuild.attach import lock_artifact
from envbuild.lock import Lock
from envbuild.lockfile.document import LockFile
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.referrers import attach, fallback_tag
from envbuild.reference import ImageReference, Repository
from envbuild.restore import restored
from test_trust import OTHERS, OURS, pem, public
from tiny import World
from tiny_wheels import TinyWheel, index
from wheel_world import spec as wheel_spec


@pytest.fixture
def keys(world: World) -> None:
    for name, key in (("ours", OURS), ("others", OTHERS)):
        (world.root / f"{name}.pem").write_bytes(pem(key))
        (world.root / f"{name}.pub").write_bytes(public(key))


def believing(
    world: World, monkeypatch: pytest.MonkeyPatch, who: str, more: str = "", *, sign: str = ""
) -> None:
    """From now on only images that somebody signed are trusted; what is built is signed by somebody."""
    text = f'sign_key = "{sign}.pem"\n' if sign else ""
    text += f'require_signed = true\nkeys = ["{who}.pub"]\n{more}'
    (world.root / "trust.toml").write_text(text)
    monkeypatch.setenv("ENVBUILD_TRUST", str(world.root / "trust.toml"))


def elsewhere(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVBUILD_WORKSPACE", f"oci:{world.root}/elsewhere")
    monkeypatch.setenv("ENVBUILD_CACHE_DIR", str(world.root / "other-cache"))


def relocked(world: World, image: ImageReference, change: object) -> None:
    """Attach another lock of the same key in place of the image's own."""
    registry = world.layout()
    found = restored(registry, image.digest)
    (entry,) = found.lock.entries
    registry.delete_manifest(registry.get_manifest(fallback_tag(image.digest)).descriptor.digest)
    made = LockFile.of(found.lock.definition, [change(entry)])  # type: ignore[operator]
    attach(
        registry, found.images[0].descriptor, [lock_artifact(made)], locks=world.config.cache_dir / "attach"
    )


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("on_failure", ["miss", "fail"])
@pytest.mark.parametrize("signed_by", ["", "others"])
def test_the_lock_of_an_image_that_is_not_trusted_is_refused(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch, signed_by: str, on_failure: str
) -> None:
    if signed_by:
        believing(world, monkeypatch, signed_by, sign=signed_by)
    image = call("resolve", world.spec("tool")).out.strip()
    assert image
    believing(world, monkeypatch, "ours", f'on_failure = "{on_failure}"\n')
    elsewhere(world, monkeypatch)
    for words in (("lock", "--from"), ("build", "--from-lock")):
        answer = call(*words, image)
        assert (answer.code, answer.out) == (7, "")
        assert ("not made with a key" if signed_by else "not signed") in answer.err
        assert "its lock is not used" in answer.err
    assert not (world.root / "envbuild.lock").exists()
    assert not (world.root / "elsewhere").exists()
    believing(
        world, monkeypatch, "others", f'[repositories."{world.config.workspace}"]\nrequire_signed = false\n'
    )
    assert call("lock", "--from", image).code == 0  # the rule of the repository that the image is in


@pytest.mark.usefixtures("keys")
def test_a_trusted_image_brings_its_environment_back(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    believing(world, monkeypatch, "ours", sign="ours")
    image = call("resolve", world.spec("tool", "pyth")).out.strip()
    assert call("lock", "--from", image).code == 0
    elsewhere(world, monkeypatch)
    (document,) = call("build", "--json", "--from-lock", image).documents
    assert document["digest"] == str(ImageReference.parse(image).digest)
    assert document["same"] is True


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("first", ["--no-lock", "--locked"])
def test_what_is_locked_is_signed_and_trusted_as_any_image(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    believing(world, monkeypatch, "ours", sign="ours")
    spec = world.spec("tool")
    assert call("lock", spec).code == 0
    image = call("resolve", first, spec).out
    monkeypatch.setenv("ENVBUILD_CACHE_DIR", str(world.root / "other-cache"))
    assert call("resolve", "--locked", "--no-build", spec).out == image
    believing(world, monkeypatch, "others")
    assert call("resolve", "--locked", "--no-build", spec).code == 3


def test_a_lock_of_other_packages_is_refused_before_it_is_used(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = ImageReference.parse(call("resolve", world.spec("tool", "thing")).out.strip())
    relocked(
        world,
        image,
        lambda entry: replace(entry, lock=Lock.of(entry.lock.platform, entry.lock.packages[:1])),
    )
    elsewhere(world, monkeypatch)
    for words in (("lock", "--from"), ("build", "--from-lock")):
        answer = call(*words, str(image))
        assert (answer.code, answer.out) == (7, "")
        assert "has the lock key" in answer.err
    assert not (world.root / "elsewhere").exists()


@pytest.mark.usefixtures("keys")
def test_a_lock_of_other_wheels_is_not_published(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    believing(world, monkeypatch, "ours", sign="ours")
    newer = TinyWheel("far", "2.0")
    with index([TinyWheel("far", "1.0"), newer]) as served:
        spec = wheel_spec(world, f"--index-url {served.url}/simple", "far<3", local=False)
        del served.kept[newer.file_name]
        image = ImageReference.parse(call("resolve", spec).out.strip())
        served.kept[newer.file_name] = newer

        def other(entry):  # type: ignore[no-untyped-def]
            (wheel,) = entry.pip
            url = wheel.url.replace("1.0", "2.0")
            sha256 = newer.distribution().sha256
            return replace(
                entry,
                pip=(
                    replace(
                        wheel, version="2.0", url=url, sha256=sha256, file_name=newer.file_name, size=None
                    ),
                ),
            )

        relocked(world, image, other)
        assert call("lock", "--from", str(image)).code == 7
        elsewhere(world, monkeypatch)
        answer = call("build", "--from-lock", str(image))
    assert (answer.code, answer.out) == (7, "")
    assert "has the lock key" in answer.err
    layout = world.root / "elsewhere" / "index.json"
    assert not layout.exists() or "k1-" not in layout.read_text()


def test_another_image_is_told_and_not_published(
    world: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = call("resolve", world.spec("tool", "thing")).out.strip()
    elsewhere(world, monkeypatch)
    answer = call("build", "--from-lock", image, "--max-layers", "3")
    assert (answer.code, answer.out) == (7, "")
    assert f"not the image {image}" in answer.err
    assert "of 4 layers alike" in answer.err
    answer = call("build", "--json", "--from-lock", image, "--max-layers", "3")
    assert (answer.code, answer.documents) == (7, [])
    assert answer.errors[0]["error"] == "IntegrityError"
    tags = LayoutRegistry(Repository.parse(f"oci:{world.root}/elsewhere")).tags()
    assert {tag.name[:2] for tag in tags} == {"l-"}  # layers of packages are right whatever image they are in


def test_an_image_is_compressed_as_it_was(world: World, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    image = call("resolve", "--compression", "zstd", world.spec("tool")).out.strip()
    elsewhere(world, monkeypatch)
    answer = call("build", "--from-lock", image)
    assert answer.code == 0, answer.err
    assert answer.out.strip().partition("@")[2] == image.partition("@")[2]
