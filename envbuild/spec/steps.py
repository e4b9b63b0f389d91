"""Docker steps: instructions, the build arguments they use and the context files they select.

What could change the image without changing the key is refused: images and downloads without a digest, a
front end or a network of the user's choice, and sources that cannot be told before the build.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Self

from envbuild.budget import Budget, OverBudgetError
from envbuild.errors import SpecError
from envbuild.spec.context import ContextFile, Source, collect, write_tar
from envbuild.spec.dockerfile import parse_instructions
from envbuild.spec.document import fail, refuse
from envbuild.spec.files import check_time
from envbuild.spec.instruction import Heredoc, Instruction
from envbuild.spec.quoting import expand
from envbuild.url import Url, UrlError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from envbuild.spec.document import Mark

__all__ = ["ContextFile", "Heredoc", "Instruction", "Steps"]

_PINNED_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"git://|git@|ssh://|github\.com/|https?://[^?#]*\.git(?:[?#]|\Z)", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_CREDENTIALS = re.compile(r"https?://[^/?#]*@|[a-z]+://[^/?#@:]*:[^/?#@]*@", re.IGNORECASE)
_MOUNTS = frozenset({"bind", "cache", "secret", "tmpfs"})
_HEREDOC = re.compile(r"[0-9]*<<-?[^<]+")
_OF_THE_ENGINE = frozenset({"BUILDARCH", "BUILDOS", "BUILDPLATFORM", "BUILDVARIANT"})
_OF_THE_FRONT_END = re.compile(
    "(?:BUILDKIT|BUILDX)_.*|SOURCE_DATE_EPOCH|TARGETSTAGE|(?:ALL|FTP|HTTPS?|NO)_PROXY", re.IGNORECASE
)
"""Build arguments that a front end or its client acts on by itself: which front end reads the file, what it
writes into the image's times, and which proxy it and every step go through."""
_STAGE = "TARGETSTAGE"
CONTEXT_FOLDER = ".envbuild.context"
"""Where the context's files are in what an engine gets, so that none of envbuild's own is among them."""
BASE_ARGUMENT = "ENVBUILD_BASE"
"""The build argument that names the base."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Parsed steps, with everything that a build of them reads.

    Attributes:
        instructions: The instructions in order.
        args: The build arguments that an ARG takes up, sorted by name.
        context: The context files that the instructions select, sorted by path.
        secret_ids: The ids of the secrets that RUN mounts, sorted.
        unused_args: The names of build arguments that no ARG takes up; they are no part of the steps.
    """

    instructions: tuple[Instruction, ...]
    args: tuple[tuple[str, str], ...] = ()
    context: tuple[ContextFile, ...] = ()
    secret_ids: tuple[str, ...] = ()
    unused_args: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        text: str,
        mark: Mark,
        *,
        args: Mapping[str, str],
        context: Path | None,
        ignore_file: Path | None = None,
    ) -> Self:
        """Parse a text of Dockerfile instructions without FROM, and read the context files it selects.

        Args:
            text: The instructions.
            mark: Where the text's first character stands; all its lines start in that column.
            args: Build arguments.
            context: The folder of the context; None where there is none.
            ignore_file: The file that, where it is there, replaces the context's ``.dockerignore``.

        Raises:
            SpecError: An instruction is not by the grammar or is refused, or a context file is missing.
        """
        instructions = parse_instructions(text, mark)
        return cls.of(instructions, mark, args=args, context=context, ignore_file=ignore_file)

    @classmethod
    def parse_items(
        cls,
        items: Iterable[tuple[str, Mark]],
        mark: Mark,
        *,
        args: Mapping[str, str],
        context: Path | None,
    ) -> Self:
        """The same for a list in which each item is exactly one instruction.

        Raises:
            SpecError: As :meth:`parse`; or an item holds no instruction, or more than one.
        """
        instructions: list[Instruction] = []
        mistakes: list[SpecError] = []
        for text, place in items:
            try:
                found = parse_instructions(text, place)
                if len(found) != 1:
                    fail(
                        place, f"the item holds {len(found)} instructions, expected one", "write one an item"
                    )
                instructions += found
            except SpecError as error:
                mistakes.append(error)
        refuse(mistakes)
        return cls.of(tuple(instructions), mark, args=args, context=context)

    @classmethod
    def of(
        cls,
        instructions: tuple[Instruction, ...],
        mark: Mark,
        *,
        args: Mapping[str, str],
        context: Path | None,
        ignore_file: Path | None = None,
    ) -> Self:
        """Steps of parsed instructions; most callers want :meth:`parse`.

        Raises:
            SpecError: An instruction is refused, or a context file is missing.
        """
        for name, value in args.items():
            if re.search("[\0\ud800-\udfff]", value):
                fail(mark, f"the build argument {name!r} holds a NUL or is not UTF-8", "remove it")
        survey = _Survey(args)
        sources: list[Source] = []
        mistakes: list[SpecError] = []
        for one in instructions:
            check_time(f"reading {mark.source}")
            try:
                sources += survey.visit(one)
            except SpecError as error:
                mistakes.append(error)
        refuse(mistakes)
        if sources and context is None:
            fail(sources[0].mark, f"{sources[0].what} reads files, and there is no context", "name a context")
        used = tuple(sorted((name, args[name]) for name in survey.declared if name in args))
        return cls(
            instructions,
            used,
            collect(context, sources, ignore_file=ignore_file) if context is not None else (),
            tuple(sorted(survey.secrets)),
            tuple(sorted(args.keys() - survey.declared)),
        )

    @property
    def uses_heredocs(self) -> bool:
        """Whether an instruction has a heredoc; the front ends of engines before 23 cannot read them."""
        return any(one.heredocs for one in self.instructions)

    def canonical(self) -> dict[str, Any]:
        """The steps' part of the canonical form: JSON values only."""
        return {
            "args": dict(self.args),
            "context": [file.to_json() for file in self.context],
            "instructions": [one.to_json() for one in self.instructions],
        }

    def render(self) -> str:
        """The instructions as Dockerfile text without FROM, which parses back to equal instructions."""
        return "".join(one.render() for one in self.instructions)

    def for_engine(self, caches: str) -> str:
        """The instructions as an engine gets them: files come from :data:`CONTEXT_FOLDER`, caches are named.

        Args:
            caches: What the ids of cache mounts start with. An engine keeps a cache for every build that
                names its id, so ids that others use would bring what others left there into the image.
        """
        survey = _Survey(dict(self.args))
        return "".join(survey.placed(one, caches).render() for one in self.instructions)

    def build_context(self) -> IO[bytes]:
        """A tar of the context files; the same bytes each time. The caller closes it."""
        return write_tar(self.context)


