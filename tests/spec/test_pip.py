"""The pip section: what is equal, what differs, what is refused, and that no credentials get out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet

from envbuild.errors import SpecError
from envbuild.spec.document import Mark, Scalar
from envbuild.spec.marker import canonical_marker
from envbuild.spec.pip import IndexStrategy, PipSection
from envbuild.spec.requirement import PipRequirement, parse_requirement
from envbuild.spec.shortrequirement import read_short_requirement

SHA = "0123456789abcdef" * 4


def parse(*items: str, folder: Path | None = None) -> PipSection:
    return PipSection.parse([Scalar(item, Mark("env.yml", 3, 5), plain=True) for item in items], folder)


def from_file(text: str, folder: Path | None = None) -> PipSection:
    return PipSection.from_requirements(text.encode(), "requirements.txt", folder)


def canonical(*items: str) -> str:
    return json.dumps(parse(*items).canonical(), sort_keys=True)


SAME = [
    (["NumPy"], ["numpy"]),
    (["a_b.c"], ["A-B-C"]),
    (["a[y,X_z]"], ["a [x-z, y]"]),
    (["a>=1,<2"], ["a <2, >=1"]),
    (["a>=1,>=1"], ["a>=1"]),
    (["a==1.0"], ["a==1.0.0"]),
    (["a==1.0-alpha1"], ["a==1.0a1"]),
    (["a==v1!1.0"], ["a==1!1"]),
    (["a; python_version<'3.11'"], ['a ; python_version < "3.11"']),
    (["a; os_name=='nt' and sys_platform=='x'"], ["a; sys_platform=='x' and (os_name=='nt')"]),
    (["a; os.name=='nt'"], ["a; os_name=='nt'"]),
    (["b", "a"], ["a", "b", "a"]),
    (["a # note"], ["a"]),
    (["-i https://h/s"], ["--index-url=https://h/s"]),
    (["-i https://h/s --pre"], ["--pre", "--index-url 'https://h/s'"]),
    (["--extra-index-url https://me:pw@h/s"], ["--extra-index-url https://h/s"]),
    (["a @ https://me:pw@h/a.whl"], ["a @ https://h/a.whl"]),
    (["git+https://token@h/a@ref#egg=A_b"], ["A_b @ git+https://h/a@ref"]),
    (["https://h/a_b-1.0-py3-none-any.whl"], ["a-b @ https://h/a_b-1.0-py3-none-any.whl"]),
    (["--no-binary a,B_c"], ["--no-binary b-c", "--no-binary a"]),
    (["--no-binary a", "--only-binary a"], ["--only-binary a"]),
    (["--no-binary a", "--no-binary :none:"], []),
    (["--no-binary a", "--no-binary :all:"], ["--no-binary :all:"]),
    ([f"a==1 --hash=sha256:{SHA.upper()}"], [f"a==1   --hash sha256:{SHA}"]),
    (["--trusted-host H:80"], ["--trusted-host=h:80"]),
    (["--all-releases a,B_c"], ["--all-releases=b-c", "--all-releases a"]),
    (["--all-releases a", "--only-final a"], ["--only-final a"]),
    (["--all-releases a", "--all-releases :none:"], []),
    (["--only-final a", "--all-releases :all:"], ["--all-releases :all:"]),
    (["--use-feature fast-deps", "--use-feature=truststore"], []),
    (["-e git://h/a.git@x#egg=a"], ["-e git+git://h/a.git@x#egg=a"]),
    (["-e GIT://h/a.git#egg=a"], ["-e git+git://h/a.git#egg=a"]),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_one_meaning_has_one_form(left: list[str], right: list[str]) -> None:
    assert canonical(*left) == canonical(*right)


DIFFERENT = [
    (["a"], ["b"]),
    (["a==1"], ["a>=1"]),
    (["a==1"], ["a===1"]),
    (["a==1.0.*"], ["a==1.*"]),
    (["a~=1.0"], ["a~=1.0.0"]),
    (["a==1.0a1"], ["a==1.0b1"]),
    (["a==1+x"], ["a==1+y"]),
    (["a[x]"], ["a"]),
    (["a; os_name=='nt'"], ["a; os_name!='nt'"]),
    (
        ["a; os_name=='nt' or (sys_platform=='x' and platform_machine=='y')"],
        ["a; (os_name=='nt' or sys_platform=='x') and platform_machine=='y'"],
    ),
    (["a @ https://h/a.whl"], ["a @ https://i/a.whl"]),
    (["git+https://h/a@x#egg=a"], ["git+https://h/a@y#egg=a"]),
    (["-e git+https://h/a@x#egg=a"], ["git+https://h/a@x#egg=a"]),
    (["-i https://h/s"], ["--extra-index-url https://h/s"]),
    (
        ["--extra-index-url https://a/s --extra-index-url https://b/s"],
        ["--extra-index-url https://b/s --extra-index-url https://a/s"],
    ),
    (["-f https://a/s"], ["-i https://a/s"]),
    (["--no-binary a"], ["--only-binary a"]),
    (["--pre"], []),
    (["--prefer-binary"], ["--require-hashes"]),
    (["--no-index"], []),
    (["--all-releases a"], []),
    (["--all-releases a"], ["--only-final a"]),
    (["--all-releases :all:"], ["--all-releases a"]),
    (["--no-require-hashes"], ["--require-hashes"]),
    (["--trusted-host a"], ["--trusted-host b"]),
    ([f"a==1 --hash=sha256:{SHA}"], ["a==1"]),
]


@pytest.mark.parametrize("pair", DIFFERENT)
def test_two_meanings_have_two_forms(pair: tuple[list[str], list[str]]) -> None:
    left, right = pair
    assert canonical(*left) != canonical(*right)


REFUSED = [
    ("a=1.0", "not a requirement"),
    ("a==", "not a requirement"),
    ("a>=1.*", "not a requirement"),
    ("é", "not a requirement"),
    ("a; nonsense=='x'", "not a requirement"),
    ("--extra-index https://x", "unknown option"),
    ("--install-option=x", "reads it no more"),
    ("a --install-option=x", "reads it no more"),
    ("a --global-option=x", "reads it no more"),
    ("--use-wheel", "reads it no more"),
    ("a --config-settings k=v", "is not supported"),
    ("a --config-settings=k=v", "is not supported"),
    ("a --config-setting k=v", "is not supported"),
    ("a -Ck=v", "is not supported"),
    ("-e git+https://h/a@x#egg=a --config-settings k=v", "is not supported"),
    ("a -r other.txt", "stands behind a requirement"),
    ("a --index-url https://evil", "stands behind a requirement"),
    ("a --no-index", "stands behind a requirement"),
    ("a --hashes=x", "unknown option"),
    ("--upgrade", "unknown option"),
    (f"--hash=sha256:{'0' * 64}", "stands on a line of its own"),
    ("--use-feature", "no value"),
    ("--use-feature time-travel", "none that pip knows"),
    ("--require-hashes --no-require-hashes", "contradict"),
    ("git://h/a.git#egg=a", "no scheme that pip fetches"),
    ("a @ git://h/a.git", "no scheme that pip fetches"),
    ("-e ssh://h/a.git#egg=a", "no scheme that pip fetches"),
    ("ftp://h/a-1.0-py3-none-any.whl", "no scheme that pip fetches"),
    ("-x", "unknown option"),
    ("--pre=1", "takes no value"),
    ("--index-url", "no value"),
    ("--index-url --pre", "no value"),
    ("-i simple", "no URL"),
    ("-i https://h/a https://h/b", "more than one value"),
    ("--trusted-host h/x", "trusted-host"),
    ("a --hash=md5:00", "--hash"),
    ("a --hash=sha256:00", "--hash"),
    ("a==${VERSION}", "VERSION"),
    ("-i https://${HOST}/s", "HOST"),
    ("./${X}.whl", "variable in the path"),
    ("./a.whl", "without a folder"),
    ("-r a.txt", "without a folder"),
    ("-e .", "without a folder"),
    ("-r https://h/a.txt", "on the web"),
    ("-c https://u:secret@h/a.txt", "on the web"),
    ("a\nb", "several lines"),
    ("a\n--index-url https://evil", "several lines"),
    ("a\r--pre", "U\\+000D"),
    ("a\u2028--pre", "U\\+2028"),
    ("a\u202e", "U\\+202E"),
    ("a\x00", "U\\+0000"),
    ("a @ https://u:secret@h/a b", "not a requirement"),
]


@pytest.mark.parametrize(("item", "message"), REFUSED)
def test_refusals_name_place_and_way_out_and_no_credentials(item: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse(item)
    assert (caught.value.source, caught.value.column) == ("env.yml", 5)
    assert caught.value.hint
    assert "secret" not in str(caught.value) + (caught.value.hint or "")


def test_every_option_of_requirements_files_that_pip_has_is_known() -> None:
    code = (
        "from pip._internal.req import req_file as r\n"
        "for make in (*r.SUPPORTED_OPTIONS, *r.SUPPORTED_OPTIONS_REQ):\n"
        "    print(*make()._short_opts, *make()._long_opts)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    options = ended.stdout.split()
    assert {"-r", "--hash", "--all-releases", "--use-feature", "--config-settings"} <= {*options}
    for option in options:
        with pytest.raises(SpecError) as caught:
            parse(f"a {option} x" if option == "--hash" else f"{option} 'x y'")
        assert "unknown" not in caught.value.message, option


def test_every_feature_that_pip_has_is_known() -> None:
    code = "from pip._internal.cli.cmdoptions import use_new_feature as f; print(*f().choices)"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "fast-deps" in ended.stdout
    for feature in ended.stdout.split():
        assert parse(f"--use-feature={feature}") == parse()


def test_a_scheme_that_pip_has_only_for_what_is_editable_is_told_what_to_write() -> None:
    with pytest.raises(SpecError) as caught:
        parse("git://u:secret@h/a.git#egg=a")
    assert caught.value.hint == "write git+git://h/a.git#egg=a"


def test_what_came_later_is_in_the_form_only_where_it_is_given() -> None:
    members = {
        "constraints", "findLinks", "findLinksLocal", "indexes", "noBinary", "onlyBinary", "ownIndex",
        "requirements", "switches", "trustedHosts",
    }  # fmt: skip
    assert set(parse("a").canonical()) == members
    assert set(parse("a", "--all-releases a").canonical()) == members | {"allReleases"}
    strict = replace(parse("a"), index_strategy=IndexStrategy.FIRST_INDEX)
    assert strict.canonical() == {**parse("a").canonical(), "indexStrategy": "first-index"}


def test_an_unknown_option_is_told_its_nearest_name() -> None:
    with pytest.raises(SpecError) as caught:
        parse("--extra-index https://x")
    assert caught.value.hint == "did you mean --extra-index-url?"


def test_credentials_are_kept_to_fetch_with_and_shown_nowhere_else() -> None:
    section = parse(
        "-i https://me:secret@h/s",
        "--extra-index-url https://${TOKEN}@h/t",
        "-f https://me:secret@h/links",
        "a @ https://me:secret@h/a.whl",
        "git+https://secret@h/b#egg=b",
    )
    assert "secret" not in repr(section) + json.dumps(section.canonical())
    assert "TOKEN" not in repr(section) + json.dumps(section.canonical())
    assert section.requirements_text().count("secret") == 4
    assert "--extra-index-url https://${TOKEN}@h/t\n" in section.requirements_text()


def test_files_are_read_with_continuations_comments_and_crlf() -> None:
    text = (
        "# note\r\na==1 \\\r\n  --hash=sha256:"
        + SHA
        + "  # why\r\n\r\nb \\\r\n# note\r\n-i \\\r\n https://h/s\r\n"
    )
    section = from_file("\ufeff" + text)
    assert section.canonical() == parse(f"a==1 --hash=sha256:{SHA}", "b", "-i https://h/s").canonical()


def test_places_in_files_are_lines() -> None:
    with pytest.raises(SpecError, match=r"requirements\.txt:4:1: unknown option"):
        from_file("a\n\nb\n--nonsense \\\n x\n")


def test_included_files_count_by_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/more.txt").write_text("b==2\n-c limits.txt\n")
    (tmp_path / "sub/limits.txt").write_text("c<3\n")
    first = parse("a", "-r sub/more.txt", folder=tmp_path)
    assert [one.name for one in first.requirements] == ["a", "b"]
    assert [one.name for one in first.constraints] == ["c"]
    assert first.constraints_text() == "c<3\n"
    (tmp_path / "sub").rename(tmp_path / "other")
    assert parse("-r other/more.txt", "a", folder=tmp_path).canonical() == first.canonical()
    (tmp_path / "other/limits.txt").write_text("c<4\n")
    assert parse("-r other/more.txt", "a", folder=tmp_path).canonical() != first.canonical()


def test_cycles_and_missing_files_show_the_chain(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("-r b.txt\n")
    (tmp_path / "b.txt").write_text("x\n-r a.txt\n")
    (tmp_path / "c.txt").write_text("-r none.txt\n")
    with pytest.raises(SpecError, match=r"a\.txt -> b\.txt -> a\.txt"):
        parse("-r a.txt", folder=tmp_path)
    with pytest.raises(SpecError, match=r"c\.txt -> none\.txt cannot be read") as caught:
        parse("-r c.txt", folder=tmp_path)
    assert caught.value.source == str(tmp_path / "c.txt")


def test_many_includes_end(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"-r {number + 1}.txt\n-r {number + 1}.txt\n")
    (tmp_path / "20.txt").write_text("a\n")
    with pytest.raises(SpecError, match="included files"):
        parse("-r 0.txt", folder=tmp_path)


def test_local_sources_count_by_content(tmp_path: Path) -> None:
    wheel = tmp_path / "A_b-1.0-py3-none-any.whl"
    wheel.write_bytes(b"one")
    (first,) = parse(f"./{wheel.name}[x] ; python_version>'3'", folder=tmp_path).requirements
    assert (first.name, first.extras, first.marker) == ("a-b", ("x",), 'python_version > "3"')
    for spelling in (f"{wheel}[x]; python_version>'3'", f"file://{wheel}[x] ; python_version>'3'"):
        assert parse(spelling, folder=tmp_path).requirements == (first,)
    assert parse(f"A.b[x] @ {wheel.as_uri()} ; python_version>'3'").requirements == (first,)
    wheel.write_bytes(b"two")
    assert parse(f"./{wheel.name}[x] ; python_version>'3'", folder=tmp_path).requirements != (first,)
    with pytest.raises(SpecError, match="is not there"):
        parse("./none.whl", folder=tmp_path)


def test_projects_count_by_content_without_what_builds_leave_behind(tmp_path: Path) -> None:
    (tmp_path / "p/.git").mkdir(parents=True)
    (tmp_path / "p/pyproject.toml").write_text("[project]\n")
    first = parse("-e ./p[dev]", folder=tmp_path)
    (tmp_path / "p/.git/HEAD").write_text("x")
    (tmp_path / "p/__pycache__").mkdir()
    (tmp_path / "p/__pycache__/a.pyc").write_text("x")
    assert parse("-e p[dev]", folder=tmp_path).canonical() == first.canonical()
    assert parse("./p[dev]", folder=tmp_path).canonical() != first.canonical()
    (tmp_path / "p/a.py").write_text("x")
    assert parse("-e ./p[dev]", folder=tmp_path).canonical() != first.canonical()


@pytest.mark.parametrize("spelling", ["/", "-e .", "./data"])
def test_a_folder_that_is_no_project_is_refused_unread(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/huge").write_bytes(b"")
    os.truncate(tmp_path / "data/huge", 2 << 30)
    with pytest.raises(SpecError, match="is no Python project") as refused:
        parse(spelling, folder=tmp_path)
    assert "looked for pyproject.toml or setup.py in /" in str(refused.value.hint)


def test_local_links_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/a-1-py3-none-any.whl").write_bytes(b"one")
    first = parse("--no-index", "-f wheels", folder=tmp_path)
    (tmp_path / "wheels/a-1-py3-none-any.whl").write_bytes(b"two")
    assert parse("--no-index", "-f wheels", folder=tmp_path).canonical() != first.canonical()


def test_a_page_of_links_on_this_machine_is_refused(tmp_path: Path) -> None:
    """Its links lead to files that the key would not know."""
    (tmp_path / "page.html").write_text('<a href="a-1-py3-none-any.whl">a</a>')
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"one")
    with pytest.raises(SpecError, match="is no folder"):
        parse("-f page.html", folder=tmp_path)
    assert parse("-f a-1-py3-none-any.whl", folder=tmp_path).find_links_local


def test_bad_bytes_and_long_files_are_refused() -> None:
    with pytest.raises(SpecError, match="not UTF-8"):
        PipSection.from_requirements(b"\xff", "r.txt", None)
    with pytest.raises(SpecError, match="at most"):
        PipSection.from_requirements(b"#" * ((1 << 20) + 1), "r.txt", None)


def test_the_written_text_says_the_same() -> None:
    items = [item for pair in SAME for item in pair[0] if "hash" not in item]
    section = parse(*items, f"a==1 --hash=sha256:{SHA}")
    assert from_file(section.requirements_text()).canonical() == section.canonical()


def test_packaging_is_imported_only_for_requirements() -> None:
    code = (
        "import sys; from envbuild.spec.pip import PipSection; PipSection.parse([], None);"
        "assert 'packaging' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


_ATOMS = st.sampled_from(
    ["os_name == 'nt'", "sys_platform != 'linux'", "python_version >= '3.9'", "'arm' in platform_machine"]
)
_MARKERS = st.recursive(
    _ATOMS,
    lambda inner: st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda it: f"({' '.join(it)})"),
    max_leaves=6,
)
_MACHINES = [
    {"os_name": name, "sys_platform": system, "python_version": version, "platform_machine": machine}
    for name in ("nt", "posix")
    for system in ("linux", "win32")
    for version in ("3.8", "3.12")
    for machine in ("arm64", "x86_64")
]


@given(_MARKERS)
def test_the_canonical_marker_means_the_same_on_every_machine(text: str) -> None:
    marker = Marker(text)
    ours = Marker(canonical_marker(text))
    assert [marker.evaluate(one) for one in _MACHINES] == [ours.evaluate(one) for one in _MACHINES]
    assert canonical_marker(str(ours)) == canonical_marker(text)


_VERSIONS = st.sampled_from(
    ["1", "1.0", "1.0.0", "1.2", "2", "1.0a1", "1.0.post1", "1.0.dev1", "1!1.0", "1.10"]
)
_SPECIFIERS = st.tuples(st.sampled_from(["==", "!=", ">=", "<=", ">", "<", "==="]), _VERSIONS).map("".join)


@given(st.lists(_SPECIFIERS, min_size=1, max_size=3))
def test_canonical_specifiers_accept_the_same_versions(specifiers: list[str]) -> None:
    (one,) = parse("a" + ",".join(specifiers)).requirements
    candidates = [*(f"{x}.{y}" for x in range(3) for y in range(3)), "1.0a1", "1.0.post1", "1.0.dev1", "1!1"]
    theirs, ours = SpecifierSet(",".join(specifiers)), SpecifierSet(",".join(one.specifiers))
    assert list(theirs.filter(candidates, prereleases=True)) == list(
        ours.filter(candidates, prereleases=True)
    )


@given(st.text(st.one_of(st.sampled_from("ab-=<>~!;[]@:/. #\\\n\"'${}"), st.characters()), max_size=40))
@example("0_")
def test_any_item_is_read_or_refused(item: str) -> None:
    try:
        section = parse(item)
    except SpecError:
        return
    assert len(section.requirements) + len(section.constraints) <= 1
    assert from_file(section.requirements_text()).canonical() == section.canonical()


def test_names_of_old_in_markers_are_the_new_ones() -> None:
    for old, new in [
        ("os.name == 'a'", "os_name == 'a'"),
        ("'a' == sys.platform", "'a' == sys_platform"),
        ("python_implementation == 'a'", "platform_python_implementation == 'a'"),
        ("platform.python_implementation == 'a'", "platform_python_implementation == 'a'"),
        (
            "platform.machine == 'a' or platform.version == 'b'",
            "platform_version == 'b' or platform_machine == 'a'",
        ),
        ("extra == 'A.b_C'", "extra == 'a-b-c'"),
    ]:
        assert canonical(f"x; {old}") == canonical(f"x; {new}")


SHORT = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["a", "A_b", "a--b", "a.b", "a-", "zip", "a1"]),
    st.sampled_from(["", "[x]", "[X_y,a]", "[x, x]", "[]", " [x]"]),
    st.sampled_from(["", " ", "  "]),
    st.lists(
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["==", ">=", "<=", "!=", "<", ">", "~=", "===", "="]),
            st.sampled_from(["", " "]),
            st.sampled_from(
                [
                    "1",
                    "1.0",
                    "1.2.0",
                    "01",
                    "1.2rc1",
                    "1.0.0a0",
                    "1.0.post1",
                    "1.dev0",
                    "1!2",
                    "1.*",
                    "1.0+l",
                    "v1",
                    "1c1",
                    "1.0.0rc1.post2.dev3",
                    "2024.1.0",
                ]
            ),
        ),
        max_size=3,
    ).map(",".join),
)


@given(SHORT)
@settings(max_examples=1500, deadline=None)
def test_the_short_way_gives_what_the_grammar_gives(text: str) -> None:
    short = read_short_requirement(text)
    if short is not None:
        full = parse_requirement(text, Mark("x", 1, 1))
        assert short == (full.name, full.extras, full.specifiers)
        assert full.marker == ""
        assert full.url is None


@given(SHORT)
@settings(max_examples=300, deadline=None)
def test_an_item_of_a_conda_file_is_what_a_line_of_a_requirements_file_is(text: str) -> None:
    try:
        expected = from_file(text)
    except SpecError:
        with pytest.raises(SpecError):
            parse(text)
    else:
        assert parse(text) == expected


@pytest.mark.parametrize("name", ["a", "a-b"])
@pytest.mark.parametrize(
    "specifiers", [(), ("<2", ">=1"), ('===a","b',), ("===\\",), ("===\x01",), ("===\xe9",)]
)
@pytest.mark.parametrize("more", [{}, {"marker": "x"}, {"url": "https://h/a"}, {"extras": ("x",)}])
def test_the_text_that_orders_requirements_is_that_of_their_json(
    name: str, specifiers: tuple[str, ...], more: dict[str, Any]
) -> None:
    one = PipRequirement(name, specifiers=specifiers, **more)
    assert json.loads(one.json_text()) == one.to_json()
    assert one.json_text() == json.dumps(
        one.to_json(), ensure_ascii=False, sort_keys=True, separators=(",", ":")
    )


def test_where_a_requirement_stands_and_its_credentials_are_not_compared_or_shown() -> None:
    one, other = (PipRequirement("a", url="https://h/a", fetch_url=f"https://{who}@h/a") for who in "xy")
    assert one == other
    assert hash(one) == hash(other)
    assert "x@" not in repr(one)
    assert one != one._replace(editable=True)


def test_common_requirements_need_no_outside_grammar() -> None:
    program = (
        "import sys\n"
        "from envbuild.spec.pip import PipSection\n"
        "PipSection.from_requirements(b'a\\nb==1.0\\nC[x]>=1,<2\\n', 'x', None)\n"
        "sys.exit('packaging' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "path", ["./" + "a" * 300, "./" + "a/" * 900, "-r " + "b" * 300, "-f ./" + "c" * 300]
)
def test_paths_that_no_file_can_have_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        parse(path, folder=tmp_path)
