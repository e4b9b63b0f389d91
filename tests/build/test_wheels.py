"""Definitions with a pip section, from end to end on tiny parts."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import conda_oracle
from conda_packages import Entry, Package
from envbuild.build.base import decompressed
from envbuild.build.docker_builder import DockerBuilder
from envbuild.build.upload import Upload
from envbuild.config import Config
from envbuild.errors import BuildError, SolveError
from envbuild.lockfile import FILE_NAME, LockPolicy, load
from envbuild.locking import make_lock
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.progress import Event, silent
from envbuild.reference import Repository
from envbuild.resolver import ResolvedImage, Resolver, Source
from tiny import World
from tiny_wheels import TinyWheel, index
from wheel_world import SITE, put, requirements, spec, wheel_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine with a channel, a base, a base with python, and a folder of wheels."""
    return wheel_world(tmp_path)


def resolve(config: Config, path: Path) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(path)


def image_of(image: ResolvedImage) -> tuple[list[list[str]], dict[str, Any]]:
    """The names of the files in each layer, lowest first, and the config."""
    registry = LayoutRegistry(image.reference.repository)
    manifest = registry.get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    layers = []
    for layer in manifest.layers:
        with registry.open_blob(layer) as stream:
            raw = b"".join(decompressed(stream, layer.media_type))
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            layers.append([each.name.removeprefix("opt/env/") for each in archive if not each.isdir()])
    with registry.open_blob(manifest.config) as stream:
        return layers, json.load(stream)


def holding(layers: list[list[str]], name: str) -> int:
    """The only layer that has a file."""
    found = [place for place, layer in enumerate(layers) if name in layer]
    assert len(found) == 1, (name, found)
    return found[0]


def test_each_wheel_is_a_layer_above_condas_the_big_ones_low(world: World) -> None:
    image = resolve(world.config, spec(world, "top", "small"))
    layers, config = image_of(image)
    python = holding(layers, "bin/python3.11")
    top, dep, small = (holding(layers, f"{SITE}/{name}/__init__.py") for name in ("top", "dep", "small"))
    assert python < top < min(dep, small)
    assert holding(layers, f"{SITE}/dep-2.0.dist-info/METADATA") == dep
    assert holding(layers, "bin/small") == small
    assert holding(layers, "conda-meta/history") == len(layers) - 1
    assert "CONDA_PREFIX=/opt/env" in config["config"]["Env"]
    assert (image.layers_made, image.layers_reused) == (4, 0)


def test_what_conda_installs_and_satisfies_stays(world: World) -> None:
    layers, _ = image_of(resolve(world.config, spec(world, "top", conda=("python", "dep"))))
    assert holding(layers, f"{SITE}/dep.py")
    assert not any("dep/__init__.py" in name or ".wh." in name for layer in layers for name in layer)


def test_what_conda_installs_and_does_not_satisfy_is_replaced(world: World) -> None:
    layers, _ = image_of(resolve(world.config, spec(world, "top", "dep>=2", conda=("python", "dep"))))
    below, whiteouts = holding(layers, f"{SITE}/dep.py"), holding(layers, f"{SITE}/.wh.dep.py")
    assert below < whiteouts < holding(layers, f"{SITE}/dep/__init__.py")
    assert sorted(layers[whiteouts]) == sorted(
        f"{folder}/.wh.{name}"
        for folder, name in (
            ("bin", "dep"),
            (SITE, "dep.py"),
            (SITE, "dep-1.0.dist-info"),
        )
    )


