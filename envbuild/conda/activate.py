"""The variables that an environment's activation sets, found without running anything.

Activation scripts are programs, and no program of a package runs on the host. Most of them do no more than
set variables; such scripts are understood here, and every other is named and left out. What is understood:
assignments, ``export``, ``unset``, ``:``, ``true``, ``false``, ``test`` and ``[`` on text, ``&&``, ``||``,
``if``, and ``$NAME`` or ``${NAME:-word}`` in quotes or outside.

Sources: POSIX.1-2017, "Shell Command Language"; Conda's ``etc/conda/env_vars.d`` and ``conda-meta/state``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envbuild.budget import Budget, OverBudgetError
from envbuild.conda.shell import NotUnderstood, Text, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from envbuild.conda.shell import Parameter, Token, Word

STATE: Final = "conda-meta/state"
_SCRIPT: Final = re.compile(r"etc/conda/activate\.d/[^/]+\.sh")
_VARIABLES: Final = re.compile(r"etc/conda/env_vars\.d/[^/]+\.json")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_THE_MOMENT: Final = frozenset({
    "HOME", "USER", "LOGNAME", "PWD", "OLDPWD", "SHELL", "TERM", "HOSTNAME", "UID", "EUID", "PPID", "RANDOM",
    "SECONDS", "LINENO", "PS1", "IFS", "TMPDIR", "OSTYPE", "HOSTTYPE", "MACHTYPE", "SHLVL", "DISPLAY",
})  # fmt: skip
"""Variables that are known only where a container runs."""
_MAX_CHARACTERS: Final = 2 << 20
"""How much text the scripts of an environment may hold and make, and variables carry from one to the next."""


def is_activation(path: str) -> bool:
    """Whether a file of a prefix has a part in its activation."""
    return path == STATE or bool(_SCRIPT.fullmatch(path) or _VARIABLES.fullmatch(path))


def is_script(path: str) -> bool:
    """Whether a file is a script that activation runs."""
    return bool(_SCRIPT.fullmatch(path))


@dataclass(frozen=True)
class Activation:
    """What activation comes to.

    Attributes:
        variables: The variables that it sets.
        left_out: For each file that is not understood the reason.
    """

    variables: dict[str, str]
    left_out: dict[str, str]


def activate(files: Mapping[str, str | None], environment: Mapping[str, str]) -> Activation:
    """What the files that take part in activation come to.

    First the variables of ``env_vars.d`` and of ``conda-meta/state``, then the scripts, each by name. A
    script that is not understood changes nothing.

    Args:
        files: Their text by path; None where it is too long or no text.
        environment: The variables before: those of the base, ``CONDA_PREFIX`` and ``PATH``.
    """
    shell = _Shell(dict(environment), set(environment), frozenset(environment), Budget(_MAX_CHARACTERS))
    left_out: dict[str, str] = {}
    for path in sorted(files, key=_rank):
        text = files[path]
        try:
            shell = _after(path, text, shell)
        except (NotUnderstood, OverBudgetError, ValueError, RecursionError) as error:
            left_out[path] = str(error) or "it is nested too deep"
    changed = {name: shell.values[name] for name in sorted(shell.exported) if name in shell.values}
    variables = {name: value for name, value in changed.items() if environment.get(name) != value}
    return Activation(variables, left_out)


def _rank(path: str) -> tuple[int, str]:
    return (2 if _SCRIPT.fullmatch(path) else 1 if path == STATE else 0), path


def _variables_in(path: str, text: str) -> dict[str, str]:
    document = json.loads(text)
    if path == STATE and isinstance(document, dict):
        document = document.get("env_vars", {})
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise NotUnderstood("it is not a JSON object of texts")
    return {_checked(name): value for name, value in document.items()}


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NotUnderstood(f"{name!r} is not a variable's name")
    return name


def _after(path: str, text: str | None, shell: _Shell) -> _Shell:
    """The shell after a file."""
    if text is None:
        raise NotUnderstood("it is too long, or no text")
    shell.budget.spend(len(text) + len(shell.values))
    after = _Shell(dict(shell.values), set(shell.exported), shell.given, shell.budget)
    if _SCRIPT.fullmatch(path):
        _Script(list(tokens(text)), after).run()
    else:
        after.set_all(_variables_in(path, text))
    return after


@dataclass
class _Shell:
    """The variables of a shell."""

    values: dict[str, str]
    exported: set[str]
    given: frozenset[str]
    budget: Budget

    def set_all(self, variables: Mapping[str, str]) -> None:
        self.values |= variables
        self.exported |= variables.keys()

    def unset(self, name: str) -> None:
        if name in self.given:
            raise NotUnderstood(f"it unsets {name}, which an image can only set")
        self.values.pop(name, None)
        self.exported.discard(name)

    def expand(self, word: Word) -> str:
        pieces: list[str] = []
        for part in word:
            piece = part.text if isinstance(part, Text) else self._parameter(part)
            self.budget.spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)

    def _parameter(self, part: Parameter) -> str:
        if part.name in _OF_THE_MOMENT and part.name not in self.values:
            raise NotUnderstood(f"${part.name} is known only where the container runs")
        value = self.values.get(part.name)
        kind = part.operator.removeprefix(":")
        missing = value is None or (part.operator.startswith(":") and not value)
        if kind == "-" and missing:
            return self.expand(part.word)
        if kind == "+":
            return "" if missing else self.expand(part.word)
        return value or ""


class _Script:
    """A script on its way: parsed and followed in one go; what is not taken is parsed alone."""

    def __init__(self, script: Sequence[Token], shell: _Shell) -> None:
        self._tokens = script
        self._at = 0
        self._shell = shell

    def run(self) -> None:
        self._list(frozenset(), taken=True)
        if self._at < len(self._tokens):
            raise NotUnderstood(f"{self._tokens[self._at]} stands where a command should")

    def _list(self, ends: frozenset[str], *, taken: bool) -> bool:
        """Commands up to a keyword; the last one's success."""
        success = True
        while True:
            while self._peek() in {";", "\n"}:
                self._at += 1
            keyword = self._keyword()
            if self._at >= len(self._tokens) or keyword in ends:
                return success
            success = self._and_or(taken=taken)
            if self._at < len(self._tokens) and self._peek() not in {";", "\n"}:
                raise NotUnderstood(f"{self._tokens[self._at]} is more than setting variables")

    def _and_or(self, *, taken: bool) -> bool:
        success = self._command(taken=taken)
        while (operator := self._peek()) in {"&&", "||"}:
            self._at += 1
            while self._peek() == "\n":
                self._at += 1
            follows = taken and success == (operator == "&&")
            result = self._command(taken=follows)
            success = result if follows else success
        return success

    def _command(self, *, taken: bool) -> bool:
        if self._keyword() == "if":
            self._at += 1
            return self._if(taken=taken)
        words = list(self._words())
        if not words:
            raise NotUnderstood("a command is missing")
        _check(words)  # also where it is not run: a quiet mistake could hide in it
        return not taken or self._simple(words)

    def _if(self, *, taken: bool) -> bool:
        success, done = True, False
        while True:
            holds = self._list(frozenset({"then"}), taken=taken and not done)
            self._expect("then")
            runs = taken and not done and holds
            result = self._list(frozenset({"elif", "else", "fi"}), taken=runs)
            success = result if runs else success
            done = done or runs
            ended = self._expect("elif", "else", "fi")
            if ended == "else":
                result = self._list(frozenset({"fi"}), taken=taken and not done)
                success = result if taken and not done else success
                ended = self._expect("fi")
            if ended == "fi":
                return success

    def _expect(self, *keywords: str) -> str:
        keyword = self._keyword()
        if keyword not in keywords:
            raise NotUnderstood(f"an 'if' lacks its {keywords[-1]!r}")
        self._at += 1
        return keyword or ""

    def _simple(self, words: list[Word]) -> bool:
        if _assignment(words[0]) is not None:
            self._assign(words, export=False)
            return True
        name = _plain(words[0])
        if name == "export":
            self._assign(words[1:], export=True)
        elif name == "unset":
            for word in words[1:]:
                if _plain(word) != "-v":
                    self._shell.unset(_checked(self._shell.expand(word)))
        elif name in {"[", "[[", "test"}:
            return self._test(name, words[1:])
        return name != "false"

    def _assign(self, words: list[Word], *, export: bool) -> None:
        for word in words:
            found = _assignment(word)
            if found is None and not export:
                raise NotUnderstood(f"the command {_plain(word) or '?'} is more than setting variables")
            name, value = found or (_checked(_plain(word) or ""), None)
            if value is not None:
                self._shell.values[name] = self._shell.expand(value)
            if export:
                self._shell.exported.add(name)

    def _test(self, name: str, words: list[Word]) -> bool:
        if name != "test":
            closing = words.pop() if words else ()
            if _plain(closing) != name.replace("[", "]"):
                raise NotUnderstood(f"a {name!r} is not closed")
        operators = [_plain(word) for word in words]
        negated = bool(operators) and operators[0] == "!"
        if name != "[[" and any(_may_split(part, operators[negated]) for word in words for part in word):
            raise NotUnderstood("a test of a variable outside of quotes")
        return negated != self._holds(operators[negated:], words[negated:], loose=name == "[[")

    def _holds(self, operators: list[str | None], words: list[Word], *, loose: bool) -> bool:
        values = [self._shell.expand(word) for word in words]
        match operators:
            case ["-z" | "-n" as operator, _]:
                return bool(values[1]) == (operator == "-n")
            case [_, "=" | "==" | "!=" as operator, right]:
                if loose and (right is None or set(right) & set("*?[")):
                    raise NotUnderstood("a comparison with a pattern")
                return (values[0] == values[2]) == (operator != "!=")
            case [_]:
                return bool(values[0])
        raise NotUnderstood(f"the test {' '.join(each or '…' for each in operators)!r}")

    def _words(self) -> Iterator[Word]:
        while self._at < len(self._tokens) and not isinstance(self._tokens[self._at], str):
            yield self._tokens[self._at]  # type: ignore[misc]
            self._at += 1

    def _peek(self) -> str | None:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        return token if isinstance(token, str) else None

    def _keyword(self) -> str | None:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        return None if token is None or isinstance(token, str) else _plain(token)


