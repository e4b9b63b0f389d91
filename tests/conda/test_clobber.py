"""Of packages that carry one path the one keeps it that keeps it under rattler, and the records say so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest
from rattler.exceptions import InstallerError

import conda_oracle as oracle
from conda_packages import PLACEHOLDER, Entry, Package
from envbuild.conda.clobber import Clobber, Footprint, clobbers, lost_paths
from envbuild.conda.link import LinkTarget, PythonTarget, footprint, link
from envbuild.conda.order import installation_order
from envbuild.conda.package import Package as Opened
from envbuild.errors import BuildError
from envbuild.lock import PackageRecord

PYTHON = Package((Entry("bin/python3.11", b"x" * 100, 0o755),), name="python", version="3.11.4")
TARGET = LinkTarget(python=PythonTarget("3.11.4", "lib/python3.11/site-packages"))


def package(name: str, *entries: Entry, needs: tuple[str, ...] = (), **more: Any) -> Package:
    return Package(entries, name=name, index={"depends": list(needs)}, **more)


def linked(opened: Sequence[tuple[PackageRecord, IO[bytes]]]) -> dict[str, oracle.Installed]:
    """What envbuild installs of packages together."""
    streams = {record.name: stream for record, stream in opened}
    order = installation_order(record for record, _ in opened)
    packages = [(Opened.open(streams[record.name], str(record)), record) for record in order]
    lost = lost_paths([footprint(each, record, TARGET) for each, record in packages])
    found: dict[str, oracle.Installed] = {}
    for (each, record), paths in zip(packages, lost, strict=True):
        files = oracle.collect(link(each, record, TARGET, lost=paths))
        assert not found.keys() & files.keys()
        found |= files
    return found


def together(folder: Path, *packages: Package) -> dict[str, oracle.Installed]:
    channel = folder / "channel"
    with ExitStack() as stack:
        opened = []
        for each in packages:
            stream = (channel / each.subdir / f"{each.stem}.conda").open("rb")
            content = stack.enter_context(stream)
            depends = tuple(each.index.get("depends", ()))
            record = each.record(each.write_conda(), Path(stream.name).as_uri())
            opened.append((PackageRecord(**{**fields(record), "depends": depends}), content))
        return linked(opened)


def fields(record: PackageRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in PackageRecord.__dataclass_fields__}


def compared(paths: dict[str, oracle.Installed]) -> dict[str, Any]:
    """The files, and the records without the order of their paths: rattler's is another each time."""
    found = oracle.normalise(paths, {"bin/tool"})
    return {name: sorted(each) if name.endswith(".json:files") else each for name, each in found.items()}


F = Entry
SAME = {
    "one file": (package("a", F("s", b"a"), F("x", b"")), package("b", F("s", b"b"))),
    "one file, the other wins": (package("a", F("s", b"a")), package("b", F("s", b"b"), needs=("a",))),
    "round a corner": (
        package("a", F("s", b"a")),
        package("m", needs=("a",)),
        package("z", F("s", b"z"), needs=("m",)),
    ),
    "three": (package("a", F("s", b"a")), package("b", F("s", b"b")), package("c", F("s", b"c"))),
    "equal content": (package("a", F("s", b"=")), package("b", F("s", b"="))),
    "two links": (package("a", F("l", link="t1")), package("b", F("l", link="t2"))),
    "link and file": (package("a", F("l", link="t1")), package("b", F("l", b"file", 0o755))),
    "prefix": (
        package("a", F("s", b"a")),
        package("b", F("s", f"#!{PLACEHOLDER}/x".encode(), 0o755, placeholder="text")),
    ),
    "hard links to what lost": (
        package("a", F("x", b"a")),
        package("b", F("x", b"b"), F("h", hard="x"), F("g", hard="h")),
    ),
    "hard links to what won": (package("a", F("x", b"a"), F("h", hard="x")), package("b", F("x", b"b"))),
    "modules": (
        PYTHON,
        package("n", F("site-packages/n/m.py", b"n"), needs=("python",), noarch="python"),
        package("o", F("lib/python3.11/site-packages/n/m.py", b"o")),
    ),
}


@pytest.mark.parametrize("packages", SAME.values(), ids=SAME.keys())
def test_the_result_is_rattlers(packages: tuple[Package, ...], tmp_path: Path) -> None:
    expected = oracle.install_all(packages, tmp_path)
    assert compared(together(tmp_path, *packages)) == compared(expected)


