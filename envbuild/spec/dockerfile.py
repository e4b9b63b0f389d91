"""The grammar of Dockerfile instructions: text to frozen values and back.

Source: the parser and the reference page of BuildKit's Dockerfile front end (version 1). Where engines of
different age read one text in different ways, the text is refused, so that what was keyed is what is built.
"""

from __future__ import annotations

import itertools
import json
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn

from envbuild.spec.document import Mark, fail
from envbuild.spec.instruction import COMMANDS, LISTS, Heredoc, Instruction
from envbuild.spec.quoting import quote_value, split_words, unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_KEYWORDS = (
    COMMANDS
    | LISTS
    | {"ARG", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "SHELL", "STOPSIGNAL", "USER", "WORKDIR"}
)
_WITH_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})
_NO_FROM = ("FROM cannot stand in steps", "name the base image in the definition's 'base'")
_REFUSED = {
    "ONBUILD": (
        "ONBUILD acts only in images that are built from this one, so it has no place in steps",
        "write the instruction itself, or leave it out",
    ),
}
_FLAGS: dict[str, frozenset[str]] = {
    "RUN": frozenset({"mount", "network", "security"}),
    "COPY": frozenset({"chmod", "chown", "exclude", "from", "link", "parents"}),
    "ADD": frozenset({"checksum", "chmod", "chown", "exclude", "keep-git-dir", "link", "unpack"}),
    "HEALTHCHECK": frozenset({"interval", "retries", "start-interval", "start-period", "timeout"}),
}
_SWITCHES = frozenset({"keep-git-dir", "link", "parents", "unpack"})
_MOUNT_NAMES = {
    "destination": "target",
    "dst": "target",
    "src": "source",
    "ro": "readonly",
    "rw": "readwrite",
}
_MOUNT_SWITCHES = frozenset({"readonly", "readwrite", "required"})
_REPEATED = frozenset({"exclude", "mount"})

MAX_INSTRUCTION = (1 << 17) - 1
"""Linux passes no longer command to a shell."""
MAX_INSTRUCTIONS = 2000

_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_ODD_SPACE = re.compile(r"[^\S \t\n]")
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
_OPEN_HEREDOC = re.compile(r".*<<-?")
_HEREDOC = re.compile(r"[0-9]*<<(-?)([^<]+)")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_FLAG_WORD = re.compile(r"(?:\\.|\"[^\"\\]*\"|'[^'\\]*'|[^\s\"'\\])++(?=\s|\Z)")
_PORT = re.compile(r"([0-9]{1,5}(?:-[0-9]{1,5})?)(?:/(tcp|udp|sctp))?", re.IGNORECASE)


def parse_instructions(
    text: str, mark: Mark, *, why_no_from: tuple[str, str] = _NO_FROM
) -> tuple[Instruction, ...]:
    """Parse Dockerfile instructions without FROM.

    Args:
        text: The instructions.
        mark: Where the first character of the text stands; all lines start in that column.
        why_no_from: What to say of a FROM, and what to do instead.

    Raises:
        SpecError: The text is not by the grammar, or holds what steps may not hold.
    """
    return tuple(_Parser(_lines(text, mark), mark, why_no_from).instructions())


def read_preamble(text: str, mark: Mark) -> tuple[list[tuple[str, str, Mark]], int]:
    """The instructions of a Dockerfile up to its first FROM, that one included, as keyword and rest.

    Args:
        text: The Dockerfile.
        mark: Where its first character stands.

    Returns:
        The instructions, and how many lines of the text they take.

    Raises:
        SpecError: A line is malformed, or holds a parser directive.
    """
    parser = _Parser(_lines(text, mark), mark, _NO_FROM)
    found: list[tuple[str, str, Mark]] = []
    for line, place in parser.logical_lines():
        keyword, _, rest = line.replace("\t", " ").partition(" ")
        found.append((keyword.upper(), rest.strip(), place))
        if keyword.upper() == "FROM":
            break
    return found, parser.position


def _lines(text: str, mark: Mark) -> list[str]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = text.split("\n")
    for number, line in enumerate(lines if _UNSAFE.search(text) else ()):
        if found := _UNSAFE.search(line):
            place = Mark(mark.source, mark.line + number, mark.column + found.start())
            fail(place, f"control or invisible character U+{ord(found[0]):04X} in steps", "remove it")
    return lines