def test_folders_go_where_nothing_else_is_in_them_whoever_brought_it(world: World) -> None:
    """A folder that stays, empty, is a namespace package or a distribution without a version."""
    info = f"{SITE}/six-1.15.0.dist-info"
    six = (f"{SITE}/six/moves/a.py", f"{SITE}/common/six.py", f"{SITE}/own/six.py", f"{info}/METADATA")
    record = "".join(f"{path.removeprefix(f'{SITE}/')},,\n" for path in six)
    entries = [Entry(path, b"") for path in six]
    entries += [Entry(f"{info}/RECORD", record.encode()), Entry(f"{info}/unlisted", b"")]
    packages = [
        Package(tuple(entries), name="six", version="1.15.0", index={"depends": ["python"]}),
        Package((Entry(f"{SITE}/common/other.py", b""),), name="other", version="1.0"),
    ]
    for package in packages:
        package.put(world.root / "channels/tiny")
    asyncio.run(conda_oracle.index(world.root / "channels/tiny"))
    put(world, TinyWheel("six", "1.16.0"))
    expected = [
        f"{SITE}/.wh.own",
        f"{SITE}/.wh.six",
        f"{SITE}/.wh.six-1.15.0.dist-info",
        f"{SITE}/common/.wh.six.py",
    ]
    path = spec(world, "six==1.16.0", conda=("python", "six=1.15.0", "other"))
    for budget in (120, 6):  # a layer a package, and several in one
        place = Repository.parse(f"oci:{world.root}/at-most-{budget}")
        layers, _ = image_of(resolve(world.other_machine(workspace=place, max_layers=budget), path))
        (found,) = [layer for layer in layers if any(".wh." in name for name in layer)]
        assert sorted(found) == expected


def test_one_wheel_changed_makes_one_layer(world: World) -> None:
    resolve(world.config, spec(world, "top", "small", "dep<2"))
    changed = resolve(world.config, spec(world, "top", "small", "dep>=2"))
    assert (changed.layers_made, changed.layers_reused) == (1, 3)


def test_known_layers_are_not_fetched(world: World) -> None:
    with index([TinyWheel("small", files={"small/big": os.urandom(1 << 20)})]) as server:
        lines = [f"--index-url {server.url}/simple", "small"]
        resolve(world.config, spec(world, *lines, conda=("python", "tool=1"), local=False))
        assert f"GET /files/{TinyWheel('small').file_name}" in server.asked
        server.asked.clear()
        other = resolve(world.config, spec(world, *lines, conda=("python", "tool=2"), local=False))
        assert (other.layers_made, other.layers_reused) == (1, 2)
        assert f"GET /files/{TinyWheel('small').file_name}" not in server.asked


def test_the_same_definition_gives_the_same_image_on_another_machine(world: World) -> None:
    path = spec(world, "top", "small", "dep>=2", conda=("python", "dep"))
    first = resolve(world.config, path)
    elsewhere = world.other_machine(workspace=Repository.parse(f"oci:{world.root}/elsewhere"))
    second = resolve(elsewhere, path)
    assert second.source is Source.BUILT
    assert (second.reference.digest, second.lock_key) == (first.reference.digest, first.lock_key)


def test_requirements_alone_use_the_bases_python(world: World) -> None:
    config = replace(world.config, base=f"oci:{world.root}/bases:python")
    image = resolve(config, requirements(world, "top", "small"))
    layers, document = image_of(image)
    assert holding(layers, "usr/bin/python3.11") == 0
    assert sorted(layers[1]) == ["bin/python", "bin/python3", "bin/python3.11", "pyvenv.cfg"]
    assert holding(layers, f"{SITE}/top/__init__.py") == 2
    assert not any("conda-meta" in name for layer in layers for name in layer)
    variables = dict(entry.split("=", 1) for entry in document["config"]["Env"])
    assert variables["VIRTUAL_ENV"] == "/opt/env"
    assert variables["PATH"].startswith("/opt/env/bin:")
    assert "CONDA_PREFIX" not in variables
    assert resolve(config, requirements(world, "top", "small")).reference == image.reference


def test_requirements_on_a_base_without_python_are_refused_with_a_way_out(world: World) -> None:
    with pytest.raises(BuildError, match="no python"):
        resolve(world.config, requirements(world, "small"))


def test_wheels_that_carry_one_path_share_a_layer(world: World) -> None:
    put(world, *(TinyWheel(name, files={"shared/__init__.py": name.encode()}) for name in ("one", "two")))
    layers, _ = image_of(resolve(world.config, spec(world, "one", "two")))
    assert holding(layers, f"{SITE}/shared/__init__.py") == holding(layers, f"{SITE}/one/__init__.py")


