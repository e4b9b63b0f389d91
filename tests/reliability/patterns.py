"""Every regular expression of the package, and texts that are hard for it, made from its own parse tree.

A pattern is found by itself: as a module's value, or as an argument of ``re``'s functions in its source. For
each of its repetitions there are texts that lead to it, repeat what it can match, and fail behind.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

import envbuild

METHODS: Final = ("match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer")
_POOL: Final = "a0 \t\n.-_/:=,;!<>\"'\\$@#%&()[]{}*+?|~^`AZz9\0\u00e9"
_ENDINGS: Final = ("", "\0", "\n!")
_MANY: Final = 64
"""A repetition of so many or more is one that may grow."""
_CATEGORIES: Final = {
    "CATEGORY_SPACE": " \t\n",
    "CATEGORY_NOT_SPACE": "a-.",
    "CATEGORY_WORD": "a_0",
    "CATEGORY_NOT_WORD": " -.",
    "CATEGORY_DIGIT": "0",
    "CATEGORY_NOT_DIGIT": "a -",
}


@dataclass(frozen=True)
class Found:
    """A regular expression and where it is.

    Attributes:
        name: The module, and the name or the line there.
        pattern: The expression.
        methods: The methods by which the package uses it; all, where that cannot be told.
    """

    name: str
    pattern: re.Pattern[Any]
    methods: tuple[str, ...]


def modules() -> Iterator[ModuleType]:
    """The modules of the package."""
    yield envbuild
    for each in pkgutil.walk_packages(envbuild.__path__, "envbuild."):
        if not each.name.endswith("__main__"):
            yield importlib.import_module(each.name)


def find(modules: list[ModuleType]) -> tuple[list[Found], list[str]]:
    """The regular expressions of modules; and the places of those that are made at run time."""
    found: dict[str, Found] = {}
    made: list[str] = []
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        uses = _uses(tree)
        for name, value in vars(module).items():
            for number, each in enumerate(_patterns(value)):
                place = f"{module.__name__}.{name}" + (f"[{number}]" if number else "")
                found[place] = Found(place, each, tuple(sorted(uses.get(name, ()))) or METHODS[:3])
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and (method := _method_of_re(call)):
                one = _evaluated(call, method, module)
                if one is None:
                    made.append(f"{module.__name__}:{ast.unparse(call.args[0])}")
                elif not any(each.pattern == one for each in found.values()):
                    place = f"{module.__name__}:{ast.unparse(call.args[0])[:60]}"
                    name = ast.unparse(call.args[0])
                    methods = (
                        tuple(sorted(uses.get(name, ()))) or METHODS[:3] if method == "compile" else (method,)
                    )
                    found[place] = Found(place, one, methods)
    once = {(each.pattern, each.methods): each for each in reversed(found.values())}  # some are imported
    return list(once.values())[::-1], made


def _patterns(value: object) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _patterns(each)
    elif isinstance(value, tuple | list | set | frozenset):
        for each in value:
            yield from _patterns(each)


def _uses(tree: ast.AST) -> dict[str, set[str]]:
    """By which methods the names of a module are used, as in ``_NAME.match``, ``_ALL[0].match``."""
    uses: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            holder: ast.AST = node.value
            while isinstance(holder, ast.Subscript):
                holder = holder.value
            if isinstance(holder, ast.Call) and _method_of_re(holder):
                holder = holder.args[0]  # re.compile(_NAME).match
            if isinstance(holder, ast.Name):
                uses.setdefault(holder.id, set()).add(node.attr)
        if (
            isinstance(node, ast.Call)
            and (method := _method_of_re(node))
            and isinstance(node.args[0], ast.Name)
            and method != "compile"
        ):
            uses.setdefault(node.args[0].id, set()).add(method)
    return uses


def _method_of_re(call: ast.Call) -> str | None:
    function = call.func
    if isinstance(function, ast.Name) and function.id == "_compiled":  # re.compile, kept
        return "compile" if call.args else None
    named = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    if not named or not call.args or function.value.id != "re":  # type: ignore[attr-defined]
        return None
    method = str(function.attr)  # type: ignore[attr-defined]
    return method if method in {*METHODS, "compile"} else None


def _evaluated(call: ast.Call, method: str, module: ModuleType) -> re.Pattern[Any] | None:
    place = {"compile": 1, "sub": 4, "subn": 4, "split": 3}.get(method, 2)
    flags = [*call.args[place : place + 1], *(each.value for each in call.keywords if each.arg == "flags")]
    try:
        values = [
            eval(compile(ast.Expression(each), "pattern", "eval"), vars(module))  # noqa: S307 - our own source
            for each in (call.args[0], *flags)
        ]
        return re.compile(*values)
    except (NameError, AttributeError):
        return None


@dataclass
class _Repeat:
    """A repetition in a pattern.

    Attributes:
        before: A text that leads to it.
        bodies: Texts that it may repeat.
    """

    before: str
    bodies: list[str]


@dataclass
class _Walk:
    """Collects the repetitions of a parse tree, and the letters that its parts tell apart."""

    repeats: list[_Repeat] = field(default_factory=list)
    letters: dict[str, None] = field(default_factory=dict)
    groups: dict[Any, str] = field(default_factory=dict)
    ends: dict[str, None] = field(default_factory=dict)

    def texts(self, parsed: Any, before: str) -> list[str]:
        """A few texts that a sequence matches, the plainest first."""
        texts = [""]
        for code, argument in parsed:
            found = self._one(str(code), argument, before + texts[0])
            texts = [texts[0] + each for each in found] + [each + found[0] for each in texts[1:]]
        return list(dict.fromkeys(texts))[:8]

    def _one(self, code: str, argument: Any, before: str) -> list[str]:
        if code in {"LITERAL", "NOT_LITERAL", "ANY", "IN", "RANGE", "CATEGORY"}:
            found = _letters(code, argument)
            if code == "IN" and str(argument[0][0]) == "NEGATE":
                self.ends |= dict.fromkeys(each for each in _POOL if _is_in(each, argument[1:]))
            self.letters |= dict.fromkeys(found)
            return found
        if code in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
            return self._repeat(argument[0], argument[1], argument[2], before)
        if code == "BRANCH":
            return [text for each in argument[1] for text in self.texts(each, before)]
        if code in {"SUBPATTERN", "ATOMIC_GROUP"}:
            found = self.texts(argument[-1] if code == "SUBPATTERN" else argument, before)
            self.groups[argument[0] if code == "SUBPATTERN" else None] = found[0]
            return found
        if code in {"ASSERT", "ASSERT_NOT"}:
            found = self.texts(argument[1], before)
            return found if code == "ASSERT" and argument[0] < 0 else [""]
        return [self.groups.get(argument, "")] if code == "GROUPREF" else [""]

    def _repeat(self, least: int, most: Any, body: Any, before: str) -> list[str]:
        bodies = self.texts(body, before)
        if int(most) >= _MANY:
            self.repeats.append(_Repeat(before, bodies))
        return [each * min(int(least) or 1, 80) for each in bodies] + ([""] if int(least) == 0 else [])


def _letters(code: str, argument: Any) -> list[str]:
    if code == "LITERAL":
        return [chr(argument)]
    if code == "RANGE":
        return [chr(each) for each in dict.fromkeys(argument)]
    if code == "CATEGORY":
        return list(_CATEGORIES.get(str(argument), "a"))
    if code == "IN":
        if str(argument[0][0]) == "NEGATE":
            return [each for each in _POOL if not _is_in(each, argument[1:])][:6] or ["\u2603"]
        return list(dict.fromkeys(letter for one in argument for letter in _letters(str(one[0]), one[1])))[
            :10
        ]
    return [each for each in "a ./" if code == "ANY" or each != chr(argument)]


def _is_in(letter: str, parts: Any) -> bool:
    for code, argument in parts:
        kind = str(code)
        if kind == "LITERAL" and ord(letter) == argument:
            return True
        if kind == "RANGE" and argument[0] <= ord(letter) <= argument[1]:
            return True
        if kind == "CATEGORY" and letter in _in_category(str(argument)):
            return True
    return False


@functools.cache
def _in_category(name: str) -> str:
    pattern = {
        "CATEGORY_SPACE": r"\s", "CATEGORY_NOT_SPACE": r"\S", "CATEGORY_WORD": r"\w",
        "CATEGORY_NOT_WORD": r"\W", "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D",
    }[name]  # fmt: skip
    return "".join(re.findall(pattern, _POOL))


@dataclass(frozen=True)
class Hard:
    """A text that is made to be hard: a start, what is repeated, an end."""

    before: str
    repeated: str
    after: str

    def of(self, size: int) -> str:
        """The text of about a size."""
        return self.before + self.repeated * (size // len(self.repeated) + 1) + self.after


def hard_texts(pattern: re.Pattern[Any], *, pairs: bool) -> list[Hard]:
    """Texts that are hard for a pattern, if any is.

    Args:
        pattern: The pattern.
        pairs: Whether all pairs of its letters are among what is repeated.
    """
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    walk = _Walk()
    whole = walk.texts(re._parser.parse(source, pattern.flags & ~re.UNICODE), "")  # type: ignore[attr-defined]
    letters = list(walk.letters)
    found: dict[Hard, None] = {}
    ends = (*_ENDINGS, *list(walk.ends)[: 8 if pairs else 2])
    for each in walk.repeats:
        bodies = [body for body in each.bodies if body]
        units = dict.fromkeys(
            [*bodies, *letters[:16], *(each.before + body for body in bodies[:3]), *whole[:2]]
        )
        if pairs:
            units |= dict.fromkeys("".join(pair) for pair in itertools.permutations(letters[:12], 2))
        for before, unit, after in itertools.product(dict.fromkeys(("", each.before)), units, ends):
            if unit:
                found[Hard(before, unit, after)] = None
    return list(found)


def using(pattern: re.Pattern[Any], method: str) -> Callable[[str], object]:
    """A call of a pattern's method, on a text that is made bytes where the pattern is of bytes."""
    encoded = isinstance(pattern.pattern, bytes)
    call = getattr(pattern, method)

    def read(text: str) -> object:
        given = text.encode("latin-1", "replace") if encoded else text
        if method in {"sub", "subn"}:
            return call(b"" if encoded else "", given)
        return sum(1 for _ in call(given)) if method == "finditer" else call(given)

    return read
