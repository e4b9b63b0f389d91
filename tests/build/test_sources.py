"""Projects and source archives in pip sections: built in a real engine, by the environment's own python."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from builder_contract import config_of, text_of, tree_of
from envbuild.config import Config
from envbuild.errors import BuildError, IntegrityError
from envbuild.lockfile import load
from envbuild.locking import make_lock
from envbuild.progress import Event
from envbuild.reference import Repository
from envbuild.resolver import ResolvedImage, Resolver
from fixtures_channel import Bases, ChannelFolder
from parts.docker_engine import DockerEngine
from tiny_wheels import TinyWheel

pytestmark = pytest.mark.xdist_group("engine")

BACKEND = b"""
import glob, os, pathlib, socket, sys, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name, version, tag = pathlib.Path("about.txt").read_text().split()
    if version == "0":
        sys.exit("no such luck")
    try:
        socket.create_connection(("deb.debian.org", 80), 3).close()
        network = True
    except OSError:
        network = False
    about = dict(base=sys.base_prefix, network=network, epoch=os.environ["SOURCE_DATE_EPOCH"],
                 runs=os.access("tool.sh", os.X_OK), uid=os.getuid(),
                 click=bool(glob.glob("/opt/env/conda-meta/click-*.json")))
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"about = {about!r}\\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\\nGenerator: tiny\\nRoot-Is-Purelib: true\\nTag: {tag}\\n",
    }
    import base64, hashlib
    def digest(text):
        return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    record = "".join(f"{path},sha256={digest(text)},{len(text)}\\n" for path, text in files.items())
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\\n"
    file_name = f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(os.path.join(folder, file_name), "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return file_name
"""
PURE, NATIVE = "py3-none-any", "cp311-cp311-linux_x86_64"


def project(name: str, version: str = "1.0", tag: str = PURE) -> dict[str, bytes]:
    """The files of a project that the backend builds."""
    return {
        "pyproject.toml": b'[build-system]\nrequires = ["tiny-backend"]\nbuild-backend = "tiny_backend"\n',
        "about.txt": f"{name} {version} {tag}".encode(),
        "tool.sh": b"#!/bin/sh\n",
    }


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "tool.sh").chmod(0o755)
    return folder


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as target:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            entry.size, entry.mode = len(content), 0o755 if name.endswith(".sh") else 0o644
            target.addfile(entry, io.BytesIO(content))
    return path


@dataclass
class Machine:
    """A machine with an engine, a channel with python, and what projects are built with."""

    root: Path
    config: Config

    def spec(self, *lines: str, conda: tuple[str, ...] = ()) -> Path:
        path = self.root / "environment.yml"
        pip = ["--no-index", "--find-links ./links", *lines]
        dependencies = ["python=3.11", *conda, {"pip": pip}]
        path.write_text(json.dumps({"channels": ["fixtures"], "dependencies": dependencies}))
        return path

    def resolve(self, path: Path, **changes: object) -> tuple[ResolvedImage, list[str]]:
        """The image, and what was done about wheels."""
        seen: list[str] = []

        def progress(event: Event) -> None:
            if event.subject.startswith("wheel of"):
                seen.append(f"{event.subject} {event.state}")

        with Resolver(replace(self.config, **changes), progress=progress) as resolver:  # type: ignore[arg-type]
            return resolver.resolve(path), seen


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, engine: DockerEngine, bases: Bases, channel: ChannelFolder
) -> Config:
    """The settings of one machine for all tests: python's layer is made once."""
    root = tmp_path_factory.mktemp("sources")
    return Config(
        workspace=Repository.parse(f"oci:{root}/images"),
        base=f"oci:{bases.minimal}:latest",
        channel_alias=channel.alias,
        cache_dir=root / "cache",
        docker_host=engine.host,
    )


@pytest.fixture
def machine(tmp_path: Path, config: Config) -> Machine:
    TinyWheel("tiny-backend", files={"tiny_backend/__init__.py": BACKEND}).put(tmp_path / "links")
    return Machine(tmp_path, config)


def about(image: ResolvedImage, name: str) -> dict[str, object]:
    found = [path for path in tree_of(image) if path.endswith(f"site-packages/{name}.py")]
    text = text_of(image, found[0]).partition("=")[2]
    document: dict[str, object] = json.loads(
        text.replace("'", '"').replace("False", "false").replace("True", "true")
    )
    return document


def test_projects_and_archives_become_wheels(machine: Machine) -> None:
    put(machine.root / "first", project("first"))
    sdist = archive(machine.root / "second-1.0.tar.gz", project("second", tag=NATIVE))
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    put(machine.root / "never", project("never", "0"))
    path = machine.spec(
        "-e ./first", f"second @ {sdist.as_uri()} --hash=sha256:{digest}", "./never ; sys_platform == 'win32'"
    )
    image, done = machine.resolve(path)
    assert about(image, "first") == {
        "base": "/opt/env", "network": False, "epoch": "315532800", "runs": True, "uid": 0,
        "click": False,
    }  # fmt: skip
    assert about(image, "second")["runs"]
    assert not any("never" in name or "tiny_backend" in name for name in tree_of(image))
    assert not any("envbuild-wheel" in json.dumps(entry) for entry in config_of(image)["history"])
    assert [each.rpartition(" ")[2] for each in done] == ["start", "done", "start", "done"]

    again = machine.spec("./first", "./second-1.0.tar.gz", "tiny-backend")
    other, done = machine.resolve(again, docker_host=f"unix://{machine.root}/none.sock")
    assert [each.rpartition(" ")[2] for each in done] == ["reused", "reused"]
    assert about(other, "second") == about(image, "second")


def test_a_wheel_is_built_anew_where_the_image_that_builds_it_is_another(machine: Machine) -> None:
    """What a build reads of its image is in no file of the project."""
    put(machine.root / "first", project("first", "5.0"))
    image, _ = machine.resolve(machine.spec("./first"))
    assert about(image, "first")["click"] is False
    image, done = machine.resolve(machine.spec("./first", conda=("click",)))
    assert [each.rpartition(" ")[2] for each in done] == ["start", "done"]
    assert about(image, "first")["click"] is True


def test_the_image_tells_where_its_projects_are_from(machine: Machine) -> None:
    put(machine.root / "first", project("first", "6.0"))
    sdist = archive(machine.root / "second-6.0.tar.gz", project("second", "6.0"))
    image, _ = machine.resolve(machine.spec("-e ./first", f"./{sdist.name}"))
    found = {path.partition("/site-packages/")[2] for path in tree_of(image)}
    assert {"first-6.0.dist-info/REQUESTED", "second-6.0.dist-info/REQUESTED"} <= found
    site = next(path for path in tree_of(image) if path.endswith("/first.py")).removesuffix("first.py")
    assert json.loads(text_of(image, f"{site}first-6.0.dist-info/direct_url.json")) == {
        "dir_info": {},
        "url": "file:///first",
    }
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    assert json.loads(text_of(image, f"{site}second-6.0.dist-info/direct_url.json")) == {
        "archive_info": {"hash": f"sha256={digest}", "hashes": {"sha256": digest}},
        "url": "file:///second-6.0.tar.gz",
    }
    assert str(machine.root) not in json.dumps(config_of(image))


def test_what_is_built_is_what_was_read_with_the_definition(machine: Machine) -> None:
    """A project that changes while its image is being built."""
    folder = put(machine.root / "first", project("first", "7.0"))
    path, seen = machine.spec("./first"), []

    def swap(event: Event) -> None:
        seen.append(event)
        (folder / "about.txt").write_text(f"first 8.0 {PURE}")

    with Resolver(machine.config, progress=swap) as resolver:
        image = resolver.resolve(path)
    assert seen
    assert any("first-7.0.dist-info" in name for name in tree_of(image))


@pytest.mark.nightly
def test_the_builder_docker_has_the_same(machine: Machine) -> None:
    put(machine.root / "first", project("first", "3.0"))
    path = machine.spec("./first")
    image, _ = machine.resolve(path)
    workspace = Repository.parse(f"oci:{machine.root}/by-docker")
    docker, done = machine.resolve(path, builder="docker", workspace=workspace)
    assert [each.rpartition(" ")[2] for each in done] == ["reused"]
    assert docker.lock_key == image.lock_key
    assert tree_of(docker) == tree_of(image)


def test_without_an_engine_the_reason_is_told(machine: Machine) -> None:
    put(machine.root / "first", project("first", "4.0"))
    with pytest.raises(
        BuildError, match=r"built from source, by its own code, and .*none answered"
    ) as caught:
        machine.resolve(machine.spec("./first"), docker_host=f"unix://{machine.root}/none.sock")
    assert "a wheel" in (caught.value.hint or "")


def test_a_build_that_fails_says_what_it_said(machine: Machine) -> None:
    put(machine.root / "first", project("first", "0"))
    with pytest.raises(BuildError, match=r"first could not be built from source(?s:.*)no such luck"):
        machine.resolve(machine.spec("./first"))


def test_a_lock_is_not_made_of_sources(machine: Machine) -> None:
    put(machine.root / "first", project("first"))
    path = machine.spec("./first")
    with Resolver(machine.config) as resolver, pytest.raises(BuildError, match="a project's folder"):
        make_lock(resolver, load(path, base=machine.config.base), path.parent)


def test_an_archive_is_held_against_its_hash(machine: Machine) -> None:
    archive(machine.root / "second-1.0.tar.gz", project("second"))
    with pytest.raises(IntegrityError, match="another sha256"):
        machine.resolve(machine.spec(f"./second-1.0.tar.gz --hash=sha256:{'0' * 64}"))
    with pytest.raises(BuildError, match="no sha256") as caught:
        machine.resolve(machine.spec("second @ https://files.invalid/second-1.0.tar.gz"))
    assert "#sha256=" in (caught.value.hint or "")


@pytest.mark.nightly
def test_the_bases_own_python_builds(machine: Machine) -> None:
    """Debian's python, which a step installs, builds a real project with setuptools from an index."""
    path = machine.root / "envbuild.yaml"
    path.write_text(
        f"base: {machine.config.base}\nsteps: |\n  USER 0\n"
        "  RUN apt-get update && apt-get install -y --no-install-recommends python3\n"
        "pip: [./project]\n"
    )
    folder = machine.root / "project"
    folder.mkdir()
    (folder / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='old', version='1', py_modules=['old'])\n"
    )
    (folder / "old.py").write_text("about = {'old': True}\n")
    image, done = machine.resolve(path)
    assert done == [f"wheel of {folder} start", f"wheel of {folder} done"]
    assert about(image, "old") == {"old": True}
