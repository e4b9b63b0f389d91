"""Resolving: the right wheels for a base and a python that are elsewhere, and what each fault means."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import pytest
import uv

from envbuild.conda.link import PythonTarget
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.digest import Digest
from envbuild.errors import BuildError, ChannelError, DeadlineExceeded, SolveError, SpecError
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.installed import Installed, Probe, nothing
from envbuild.pip.resolve import PipRequest, PipSolution, resolve
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.spec.pip import IndexStrategy, PipSection
from tiny_wheels import TinyWheel, index

SITE = "lib/python3.11/site-packages"
PYTHON = PythonTarget("3.11.4", SITE)


class Tiny:
    """A folder of wheels, and questions about it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"
        self.links = root / "links"
        self.links.mkdir()

    def put(self, *wheels: TinyWheel) -> None:
        for wheel in wheels:
            wheel.put(self.links)

    def section(self, *lines: str, local: bool = True) -> PipSection:
        text = "\n".join([*(["--no-index", "--find-links ./links"] if local else []), *lines])
        return PipSection.from_requirements(text.encode(), "requirements.txt", self.root)

    def request(self, *lines: str, local: bool = True) -> PipRequest:
        return PipRequest(
            self.section(*lines, local=local), LINUX_AMD64, PYTHON, "2.36", pypi="http://127.0.0.1:1/"
        )

    def solve(self, request: PipRequest | str, *lines: str, installed: Probe = nothing) -> PipSolution:
        asked = self.request(request, *lines) if isinstance(request, str) else request
        return resolve(asked, cache_dir=self.cache, deadline=NO_DEADLINE, installed=installed)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """A folder of wheels."""
    return Tiny(tmp_path)


def names(solution: PipSolution) -> list[str]:
    return [str(distribution) for distribution in solution.distributions]


def test_a_solution_holds_what_is_needed_sorted_and_known_before_it_is_fetched(tiny: Tiny) -> None:
    tiny.put(
        TinyWheel(
            "b-top",
            requires=("A.dep>=1", "never ; python_version < '3'", "late ; python_full_version < '3.11.4'"),
        ),
        TinyWheel("a-dep", "1.0"),
        TinyWheel("a-dep", "1.5"),
        TinyWheel("late"),
    )
    solution = tiny.solve("b_top", "a-dep <2")
    assert names(solution) == ["a-dep 1.5", "b-top 1.0"]
    for found in solution.distributions:
        content = (tiny.links / found.file_name).read_bytes()
        assert found.sha256 == Digest.of(content)
        assert found.size == len(content)
        assert found.direct_url is None
        with fetch_wheel(found, url=solution.urls[found.url], deadline=NO_DEADLINE) as stream:
            assert stream.read() == content
    assert (solution.kept, solution.replaced) == ((), ())
    assert tiny.solve("a-dep <2", "b_top") == solution
    older = replace(tiny.request("b-top"), python=PythonTarget("3.11.3", SITE))
    assert names(tiny.solve(older)) == ["a-dep 1.5", "b-top 1.0", "late 1.0"]


@pytest.mark.parametrize(
    ("glibc", "architecture", "expected"),
    [
        ("2.40", "amd64", "cp311-cp311-manylinux_2_39_x86_64"),
        ("2.36", "amd64", "cp311-cp311-manylinux_2_17_x86_64"),
        ("2.99", "amd64", "cp311-cp311-manylinux_2_39_x86_64"),
        ("2.17", "amd64", "cp311-cp311-manylinux_2_17_x86_64"),
        ("2.36", "arm64", "cp38-abi3-manylinux2014_aarch64"),
    ],
)
def test_the_wheel_is_the_one_that_an_installer_in_the_image_would_take(
    tiny: Tiny, glibc: str, architecture: str, expected: str
) -> None:
    tags = (
        "cp311-cp311-manylinux_2_39_x86_64",
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp311-cp311-musllinux_1_2_x86_64",
        "cp312-cp312-manylinux_2_17_x86_64",
        "cp38-abi3-manylinux2014_x86_64",
        "cp38-abi3-manylinux2014_aarch64",
        "cp311-cp311-win_amd64",
        "py3-none-any",
    )
    tiny.put(*(TinyWheel("fast", tag=tag) for tag in tags))
    request = replace(tiny.request("fast"), glibc=glibc, platform=Platform("linux", architecture))
    assert tiny.solve(request).distributions[0].file_name == f"fast-1.0-{expected}.whl"


