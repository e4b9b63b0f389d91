"""From a wheel to files: what an installer would make of it, and what nobody should install."""

from __future__ import annotations

import csv
import io
import json
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uv

from envbuild.conda.layer import Compression, write_layer
from envbuild.conda.link import PythonTarget
from envbuild.conda.tar import Kind
from envbuild.deadline import Deadline
from envbuild.errors import BuildError, EnvbuildError, IntegrityError
from envbuild.lock import PipDistribution
from envbuild.pip.distribution import WheelTarget, wheel_key
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.resolve import PipRequest, resolve
from envbuild.pip.wheel import install
from envbuild.platform import LINUX_AMD64
from envbuild.spec.pip import PipSection
from tiny_wheels import TinyWheel, digest_of, unpack, zipped

SITE = "lib/python3.11/site-packages"
PYTHON = PythonTarget("3.11.4", SITE)
TARGET = WheelTarget("/opt/env", PYTHON)
WHEEL = TinyWheel(
    "Tiny-Tool",
    files={
        "tiny_tool/data.bin": bytes(range(256)) * 9000,
        "tiny_tool/run.sh": b"#!/bin/sh\n",
        "tiny_tool/ünïcode.txt": b"u",
        "Tiny_Tool-1.0.data/scripts/script": b"#!python\nprint(1)\n",
        "Tiny_Tool-1.0.data/scripts/window": b"#!pythonw -u\nprint(2)\n",
        "Tiny_Tool-1.0.data/scripts/program": b"\x7fELF" + bytes(3_000_000),
        "Tiny_Tool-1.0.data/scripts/shell": b"#!/bin/sh\n",
        "Tiny_Tool-1.0.data/data/share/tiny/a": b"a",
        "Tiny_Tool-1.0.data/headers/tiny.h": b"h",
        "Tiny_Tool-1.0.data/purelib/pure.py": b"p = 1\n",
        "Tiny_Tool-1.0.data/platlib/plat.py": b"p = 2\n",
        "Tiny_Tool-1.0.dist-info/licenses/LICENSE": b"free",
        "Tiny_Tool-1.0.dist-info/INSTALLER": b"somebody",
    },
    entry_points="[console_scripts]\ntiny = tiny_tool:main\nTiny.2=tiny_tool.deep : Class.run [extra]\n"
    "[gui_scripts]\nwindowed = tiny_tool:win\n[other]\nx = y\n",
    executable=("tiny_tool/run.sh",),
)


def installed(
    wheel: TinyWheel, target: WheelTarget = TARGET, content: bytes | None = None
) -> dict[str, tuple[int, bytes]]:
    """The mode and content of each file."""
    source = io.BytesIO(wheel.to_bytes() if content is None else content)
    found = {}
    for file in install(source, wheel.distribution(), target):
        assert file.kind is Kind.FILE
        assert file.path not in found
        found[file.path] = (file.mode, b"".join(file.chunks))
        assert len(found[file.path][1]) == file.size
    return found


def test_each_file_goes_where_its_scheme_says() -> None:
    files = installed(WHEEL)
    info = f"{SITE}/Tiny_Tool-1.0.dist-info"
    assert set(files) == {
        f"{SITE}/Tiny_Tool/__init__.py",
        f"{SITE}/tiny_tool/data.bin",
        f"{SITE}/tiny_tool/run.sh",
        f"{SITE}/tiny_tool/ünïcode.txt",
        f"{SITE}/pure.py",
        f"{SITE}/plat.py",
        "bin/script",
        "bin/window",
        "bin/program",
        "bin/shell",
        "bin/tiny",
        "bin/Tiny.2",
        "bin/windowed",
        "share/tiny/a",
        "include/python3.11/tiny-tool/tiny.h",
        *(f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "INSTALLER", "entry_points.txt")),
        f"{info}/licenses/LICENSE",
    }
    assert files[f"{info}/INSTALLER"] == (0o644, b"envbuild\n")
    assert files[f"{SITE}/tiny_tool/run.sh"][0] == 0o755
    assert files[f"{SITE}/tiny_tool/data.bin"] == (0o644, WHEEL.files["tiny_tool/data.bin"])


