"""The build context: what is selected, what is left out, how it is framed."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.errors import SpecError
from envbuild.spec.context import ContextFile, Source, collect, ignore_file_of, write_tar
from envbuild.spec.document import Mark
from envbuild.spec.patterns import BadPatternError, IgnoreRules, glob

MARK = Mark("steps", 3, 1)


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def read(root: Path, *paths: str, limit: int = 1 << 20) -> tuple[ContextFile, ...]:
    return collect(root, [Source(path, "COPY", MARK) for path in paths], limit=limit)


def names(root: Path, *paths: str) -> list[str]:
    return [file.path for file in read(root, *paths)]


def canonical(root: Path) -> str:
    return json.dumps([file.to_json() for file in read(root, "")])


def test_only_what_a_source_selects_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"a": "1", "b": "2", "d/x": "3", "d/y/z": "4", "e/q": "5"})
    assert names(tmp_path, "a") == ["a"]
    assert names(tmp_path, "/d/") == ["d/x", "d/y/z"]
    assert names(tmp_path, "./d/../a") == ["a"]
    assert names(tmp_path, "[ab]", "e/?") == ["a", "b", "e/q"]
    assert names(tmp_path, "*/y") == ["d/y/z"]
    assert names(tmp_path, "") == ["a", "b", "d/x", "d/y/z", "e/q"]
    assert names(tmp_path, "nothing*") == []


def test_execute_bit_size_and_digest(tmp_path: Path) -> None:
    write(tmp_path, {"a": "abc"})
    (plain,) = read(tmp_path, "a")
    (tmp_path / "a").chmod(0o755)
    (executable,) = read(tmp_path, "a")
    assert (plain.size, plain.content, plain.executable) == (3, b"abc", False)
    assert plain.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert executable.executable
    assert plain.to_json() != executable.to_json()


COLLISIONS: list[tuple[dict[str, str], dict[str, str]]] = [
    ({"a": "b1"}, {"a/b": "1"}),  # Azure ML v2's anonymous hash
    ({"a": "12", "b": "3"}, {"a": "1", "b": "23"}),  # Azure ML v1: contents run together
    ({"a": "1"}, {"b": "1"}),  # Azure ML v1: a renamed file
    ({"x/a": "1", "y/b": "2"}, {"y/a": "1", "x/b": "2"}),  # keyed by base name
    ({"a": ""}, {"a": "", "b": ""}),
    ({"a": "", "b": "a"}, {"a": "b", "b": ""}),
]


@pytest.mark.parametrize(("left", "right"), COLLISIONS)
def test_contexts_that_collide_elsewhere_differ_here(
    tmp_path: Path, left: dict[str, str], right: dict[str, str]
) -> None:
    write(tmp_path / "left", left)
    write(tmp_path / "right", right)
    assert canonical(tmp_path / "left") != canonical(tmp_path / "right")


def test_a_link_an_empty_folder_and_an_empty_file_differ(tmp_path: Path) -> None:
    for name in ("file", "folder", "link", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "file/a").touch()
    (tmp_path / "folder/a").mkdir()
    (tmp_path / "link/a").symlink_to("b")
    (tmp_path / "other/a").symlink_to("c")
    forms = {canonical(tmp_path / name) for name in ("file", "folder", "link", "other")}
    assert len(forms) == 4


def test_nested_links_stay_links_wherever_they_point(tmp_path: Path) -> None:
    write(tmp_path, {"d/a": "1"})
    (tmp_path / "d/out").symlink_to("/etc/passwd")
    (tmp_path / "d/loop").symlink_to("loop")
    assert [(file.path, file.content, file.target) for file in read(tmp_path, "d")] == [
        ("d/a", b"1", None),
        ("d/loop", None, "loop"),
        ("d/out", None, "/etc/passwd"),
    ]


def test_a_link_that_a_source_names_is_followed_inside_the_context(tmp_path: Path) -> None:
    write(tmp_path, {"real/a": "1", "real/b": "2"})
    (tmp_path / "link").symlink_to("real")
    assert names(tmp_path, "link/a") == ["link", "real/a"]
    assert names(tmp_path, "link") == ["link", "real/a", "real/b"]
    assert names(tmp_path, "link/*") == ["link", "real/a", "real/b"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "..", "out"])
def test_a_link_out_of_the_context_is_not_followed(tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(target)
    with pytest.raises(SpecError, match="leads out of the context") as caught:
        read(root, "out")
    assert caught.value.line == 3


@pytest.mark.parametrize("path", ["../x", "a/../../x", "..", "/../x"])
def test_sources_above_the_context_are_refused(tmp_path: Path, path: str) -> None:
    write(tmp_path, {"x": "1", "root/a/y": "2", "root/x": "3"})
    with pytest.raises(SpecError, match="leaves the context"):
        read(tmp_path / "root", path)


def test_missing_and_left_out_sources_name_the_instruction(tmp_path: Path) -> None:
    write(tmp_path, {"a": "1", ".dockerignore": "a\n"})
    with pytest.raises(SpecError, match="steps:3:1: COPY: 'b' is not in the context") as missing:
        read(tmp_path, "b")
    with pytest.raises(SpecError, match="COPY: 'a' is not in the context") as ignored:
        read(tmp_path, "a")
    assert missing.value.hint != ignored.value.hint
    assert ".dockerignore" in (ignored.value.hint or "")


def test_the_dockerfiles_own_ignore_file_replaces_the_contexts(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "context", tmp_path / "elsewhere"
    write(root, {"a": "1", "b": "2", ".dockerignore": "a\n"})
    write(elsewhere, {"Dockerfile.dockerignore": "b\n", "empty.dockerignore": "", "bad.dockerignore": "[\n"})

    def seen(name: str, *paths: str) -> list[str]:
        sources = [Source(path, "COPY", MARK) for path in paths or [""]]
        files = collect(root, sources, ignore_file=ignore_file_of(elsewhere / name))
        return [file.path for file in files]

    assert seen("Dockerfile") == [".dockerignore", "a"]
    assert seen("empty") == [".dockerignore", "a", "b"], "it counts where it says nothing, too"
    assert seen("other") == [".dockerignore", "b"]
    with pytest.raises(SpecError, match=r"bad\.dockerignore cannot be used: line 1"):
        seen("bad")
    with pytest.raises(SpecError) as caught:
        seen("Dockerfile", "b")
    assert caught.value.hint == "it is left out by Dockerfile.dockerignore"


def test_too_large_a_context_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a": "123", "b": "456"})
    assert len(read(tmp_path, "", limit=6)) == 2
    with pytest.raises(SpecError, match="larger than 5 bytes"):
        read(tmp_path, "", limit=5)


def test_pipes_and_names_outside_utf8_are_refused(tmp_path: Path) -> None:
    pipe, odd = tmp_path / "pipe", tmp_path / "odd"
    for folder in (pipe, odd):
        folder.mkdir()
    os.mkfifo(pipe / "a")
    Path(os.fsdecode(os.fsencode(odd) + b"/\xff")).touch()
    for folder, message in ((pipe, "no file, link or folder"), (odd, "not UTF-8")):
        with pytest.raises(SpecError, match=message):
            read(folder, "")


def test_a_context_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no folder"):
        read(tmp_path / "none", "a")


# Patterns, path, ignored: by the rules of the engine's matcher.
IGNORED: list[tuple[str, str, bool]] = [
    ("a", "a", True),
    ("a", "a/b", True),
    ("a", "b/a", False),
    ("a/", "a", True),
    ("/a", "a/b", True),
    ("*.md", "x.md", True),
    ("*.md", "d/x.md", False),
    ("**/*.md", "d/e/x.md", True),
    ("**/*.md", "x.md", True),
    ("*/temp*", "a/tempo", True),
    ("*/temp*", "a/b/temp", False),
    ("temp?", "tempa", True),
    ("temp?", "temp", False),
    ("*.md\n!README.md", "README.md", False),
    ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", True),
    ("!a\na", "a", True),
    ("d\n!d/keep", "d/keep", False),
    ("d\n!d/keep", "d/other", True),
    ("d/x\n!d", "d/x", True),
    ("**", "a/b", True),
    ("**\n!a", "a/b", False),
    ("a/**", "a/b/c", True),
    ("a/**", "a", False),
    ("a/**/z", "a/z", True),
    ("a/**/z", "a/b/c/z", True),
    ("**z", "xz", True),
    ("**/z", "xz", False),
    ("# a", "# a", False),
    (" # a", "# a", True),
    ("[ab]", "a", True),
    ("[^ab]", "a", False),
    ("a.b", "axb", False),
    (r"\*", "*", True),
    (r"\*", "a", False),
    (".", "a", False),
    ("/", "a", False),
    ("../a", "a", False),
    ("x/../a", "a", True),
    ("! a\nb", "a", False),
]


@pytest.mark.parametrize(("patterns", "path", "expected"), IGNORED)
def test_dockerignore(patterns: str, path: str, expected: bool) -> None:
    assert IgnoreRules.parse(patterns).ignores(path) is expected
    assert IgnoreRules.parse(patterns.replace("\n", "\r\n")).ignores(path) is expected


@pytest.mark.parametrize("pattern", ["[", "[a", "a[]b", "[-a]", "[a-]", "\\", "!", "[z-a]", r"\d"])
def test_bad_patterns_are_refused_with_their_line(pattern: str) -> None:
    with pytest.raises(BadPatternError, match="line 2"):
        IgnoreRules.parse(f"x\n{pattern}")


def test_ignored_folders_can_be_brought_back_in_part(tmp_path: Path) -> None:
    write(tmp_path, {"d/a": "1", "d/b": "2", "e/c": "3", "f/g": "4", ".dockerignore": "d\n!d/b\ne\nf/*\n"})
    assert names(tmp_path, "") == [".dockerignore", "d/b", "f"]


def test_a_bad_dockerignore_is_a_spec_error(tmp_path: Path) -> None:
    write(tmp_path, {"a": "1", ".dockerignore": "["})
    with pytest.raises(SpecError, match=r"\.dockerignore cannot be used: line 1"):
        read(tmp_path, "a")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "a.b", True),
        ("*", "a/b", False),
        ("a?c", "abc", True),
        ("[^a-c]", "d", True),
        (r"\[", "[", True),
        ("[]a]", "]", None),
        ("[a", "a", None),
        ("a]", "a]", True),
        (r"[\]]", "]", True),
    ],
)
def test_globs_follow_filepath_match(pattern: str, name: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(BadPatternError):
            glob(pattern)
    else:
        assert bool(glob(pattern)(name)) is expected


@given(st.text("ab*?[]^-\\/!#. ", max_size=12), st.text("ab./", min_size=1, max_size=6))
def test_any_pattern_is_read_or_refused(pattern: str, path: str) -> None:
    try:
        assert IgnoreRules.parse(pattern).ignores(path) in {True, False}
    except BadPatternError:
        return


def test_the_tar_is_the_same_each_time_and_holds_what_was_read(tmp_path: Path) -> None:
    write(tmp_path, {"d/a": "1", "b": "2"})
    (tmp_path / "d/a").chmod(0o700)
    (tmp_path / "d/l").symlink_to("a")
    (tmp_path / "empty").mkdir()
    files = read(tmp_path, "")
    write(tmp_path, {"d/a": "changed meanwhile"})
    with write_tar(files) as one, write_tar(files) as two:
        assert one.read() == two.read()
        one.seek(0)
        with tarfile.open(fileobj=one) as tar:
            found: dict[str, Any] = {entry.name: (entry.type, entry.mode, entry.mtime) for entry in tar}
            assert tar.extractfile("d/a").read() == b"1"  # type: ignore[union-attr]
    assert found == {
        "b": (tarfile.REGTYPE, 0o644, 0),
        "d": (tarfile.DIRTYPE, 0o755, 0),
        "d/a": (tarfile.REGTYPE, 0o755, 0),
        "d/l": (tarfile.SYMTYPE, 0o777, 0),
        "empty": (tarfile.DIRTYPE, 0o755, 0),
    }


_TREES = st.dictionaries(st.sampled_from(["a", "b", "c", "d/a", "d/b", "e/f/a"]), st.text("ab", max_size=3))


@given(_TREES, _TREES)
@settings(deadline=None)
def test_two_contexts_have_one_form_only_if_they_are_equal(
    left: dict[str, str], right: dict[str, str]
) -> None:
    forms = [
        json.dumps([ContextFile.of(path, text.encode()).to_json() for path, text in sorted(tree.items())])
        for tree in (left, right)
    ]
    assert (forms[0] == forms[1]) == (left == right)
