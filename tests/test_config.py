"""Settings: where they come from and which wins."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from envbuild import config as module
from envbuild.config import Config
from envbuild.errors import SpecError
from envbuild.reference import Repository


def test_every_setting_has_a_parser() -> None:
    assert set(module._PARSERS) == {field.name for field in fields(Config)}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text('workspace = "r.example.com/file"\njobs = 3\npromote = true\n')
    environ = {"ENVBUILD_WORKSPACE": "r.example.com/environment", "ENVBUILD_JOBS": "5"}
    config = Config.load(tmp_path, environ, workspace="r.example.com/flag")
    assert config.workspace == Repository("r.example.com", "flag")
    assert config.jobs == 5
    assert config.promote is True


def test_the_file_is_found_upwards_and_pyproject_serves_too(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.envbuild]\nglobal = "r.example.com/all"\n')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert Config.load(inner, {}).global_ == Repository("r.example.com", "all")
    (tmp_path / "a" / "envbuild.toml").write_text("jobs = 2\n")
    assert Config.load(inner, {}).global_ is None


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
        ("channel_variables = 3", "expected a list of variables' names"),
        ("channel_variables = ['$A']", "expected a list of variables' names"),
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
        Config.load(tmp_path, {})
    assert words in f"{caught.value} {caught.value.hint}"
    assert "envbuild.toml" in str(caught.value)


def test_hosts_are_read_from_a_list_or_from_text(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text("insecure = ['A.example.com:5000']\n")
    assert Config.load(tmp_path, {}).insecure == {"a.example.com:5000"}
    assert Config.load(tmp_path, {"ENVBUILD_INSECURE": "b:1, c:2"}).insecure == {"b:1", "c:2"}


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("'512m'", 512 << 20), ("'2G'", 2 << 30), ("'1kb'", 1024)]
)
def test_memory_may_be_written_with_a_unit(tmp_path: Path, text: str, size: int) -> None:
    (tmp_path / "envbuild.toml").write_text(f"step_memory = {text}\nstep_cpus = 0.5\nstep_timeout = 90\n")
    config = Config.load(tmp_path, {})
    assert (config.step_memory, config.step_cpus, config.step_timeout) == (size, 0.5, 90)


def test_mirrors_are_read_from_tables_or_from_text(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text(
        '[registries."Docker.io"]\nmirrors = ["m.example.com", "n/prefix"]\n'
    )
    assert Config.load(tmp_path, {}).registries == {"docker.io": ("m.example.com", "n/prefix")}
    text = "docker.io=m.example.com,n.example.com; ghcr.io=m.example.com/ghcr"
    assert Config.load(tmp_path, {"ENVBUILD_REGISTRIES": text}).registries == {
        "docker.io": ("m.example.com", "n.example.com"),
        "ghcr.io": ("m.example.com/ghcr",),
    }


def test_mirrors_of_channels(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text(
        '[channels."https://Conda.example.com/a/"]\n'
        'mirrors = ["https://m.example.com/b/", "file:///srv/mirror", "./here"]\n'
        "[channels.'https://conda.anaconda.org']\nmirrors = []\n"
    )
    assert Config.load(tmp_path, {}).channels == {
        "https://conda.example.com/a": (
            "https://m.example.com/b",
            "file:///srv/mirror",
            (tmp_path / "here").as_uri(),
        ),
        "https://conda.anaconda.org": (),
    }
    text = "https://a.example.com=https://m.example.com, file:///srv;https://b.example.com/c=https://n.example.com"
    assert Config.load(tmp_path, {"ENVBUILD_CHANNELS": text}).channels == {
        "https://a.example.com": ("https://m.example.com", "file:///srv"),
        "https://b.example.com/c": ("https://n.example.com",),
    }


def test_variables_of_channels(tmp_path: Path) -> None:
    (tmp_path / "envbuild.toml").write_text('channel_variables = ["USER", "TOKEN"]\n')
    assert Config.load(tmp_path, {}).channel_variables == {"USER", "TOKEN"}
    assert Config.load(tmp_path, {"ENVBUILD_CHANNEL_VARIABLES": "A, B"}).channel_variables == {"A", "B"}
    assert Config().channel_variables == frozenset()
