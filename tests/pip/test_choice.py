"""What is chosen of several indexes, held against what pip itself chooses."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from envbuild.conda.link import PythonTarget
from envbuild.deadline import NO_DEADLINE
from envbuild.pip.resolve import PipRequest, resolve
from envbuild.platform import LINUX_AMD64
from envbuild.spec.pip import IndexStrategy, PipSection
from tiny_wheels import TinyWheel, index

FAST = "cp311-cp311-manylinux_2_17_x86_64"
OTHER = "cp310-cp310-manylinux_2_17_x86_64"


def tiny(version: str, tag: str = "py3-none-any", **files: bytes) -> TinyWheel:
    return TinyWheel(
        "torchy", version, tag=tag, files={f"torchy/{name}.py": text for name, text in files.items()}
    )


TORCHY = ([tiny("1.0"), tiny("1.5")], [tiny("1.0+cu1"), tiny("2.0")])
CASES = {
    "pinned": (TORCHY, "torchy==1.5", "torchy-1.5-py3-none-any.whl"),
    "range": (TORCHY, "torchy<2", "torchy-1.5-py3-none-any.whl"),
    "newest": (TORCHY, "torchy", "torchy-2.0-py3-none-any.whl"),
    "local-version": (TORCHY, "torchy==1.0", "torchy-1.0+cu1-py3-none-any.whl"),
    "local-version-in-range": (TORCHY, "torchy<1.5", "torchy-1.0+cu1-py3-none-any.whl"),
    "best-tag-in-the-main": (([tiny("1.0", FAST)], [tiny("1.0")]), "torchy", f"torchy-1.0-{FAST}.whl"),
    "best-tag-in-the-extra": (([tiny("1.0")], [tiny("1.0", FAST)]), "torchy", f"torchy-1.0-{FAST}.whl"),
    "only-fit-in-the-main": (([tiny("1.0", FAST)], [tiny("1.0", OTHER)]), "torchy", f"torchy-1.0-{FAST}.whl"),
    "only-fit-in-the-extra": (
        ([tiny("1.0", OTHER)], [tiny("1.0", FAST)]),
        "torchy",
        f"torchy-1.0-{FAST}.whl",
    ),
    "no-fit-for-the-newest": (([tiny("1.0")], [tiny("2.0", OTHER)]), "torchy", "torchy-1.0-py3-none-any.whl"),
    "pre-release-elsewhere": (([tiny("1.0")], [tiny("2.0rc1")]), "torchy", "torchy-1.0-py3-none-any.whl"),
    "pre-release-alone": (([tiny("1.0rc1")], [tiny("2.0")]), "torchy<2", "torchy-1.0rc1-py3-none-any.whl"),
    "three-indexes": (
        ([tiny("1.0")], [tiny("1.0", OTHER)], [tiny("0.9", FAST)], [tiny("1.0", FAST)]),
        "torchy",
        f"torchy-1.0-{FAST}.whl",
    ),
    "equal-files": (
        ([tiny("1.0", a=b"1")], [tiny("1.0", a=b"2")], [tiny("1.0", a=b"3")]),
        "torchy",
        "torchy-1.0-py3-none-any.whl",
    ),
}


def pips_choice(urls: list[str], requirement: str, folder: Path) -> str:
    """The URL of the wheel that pip would install."""
    extra = [word for url in urls[1:] for word in ("--extra-index-url", f"{url}/simple")]
    ended = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--isolated", "--disable-pip-version-check", "--quiet",
            "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", "-",
            "--target", str(folder), "--platform", "manylinux_2_17_x86_64", "--python-version", "3.11",
            "--index-url", f"{urls[0]}/simple", *extra, requirement,
        ],
        stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    (found,) = json.loads(ended.stdout)["install"]
    return str(found["download_info"]["url"])


@pytest.mark.parametrize("case", CASES)
def test_of_several_indexes_that_is_chosen_which_pip_chooses(tmp_path: Path, case: str) -> None:
    indexes, requirement, expected = CASES[case]
    with ExitStack() as stack:
        urls = [stack.enter_context(index(wheels)).url for wheels in indexes]
        lines = [f"--index-url {urls[0]}/simple", *(f"--extra-index-url {url}/simple" for url in urls[1:])]
        section = PipSection.from_requirements("\n".join([*lines, requirement]).encode(), "r.txt", None)
        request = PipRequest(
            section, LINUX_AMD64, PythonTarget("3.11.4", "lib/python3.11/site-packages"), "2.17"
        )
        (ours,) = resolve(request, cache_dir=tmp_path / "cache", deadline=NO_DEADLINE).distributions
        theirs = pips_choice(urls, requirement, tmp_path / "target")
        assert ours.url == theirs.replace("%2B", "+")
        assert ours.file_name == expected


def test_first_index_asks_the_extra_ones_first_and_stops_at_the_first_with_the_name(tmp_path: Path) -> None:
    with index(TORCHY[0]) as main, index(TORCHY[1]) as extra:
        text = f"-i {main.url}/simple\n--extra-index-url {extra.url}/simple\ntorchy<2\n"
        section = PipSection.from_requirements(text.encode(), "r.txt", None)
        request = PipRequest(
            replace(section, index_strategy=IndexStrategy.FIRST_INDEX),
            LINUX_AMD64,
            PythonTarget("3.11.4", "lib/python3.11/site-packages"),
            "2.17",
        )
        (found,) = resolve(request, cache_dir=tmp_path / "cache", deadline=NO_DEADLINE).distributions
        assert found.version == "1.0+cu1"
