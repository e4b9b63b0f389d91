"""Platforms and the Conda subdirs that belong to them."""

from __future__ import annotations

import pytest

from envbuild.errors import SpecError
from envbuild.platform import LINUX_AMD64, Platform

KNOWN = {
    "linux/amd64": "linux-64",
    "linux/arm64": "linux-aarch64",
    "linux/ppc64le": "linux-ppc64le",
    "linux/s390x": "linux-s390x",
    "linux/riscv64": "linux-riscv64",
}


@pytest.mark.parametrize(("text", "subdir"), KNOWN.items())
def test_each_platform_is_its_subdir(text: str, subdir: str) -> None:
    platform = Platform.parse(text)
    assert str(platform) == text
    assert platform.subdir == subdir
    assert Platform.parse(subdir) == platform
    assert Platform.parse(str(platform)) == platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64/v8", "linux/arm64"),
    ],
)
def test_one_platform_has_one_spelling(text: str, expected: str) -> None:
    assert str(Platform.parse(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "linux",
        "amd64",
        "linux/",
        "/amd64",
        "linux/amd64/v2",
        "linux/amd64/v8",
        "linux/arm64/v7",
        "linux/arm/v7",
        "windows/amd64",
        "darwin/arm64",
        "osx-arm64",
        "win-64",
        "noarch",
        "linux/amd64/",
        "linux//amd64",
        "linux/amd64\n",
    ],
)
def test_what_cannot_be_built_for_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not known") as caught:
        Platform.parse(text)
    assert caught.value.hint is not None
    assert "linux/amd64" in caught.value.hint


def test_json() -> None:
    assert LINUX_AMD64.to_json() == {"architecture": "amd64", "os": "linux"}
    assert Platform("linux", "arm", "v7").to_json() == {"architecture": "arm", "os": "linux", "variant": "v7"}
    assert str(Platform("linux", "arm", "v7")) == "linux/arm/v7"


def test_a_platform_without_a_subdir_says_so() -> None:
    with pytest.raises(SpecError, match="no Conda subdir"):
        _ = Platform("linux", "arm", "v7").subdir


def test_platforms_can_be_sorted_with_and_without_variant() -> None:
    with_variant, without = Platform("linux", "arm", "v7"), Platform("linux", "arm")
    assert sorted([with_variant, without, LINUX_AMD64]) == [LINUX_AMD64, without, with_variant]
