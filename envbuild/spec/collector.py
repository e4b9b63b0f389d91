"""What the lines of requirements files say, and the files that they include, gathered in order."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

from envbuild.errors import SpecError
from envbuild.spec.document import Mark, fail, refuse
from envbuild.spec.files import check_time, read_file, require_url
from envbuild.spec.local import ReadSources, local_path, read_local
from envbuild.spec.requirement import (
    canonical_name,
    check_hash,
    fetched_url,
    is_remote,
    public_url,
    read_requirement,
    redacted,
    strip_credentials,
)
from envbuild.url import FILE, Url, UrlError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from envbuild.spec.local import LocalSource
    from envbuild.spec.requirement import PipRequirement

MAX_BYTES = 1 << 20
MAX_LINE = 1 << 16
MAX_DEPTH = 32
MAX_FILES = 1000
MAX_TOTAL = 8 << 20
"""Bytes of all included files; one that is included twice counts twice."""
MAX_MISTAKES = 20
_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_ONE_SLASH = re.compile(r"file:/(?!/)", re.IGNORECASE)
_COMMENT = re.compile(r"(?<!\S)#")
_OPTION = re.compile(r"(--[A-Za-z0-9-]+|-[A-Za-z])(?:[=\s]\s*|(?=\S)|\Z)(.*)", re.DOTALL)
_HASH_OPTION = re.compile(r"\s--hash[=\s]\s*(\S+)")
_STRAY = re.compile(r"\s(--?[A-Za-z][A-Za-z0-9-]*)")

_SHORT = {
    "-C": "--config-settings",
    "-c": "--constraint",
    "-e": "--editable",
    "-f": "--find-links",
    "-i": "--index-url",
    "-r": "--requirement",
}
_LONG = {"--config-setting": "--config-settings", "--pypi-url": "--index-url"}
_SWITCHES = frozenset({"--no-index", "--no-require-hashes", "--pre", "--prefer-binary", "--require-hashes"})
_CONTRARY = {
    "--no-binary": "--only-binary",
    "--only-binary": "--no-binary",
    "--all-releases": "--only-final",
    "--only-final": "--all-releases",
}
"""Options that take names from each other."""

_FEATURES = frozenset(
    {
        "build-constraint",
        "fast-deps",
        "inprocess-build-deps",
        "no-binary-enable-wheel-cache",
        "truststore",
        "venv-isolation",
    }
)
"""What pip can be told to use; nothing of it changes what is installed, so it is no part of the key."""

_UNSUPPORTED = {
    "--config-settings": (
        "is not supported: projects are built with the settings that they hold",
        "write the settings into the project, or build a wheel with them and name that",
    ),
    **dict.fromkeys(
        ("--build-option", "--global-option", "--install-option"),
        ("is not supported: pip reads it no more", "take it out, or build a wheel with it and name that"),
    ),
    **dict.fromkeys(
        ("--always-unzip", "--no-use-wheel", "--process-dependency-links", "--use-wheel"),
        ("is not supported: pip reads it no more", "take it out"),
    ),
}
_BARE_VCS = re.compile(r"(git|hg|svn|bzr)(?=://)", re.IGNORECASE)


def logical_lines(text: str, mark: Mark) -> Iterator[tuple[str, Mark]]:
    """Lines with continuations joined and comments gone, as pip joins them.

    Args:
        text: The lines.
        mark: Where the first one stands.

    Raises:
        SpecError: A line holds an invisible character, or is too long.
    """
    joined = ""
    start = mark
    for number, line in enumerate(text.split("\n")):
        here = Mark(mark.source, mark.line + number, mark.column)
        if found := _UNSAFE.search(line):
            fail(here, f"control or invisible character U+{ord(found[0]):04X} in a requirement", "remove it")
        is_comment = line.lstrip().startswith("#")
        start = start if joined else here
        if line.endswith("\\") and not is_comment:
            joined += line.rstrip("\\") or " "
            if len(joined) > MAX_LINE:
                fail(start, f"a requirement has more than {MAX_LINE} characters", "end it")
            continue
        if logical := _without_comment(joined + (" " if is_comment else "") + line):
            yield logical, start
        joined = ""
    if joined.strip():
        yield _without_comment(joined), start


def _without_comment(line: str) -> str:
    found = _COMMENT.search(line) if "#" in line else None
    return line[: found.start()].strip() if found else line.strip()


class Collector:
    """Gathers what lines and included files say, in order."""

    def __init__(self) -> None:
        self._lists: dict[bool, list[PipRequirement]] = {False: [], True: []}
        self._index: str | None = None
        self._extra: list[str] = []
        self._links: list[str] = []
        self._local_links: list[LocalSource] = []
        self._names: dict[str, set[str]] = {option: set() for option in _CONTRARY}
        self._hosts: set[str] = set()
        self._switches: set[str] = set()
        self._chain: list[tuple[Path, str]] = []
        self._included = self._total = 0
        self._sources = ReadSources()

    def requirement(self, one: PipRequirement) -> None:
        """Take up a requirement that was read."""
        self._lists[False].append(one)

    def members(self) -> dict[str, Any]:
        """The members of a ``PipSection``."""
        indexes = _unique([*([self._index] if self._index else []), *self._extra])
        links = _unique(self._links, of_file=True)
        return {
            "requirements": _sorted(self._lists[False]),
            "constraints": _sorted(self._lists[True]),
            "indexes": tuple(strip_credentials(url) for url in indexes),
            "own_index": self._index is not None,
            "find_links": tuple(strip_credentials(url, of_file=True) for url in links),
            "find_links_local": tuple(self._local_links),
            "no_binary": tuple(sorted(self._names["--no-binary"])),
            "only_binary": tuple(sorted(self._names["--only-binary"])),
            "all_releases": tuple(sorted(self._names["--all-releases"])),
            "only_final": tuple(sorted(self._names["--only-final"])),
            "trusted_hosts": tuple(sorted(self._hosts)),
            "switches": tuple(sorted(self._switches)),
            "fetch_indexes": indexes,
            "fetch_links": links,
        }

    def file(self, content: bytes, source: str, folder: Path | None, *, constraint: bool) -> None:
        """Take up what a requirements file says.

        Raises:
            SpecError: It is not understood, or names a file that cannot be read.
        """
        if len(content) > MAX_BYTES:
            fail(
                Mark(source, 1, 1),
                f"the file has {len(content)} bytes, at most {MAX_BYTES} are read",
                "split it",
            )
        try:
            text = content.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            place = Mark(source, content.count(b"\n", 0, error.start) + 1, 1)
            fail(place, f"byte 0x{content[error.start]:02x} is not UTF-8", "save the file as UTF-8")
        mistakes: list[SpecError] = []
        for line, mark in logical_lines(text, Mark(source, 1, 1)):
            check_time(f"reading {source}")
            try:
                self.line(line, mark, folder, constraint=constraint)
            except SpecError as error:
                mistakes.append(error)
                if len(mistakes) == MAX_MISTAKES:
                    break
        refuse(mistakes)

    def line(self, text: str, mark: Mark, folder: Path | None, *, constraint: bool) -> None:
        """Take up a logical line.

        Raises:
            SpecError: As :meth:`file`.
        """
        if text.startswith("-"):
            for option in re.split(r"(?<!\s)\s++(?=-)", text):
                self._option(option, mark, folder, constraint=constraint)
            return
        hashes: tuple[str, ...] = ()
        body = text
        if "--hash" in text:
            hashes = tuple(sorted({check_hash(found, mark) for found in _HASH_OPTION.findall(text)}))
            body = _HASH_OPTION.sub("", text).strip()
        if "-" in body and (stray := _STRAY.search(body)):
            name = _long(stray[1] if stray[1].startswith("--") else stray[1][:2])
            if name in {*self._handlers(mark, folder, constraint=constraint), *_SWITCHES}:
                fail(mark, f"{stray[1]} stands behind a requirement", "write it on a line of its own")
            _unknown_option(name, {"--hash"}, mark)
        self._lists[constraint].append(read_requirement(body, mark, folder, hashes, self._sources))

    def _option(self, text: str, mark: Mark, folder: Path | None, *, constraint: bool) -> None:
        if text.startswith("- "):
            hint = f"write it as {text[1:].strip()[:80]}"
            fail(mark, f"{text[:80]!r} is not a requirement: a '-' stands in front", hint)
        found = _OPTION.fullmatch(text)
        name = _long(found[1] if found else text)
        value = found[2].strip().strip("\"'") if found else ""
        if name in _SWITCHES:
            if value:
                fail(mark, f"{name} takes no value, seen {value[:40]!r}", "write one option a line")
            self._switches.add(name)
            if {"--require-hashes", "--no-require-hashes"} <= self._switches:
                fail(mark, "--require-hashes and --no-require-hashes contradict", "take one of them out")
            return
        handlers = self._handlers(mark, folder, constraint=constraint)
        if name not in handlers:
            _unknown_option(name, {*handlers, *_SWITCHES}, mark)
        if not value or value.startswith("-"):
            fail(mark, f"{name} has no value", f"write {name} VALUE")
        if name != "--editable" and re.search(r"\s", value):
            fail(mark, f"{name} has more than one value", "write one option a line, one value each")
        handlers[name](value)

    def _handlers(
        self, mark: Mark, folder: Path | None, *, constraint: bool
    ) -> dict[str, Callable[[str], object]]:
        def index(url: str) -> None:
            self._index = _index_url(url, mark)

        def editable(value: str) -> None:
            if constraint:
                fail(mark, "-e in a constraints file", "name a version, or move it to the requirements")
            if not is_remote(value) and "/" not in value and not value.startswith("."):
                value = f"./{value}"
            if found := _BARE_VCS.match(value):  # as pip has it, for what is editable alone
                system = found[1].lower()
                value = f"{system}+{system}{value[found.end() :]}"
            one = read_requirement(value, mark, folder, (), self._sources)
            self._lists[False].append(one._replace(editable=True))

        def names(option: str) -> Callable[[str], None]:
            return lambda value: self._take_names(option, value)

        return {
            **{option: names(option) for option in _CONTRARY},
            "--constraint": lambda value: self._include(value, mark, folder, constraint=True),
            "--editable": editable,
            "--extra-index-url": lambda value: self._extra.append(_index_url(value, mark)),
            "--find-links": lambda value: self._find_links(value, mark, folder),
            "--index-url": index,
            "--requirement": lambda value: self._include(value, mark, folder, constraint=constraint),
            "--trusted-host": lambda value: self._hosts.add(_host(value, mark)),
            "--use-feature": lambda value: _check_feature(value, mark),
        }

    def _take_names(self, option: str, value: str) -> None:
        """Names, or all; the contrary option loses them, as in pip."""
        other = _CONTRARY[option]
        for part in filter(None, (part.strip() for part in value.split(","))):
            if part == ":none:":
                self._names[option].clear()
            elif part == ":all:":
                self._names[other].clear()
                self._names[option] = {":all:"}
            else:
                self._names[other].discard(canonical_name(part))
                self._names[option].add(canonical_name(part))

    def _find_links(self, value: str, mark: Mark, folder: Path | None) -> None:
        if is_remote(value):
            public_url(value, mark, of_file=True)
            self._links.append(fetched_url(value, mark))
        else:
            links = read_local(value, mark, folder, project=False)
            if links.name and not links.name.endswith((".whl", ".tar.gz", ".zip")):
                fail(mark, f"{value[:80]!r} is no folder, and what it links to is not read", "name a folder")
            self._local_links.append(links)

    def _include(self, value: str, mark: Mark, folder: Path | None, *, constraint: bool) -> None:
        if is_remote(value):
            shown = redacted(value)[:80]
            fail(mark, f"{shown!r} is on the web, where it can change", "save it beside the definition")
        path = local_path(value, mark, folder)
        chain = [name for _, name in self._chain] + [value]
        if any(path == one for one, _ in self._chain) or len(chain) > MAX_DEPTH:
            fail(mark, f"requirements files include each other: {' -> '.join(chain)}", "take one of them out")
        try:
            content = read_file(path, MAX_BYTES)
        except OSError as error:
            shown = " -> ".join(chain)
            fail(
                mark,
                f"{shown} cannot be read: {error.strerror}",
                "check the path; it starts at the file's folder",
            )
        self._included += 1
        if self._included > MAX_FILES:
            fail(mark, f"more than {MAX_FILES} included files", "include fewer")
        self._total += len(content)
        if self._total > MAX_TOTAL:
            fail(
                mark, f"the included files have more than {MAX_TOTAL} bytes", "include fewer or smaller ones"
            )
        self._chain.append((path, value))
        try:
            self.file(content, str(path), path.parent, constraint=constraint)
        finally:  # what else is wrong is looked for behind a mistake
            self._chain.pop()


def _long(name: str) -> str:
    """The one spelling of an option."""
    name = _SHORT.get(name, name)
    return _LONG.get(name, name)


def _check_feature(value: str, mark: Mark) -> None:
    if value not in _FEATURES:
        near = get_close_matches(value, sorted(_FEATURES), n=1)
        hint = f"did you mean {near[0]}?" if near else "take it out"
        fail(mark, f"--use-feature {value[:40]!r} is none that pip knows", hint)


def _unknown_option(name: str, known: Iterable[str], mark: Mark) -> NoReturn:
    if name in _UNSUPPORTED:
        reason, hint = _UNSUPPORTED[name]
        fail(mark, f"{name} {reason}", hint)
    if name == "--hash":
        fail(mark, "--hash stands on a line of its own", "write it behind its requirement, on the same line")
    near = get_close_matches(name, sorted(known), n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else "take it out; it is no option that envbuild knows"
    fail(mark, f"unknown option {name[:40]!r} in a pip requirement", hint)


def _index_url(url: str, mark: Mark) -> str:
    require_url(url, mark)
    if not re.match(r"https?://|file:/", url, re.IGNORECASE):
        fail(mark, f"the index {redacted(url)[:80]!r} is no URL", "write it as https://HOST/PATH")
    public_url(url, mark)
    url = fetched_url(url, mark)
    if not url.startswith("file:"):
        return url
    try:
        return str(Url.parse(_ONE_SLASH.sub("file:///", url), FILE))
    except UrlError as error:
        fail(mark, f"the index {url[:80]!r} is no URL: {error}", "write it as file:///absolute/path")


def _host(value: str, mark: Mark) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?", value):
        fail(mark, f"--trusted-host {value[:80]!r}", "write HOST or HOST:PORT")
    try:
        Url.parse(f"https://{value}")
    except UrlError as error:
        fail(mark, f"--trusted-host {value[:80]!r}: {error}", "write HOST or HOST:PORT")
    return value.lower()


def _unique(items: Iterable[str], *, of_file: bool = False) -> tuple[str, ...]:
    """The items in order; of those that differ only in credentials the first."""
    found: dict[str, str] = {}
    for item in items:
        found.setdefault(strip_credentials(item, of_file=of_file), item)
    return tuple(found.values())


def _sorted(items: Iterable[PipRequirement]) -> tuple[PipRequirement, ...]:
    """Sorted by what they say, each once."""
    found = {item.json_text(): item for item in items}
    return tuple([found[text] for text in sorted(found)])
