"""Settings: where they come from and which wins."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import pytest

from envbuild import config as module
from envbuild.config import Config
from envbuild.errors import SpecError
from envbuild.reference import Repository


def own(folder: Path) -> dict[str, str]:
    """The environment of somebody whose own settings are in a folder."""
    return {"ENVBUILD_CONFIG": str(folder / "envbuild.toml")}


def test_every_setting_has_a_parser() -> None:
    assert set(module._PARSERS) == {field.name for field in fields(Config)}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text('workspace = "r.example.com/file"\njobs = 3\ndeep = true\n')
    environ = {"ENVBUILD_WORKSPACE": "r.example.com/environment", "ENVBUILD_JOBS": "5"}
    config = Config.load(tmp_path, environ, workspace="r.example.com/flag")
    assert config.workspace == Repository("r.example.com", "flag")
    assert config.jobs == 5
    assert config.deep is True


def test_the_file_is_found_upwards_and_pyproject_serves_too(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.envbuild]\nworkspace = "r.example.com/all"\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert Config.load(inner, {}).workspace == Repository("r.example.com", "all")
    (tmp_path / "a" / "envbuild.toml").write_text("jobs = 2\n")
    assert Config.load(inner, {}).workspace == Config().workspace


def test_a_pyproject_that_does_not_name_us_is_not_read_as_toml(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[broken")
    assert Config.load(tmp_path, {}).base is None
    (tmp_path / "pyproject.toml").write_text('[tool."env\\u0062uild"]\nbase = "scratch"\n')
    assert Config.load(tmp_path, {}).base == "scratch"


def test_a_pyproject_without_a_table_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text("jobs = 2\n")
    inner = tmp_path / "project"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert Config.load(inner, {}).jobs == 2


def test_a_layout_in_a_file_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text('workspace = "oci:images"\n')
    inner = tmp_path / "inner"
    inner.mkdir()
    assert Config.load(inner, {}).workspace.folder == tmp_path / "images"


def test_global_is_named_without_underscore_everywhere(tmp_path: Path) -> None:
    assert Config.load(tmp_path, {"ENVBUILD_GLOBAL": "r.example.com/g"}).global_ is not None
    assert Config.load(tmp_path, {}, global_="r.example.com/g").global_ is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("worksapce = 'x'", "did you mean 'workspace'"),
        ("jobs = 0", "whole number from 1"),
        ("jobs = true", "whole number"),
        ("promote = 'perhaps'", "expected true or false"),
        ("builder = 'make'", "one of auto, layers"),
        ("index_ttl = -1", "expected seconds"),
        ("index_ttl = true", "expected seconds"),
        ("max_layers = 126", "from 1 to 125"),
        ("insecure = 3", "list of hosts"),
        ("channels = 3", "table of channels"),
        ("channels.'https://c.example.com/a' = ['m']", "expected mirrors"),
        (
            "channels.conda-forge.mirrors = ['https://m.example.com']",
            "'conda-forge' is a name, expected a URL",
        ),
        ("channels.defaults.mirrors = ['https://m.example.com']", "'defaults' is a name, expected a URL"),
        ("channels.'https://c.example.com/a'.mirrors = ['m']", "'m' is a name, expected a URL"),
        ("channels.'https://c.example.com/a'.mirrors = ['ftp://m.example.com']", "the scheme 'ftp'"),
        ("channels.'https://c.example.com/a'.mirrors = ['https://u:p@m.example.com']", "holds credentials"),
        (
            "channels.'https://c.example.com/a'.mirrors = ['https://m.example.com/t/x1/a']",
            "holds credentials",
        ),
        ("channels.'https://u:p@c.example.com/a'.mirrors = []", "holds credentials"),
        ("login_variables = 3", "expected a table of variables"),
        ("login_variables = ['A']", "expected a table of variables"),
        ("login_variables.A = 3", 'expected "HOST"'),
        ("login_variables.'$A' = 'h.example.com'", "no name of a variable"),
        ("login_variables.A = ''", "is not a URL"),
        ("login_variables.A = 'h.example.com/channel'", "expected a server"),
        ("login_variables.A = 'ftp://h.example.com'", "is not a URL"),
        ("login_variables.A = 'https://u:p@h.example.com'", "expected a server"),
        ("login_variables.A = '*.example.com'", "is not a URL"),
        ("registries = 3", "table of hosts"),
        ("registries.'docker.io' = ['m']", "expected mirrors"),
        ("registries.'docker.io'.mirror = ['m']", "expected mirrors"),
        ("registries.'docker.io'.mirrors = ['UPPER case']", "not a repository"),
        ("workspace = 'UPPER case'", "not a repository"),
        ("step_memory = 'much'", "expected bytes"),
        ("step_memory = true", "expected bytes"),
        ("step_cpus = 0", "number of processors"),
        ("step_timeout = 'long'", "expected seconds"),
        ("jobs = ", "cannot be read as TOML"),
    ],
)
def test_a_bad_setting_is_named_with_what_was_expected(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "envbuild.toml").write_text(text)
    with pytest.raises(SpecError) as caught:
        Config.load(tmp_path, own(tmp_path))
    assert words in f"{caught.value} {caught.value.hint}"
    assert "envbuild.toml" in str(caught.value)


@pytest.mark.parametrize("name", sorted(module._PARSERS.keys() - {"trust"}))  # which names a file
@pytest.mark.parametrize(
    "place", ["https://user:S3cret@host.example.com/x y", "https://host.example.com/t/S3cret/"]
)
def test_what_is_wrong_with_a_setting_is_told_without_a_login(name: str, place: str) -> None:
    for before in ("", "a=", "a=b="):
        said = "nothing"
        try:
            Config.load(Path("/"), {f"ENVBUILD_{name.rstrip('_').upper()}": f"{before}{place}"})
        except SpecError as error:
            said = f"{error!r} {error} {error.hint} {vars(error)}"
        assert "S3cret" not in said


def test_hosts_are_read_from_a_list_or_from_text(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text("insecure = ['A.example.com:5000']\n")
    assert Config.load(tmp_path, own(tmp_path)).insecure == {"a.example.com:5000"}
    assert Config.load(tmp_path, {**own(tmp_path), "ENVBUILD_INSECURE": "b:1, c:2"}).insecure == {
        "b:1",
        "c:2",
    }


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("'512m'", 512 << 20), ("'2G'", 2 << 30), ("'1kb'", 1024)]
)
def test_memory_may_be_written_with_a_unit(tmp_path: Path, text: str, size: int) -> None:
    (tmp_path / "envbuild.toml").write_text(f"step_memory = {text}\nstep_cpus = 0.5\nstep_timeout = 90\n")
    config = Config.load(tmp_path, own(tmp_path))
    assert (config.step_memory, config.step_cpus, config.step_timeout) == (size, 0.5, 90)


def test_mirrors_are_read_from_tables_or_from_text(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text(
        '[registries."Docker.io"]\nmirrors = ["m.example.com", "n/prefix"]\n'
    )
    assert Config.load(tmp_path, own(tmp_path)).registries == {"docker.io": ("m.example.com", "n/prefix")}
    text = "docker.io=m.example.com,n.example.com; ghcr.io=m.example.com/ghcr"
    assert Config.load(tmp_path, {**own(tmp_path), "ENVBUILD_REGISTRIES": text}).registries == {
        "docker.io": ("m.example.com", "n.example.com"),
        "ghcr.io": ("m.example.com/ghcr",),
    }


def test_mirrors_of_channels(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text(
        '[channels."https://Conda.example.com/a/"]\n'
        'mirrors = ["https://m.example.com/b/", "file:///srv/mirror", "./here"]\n'
        "[channels.'https://conda.anaconda.org']\nmirrors = []\n"
    )
    assert Config.load(tmp_path, own(tmp_path)).channels == {
        "https://conda.example.com/a": (
            "https://m.example.com/b",
            "file:///srv/mirror",
            (tmp_path / "here").as_uri(),
        ),
        "https://conda.anaconda.org": (),
    }
    text = "https://a.example.com=https://m.example.com, file:///srv;https://b.example.com/c=https://n.example.com"
    assert Config.load(tmp_path, {**own(tmp_path), "ENVBUILD_CHANNELS": text}).channels == {
        "https://a.example.com": ("https://m.example.com", "file:///srv"),
        "https://b.example.com/c": ("https://n.example.com",),
    }


def test_variables_are_bound_to_servers(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text(
        '[login_variables]\nUSER = "Conda.example.com"\nTOKEN = ["a.example.com:443", "http://b.example.com:80"]\n'
    )
    assert Config.load(tmp_path, own(tmp_path)).login_variables == {
        "USER": ("https://conda.example.com",),
        "TOKEN": ("https://a.example.com", "http://b.example.com"),
    }
    text = "A=a.example.com, b.example.com:8443 ; B=c.example.com"
    assert Config.load(tmp_path, {**own(tmp_path), "ENVBUILD_LOGIN_VARIABLES": text}).login_variables == {
        "A": ("https://a.example.com", "https://b.example.com:8443"),
        "B": ("https://c.example.com",),
    }
    assert Config().login_variables == {}


@dataclass(frozen=True)
class Side:
    """What a project's file may do with a setting.

    Attributes:
        loose: A value, as TOML.
        strict: A stricter one that the user has; None where the project's counts, or may not be set at all.
        project: Whether the project may set it.
    """

    loose: str
    strict: str | None = None
    project: bool = True


SIDES: Final = {
    "workspace": Side("'r.example.com/p'"),
    "global_": Side("'r.example.com/p'", project=False),
    "base": Side("'debian:13'"),
    "builder": Side("'docker'"),
    "on_unavailable": Side("'build'"),
    "promote": Side("true", project=False),
    "index_ttl": Side("90", "30"),
    "base_ttl": Side("90", "30"),
    "deep": Side("false", "true"),
    "attach": Side("false", "true"),
    "sbom": Side("false", "true"),
    "confine": Side("false", "true"),
    "trust": Side("{on_failure = 'miss'}", "{on_failure = 'fail'}"),
    "channel_alias": Side("'https://c.example.com'"),
    "channels": Side("{'https://c.example.com' = {mirrors = ['https://p.example.com']}}", project=False),
    "login_variables": Side("{AWS_SECRET_ACCESS_KEY = 'p.example.com'}", project=False),
    "insecure": Side("['registry.example.com']", project=False),
    "registries": Side("{'docker.io' = {mirrors = ['p.example.com']}}", project=False),
    "compression": Side("'zstd'"),
    "pyc": Side("true"),
    "max_layers": Side("50"),
    "glibc": Side("'2.40'"),
    "cuda": Side("'12.4'"),
    "cuda_arch": Side("'8.6'"),
    "archspec": Side("'x86_64_v3'"),
    "jobs": Side("200", "3"),
    "timeout": Side("90", "30"),
    "docker_host": Side("'tcp://p.example.com:2375'", project=False),
    "buildx": Side("'theirs'", project=False),
    "step_timeout": Side("90", "30"),
    "step_memory": Side("'8g'", "'2g'"),
    "step_cpus": Side("8", "2"),
    "step_disk": Side("'8g'", "'2g'"),
    "step_network": Side("'default'", "'none'"),
    "cache_dir": Side("'cache'", project=False),
}


def test_of_each_setting_it_is_known_whether_a_project_may_set_it() -> None:
    assert SIDES.keys() == {each.name for each in fields(Config)} == module._PROJECT.keys()


@pytest.mark.parametrize("name", sorted(SIDES))
def test_a_project_may_be_stricter_than_its_user_and_never_laxer(tmp_path: Path, name: str) -> None:
    side, setting = SIDES[name], name.rstrip("_")
    checkout, mine = tmp_path / "checkout", tmp_path / "mine.toml"
    checkout.mkdir()
    theirs = checkout / "envbuild.toml"

    def loaded(project: str | None, user: str | None) -> Any:
        theirs.write_text("" if project is None else f"{setting} = {project}\n")
        mine.write_text("" if user is None else f"{setting} = {user}\n")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = getattr(Config.load(checkout, {"ENVBUILD_CONFIG": str(mine)}), name)
        told.append([str(each.message) for each in caught])
        return value

    told: list[list[str]] = []
    loose = loaded(None, side.loose)
    if not side.project:
        with pytest.raises(SpecError, match="not a project's to set") as refusal:
            loaded(side.loose, None)
        assert f"ENVBUILD_{setting.upper()}" in str(refusal.value.hint)
        assert f"ENVBUILD_CONFIG={theirs}" in str(refusal.value.hint)
        taken = Config.load(checkout, {"ENVBUILD_CONFIG": str(theirs)})
        assert getattr(taken, name) is not None
        return
    assert loaded(side.loose, None) == loose
    if side.strict is None:
        return
    strict = loaded(None, side.strict)
    assert strict != loose
    assert loaded(side.loose, side.strict) == strict
    assert told[-1] == [f"{theirs}: {setting} does not hold: your own setting is stricter"]
    if name != "trust":  # whose rules are not mixed
        assert loaded(side.strict, side.loose) == strict
        assert told[-1] == []


def test_a_project_says_neither_with_which_key_nor_as_whom_to_sign(tmp_path: Path) -> None:
    for member in ("sign_key = '/home/me/.ssh/id_ecdsa'", "sign_identity = 'ambient'"):
        (tmp_path / "envbuild.toml").write_text(f"[trust]\n{member}\n")
        with pytest.raises(SpecError, match="not a project's to set"):
            Config.load(tmp_path, {})
        assert Config.load(tmp_path, own(tmp_path)).trust is not None
    (tmp_path / "policy.toml").write_text("sign_identity = 'ambient'\n")
    (tmp_path / "envbuild.toml").write_text("trust = 'policy.toml'\n")
    with pytest.raises(SpecError, match="not a project's to set"):
        Config.load(tmp_path, {})


def test_the_machine_and_the_user_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        name: tmp_path / name / "config.toml" for name in ("machine", "home/.config/envbuild", "x/envbuild")
    }
    for number, path in enumerate(files.values()):
        path.parent.mkdir(parents=True)
        path.write_text(f"jobs = {number + 1}\ncache_dir = 'here'\n")
    machine, home, xdg = files.values()
    monkeypatch.setattr(module, "MACHINE_FILE", machine)
    environ = {"HOME": str(tmp_path / "home")}
    nowhere = tmp_path / "empty"
    nowhere.mkdir()

    def seen(environ: dict[str, str]) -> tuple[int, Path]:
        config = Config.load(nowhere, environ)
        return config.jobs, config.cache_dir

    assert seen({}) == (1, machine.parent / "here")
    assert seen(environ) == (2, home.parent / "here")
    assert seen({**environ, "XDG_CONFIG_HOME": ""}) == (2, home.parent / "here")
    assert seen({**environ, "XDG_CONFIG_HOME": str(tmp_path / "x")}) == (3, xdg.parent / "here")
    assert seen({**environ, "ENVBUILD_CONFIG": " "}) == (2, home.parent / "here")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/pyproject.toml").write_text("[tool.envbuild]\njobs = 4\n")
    named = {**environ, "ENVBUILD_CONFIG": str(tmp_path / "own/pyproject.toml")}
    assert seen(named) == (4, machine.parent / "here")
    home.write_text("")
    assert seen(environ) == (1, machine.parent / "here")
    with pytest.raises(SpecError, match="No such file"):
        seen({"ENVBUILD_CONFIG": str(tmp_path / "missing.toml")})


@pytest.mark.parametrize("name", sorted(SIDES))
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_variable_is_as_one_that_is_not_set(tmp_path: Path, name: str, empty: str) -> None:
    side = SIDES[name]
    (tmp_path / "envbuild.toml").write_text(f"{name.rstrip('_')} = {side.strict or side.loose}\n")
    variable = f"ENVBUILD_{name.rstrip('_').upper()}"
    with_empty = Config.load(tmp_path, {**own(tmp_path), variable: empty})
    assert getattr(with_empty, name) == getattr(Config.load(tmp_path, own(tmp_path)), name)