class _Survey:
    """Visits instructions in order; knows the variables so far, collects sources and secrets, refuses."""

    def __init__(self, args: Mapping[str, str]) -> None:
        self._args = args
        self._values: dict[str, str | None] = {}
        self._budget = Budget()
        self._env: set[str] = set()
        self.declared: set[str] = set()
        self.secrets: set[str] = set()

    def visit(self, one: Instruction) -> Iterator[Source]:
        """The context sources of an instruction."""
        try:
            yield from self._visit(one)
        except OverBudgetError as error:
            fail(one.mark, f"{one.keyword}: {error}", "name the values themselves, or fewer variables")

    def _visit(self, one: Instruction) -> Iterator[Source]:
        if one.keyword == "ARG":
            self._declare(one)
        elif one.keyword == "ENV":
            self._set(one)
        elif one.keyword == "RUN":
            yield from self._run(one)
        elif one.keyword in {"ADD", "COPY"}:
            yield from self._copy(one)

    def _declare(self, one: Instruction) -> None:
        for word in one.arguments:
            name, equals, raw = word.partition("=")
            self._refuse(name, one.mark, has_default=bool(equals))
            self.declared.add(name)
            if name in self._env:  # ENV wins over ARG
                continue
            if name in self._args:
                self._values[name] = self._args[name]
            elif equals:
                self._values[name] = self._expand(raw)

    def _refuse(self, name: str, mark: Mark, *, has_default: bool) -> None:
        """Refuse arguments whose values come from the engine's machine, or that change how it builds."""
        given = name in self._args
        if name == BASE_ARGUMENT:
            fail(mark, f"the build argument {name} is envbuild's own", "choose another name")
        if name in _OF_THE_ENGINE and not given and not has_default:
            instead = name.replace("BUILD", "TARGET")
            fail(mark, f"ARG {name} says what machine the engine runs on", f"use {instead}")
        if name == _STAGE and not given and not has_default:
            fail(mark, f"ARG {name} says what BuildKit calls the stage", "write the name itself")
        if given and _OF_THE_FRONT_END.fullmatch(name):
            fail(
                mark,
                f"the build argument {name} changes how engines build",
                "take its value out; a proxy is a setting of the engine",
            )

    def _set(self, one: Instruction) -> None:
        pairs = [word.partition("=") for word in one.arguments]
        found = {name: self._expand(raw) for name, _, raw in pairs}
        self._values.update(found)
        self._env.update(found)

    def _expand(self, word: str) -> str | None:
        return expand(word, self._values, self._budget)

    def _run(self, one: Instruction) -> Iterator[Source]:
        network = one.flag("network")
        if network not in {None, "none"}:
            fail(one.mark, f"--network={network} is not allowed", "take the flag out, or use --network=none")
        if one.flag("security") is not None:
            fail(one.mark, f"--security={one.flag('security')} is not allowed", "take the flag out")
        for mount in one.flag_values("mount"):
            yield from self._mount(one, _fields(mount))

    def _mount(self, one: Instruction, fields: dict[str, str]) -> Iterator[Source]:
        kind = fields["type"]
        if kind == "ssh":
            fail(
                one.mark,
                "--mount=type=ssh is not supported",
                "mount the key as a secret: type=secret,id=NAME",
            )
        if kind not in _MOUNTS:
            fail(one.mark, f"--mount type {kind!r}", f"use one of {', '.join(sorted(_MOUNTS))}")
        if "from" in fields:
            _pinned_image(fields["from"], "--mount from", one.mark)
        elif kind == "bind":
            path = self._expand(fields.get("source", ""))
            yield Source(path or "", "RUN --mount", one.mark)
        if kind == "secret":
            secret = fields.get("id") or fields.get("target", "").rpartition("/")[2]
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", secret):
                fail(one.mark, f"the secret's id {secret!r}", "use letters, digits, '_', '.' and '-'")
            self.secrets.add(secret)
        if kind == "cache":
            name = _cache_id(fields)
            if ".." in (self._expand(name) or name).split("/"):  # Podman takes it for a path
                fail(one.mark, f"the cache's id {name[:80]!r} has '..' in it", "use letters and digits")

    def _copy(self, one: Instruction) -> Iterator[Source]:
        image = one.flag("from")
        if image is not None:
            _pinned_image(image, "COPY --from", one.mark)
        for number, path in self._local(one):
            if path is not None and ("\\" in path or not path):
                word = one.arguments[number]
                fail(one.mark, f"the source {word!r} of {one.keyword}", "name a path without backslashes")
            yield Source(path or "", one.keyword, one.mark)

    def _local(self, one: Instruction) -> Iterator[tuple[int, str | None]]:
        """Which arguments of COPY or ADD are sources in the context, and their paths where they are known."""
        for number, word in enumerate(one.arguments[:-1] if one.flag("from") is None else ()):
            if one.heredocs and _HEREDOC.fullmatch(word):
                continue
            path = self._expand(word)
            if one.keyword != "ADD" or not _is_remote(path, word, one):
                yield number, path

    def placed(self, one: Instruction, caches: str) -> Instruction:
        """The instruction as an engine gets it; call this, like :meth:`visit`, for each one in order."""
        for _ in self.visit(one):
            pass
        if one.keyword == "RUN":
            flags = [flag.partition("=") for flag in one.flags]
            return replace(
                one,
                flags=tuple(
                    f"{name}={_placed_mount(value, caches) if name == 'mount' else value}"
                    for name, _, value in flags
                ),
            )
        if one.keyword not in {"ADD", "COPY"}:
            return one
        arguments = list(one.arguments)
        for number, _ in self._local(one):
            word = arguments[number].lstrip("/") or "."
            # what stands before the first /./ is no part of the path that --parents keeps
            pivot = "/." if one.flag("parents") is not None and "/./" not in word else ""
            arguments[number] = f"{CONTEXT_FOLDER}{pivot}/{word}"
        return replace(one, arguments=tuple(arguments))