VARYING = {
    "folder and file": (package("a", F("lib/l/x", b"in")), package("b", F("lib/l", b"file"))),
    "folder wins": (package("a", F("lib/l", b"f")), package("b", F("lib/l/x", b"in"), needs=("a",))),
    "folder and link": (package("a", F("lib64/x", b"in")), package("b", F("lib64", link="lib"), F("lib/z"))),
    "folder wins over link": (
        package("a", F("lib64", link="lib"), F("lib/z")),
        package("b", F("lib64/x", b"in"), needs=("a",)),
    ),
    "file and folder": (package("a", F("lib/l", b"file")), package("b", F("lib/l/x", b"in"))),
    "link and folder": (package("a", F("lib64", link="lib"), F("lib/z")), package("b", F("lib64/x", b"in"))),
    "what loses still counts": (
        package("a", F("lib/l/x", b"ax")),
        package("b", F("lib/l", b"bf")),
        package("c", F("lib/l/x", b"cx"), F("lib/l/y", b"cy")),
    ),
    "command and file": (
        PYTHON,
        package("n", F("site-packages/n.py"), needs=("python",), noarch="python", entry_points=("tool=n:m",)),
        package("o", F("bin/tool", b"other", 0o755), needs=("n",)),
    ),
    "file over folder": (
        package("a", F("lib/l/x", b"in")),
        package("b", F("lib/l", b"file"), needs=("a",)),
    ),
    "link over folder": (
        package("a", F("lib64/x", b"in")),
        package("b", F("lib64", link="lib"), F("lib/z"), needs=("a",)),
    ),
}
"""What rattler installs in one of several ways, or fails to install, as its threads happen to run."""


@pytest.mark.parametrize("packages", VARYING.values(), ids=VARYING.keys())
def test_where_rattlers_result_varies_ours_is_one_of_its_results(
    packages: tuple[Package, ...], tmp_path: Path
) -> None:
    for attempt in range(60):
        try:
            expected = oracle.install_all(packages, tmp_path / str(attempt))
        except InstallerError:
            continue
        seen = together(tmp_path / str(attempt), *packages)
        if compared(seen) == compared(expected):
            break
    else:
        pytest.fail("rattler installs it in another way each time")
    listed = {
        path
        for each in packages
        for path in json.loads(seen[f"conda-meta/{each.stem}.json"].content)["files"]
    }
    assert listed == {name for name in seen if not name.startswith("conda-meta/")}


def test_of_two_commands_of_one_name_the_later_packages_stays(tmp_path: Path) -> None:
    one, two = (
        package(name, F(f"site-packages/{name}.py"), needs=needs, noarch="python",
                entry_points=(f"tool={name}:main",))
        for name, needs in (("n", ("python",)), ("o", ("python", "n")))
    )  # fmt: skip
    oracle.install_all((PYTHON, one, two), tmp_path)
    seen = together(tmp_path, PYTHON, one, two)
    assert b"from o import" in seen["bin/tool"].content
    for each in (one, two):
        assert "bin/tool" in json.loads(seen[f"conda-meta/{each.stem}.json"].content)["files"]


def test_a_listed_folder_where_another_has_a_file_is_refused() -> None:
    for file in ("d", "d/e"):
        prints = [
            Footprint("a-1-0", frozenset(), folders=frozenset({"d/e"})),
            Footprint("b-1-0", frozenset({file})),
        ]
        for order in (prints, prints[::-1]):
            with pytest.raises(BuildError, match=f"a-1-0 has the folder 'd/e', and b-1-0 .* '{file}'"):
                lost_paths(order)


def test_rattler_refuses_it_too(tmp_path: Path) -> None:
    folder = F("d", kind=b"5", extra={"path_type": "directory"})
    with pytest.raises(Exception, match="failed to link"):
        oracle.install_all((package("a", folder), package("b", F("d", b"q"))), tmp_path)


def test_folders_that_several_have_are_nobodys() -> None:
    prints = [
        Footprint("a", frozenset({"d/a"}), folders=frozenset({"d", "e"})),
        Footprint("b", frozenset({"d/b", "e/b"}), folders=frozenset({"d"})),
    ]
    assert lost_paths(prints) == [frozenset(), frozenset()]


def test_who_carries_whose_path_is_told_once_a_pair() -> None:
    prints = [
        Footprint("a", frozenset({"x", "y", "lib/l/x"}), frozenset({"bin/t"})),
        Footprint("b", frozenset({"y", "x", "z"}), frozenset({"bin/t"})),
        Footprint("c", frozenset({"lib/l", "bin/t", "z/in"})),
        Footprint("d", frozenset({"lonely"})),
    ]
    found = clobbers(prints, lost_paths(prints))
    assert found == [("a", "b", "x", 2), ("a", "c", "bin/t", 2), ("b", "c", "bin/t", 2)]
    assert str(found[0]) == "a and b both have x and 1 more: that of b is installed"
    assert str(Clobber("a", "b", "x", 1)) == "a and b both have x: that of b is installed"
    assert clobbers(prints[:1], lost_paths(prints[:1])) == []