def test_many_wheels_fit_a_small_budget(world: World) -> None:
    put(world, *(TinyWheel(f"w{number}") for number in range(12)))
    config = replace(world.config, max_layers=9)
    layers, _ = image_of(resolve(config, spec(world, *(f"w{number}" for number in range(12)))))
    assert len(layers) <= 9
    for number in range(12):
        assert holding(layers, f"{SITE}/w{number}/__init__.py")


def test_the_users_own_login_serves_a_whole_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "logins").write_text("machine 127.0.0.1 login me password hush-canary\n")
    monkeypatch.setenv("NETRC", str(world.root / "logins"))
    with index([TinyWheel("private")], user="me:hush-canary") as server:
        path = spec(world, f"--index-url {server.url}/simple", "private", local=False)
        layers, config = image_of(resolve(world.config, path))
        assert holding(layers, f"{SITE}/private/__init__.py")
        assert "hush" not in json.dumps(config)
        with Resolver(world.config) as resolver:
            make_lock(resolver, load(path), world.root).write(world.root / FILE_NAME)
        assert "hush" not in (world.root / FILE_NAME).read_text()
        fresh = world.other_machine(workspace=Repository.parse(f"oci:{world.root}/elsewhere"))
        with Resolver(fresh, locks=LockPolicy(required=True)) as resolver:
            assert resolver.resolve(path).source is Source.BUILT


def test_a_wheel_that_is_asked_for_has_a_layer_of_its_own_for_that(world: World) -> None:
    requested = f"{SITE}/dep-2.0.dist-info/REQUESTED"
    layers, _ = image_of(resolve(world.config, spec(world, "top")))
    assert not any(requested in layer for layer in layers)
    asked = resolve(world.config, spec(world, "top", "dep"))
    layers, _ = image_of(asked)
    assert holding(layers, requested) == holding(layers, f"{SITE}/dep-2.0.dist-info/METADATA")
    assert (asked.layers_made, asked.layers_reused) == (1, 2)


def test_what_cannot_be_satisfied_publishes_nothing(world: World) -> None:
    with pytest.raises(SolveError, match="dep"):
        resolve(world.config, spec(world, "dep>=3"))
    assert not [tag for tag in world.layout().tags() if tag.name.startswith(("k1-", "l1-"))]


def warnings_of(world: World, path: Path, **changes: Any) -> tuple[ResolvedImage, list[str]]:
    said: list[Event] = []
    with Resolver(world.other_machine(**changes), progress=said.append) as resolver:
        image = resolver.resolve(path)
    return image, [event.text for event in said if "both have" in event.text]


def test_wheels_with_one_path_are_told_whether_made_or_known(world: World) -> None:
    put(world, TinyWheel("one", files={"shared/x.py": b"1"}))
    put(world, TinyWheel("two", files={"shared/x.py": b"2"}))
    expected = (
        "warning: two-1.0-py3-none-any.whl and one-1.0-py3-none-any.whl both have "
        f"{SITE}/shared/x.py: that of one-1.0-py3-none-any.whl is installed"
    )
    for more in ("small", "top"):
        image, told = warnings_of(world, spec(world, "one", "two", more))
        assert told == [expected]
        layers, _ = image_of(image)
        holding(layers, f"{SITE}/shared/x.py")


def test_wheels_of_one_bucket_that_share_a_path_are_installed_in_their_order(world: World) -> None:
    put(world, TinyWheel("zbase", files={"shared/x.py": b"zbase"}))
    put(world, TinyWheel("above", files={"shared/x.py": b"above"}))
    path = spec(world, "above", "zbase", "small", "top")
    roomy, _ = warnings_of(world, path, workspace=Repository.parse(f"oci:{world.root}/roomy"))
    tight, told = warnings_of(
        world, path, workspace=Repository.parse(f"oci:{world.root}/tight"), max_layers=5
    )
    assert content_of(roomy, f"{SITE}/shared/x.py") == content_of(tight, f"{SITE}/shared/x.py")
    assert len(told) == 1