def _fields(mount: str) -> dict[str, str]:
    return {name: value for name, _, value in (part.partition("=") for part in mount.split(","))}


def _cache_id(fields: Mapping[str, str]) -> str:
    """The id of a cache mount, which is its target where it has none."""
    return fields.get("id") or posixpath.normpath(fields.get("target", ""))


def _placed_mount(mount: str, caches: str) -> str:
    """A mount as an engine gets it."""
    fields = _fields(mount)
    if fields["type"] == "cache":
        fields["id"] = f"{caches}-{_cache_id(fields)}"
    elif fields["type"] == "bind" and "from" not in fields:
        fields["source"] = f"{CONTEXT_FOLDER}/{fields.get('source', '').lstrip('/') or '.'}"
    return ",".join(f"{name}={value}" for name, value in sorted(fields.items()))


def _pinned_image(image: str, what: str, mark: Mark) -> None:
    if not _PINNED_IMAGE.fullmatch(image):
        fail(mark, f"{what} {image[:80]!r} has no digest", "write it as NAME@sha256:DIGEST")


def _is_remote(path: str | None, word: str, one: Instruction) -> bool:
    """Whether an ADD source is a URL or a Git repository; such a one must be pinned."""
    if path is None:
        fail(
            one.mark,
            f"ADD {word[:80]!r}: the source is known only during the build, and may be a URL",
            "give its variable a value with ARG NAME=VALUE, or use COPY",
        )
    if _CREDENTIALS.match(path):
        fail(one.mark, "ADD: the URL holds credentials", "download it in a RUN step with a secret mount")
    checksum = one.flag("checksum") or ""
    if _GIT.match(path):
        if not _COMMIT.fullmatch(checksum) and not _COMMIT.fullmatch(
            path.partition("#")[2].partition(":")[0]
        ):
            fail(one.mark, f"ADD {path[:80]!r} has no commit", "end it in #COMMIT with all 40 digits")
        return True
    if _WEB.match(path):
        try:
            Url.parse(path)
        except UrlError as error:
            fail(one.mark, f"ADD {path[:80]!r} is not a URL: {error}", "write it as https://HOST/PATH")
        if not _SHA256.fullmatch(checksum):
            fail(
                one.mark, f"ADD {path[:80]!r} has no checksum", "write ADD --checksum=sha256:DIGEST URL PATH"
            )
        return True
    if _SCHEME.match(path):
        fail(one.mark, f"ADD {path[:80]!r}: unknown kind of URL", "use https:// with --checksum")
    return False
