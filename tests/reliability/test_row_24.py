"""Row 24: a push cut after each of its requests: no tag on half an image, nothing sent twice."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from envbuild.deadline import Deadline
from envbuild.errors import RegistryError
from envbuild.oci.copy import copy_image
from envbuild.oci.manifest import Manifest
from envbuild.oci.registry import publish
from envbuild.reference import Repository
from parts.fault_proxy import Case, proxying
from parts.toxic import Laboratory, login, own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envbuild.config import Config
    from parts.registry_server import RegistryServer


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory, registry: RegistryServer) -> Iterator[Laboratory]:
    with proxying(registry.port, "127.0.0.1:9") as proxy:
        made = Laboratory.make(tmp_path_factory.mktemp("cut"), registry, proxy)
        yield replace(made, settings=replace(made.settings, retries=0, read_timeout=30.0))


@pytest.fixture(autouse=True)
def _login(laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login(tmp_path, monkeypatch, laboratory.proxy)
    # Small blobs may be sent without a question, which costs as much; here none is small.
    monkeypatch.setattr("envbuild.build.upload.SMALL", 0)


def committed(case: Case) -> list[str]:
    """The digests of the blobs that the registry said it stored, in order."""
    done = [path for kind, path, status in case.answers if kind == "put upload" and status == 201]
    return [path.partition("digest=")[2] for path in done]


def build(laboratory: Laboratory, name: str, config: Config) -> None:
    """Resolve on one machine."""
    # A machine of its own: what others saw of the proxy is nothing that it knows.
    with laboratory.resolver(config, own(laboratory.settings)) as resolver:
        image = resolver.resolve(laboratory.spec, timeout=60)
        assert image.reference.digest == laboratory.image


def push(laboratory: Laboratory, name: str, config: Config) -> None:
    """Copy a finished image from a layout."""
    source, deadline = laboratory.world.layout(), Deadline.after(60)
    target = laboratory.remote(f"{laboratory.proxy.host}/{name}/envs", chunk=150)
    try:
        manifest = source.get_manifest(laboratory.image)
        copy_image(source, target, manifest, jobs=2, deadline=deadline)
        publish(target.by(deadline), manifest, laboratory.key.tag)
    finally:
        target.close()


def cut(
    laboratory: Laboratory, call: Callable[[Laboratory, str, Config], None], name: str, after: int
) -> bool:
    """Cut a call after so many requests, then let it go on; whether it was cut at all."""
    laboratory.place(name, "base")
    place = f"{laboratory.proxy.host}/{name}"
    config = laboratory.world.other_machine(
        workspace=Repository.parse(f"{place}/envs"), base=f"{place}/base:minimal"
    )
    case = laboratory.proxy.add(name, Case(cut_after=after))
    try:
        call(laboratory, name, config)
        was_cut = False
    except RegistryError:
        was_cut = True
    assert laboratory.judge(name) is None, f"cut after {after}"
    case.cut_after = None
    before = committed(case)
    # On a busy machine Distribution may answer 500 for a tag that it has just stored ("invalid checksum
    # digest format"): whoever goes on asks again, as everywhere.
    patient = replace(laboratory, settings=replace(laboratory.settings, retries=4))
    call(patient, name, config)
    assert laboratory.judge(name) is None
    sent = committed(case)[len(before) :]
    again = set(before) & set(sent) & of_the_image(laboratory, name) - shared_by_repositories(case)
    assert not again, f"cut after {after}: sent again: {again}"
    return was_cut


def of_the_image(laboratory: Laboratory, name: str) -> set[str]:
    """The image's own blobs; what is attached to it is so small that it is put without a question."""
    registry = laboratory._direct(laboratory.server, f"{name}/envs")
    image = registry.get_manifest(laboratory.image)
    registry.close()
    assert isinstance(image, Manifest)
    return {quote(str(blob.digest), safe="") for blob in image.blobs}


def shared_by_repositories(case: Case) -> set[str]:
    """Blobs that were put into more than one repository, as the empty config of artifacts."""
    places: dict[str, set[str]] = {}
    for kind, path, _ in case.answers:
        if kind == "put upload":
            places.setdefault(path.partition("digest=")[2], set()).add(path.partition("/blobs/")[0])
    return {digest for digest, where in places.items() if len(where) > 1}


def every(
    laboratory: Laboratory, call: Callable[[Laboratory, str, Config], None], name: str, step: int
) -> None:
    """Cut after each request, until there are no more."""
    with ThreadPoolExecutor(6) as pool:
        for start in itertools.count(0, 6 * step):
            places = range(start, start + 6 * step, step)
            names = [f"{name}{place}" for place in places]
            done = list(pool.map(lambda pair: cut(laboratory, call, *pair), zip(names, places, strict=True)))
            if not all(done):
                print(f"{name}: {start + step * sum(done)} places")  # noqa: T201
                assert start + sum(done) > 10 // step
                return


def test_a_copy_is_cut_after_every_third_request(laboratory: Laboratory) -> None:
    every(laboratory, push, "push", 3)


def test_a_build_is_cut_after_every_13th_request(laboratory: Laboratory) -> None:
    every(laboratory, build, "build", 13)


@pytest.mark.nightly
def test_a_copy_is_cut_after_every_request(laboratory: Laboratory) -> None:
    every(laboratory, push, "pushes", 1)


@pytest.mark.nightly
def test_a_build_is_cut_after_every_request(laboratory: Laboratory) -> None:
    every(laboratory, build, "builds", 1)
