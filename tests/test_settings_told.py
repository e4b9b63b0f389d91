"""Settings that are mistaken: of another type, misspelt, without a home; times as people write them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envbuild.config import Config, unknown_variables
from envbuild.errors import SpecError
from envbuild.reference import Repository

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workspace", 3),
        ("workspace", "not a repository"),
        ("global_", ["x"]),
        ("jobs", "many"),
        ("jobs", 0),
        ("timeout", "soon"),
        ("deep", "maybe"),
        ("builder", "other"),
        ("insecure", 3),
        ("insecure", "example.com"),
        ("registries", "example.com"),
        ("channels", 3),
        ("trust", "all"),
        ("cache_dir", 3),
        ("max_layers", None),
        ("step_memory", "much"),
    ],
)
def test_a_value_that_is_none_of_its_setting_is_refused_at_once(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"Config\\({name}=…\\)"):
        Config(**{name: value})


def test_text_is_taken_for_what_it_stands_for() -> None:
    values: dict[str, Any] = {
        "workspace": "localhost:5000/envs",
        "cache_dir": "/srv/cache",
        "timeout": "10m",
        "step_timeout": "1h30m",
        "index_ttl": "1.5s",
        "base_ttl": "250ms",
        "step_memory": "2g",
        "jobs": "4",
    }
    config = Config(**values)
    assert config.workspace == Repository("localhost:5000", "envs")
    assert config.cache_dir == Path("/srv/cache")
    assert (config.timeout, config.step_timeout) == (600.0, 5400.0)
    assert (config.index_ttl, config.base_ttl) == (1.5, 0.25)
    assert (config.step_memory, config.jobs) == (2 << 30, 4)


@pytest.mark.parametrize("text", ["10 m", "m", "1x", "-1s", "1m1", "nan", "inf", ""])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="expected seconds"):
        Config(timeout=text)  # type: ignore[arg-type]


def test_variables_that_are_no_settings_are_told() -> None:
    environ = {
        "ENVBUILD_WORKSPCE": "x",
        "ENVBUILD_QQQQ": "x",
        "ENVBUILD_JOBS": "2",
        "ENVBUILD_USERNAME_EXAMPLE_COM": "x",
        "ENVBUILD_HOST": "x",
        "HOME": "/root",
    }
    assert unknown_variables(environ) == [
        "ENVBUILD_QQQQ is no setting",
        "ENVBUILD_WORKSPCE is no setting: did you mean ENVBUILD_WORKSPACE?",
    ]
    with pytest.warns(UserWarning, match="ENVBUILD_WORKSPCE"):
        Config.load(environ={"ENVBUILD_WORKSPCE": "x"})


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "envbuild", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **variables},
    )


def test_the_command_line_tells_of_them(tmp_path: Path) -> None:
    done = run("cache", "info", "--cache-dir", str(tmp_path), ENVBUILD_JOSB="2")
    assert (done.returncode, done.stderr) == (
        0,
        "warning: ENVBUILD_JOSB is no setting: did you mean ENVBUILD_JOBS?\n",
    )


WITHOUT_HOME = """
import os, platformdirs, sys
import envbuild.cli, envbuild.cli.cache, envbuild.cli.doctor
del os.environ["HOME"]
os.setgid(12345), os.setuid(12345)
envbuild.cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody whom passwd does not know")
@pytest.mark.parametrize("words", [["cache", "info"], ["doctor"], ["cache", "ls", "--cache-dir", "~/x"]])
def test_without_a_home_folder_it_is_said_what_to_set(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HOME, *words], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 2, done.stderr
    assert "HOME is not set" in done.stderr
    assert "--cache-dir" in done.stderr
    assert "Traceback" not in done.stderr
