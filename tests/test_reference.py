"""Names of images, as users write them and as envbuild writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuild.digest import Digest
from envbuild.errors import SpecError
from envbuild.reference import ImageReference, Repository, Tag, TaggedReference, parse_reference

if TYPE_CHECKING:
    from pathlib import Path

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "host", "path"),
    [
        ("debian", "docker.io", "library/debian"),
        ("team/envs", "docker.io", "team/envs"),
        ("docker.io/debian", "docker.io", "library/debian"),
        ("docker.io/team/envs", "docker.io", "team/envs"),
        ("index.docker.io/debian", "docker.io", "library/debian"),
        ("registry-1.docker.io/team/envs", "docker.io", "team/envs"),
        ("localhost/envs", "localhost", "envs"),
        ("localhost:5000/envs", "localhost:5000", "envs"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000", "a/b/c"),
        ("[::1]:5000/envs", "[::1]:5000", "envs"),
        ("Registry.Example.com/team/envs", "registry.example.com", "team/envs"),
        ("r.example.com/a__b/c-d/e.f/g---h", "r.example.com", "a__b/c-d/e.f/g---h"),
        ("Docker/docker", "Docker", "docker"),
        ("LocalHost/envs", "localhost", "envs"),
        ("192.168.0.1:8/debian", "192.168.0.1:8", "debian"),
        ("r.example.com:05000/a", "r.example.com:5000", "a"),
        ("r.example.com:65535/a", "r.example.com:65535", "a"),
        ("[2001:db8:1:2:3:4:5:6]/debian", "[2001:db8:1:2:3:4:5:6]", "debian"),
        ("[FC00::1]:5000/docker/docker", "[fc00::1]:5000", "docker/docker"),
        ("xn--n3h.com/myimage", "xn--n3h.com", "myimage"),
        ("a-b.c/d", "a-b.c", "d"),
        (f"{'l' * 63}.example.com/a", f"{'l' * 63}.example.com", "a"),
        (
            f"{'l' * 63}.{'l' * 63}.{'l' * 63}.{'l' * 61}/a",
            f"{'l' * 63}.{'l' * 63}.{'l' * 63}.{'l' * 61}",
            "a",
        ),
        ("t" * 64, "docker.io", f"library/{'t' * 64}"),
        (f"docker.io/{HEX}", "docker.io", f"library/{HEX}"),
        (f"r.example.com/{HEX}", "r.example.com", HEX),
        ("r.example.com/" + "a" * 255, "r.example.com", "a" * 255),
        ("r.example.com/" + "/".join("a" * 128), "r.example.com", "/".join("a" * 128)),
        ("a" * 247, "docker.io", "library/" + "a" * 247),
    ],
)
def test_repositories(text: str, host: str, path: str) -> None:
    repository = Repository.parse(text)
    assert (repository.host, repository.path) == (host, path)
    assert not repository.is_layout
    assert Repository.parse(str(repository)) == repository


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Debian",
        "team/Envs",
        "r.example.com/",
        "r.example.com/a//b",
        "r.example.com/a/",
        "r.example.com/.a",
        "r.example.com/a..b",
        "r.example.com/a___b",
        "r.example.com/a:tag",
        "r.example.com/a@b",
        "r.example.com:port/a",
        "r.example.com:123456/a",
        "r.example.com:65536/a",
        "r.example.com:0/a",
        "r.example.com:/a",
        "dock..er/x",
        ".r.example.com/a",
        "r.example.com./a",
        "r-.example.com/a",
        "r.-example.com/a",
        "r_1.example.com/a",
        "l" * 64 + ".example.com/a",
        ".".join(["l" * 63] * 4) + "/a",
        "[fc00::1]",
        "[fc00::1]:5000",
        "fc00::1:5000/debian",
        "[:::::]/debian",
        "[]/debian",
        "[fc00::1/debian",
        "[fe80::1%eth0]:5000/debian",
        "[2001:db8:3:4::192.0.2.33]:5000/debian",
        "[::ffff:192.168.0.1]/docker",
        "r.example.com/a/" + HEX + "?18",
        HEX,
        "-r.example.com/a",
        "user:secret@r.example.com/a",
        "https://r.example.com/a",
        "r.example.com/a b",
        "r.example.com/../../etc",
        "r.example.com/a\n",
        "r.exämple.com/a",
        "r.example.com/" + "a" * 256,
        "a" * 248,
        "oci:",
        "oci:a\nb",
        "oci:~nobody-of-this-name/x",
    ],
)
def test_what_is_no_repository_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        Repository.parse(text)


def test_a_layout_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repository = Repository.parse("oci:envs")
    assert repository.is_layout
    assert repository.folder == tmp_path / "envs"
    assert str(repository) == f"oci:{tmp_path / 'envs'}"
    assert Repository.parse(str(repository)) == repository
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Repository.parse("oci:~/envs") == repository


def test_one_folder_is_one_layout(tmp_path: Path) -> None:
    assert Repository.parse(f"oci:{tmp_path}//b/./c/") == Repository.parse(f"oci:{tmp_path}/b/c")


def test_a_registry_has_no_folder() -> None:
    with pytest.raises(SpecError, match="not a layout"):
        _ = Repository.parse("r.example.com/a").folder


@pytest.mark.parametrize("name", ["latest", "1", "_", "k1-" + HEX, "A.b_c-d", "a" * 128])
def test_tags(name: str) -> None:
    assert str(Tag(name)) == name


@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a/b", "a:b", "ä", "a" * 129, "a\n"])
def test_what_is_no_tag_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="is not a tag"):
        Tag(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("r.example.com", "docker.io/library/r.example.com:latest"),
        ("debian:12-slim", "docker.io/library/debian:12-slim"),
        ("localhost:5000/envs", "localhost:5000/envs:latest"),
        ("localhost:5000/envs:1", "localhost:5000/envs:1"),
        ("[::1]:5000/envs:1", "[::1]:5000/envs:1"),
        (f"debian@sha256:{HEX}", f"docker.io/library/debian@sha256:{HEX}"),
        (f"debian:12@sha256:{HEX}", f"docker.io/library/debian@sha256:{HEX}"),
        (f"{HEX}:1", f"docker.io/library/{HEX}:1"),
        (f"{HEX}@sha256:{HEX}", f"docker.io/library/{HEX}@sha256:{HEX}"),
        ("192.168.0.1:80", "docker.io/library/192.168.0.1:80"),
        ("oci:/a/b", "oci:/a/b:latest"),
        ("oci:/a/b:1.0", "oci:/a/b:1.0"),
        (f"oci:/a/b@sha256:{HEX}", f"oci:/a/b@sha256:{HEX}"),
        ("oci:/a:b/c", "oci:/a:b/c:latest"),
        ("oci:/a@b/c:1", "oci:/a@b/c:1"),
        (f"oci:/a@b/c@sha256:{HEX}", f"oci:/a@b/c@sha256:{HEX}"),
    ],
)
def test_references(text: str, expected: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == expected
    assert parse_reference(str(reference)) == reference


def test_the_default_tag_can_be_chosen() -> None:
    assert str(parse_reference("debian", default_tag="12")) == "docker.io/library/debian:12"


@pytest.mark.parametrize(
    "text",
    [
        "debian:",
        "debian@",
        "debian@sha256:12",
        HEX,
        f"debian@{HEX}",
        f"debian@sha512:{HEX}{HEX}",
        f"debian@sha256:{HEX.upper()}",
        "@sha256:" + HEX,
        f"debian@sha256:{HEX}@sha256:{HEX}",
        ":12",
        f"debian:bad tag@sha256:{HEX}",
        f"debian:@sha256:{HEX}",
        "oci:",
        "oci::1",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_reference(text)


def test_what_is_meant_is_said() -> None:
    with pytest.raises(SpecError, match="image ID, expected a name") as caught:
        parse_reference(HEX)
    assert "docker.io/library/" in str(caught.value.hint)
    with pytest.raises(SpecError, match="a digest of sha512, and only sha256 is supported"):
        parse_reference(f"debian@sha512:{HEX}{HEX}")
    with pytest.raises(SpecError, match="path of 256 characters, expected at most 255"):
        parse_reference("r.example.com/" + "a" * 256)
    with pytest.raises(SpecError, match="65536 is not a port"):
        parse_reference("r.example.com:65536/a")


def test_an_image_reference_needs_its_digest() -> None:
    assert ImageReference.parse(f"debian:12@sha256:{HEX}").digest == Digest(HEX)
    with pytest.raises(SpecError, match="has no digest"):
        ImageReference.parse("debian:12")


def test_references_are_made_from_repositories() -> None:
    repository = Repository.parse("r.example.com/a")
    assert repository.at(Digest(HEX)) == ImageReference(repository, Digest(HEX))
    assert repository.tagged(Tag("x")) == TaggedReference(repository, Tag("x"))


COMPONENT = st.from_regex(r"[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,8}){0,3}", fullmatch=True)
HOST = st.from_regex(r"[a-z0-9]{1,8}\.[a-z]{2,5}(?::[1-9][0-9]{0,3})?", fullmatch=True)


@given(
    host=HOST,
    path=st.lists(COMPONENT, min_size=1, max_size=4),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True),
)
def test_the_official_grammar_round_trips(host: str, path: list[str], tag: str) -> None:
    text = f"{host}/{'/'.join(path)}:{tag}"
    if host in {"index.docker.io", "registry-1.docker.io"}:
        return
    assert str(parse_reference(text)) == text


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_a_spec_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except SpecError:
        return
    assert parse_reference(str(reference)) == reference