def test_scripts_run_the_environments_python() -> None:
    files = installed(WHEEL)
    assert files["bin/script"] == (0o755, b"#!/opt/env/bin/python\nprint(1)\n")
    assert files["bin/window"] == (0o755, b"#!/opt/env/bin/python\nprint(2)\n")
    assert files["bin/program"] == (0o755, WHEEL.files["Tiny_Tool-1.0.data/scripts/program"])
    assert files["bin/shell"] == (0o755, b"#!/bin/sh\n")
    assert files["bin/tiny"][0] == 0o755
    assert files["bin/tiny"][1].startswith(b"#!/opt/env/bin/python3.11\n")
    assert b"from tiny_tool.deep import Class\n" in files["bin/Tiny.2"][1]
    assert b"sys.exit(Class.run())" in files["bin/Tiny.2"][1]


def test_record_lists_every_file_with_its_digest() -> None:
    files = installed(WHEEL)
    record = files[f"{SITE}/Tiny_Tool-1.0.dist-info/RECORD"][1].decode()
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(record))}
    base = Path("/opt/env") / SITE
    assert rows.pop("Tiny_Tool-1.0.dist-info/RECORD") == ["", ""]
    named = {str((base / path).resolve().relative_to("/opt/env")): row for path, row in rows.items()}
    del files[f"{SITE}/Tiny_Tool-1.0.dist-info/RECORD"]
    assert named == {path: [digest_of(content), str(len(content))] for path, (_, content) in files.items()}


def test_a_wheel_from_a_url_says_so() -> None:
    distribution = replace(WHEEL.distribution(), direct_url="https://example.org/a.whl")
    files = {
        file.path: b"".join(file.chunks)
        for file in install(io.BytesIO(WHEEL.to_bytes()), distribution, TARGET)
    }
    assert json.loads(files[f"{SITE}/Tiny_Tool-1.0.dist-info/direct_url.json"]) == {
        "url": "https://example.org/a.whl",
        "archive_info": {
            "hash": f"sha256={distribution.sha256.hex}",
            "hashes": {"sha256": distribution.sha256.hex},
        },
    }


def test_the_layer_is_the_same_again_and_whoever_looks_only_at_names_still_verifies() -> None:
    def layer() -> str:
        files = install(io.BytesIO(WHEEL.to_bytes()), WHEEL.distribution(), TARGET)
        return str(write_layer(files, io.BytesIO(), Compression.of("gzip")).descriptor.digest)

    assert layer() == layer()
    broken = tampered(WHEEL, "tiny_tool/data.bin", b"x" * 256 * 9000)
    with pytest.raises(IntegrityError, match=r"data\.bin"):
        [file.path for file in install(io.BytesIO(broken), WHEEL.distribution(), TARGET)]


def test_the_key_knows_all_that_the_layer_depends_on() -> None:
    distribution, gzip = WHEEL.distribution(), Compression.of("gzip")
    keys = [
        wheel_key(distribution, TARGET, gzip),
        wheel_key(replace(distribution, direct_url="https://example.org/a.whl"), TARGET, gzip),
        wheel_key(replace(distribution, sha256=type(distribution.sha256)("0" * 64)), TARGET, gzip),
        wheel_key(distribution, replace(TARGET, prefix="/opt/other"), gzip),
        wheel_key(distribution, replace(TARGET, venv=True), gzip),
        wheel_key(distribution, replace(TARGET, python=PythonTarget("3.12.1", SITE)), gzip),
        wheel_key(distribution, replace(TARGET, python=PythonTarget("3.11.4", "lib/x")), gzip),
        wheel_key(distribution, TARGET, Compression.of("zstd")),
        wheel_key(replace(distribution, requested=True), TARGET, gzip),
        wheel_key(replace(distribution, direct_url="file:///x", built_from="folder"), TARGET, gzip),
        wheel_key(replace(distribution, direct_url="file:///x", built_from="0" * 64), TARGET, gzip),
    ]
    assert len(set(keys)) == len(keys)
    # Neither the place of the wheel nor the patch version of python is in its files.
    same = replace(distribution, url="https://mirror.example.org/x.whl", size=None)
    assert wheel_key(same, replace(TARGET, python=PythonTarget("3.11.9", SITE)), gzip) == keys[0]


def tampered(wheel: TinyWheel, path: str, content: bytes) -> bytes:
    """The wheel with another content of a file, and the RECORD of before."""
    members = {**wheel.contents(), f"{wheel.info}/RECORD": wheel.record().encode()}
    return zipped({**members, path: content}.items())


def with_record(wheel: TinyWheel, record: str) -> bytes:
    return zipped([*wheel.contents().items(), (f"{wheel.info}/RECORD", record.encode())])


