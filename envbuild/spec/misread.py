"""What a person most likely meant by a line that is no pip requirement, and what is wrong with it."""

from __future__ import annotations

import re
from typing import Final

from envbuild.spec.mistakes import CONFLICT, TEMPLATE, TEMPLATE_HINT

_NAME: Final = r"([A-Za-z0-9][A-Za-z0-9._-]*(?:\[[A-Za-z0-9._, -]*\])?)"
_SINGLE: Final = re.compile(rf"{_NAME}\s*=\s*([0-9][^\s=;]*)(=\S+)?")
_COMMAND: Final = re.compile(r"(?:pip3?|conda|mamba) install\s+(\S.*)")
_WORDS: Final = re.compile(rf"{_NAME}\s+([A-Za-z][A-Za-z0-9._-]*)")
_APART: Final = re.compile(rf"{_NAME}\s*([<>=!~]=?\s*[^\s,;]+)\s+([<>=!~]=?\s*[^\s,;]+)")
_OPEN: Final = re.compile(rf"{_NAME}\s*(?:[<>=!~]=?=?)")
_QUOTED: Final = re.compile(r"([\"'])(.+)\1,?")
_LONGEST: Final = 200


def likely_meant(text: str) -> tuple[str, str] | None:
    """What is wrong with a line and what to write instead; None for what is none of people's usual mistakes.

    Args:
        text: The line, without credentials.
    """
    if len(text) > _LONGEST:
        return None
    if CONFLICT.match(text):
        return "a merge left this conflict marker", "decide for one side and delete the lines with markers"
    if TEMPLATE.search(text):
        return "it belongs to a template, and templates are not evaluated", TEMPLATE_HINT
    return _of_another_tool(text) or _of_grammar(text)


def _of_another_tool(text: str) -> tuple[str, str] | None:
    if quoted := _QUOTED.fullmatch(text):
        return "quotes stand around it", f"write it as {quoted[2]}"
    if command := _COMMAND.fullmatch(text):
        return "it is a command", f"write only what it installs: {command[1]}"
    if "::" in text:
        return "channels are Conda's", "write it under `dependencies` of an environment.yml"
    return None


def _of_grammar(text: str) -> tuple[str, str] | None:
    if single := _SINGLE.fullmatch(text):
        more = " and builds" if single[3] else ""
        return f"a single '='{more} is Conda's", f"write it as {single[1]}=={single[2]}"
    if apart := _APART.fullmatch(text):
        return "there is no comma between the versions", f"write it as {apart[1]}{apart[2]},{apart[3]}"
    if opened := _OPEN.fullmatch(text):
        return "a version is missing at its end", f"write {opened[1]}, or a version behind it"
    if words := _WORDS.fullmatch(text):
        name = f"{words[1]}-{words[2]}"
        return "it has two names", f"a requirement names one package: write {name}, or two lines"
    return None
