"""Small readers that every form of a definition shares: files, text, mappings, known keys."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, NoReturn

from envbuild.errors import SpecError
from envbuild.spec.document import Mapping, Scalar, Sequence, fail, is_null, refuse
from envbuild.spec.files import read_file, require

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from envbuild.spec.document import Mark, Node

MAX_BYTES = 1 << 20


def read(path: Path, mark: Mark | None = None, *, pipe: bool = False) -> bytes:
    """Read a file once, whole, and no more than a definition may hold.

    Args:
        path: The file.
        mark: Where a definition names the file; None where a user does.
        pipe: Whether it may be a pipe, as of a shell's ``<(command)``, where nothing is confined.

    Raises:
        SpecError: The file cannot be read, or is larger than 1 MiB.
        DeadlineExceeded: The time ran out.
    """
    require(path, mark)
    try:
        if pipe and path.is_fifo():
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        else:
            content = read_file(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        _refuse_file(path, mark, error)
    if len(content) > MAX_BYTES:
        _fail_at(path, mark, f"{path} is larger than {MAX_BYTES} bytes", "a definition is a small text file")
    return content


def _refuse_file(path: Path, mark: Mark | None, error: OSError | ValueError) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        _fail_at(path, mark, f"there is no file {path}", _nearest_file(path))
    if isinstance(error, IsADirectoryError):
        _fail_at(path, mark, f"{path} is a folder, expected a file", "name the file in it")
    _fail_at(path, mark, f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", None)


def _fail_at(path: Path, mark: Mark | None, message: str, hint: str | None) -> NoReturn:
    if mark is None:
        raise SpecError(message, source=str(path), hint=hint)
    fail(mark, message, hint)


def _nearest_file(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir()][:1000]
    except OSError:
        return f"there is no folder {path.parent} either"
    from difflib import get_close_matches

    near = get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else None


def is_folder(path: Path) -> bool:
    """Whether the path is a folder; what cannot be asked is none."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def text(node: Node, what: str, hint: str | None = None) -> Scalar:
    """The node as text that is not empty.

    Raises:
        SpecError: The node is a mapping, a list, null or empty.
    """
    if not isinstance(node, Scalar):
        fail(node.mark, f"{what} is {_article(kind(node))}, expected text", hint)
    if is_null(node) or not node.value.strip():
        fail(node.mark, f"{what} is empty, expected text", hint or "give it a value, or leave the key out")
    return node


def mapping(node: Node, what: str, hint: str | None = None) -> Mapping:
    """The node as a mapping.

    Raises:
        SpecError: The node is something else.
    """
    if not isinstance(node, Mapping):
        fail(node.mark, f"{what} is {_article(kind(node))}, expected a mapping", hint)
    return node


def texts(node: Node, what: str, hint: str | None = None) -> tuple[Scalar, ...]:
    """The node as a list of texts.

    Raises:
        SpecError: The node is not a list, or an item of it is not text.
    """
    if not isinstance(node, Sequence):
        fail(node.mark, f"{what} is {_article(kind(node))}, expected a list", hint)
    return tuple(text(item, f"an item of {what}") for item in node.items)


def strings(node: Node, what: str) -> tuple[tuple[Scalar, str], ...]:
    """The node as a mapping from names to strings; the strings may be empty, not null.

    Raises:
        SpecError: The node is not a mapping, or a value in it is not a string.
    """
    pairs = []
    for name, value in mapping(node, what, f"write it as {what}: {{NAME: value}}").entries:
        if not isinstance(value, Scalar):
            fail(value.mark, f"{name.value!r} in {what} is {_article(kind(value))}, expected a string")
        if is_null(value):
            fail(value.mark, f"{name.value!r} in {what} has no value", 'write "" for an empty string')
        pairs.append((name, value.value))
    return tuple(pairs)


def refuse_unknown(node: Mapping, known: Collection[str], what: str) -> None:
    """Refuse the keys that are not known, naming for each the nearest that is.

    Raises:
        SpecError: There is such a key.
    """
    mistakes = []
    for name, _ in node.entries:
        if name.value not in known:
            try:
                fail(name.mark, f"{name.value!r} is not a key of {what}", nearest(name.value, known))
            except SpecError as error:
                mistakes.append(error)
    refuse(mistakes)


def nearest(name: str, known: Collection[str]) -> str:
    """A hint that names the nearest known name, or all of them."""
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), sorted(known), n=1)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}"


def kind(node: Node) -> str:
    """What a node is, in a user's words."""
    if isinstance(node, Scalar):
        return "empty value" if is_null(node) else "text"
    return "mapping" if isinstance(node, Mapping) else "list"


def _article(word: str) -> str:
    return {"text": "text", "empty value": "empty"}.get(word, f"a {word}")
