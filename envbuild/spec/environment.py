"""What a user wrote, whole: :class:`EnvironmentSpec`, and :func:`load`, which reads it.

The form of a definition (Conda, envbuild, pip, Azure ML) is told by what it holds, not by its name.
Every file is read once; the bytes that were read are the bytes that are hashed and built.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from envbuild.errors import SpecError
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.spec import fields, forms
from envbuild.spec.conda import CondaSection
from envbuild.spec.document import fail, refuse, understand
from envbuild.spec.fields import ChannelPriority
from envbuild.spec.files import unconfined
from envbuild.spec.reading import MAX_BYTES, is_folder, mapping, read, refuse_unknown
from envbuild.spec.virtual import NOTHING_SAID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import date, datetime

    from envbuild.reference import ImageReference, TaggedReference
    from envbuild.spec.azureml import AzureEnvironment
    from envbuild.spec.document import Mapping, Node
    from envbuild.spec.pip import PipSection
    from envbuild.spec.steps import Steps
    from envbuild.spec.virtual import VirtualPackages

__all__ = ["ChannelPriority", "EnvironmentSpec", "load", "parse"]

STANDARD_INPUT = "-"
STANDARD_INPUT_NAME = "<stdin>"
_HERE = Path()
_FOLDER_FILES = (forms.AZURE_V1_FILE, "envbuild.yaml", "envbuild.yml", "environment.yml", "environment.yaml")
_SOLVED = "name the definition that it was solved from"
_OTHERS = (
    (frozenset({"metadata", "package"}), "a lock of conda-lock", _SOLVED),
    (frozenset({"environments", "packages"}), "a lock of pixi", _SOLVED),
    (
        frozenset({"python", "build_dependencies"}),
        "MLflow's python_env.yaml",
        "name the conda.yaml or the requirements.txt that MLflow writes beside it",
    ),
)
_YAML_NAMES = (".yml", ".yaml", ".json")
_REQUIREMENTS_NAME = re.compile(r"(?:^|[-_. ])(?:requirements?|reqs?)[0-9]*(?:$|[-_. ])")
_YAML_START = re.compile(r"(?:[\"']?[$A-Za-z_][\w.$-]*[\"']?\s*:(?:\s|$))|[{\[]|---|%|- ")

_URL = r"(?<![A-Za-z+])[A-Za-z+]++://\S+"  # compiled when something is refused
_DOCKERFILE_START = re.compile(r"(?:from|arg)\s+[^\s=<>~!;@]", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """A definition, parsed and complete but for the base's digest.

    Attributes:
        source: The definition's name as the user wrote it.
        base: The base image; None for ``scratch``, and where ``has_base`` is false.
        has_base: Whether there is a base at all; see :meth:`require_base`.
        steps: Docker steps that run on the base, or None.
        conda: The Conda section, or None.
        pip: The pip section, or None where there is no requirement.
        steps_after: Docker steps that run on the finished environment, or None.
        variables: Environment variables of the image, sorted by name.
        channel_priority: How the order of the channels binds.
        platforms: The platforms to build for: at least one, sorted, each once.
        as_of: Packages newer than this moment (UTC, whole seconds) are ignored; None for no limit.
        secrets: The names of the build secrets that steps mount, named or not, sorted.
        virtual_packages: What is said of the machines that will run the image.
        pyc: Whether modules are compiled into the layers of ``noarch: python`` packages.
        offline: Whether steps and scripts are kept from the network.
        lock: The bytes of the ``envbuild.lock`` that it was read from, to which it is held; None for others.
    """

    source: str
    base: ImageReference | TaggedReference | None = None
    has_base: bool = True
    steps: Steps | None = None
    conda: CondaSection | None = None
    pip: PipSection | None = None
    steps_after: Steps | None = None
    variables: tuple[tuple[str, str], ...] = ()
    channel_priority: ChannelPriority = ChannelPriority.STRICT
    platforms: tuple[Platform, ...] = (LINUX_AMD64,)
    as_of: datetime | None = None
    secrets: tuple[str, ...] = ()
    virtual_packages: VirtualPackages = NOTHING_SAID
    pyc: bool = False
    offline: bool = False
    lock: bytes | None = field(default=None, repr=False)

    @property
    def is_lock(self) -> bool:
        """Whether it was made of a lock, whose packages were chosen once and for all."""
        return self.lock is not None

    @property
    def has_conda(self) -> bool:
        """Whether Conda packages are asked for."""
        return self.conda is not None and bool(self.conda.dependencies)

    @property
    def has_packages(self) -> bool:
        """Whether packages of any kind are asked for."""
        return self.has_conda or self.pip is not None

    @property
    def runs_programs(self) -> bool:
        """Whether building may run steps, or scripts of packages."""
        steps = [each for each in (self.steps, self.steps_after) if each is not None and each.instructions]
        return self.has_conda or bool(steps)

    def require_base(self) -> ImageReference | TaggedReference | None:
        """The base; None for ``scratch``.

        Raises:
            SpecError: The definition names no base, and none was given.
        """
        if not self.has_base:
            raise SpecError(
                "there is no base image",
                source=self.source,
                hint='write `base = "debian:12-slim"` into an envbuild.toml beside it, for all there; '
                "or give --base debian:12-slim; or write `base: debian:12-slim` into an envbuild.yaml",
            )
        return self.base

    def with_base(self, base: str) -> EnvironmentSpec:
        """The same definition on another base, written as a user writes it.

        Raises:
            SpecError: The text is not a reference.
        """
        return replace(self, base=fields.reference(base, _HERE, None), has_base=True)

    def with_virtual_packages(self, given: VirtualPackages) -> EnvironmentSpec:
        """The same definition with what is given laid over what it says of the machines.

        Raises:
            SpecError: It is a lock, whose packages were chosen for something else; or a processor is named
                that is not one of the platform's.
        """
        found = given.over(self.virtual_packages)
        if self.is_lock and found != self.virtual_packages:
            asked, known = found.canonical(), self.virtual_packages.canonical()
            names = ", ".join(name for name in asked if asked[name] != known.get(name))
            chosen = ", ".join(map(" ".join, known.items())) or "machines of which nothing is said"
            raise SpecError(
                f"{names} cannot be laid over a lock: its packages were chosen for {chosen}",
                source=self.source,
                hint="name the definition that it was made from, and lock that anew",
            )
        found.check(self.platforms)
        return replace(self, virtual_packages=found)

    def under(self, alias: str) -> EnvironmentSpec:
        """The same definition with the channels where they lead if names stand under an alias."""
        return self if self.conda is None else replace(self, conda=self.conda.under(alias))


class _Source(NamedTuple):
    name: str
    folder: Path
    content: bytes

    def __repr__(self) -> str:
        return f"_Source({self.name!r})"


def load(
    source: str | Path,
    *,
    base: str | None = None,
    steps: str | Path | None = None,
    platforms: str | Platform | Iterable[str | Platform] | None = None,
    as_of: str | date | None = None,
    form: str | None = None,
    content: bytes | None = None,
) -> EnvironmentSpec:
    """Read a definition.

    Args:
        source: A file, a folder that holds one, or ``-`` for standard input.
        base: The base image, in place of the definition's.
        steps: A file of Docker steps, in place of the definition's; its folder is their context.
        platforms: The platforms to build for, in place of the definition's.
        as_of: Ignore packages newer than this, in place of the definition's; a date means its start in UTC.
        form: One of :data:`envbuild.spec.forms.FORMS`; None to have it told by content and name.
        content: The bytes of the file or of standard input, where they were read already.

    Raises:
        SpecError: Something in it cannot be understood; the message names file, line and column.
        DeadlineExceeded: The time ran out.
    """
    if form is not None and form not in forms.FORMS:
        raise SpecError(f"the form {form!r} is not known", hint=f"write one of {', '.join(forms.FORMS)}")
    spec = _load(source, form, content)
    with unconfined():  # what the caller names is not the definition's to name
        if base is not None:
            spec = spec.with_base(base)
        if steps is not None:
            spec = _with_mounted(replace(spec, steps=fields.steps_file(Path(steps), None)))
    if platforms is not None:
        each = (platforms,) if isinstance(platforms, (str, Platform)) else tuple(platforms)
        spec = replace(spec, platforms=fields.platforms(each))
    if as_of is not None:
        spec = replace(spec, as_of=fields.moment(as_of, None))
    _check_platforms(spec)
    return spec


def _check_platforms(spec: EnvironmentSpec) -> None:
    """Refuse a platform that the Conda file says it is not for.

    Raises:
        SpecError: There is one.
    """
    named = spec.conda.platforms if spec.conda is not None else ()
    for platform in spec.platforms if named else ():
        if platform.subdir not in named:
            raise SpecError(
                f"the Conda file is for {', '.join(named)}, and {platform} is asked for",
                source=spec.source,
                hint=f"add {platform.subdir} to its `platforms`, or give --platform",
            )


def _load(source: str | Path, form: str | None, content: bytes | None) -> EnvironmentSpec:
    if str(source) == STANDARD_INPUT:
        content = standard_input(MAX_BYTES) if content is None else content
        return parse(content, STANDARD_INPUT_NAME, Path(), form=form)
    path = Path(source)
    if is_folder(path):
        path = file_in(path)
    if content is None:
        content = read(path, pipe=True)
    return parse(content, str(path), path.parent, form=form)


def folder_of(source: str | Path) -> Path | None:
    """The folder that a definition is in; None for standard input."""
    if str(source) == STANDARD_INPUT:
        return None
    path = Path(source)
    return path if is_folder(path) else path.parent


def standard_input(most: int) -> bytes:
    """What stands on standard input, and no more than one byte above a limit.

    Raises:
        SpecError: It cannot be read.
    """
    try:
        return sys.stdin.buffer.read(most + 1)
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", source=STANDARD_INPUT_NAME) from None


def file_in(folder: Path, others: tuple[str, ...] = ()) -> Path:
    """The file of a folder that is its definition.

    Args:
        folder: The folder.
        others: Names that count where there is none of a definition.

    Raises:
        SpecError: There is no such file.
    """
    for name in (*_FOLDER_FILES, *others):
        if (folder / name).is_file():
            return folder / name
    raise SpecError(
        f"the folder holds none of {', '.join(_FOLDER_FILES)}", source=str(folder), hint="name a file in it"
    )


def parse(content: bytes, source: str, folder: Path, *, form: str | None = None) -> EnvironmentSpec:
    """Understand a definition that was read.

    Args:
        content: The definition.
        source: Its name, for messages; it decides where the content leaves a doubt.
        folder: The folder that relative paths start from.
        form: One of :data:`envbuild.spec.forms.FORMS`; None to have it told by content and name.

    Raises:
        SpecError: Something in it cannot be understood; all mistakes that were found are in one error.
    """
    try:
        spec = _parse(_Source(source, folder, content), form)
    except SpecError as error:
        raise _told(error, content, source) from None
    if spec.pip is not None and not spec.pip.requirements:
        spec = replace(spec, pip=None)
    return _with_mounted(spec)


def _told(error: SpecError, content: bytes, source: str) -> SpecError:
    """The error as it is told: without secrets; in a line of a template, that it was not rendered."""
    from envbuild.spec.channel import redact
    from envbuild.spec.mistakes import TEMPLATE, TEMPLATE_HINT

    lines = content.decode("utf-8", "replace").split("\n")
    for each in (error, *error.others):
        each.message = re.sub(_URL, lambda url: redact(url.group()), each.message)
        each.hint = each.hint and re.sub(_URL, lambda url: redact(url.group()), each.hint)
        if each.source != source or each.line is None or each.line > len(lines):
            continue
        if found := TEMPLATE.search(lines[each.line - 1]):
            each.message = f"{found.group()!r} belongs to a template, and templates are not evaluated"
            each.column = found.start() + 1
            each.hint = TEMPLATE_HINT
    return error


def _with_mounted(spec: EnvironmentSpec) -> EnvironmentSpec:
    """The same definition, its secrets completed by those that its steps mount."""
    mounted = {name for steps in (spec.steps, spec.steps_after) if steps for name in steps.secret_ids}
    return replace(spec, secrets=tuple(sorted({*spec.secrets, *mounted}))) if mounted else spec


def _parse(source: _Source, form: str | None) -> EnvironmentSpec:
    if form is None:
        forms.refuse_strangers(source.name)
    first = _first_line(source.content)
    if form == forms.DOCKERFILE or (form is None and _DOCKERFILE_START.match(first)):
        from envbuild.spec import azureml
        from envbuild.spec.context import ignore_file_of

        ignore_file = ignore_file_of(source.folder / Path(source.name).name)
        found = azureml.from_dockerfile(source.content, source.name, source.folder, ignore_file)
        return _from_azure(found, source)
    if form == forms.REQUIREMENTS:
        return _from_requirements(source)
    if form is None and not _YAML_START.match(first) and not source.name.lower().endswith(_YAML_NAMES):
        if _is_named_requirements(source.name):
            return _from_requirements(source)
        raise forms.not_a_definition(source.name, first)
    return _from_document(source, form)


def _is_named_requirements(name: str) -> bool:
    """Whether a file is named as requirements are: ``requirements-dev.txt``, ``requirements/base.in``."""
    path = PurePath(name.lower())
    if path.suffix not in {".txt", ".in", ".pip", ""}:
        return False
    return bool(_REQUIREMENTS_NAME.search(path.stem)) or path.parent.name == "requirements"


def _from_requirements(source: _Source) -> EnvironmentSpec:
    from envbuild.spec.pip import PipSection

    pip = PipSection.from_requirements(source.content, source.name, source.folder)
    return EnvironmentSpec(source=source.name, has_base=False, pip=pip)


def _first_line(content: bytes) -> str:
    """The first line that is neither blank nor a comment."""
    start = 0
    content = content.removeprefix(b"\xef\xbb\xbf")
    while 0 <= start < min(len(content), 65536):
        end = content.find(b"\n", start)
        line = content[start : end if end >= 0 else 65536 + start].strip()
        if line and not line.startswith(b"#"):
            return line.decode("utf-8", "replace")
        start = end + 1 if end >= 0 else -1
    return ""


def _from_document(source: _Source, form: str | None) -> EnvironmentSpec:
    def read(node: Node) -> EnvironmentSpec:
        found = mapping(
            node,
            "the definition",
            "write a Conda environment.yml (`dependencies: [...]`) or an envbuild.yaml (`base: ...`)",
        )
        return _reader(found, form)(found, source)

    return understand(source.content, source.name, read)


def _reader(node: Mapping, form: str | None) -> Callable[[Mapping, _Source], EnvironmentSpec]:
    """Who understands a document: what decides are its keys, where the caller does not say its form."""
    names = {name.value for name, _ in node.entries}
    if form == forms.CONDA or (form is None and names and names <= forms.CONDA_KEYS):
        return _from_conda
    if form == forms.ENVBUILD:
        return _from_envbuild
    if form == forms.AZUREML:
        return _from_azure_v1 if len(names & forms.AZURE_V1_KEYS) > 1 else _from_azure_document
    for keys, what, hint in _OTHERS:
        if keys <= names:
            fail(node.mark, f"this is {what}, expected a definition", hint)
    # What decides is how many of the keys a form knows; on a draw, the form that stands first.
    names |= {name.lower() for name in names}
    known, reader = max(_READERS, key=lambda each: len(each[0] & names))
    if not known & names and names:
        _refuse_keys(node)
    return reader


def _refuse_keys(node: Mapping) -> NoReturn:
    """Refuse a document none of whose keys is known: they are misspelt, or it is something else."""
    from difflib import get_close_matches

    known = forms.CONDA_KEYS | forms.ENVBUILD_KEYS
    keys = [key.value for key, _ in node.entries]
    if any(get_close_matches(key.lower(), known, n=1, cutoff=0.75) for key in keys):
        refuse_unknown(node, known, "a definition")
    fail(
        node.entries[0][0].mark,
        f"{keys[0]!r} is not a key of a definition, nor is any other key here",
        f"known: {', '.join(sorted(known))}",
    )


def _from_conda(node: Mapping, source: _Source) -> EnvironmentSpec:
    conda, pip = CondaSection.parse(node, source.folder)
    return EnvironmentSpec(
        source=source.name, has_base=False, conda=conda, pip=pip, variables=tuple(sorted(conda.variables))
    )


def _from_azure_document(node: Mapping, source: _Source) -> EnvironmentSpec:
    from envbuild.spec import azureml

    return _from_azure(azureml.parse(node, source.folder), source)


def _from_azure_v1(node: Mapping, source: _Source) -> EnvironmentSpec:
    from envbuild.spec import azureml

    return _from_azure(azureml.parse_v1(node, source.folder), source)


def _from_azure(azure: AzureEnvironment, source: _Source) -> EnvironmentSpec:
    conda, pip = fields.conda(azure.conda, azure.folder) if azure.conda is not None else (None, None)
    return EnvironmentSpec(
        source=source.name,
        base=fields.base(azure.base, azure.folder) if azure.base is not None else None,
        has_base=azure.base is not None,
        steps=azure.steps,
        conda=conda,
        pip=pip,
        variables=_merged(conda, fields.checked_variables(azure.variables)),
    )


def _from_envbuild(node: Mapping, source: _Source) -> EnvironmentSpec:
    mistakes: list[SpecError] = []
    folder, get = source.folder, node.get

    def given(name: str, read: Callable[[Node], Any], otherwise: Any = None) -> Any:
        """What a reader makes of a member; where it is missing or wrong, what stands for nothing."""
        value = get(name)
        return otherwise if value is None else attempt(lambda: read(value), otherwise)

    def attempt(read: Callable[[], Any], otherwise: Any = None) -> Any:
        try:
            return read()
        except SpecError as error:
            mistakes.append(error)
            return otherwise

    attempt(lambda: refuse_unknown(node, forms.ENVBUILD_KEYS, "an envbuild definition"))
    conda, pip = attempt(lambda: fields.packages(get("conda"), get("pip"), folder), (None, None))
    strategy = given("index_strategy", fields.index_strategy)
    if pip is not None and strategy is not None:
        pip = replace(pip, index_strategy=strategy)
    spec = EnvironmentSpec(
        source=source.name,
        base=given("base", lambda value: fields.base(value, folder)),
        has_base=get("base") is not None,
        steps=given("steps", lambda value: fields.steps(value, "steps", folder)),
        conda=conda,
        pip=pip,
        steps_after=given("steps_after", lambda value: fields.steps(value, "steps_after", folder)),
        variables=_merged(conda, given("variables", fields.variables, {})),
        channel_priority=given("channel_priority", fields.channel_priority, ChannelPriority.STRICT),
        platforms=attempt(lambda: fields.platform_nodes(get("platform"), get("platforms"))) or (LINUX_AMD64,),
        as_of=given("as_of", fields.moment_node),
        secrets=given("secrets", fields.secrets, ()),
        virtual_packages=given("virtual_packages", fields.virtual_packages, NOTHING_SAID),
    )
    refuse(mistakes)
    return spec


def _merged(conda: CondaSection | None, outer: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables of both places; the definition's own win over those of the Conda file it names."""
    inner = dict(conda.variables) if conda is not None else {}
    return tuple(sorted({**inner, **outer}.items()))


_READERS: tuple[tuple[frozenset[str], Callable[[Mapping, _Source], EnvironmentSpec]], ...] = (
    (forms.CONDA_KEYS, _from_conda),
    (forms.ENVBUILD_KEYS, _from_envbuild),
    (forms.AZURE_KEYS | forms.AZURE_JOB_KEYS, _from_azure_document),
    (forms.AZURE_V1_KEYS, _from_azure_v1),
)
