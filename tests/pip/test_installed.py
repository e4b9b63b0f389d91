"""What Conda installed and pip knows: found by hashes, deleted by whiteouts."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from envbuild.conda.layer import Compression, PathHashes, write_layer
from envbuild.conda.link import LinkedFile, PythonTarget
from envbuild.conda.tar import Kind
from envbuild.digest import Digest
from envbuild.errors import BuildError
from envbuild.lock import PackageRecord, PipDistribution
from envbuild.pip.installed import CondaDistributions, Installed, paths_of, stub, whiteouts, without
from tiny_wheels import TinyWheel, unpack

SITE = "lib/python3.11/site-packages"
PYTHON = PythonTarget("3.11.4", SITE)


def record(name: str, version: str) -> PackageRecord:
    return PackageRecord(
        name, version, "0", 0, "noarch", f"https://example.org/{name}.conda", Digest("0" * 64)
    )


def wheel(name: str, file_name: str) -> PipDistribution:
    return PipDistribution(name, "9.9", "https://example.org/x", Digest("1" * 64), 1, file_name)


def found_in(path: str, distribution: PipDistribution, *records: PackageRecord) -> Installed | None:
    hashes = PathHashes.of([path, "bin/other"], ["lib"])
    others = PathHashes.of([f"{SITE}/six.py"], ["lib"])
    layers = [((record("six", "1.16"),), others), (records, hashes)]
    return CondaDistributions.of(layers, PYTHON).find(distribution)


@pytest.mark.parametrize(
    ("folder", "file", "name", "file_name"),
    [
        ("PyYAML-6.0.1.dist-info", "/METADATA", "pyyaml", "PyYAML-9.9-cp311-cp311-linux_x86_64.whl"),
        ("pyyaml-6.0.1.dist-info", "/METADATA", "pyyaml", "PyYAML-9.9-cp311-cp311-linux_x86_64.whl"),
        ("PyYAML-6.0.1-py3.11.egg-info", "", "pyyaml", "PyYAML-9.9-cp311-cp311-linux_x86_64.whl"),
        ("Jinja2-6.0.1.dist-info", "/METADATA", "jinja2", "jinja2-9.9-py3-none-any.whl"),
        ("my_tool-6.0.1.dist-info", "/METADATA", "my-tool", "my_tool-9.9-py3-none-any.whl"),
        ("my-tool-6.0.1.egg-info", "/PKG-INFO", "my-tool", "my_tool-9.9-py3-none-any.whl"),
        ("my.tool-6.0.1.dist-info", "/METADATA", "my-tool", "my.tool-9.9-py3-none-any.whl"),
    ],
)
def test_a_distribution_is_found_by_the_paths_it_would_have(
    folder: str, file: str, name: str, file_name: str
) -> None:
    owner = record("whatever", "6.0.1")
    found = found_in(f"{SITE}/{folder}{file}", wheel(name, file_name), record("a", "1"), owner)
    assert found == Installed(name, "6.0.1", f"{SITE}/{folder}", (owner,))


def test_what_is_not_there_is_not_found() -> None:
    distribution = wheel("tiny", "tiny-9.9-py3-none-any.whl")
    path = f"{SITE}/tiny-1.0.dist-info/METADATA"
    assert found_in(path, distribution, record("tiny", "1.0")) is not None
    assert found_in(path, distribution, record("tiny", "1.1")) is None
    assert found_in(path.replace("3.11", "3.12"), distribution, record("tiny", "1.0")) is None
    assert found_in(f"{SITE}/tiny/METADATA", distribution, record("tiny", "1.0")) is None
    assert found_in(path, wheel("other", "other-1-py3-none-any.whl"), record("tiny", "1.0")) is None


def generated(*paths: str, record_text: str | None = None) -> list[LinkedFile]:
    files = [LinkedFile.generated(path, b"x") for path in paths]
    if record_text is not None:
        files.append(LinkedFile.generated(f"{SITE}/tiny-1.0.dist-info/RECORD", record_text.encode()))
    return [*files, LinkedFile("share/link", Kind.SYMLINK, 0o777, 0, target="x")]


TINY = Installed("tiny", "1.0", f"{SITE}/tiny-1.0.dist-info", ())


def test_what_belongs_to_a_distribution_is_what_its_record_lists() -> None:
    files = generated(
        f"{SITE}/tiny/__init__.py", f"{SITE}/other.py", "bin/tiny", "conda-meta/tiny.json",
        record_text="tiny/__init__.py,,\n../../../bin/tiny,,\ntiny/gone.pyc,,\n../../../../../etc/passwd,,\n"
        "tiny-1.0.dist-info/RECORD,,\n",
    )  # fmt: skip
    own, present = paths_of(files, TINY)
    assert own == {"bin/tiny", f"{SITE}/tiny-1.0.dist-info/RECORD", f"{SITE}/tiny/__init__.py"}
    assert present == own | {f"{SITE}/other.py", "conda-meta/tiny.json", "share/link"}


def test_all_of_its_metadata_belongs_to_it_whatever_its_record_lists() -> None:
    info = f"{SITE}/tiny-1.0.dist-info"
    files = generated(f"{info}/unlisted", f"{info}/licenses/MIT", record_text="tiny.py,,\n")
    assert paths_of(files, TINY).own == {f"{info}/RECORD", f"{info}/unlisted", f"{info}/licenses/MIT"}


def test_the_compiled_form_of_a_module_goes_with_it() -> None:
    """Left behind, it would be taken for that of the module which takes its place."""
    cache = f"{SITE}/tiny/__pycache__"
    files = generated(
        f"{SITE}/tiny/__init__.py", f"{cache}/__init__.cpython-311.pyc", f"{cache}/other.cpython-311.pyc",
        f"{SITE}/tiny-1.0.dist-info/RECORD",
        record_text="tiny/__init__.py,,\n",
    )  # fmt: skip
    assert paths_of(files, TINY).own == {
        f"{SITE}/tiny/__init__.py",
        f"{cache}/__init__.cpython-311.pyc",
        f"{SITE}/tiny-1.0.dist-info/RECORD",
    }


def test_without_a_record_it_is_all_that_the_package_has_there() -> None:
    files = generated(f"{SITE}/tiny.py", f"{SITE}/tiny-1.0.egg-info", "bin/tiny", "conda-meta/tiny.json")
    assert paths_of(files, TINY).own == {f"{SITE}/tiny-1.0.egg-info", f"{SITE}/tiny.py"}


def test_whiteouts_delete_and_add_nothing() -> None:
    out = io.BytesIO()
    write_layer(whiteouts(["lib/b.py", "lib/a.py", "top", "lib/b.py"]), out, Compression.of("gzip"))
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        files = {member.name: member.size for member in archive if member.isfile()}
    assert files == {"opt/env/.wh.top": 0, "opt/env/lib/.wh.a.py": 0, "opt/env/lib/.wh.b.py": 0}


def test_a_stand_in_is_a_wheel_of_that_name_and_version(tmp_path: Path) -> None:
    stub(Installed("my-tool", "1.0.0", "", ()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["my_tool-1.0.0-py3-none-any.whl"]


def test_the_helpers_put_files_on_a_disk(tmp_path: Path) -> None:
    unpack(generated("a/b"), tmp_path)
    assert (tmp_path / "a/b").read_bytes() == b"x"
    assert TinyWheel("my-tool").file_name == "my_tool-1.0-py3-none-any.whl"


def test_what_is_removed_leaves_no_folder_behind() -> None:
    files = [LinkedFile.generated(path, b"") for path in ("a/b", "a/c", "d/e", "top")]
    left = list(without(files, {"a/b", "d/e", "top"}))
    assert [(file.path, file.kind) for file in left] == [("a/c", Kind.FILE)]


def test_a_hard_link_to_what_is_removed_is_refused() -> None:
    files = [LinkedFile.generated("a", b""), LinkedFile("b", Kind.HARDLINK, 0o644, 0, target="a")]
    assert len(list(without(files, {"b"}))) == 1
    with pytest.raises(BuildError, match="b is a hard link to a"):
        list(without(files, {"a"}))