def test_of_equal_wheels_the_highest_build_is_taken(tiny: Tiny) -> None:
    tiny.put(*(TinyWheel("fast", tag=f"{build}py3-none-any") for build in ("", "2-", "10-")))
    assert tiny.solve("fast").distributions[0].file_name == "fast-1.0-10-py3-none-any.whl"


@pytest.mark.parametrize(("glibc", "message"), [(None, "no glibc"), ("2.12", "2.12"), ("1.9", "1.9")])
def test_a_base_that_no_wheel_is_for(tiny: Tiny, glibc: str | None, message: str) -> None:
    with pytest.raises(SolveError, match=message) as caught:
        tiny.solve(replace(tiny.request("x"), glibc=glibc))
    assert "base" in str(caught.value.hint)


def test_an_architecture_that_no_wheel_is_for(tiny: Tiny) -> None:
    with pytest.raises(SolveError, match="s390x"):
        tiny.solve(replace(tiny.request("x"), platform=Platform("linux", "s390x")))


def test_what_cannot_be_satisfied_comes_with_the_reasons(tiny: Tiny) -> None:
    tiny.put(TinyWheel("one", requires=("two<2",)), TinyWheel("two", "2.0"))
    with pytest.raises(SolveError, match="two<2") as caught:
        tiny.solve("one")
    assert not caught.value.retryable
    assert str(tiny.root) not in str(caught.value)


def test_a_source_distribution_alone_is_no_answer(tiny: Tiny) -> None:
    (tiny.links / "old-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(SolveError, match="no usable wheels") as caught:
        tiny.solve("old")
    assert "Docker step" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("-e ./project", "editable"),
        ("./project", "folder"),
        ("./old-1.0.tar.gz", "source archive"),
        ("git+https://example.org/x.git@v1#egg=x", "version control"),
        ("x @ git+ssh://git@example.org/x.git", "version control"),
        ("https://example.org/x-1.0.tar.gz", "source archive"),
        ("x @ https://example.org/x-1.0.zip#sha256=0", "source archive"),
        ("--no-binary x\nx", "source distributions"),
    ],
)
def test_what_would_have_to_run_its_own_code_is_refused(tiny: Tiny, line: str, what: str) -> None:
    (tiny.root / "project").mkdir()
    (tiny.root / "project/setup.py").write_text("raise SystemExit('never run')")
    (tiny.root / "old-1.0.tar.gz").write_bytes(b"x")
    with pytest.raises(BuildError, match=what) as caught:
        tiny.solve(tiny.request(line))
    assert "Docker step" in str(caught.value.hint)
    assert not tiny.cache.exists()


def test_a_local_wheel_is_the_one_that_was_read_with_the_definition(tiny: Tiny) -> None:
    TinyWheel("mine", requires=("dep",)).put(tiny.root)
    tiny.put(TinyWheel("dep"))
    request = tiny.request("./mine-1.0-py3-none-any.whl")
    was = (tiny.root / "mine-1.0-py3-none-any.whl").read_bytes()
    TinyWheel("mine", files={"mine/new.py": b""}).put(tiny.root)
    solution = tiny.solve(request)
    assert names(solution) == ["dep 1.0", "mine 1.0"]
    mine = solution.distributions[1]
    assert mine.direct_url == "file:///mine-1.0-py3-none-any.whl"
    with fetch_wheel(mine, url=solution.urls[mine.url], deadline=NO_DEADLINE) as stream:
        assert stream.read() == was


