"""The values of a definition's keys: base, steps, packages, variables, platforms, moments."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from envbuild.errors import SpecError
from envbuild.platform import Platform
from envbuild.reference import (
    ENGINE_SCHEME,
    LAYOUT_SCHEME,
    expand_home,
    parse_engine_reference,
    parse_reference,
)
from envbuild.spec.conda import CondaSection
from envbuild.spec.document import Mapping, Mark, Sequence, fail, refuse, understand
from envbuild.spec.files import require
from envbuild.spec.reading import kind, mapping, nearest, read, refuse_unknown, strings, text, texts
from envbuild.spec.virtual import NAMES, VirtualPackages, spelled

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date
    from pathlib import Path

    from envbuild.reference import ImageReference, TaggedReference
    from envbuild.spec.document import Node, Scalar
    from envbuild.spec.pip import IndexStrategy, PipSection
    from envbuild.spec.steps import Steps

SCRATCH = "scratch"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TRANSPORT = re.compile(r"(?:docker-archive|oci-archive|containers-storage|podman):|(?:docker|dir|file):/")
_SECRET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class ChannelPriority(StrEnum):
    """How the order of the channels binds the solver; strict is the default."""

    STRICT = "strict"
    FLEXIBLE = "flexible"
    DISABLED = "disabled"


def base(node: Node, folder: Path) -> ImageReference | TaggedReference | None:
    """The base image; None for ``scratch``. A layout's relative path starts in ``folder``.

    Raises:
        SpecError: The node is not a reference.
    """
    hint = "write IMAGE:TAG, IMAGE@sha256:..., oci:FOLDER or scratch"
    value = text(node, "the base", hint)
    try:
        return reference(value.value.strip(), folder, value.mark)
    except SpecError as error:
        if "/team/envs" in (error.hint or ""):  # how to write a workspace
            error.hint = f"{hint}; names are in lower case"
        raise


def reference(written: str, folder: Path, mark: Mark | None) -> ImageReference | TaggedReference | None:
    """Like :func:`base`, from text; ``mark`` is its place, or None where there is no file."""
    if written == SCRATCH:
        return None
    if found := _TRANSPORT.match(written):
        raise _placed(
            SpecError(
                f"{found[0]!r} in front of the base {written[:80]!r} is no place that a key can name",
                hint="push the image to a registry, or save it as a layout and write oci:FOLDER:TAG",
            ),
            mark,
        )
    try:
        if written.startswith(ENGINE_SCHEME):
            return parse_engine_reference(written)
        path = written.removeprefix(LAYOUT_SCHEME)
        if path != written and path[:1] not in {"", ":", "@"}:
            written = f"{LAYOUT_SCHEME}{folder / expand_home(path)}"
        parsed = parse_reference(written)
    except SpecError as error:
        raise _placed(error, mark) from None
    if parsed.repository.is_layout:
        require(parsed.repository.folder, mark)
    return parsed


def steps(node: Node, what: str, folder: Path) -> Steps:
    """Docker steps: text, a list of instructions, or ``{file, context, args}``.

    Raises:
        SpecError: The node is none of these, or an instruction is refused.
    """
    from envbuild.spec.steps import Steps

    if isinstance(node, Mapping):
        return _steps_mapping(node, what, folder)
    if isinstance(node, Sequence):
        return _steps_list(node, what, folder)
    value = text(node, what)
    if len(value.value.split()) == 1 and re.search(r"[./]", value.value):
        hint = f"for the steps of a file write `{what}: {{file: {value.value.strip()}}}`"
        fail(value.mark, f"{what} is {value.value.strip()!r}, expected instructions", hint)
    return Steps.parse(value.value, _content_mark(value), args={}, context=folder)


def steps_file(path: Path, mark: Mark | None) -> Steps:
    """The Docker steps of a file, whose folder is their context.

    Raises:
        SpecError: The file cannot be read, or an instruction is refused.
    """
    from envbuild.spec.context import ignore_file_of
    from envbuild.spec.steps import Steps

    return Steps.parse(
        _decode(read(path, mark, pipe=mark is None), path),
        Mark(str(path), 1, 1),
        args={},
        context=path.parent,
        ignore_file=ignore_file_of(path),
    )


def _steps_mapping(node: Mapping, what: str, folder: Path) -> Steps:
    from envbuild.spec.context import ignore_file_of
    from envbuild.spec.steps import Steps

    refuse_unknown(node, {"file", "context", "args"}, what)
    file, context, args = node.get("file"), node.get("context"), node.get("args")
    if file is None:
        fail(
            node.mark,
            f"{what} has no `file`, expected the file that holds the instructions",
            "add `file: NAME`",
        )
    name = text(file, f"{what}.file")
    path, place = folder / name.value, (folder / name.value).parent
    if context is not None:
        place = folder / text(context, f"{what}.context").value
        require(place, context.mark)
    return Steps.parse(
        _decode(read(path, name.mark), path),
        Mark(str(path), 1, 1),
        args={key.value: value for key, value in strings(args, f"{what}.args")} if args is not None else {},
        context=place,
        ignore_file=ignore_file_of(path),
    )


def _steps_list(node: Sequence, what: str, folder: Path) -> Steps:
    from envbuild.spec.steps import Steps

    items = [(item.value, _content_mark(item)) for item in texts(node, what)]
    return Steps.parse_items(items, node.mark, args={}, context=folder)


def _content_mark(value: Scalar) -> Mark:
    """Where a text starts; one in quotes does behind its quote."""
    if value.content is not None and not value.plain:
        return value.content
    return value.mark if value.plain else value.mark._replace(column=value.mark.column + 1)


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"byte {error.start} is not UTF-8, expected text in UTF-8", source=str(path)
        ) from error


def packages(
    conda_node: Node | None, pip_node: Node | None, folder: Path
) -> tuple[CondaSection | None, PipSection | None]:
    """The Conda and the pip section of an ``envbuild.yaml``.

    Raises:
        SpecError: One of them cannot be understood, or requirements stand in both.
    """
    mistakes: list[SpecError] = []
    section, inner, outer = None, None, None
    try:
        section, inner = conda(conda_node, folder) if conda_node is not None else (None, None)
    except SpecError as error:
        mistakes.append(error)
    try:
        if pip_node is not None and inner is not None:
            fail(
                pip_node.mark,
                "`pip` stands here and in the Conda definition, expected one of them",
                "move all requirements into one of the two",
            )
        outer = pip(pip_node, folder) if pip_node is not None else inner
    except SpecError as error:
        mistakes.append(error)
    refuse(mistakes)
    return section, outer


def conda(node: Node, folder: Path) -> tuple[CondaSection, PipSection | None]:
    """A Conda definition, inline or the name of its file.

    Raises:
        SpecError: The file cannot be read, or the definition cannot be understood.
    """
    if isinstance(node, Mapping):
        return CondaSection.parse(node, folder)
    name = text(node, "conda", "write a path, or `conda: {channels: [...], dependencies: [...]}`")
    path = folder / name.value
    return understand(
        read(path, name.mark),
        str(path),
        lambda node: CondaSection.parse(mapping(node, "a Conda definition"), path.parent),
    )


def pip(node: Node, folder: Path) -> PipSection:
    """Requirements: a list, or the name of a requirements file.

    Raises:
        SpecError: The file cannot be read, or a requirement cannot be understood.
    """
    from envbuild.spec.pip import PipSection

    if isinstance(node, Sequence):
        return PipSection.parse(texts(node, "pip"), folder)
    if isinstance(node, Mapping):
        fail(
            node.mark, f"pip is a {kind(node)}, expected a path or a list", "write it as pip: [NAME==VERSION]"
        )
    name = text(node, "pip", "write a path, or a list of requirements")
    path = folder / name.value
    return PipSection.from_requirements(read(path, name.mark), str(path), path.parent)


def variables(node: Node) -> dict[str, str]:
    """Environment variables.

    Raises:
        SpecError: The node is not a mapping from names to strings.
    """
    return checked_variables(strings(node, "variables"))


def checked_variables(pairs: Iterable[tuple[Scalar, str]]) -> dict[str, str]:
    """Environment variables whose names a shell accepts.

    Raises:
        SpecError: A name is something else.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if not _VARIABLE.fullmatch(name.value):
            fail(
                name.mark,
                f"{name.value!r} is not a variable's name",
                "use letters, digits and '_', no digit first",
            )
        found[name.value] = value
    return found


