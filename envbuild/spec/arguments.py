"""The arguments of Dockerfile instructions, in one spelling."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

from envbuild.spec.document import fail
from envbuild.spec.instruction import LISTS
from envbuild.spec.quoting import quote_value, split_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.spec.document import Mark

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_PORT = re.compile(r"([0-9]{1,5}(?:-[0-9]{1,5})?)(?:/(tcp|udp|sctp))?", re.IGNORECASE)


def read_arguments(keyword: str, body: str, mark: Mark) -> tuple[tuple[str, ...], bool, bool]:
    """The canonical arguments, whether a command is in exec form, and whether the body was JSON.

    Args:
        keyword: The instruction's keyword, in upper case.
        body: What stands behind keyword and flags; not empty.
        mark: Where the instruction stands.

    Raises:
        SpecError: The arguments are not by the instruction's grammar.
    """
    if keyword in _WORDS:
        return _WORDS[keyword](keyword, body, mark), False, False
    if keyword == "HEALTHCHECK":
        return _health(body, mark)
    array = _json_array(keyword, body, mark)
    if keyword in LISTS:
        words = array if array is not None else tuple(body.split())
        if keyword != "VOLUME" and len(words) < 2:
            fail(mark, f"{keyword} needs a source and a destination", f"write {keyword} SOURCE DESTINATION")
        return tuple(sorted(set(words))) if keyword == "VOLUME" else words, False, array is not None
    if keyword == "SHELL" and not array:
        fail(mark, "SHELL takes a JSON array", 'write SHELL ["/bin/bash", "-c"]')
    if keyword == "RUN" and array == ():
        fail(mark, "RUN has an empty command", "write the command")
    return (body,) if array is None else array, array is not None and keyword != "SHELL", array is not None


def _text(_keyword: str, body: str, _mark: Mark) -> tuple[str, ...]:
    return (body,)


def _ports(_keyword: str, body: str, mark: Mark) -> tuple[str, ...]:
    return tuple(sorted({_port(word, mark) for word in body.split()}))


def _json_array(keyword: str, body: str, mark: Mark) -> tuple[str, ...] | None:
    """The strings of a JSON array; None where the body is something else, which is then shell form."""
    if not body.startswith("["):
        return None
    try:
        items = json.loads(body, parse_constant=_no_constant)
    except ValueError:
        return None
    except RecursionError:
        fail(mark, f"the JSON array of {keyword} is too deep", "write a flat array of strings")
    if not all(isinstance(item, str) for item in items):
        fail(mark, f"the JSON array of {keyword} holds something other than strings", "quote each item")
    if any("\0" in item or re.search("[\ud800-\udfff]", item) for item in items):
        fail(mark, f"the JSON array of {keyword} holds a NUL or half a surrogate pair", "remove it")
    return tuple(items)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _health(body: str, mark: Mark) -> tuple[tuple[str, ...], bool, bool]:
    kind, _, rest = re.sub(r"\s+", " ", body, count=1).partition(" ")
    if kind.upper() == "NONE" and not rest:
        return ("NONE",), False, False
    if kind.upper() != "CMD" or not rest.strip():
        fail(mark, f"HEALTHCHECK {kind[:40]!r}", "write HEALTHCHECK CMD COMMAND, or HEALTHCHECK NONE")
    array = _json_array("HEALTHCHECK", rest.strip(), mark)
    return ("CMD", *(array if array is not None else (rest.strip(),))), array is not None, array is not None


def _port(word: str, mark: Mark) -> str:
    if "$" in word and re.fullmatch(r"[A-Za-z0-9_${}:/-]*", word):
        return word
    if not (found := _PORT.fullmatch(word)):
        fail(mark, f"EXPOSE {word[:40]!r} is no port", "write a number, or 53/udp")
    return f"{found[1]}/{(found[2] or 'tcp').lower()}"


def _pairs(keyword: str, body: str, mark: Mark) -> tuple[str, ...]:
    """``NAME="value"`` words from either form of ENV and LABEL, or from ARG, which may have no value."""
    words = split_words(body)
    if words is None:
        fail(mark, f"{keyword} has a quote that is not closed", "close the quote")
    if keyword != "ARG" and "=" not in words[0]:
        name, *value = re.split(r"[ \t]+", body, maxsplit=1)
        if not value:
            fail(mark, f"{keyword} {name[:40]!r} has no value", f"write {keyword} {name[:40]}=VALUE")
        return (f"{_name(name, keyword, mark)}={quote_value(value[0], mark, whole=True)}",)
    return tuple(_pair(keyword, word, mark) for word in words)


def _pair(keyword: str, word: str, mark: Mark) -> str:
    name, equals, raw = word.partition("=")
    if not equals and keyword != "ARG":
        fail(mark, f"{keyword} word {word[:40]!r} has no '='", "write NAME=VALUE; quote values with spaces")
    return _name(name, keyword, mark) + (f"={quote_value(raw, mark)}" if equals else "")


def _name(raw: str, keyword: str, mark: Mark) -> str:
    name = raw[1:-1] if len(raw) > 2 and raw[0] == raw[-1] and raw[0] in "\"'" else raw
    if not _NAME.fullmatch(name):
        fail(mark, f"{keyword} name {raw[:40]!r}", "use letters, digits and '_', '.', '-' or '/'")
    return name


_WORDS: dict[str, Callable[[str, str, Mark], tuple[str, ...]]] = {
    "ARG": _pairs,
    "ENV": _pairs,
    "EXPOSE": _ports,
    "LABEL": _pairs,
    "MAINTAINER": _text,
    "STOPSIGNAL": _text,
    "USER": _text,
    "WORKDIR": _text,
}
