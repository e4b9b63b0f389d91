"""What attaching costs for 75 packages: bytes, requests to a real registry, processor time."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from envbuild import attach, publishing
from envbuild.build.assemble import Layer
from envbuild.build.recipe import Recipe, put_recipe, recipe_tag
from envbuild.digest import Descriptor, Digest
from envbuild.index import Index
from envbuild.key import CanonicalForm
from envbuild.lock import Lock, PackageRecord
from envbuild.oci import referrers
from envbuild.oci.manifest import OCI_EMPTY, OCI_LAYER_GZIP
from envbuild.oci.referrers import Artifact
from envbuild.oci.remote import RemoteRegistry
from envbuild.platform import Platform
from envbuild.resolver import Resolver
from envbuild.spec.environment import load
from oci_contract import put_image
from parts.registry_server import RegistryServer
from tiny import World

COUNT = 75
CHANNEL = "https://conda.anaconda.org/conda-forge"


def package(number: int, digits: random.Random) -> PackageRecord:
    name = f"package-{number}"
    return PackageRecord(
        name=name,
        version=f"1.{number}.0",
        build=f"py311h{number:07x}_0",
        build_number=0,
        subdir="linux-64",
        url=f"{CHANNEL}/linux-64/{name}-1.{number}.0-py311h{number:07x}_0.conda",
        sha256=Digest(digits.randbytes(32).hex()),
        size=digits.randrange(1 << 24),
        md5=digits.randbytes(16).hex(),
        depends=("__glibc >=2.17,<3.0.a0", "python >=3.11,<3.12.0a0", f"package-{number // 2} >=1.0"),
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


@pytest.fixture
def made(tmp_path: Path) -> attach.Made:
    path = tmp_path / "environment.yml"
    path.write_text("channels: [conda-forge]\ndependencies: [package-1=1.1, package-2, package-3]\n")
    base = Digest.of(b"base")
    form = CanonicalForm.of(load(path, base=f"example.com/base@{base}"), base, Platform("linux", "amd64"))
    digits = random.Random(1)
    lock = Lock.of(Platform("linux", "amd64"), [package(number, digits) for number in range(COUNT)])
    return attach.Made(form, base, "example.com/base:1", lock, (), datetime.now(UTC), path.name)


@pytest.fixture
def target(registry: RegistryServer) -> RemoteRegistry:
    return RemoteRegistry(registry.repository("cost"))


def artifacts(
    made: attach.Made, target: RemoteRegistry, subject: Descriptor, *, sboms: bool
) -> list[Artifact]:
    return list(attach.describe(made, target, subject, sboms=sboms))


@pytest.mark.parametrize(("sboms", "limit"), [(False, 20_000), (True, 90_000)])
def test_the_bytes(made: attach.Made, target: RemoteRegistry, sboms: bool, limit: int) -> None:
    subject = Descriptor.of(b"image", "text/plain")
    found = artifacts(made, target, subject, sboms=sboms)
    assert sum(len(each.content) + len(each.manifest(subject).raw) for each in found) < limit
    assert len(found) == (5 if sboms else 3)


def test_the_bytes_of_a_recipe(made: attach.Made) -> None:
    digits = random.Random(2)
    layers = tuple(
        Layer(
            Descriptor(OCI_LAYER_GZIP, Digest(digits.randbytes(32).hex()), digits.randrange(1 << 24)),
            Digest(digits.randbytes(32).hex()),
            str(package),
        )
        for package in made.lock.packages
    )
    assert len(Recipe(made.form, "0" * 64, made.lock, layers).to_text()) < 24_000


def test_the_processor_time(made: attach.Made, target: RemoteRegistry) -> None:
    """What is always attached takes little more than its lock alone, which takes a few milliseconds."""
    subject = Descriptor.of(b"image", "text/plain")

    def all_of_it() -> None:
        for each in artifacts(made, target, subject, sboms=False):
            each.manifest(subject)

    lock = attach.lock_of(made)
    pairs = [(thread_time(all_of_it), thread_time(lock.to_bytes)) for _ in range(20)]
    assert min(whole for whole, _ in pairs) < 3 * min(alone for _, alone in pairs)


def thread_time(action: Callable[[], object]) -> float:
    started = time.thread_time()
    action()
    return time.thread_time() - started


def attaching(
    made: attach.Made, target: RemoteRegistry, server: RegistryServer, locks: Path, has_api: bool | None
) -> list[str]:
    """The requests of attaching to a new image, as ``METHOD KIND STATUS``."""
    subject = new_image(target, str(locks))
    found = artifacts(made, target, subject, sboms=False)
    before = len(server.requests)
    referrers.attach(target, subject, found, locks=locks, new_types=True, has_empty=True, has_api=has_api)
    return asked_since(before, target, server)


def new_image(target: RemoteRegistry, name: str) -> Descriptor:
    """An image, and beside it the blob that artifacts have for a config."""
    image = put_image(target, name)
    target.put_manifest(image)
    empty = Descriptor.of(referrers.EMPTY, OCI_EMPTY)
    target.put_blob(empty, lambda: io.BytesIO(referrers.EMPTY))
    return image.descriptor


def asked_since(before: int, target: RemoteRegistry, server: RegistryServer) -> list[str]:
    return sorted(_kind(each) for each in server.requests[before:] if f"/{target.repository.path}/" in each)


def _kind(request: str) -> str:
    method, path, status = request.split()
    kinds = ("blobs/uploads", "referrers", "manifests/sha256-", "manifests", "blobs")
    return f"{method} {next(kind for kind in kinds if f'/{kind}' in path)} {status}"


BLOBS = [*["PUT blobs/uploads 201"] * 3, *["POST blobs/uploads 202"] * 3]
MANIFESTS = ["PUT manifests 201"] * 3
LIST = ["GET manifests/sha256- 404", "PUT manifests/sha256- 201", "GET manifests/sha256- 200"]


def test_the_requests(
    made: attach.Made, target: RemoteRegistry, registry: RegistryServer, tmp_path: Path
) -> None:
    known = attaching(made, target, registry, tmp_path / "a", has_api=False)
    assert known == sorted([*BLOBS, *MANIFESTS, *LIST])
    asked = attaching(made, target, registry, tmp_path / "b", has_api=None)
    assert asked == sorted([*known, "GET referrers 404"])
    target.close()


def test_what_is_attached_already_is_not_put_again(
    made: attach.Made, target: RemoteRegistry, registry: RegistryServer, tmp_path: Path
) -> None:
    subject = new_image(target, "again")
    found = artifacts(made, target, subject, sboms=False)
    referrers.attach(target, subject, found, locks=tmp_path)
    before = len(registry.requests)
    done = referrers.attach(
        target, subject, found, locks=tmp_path, new_types=True, has_empty=True, has_api=False
    )
    assert done == ()
    assert asked_since(before, target, registry) == sorted([*BLOBS, "GET manifests/sha256- 200"])
    target.close()


def test_what_a_small_change_asks(world: World, registry: RegistryServer) -> None:
    config = replace(world.config, workspace=registry.repository("change"))
    with Resolver(config) as resolver:
        resolver.resolve(world.spec("tool=1", "thing"))
        before = len(registry.requests)
        resolver.resolve(world.spec("tool=2", "thing"))
    asked = [each for each in registry.requests[before:] if f"/{config.workspace.path}/" in each]
    layers = [each for each in asked if "/layers/" in each]
    # looked for, then mounted and described
    assert sorted(map(_kind, layers)) == ["GET manifests 404", "POST blobs/uploads 201", "PUT manifests 201"]
    kinds = sorted(map(_kind, (each for each in asked if each not in layers)))
    # layer, history and config; the image by its digest and its two tags, and the recipe; one is read back
    image = [*BLOBS, *["PUT manifests 201"] * 4, *["GET manifests 404"] * 5, "GET manifests 200"]
    assert kinds == sorted([*image, *BLOBS, *MANIFESTS, *LIST])


def test_a_recipe_brings_the_config_that_the_repository_lacks(
    made: attach.Made, target: RemoteRegistry
) -> None:
    recipe = Recipe(made.form, "0" * 64, made.lock, ())
    assert put_recipe(target, recipe, made.form.key, has_config=True)
    found = target.get_manifest(recipe_tag(made.form.key))
    assert target.has_blob(next(iter(found.blobs)).digest)  # type: ignore[union-attr]
    target.close()


def test_whether_there_is_an_api_is_asked_once_a_day(
    target: RemoteRegistry, registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = publishing.Known(index=Index(tmp_path))
    before = len(registry.requests)
    assert known.tells_api(target) is False
    assert known.tells_api(target) is False
    assert asked_since(before, target, registry) == ["GET referrers 404"]
    later = time.time() + 90_000
    monkeypatch.setattr(time, "time", lambda: later)
    assert known.tells_api(target) is False
    assert len(asked_since(before, target, registry)) == 2
    target.close()