def content_of(image: ResolvedImage, name: str) -> bytes:
    """A file of an image, as its topmost layer that has it leaves it."""
    registry = LayoutRegistry(image.reference.repository)
    manifest = registry.get_manifest(image.reference.digest)
    assert isinstance(manifest, Manifest)
    found = b""
    for layer in manifest.layers:
        with registry.open_blob(layer) as stream:
            raw = b"".join(decompressed(stream, layer.media_type))
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            for each in archive:
                if each.name == f"opt/env/{name}" and (content := archive.extractfile(each)) is not None:
                    found = content.read()
    return found


def test_a_wheel_over_a_file_of_conda_is_told(world: World) -> None:
    put(world, TinyWheel("over", files={"over-1.0.data/data/share/tool/data": b"mine"}))
    path = spec(world, "over", conda=("python", "tool=1"))
    image, told = warnings_of(world, path)
    over = TinyWheel("over").file_name
    expected = f"warning: tool-1.0-0 and {over} both have share/tool/data: that of {over} is installed"
    assert told == [expected]
    assert content_of(image, "share/tool/data") == b"mine"
    _, known = warnings_of(world, spec(world, "over", "small", conda=("python", "tool=1")))
    assert known == [told[0].replace("share/tool/data", "a path")], "which one is known only when it is made"


@pytest.mark.parametrize(
    ("path", "below"),
    [("share/tool", "tool-1.0-0"), ("share", "tool-1.0-0"), ("conda-meta", "(tool|python)-.*")],
)
def test_a_wheel_takes_no_folder_from_conda(world: World, path: str, below: str) -> None:
    put(world, TinyWheel("over", files={f"over-1.0.data/data/{path}": b"mine"}))
    definition = spec(world, "over", conda=("python", "tool=1"))
    over = "over-1.0-py3-none-any.whl"
    made = f"{over} has the file '{path}', which is a folder of {below}"
    known = f"{over} has a file where there is a folder of {below}"
    for message in (made, known):
        with pytest.raises(BuildError) as caught:
            resolve(world.config, definition)
        assert re.fullmatch(message, caught.value.message)
    with Resolver(world.config) as resolver:
        job = resolver.job(resolver.request(definition))
        builder = DockerBuilder(world.config, resolver.index, resolver.registries, silent)
        with Upload(resolver.registries.open(world.config.workspace), silent) as upload:
            solution = builder._solve(job, job.base)
            parts = builder._parts(job, job.base, solution, upload)
            assert parts.wheels is not None
            with pytest.raises(BuildError, match=f"has the file '{path}', which is a folder"):
                parts.wheels.archive(parts.composer, solution.lock, io.BytesIO())


def test_a_wheel_may_have_a_file_where_what_it_replaces_has_a_folder(world: World) -> None:
    package = Package(
        (
            Entry(f"{SITE}/grown_up/x.py", b"version = 1\n"),
            Entry(
                f"{SITE}/grown-1.0.dist-info/METADATA", b"Metadata-Version: 2.1\nName: grown\nVersion: 1.0\n"
            ),
            Entry(f"{SITE}/grown-1.0.dist-info/RECORD", b"grown_up/x.py,,\n"),
        ),
        name="grown",
        version="1.0",
        index={"depends": ["python"]},
    )
    package.put(world.root / "channels/tiny")
    asyncio.run(conda_oracle.index(world.root / "channels/tiny"))
    put(world, TinyWheel("grown", "2.0", files={"grown_up": b"a file"}))
    image = resolve(world.config, spec(world, "grown>=2", conda=("python", "grown")))
    assert content_of(image, f"{SITE}/grown_up") == b"a file"


def test_what_a_wheel_replaces_is_no_warning(world: World) -> None:
    path = spec(world, "top", "dep>=2", conda=("python", "dep"))
    assert warnings_of(world, path)[1] == []
