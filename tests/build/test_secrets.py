"""Build secrets come from the environment, each under one name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from envbuild.build import buildx
from envbuild.build.secrets import build_secrets, variable_of
from envbuild.build.trace import StepLog
from envbuild.errors import BuildError
from envbuild.progress import silent


def test_a_secret_is_read_from_its_variable() -> None:
    assert variable_of("pip-token.1") == "ENVBUILD_SECRET_PIP_TOKEN_1"
    assert build_secrets(["a", "b"], {"ENVBUILD_SECRET_A": "x", "ENVBUILD_SECRET_B": "é"}) == {
        "a": b"x",
        "b": "é".encode(),
    }
    assert build_secrets([], {}) == {}


def test_a_secret_without_a_value_says_which_variable_to_set() -> None:
    for values in ({}, {"ENVBUILD_SECRET_TOKEN": ""}):
        with pytest.raises(BuildError, match="'token' has no value") as caught:
            build_secrets(["token"], values)
        assert "ENVBUILD_SECRET_TOKEN" in str(caught.value.hint)


def test_two_secrets_are_not_one_variable() -> None:
    with pytest.raises(BuildError, match="'pip-token' and 'pip_token' would both be ENVBUILD_SECRET_PIP"):
        build_secrets(["pip-token", "pip_token"], {"ENVBUILD_SECRET_PIP_TOKEN": "x"})


def test_the_docker_command_sees_neither_logins_nor_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets go into private files: arguments are everybody's to read, and the environment is not needed."""
    program = tmp_path / "docker"
    program.write_text(
        f'#!/bin/sh\nenv >> {tmp_path}/seen\necho "$@" | tee -a {tmp_path}/seen\ncat > /dev/null\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ENVBUILD_SECRET_TOKEN", "canary-secret")
    monkeypatch.setenv("ENVBUILD_PASSWORD_REGISTRY", "canary-password")
    monkeypatch.setenv("KEPT", "kept-for-docker")
    buildx.build(None, (), {"token": b"canary-secret"}, (), StepLog(silent, str, 0), lambda _: None)
    assert buildx.version() is not None
    seen = (tmp_path / "seen").read_text()
    assert "--secret=id=token,src=" in seen
    assert "kept-for-docker" in seen
    assert "canary" not in seen