def test_links_are_those_that_were_read_with_the_definition(tiny: Tiny) -> None:
    tiny.put(TinyWheel("dep", "1.0"), TinyWheel("gone"))
    request = tiny.request("dep", "gone")
    was = (tiny.links / TinyWheel("dep").file_name).read_bytes()
    tiny.put(TinyWheel("dep", "1.0", files={"dep/new.py": b""}), TinyWheel("dep", "2.0"))
    (tiny.links / TinyWheel("gone").file_name).unlink()
    solution = tiny.solve(request)
    assert names(solution) == ["dep 1.0", "gone 1.0"]
    dep = solution.distributions[0]
    with fetch_wheel(dep, url=solution.urls[dep.url], deadline=NO_DEADLINE) as stream:
        assert stream.read() == was
    assert names(tiny.solve("dep")) == ["dep 2.0"], "a definition that is read later has what is there then"


def test_a_copy_that_was_damaged_is_made_again(tiny: Tiny) -> None:
    tiny.put(TinyWheel("dep"))
    first = tiny.solve("dep")
    (copy,) = (tiny.cache / "wheels").rglob("*.whl")
    copy.write_bytes(b"damaged")
    assert tiny.solve("dep") == first


def test_equal_wheels_under_two_names_are_offered_under_their_own(tiny: Tiny) -> None:
    """What another definition put into the cache is no candidate of this one."""
    content = TinyWheel("dep", "1.0").to_bytes()
    (tiny.links / "dep-1.0-py3-none-any.whl").write_bytes(content)
    (tiny.links / "dep-1.0-5-py3-none-any.whl").write_bytes(content)
    assert tiny.solve("dep").distributions[0].file_name == "dep-1.0-5-py3-none-any.whl"
    (tiny.links / "dep-1.0-5-py3-none-any.whl").unlink()
    assert tiny.solve("dep").distributions[0].file_name == "dep-1.0-py3-none-any.whl"


def test_a_wheel_at_a_url_keeps_its_origin_and_not_its_credentials(tiny: Tiny) -> None:
    wheel = TinyWheel("tiny")
    with index([wheel], user="me:hush%21".replace("%21", "!")) as server:
        url = server.url.replace("//", "//me:hush%21@")
        request = tiny.request(f"tiny @ {url}/files/{wheel.file_name}", local=False)
        solution = tiny.solve(request)
        found = solution.distributions[0]
        assert found.url == found.direct_url == f"{server.url}/files/{wheel.file_name}"
        with fetch_wheel(found, url=solution.urls[found.url], deadline=NO_DEADLINE) as stream:
            assert Digest.of(stream.read()) == found.sha256
    assert "hush" not in repr(solution) + repr(found)


def test_credentials_reach_the_index_and_nobody_else(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tiny.root / "uv"
    real, seen = uv.find_uv_bin(), tiny.root / "seen"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}\nenv >> {seen}\nexec {real} "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(spy))
    monkeypatch.setenv("INDEX_TOKEN", "hush-canary")
    with index([TinyWheel("tiny")], user="me:hush-canary") as server:
        url = server.url.replace("//", "//me:${INDEX_TOKEN}@")
        request = tiny.request(f"--index-url {url}/simple", "tiny", local=False)
        for bound in ({}, {"INDEX_TOKEN": ("https://pypi.example.com",)}):
            with pytest.raises(SpecError, match="the variable INDEX_TOKEN may not be sent to http://127"):
                tiny.solve(replace(request, variables=bound))
        request = replace(request, variables={"INDEX_TOKEN": (server.url,)})
        solution = tiny.solve(request)
        found = solution.distributions[0]
        assert found.url == f"{server.url}/files/{found.file_name}"
        with fetch_wheel(found, url=solution.urls[found.url], deadline=NO_DEADLINE) as stream:
            assert stream.read() == TinyWheel("tiny").to_bytes()
        assert "GET /simple/tiny/" in server.asked
    said = seen.read_text()
    assert "compile" in said
    assert "hush-canary" not in said + repr(solution) + repr(found) + repr(request)
    assert not list((tiny.cache / "pip").rglob("*"))


