"""The forms of a definition, and how they are told from each other and from what is none."""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

from envbuild.errors import SpecError

CONDA: Final = "conda"
ENVBUILD: Final = "envbuild"
REQUIREMENTS: Final = "requirements"
AZUREML: Final = "azureml"
DOCKERFILE: Final = "dockerfile"
FORMS: Final = (CONDA, ENVBUILD, REQUIREMENTS, AZUREML, DOCKERFILE)

CONDA_KEYS = frozenset({"name", "channels", "dependencies", "prefix", "variables"})
ENVBUILD_KEYS = frozenset(
    {"base", "steps", "conda", "pip", "steps_after", "variables", "channel_priority", "platform", "platforms"}
    | {"as_of", "secrets", "index_strategy", "virtual_packages"}
)
AZURE_DECIDING_KEYS = frozenset({"image", "build", "conda_file"})
AZURE_KEYS = AZURE_DECIDING_KEYS | {
    *("$schema", "name", "version", "description", "tags", "properties", "label", "type", "datastore"),
    *("os_type", "inference_config", "creation_context", "id", "is_anonymous", "auto_increment_version"),
}
AZURE_JOB_KEYS = frozenset({"environment", "jobs", "task", "command", "code", "compute", "experiment_name"})
AZURE_V1_KEYS = frozenset(
    {"docker", "python", "environmentVariables", "inferencingStackVersion", "databricks"}
)
AZURE_V1_FILE = "azureml_environment.json"

_PROJECT: Final = (
    "it names a project's own dependencies: write them into an environment.yml or requirements.txt"
)
_STRANGERS: Final = {
    "apt.txt": "packages of Debian belong into Docker steps: `RUN apt-get update && apt-get install -y NAME`",
    "runtime.txt": "the version of python is a dependency: write `- python=3.11` into an environment.yml",
    "pyproject.toml": f"{_PROJECT}, or install the project with `- pip: [.]`",
    "setup.py": f"{_PROJECT}, or install the project with `- pip: [.]`",
    "setup.cfg": f"{_PROJECT}, or install the project with `- pip: [.]`",
    "pixi.toml": "name its pixi.lock, or what `pixi project export conda-environment` writes",
    "pipfile": "write a requirements.txt with `pipenv requirements`",
    "pipfile.lock": "write a requirements.txt with `pipenv requirements`",
    "poetry.lock": "write a requirements.txt with `poetry export`",
    "uv.lock": "write a requirements.txt with `uv export`",
    "install.r": "R's packages are Conda's too: write `- r-NAME` into an environment.yml",
    "postbuild": "what runs after the environment is made belongs into `steps_after` of an envbuild.yaml",
    "start": "what runs at the start of a container is no part of its image",
    "envbuild.toml": "it holds settings: name the definition beside it",
}


def refuse_strangers(name: str) -> None:
    """Refuse a file whose name says that it is another tool's, with what to write instead.

    Raises:
        SpecError: The file is one of them.
    """
    base = PurePath(name).name
    if (hint := _STRANGERS.get(base.lower())) is not None:
        raise SpecError(f"{base} is not a definition", source=name, hint=hint)


def not_a_definition(name: str, first: str) -> SpecError:
    """Why a text is no definition.

    Args:
        name: The file's name.
        first: The first line that is neither blank nor a comment.
    """
    seen = f"found {first[:60]!r}" if first else "it is empty"
    return SpecError(
        f"this is not a definition: {seen}, expected an environment.yml, an envbuild.yaml, an Azure ML "
        "environment or a Dockerfile",
        source=name,
        hint="for pip requirements name the file requirements.txt, or give --format requirements",
    )