class _Parser:
    """Walks over physical lines; ``_next`` is the next line that nobody has read."""

    def __init__(self, lines: list[str], mark: Mark, why_no_from: tuple[str, str]) -> None:
        self._lines = lines
        self._mark = mark
        self._refused = {**_REFUSED, "FROM": why_no_from}
        self._next = 0

    @property
    def position(self) -> int:
        """How many lines have been read."""
        return self._next

    def instructions(self) -> Iterator[Instruction]:
        for count, (text, mark) in enumerate(self.logical_lines()):
            if count == MAX_INSTRUCTIONS:
                fail(mark, f"there are more than {MAX_INSTRUCTIONS} instructions", "join some of them")
            yield self._instruction(text, mark)

    def logical_lines(self) -> Iterator[tuple[str, Mark]]:
        """Instructions as text; reading one leaves its heredocs, so the next comes when they are read."""
        while self._next < len(self._lines):
            first = self._lines[self._next]
            column = self._mark.column + len(first) - len(first.lstrip(" \t"))
            mark = Mark(self._mark.source, self._mark.line + self._next, column)
            if text := self._logical_line():
                yield text, mark

    def _here(self) -> Mark:
        return Mark(self._mark.source, self._mark.line + self._next, self._mark.column)

    def _logical_line(self) -> str:
        """Join a line with its continuations; comments and blank lines between them are dropped."""
        pieces: list[str] = []
        size, first, continued = 0, True, True
        while continued and self._next < len(self._lines):
            line = self._lines[self._next]
            stripped = line.lstrip(" \t")
            if stripped.startswith("#"):
                self._comment(stripped)
            elif stripped:
                kept, continued = self._without_escape(stripped if first else line)
                pieces.append(kept)
                size += len(line) + 1
                first = False
            if size > MAX_INSTRUCTION:
                fail(
                    self._here(),
                    f"an instruction has more than {MAX_INSTRUCTION} characters",
                    "put it into a file",
                )
            self._next += 1
            if first:
                break
        joined = "".join(pieces)
        if odd := _ODD_SPACE.search(joined):
            self._next -= 1
            fail(self._here(), f"white space U+{ord(odd[0]):04X} in an instruction", "use an ordinary space")
        joined = joined.strip(" \t")
        if joined.endswith("\\"):
            self._next -= 1
            fail(self._here(), "an instruction ends in a backslash", "take it away, or put it into quotes")
        return joined

    def _without_escape(self, line: str) -> tuple[str, bool]:
        """The line without the backslash that continues it, and whether there is one."""
        end = line.rstrip(" \t")
        if not end.endswith("\\"):
            return line, False
        if end.endswith("\\\\"):
            fail(
                self._here(),
                "a line ends in two backslashes, which engines read differently",
                "end it in one backslash to continue it, or put the text into quotes",
            )
        return end[:-1], True

    def _comment(self, text: str) -> None:
        if found := _DIRECTIVE.match(text):
            fail(
                self._here(),
                f"the parser directive '# {found[1].lower()}=' is not allowed, the front end is given",
                "remove the line",
            )

    def _instruction(self, text: str, mark: Mark) -> Instruction:
        keyword, _, rest = re.sub(r"[ \t]+", " ", text, count=1).partition(" ")
        keyword = keyword.upper()
        if keyword in self._refused:
            fail(mark, *self._refused[keyword])
        if keyword not in _KEYWORDS:
            _unknown(mark, "instruction", keyword, _KEYWORDS)
        flags, body = _take_flags(rest, keyword, mark)
        if not body:
            fail(mark, f"{keyword} has no arguments", f"write something after {keyword}, or remove the line")
        arguments, exec_form, is_json = _arguments(keyword, body, mark)
        heredocs: tuple[Heredoc, ...] = ()
        if keyword in _WITH_HEREDOCS and not is_json and "<<" in body:
            heredocs = tuple(self._heredocs(body, mark))
        return Instruction(keyword, flags, arguments, exec_form, heredocs, mark)

    def _heredocs(self, body: str, mark: Mark) -> Iterator[Heredoc]:
        words = split_words(body)
        if words is None:
            if any(_HEREDOC.fullmatch(word) for word in body.split()):
                fail(mark, "a heredoc beside an unbalanced quote", "close the quote")
            return
        for word in words:
            if _OPEN_HEREDOC.fullmatch(word) and (word != "<<<" or any(map(_HEREDOC.fullmatch, words))):
                fail(
                    mark,
                    f"{word[:40]!r} ends in <<, which engines read differently",
                    "write the heredoc's name right behind it, or put the text into quotes",
                )
            if found := _HEREDOC.fullmatch(word):
                name = unquote(found[2])
                if not name.strip() or "$" in name or "\\" in name:
                    fail(mark, f"{word!r} is no heredoc name", "name it with letters, as <<EOF")
                yield self._heredoc(name, name == found[2], found[1] == "-", mark)

    def _heredoc(self, name: str, expand: bool, strip_tabs: bool, mark: Mark) -> Heredoc:
        content: list[str] = []
        for line in self._lines[self._next :]:
            self._next += 1
            if (line.lstrip("\t") if strip_tabs else line) == name:
                break
            content.append(line + "\n")
        else:
            fail(mark, f"the heredoc {name!r} has no end", f"add a line that holds only {name}")
        return Heredoc(name, "".join(content), expand, strip_tabs)


