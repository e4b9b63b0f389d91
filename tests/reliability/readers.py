"""Every reader of text in the package, and what is hard for it.

A new reader is one line in ``READERS``: a name, a call on a text, and the modules whose grammar it reads.
What it is tried on is made from the tokens of these modules: the short texts in their source, and the letters
that their patterns tell apart. ``lines`` are whole lines of its language, for what a token alone does not
reach; ``made`` gives input of about a size, bytes among them, for readers of something other than text.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from envbuild import foreign
from envbuild.build import engine_info, heredoc, trace
from envbuild.conda import activate, paths, relocate
from envbuild.config import Config
from envbuild.errors import SpecError
from envbuild.foreign import condalock, explicit
from envbuild.lockfile import place
from envbuild.lockfile.document import LockFile
from envbuild.oci import exchange
from envbuild.oci.auth import Challenge
from envbuild.pip import wheel
from envbuild.reference import ImageReference
from envbuild.spec import (
    arguments,
    collector,
    constraint,
    environment,
    marker,
    misread,
    mistakes,
    quoting,
    requirement,
    stage,
    steps,
    version,
)  # fmt: skip
from envbuild.spec import (
    patterns as globs,
)
from envbuild.spec.channel import Channel
from envbuild.spec.match import MatchSpec
from envbuild.spec.node import Mark
from reliability.patterns import find, hard_texts

_MARK: Final = Mark("x", 1, 1)
_SHORT: Final = 12


@dataclass(frozen=True)
class Reader:
    """Something that reads what others wrote.

    Attributes:
        name: What it is.
        read: Reads one input; an exception is an answer.
        modules: The modules whose tokens make its input.
        frames: What stands in front of the input and behind it.
        lines: Pieces of its language that are repeated as they are.
        made: Inputs by their size, where repeating pieces does not make them.
        size: The size at which it is tried first, in letters.
    """

    name: str
    read: Callable[[Any], object]
    modules: tuple[str, ...] = ()
    frames: tuple[tuple[str, str], ...] = (("", ""),)
    lines: tuple[str, ...] = ()
    made: tuple[Callable[[int], Any], ...] = ()
    size: int = 4000

    def inputs(self, pairs: int) -> Iterator[tuple[str, Callable[[int], Any]]]:
        """Inputs by their size, each with its name.

        Args:
            pairs: How many pairs of tokens are repeated, chosen at random but always the same.
        """
        tokens = _tokens(self.modules)
        both = ["".join(each) for each in itertools.permutations(tokens, 2)]
        chosen = Random(self.name).sample(both, min(pairs, len(both)))
        for piece, (before, after) in itertools.product([*self.lines, *tokens, *chosen], self.frames):
            yield f"{before!r} {piece!r} {after!r}", functools.partial(_repeated, before, piece, after)
        for number, make in enumerate(self.made):
            yield f"made {number}", make


def _repeated(before: str, piece: str, after: str, size: int) -> str:
    return before + piece * (size // len(piece) + 1) + after


@functools.cache
def _tokens(modules: tuple[str, ...]) -> list[str]:
    """The tokens of modules: short texts in their source, and the letters of their patterns."""
    found: dict[str, None] = dict.fromkeys([" ", "\n", "a", "0"] if modules else ())
    for name in modules:
        module = importlib.import_module(f"envbuild.{name}")
        for each in find([module])[0]:
            found |= dict.fromkeys(hard.repeated for hard in hard_texts(each.pattern, pairs=False)[:60])
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found[node.value] = None
    return [each for each in found if each and len(each) <= _SHORT and not each.isidentifier()][:60] + [
        each for each in found if len(each) <= _SHORT and each.isidentifier()
    ][:12]


def _definition(text: str) -> object:
    return environment.load("environment.yml", content=text.encode())


def _requirements(text: str) -> object:
    return environment.load("requirements.txt", content=text.encode(), form="requirements")


def _dockerfile(text: str) -> object:
    return steps.Steps.parse(text, _MARK, args={}, context=None)


def _chained(keyword: str, size: int) -> str:
    names = range(size // 25)
    return f"{keyword} A0=x\n" + "".join(f"{keyword} A{n + 1}=$A{n}$A{n}\n" for n in names)


def _globbed(text: str) -> object:
    pattern, path = text.replace("\n", ""), "ab/" + "a" * 200
    return globs.IgnoreRules.parse(pattern).ignores(path), globs.glob(pattern)(path)


def _path_globbed(path: str) -> object:
    rules = globs.IgnoreRules.parse("*a*a*a*b\n**a**b\n**/a/*/b*")
    return rules.ignores(path), globs.glob("*a*b*a*c")(path)


def _mistaken(text: str) -> object:
    import yaml

    try:
        return list(yaml.parse(text, yaml.CLoader))
    except yaml.MarkedYAMLError as error:
        return mistakes.likely_mistake(text.split("\n"), error)


def _activated(text: str) -> object:
    return activate.activate({"etc/conda/activate.d/a.sh": text}, {"A": "a"})


class _Answer:
    def __init__(self, link: str) -> None:
        self.headers = {"Link": link}


def _linked(text: str) -> object:
    return exchange._NEXT.search(text)


class _Wheel:
    what = "a wheel"

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self, _name: str) -> str:
        return self._text


def _commands(text: str) -> object:
    return list(wheel._entry_points(_Wheel(text)))  # type: ignore[arg-type]


def _info(name: str) -> Callable[[str], object]:
    def read(text: str) -> object:
        info = {"info/files": b"a\n", name: text.encode()}
        return paths.read_paths(info, "x"), paths.read_entry_points(info, "x")

    return read


def _match(text: str) -> object:
    return MatchSpec.parse(text)


def _lock(text: str) -> object:
    return LockFile.parse(text.encode(), "envbuild.lock")


def _kind(text: str) -> object:
    return foreign._format(text.encode(), foreign._top_keys(text.encode()))


def _told(text: str) -> object:
    raise environment._told(SpecError(text, source="x", hint=text), b"", "x")


def _deep(opening: str) -> Callable[[int], str]:
    return lambda size: opening * size


_SPEC = (
    "spec.environment",
    "spec.document",
    "spec.plainyaml",
    "spec.mistakes",
    "spec.fields",
    "spec.virtual",
)
_STEPS = (
    "spec.dockerfile",
    "spec.quoting",
    "spec.arguments",
    "spec.flags",
    "spec.steps",
    "spec.stage",
    "spec.instruction",
)
_PIP = (
    "spec.collector",
    "spec.requirement",
    "spec.marker",
    "spec.misread",
    "spec.shortrequirement",
    "spec.local",
)
_CONDA = (
    "spec.matchgrammar",
    "spec.constraint",
    "spec.version",
    "spec.shortmatch",
    "spec.tokens",
    "spec.conda",
)

READERS: tuple[Reader, ...] = (
    Reader(
        "a definition",
        _definition,
        _SPEC,
        (("", ""), ("", "a: b\n"), ("dependencies:\n", "")),
        lines=("- |\n  a\n", "- a\n  b\n", "  - a\n   b\n", "a: b\n", "- [\n", "  b\n"),
    ),
    Reader("a dependency", _definition, _CONDA, (("dependencies:\n- a", "\n"),)),
    Reader(
        "a document with mistakes",
        _mistaken,
        _SPEC,
        (("", "\n a: [b\n- c"), ("a: '", "\n"), ("a: x\n", "  - c: [\n")),
        lines=("    b\n", "- |\n", "- a: [\n"),
    ),
    Reader("a requirements file", _requirements, _PIP, (("", ""), ("a", " !"), ("-r ", ""))),
    Reader(
        "a requirement",
        lambda text: requirement.read_requirement(text, _MARK, Path("/nowhere"), ()),
        _PIP,
        (("a", ""), ("a @ https://b/", "!"), ("./a", "!")),
    ),
    Reader("a line's logic", lambda text: list(collector.logical_lines(text, _MARK)), _PIP, lines=("a\\\n",)),
    Reader("what was meant", misread.likely_meant, _PIP),
    Reader("a marker", marker.canonical_marker, ("spec.marker",), lines=("a == 'b' and ", "a in b or ")),
    Reader("a match spec", _match, _CONDA, (("a", ""), ("a[", "]"), ("", "::a"))),
    Reader("a constraint", constraint.canonical_constraint, _CONDA, lines=("(1|2),", "1|", ">=1,")),
    Reader("a version", version.Version.parse, ("spec.version",)),
    Reader("a channel", Channel.parse, ("spec.channel", "spec.tokens"), (("", ""), ("https://a/", "!"))),
    Reader(
        "steps",
        _dockerfile,
        _STEPS,
        (("", ""), ("RUN ", "\n"), ("ENV A=", "\n"), ("COPY ", " a\n")),
        lines=("<<< ", "--link ", "<<A ", "RUN <<A\nA\n", "a\\\n", "#\n"),
        size=1000,
    ),
    Reader(
        "variables of steps",
        _dockerfile,
        frames=(("ARG A=x\nENV A=x\n", ""),),
        lines=("ARG A=$A$A\n", "ENV A=$A$A\n", "ENV A=${A:-$A}$A$A\n", "RUN --mount=source=$A,target=$A\n"),
        made=(functools.partial(_chained, "ARG"), functools.partial(_chained, "ENV")),
    ),
    Reader("words", quoting.split_words, ("spec.quoting",)),
    Reader("words without quotes", quoting.unquote, ("spec.quoting",)),
    Reader("a word's value", lambda text: quoting.expand(text, {"A": "a"}), ("spec.quoting",), size=1000),
    Reader("a value of ENV", lambda text: quoting.quote_value(text, _MARK), ("spec.quoting",), size=1000),
    Reader("a port", lambda text: arguments.read_arguments("EXPOSE", text, _MARK), ("spec.arguments",)),
    Reader(
        "a Dockerfile",
        lambda text: stage.split_stage(text.encode(), "Dockerfile"),
        _STEPS,
        (("", "FROM a\n"), ("FROM ", ""), ("ARG A=x\nFROM $A\n", "")),
        lines=("ARG A=$A$A\n", "ARG A=${A:-$A}\n"),
        made=(lambda size: _chained("ARG", size) + "FROM a\n",),
    ),
    Reader("ignore rules and globs", _globbed, ("spec.patterns",), lines=("*a", "**/", "**", "a*", "*[a]")),
    Reader(
        "paths beside globs", _path_globbed, lines=("a", "a*", "ab"), frames=(("", ""), ("", "b"), ("b", "/"))
    ),
    Reader("a Dockerfile's heredocs", heredoc.lower_heredocs, ("build.heredoc",), (("RUN cat ", " !"),)),
    Reader(
        "whether steps need BuildKit", engine_info._NEEDS_BUILDKIT.search, ("build.engine_info",), size=2000
    ),
    Reader("a line of an engine", trace.decode_rawjson, ("build.trace",), made=(_deep("["), _deep('{"a":'))),
    Reader(
        "an activation script",
        _activated,
        ("conda.shell", "conda.activate"),
        (("", ""), ("A=", "")),
        lines=("A=$A$A\n", "A=${A:-$A}$A$A\n", "export A=$A$A\n", "if [ a ]; then\n", "[ $A = $A ]\n"),
    ),
    Reader("a shebang", relocate._shebang, ("conda.relocate",), (("#!/", ""), ("#! /a", "!"))),
    Reader("info/paths.json", _info("info/paths.json"), ("conda.paths",), made=(_deep("["),)),
    Reader("info/has_prefix", _info("info/has_prefix"), ("conda.paths",), lines=("'", '"', "/a text b\n")),
    Reader("info/link.json", _info("info/link.json"), ("conda.paths",), made=(_deep("["),)),
    Reader(
        "commands of a wheel",
        _commands,
        ("pip.wheel",),
        (("[console_scripts]\n", "\n"), ("[console_scripts]\na", "b\n")),
    ),
    Reader("WWW-Authenticate", Challenge.parse, ("oci.auth",), (("", ""), ("Bearer ", "!"))),
    Reader("Link", _linked, ("oci.exchange",), (("", ""), ("<a>; ", ""))),
    Reader("a reference", ImageReference.parse, ("reference",), (("", ""), ("a/", "!"))),
    Reader("envbuild.lock", _lock, ("lockfile.document", "lockfile.place"), (("", ""), ("{", "}"))),
    Reader(
        "a place in JSON",
        lambda text: place.offset_of(text, ["a", 0]),
        ("lockfile.place",),
        made=(lambda size: json.dumps({"a": ["b"] * size}), lambda size: '{"a":' + " " * size + "[1]}"),
    ),
    Reader(
        "the kind of a file",
        _kind,
        ("foreign",),
        (("", ""), ("\n", "@EXPLICIT\n"), ("{", "}")),
        ("# a\n", "a:\n"),
    ),
    Reader("conda-lock.yml", lambda text: condalock.read(text.encode(), "x", None), ("foreign.condalock",)),
    Reader("an @EXPLICIT list", lambda text: explicit.read(text.encode(), "x", None), ("foreign.explicit",)),
    Reader("an error as it is told", _told, ("spec.environment", "spec.channel")),
    Reader(
        "a setting",
        lambda text: Config.load(Path("/nowhere"), {"ENVBUILD_TIMEOUT": text, "HOME": "/nowhere"}),
        ("config",),
    ),
)
