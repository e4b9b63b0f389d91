"""A blob's body that is wrong once, through a proxy or from a mirror: it is asked for again, never used."""

from __future__ import annotations

import uuid
from random import Random
from typing import TYPE_CHECKING

import pytest

from envbuild.digest import Descriptor
from envbuild.errors import IntegrityError
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, Manifest
from envbuild.oci.mirror import on_mirror
from envbuild.oci.registries import Registries
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository
from envbuild.verify import verify
from oci_contract import Source, put, read
from parts.fault_proxy import Case, FaultProxy, proxying
from parts.toxic import login

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.oci.registry import Registry
    from parts.registry_server import RegistryServer

SIZES = {"small": 1000, "medium": 2 << 20, "large": 9 << 20}
"""Below what is read whole from a registry, below what is read whole from a mirror, and above both."""


@pytest.fixture(scope="module")
def proxy(registry: RegistryServer) -> Iterator[FaultProxy]:
    with proxying(registry.port, "127.0.0.1:9") as made:
        yield made


@pytest.fixture
def name() -> str:
    return f"wrong{uuid.uuid4().hex[:12]}"


@pytest.fixture
def direct(registry: RegistryServer, name: str) -> Iterator[RemoteRegistry]:
    opened = RemoteRegistry(Repository.parse(f"{registry.host}/{name}/envs"))
    yield opened
    opened.close()


@pytest.fixture
def behind(
    proxy: FaultProxy, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RemoteRegistry]:
    login(tmp_path, monkeypatch, proxy)
    opened = RemoteRegistry(Repository.parse(f"{proxy.host}/{name}/envs"))
    yield opened
    opened.close()


def stored(direct: RemoteRegistry, size: str) -> tuple[Manifest, Descriptor]:
    content = Random(size).randbytes(SIZES[size])
    blob = Descriptor.of(content, OCI_LAYER_GZIP)
    direct.put_blob(blob, Source(content))
    manifest = Manifest.build(put(direct, b"{}", OCI_CONFIG), (blob,), {})
    direct.put_manifest(manifest)
    return manifest, blob


def faulty(proxy: FaultProxy, name: str, registry: Registry, manifest: Manifest, case: Case) -> Case:
    """Have faults from here on; the token is there, so that what is asked for is what is answered wrongly."""
    proxy.add(name, Case())
    registry.get_manifest(manifest.descriptor.digest)
    return proxy.add(name, case)


def is_whole(registry: Registry, manifest: Manifest) -> bool:
    """Whether ``envbuild verify --full`` finds every blob as it should be."""
    report = verify(registry, manifest.descriptor.digest, full=True)
    return {check.name: check.passed for check in report.checks}["blobs"] is True


def reads(case: Case) -> int:
    return sum(operation == "get blob" for operation, _ in case.asked)


@pytest.mark.parametrize("fault", ["corrupt", "other body", "wrong length"])
@pytest.mark.parametrize("size", SIZES)
def test_a_copy_reads_it_again(
    proxy: FaultProxy,
    direct: RemoteRegistry,
    behind: RemoteRegistry,
    tmp_path: Path,
    name: str,
    size: str,
    fault: str,
) -> None:
    manifest, blob = stored(direct, size)
    target = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/copy"))
    case = faulty(proxy, name, behind, manifest, Case("get blob", fault, times=1))
    copy_image(behind, target, manifest, jobs=1)
    target.put_manifest(manifest)
    assert case.failed == 1
    assert 3 <= reads(case) <= 4  # what was cut is taken up where it broke, and then begun again
    assert is_whole(target, manifest)
    assert len(read(target, blob)) == SIZES[size]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_sent_again_to_a_registry(
    proxy: FaultProxy,
    direct: RemoteRegistry,
    behind: RemoteRegistry,
    second_registry: RegistryServer,
    name: str,
    size: str,
) -> None:
    manifest, blob = stored(direct, size)
    target = RemoteRegistry(Repository.parse(f"{second_registry.host}/{name}/copy"))
    case = faulty(proxy, name, behind, manifest, Case("get blob", "corrupt", times=1))
    copy_image(behind, target, manifest, jobs=1)
    target.put_manifest(manifest)
    assert (case.failed, reads(case)) == (1, 3)
    assert len(read(target, blob)) == SIZES[size]
    target.close()


@pytest.mark.parametrize("size", SIZES)
def test_what_is_wrong_twice_is_an_error_and_nothing_is_kept(
    proxy: FaultProxy, direct: RemoteRegistry, behind: RemoteRegistry, tmp_path: Path, name: str, size: str
) -> None:
    manifest, blob = stored(direct, size)
    case = faulty(proxy, name, behind, manifest, Case("get blob", "corrupt", times=2))
    target = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/copy"))
    with pytest.raises(IntegrityError) as caught:
        target.put_blob(blob, lambda: behind.open_blob(blob))
    assert not caught.value.retryable
    assert (case.failed, reads(case)) == (2, 2)
    assert not target.has_blob(blob.digest)
    proxy.add(name, Case("get blob", "corrupt", times=1))
    assert is_whole(behind, manifest)
    proxy.add(name, Case("get blob", "corrupt"))
    assert not is_whole(behind, manifest)


@pytest.mark.parametrize("size", SIZES)
def test_the_next_place_is_asked_after_a_mirror(
    proxy: FaultProxy,
    direct: RemoteRegistry,
    behind: RemoteRegistry,
    second_registry: RegistryServer,
    tmp_path: Path,
    name: str,
    size: str,
) -> None:
    manifest, blob = stored(direct, size)
    second = RemoteRegistry(on_mirror(second_registry.host, direct.repository))
    copy_image(direct, second, manifest)
    target = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/copy"))
    before = len(second_registry.requests)
    both = Registries(
        frozenset(), {direct.repository.host: (behind.repository.host, second_registry.host)}
    ).open(direct.repository)
    case = faulty(proxy, name, both, manifest, Case("get blob", "corrupt"))
    target.put_blob(blob, lambda: both.open_blob(blob))
    assert len(read(target, blob)) == SIZES[size]
    assert reads(case) == 1
    asked = [each for each in second_registry.requests[before:] if str(blob.digest) in each]
    assert any(each.startswith("GET") for each in asked)
    both.close()
    second.close()
