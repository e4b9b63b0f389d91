"""What tells tools why and from where a distribution is there: as pip itself writes it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from envbuild.build.sources import origin_of
from envbuild.conda.link import PythonTarget
from envbuild.deadline import NO_DEADLINE
from envbuild.lock import PipDistribution
from envbuild.pip.distribution import WheelTarget
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.resolve import PipRequest, resolve
from envbuild.pip.wheel import install
from envbuild.platform import LINUX_AMD64
from envbuild.spec.pip import PipSection
from tiny_wheels import TinyWheel

SITE = "lib/python3.11/site-packages"
PYTHON = PythonTarget("3.11.4", SITE)
TARGET = WheelTarget("/opt/env", PYTHON)
TOLD = ("REQUESTED", "direct_url.json")
PROJECT = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = """
import pathlib
def build_wheel(folder, config_settings=None, metadata_directory=None):
    content = bytes.fromhex({content!r})
    pathlib.Path(folder, {name!r}).write_bytes(content)
    return {name!r}
"""


def project(folder: Path, name: str) -> TinyWheel:
    """A project, and the wheel that its own code makes."""
    wheel = TinyWheel(name)
    folder.mkdir()
    (folder / "pyproject.toml").write_bytes(PROJECT)
    text = BACKEND.format(content=wheel.to_bytes().hex(), name=wheel.file_name)
    (folder / "backend.py").write_text(text)
    return wheel


def told(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files that tell why a distribution is there, with the row that RECORD has of each."""
    found = {}
    for path, content in files.items():
        folder, _, name = path.rpartition("/")
        if name in TOLD:
            record = files[f"{folder}/RECORD"].decode()
            rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(record))}
            assert f"{folder}/{name}" in rows, f"{path} is no part of its RECORD"
            found[path] = content
    return found


def pips(root: Path, *words: str) -> dict[str, bytes]:
    """What pip writes."""
    target = root / "target"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--isolated", "--disable-pip-version-check", "--quiet",
            "--no-index", "--find-links", "links", "--target", str(target), *words,
        ],
        cwd=root,
        check=True,
    )  # fmt: skip
    files = [path for path in target.rglob("*.dist-info/*") if path.is_file()]
    return told({str(path.relative_to(target)): path.read_bytes() for path in files})


def ours(distributions: dict[PipDistribution, bytes]) -> dict[str, bytes]:
    """What we write."""
    files: dict[str, bytes] = {}
    for distribution, content in distributions.items():
        for file in install(io.BytesIO(content), distribution, TARGET):
            files[file.path.removeprefix(f"{SITE}/")] = b"".join(file.chunks)
    return told(files)


def without_folders(files: dict[str, bytes], root: Path) -> dict[str, object]:
    """Contents as JSON, without the folder of this machine, which pip writes and we do not."""
    place = root.as_uri()
    return {
        path: json.loads(content.decode().replace(place, "file://")) if content else b""
        for path, content in files.items()
    }


def test_requested_and_origins_are_those_that_pip_writes(tmp_path: Path) -> None:
    for wheel in (TinyWheel("top", requires=("dep", "both")), TinyWheel("dep"), TinyWheel("both")):
        wheel.put(tmp_path / "links")
    mine = TinyWheel("mine", requires=("dep",)).put(tmp_path)
    lines = ["--no-index", "--find-links ./links", "top", "both", f"./{mine.name}"]
    section = PipSection.from_requirements("\n".join(lines).encode(), "r.txt", tmp_path)
    request = PipRequest(section, LINUX_AMD64, PYTHON, "2.36")
    solution = resolve(request, cache_dir=tmp_path / "cache", deadline=NO_DEADLINE)
    wheels = {}
    for each in solution.distributions:
        with fetch_wheel(each, url=solution.urls[each.url], deadline=NO_DEADLINE) as stream:
            wheels[each] = stream.read()
    expected = pips(tmp_path, "top", "both", f"./{mine.name}")
    assert sorted(expected) == [
        "both-1.0.dist-info/REQUESTED",
        "mine-1.0.dist-info/REQUESTED",
        "mine-1.0.dist-info/direct_url.json",
        "top-1.0.dist-info/REQUESTED",
    ]
    assert without_folders(ours(wheels), tmp_path) == without_folders(expected, tmp_path)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_project_has_the_origin_that_pip_writes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "links").mkdir()
    wheel = project(tmp_path / "tiny", "tiny")
    word = "./tiny"
    if kind == "archive":
        word = "./tiny-1.0.tar.gz"
        with tarfile.open(tmp_path / word, "w:gz") as archive:
            archive.add(tmp_path / "tiny", "tiny-1.0")
    (requirement,) = PipSection.from_requirements(word.encode(), "r.txt", tmp_path).requirements
    origin = origin_of(requirement, Path(wheel.file_name))
    distribution = replace(
        wheel.distribution(), direct_url=origin.url, built_from=origin.built_from, requested=True
    )
    expected = without_folders(pips(tmp_path, word), tmp_path)
    assert without_folders(ours({distribution: wheel.to_bytes()}), tmp_path) == expected
    assert len(expected) == 2


def test_an_origin_has_no_folder_of_the_machine(tmp_path: Path) -> None:
    """Folders are no part of the key: two machines have one key, and so must have one image."""
    origins = []
    for name in ("here", "there"):
        project(tmp_path / name, "tiny")
        (one,) = PipSection.from_requirements(f"./{name}".encode(), "r.txt", tmp_path).requirements
        origins.append(origin_of(one, Path("tiny-1.0-py3-none-any.whl")))
    assert origins[0] == origins[1]
    assert origins[0].url == "file:///tiny"


def test_an_archive_on_the_web_has_its_own_digest() -> None:
    text = f"tiny @ https://me:secret@h/tiny-1.0.tar.gz#sha256={'a' * 64}"
    (requirement,) = PipSection.from_requirements(text.encode(), "r.txt", None).requirements
    origin = origin_of(requirement, Path("tiny-1.0-py3-none-any.whl"))
    assert origin == ("https://h/tiny-1.0.tar.gz", "a" * 64)
