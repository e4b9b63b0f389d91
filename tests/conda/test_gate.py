"""Whatever packages, wheels and channels say, a layer holds files of the prefix and nothing that deletes."""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from conda_packages import Entry, Package
from envbuild.conda.layer import Compression, write_layer
from envbuild.conda.link import FIXED_TIME, LinkedFile, LinkTarget, PythonTarget, link
from envbuild.conda.package import Package as Opened
from envbuild.conda.tar import Kind
from envbuild.digest import Digest
from envbuild.errors import IntegrityError
from envbuild.lock import PipDistribution
from envbuild.pip.distribution import WheelTarget
from envbuild.pip.wheel import install
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from tiny_wheels import TinyWheel

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

GZIP = Compression.of("gzip")
SITE = "lib/python3.11/site-packages"
PYTHON = PythonTarget("3.11.9", SITE)
TARGET = LinkTarget(python=PYTHON)
PIECES = ("a", "lib", "bin", ".", "..", "", ".wh.a", ".wh..wh..opq", "a\n", "\x00", "x" * 300, "A", "ü", "\\")
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("/".join)


def written(files: Iterable[LinkedFile]) -> list[tarfile.TarInfo]:
    """The members of the layer that files become."""
    out = io.BytesIO()
    write_layer(files, out, GZIP)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()), mode="r:gz") as archive:
        return archive.getmembers()


def check(files: Iterable[LinkedFile]) -> bool:
    """Whether a layer came out; what came out is harmless by what a reader of its own sees."""
    try:
        members = written(files)
    except IntegrityError:
        return False
    folders: set[str] = set()
    for member in members:
        assert re.match(r"opt(/env(/|$)|$)", member.name)
        parts = member.name.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert not any(part.startswith(".wh.") for part in parts)
        assert not re.search(r"[\x00-\x1f\x7f]", member.name)
        assert max(len(part.encode()) for part in parts) <= 255
        assert posixpath.dirname(member.name) in folders | {""}
        if member.isdir():
            folders.add(member.name)
            continue
        assert member.name not in folders
        assert member.isreg() or member.issym() or member.islnk()
        assert member.mode & ~0o777 == 0
        if member.islnk():
            assert member.linkname.startswith("opt/env/")
        if member.issym() and not member.linkname.startswith("/"):
            end = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
            assert f"{end}/".startswith("opt/env/")
    return True


def conda(package: Package, **more: Any) -> Iterable[LinkedFile]:
    content = package.write_conda()
    record = replace(package.record(content), **more)
    yield from link(Opened.open(io.BytesIO(content), str(record)), record, TARGET)