def _check(words: list[Word]) -> None:
    name = _plain(words[0])
    if _assignment(words[0]) is None and name not in _COMMANDS:
        raise NotUnderstood(f"the command {name or 'in a variable'} is more than setting variables")


_COMMANDS: Final = frozenset({"export", "unset", "[", "[[", "test", ":", "true", "false"})


def _plain(word: Word) -> str | None:
    """A word without quotes or variables."""
    if all(isinstance(part, Text) and not part.quoted for part in word):
        return "".join(part.text for part in word if isinstance(part, Text))
    return None


def _assignment(word: Word) -> tuple[str, Word] | None:
    first = word[0] if word else None
    if not isinstance(first, Text) or first.quoted:
        return None
    name, equals, rest = first.text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        return None
    if rest.startswith("~") or ":~" in rest:
        raise NotUnderstood("'~' is known only where the container runs")
    return name, (Text(rest, quoted=False), *word[1:])


def _may_split(part: Text | Parameter, operator: str | None) -> bool:
    """Whether a part of a test may become no word or several; ``-z ${NAME+x}`` is the usual exception."""
    if isinstance(part, Text) or part.quoted:
        return False
    plain = "".join(each.text for each in part.word if isinstance(each, Text))
    usual = operator == "-z" and part.operator in {"+", ":+"} and _NAME.fullmatch(plain)
    return not usual
