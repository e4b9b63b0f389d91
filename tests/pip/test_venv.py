"""The base's python, found by the names in its layers, and the virtual environment over it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from envbuild.digest import Digest
from envbuild.errors import BuildError, IntegrityError
from envbuild.pip.venv import BasePython, find_python
from envbuild.pip.wheel import install
from tiny_wheels import TinyWheel, unpack


@dataclass
class Layer:
    """A layer of some names; a value is a link's target, empty for a file."""

    names: dict[str, str]
    read: int = 0

    @property
    def content(self) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            device = tarfile.TarInfo("dev/null")
            device.type = tarfile.CHRTYPE
            archive.addfile(device)
            for name, target in self.names.items():
                info = tarfile.TarInfo(name)
                if target:
                    info.type, info.linkname = tarfile.SYMTYPE, target
                else:
                    info.size = 3
                archive.addfile(info, None if target else io.BytesIO(b"elf"))
        return out.getvalue()

    @property
    def digest(self) -> Digest:
        return Digest.of(self.content)

    def chunks(self) -> Iterator[bytes]:
        self.read += 1
        content = self.content
        for at in range(0, len(content), 777):
            yield content[at : at + 777]
        self.read += 1


def find(*layers: Layer, **variables: str) -> BasePython:
    facts: dict[str, str] = {}
    found = find_python(layers, variables, facts.get, facts.__setitem__)
    assert all(layer.read == 2 for layer in layers)
    assert find_python(layers, variables, facts.get, facts.__setitem__) == found
    assert all(layer.read == 2 for layer in layers), "what is known is not read again"
    return found


DEBIAN = {"usr/bin/python3.11": "", "./usr/bin/python3": "python3.11", "usr/bin/python3.11-config": ""}
OFFICIAL = {"usr/local/bin/python3.12": "", "usr/local/bin/python3": "python3.12"}


@pytest.mark.parametrize(
    ("layers", "variables", "expected"),
    [
        ([DEBIAN], {}, ("/usr/bin/python3.11", "3.11")),
        ([DEBIAN, OFFICIAL], {}, ("/usr/local/bin/python3.12", "3.12")),
        ([DEBIAN, OFFICIAL], {"PATH": "/usr/bin:/usr/local/bin"}, ("/usr/bin/python3.11", "3.11")),
        ([DEBIAN, OFFICIAL], {"PYTHON_VERSION": "3.12.7"}, ("/usr/local/bin/python3.12", "3.12.7")),
        ([DEBIAN, OFFICIAL], {"PYTHON_VERSION": "3.11.7"}, ("/usr/local/bin/python3.12", "3.12")),
        ([{"opt/conda/bin/python3.11": "", "opt/conda/bin/python": "python3.11"}],
         {"PATH": "/opt/conda/bin:/usr/bin"}, ("/opt/conda/bin/python3.11", "3.11")),
        ([{"usr/bin/python3.9": "", "usr/bin/python3.13": "", "usr/bin/python3.10": ""}], {},
         ("/usr/bin/python3.13", "3.13")),
        ([DEBIAN, {"usr/bin/python3.13": "", "usr/bin/python3": "/etc/alternatives/python3"}], {},
         ("/usr/bin/python3.13", "3.13")),
        ([DEBIAN, {"usr/bin/python3.12": "", "usr/bin/python3": "/usr/bin/python3.12"}], {},
         ("/usr/bin/python3.12", "3.12")),
        ([DEBIAN | OFFICIAL, {"usr/local/bin/.wh.python3": "", "usr/local/bin/.wh.python3.12": ""}], {},
         ("/usr/bin/python3.11", "3.11")),
        ([DEBIAN | OFFICIAL, {"usr/local/.wh.bin": ""}], {}, ("/usr/bin/python3.11", "3.11")),
        ([DEBIAN | OFFICIAL, {"usr/.wh.local": ""}], {}, ("/usr/bin/python3.11", "3.11")),
        ([DEBIAN | OFFICIAL, {"usr/local/.wh..wh..opq": ""}], {}, ("/usr/bin/python3.11", "3.11")),
        ([OFFICIAL, {".wh.usr": "", **DEBIAN}], {}, ("/usr/bin/python3.11", "3.11")),
        ([OFFICIAL, {".wh..wh..opq": "", **DEBIAN}], {}, ("/usr/bin/python3.11", "3.11")),
        ([DEBIAN | OFFICIAL, {"usr/local/.wh.bi": ""}], {}, ("/usr/local/bin/python3.12", "3.12")),
    ],
)  # fmt: skip
def test_the_python_is_the_one_that_the_path_finds(
    layers: list[dict[str, str]], variables: dict[str, str], expected: tuple[str, str]
) -> None:
    found = find(*(Layer(names) for names in layers), **variables)
    assert (found.executable, found.version) == expected


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"usr/bin/python": ""},
        {"usr/bin/python3": "python3"},
        {"home/bin/python3.11": ""},
        {"usr/bin/python2.7": ""},
    ],
)
def test_a_base_without_python_is_refused_with_a_way_out(names: dict[str, str]) -> None:
    with pytest.raises(BuildError, match="no python") as caught:
        find(Layer(names))
    assert "python" in str(caught.value.hint)


def test_what_is_no_archive_is_not_believed_or_remembered() -> None:
    class Broken(Layer):
        """A layer of noise."""

        def chunks(self) -> Iterator[bytes]:
            yield b"noise" * 1000

    facts: dict[str, str] = {}
    with pytest.raises(IntegrityError):
        find_python([Broken({})], {}, facts.get, facts.__setitem__)
    assert facts == {}


def test_a_real_python_uses_the_environment(tmp_path: Path) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    executable = str(Path(sys.executable).resolve())
    python = BasePython(executable, version)
    prefix = tmp_path / "env"
    target = python.target(str(prefix))
    wheel = TinyWheel(
        "tiny",
        files={
            "tiny/__init__.py": b"import sys\ndef main():\n    print(sys.prefix)\n",
            "tiny-1.0.data/scripts/plain": b"#!python\nimport tiny\ntiny.main()\n",
        },
        entry_points="[console_scripts]\ntiny = tiny:main\n",
    )
    unpack(python.files(), prefix)
    unpack(install(io.BytesIO(wheel.to_bytes()), wheel.distribution(), target), prefix)
    code = (
        "import importlib.metadata as m, json, sys, tiny; "
        "files = [str(f.locate().resolve()) for f in m.files('tiny')]; "
        "print(json.dumps([sys.prefix, sys.base_prefix, m.version('tiny'), files]))"
    )
    for name in ("python", "python3", f"python{target.python.short}"):
        ended = subprocess.run([prefix / "bin" / name, "-c", code], check=True, capture_output=True)
        own, base, seen, files = json.loads(ended.stdout)
        assert (own, seen) == (str(prefix), "1.0")
        assert base != own
        assert all(Path(path).is_file() for path in files)
    for command in ("tiny", "plain"):
        ended = subprocess.run([prefix / "bin" / command], check=True, capture_output=True)
        assert ended.stdout.decode().strip() == str(prefix)
