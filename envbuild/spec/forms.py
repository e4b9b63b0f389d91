"""The keys by which the forms of a definition are told from each other."""

from __future__ import annotations

CONDA_KEYS = frozenset({"name", "channels", "dependencies", "prefix", "variables"})
ENVBUILD_KEYS = frozenset(
    {"base", "steps", "conda", "pip", "steps_after", "variables", "channel_priority", "platform", "platforms"}
    | {"as_of", "secrets"}
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
