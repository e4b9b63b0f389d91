"""Files that a definition names: regular ones alone, bounded, in time, and with ``confine`` in its folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envbuild.config import Config
from envbuild.deadline import Deadline
from envbuild.errors import BuildError, DeadlineExceeded, SpecError
from envbuild.foreign import load
from envbuild.resolver import Resolver
from envbuild.spec.files import open_below

if TYPE_CHECKING:
    from collections.abc import Iterator

ODD = (
    "FIFO",
    "link to a FIFO",
    "device",
    "link to a device",
    "socket",
    "folder",
    "/proc/self/environ",
    "/sys",
)
NAMED = {
    "conda": "base: scratch\nconda: {path}\n",
    "pip": "base: scratch\npip: {path}\n",
    "steps": "base: scratch\nsteps: {{file: {path}}}\n",
    "steps_after": "base: scratch\nsteps_after: {{file: {path}, context: .}}\n",
    "-r": "base: scratch\npip: ['-r {path}']\n",
    "-c": "base: scratch\npip: [a, '-c {path}']\n",
    "wheel": "base: scratch\npip: ['x @ file://{path}']\n",
    "conda_file": "image: debian:12\nconda_file: {path}\n",
    "dockerfile_path": "build: {{path: ., dockerfile_path: {path}}}\n",
}
"""Definitions that name a file."""

FOLDERS = {
    "context": "base: scratch\nsteps: {{file: steps, context: {path}}}\n",
    "project": "base: scratch\npip: ['{path}']\n",
    "-e": "base: scratch\npip: ['-e {path}']\n",
    "--find-links": "base: scratch\npip: [a, '--find-links {path}']\n",
    "--index-url": "base: scratch\npip: [a, '--index-url file://{path}']\n",
    "--extra-index-url": "base: scratch\npip: [a, '--extra-index-url file:{path}']\n",
    "git": "base: scratch\npip: ['x @ git+file://{path}@0123456789abcdef0123456789abcdef01234567']\n",
    "build.path": "build: {{path: {path}}}\n",
    "base": "base: 'oci:{path}:tag'\n",
    "base by digest": "base: 'oci:{path}@sha256:" + "0" * 64 + "'\n",
    "channel": "channels: ['{path}']\ndependencies: [a]\n",
    "channel URL": "channels: ['file://{path}']\ndependencies: [a]\n",
    "channel of a package": "channels: [x]\ndependencies: ['file://{path}::a']\n",
    "channel in brackets": "channels: [x]\ndependencies: ['a[channel=\"file://{path}\"]']\n",
    "package": "channels: [x]\ndependencies: ['file://{path}/linux-64/a-1-0.conda']\n",
    "package by its path": "channels: [x]\ndependencies: ['{path}/linux-64/a-1-0.conda']\n",
}
"""Definitions that name a folder."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a definition, beside which something stands that is none of its business."""
    folder = tmp_path / "checkout"
    (folder / "inner").mkdir(parents=True)
    secret = tmp_path / "secret"
    (secret / "linux-64").mkdir(parents=True)
    for place in (folder, folder / "inner", secret):
        (place / "file").write_text("dependencies: [a]\n")
        (place / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '1'\n")
        (place / "steps").write_text("COPY file /file\n")
        (place / "Dockerfile").write_text("FROM debian:12\n")
    return folder


def written(folder: Path, text: str, name: str = "envbuild.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@contextlib.contextmanager
def odd(place: Path, kind: str) -> Iterator[str]:
    """The path of something that is no regular file on a disk."""
    path = place / "odd"
    with contextlib.ExitStack() as stack:
        if kind.endswith("FIFO"):
            os.mkfifo(place / "fifo")
            path.symlink_to("fifo") if kind.startswith("link") else os.mkfifo(path)
        elif kind.endswith("device"):
            path = Path("/dev/zero")
            if kind.startswith("link"):
                path = place / "zero"
                path.symlink_to("/dev/zero")
        elif kind == "socket":
            listener = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
            here = os.open(place, os.O_RDONLY)
            stack.callback(os.close, here)
            listener.bind(f"/proc/self/fd/{here}/odd")  # the path of a socket is short
        elif kind == "folder":
            path.mkdir()
        else:
            path = Path("/sys/kernel/mm/transparent_hugepage/enabled" if kind == "/sys" else kind)
        yield str(path)


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_refused_at_its_line_and_at_once(folder: Path, kind: str) -> None:
    started = time.monotonic()
    with odd(folder, kind) as path:
        for name, text in NAMED.items():
            spec = written(folder, text.format(path=path))
            with pytest.raises(SpecError) as caught:
                load(spec)
            assert caught.value.line is not None, name
            if kind in {"/proc/self/environ", "/sys"}:
                assert "the kernel makes it up" in str(caught.value), name
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket"])
def test_nor_is_it_read_as_part_of_a_context_or_as_its_rules(folder: Path, kind: str) -> None:
    with odd(folder / "inner", kind) as path:
        if kind == "device":
            (folder / "inner" / ".dockerignore").symlink_to(path)
        spec = written(folder, "base: scratch\nsteps: ['COPY inner /x']\n")
        if kind == "device":
            spec = written(folder, "base: scratch\nsteps: {file: steps, context: inner}\n")
        with pytest.raises(SpecError, match=r"is no file, link or folder|it is a device"):
            load(spec)


@pytest.mark.parametrize("text", [*NAMED.values(), *FOLDERS.values()], ids=[*NAMED, *FOLDERS])
@pytest.mark.parametrize("way", ["absolute", "climbing", "link", "link on the way"])
def test_confined_definitions_name_nothing_outside_of_their_folder(folder: Path, text: str, way: str) -> None:
    is_file = text in NAMED.values()
    name = "file" if is_file else ""
    (folder / "link").symlink_to(folder.parent / "secret" / name)
    (folder / "way").symlink_to(folder.parent)
    outside = folder.parent / "secret" / name
    path = {
        "absolute": str(outside),
        "climbing": f"{folder}/inner/../../secret/{name}",
        "link": str(folder / "link"),
        "link on the way": str(folder / "way" / "secret" / name),
    }[way]
    spec = written(folder, text.format(path=path))
    with pytest.raises(SpecError, match="where `confine` keeps the definition") as caught:
        load(spec, confine=True)
    found = (caught.value, *caught.value.others)
    assert any(each.source == str(spec) and each.line == text.count("\n", 0, text.index("{path")) + 1
               for each in found if "confine" in each.message)  # fmt: skip


@pytest.mark.parametrize("text", [*NAMED.values(), *FOLDERS.values()], ids=[*NAMED, *FOLDERS])
def test_a_path_that_is_not_there_is_not_told_from_one_that_is(folder: Path, text: str) -> None:
    said = []
    for path in (folder.parent / "secret", folder.parent / "nobody"):
        with pytest.raises(SpecError, match="confine") as caught:
            load(written(folder, text.format(path=path)), confine=True)
        said.append(caught.value.message.partition(" is outside of ")[2])
    assert said[0] == said[1]


def test_what_is_in_the_folder_is_named_as_ever(folder: Path) -> None:
    (folder / "link").symlink_to("inner/file")
    (folder / "r.txt").write_text("a==1\n")
    text = (
        "base: oci:inner:tag\nconda: {channels: [./inner], dependencies: [a]}\npip: ['-r r.txt', './inner']\n"
        "steps: {file: inner/steps, context: .}\n"
    )
    spec = written(folder, text)
    assert load(spec, confine=True) == load(spec)
    assert load(folder, confine=True) == load(folder)
    linked = written(folder, "base: scratch\nconda: link\n")
    assert load(linked, confine=True).conda is not None


def test_a_link_in_a_context_stays_a_link(folder: Path) -> None:
    (folder / "inner" / "out").symlink_to("/etc/passwd")
    found = load(written(folder, "base: scratch\nsteps: ['COPY inner /x']\n"), confine=True)
    assert found.steps is not None
    (link,) = [each for each in found.steps.context if each.path == "inner/out"]
    assert (link.target, link.content) == ("/etc/passwd", None)


def test_a_checkout_whose_definition_is_a_link_out_of_it_is_refused(folder: Path) -> None:
    (folder / "environment.yml").symlink_to(folder.parent / "secret" / "file")
    for source in (folder, folder / "environment.yml"):
        assert load(source).conda is not None
        with pytest.raises(SpecError, match="confine"):
            load(source, confine=True)


def test_nor_is_a_lock_beside_it_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "envbuild.lock").symlink_to(tmp_path / "secret" / "file")
    spec = written(folder, "base: scratch\nvariables: {A: b}\n")
    config = Config(cache_dir=tmp_path / "cache", confine=True)
    with Resolver(config) as resolver, pytest.raises(SpecError, match="confine"):
        resolver.key(spec)


@pytest.mark.parametrize("text", [*NAMED.values(), *FOLDERS.values()], ids=[*NAMED, *FOLDERS])
def test_standard_input_names_nothing_under_confine(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    monkeypatch.chdir(folder)
    for path in (folder / "file", folder / "inner"):
        content = io.BytesIO(text.format(path=path).encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
        with pytest.raises(SpecError, match="lets a definition without a folder name none"):
            load("-", confine=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"base: scratch\nsteps: RUN a\n")))
    assert load("-", confine=True).steps is not None


def test_what_the_caller_lays_over_it_may_be_elsewhere(folder: Path) -> None:
    spec = written(folder, "conda: file\n")
    steps, base = folder.parent / "secret" / "steps", f"oci:{folder.parent}/secret:tag"
    found = load(spec, confine=True, steps=steps, base=base)
    assert found.steps is not None
    assert [each.path for each in found.steps.context] == ["file"]
    assert str(found.base) == base


def test_the_setting_holds_for_paths_and_a_project_cannot_lower_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = written(folder, "base: scratch\nconda: ../secret/file\n")
    with Resolver(Config(cache_dir=tmp_path / "c")) as resolver:
        resolver.key(spec)
    confined = Config(cache_dir=tmp_path / "c", confine=True)
    with Resolver(confined) as resolver, pytest.raises(SpecError, match="confine"):
        resolver.key(spec)
    monkeypatch.setenv("ENVBUILD_CONFINE", "true")
    (folder / "envbuild.toml").write_text("confine = false\n")
    assert Config.load(folder).confine
    assert not Config.load(tmp_path, confine=False).confine


def test_a_folder_that_becomes_a_link_while_it_is_read_leads_nowhere(folder: Path) -> None:
    """What is opened is opened name by name: no exchange between the check and the opening counts."""
    outside, stop = folder.parent / "secret", threading.Event()
    real, spare = folder / "inner", folder / "spare"
    (outside / "file").write_text("dependencies: [stolen]\n")
    spec = written(folder, "base: scratch\nconda: inner/file\n")

    def exchange() -> None:
        while not stop.is_set():
            real.rename(spare)
            real.symlink_to(outside)
            real.unlink()
            spare.rename(real)

    worker = threading.Thread(target=exchange)
    worker.start()
    try:
        for _ in range(300):
            with contextlib.suppress(SpecError):
                assert "stolen" not in json.dumps(load(spec, confine=True).conda.canonical())  # type: ignore[union-attr]
    finally:
        stop.set()
        worker.join()


def test_names_on_the_way_that_are_links_are_not_followed(folder: Path) -> None:
    os.close(open_below(str(folder), ["inner", "file"]))
    (folder / "link").symlink_to("inner")
    (folder / "last").symlink_to("inner/file")
    for parts in (["link", "file"], ["last"], ["inner", "..", "..", "secret", "nothing"]):
        with pytest.raises(OSError, match=r"directory|links|no file|no such"):
            os.close(open_below(str(folder), parts))


def test_reading_heeds_the_deadline(folder: Path) -> None:
    for number in range(20):
        (folder / f"big{number}").write_bytes(bytes(1 << 20))
    spec = written(folder, "base: scratch\nsteps: ['COPY . /x']\n")
    with pytest.raises(DeadlineExceeded):
        load(spec, deadline=Deadline.after(0))


def test_a_package_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    from conda_packages import Package
    from envbuild.conda.fetch import fetch_package

    record = Package((), name="a").put(tmp_path / "channel")
    path = Path(record.url.removeprefix("file://"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BuildError, match="it is a FIFO"):
        fetch_package(record, deadline=Deadline.after(5))


@pytest.mark.parametrize("name", ["envbuild.toml", "pyproject.toml"])
def test_settings_of_a_checkout_are_no_endless_file(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.write(b"[tool.envbuild]\n" if name == "pyproject.toml" else b"")
        file.truncate(64 << 30)
    with pytest.raises(SpecError, match="is larger than"):
        Config.load(folder)