def channel_priority(node: Node) -> ChannelPriority:
    """``strict``, ``flexible`` or ``disabled``.

    Raises:
        SpecError: The node is something else.
    """
    value = text(node, "channel_priority")
    known = {str(each) for each in ChannelPriority}
    if value.value not in known:
        fail(value.mark, f"channel_priority is {value.value!r}", nearest(value.value, known))
    return ChannelPriority(value.value)


def index_strategy(node: Node) -> IndexStrategy:
    """``pip`` or ``first-index``.

    Raises:
        SpecError: The node is something else.
    """
    from envbuild.spec.pip import IndexStrategy

    value = text(node, "index_strategy")
    known = {str(each) for each in IndexStrategy}
    if value.value not in known:
        fail(value.mark, f"index_strategy is {value.value!r}", nearest(value.value, known))
    return IndexStrategy(value.value)


def platform_nodes(one: Node | None, several: Node | None) -> tuple[Platform, ...]:
    """The platforms of ``platform`` or ``platforms``; empty where neither is there.

    Raises:
        SpecError: Both are there, or a platform is not known.
    """
    if one is not None and several is not None:
        fail(several.mark, "`platform` and `platforms` stand side by side, expected one", "keep `platforms`")
    if several is not None:
        named = texts(several, "platforms", "write one platform as `platform: linux/amd64`")
        if not named:
            fail(several.mark, "platforms is empty, expected at least one", "write platforms: [linux/amd64]")
        return _unique(_platform(item.value, item.mark) for item in named)
    return (_platform(text(one, "platform").value, one.mark),) if one is not None else ()


