"""Build secrets come from the environment, each under one name."""

from __future__ import annotations

import pytest

from envbuild.build.secrets import build_secrets, variable_of
from envbuild.errors import BuildError


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