def test_a_variable_that_is_not_set_is_named(tiny: Tiny) -> None:
    request = tiny.request("--index-url http://me:${NOT_SET_AT_ALL}@127.0.0.1:1/simple", "tiny", local=False)
    request = replace(request, variables={"NOT_SET_AT_ALL": ("http://127.0.0.1:1",)})
    with pytest.raises(SpecError, match="NOT_SET_AT_ALL"):
        tiny.solve(request)


def test_wrong_credentials_are_no_outage(tiny: Tiny) -> None:
    with index([TinyWheel("tiny")], user="me:right") as server:
        url = server.url.replace("//", "//me:wrong-canary@")
        with pytest.raises(ChannelError) as caught:
            tiny.solve(tiny.request(f"--index-url {url}/simple", "tiny", local=False))
    assert not caught.value.retryable
    assert "netrc" in str(caught.value.hint)
    assert "wrong-canary" not in str(caught.value)


def test_of_several_indexes_none_is_left_out_for_its_login(tiny: Tiny) -> None:
    with index([TinyWheel("tiny", "1.0")]) as open_, index([TinyWheel("tiny", "2.0")], user="me:x") as closed:
        lines = [f"--index-url {open_.url}/simple", f"--extra-index-url {closed.url}/simple", "tiny"]
        with pytest.raises(ChannelError, match="refused to answer"):
            tiny.solve(tiny.request(*lines, local=False))
        lines[1] = lines[1].replace("//", "//me:x@")
        assert names(tiny.solve(tiny.request(*lines, local=False))) == ["tiny 2.0"]


def test_an_index_that_forbids_what_it_does_not_have_is_no_obstacle(tiny: Tiny) -> None:
    with index([TinyWheel("tiny", "1.0")]) as main, index([]) as extra:
        extra.status = 403
        lines = [f"--index-url {main.url}/simple", f"--extra-index-url {extra.url}/simple", "tiny"]
        assert names(tiny.solve(tiny.request(*lines, local=False))) == ["tiny 1.0"]


def test_a_name_that_no_index_has(tiny: Tiny) -> None:
    with index([TinyWheel("tiny")]) as server:
        request = tiny.request(f"--index-url {server.url}/simple", "tinny", local=False)
        with pytest.raises(SolveError, match="tinny") as caught:
            tiny.solve(request)
    assert not caught.value.retryable


def test_an_index_in_trouble_may_be_asked_again_later(tiny: Tiny) -> None:
    with index([TinyWheel("tiny")]) as server:
        server.status = 503
        with pytest.raises(ChannelError) as caught:
            tiny.solve(tiny.request(f"--index-url {server.url}/simple", "tiny", local=False))
    assert caught.value.retryable


def test_an_index_that_is_not_there_may_be_asked_again_later(tiny: Tiny) -> None:
    with pytest.raises(ChannelError) as caught:
        tiny.solve(tiny.request("tiny", local=False))
    assert caught.value.retryable


def test_the_deadline_ends_the_search(tiny: Tiny) -> None:
    request = tiny.request("tiny", local=False)
    for seconds in (0.0, 1.0):
        with pytest.raises(DeadlineExceeded):
            resolve(request, cache_dir=tiny.cache, deadline=Deadline.after(seconds))


def test_with_first_index_no_other_index_is_believed(tiny: Tiny) -> None:
    with (
        index([TinyWheel("private", "1.0")]) as ours,
        index([TinyWheel("private", "9.0"), TinyWheel("x")]) as all_,
    ):
        request = replace(
            tiny.request(f"--extra-index-url {ours.url}/simple", "private", "x", local=False),
            pypi=f"{all_.url}/simple",
        )
        assert names(tiny.solve(request)) == ["private 9.0", "x 1.0"]
        strict = replace(request.section, index_strategy=IndexStrategy.FIRST_INDEX)
        assert names(tiny.solve(replace(request, section=strict))) == ["private 1.0", "x 1.0"]