def platforms(given: Iterable[str | Platform]) -> tuple[Platform, ...]:
    """Platforms as a caller gives them, sorted, each once.

    Raises:
        SpecError: There is none, or one is not known.
    """
    found = _unique(each if isinstance(each, Platform) else _platform(each, None) for each in given)
    if not found:
        raise SpecError("no platform was given, expected at least one", hint="give --platform linux/amd64")
    return found


def _unique(each: Iterable[Platform]) -> tuple[Platform, ...]:
    return tuple(sorted(set(each), key=str))


def _platform(written: str, mark: Mark | None) -> Platform:
    try:
        return Platform.parse(written)
    except SpecError as error:
        raise _placed(error, mark) from None


def moment_node(node: Node) -> datetime:
    """A moment in UTC.

    Raises:
        SpecError: The node is not a date or a time.
    """
    value = text(node, "as_of", "write a date as 2026-11-01")
    return moment(value.value, value.mark)


def moment(given: str | date, mark: Mark | None) -> datetime:
    """A moment in UTC, in whole seconds; a date means its start, a time without a zone is UTC.

    Raises:
        SpecError: The text is not an ISO 8601 date or time.
    """
    try:
        when = datetime.fromisoformat(given.strip()) if isinstance(given, str) else given
        if not isinstance(when, datetime):
            when = datetime(when.year, when.month, when.day, tzinfo=UTC)
        aware = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return aware.astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        error = SpecError(f"{given!r} is not a date, expected one as 2026-11-01", hint="write YYYY-MM-DD")
        raise _placed(error, mark) from None


def secrets(node: Node) -> tuple[str, ...]:
    """The names of build secrets, sorted, each once.

    Raises:
        SpecError: The node is not a list of names.
    """
    names = texts(node, "secrets", "write it as secrets: [NAME]")
    for name in names:
        if not _SECRET.fullmatch(name.value):
            fail(name.mark, f"{name.value!r} is not a secret's name", "use letters, digits, '_', '.' and '-'")
    return tuple(sorted({name.value for name in names}))


def virtual_packages(node: Node) -> VirtualPackages:
    """What is said of the machines that will run the image.

    Raises:
        SpecError: A name is not known, or a version is not of its form.
    """
    found: dict[str, str | None] = {}
    for name, value in mapping(node, "virtual_packages", "write it as {cuda: 12.4}").entries:
        if name.value not in NAMES:
            what = f"{name.value!r} is not a virtual package that can be given"
            fail(name.mark, what, nearest(name.value, NAMES))
        written = text(value, name.value)
        try:
            found[name.value] = spelled(name.value, written.value)
        except SpecError as error:
            raise _placed(error, written.mark) from None
    return VirtualPackages(**found)


def _placed(error: SpecError, mark: Mark | None) -> SpecError:
    """The error of a parser that knows no files, with its place."""
    if mark is None or error.source is not None:
        return error
    return SpecError(error.message, source=mark.source, line=mark.line, column=mark.column, hint=error.hint)
