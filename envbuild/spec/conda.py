"""The Conda part of a definition: what ``environment.yml`` says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from envbuild.errors import SpecError
from envbuild.spec.channel import NODEFAULTS, Channel
from envbuild.spec.document import NULLS, Mapping, Scalar, Sequence, fail, is_null, refuse
from envbuild.spec.files import check_time
from envbuild.spec.forms import ENVBUILD_KEYS
from envbuild.spec.match import MatchSpec

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.spec.document import Node
    from envbuild.spec.pip import PipSection

KNOWN = ("name", "prefix", "channels", "dependencies", "variables", "platforms", "category")
"""The keys of an environment file. ``name`` and ``prefix`` say where conda would put it. ``platforms`` and
``category`` are conda-lock's: which platforms to lock for is the caller's choice here, and a category sorts a
file's packages into groups of a lock without changing them. None of the four changes the environment."""

_REFUSED = {
    "$schema": "this is an Azure ML definition, not the Conda file that it names",
    "python": "this looks like MLflow's python_env.yaml: use the conda.yaml beside it",
    "build_dependencies": "this looks like MLflow's python_env.yaml: use the conda.yaml beside it",
    "selectors": "envbuild evaluates no selectors: write one file for each platform",
    "includes": "conda-devenv's files include others: write the environment out with `conda devenv --print`",
    "environment": "conda-devenv's `environment` is `variables` here",
    "pip": "`pip:` belongs into the list under `dependencies`, as `- pip:`",
    "requirements": "the list of packages is called `dependencies`",
    "packages": "the list of packages is called `dependencies`",
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class CondaSection:
    """Channels, match specs and variables of a Conda environment.

    Attributes:
        channels: The channels, first before others. One may be there as a name and as a URL, for an alias
            moves only the name; in the key, of equal spellings the first counts.
        nodefaults: Whether Anaconda's default channels are excluded.
        dependencies: The match specs in the order of their canonical spelling; likewise of their channels.
        variables: Names and values of environment variables, sorted.
        platforms: The Conda platforms that the file says it is for, as ``linux-64``; empty for any. It
            takes no part in comparing.
    """

    channels: tuple[Channel, ...] = ()
    nodefaults: bool = False
    dependencies: tuple[MatchSpec, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    platforms: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, node: Mapping, folder: Path) -> tuple[CondaSection, PipSection | None]:
        """Read the mapping of an ``environment.yml``.

        Args:
            node: The document.
            folder: The file's folder; relative channels and requirement files start from it.

        Returns:
            The Conda part, and the part under ``pip:`` where there is one.

        Raises:
            SpecError: Something in it is unknown, malformed or ambiguous.
        """
        if type(node) is not Mapping:
            fail(
                node.mark,
                f"found {_kind(node)}, expected a mapping with `dependencies`",
                "write `dependencies:`",
            )
        mistakes: list[SpecError] = []
        found = _known_keys(node, mistakes)
        channels, nodefaults = _channels(found.get("channels"), folder, mistakes)
        dependencies, pip = _dependencies(found.get("dependencies"), folder, mistakes)
        variables = _variables(found.get("variables"), mistakes)
        platforms = _platforms(found.get("platforms"), mistakes)
        refuse(mistakes)
        return cls(channels, nodefaults, dependencies, variables, platforms), pip

    def under(self, alias: str) -> CondaSection:
        """The same section with all channels where they lead under an alias; none stands twice.

        Raises:
            SpecError: The alias is no URL of channels.
        """
        channels: dict[str, Channel] = {}
        for channel in self.channels:
            found = channel.under(alias)
            channels.setdefault(found.canonical, found)
        dependencies: dict[str, MatchSpec] = {}
        for spec in self.dependencies:
            moved = spec.under(alias)
            dependencies.setdefault(moved.spelling, moved)
        return replace(
            self,
            channels=tuple(channels.values()),
            dependencies=tuple(dependencies[spelling] for spelling in sorted(dependencies)),
        )

    def canonical(self) -> dict[str, Any]:
        """The section as JSON for the key, without credentials."""
        return {
            "channels": list(dict.fromkeys([channel.canonical for channel in self.channels])),
            "dependencies": list(dict.fromkeys([spec.spelling for spec in self.dependencies])),
            "nodefaults": self.nodefaults,
            "variables": dict(self.variables),
        }


def _known_keys(node: Mapping, mistakes: list[SpecError]) -> dict[str, Node]:
    """The values by their keys, without those that are not known."""
    found: dict[str, Node] = {}
    for key, value in node.entries:
        try:
            if key.value not in KNOWN:
                _refuse_key(key)
            if key.value in {"name", "prefix"} and not isinstance(value, Scalar):
                fail(value.mark, f"`{key.value}` is {_kind(value)}, expected a text", "write a text")
            found[key.value] = value
        except SpecError as error:
            mistakes.append(error)
    if "dependencies" not in found and not mistakes:
        fail(
            node.mark, "there is no `dependencies`", "list the packages, or write `dependencies: []` for none"
        )
    return found


def _refuse_key(key: Scalar) -> NoReturn:
    import difflib

    hint = _REFUSED.get(key.value)
    if hint is None and key.value in ENVBUILD_KEYS:
        hint = f"`{key.value}` belongs into an envbuild.yaml, whose `conda:` names this file"
    if hint:
        fail(key.mark, f"the key `{key.value}` is not known in an environment file", hint)
    near = difflib.get_close_matches(key.value.lower(), KNOWN, n=1, cutoff=0.6)
    question = f": did you mean `{near[0]}`?" if near else ""
    fail(
        key.mark,
        f"the key `{key.value}` is not known in an environment file{question}",
        f"rename it to `{near[0]}`" if near else f"known: {', '.join(KNOWN)}",
    )


def _kind(node: Node) -> str:
    if is_null(node):
        return "nothing"
    return {Scalar: "a text", Sequence: "a list", Mapping: "a mapping"}[type(node)]


def _items(node: Node | None, what: str, mistakes: list[SpecError]) -> tuple[Node, ...]:
    """The items of a list; nothing written is an empty list."""
    if node is None or is_null(node):
        return ()
    if isinstance(node, Sequence):
        return node.items
    message, hint = (
        f"`{what}` is {_kind(node)}, expected a list",
        "put each item on a line of its own behind '- '",
    )
    first = node.value.split()[:1] if isinstance(node, Scalar) else []
    if isinstance(node, Scalar) and node.plain and node.value.startswith("-"):
        message = "there is no space behind the '-'"
        name = node.value[1:].split()[:1] or ["NAME"]
        hint = f"write it as `- {name[0]}`, and likewise the lines below it"
    elif first:
        hint = f"write it as `- {first[0]}`, each item on a line of its own"
    elif isinstance(node, Mapping) and node.entries:
        key, value = node.entries[0]
        text = value.value if isinstance(value, Scalar) and not is_null(value) else ""
        hint = f"write each item on a line of its own, as `- {_as_match_spec(key.value, text)}`"
    mistakes.append(_mistake(node, message, hint))
    return ()


def _mistake(node: Node, message: str, hint: str) -> SpecError:
    """A mistake beside which more are looked for."""
    mark = node.mark
    return SpecError(message, source=mark.source, line=mark.line, column=mark.column, hint=hint)


def _as_match_spec(name: str, text: str) -> str:
    """How to write what somebody wrote as ``name: text``."""
    return f"{name}{text}" if not text or text[0] in "<>=!~" else f"{name}={text}"


def _check_one_line(item: Scalar) -> None:
    """Refuse an item without quotes that goes on in the next line: YAML joins what was meant to be two."""
    if item.plain and item.content is not None:
        if item.value.startswith("pip - "):
            fail(item.mark, "there is no ':' behind `pip`, and requirements below it", "write it as `- pip:`")
        fail(
            item.content,
            f"this line belongs to the item above, {item.value[:60]!r}, as it is indented deeper",
            "start it with '- ' in the column of the other items",
        )


def _channels(node: Node | None, folder: Path, mistakes: list[SpecError]) -> tuple[tuple[Channel, ...], bool]:
    channels: dict[Channel, None] = {}
    nodefaults = False
    for item in _items(node, "channels", mistakes):
        try:
            if not isinstance(item, Scalar) or is_null(item):
                fail(
                    item.mark,
                    f"a channel is {_kind(item)}, expected a name or URL",
                    "write it as `- conda-forge`",
                )
            if item.content is not None:
                _check_one_line(item)
            if item.value == NODEFAULTS:
                nodefaults = True
            else:
                channels.setdefault(Channel.parse(item.value, folder, item.mark))
        except SpecError as error:
            mistakes.append(error)
    if nodefaults and any(channel.is_defaults for channel in channels) and isinstance(node, Sequence):
        message = "`channels` holds both `defaults` and `nodefaults`"
        mistakes.append(_mistake(node, message, "delete one of them"))
    return tuple(channels), nodefaults


def _dependencies(
    node: Node | None, folder: Path, mistakes: list[SpecError]
) -> tuple[tuple[MatchSpec, ...], PipSection | None]:
    specs: dict[tuple[str, bool], MatchSpec] = {}
    pip: PipSection | None = None
    seen: Mapping | None = None
    parse = MatchSpec.parse
    items = _items(node, "dependencies", mistakes)
    for position, item in enumerate(items):
        if not position % 64:  # each of them takes microseconds
            check_time("reading the dependencies")
        try:
            if type(item) is Scalar:
                text, mark, plain, content = item
                if content is not None:
                    _check_one_line(item)
                if text in NULLS and (plain or not text):
                    fail(mark, "a dependency is empty", "delete the line, or name a package")
                spec = parse(text, mark, folder)
                fixed = spec.channel is not None and spec.channel.fixed
                specs.setdefault((spec.spelling, fixed), spec)
            elif isinstance(item, Mapping):
                _check_pip(item, items[position + 1 :])
                if seen is not None:
                    fail(
                        item.mark,
                        f"`pip:` stands twice, first in line {seen.mark.line}",
                        "join the two lists",
                    )
                seen = item
                pip = _pip(item, folder, mistakes)
            else:
                fail(item.mark, "a dependency is a list, expected a match spec", "write it as `- numpy=1.26`")
        except SpecError as error:
            mistakes.append(error)
    return tuple([specs[each] for each in sorted(specs)]), pip


def _check_pip(node: Mapping, below: tuple[Node, ...]) -> None:
    """Refuse a mapping among the dependencies that is not ``pip:`` with its requirements.

    Args:
        node: The mapping.
        below: The dependencies that follow.
    """
    for key, value in node.entries:
        if key.value.startswith("sel("):
            fail(key.mark, f"`{key.value}` is a selector, and none is evaluated", _REFUSED["selectors"])
        if key.value != "pip":
            text = value.value if isinstance(value, Scalar) and not is_null(value) else ""
            hint = f"write it without ':', as `- {_as_match_spec(key.value, text)}`"
            fail(key.mark, f"a mapping with the key `{key.value}` stands in `dependencies`", hint)
    if not node.entries:
        fail(node.mark, "a dependency is an empty mapping", "delete it")
    if below and is_null(node.entries[0][1]):
        hint = "indent its requirements deeper than it, or delete the line"
        fail(node.mark, "`pip:` has nothing below it, and what follows are Conda's packages", hint)


def _pip(node: Mapping, folder: Path, mistakes: list[SpecError]) -> PipSection | None:
    scalars: list[Scalar] = []
    for item in _items(node.entries[0][1], "pip", mistakes):
        try:
            if not isinstance(item, Scalar) or is_null(item):
                fail(
                    item.mark,
                    f"a pip requirement is {_kind(item)}, expected a text",
                    "write it as `- requests>=2`",
                )
            _check_one_line(item)
            scalars.append(item)
        except SpecError as error:
            mistakes.append(error)
    if not scalars:
        return None
    from envbuild.spec.pip import PipSection

    return PipSection.parse(tuple(scalars), folder)


def _variables(node: Node | None, mistakes: list[SpecError]) -> tuple[tuple[str, str], ...]:
    if node is None or is_null(node):
        return ()
    variables: dict[str, str] = {}
    if not isinstance(node, Mapping):
        message = f"`variables` is {_kind(node)}, expected a mapping"
        mistakes.append(_mistake(node, message, "write each as `NAME: value`"))
        return ()
    for key, value in node.entries:
        try:
            if not _VARIABLE.fullmatch(key.value):
                fail(key.mark, f"{key.value!r} is not the name of a variable", "use letters, digits and '_'")
            if not isinstance(value, Scalar) or is_null(value):
                hint = 'write "" for an empty value'
                fail(value.mark, f"the variable {key.value} has {_kind(value)}, expected a text", hint)
            variables[key.value] = value.value
        except SpecError as error:
            mistakes.append(error)
    return tuple(sorted(variables.items()))


def _platforms(node: Node | None, mistakes: list[SpecError]) -> tuple[str, ...]:
    """The platforms that the file is for; of those that images can be built for there must be one."""
    items = [node] if isinstance(node, Scalar) and not is_null(node) else _items(node, "platforms", mistakes)
    named = [item for item in items if isinstance(item, Scalar)]
    if items and not any(item.value.startswith("linux-") for item in named):
        of = ", ".join(item.value for item in named) or "no platform"
        message = f"the file is for {of}, and images are built for Linux"
        mistakes.append(_mistake(items[0], message, "add linux-64 to `platforms`, or delete the key"))
    return tuple(item.value for item in named)