def test_files_that_came_later_are_not_there(tiny: Tiny) -> None:
    old, new = TinyWheel("tiny", "1.0"), TinyWheel("tiny", "2.0")
    times = {old.file_name: "2024-01-01T00:00:00Z", new.file_name: "2025-01-01T00:00:00Z"}
    with index([old, new], uploaded=times) as server:
        request = tiny.request(f"--index-url {server.url}/simple", "tiny", local=False)
        assert names(tiny.solve(request)) == ["tiny 2.0"]
        moment = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)
        assert names(tiny.solve(replace(request, as_of=moment))) == ["tiny 1.0"]


def test_hashes_choose_the_wheel_and_bind_everything(tiny: Tiny) -> None:
    pure, fast = TinyWheel("tiny"), TinyWheel("tiny", tag="cp311-cp311-manylinux_2_17_x86_64")
    tiny.put(pure, fast, TinyWheel("top", requires=("tiny",)))
    digest = Digest.of(pure.to_bytes()).hex
    solution = tiny.solve(f"tiny==1.0 --hash=sha256:{digest}")
    assert solution.distributions[0].file_name == pure.file_name
    with pytest.raises(SolveError, match=r"tiny-1\.0-cp311") as caught:
        tiny.solve(f"tiny==1.0 --hash=sha256:{'0' * 64}")
    assert "--hash" in str(caught.value.hint)
    with pytest.raises(SolveError, match="top"):
        tiny.solve(f"tiny==1.0 --hash=sha256:{digest}", "top")
    with pytest.raises(SolveError, match="tiny"):
        tiny.solve("--require-hashes", "top")
    loose = tiny.solve("--no-require-hashes", f"tiny==1.0 --hash=sha256:{digest}", "top")
    assert [each.file_name for each in loose.distributions] == [pure.file_name, TinyWheel("top").file_name]
    with pytest.raises(SolveError, match="tiny"):
        tiny.solve("--no-require-hashes", f"tiny==1.0 --hash=sha256:{'0' * 64}", "top")


def test_constraints_and_pre_releases(tiny: Tiny) -> None:
    tiny.put(TinyWheel("tiny", "1.0"), TinyWheel("tiny", "2.0"), TinyWheel("tiny", "3.0b1"))
    (tiny.root / "limits.txt").write_text("tiny<2\n")
    assert names(tiny.solve("tiny")) == ["tiny 2.0"]
    assert names(tiny.solve("-c limits.txt", "tiny")) == ["tiny 1.0"]
    assert names(tiny.solve("--pre", "--prefer-binary", "tiny")) == ["tiny 3.0b1"]
    assert names(tiny.solve("--all-releases :all:", "tiny")) == ["tiny 3.0b1"]
    assert names(tiny.solve("--all-releases tiny", "tiny")) == ["tiny 3.0b1"]
    assert names(tiny.solve("--all-releases other", "tiny")) == ["tiny 2.0"]
    assert names(tiny.solve("--all-releases :all: --only-final tiny", "tiny")) == ["tiny 2.0"]
    with pytest.raises(SolveError, match="nothing satisfies"):
        tiny.solve("--only-final :all:", "tiny>2")
    assert names(tiny.solve("--only-final :all: --all-releases tiny", "tiny>2")) == ["tiny 3.0b1"]


