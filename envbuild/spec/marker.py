"""Environment markers of pip requirements, in one spelling.

Source: PEP 508 ("Environment Markers", and the names of old that it keeps). ``packaging`` has checked the
grammar before; the spelling is made from the text itself, so that a new release of it moves no key.
"""

from __future__ import annotations

import re
from typing import TypeAlias

_MARKER_TOKEN = re.compile(r"(\"[^\"]*\"|'[^']*'|\(|\)|[A-Za-z_.]+|[<>=!~]+)")
_ALIASES = {
    "os.name": "os_name",
    "sys.platform": "sys_platform",
    "platform.version": "platform_version",
    "platform.machine": "platform_machine",
    "platform.python_implementation": "platform_python_implementation",
    "python_implementation": "platform_python_implementation",
}

_Node: TypeAlias = "str | tuple[str, frozenset[_Node]]"


def canonical_marker(text: str) -> str:
    """One spelling for a valid marker: double quotes, single spaces, operands of and/or sorted, each once."""
    tokens = _MARKER_TOKEN.findall(text)
    tokens.reverse()
    return _spell(_joined(tokens, "or"))


def _joined(tokens: list[str], word: str) -> _Node:
    """The operands that a word joins, those in parentheses under the same word among them."""
    parts: set[_Node] = set()
    while True:
        part = _joined(tokens, "and") if word == "or" else _operand(tokens)
        parts |= part[1] if isinstance(part, tuple) and part[0] == word else {part}
        if not tokens or tokens[-1] != word:
            break
        tokens.pop()
    return next(iter(parts)) if len(parts) == 1 else (word, frozenset(parts))


def _operand(tokens: list[str]) -> _Node:
    left = tokens.pop()
    if left == "(":
        inner = _joined(tokens, "or")
        tokens.pop()
        return inner
    operator = tokens.pop()
    if operator == "not":
        operator = f"not {tokens.pop()}"
    right = tokens.pop()
    if left == "extra":
        right = _extra(right)
    elif right == "extra":
        left = _extra(left)
    return f"{_marker_value(left)} {operator} {_marker_value(right)}"


def _extra(token: str) -> str:
    return f'"{re.sub(r"[-_.]+", "-", token[1:-1]).lower()}"' if token[0] in "\"'" else token


def _spell(node: _Node) -> str:
    if isinstance(node, str):
        return node
    word, parts = node
    return f" {word} ".join(
        sorted(
            f"({_spell(part)})" if word == "and" and not isinstance(part, str) else _spell(part)
            for part in parts
        )
    )


def _marker_value(token: str) -> str:
    if token[0] not in "\"'":
        return _ALIASES.get(token, token)
    content = token[1:-1]
    return f"'{content}'" if '"' in content else f'"{content}"'