@given(NAMES, st.sampled_from(["file", "link", "hard"]), NAMES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_no_path_of_a_conda_package_leads_out(path: str, kind: str, other: str) -> None:
    entry = {
        "file": Entry(path, b"x"),
        "link": Entry(path, link=other or "a"),
        "hard": Entry(path, hard=other),
    }[kind]
    check(conda(Package((Entry("keep", b"k"), entry))))


@given(NAMES, NAMES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_no_path_of_a_python_package_leads_out(path: str, command: str) -> None:
    entries = (Entry(f"site-packages/{path}", b"x"), Entry(f"python-scripts/{path}", b"y"))
    check(conda(Package(entries, noarch="python", entry_points=(f"{command} = m:f",))))


@given(NAMES, NAMES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_no_path_of_a_wheel_leads_out(path: str, command: str) -> None:
    wheel = TinyWheel(
        "tiny",
        files={path: b"x", f"tiny-1.0.data/scripts/{path}": b"y", f"tiny-1.0.data/data/{path}": b"z"},
        entry_points=f"[console_scripts]\n{command} = m:f\n",
    )
    try:
        content = wheel.to_bytes()
    except ValueError:
        return  # no zip has such a name
    check(wheel_files(wheel, content))


def wheel_files(wheel: TinyWheel, content: bytes) -> Iterable[LinkedFile]:
    distribution = PipDistribution(
        wheel.name, wheel.version, "https://x/y.whl", Digest.of(content), len(content), wheel.file_name
    )
    yield from install(io.BytesIO(content), distribution, WheelTarget("/opt/env", PYTHON))


@given(st.lists(st.tuples(NAMES, st.sampled_from(Kind), NAMES, st.sampled_from("pq")), max_size=6))
@settings(max_examples=300)
def test_no_list_of_files_leads_out(files: list[tuple[str, Kind, str, str]]) -> None:
    """Also where two owners share a layer, and one has a link where the other has a folder."""
    made = [
        LinkedFile(path, kind, 0o644, FIXED_TIME, 0, (), target, owner) for path, kind, target, owner in files
    ]
    try:
        members = written(made)
    except IntegrityError:
        return
    links: set[str] = set()
    for member in members:
        above = posixpath.dirname(member.name)
        assert above not in links, "nothing is written through a link"
        links.discard(member.name)
        if member.issym():
            links.add(member.name)


def test_ordinary_files_pass() -> None:
    entries = (
        Entry("bin/tool", b"x"),
        Entry("lib/a/b", link="../c"),
        Entry("lib/c", b"x"),
        Entry("lib/h", hard="lib/c"),
    )
    assert check(conda(Package(entries)))
    assert check(
        conda(Package((Entry("site-packages/m.py", b"x"),), noarch="python", entry_points=("c = m:f",)))
    )
    wheel = TinyWheel("tiny", files={"tiny/a.py": b"a"})
    assert check(wheel_files(wheel, wheel.to_bytes()))


@pytest.mark.parametrize(
    "name", ["tiny/.wh.a.py", "tiny/.wh..wh..opq", ".wh.tiny/a.py", "tiny-1.0.data/scripts/.wh.python"]
)
def test_a_wheel_deletes_nothing(name: str) -> None:
    wheel = TinyWheel("tiny", files={"tiny/b.py": b"b", name: b""})
    with pytest.raises(
        IntegrityError, match=r"tiny-1\.0-py3-none-any\.whl would install '.*\.wh\..*deletes files"
    ):
        written(wheel_files(wheel, wheel.to_bytes()))


@pytest.mark.parametrize(
    "name", ["conda-meta/other-1.0-0.json", "conda-meta/notes.json", "conda-meta/other-1.0-0.json/x"]
)
def test_records_are_written_by_the_installer_alone(name: str) -> None:
    with pytest.raises(IntegrityError, match=r"conda-meta.*record"):
        written(conda(Package((Entry("share/x", b"x"), Entry(name, b"{}")))))
    with pytest.raises(IntegrityError, match=r"conda-meta.*record"):
        written(conda(Package((Entry(name, link="../share/x"),))))
    wheel = TinyWheel("tiny", files={f"tiny-1.0.data/data/{name}": b"{}"})
    with pytest.raises(IntegrityError, match=r"conda-meta.*record"):
        written(wheel_files(wheel, wheel.to_bytes()))


def test_what_is_no_record_may_stand_beside_them() -> None:
    entries = (Entry("conda-meta/pinned", b"python 3.11.*\n"), Entry("conda-meta/more/notes.json", b"?"))
    assert check(conda(Package(entries)))


def test_whiteouts_are_for_the_environment_alone() -> None:
    (*_, member) = written([LinkedFile.whiteout("lib/old.py")])
    assert member.name == "opt/env/lib/.wh.old.py"
    with pytest.raises(IntegrityError, match="deletes"):
        written([LinkedFile.whiteout(".wh.lib/old.py")])


def test_a_folder_is_written_again_where_a_later_owner_put_a_link() -> None:
    files = [
        LinkedFile("lib/d/one", Kind.FILE, 0o644, FIXED_TIME, owner="p"),
        LinkedFile("lib/d", Kind.SYMLINK, 0o777, FIXED_TIME, target="/etc", owner="q"),
        LinkedFile("lib/d/passwd", Kind.FILE, 0o644, FIXED_TIME, owner="p"),
    ]
    names = [(member.name, member.type) for member in written(files)]
    assert names[-3:] == [
        ("opt/env/lib/d", tarfile.SYMTYPE),
        ("opt/env/lib/d", tarfile.DIRTYPE),
        ("opt/env/lib/d/passwd", tarfile.REGTYPE),
    ]


@pytest.mark.parametrize(
    "field",
    [
        {"name": "../x"},
        {"name": "a/b"},
        {"name": ""},
        {"version": "1/../../2"},
        {"build": "../../x"},
        {"build": "0\n"},
        {"build": "x" * 200},
        {"subdir": "../noarch"},
        {"url": "https://host/a\nb"},
        {"python_site_packages_path": "../x"},
        {"python_site_packages_path": "lib/../../x"},
        {"python_site_packages_path": "/lib"},
        {"python_site_packages_path": "lib//x"},
        {"python_site_packages_path": "lib/"},
        {"python_site_packages_path": ""},
    ],
)
def test_a_record_holds_nothing_that_leads_elsewhere(field: dict[str, Any]) -> None:
    record = Package((Entry("a"),)).record(b"x")
    with pytest.raises(IntegrityError, match="which no package can have"):
        replace(record, **field)


def test_records_of_real_channels_are_read() -> None:
    record = Package((Entry("a"),)).record(b"x")
    for name, version, build in (
        ("_libgcc_mutex", "0.1", "conda_forge"),
        ("libstdcxx-ng", "13.2.0", "h7e041cc_5"),
        ("tzdata", "2024a", "h0c530f3_0"),
        ("x265", "3.5", "h924138e_3"),
        ("blas", "1.0", "mkl"),
        ("r-base", "4.3.3", "r43h1_0"),
        ("pkg", "1!2.0.post1+local_1", "py3.12_0"),
    ):
        assert str(replace(record, name=name, version=version, build=build)) == f"{name}-{version}-{build}"
    for path in ("lib/python3.13t/site-packages", "lib/python3.11/site-packages", "site-packages"):
        assert PythonTarget.of(replace(record, python_site_packages_path=path)).site_packages == path


@pytest.mark.parametrize(
    "members",
    [{"build": "../../../../x"}, {"python_site_packages_path": "../../../usr"}],
    ids=lambda members: next(iter(members)),
)
def test_a_hostile_channel_is_refused(members: dict[str, str], tmp_path: Path) -> None:
    world = tiny.World.make(tmp_path)
    world.patch("linux-64", **members)
    with Resolver(world.config) as resolver, pytest.raises(IntegrityError, match="which no package can have"):
        resolver.resolve(world.spec("python"))
    assert not list(world.layout().tags())


def test_a_channel_that_leaves_noarch_out_is_the_same_channel(tmp_path: Path) -> None:
    world = tiny.World.make(tmp_path)
    with Resolver(world.config) as resolver:
        expected = resolver.resolve(world.spec("pyth", "python"))
    world.patch("noarch", noarch=None)
    with Resolver(world.other_machine(workspace=Repository.parse(f"oci:{tmp_path}/other"))) as resolver:
        image = resolver.resolve(world.spec("pyth", "python"))
    assert image.reference.digest == expected.reference.digest
