"""Rules about the base, the steps and the variables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from envbuild.lint.rule import NOTE, WARNING, by_name, rule
from envbuild.reference import TaggedReference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.lint.rule import Seen
    from envbuild.spec.environment import EnvironmentSpec


@rule(
    "EB121",
    "base-tag",
    WARNING,
    "a tag moves: the same definition gets another key and another image when its owner rebuilds the base",
    "write NAME@sha256:DIGEST, or write a lock with `envbuild lock`",
    lock=True,
)
def base_tag(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A base without a digest; in a layout on disk `latest` is a tag like others, which nobody need write."""
    if not isinstance(base := spec.base, TaggedReference):
        return
    if base.tag.name != "latest":
        yield f"the base {base} has no digest", None
    elif base.repository.is_layout:
        yield f"the base {base.repository} has no digest", None


@rule(
    "EB122",
    "base-latest",
    WARNING,
    "`latest` is whatever was pushed last, also a new major release of the system",
    "name a release and its digest, as debian:12-slim@sha256:DIGEST",
    lock=True,
)
def base_latest(spec: EnvironmentSpec) -> Iterator[Seen]:
    """The tag ``latest``, written or meant; a layout on disk holds what its owner put into it."""
    base = spec.base
    if isinstance(base, TaggedReference) and base.tag.name == "latest" and not base.repository.is_layout:
        yield f"the base {spec.base} is `latest`", None


@rule(
    "EB123",
    "base-deprecated",
    WARNING,
    "its system is past its support, and known holes stay open",
    "move to a base on ubuntu22.04 or later, as mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04",
)
def base_deprecated(spec: EnvironmentSpec) -> Iterator[Seen]:
    """Azure ML bases of systems whose support has ended."""
    if spec.base is not None and (found := _DEPRECATED.search(str(spec.base))):
        yield f"the base {spec.base} is deprecated ({found[1]})", None


_DEPRECATED: Final = re.compile(
    r"^mcr\.microsoft\.com/azureml/.*?(ubuntu1[468]\.04|ubuntu20\.04|intelmpi|openmpi[123]\.|o16n-base|base-gpu|base:|"
    r"py3[5678](?!\d))"
)


@rule(
    "EB124",
    "base-has-python",
    NOTE,
    "scripts that call the base's python or conda by its path do not see the environment",
    "take a plain base as debian:12-slim, unless the base's own python is needed",
)
def base_has_python(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A base made for python under an environment with python."""
    if spec.base is None or not {"python", "pypy"} & by_name(spec).keys():
        return
    if _PYTHON_BASE.search(str(spec.base.repository)):
        yield f"the base {spec.base} has a python of its own", None


_PYTHON_BASE: Final = re.compile(
    r"^docker\.io/(?:library/(?:python|pypy)|continuumio/|mambaorg/|condaforge/|pytorch/|jupyter/)|"
    r"^mcr\.microsoft\.com/azureml/|/miniconda3?$|/miniforge3?$"
)


@rule(
    "EB132",
    "secret-in-image",
    WARNING,
    "it is stored in the image and its history, where everybody who can pull the image reads it",
    "use a secret mount (RUN --mount=type=secret) or set it when the container starts; replace the secret",
)
def secret_in_image(spec: EnvironmentSpec) -> Iterator[Seen]:
    """Credentials in steps and variables."""
    for steps in (spec.steps, spec.steps_after):
        for one in steps.instructions if steps is not None else ():
            texts = (*one.arguments, *(document.content for document in one.heredocs))
            if any(_has_login(text) for text in texts):
                yield f"a URL in {one.keyword} holds a password", one.mark
    for name, value in spec.variables:
        if _has_login(value) or (value and _SECRET_NAME.search(name)):
            yield f"the variable {name} looks like a secret", None


_PASSWORD: Final = re.compile(r"://[^/\s:@\"'$]+:([^/\s@\"'$]+)@")
_SECRET_NAME: Final = re.compile(
    r"(?:PASSWORD|PASSWD|SECRET(?:_ACCESS)?_KEY|ACCESS_TOKEN|API_KEY|SECRET)$", re.IGNORECASE
)


def _has_login(text: str) -> bool:
    return _PASSWORD.search(text) is not None
