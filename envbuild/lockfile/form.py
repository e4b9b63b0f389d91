"""A canonical form that somebody else wrote: each member is of its type before anything is made of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

from envbuild.digest import Digest
from envbuild.errors import SpecError
from envbuild.key import OPTIONAL, SCRATCH, CanonicalForm
from envbuild.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envbuild.lockfile.place import Node

    _Check: TypeAlias = Callable[[Node], object]

_MEMBERS: Final = {
    "as_of", "base", "channel_priority", "conda", "pip", "platform", "prefix_layout", "steps", "steps_after",
    "variables",
}  # fmt: skip
_NONE: Final[Mapping[str, _Check]] = {}
_VARIABLE: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_VALUE: Final = re.compile("[^\\0]*")


def read_form(node: Node) -> CanonicalForm:
    """Read a form.

    Raises:
        SpecError: A member is missing, is not known, or is of another type; with its place.
    """
    _members(node, dict.fromkeys(_MEMBERS, _any), dict.fromkeys(OPTIONAL, _any))
    for name, check in _CHECKS.items():
        if (member := node.find(name)) is not None:
            check(member)
    return CanonicalForm(node.value)


def _members(node: Node, wanted: Mapping[str, _Check], more: Mapping[str, _Check] = _NONE) -> None:
    """An object that has all members that are wanted, and no others than these and ``more``."""
    known = {**wanted, **more}
    for member in node.mapping(set(known)):
        known[str(member.path[-1])](member)
    for name in wanted:
        node.get(name)


def _any(_node: Node) -> None:
    """What is looked at elsewhere."""


def _text(node: Node) -> None:
    node.text(None)


def _flag(node: Node) -> None:
    if type(node.value) is not bool:
        node.fail(f"{node.name} is {node.value!r:.60}, expected true or false")


def _true(node: Node) -> None:
    if node.value is not True:
        node.fail(f"{node.name} is {node.value!r:.60}, expected true, or nothing")


def _texts(node: Node) -> None:
    node.texts(None)


def _pairs(node: Node) -> None:
    for member in node.mapping():
        member.text(None)


def _variables(node: Node) -> None:
    for member in node.mapping():
        if not _VARIABLE.fullmatch(str(member.path[-1])):
            member.fail(f"{member.path[-1]!r:.60} is not a variable's name")
        member.text(_VALUE)


def _each(check: _Check) -> _Check:
    def items(node: Node) -> None:
        for item in node.items():
            check(item)

    return items


def _or_null(check: _Check) -> _Check:
    return lambda node: None if node.value is None else check(node)


def _known(parse: Callable[[str], object]) -> _Check:
    """A text that a parser takes."""

    def read(node: Node) -> None:
        try:
            parse(node.text(None))
        except SpecError as error:
            node.fail(error.message)

    return read


def _base(text: str) -> object:
    return text if text == SCRATCH else Digest.parse(text)


def _conda(node: Node) -> None:
    _members(node, {"channels": _texts, "dependencies": _texts, "nodefaults": _flag})


def _file(node: Node) -> None:
    """A file, a link or a folder of a context."""
    _members(
        node,
        {"path": _text, "type": _text},
        {"executable": _flag, "sha256": _known(Digest), "size": lambda size: size.number(), "target": _text},
    )


def _instruction(node: Node) -> None:
    heredoc = {"content": _text, "expand": _flag, "name": _text, "stripTabs": _flag}
    _members(
        node,
        {
            "arguments": _texts,
            "exec": _flag,
            "flags": _texts,
            "heredocs": _each(lambda each: _members(each, heredoc)),
            "keyword": _text,
        },
    )


def _steps(node: Node) -> None:
    _members(node, {"args": _pairs, "context": _each(_file), "instructions": _each(_instruction)})


def _local(node: Node) -> None:
    _members(node, {"files": _each(_file), "name": _text})


def _requirement(node: Node) -> None:
    _members(
        node,
        {
            "editable": _flag,
            "extras": _texts,
            "hashes": _texts,
            "local": _or_null(_local),
            "marker": _text,
            "name": _text,
            "specifiers": _texts,
            "url": _or_null(_text),
        },
    )


def _pip(node: Node) -> None:
    wanted = ("findLinks", "indexes", "noBinary", "onlyBinary", "switches", "trustedHosts")
    _members(
        node,
        {
            **dict.fromkeys(wanted, _texts),
            "constraints": _each(_requirement),
            "findLinksLocal": _each(_local),
            "ownIndex": _flag,
            "requirements": _each(_requirement),
        },
        {"allReleases": _texts, "indexStrategy": _text, "onlyFinal": _texts},
    )


_CHECKS: Final[dict[str, _Check]] = {
    "as_of": _or_null(_text),
    "base": _known(_base),
    "channel_priority": _text,
    "conda": _or_null(_conda),
    "pip": _or_null(_pip),
    "platform": _known(Platform.parse),
    "prefix_layout": lambda node: node.number(),
    "pyc": _true,
    "step_network": _text,
    "steps": _or_null(_steps),
    "steps_after": _or_null(_steps),
    "variables": _variables,
    "virtual_packages": _pairs,
}