def with_attributes(wheel: TinyWheel, path: str, mode: int) -> bytes:
    """The wheel with another file type in a member's attributes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in [*wheel.contents().items(), (f"{wheel.info}/RECORD", wheel.record().encode())]:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode if name == path else 0o100644) << 16
            archive.writestr(info, content)
    return out.getvalue()


def twice(wheel: TinyWheel) -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped([("x/a.py", b"1"), ("x/a.py", b"1"), *wheel.contents().items()])


def overlapping(wheel: TinyWheel) -> bytes:
    """Two members that share their bytes."""
    content = bytearray(wheel.to_bytes())
    at = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", at + 4)
    content[second + 42 : second + 46] = content[at + 42 : at + 46]
    return bytes(content)


def encrypted(wheel: TinyWheel) -> bytes:
    content = bytearray(wheel.to_bytes())
    at = content.index(b"PK\x01\x02")
    struct.pack_into("<H", content, at + 8, 1)
    return bytes(content)


T = TinyWheel("tiny", files={"tiny/a.py": b"a = 1\n"})


def files(**more: bytes) -> Callable[[], bytes]:
    """A wheel with further files; ``__`` stands for what no name can hold."""
    return lambda: replace(T, files={**T.files, **more}).to_bytes()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "climbs out": files(**{"../evil": b"x"}),
    "climbs out inside": files(**{"tiny/../../evil": b"x"}),
    "absolute": files(**{"/etc/passwd": b"x"}),
    "a dot": files(**{"./tiny/b": b"x"}),
    "an empty part": files(**{"tiny//b": b"x"}),
    "a backslash": files(**{"tiny\\b": b"x"}),
    "a control character": files(**{"tiny/b\n": b"x"}),
    "a file that is a folder": files(**{"tiny/a.py/b": b"x"}),
    "out by data": files(**{"tiny-1.0.data/data/../../x": b"x"}),
    "an unknown scheme": files(**{"tiny-1.0.data/etc/x": b"x"}),
    "a file among the schemes": files(**{"tiny-1.0.data/x": b"x"}),
    "one place twice": files(**{"tiny-1.0.data/purelib/tiny/a.py": b"x"}),
    "a second dist-info": files(**{"other-1.0.dist-info/METADATA": b"x"}),
    "a symbolic link": lambda: with_attributes(T, "tiny/a.py", stat.S_IFLNK | 0o777),
    "a device": lambda: with_attributes(T, "tiny/a.py", stat.S_IFCHR | 0o666),
    "a folder named as a file": lambda: with_attributes(T, "tiny/a.py", stat.S_IFDIR | 0o755),
    "a member twice": lambda: twice(T),
    "members over each other": lambda: overlapping(T),
    "encrypted": lambda: encrypted(T),
    "a bomb": files(**{"tiny/zeros": bytes(300 << 20)}),
    "no zip": lambda: b"PK nothing",
    "cut": lambda: T.to_bytes()[:-30],
    "another content than RECORD": lambda: tampered(T, "tiny/a.py", b"b = 1\n"),
    "another size than RECORD": lambda: tampered(T, "tiny/a.py", b"longer = 1\n"),
    "not in RECORD": lambda: tampered(T, "tiny/more.py", b""),
    "no RECORD": lambda: zipped(T.contents().items()),
    "a weak hash": lambda: with_record(T, T.record().replace("sha256=", "md5=")),
    "a RECORD with short lines": lambda: with_record(T, "tiny/a.py\n"),
    "a RECORD with no numbers": lambda: with_record(T, T.record().replace(",6\n", ",six\n")),
    "another name": lambda: replace(T, name="other").to_bytes(),
    "another version": lambda: replace(T, version="2.0").to_bytes(),
    "an entry point of two lines": lambda: replace(T, entry_points="[console_scripts]\n ???").to_bytes(),
    "an entry point out": lambda: replace(T, entry_points="[console_scripts]\n../x = a:b").to_bytes(),
    "an entry point of code": lambda: replace(T, entry_points="[console_scripts]\nx = a:b;evil()").to_bytes(),
    "an entry point of nothing": lambda: replace(T, entry_points="[console_scripts]\nx = a").to_bytes(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_nobody_should_install_is_refused(what: str) -> None:
    assert installed(T)
    with pytest.raises(IntegrityError):
        installed(T, content=HOSTILE[what]())


def test_every_byte_that_is_changed_is_refused_or_changes_nothing() -> None:
    good = T.to_bytes()
    expected = installed(T)
    refused = 0
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :]
        try:
            files = installed(T, content=bad)
        except EnvbuildError:
            refused += 1
        else:
            assert {path: content for path, (_, content) in files.items()} == {
                path: content for path, (_, content) in expected.items()
            }
    assert refused > len(good) // 2


def test_a_wheel_of_another_format_is_refused_with_a_way_out() -> None:
    record = T.contents()[f"{T.info}/WHEEL"].replace(b"1.0", b"2.0")
    members = {**T.contents(), f"{T.info}/WHEEL": record}
    rows = [f"{path},{digest_of(content)},{len(content)}\n" for path, content in members.items()]
    content = zipped([*members.items(), (f"{T.info}/RECORD", "".join(rows).encode())])
    with pytest.raises(BuildError, match=r"2\.0"):
        installed(T, content=content)


def run(*arguments: str) -> None:
    subprocess.run([uv.find_uv_bin(), *arguments], check=True, capture_output=True)


def test_the_files_are_those_that_uv_installs(tmp_path: Path) -> None:
    wheels = [WHEEL, T, TinyWheel("tiny-dep", entry_points="[console_scripts]\ndep = tiny_dep:main\n")]
    venv = tmp_path / "venv"
    run("venv", "--no-config", "--python", sys.executable, str(venv))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    target = WheelTarget(str(venv), PythonTarget(version, f"lib/python{version}/site-packages"), venv=True)
    compare(tmp_path, venv, target, [(wheel.put(tmp_path), wheel.distribution()) for wheel in wheels])


def compare(
    tmp_path: Path, venv: Path, target: WheelTarget, wheels: list[tuple[Path, PipDistribution]]
) -> None:
    """Install with uv and with envbuild for one prefix, and compare all but what must differ."""
    before = listing(venv)
    paths = [str(path) for path, _ in wheels]
    run(
        "pip",
        "install",
        "--no-config",
        "--no-deps",
        "--offline",
        "--python",
        str(venv / "bin/python"),
        *paths,
    )
    theirs = {path: seen for path, seen in listing(venv).items() if path not in {*before, ".lock"}}
    ours_folder = tmp_path / "ours"
    commands = set()
    for path, distribution in wheels:
        with path.open("rb") as source:
            unpack(install(source, distribution, target), ours_folder)
    ours = listing(ours_folder)
    for place, (_, content) in ours.items():
        if place.startswith("bin/") and b"sys.argv[0] = re.sub(" in content:
            commands.add(place)
    for name in ("REQUESTED", "uv_cache.json", "direct_url.json", "RECORD", "INSTALLER"):
        theirs = {path: seen for path, seen in theirs.items() if not path.endswith(f".dist-info/{name}")}
        ours = {path: seen for path, seen in ours.items() if not path.endswith(f".dist-info/{name}")}
    assert set(ours) == set(theirs)
    assert {path: ours[path][0] for path in ours} == {path: theirs[path][0] for path in theirs}
    different = {path for path in ours if ours[path][1] != theirs[path][1]}
    assert different <= commands


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The permission and content of each file."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode & 0o777, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


REAL = ("ninja", "jinja2", "pyyaml", "pytest", "requests", "rich")
"""Distributions with commands, compiled modules, a program and data, and what they need."""


def test_the_files_of_real_wheels_are_those_that_uv_installs(tmp_path: Path) -> None:
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    section = PipSection.from_requirements("\n".join(REAL).encode(), "requirements.txt", None)
    site = f"lib/python{python}/site-packages"
    request = PipRequest(section, LINUX_AMD64, PythonTarget(python, site), "2.36")
    solution = resolve(request, cache_dir=tmp_path / "cache", deadline=Deadline.after(300))
    assert {*REAL} < {distribution.name for distribution in solution.distributions}
    wheels = []
    for distribution in solution.distributions:
        path = tmp_path / distribution.file_name
        url = solution.urls[distribution.url]
        with fetch_wheel(distribution, url=url, deadline=Deadline.after(300)) as stream:
            path.write_bytes(stream.read())
        assert path.stat().st_size == distribution.size
        wheels.append((path, distribution))
    venv = tmp_path / "venv"
    run("venv", "--no-config", "--python", sys.executable, str(venv))
    compare(tmp_path, venv, WheelTarget(str(venv), PythonTarget(python, site), venv=True), wheels)