def test_nothing_of_the_user_or_the_folder_changes_the_answer(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.put(TinyWheel("tiny", "1.0"), TinyWheel("tiny", "2.0b1"))
    (tiny.root / "uv.toml").write_text('prerelease = "allow"\n')
    (tiny.root / "config/uv").mkdir(parents=True)
    (tiny.root / "config/uv/uv.toml").write_text('prerelease = "allow"\n')
    monkeypatch.chdir(tiny.root)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tiny.root / "config"))
    for name, value in {"UV_PRERELEASE": "allow", "UV_CONSTRAINT": "/nowhere", "PIP_PRE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert names(tiny.solve("tiny")) == ["tiny 1.0"]


def there(**versions: str) -> Probe:
    """A probe of an environment that has those distributions."""

    def probe(distribution: object) -> Installed | None:
        name = getattr(distribution, "name", "")
        if name not in versions:
            return None
        return Installed(name, versions[name], f"{SITE}/{name}-{versions[name]}.dist-info", ())

    return probe


def test_what_is_installed_stays_where_it_satisfies(tiny: Tiny) -> None:
    tiny.put(TinyWheel("top", requires=("dep",)), TinyWheel("dep", "1.0"), TinyWheel("dep", "2.0"))
    solution = tiny.solve("top", installed=there(dep="1.0"))
    assert names(solution) == ["top 1.0"]
    assert [str(each.version) for each in solution.kept] == ["1.0"]
    assert solution.replaced == ()
    assert set(solution.urls) == {solution.distributions[0].url}


def test_what_is_installed_is_replaced_where_it_does_not_satisfy(tiny: Tiny) -> None:
    tiny.put(
        TinyWheel("top", requires=("dep>=2", "other")), TinyWheel("other", "1.0"), TinyWheel("other", "2.0")
    )
    tiny.put(TinyWheel("dep", "1.0"), TinyWheel("dep", "2.0"))
    solution = tiny.solve("top", installed=there(dep="1.0", other="1.0"))
    assert names(solution) == ["dep 2.0", "top 1.0"]
    assert [(each.name, each.version) for each in solution.replaced] == [("dep", "1.0")]
    assert [each.name for each in solution.kept] == ["other"]


def test_what_is_installed_stays_although_no_index_has_its_version(tiny: Tiny) -> None:
    tiny.put(
        TinyWheel("top", requires=("dep>=1",)), TinyWheel("dep", "9.0", requires=("more",)), TinyWheel("more")
    )
    solution = tiny.solve("top", installed=there(dep="1.5"))
    assert names(solution) == ["top 1.0"]
    assert [each.version for each in solution.kept] == ["1.5"]
    replaced = tiny.solve("top", "dep>2", installed=there(dep="1.5"))
    assert names(replaced) == ["dep 9.0", "more 1.0", "top 1.0"]
    assert [each.version for each in replaced.replaced] == ["1.5"]


def test_all_that_is_asked_for_may_be_there_already(tiny: Tiny) -> None:
    tiny.put(TinyWheel("dep", "1.0"))
    solution = tiny.solve("dep", installed=there(dep="1.0.0"))
    assert solution.distributions == ()
    assert [each.name for each in solution.kept] == ["dep"]


def test_versions_that_only_conda_writes_are_replaced(tiny: Tiny) -> None:
    tiny.put(TinyWheel("dep", "1.0"))
    solution = tiny.solve("dep", installed=there(dep='2"_odd'))
    assert names(solution) == ["dep 1.0"]
    assert [each.name for each in solution.replaced] == ["dep"]


def test_identity_is_what_keys_are_made_of(tiny: Tiny) -> None:
    tiny.put(TinyWheel("dep"))
    document = json.loads(json.dumps(tiny.solve("dep").identity()))
    content = (tiny.links / TinyWheel("dep").file_name).read_bytes()
    assert document == [
        {
            "name": "dep",
            "version": "1.0",
            "sha256": Digest.of(content).hex,
            "directUrl": None,
            "requested": True,
        }
    ]


def test_what_the_section_names_is_requested_and_nothing_else(tiny: Tiny) -> None:
    tiny.put(TinyWheel("top", requires=("dep", "other")), TinyWheel("dep"), TinyWheel("other"))
    solution = tiny.solve("top", 'dep ; python_version < "3"', "other")
    assert [each.name for each in solution.distributions if each.requested] == ["other", "top"]