def _unknown(mark: Mark, what: str, name: str, known: Iterable[str]) -> NoReturn:
    near = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    fail(mark, f"unknown {what} {name[:40]!r}", hint)


def _take_flags(rest: str, keyword: str, mark: Mark) -> tuple[tuple[str, ...], str]:
    """Split off the leading ``--flag`` words, with their quotes and escapes taken away."""
    flags: list[tuple[str, str]] = []
    rest = rest.strip(" \t")
    while rest.startswith("--"):
        if not (found := _FLAG_WORD.match(rest)):
            fail(
                mark,
                f"a flag of {keyword} has an open quote, or a backslash inside quotes",
                "quote it simply",
            )
        rest = rest[found.end() :].strip(" \t")
        word = unquote(found[0])
        if word == "--":
            break
        flags.append(_flag(word, keyword, mark))
    kept = sorted((flag for flag in flags if flag[1]), key=lambda flag: flag[0])
    _no_repeats(kept, keyword, mark)
    return tuple(f"{name}={value}" for name, value in kept), rest


def _flag(word: str, keyword: str, mark: Mark) -> tuple[str, str]:
    """One flag as name and value; a value that says the default is empty."""
    name, equals, value = word[2:].partition("=")
    known = _FLAGS.get(keyword, frozenset())
    if name not in known:
        _unknown(mark, f"flag of {keyword}", f"--{name}", {f"--{flag}" for flag in known})
    if not value.isascii() or "<" in value:
        fail(mark, f"--{name} of {keyword} holds '<' or characters outside ASCII", "use plain ASCII")
    if name in _SWITCHES:
        if value not in {"", "true", "false"} or (equals and not value):
            fail(mark, f"--{name} is {value!r}", f"write --{name} or --{name}=false")
        # unpack has no default of its own: archives are unpacked by their place, so both answers count
        return name, "" if value == "false" and name != "unpack" else value or "true"
    if not value:
        fail(mark, f"--{name} of {keyword} has no value", f"write --{name}=VALUE")
    if name == "mount":
        return name, _mount(value, mark)
    return name, "" if (name, value) in {("network", "default"), ("security", "sandbox")} else value


def _mount(value: str, mark: Mark) -> str:
    """The fields of a mount, sorted, under their first names."""
    fields: dict[str, str] = {}
    for part in value.split(","):
        name, equals, content = part.partition("=")
        name = _MOUNT_NAMES.get(name.lower(), name.lower())
        if not name or '"' in part or (not equals and name not in _MOUNT_SWITCHES):
            fail(
                mark, f"--mount field {part[:40]!r}", "write NAME=VALUE, separated by commas, without quotes"
            )
        if name in fields:
            fail(mark, f"--mount has {name} twice", "keep one")
        fields[name] = content if equals else "true"
    fields.setdefault("type", "bind")
    return ",".join(f"{name}={content}" for name, content in sorted(fields.items()))


def _no_repeats(flags: list[tuple[str, str]], keyword: str, mark: Mark) -> None:
    for (name, _), (following, _) in itertools.pairwise(flags):
        if name == following and name not in _REPEATED:
            fail(mark, f"--{name} of {keyword} is given twice", "keep one")


def _arguments(keyword: str, body: str, mark: Mark) -> tuple[tuple[str, ...], bool, bool]:
    """The canonical arguments, whether a command is in exec form, and whether the body was JSON."""
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
    if re.fullmatch(r"[A-Za-z0-9_${}:/-]*\$[A-Za-z0-9_${}:/-]*", word):
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
