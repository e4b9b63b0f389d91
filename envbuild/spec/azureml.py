"""Azure ML environments: v2 YAML, the inline environment of a job's YAML, v1 folders, build contexts.

Sources: the ``environment``, ``commandJob`` and ``pipelineJob`` schemas of Azure ML's CLI v2, and what
``Environment.save_to_directory`` of azureml-core 1.x writes. What such a file says about a workspace
(name, version, tags, inference settings) has no effect on the image and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from envbuild.spec.context import ignore_file_of
from envbuild.spec.document import Mapping, Scalar, Sequence, fail, is_null
from envbuild.spec.files import require
from envbuild.spec.forms import AZURE_DECIDING_KEYS, AZURE_JOB_KEYS, AZURE_KEYS
from envbuild.spec.reading import is_folder, kind, mapping, read, refuse_unknown, strings, text
from envbuild.spec.stage import split_stage
from envbuild.spec.steps import Steps

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.spec.document import Node

V1_CONDA_FILE = "conda_dependencies.yml"
V1_DOCKERFILE = "BaseDockerfile"


@dataclass(frozen=True, slots=True)
class AzureEnvironment:
    """What an Azure ML definition says of an image.

    Attributes:
        base: The base image, or None where the definition names none.
        steps: The Docker steps of a build context, or None.
        conda: The Conda definition: an inline mapping, or the name of a file in ``folder``.
        variables: Environment variables, with the place of each name.
        folder: The folder that paths are relative to.
    """

    folder: Path
    base: Scalar | None = None
    steps: Steps | None = None
    conda: Mapping | Scalar | None = None
    variables: tuple[tuple[Scalar, str], ...] = ()


def parse(node: Mapping, folder: Path) -> AzureEnvironment:
    """Understand a v2 environment, or the one environment that a job or deployment holds inline.

    Raises:
        SpecError: The definition does not say enough to build an image, or says it in a way that only a
            workspace understands.
    """
    if not any(node.get(name) for name in AZURE_DECIDING_KEYS) and any(
        node.get(name) for name in AZURE_JOB_KEYS
    ):
        return _environment(_inline(node), folder)
    return _environment(node, folder)


def _environment(node: Mapping, folder: Path) -> AzureEnvironment:
    refuse_unknown(node, AZURE_KEYS, "an Azure ML environment")
    _refuse_windows(node)
    image, build, conda = node.get("image"), node.get("build"), node.get("conda_file")
    if build is None:
        return AzureEnvironment(
            folder,
            base=text(image, "image") if image is not None else None,
            conda=_conda(conda) if conda is not None else None,
        )
    for other, name in ((image, "image"), (conda, "conda_file")):
        if other is not None:
            fail(other.mark, f"`{name}` and `build` stand side by side, expected one", "take one of them out")
    return _build(mapping(build, "build"), folder)


def _refuse_windows(node: Mapping) -> None:
    os_type = node.get("os_type")
    if isinstance(os_type, Scalar) and not is_null(os_type) and os_type.value.lower() != "linux":
        fail(os_type.mark, f"os_type is {os_type.value!r}, expected linux", "only Linux images can be built")


def _conda(node: Node) -> Mapping | Scalar:
    if isinstance(node, Mapping):
        return node
    name = text(node, "conda_file", "write a path or the definition itself")
    _refuse_remote(name, "conda_file")
    return name


def _refuse_remote(path: Scalar, what: str) -> None:
    scheme, colon, _ = path.value.partition(":")
    if colon and len(scheme) > 1:
        fail(path.mark, f"{what} is {path.value!r}, expected a path on this machine", "fetch it first")


def _build(node: Mapping, folder: Path) -> AzureEnvironment:
    local_path = next((name for name, _ in node.entries if name.value == "local_path"), None)
    if local_path is not None:
        fail(
            local_path.mark,
            "build has `local_path`, its name in previews of the schema",
            "rename it to `path`",
        )
    refuse_unknown(node, {"path", "dockerfile_path"}, "build")
    path = node.get("path")
    if path is None:
        fail(node.mark, "build has no path, expected the folder of the build context", "add `path: FOLDER`")
    place = text(path, "build.path")
    _refuse_remote(place, "build.path")
    context = folder / place.value
    require(context, place.mark)
    if not is_folder(context):
        fail(place.mark, f"there is no folder {context}", "build.path is relative to the file that names it")
    named = node.get("dockerfile_path")
    name = text(named, "build.dockerfile_path") if named is not None else None
    file = context / (name.value if name else "Dockerfile")
    content = read(file, (name or place).mark)
    return from_dockerfile(content, str(file), context, ignore_file_of(file))


def from_dockerfile(
    content: bytes, source: str, context: Path, ignore_file: Path | None = None
) -> AzureEnvironment:
    """A Dockerfile with one ``FROM`` as base and steps.

    Args:
        content: The Dockerfile.
        source: Its name, for messages.
        context: The folder that its COPY and ADD instructions take files from.
        ignore_file: The file that, where it is there, replaces the context's ``.dockerignore``.

    Raises:
        SpecError: The Dockerfile has several stages, or something that steps may not have.
    """
    stage = split_stage(content, source)
    steps = Steps.of(
        stage.instructions, stage.mark, args=stage.args, context=context, ignore_file=ignore_file
    )
    return AzureEnvironment(context, base=stage.base, steps=steps)


def _inline(job: Mapping) -> Mapping:
    found = list(_environments(job))
    inline = [node for node in found if isinstance(node, Mapping)]
    if len(inline) > 1:
        fail(
            inline[1].mark,
            f"the job holds {len(inline)} environments, expected one",
            "save the one to build as a file of its own",
        )
    if not inline:
        _refuse_named(job, found)
    return inline[0]


def _refuse_named(job: Mapping, found: list[Node]) -> NoReturn:
    if not found:
        fail(job.mark, "the job holds no environment", "name the environment's own file")
    named = found[0]
    if isinstance(named, Scalar) and named.value.startswith("file:"):
        fail(named.mark, f"the environment is in {named.value!r}", "name that file instead of the job's")
    seen = repr(named.value) if isinstance(named, Scalar) else f"a {kind(named)}"
    fail(
        named.mark,
        f"the environment is {seen}, expected its definition",
        "only the workspace knows what it holds: export it with `az ml environment show`",
    )


def _environments(job: Mapping) -> list[Node]:
    found = []
    for name, node in job.entries:
        if name.value == "environment":
            found.append(node)
        elif name.value in {"task", "component", "trial"} and isinstance(node, Mapping):
            found += _environments(node)
        elif name.value == "jobs" and isinstance(node, Mapping):
            found += [
                each for _, one in node.entries if isinstance(one, Mapping) for each in _environments(one)
            ]
    return found


def parse_v1(node: Mapping, folder: Path) -> AzureEnvironment:
    """Understand a folder that azureml-core's ``Environment.save_to_directory`` wrote.

    Args:
        node: The content of ``azureml_environment.json``.
        folder: The folder; its ``conda_dependencies.yml`` and ``BaseDockerfile`` are read where they are.

    Raises:
        SpecError: The definition needs R, Spark packages or something else that only Azure ML's builds know.
    """
    _refuse_v1(node)
    python = _section(node, "python")
    base = _v1_base(_section(node, "docker"), folder)
    variables = _given(node.get("environmentVariables"))
    return AzureEnvironment(
        folder,
        base=base.base,
        steps=base.steps,
        conda=None if _is_true(python.get("userManagedDependencies")) else _v1_conda(python, folder),
        variables=strings(variables, "environmentVariables") if variables is not None else (),
    )


def _refuse_v1(node: Mapping) -> None:
    r_section = _given(node.get("r"))
    if r_section is not None:
        fail(r_section.mark, "the environment has an R section", "install R's packages with Conda or steps")
    packages = _given(_section(node, "spark").get("packages"))
    if isinstance(packages, Sequence) and packages.items:
        fail(packages.mark, "the environment has Spark packages", "install them with Docker steps")


def _given(node: Node | None) -> Node | None:
    return None if node is None or is_null(node) else node


def _section(node: Mapping, name: str) -> Mapping:
    section = _given(node.get(name))
    return mapping(section, name) if section is not None else Mapping((), node.mark)


def _is_true(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.value == "true"


def _v1_base(docker: Mapping, folder: Path) -> AzureEnvironment:
    inline, image = _given(docker.get("baseDockerfile")), _given(docker.get("baseImage"))
    if inline is not None:
        content = text(inline, "docker.baseDockerfile")
        return from_dockerfile(content.value.encode(), f"{content.mark.source} (baseDockerfile)", folder)
    if image is None and (folder / V1_DOCKERFILE).exists():
        file = folder / V1_DOCKERFILE
        return from_dockerfile(read(file), str(file), folder, ignore_file_of(file))
    if image is None:
        return AzureEnvironment(folder)
    name = text(image, "docker.baseImage")
    address = _given(_section(docker, "baseImageRegistry").get("address"))
    if address is not None:
        host = text(address, "docker.baseImageRegistry.address").value.rstrip("/")
        name = Scalar(f"{host}/{name.value}", name.mark, name.plain)
    return AzureEnvironment(folder, base=name)


def _v1_conda(python: Mapping, folder: Path) -> Mapping | Scalar | None:
    inline = _given(python.get("condaDependencies"))
    if inline is not None:
        return mapping(inline, "python.condaDependencies")
    named = _given(python.get("condaDependenciesFile"))
    if named is not None:
        return text(named, "python.condaDependenciesFile")
    return Scalar(V1_CONDA_FILE, python.mark, plain=True) if (folder / V1_CONDA_FILE).exists() else None
