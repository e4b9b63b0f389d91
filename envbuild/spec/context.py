"""The files of a build context that steps select: read once, hashed and built from the same bytes.

Modes are normalised: 0755 for what its owner may execute, else 0644. Symbolic links stay links; only those
that a source names or goes through are followed, and never out of the context.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
import tarfile
import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from envbuild.spec.document import fail
from envbuild.spec.files import check_time, open_below, read_file, read_up_to, require
from envbuild.spec.patterns import BadPatternError, IgnoreRules, glob, has_wildcard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from envbuild.spec.document import Mark

MAX_CONTEXT_BYTES = 1 << 30
MAX_BYTES = 1 << 20
"""The largest file of rules."""
_IGNORE_FILE = ".dockerignore"
_MAX_LINKS = 40
_SPOOL_BYTES = 16 << 20


def ignore_file_of(dockerfile: Path) -> Path:
    """The file that, where it is there, replaces the context's ``.dockerignore`` for one Dockerfile."""
    return dockerfile.with_name(dockerfile.name + _IGNORE_FILE)


class Source(NamedTuple):
    """A place in the context that an instruction reads.

    Attributes:
        path: A path or glob relative to the context; empty for the whole context.
        what: The instruction's keyword, for messages.
        mark: Where the instruction stands.
    """

    path: str
    what: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A file, a symbolic link or an empty folder of the context.

    Attributes:
        path: Relative to the context, ``/`` between names.
        executable: Whether the owner may execute the file.
        content: The bytes; None for a link or a folder.
        target: Where the link points; None for a file or a folder.
        sha256: 64 hexadecimal digits over the content; empty for a link or a folder.
    """

    path: str
    executable: bool
    content: bytes | None = field(repr=False)
    target: str | None = None
    sha256: str = ""

    @classmethod
    def of(cls, path: str, content: bytes, *, executable: bool = False) -> Self:
        """A regular file."""
        return cls(path, executable, content, None, hashlib.sha256(content).hexdigest())

    @property
    def size(self) -> int:
        """Bytes of content; 0 for a link or a folder."""
        return len(self.content or b"")

    def to_json(self) -> dict[str, Any]:
        """The file's part of a canonical form."""
        if self.content is not None:
            return {
                "executable": self.executable,
                "path": self.path,
                "sha256": self.sha256,
                "size": self.size,
                "type": "file",
            }
        if self.target is not None:
            return {"path": self.path, "target": self.target, "type": "link"}
        return {"path": self.path, "type": "folder"}


def collect(
    root: Path,
    sources: Iterable[Source],
    *,
    limit: int = MAX_CONTEXT_BYTES,
    rules: IgnoreRules | None = None,
    ignore_file: Path | None = None,
) -> tuple[ContextFile, ...]:
    """Read what the sources select under ``root``, less what ``.dockerignore`` leaves out, sorted by path.

    Args:
        root: The context's folder.
        sources: What the instructions read.
        limit: The most bytes that may be read.
        rules: What is left out; None for the rules of ``ignore_file``, if it is there, else of the context's
            ``.dockerignore``.
        ignore_file: The file that replaces ``.dockerignore``; BuildKit looks for ``NAME.dockerignore`` beside
            the Dockerfile ``NAME``.

    Raises:
        SpecError: A source is missing, leaves the context, or is no file, link or folder; or all are too big.
    """
    reader: _Reader | None = None
    for source in sources:
        reader = reader or _Reader(root, source, limit, rules, ignore_file)
        reader.add(source)
    return reader.files() if reader else ()


class _Reader:
    """Reads each selected path once; ``_source`` is the one that messages name."""

    def __init__(
        self, root: Path, source: Source, limit: int, rules: IgnoreRules | None, ignore_file: Path | None
    ) -> None:
        self._root = require(root, source.mark) or os.path.realpath(root)
        self._ignore_file = _IGNORE_FILE
        self._source = source
        self._left = self._limit = limit
        self._files: dict[str, ContextFile] = {}
        if not os.path.isdir(self._root):  # noqa: PTH112 - byte-exact names, no Path objects in the walk
            fail(
                source.mark, f"the context {str(root)!r} is no folder", "name the folder that holds the files"
            )
        self._rules = rules or self._read_rules(ignore_file)

    def files(self) -> tuple[ContextFile, ...]:
        return tuple(self._files[path] for path in sorted(self._files))

    def add(self, source: Source) -> None:
        self._source = source
        try:
            self._add_any(source)
        except OSError as error:  # no permission, or the file went away meanwhile
            self._fail(f"{error.filename!r} cannot be read: {error.strerror}", "check its permissions")

    def _add_any(self, source: Source) -> None:
        path = posixpath.normpath("/" + source.path.lstrip("/")).lstrip("/")
        if ".." in source.path.split("/") and _climbs(source.path):
            self._fail(f"{source.path!r} leaves the context", "move the file into the context")
        if has_wildcard(path):
            for found in self._expand("", path.split("/")):
                self._add_source(found)
        elif not self._add_source(path) and path:
            hint = (
                f"it is left out by {self._ignore_file}"
                if self._exists(path)
                else "check the path and the context"
            )
            self._fail(f"{source.path!r} is not in the context", hint)

    def _fail(self, message: str, hint: str) -> None:
        fail(self._source.mark, f"{self._source.what}: {message}", hint)

    def _read_rules(self, ignore_file: Path | None) -> IgnoreRules:
        """The rules of the Dockerfile's own file, which replaces the context's even where it is empty."""
        path = self._full(_IGNORE_FILE)
        if ignore_file is not None and os.path.lexists(ignore_file):
            path, self._ignore_file = os.fsencode(ignore_file), ignore_file.name
        if not os.path.lexists(path):
            return IgnoreRules()
        try:
            require(os.fsdecode(path), self._source.mark)
            return IgnoreRules.parse(read_file(os.fsdecode(path), MAX_BYTES).decode())
        except (OSError, UnicodeDecodeError, BadPatternError) as error:
            name = self._ignore_file
            fail(self._source.mark, f"{name} cannot be used: {error}", f"mend {name}")

    def _full(self, path: str) -> bytes:
        # Names are UTF-8 whatever the locale says: a key must not depend on it.
        return os.path.join(os.fsencode(self._root), _encoded(path))  # noqa: PTH118

    def _exists(self, path: str) -> bool:
        return os.path.lexists(self._full(path))

    def _names(self, path: str) -> list[str]:
        return sorted([_decoded(name) for name in os.listdir(self._full(path))])  # noqa: PTH208

    def _expand(self, folder: str, parts: list[str]) -> Iterator[str]:
        """The paths that a glob matches; links in the middle are followed."""
        if not parts:
            yield folder
            return
        if folder and not os.path.isdir(self._full(self._follow(folder))):  # noqa: PTH112
            return
        try:
            matches = glob(parts[0])
        except BadPatternError as error:
            fail(self._source.mark, f"{self._source.what}: {error}", "mend the pattern")
        for name in self._names(self._follow(folder)):
            if matches(name):
                yield from self._expand(f"{folder}/{name}".lstrip("/"), parts[1:])

    def _add_source(self, path: str) -> bool:
        """Add a path that a source names, following links; whether anything was there."""
        real = self._follow(path)
        return self._exists(real) and self._add(real)

    def _follow(self, path: str) -> str:
        """The path without links in it; each link that is met on the way is selected too."""
        done: list[str] = []
        todo = [part for part in path.split("/") if part]
        links = 0
        while todo:
            done.append(todo.pop(0))
            here = "/".join(done)
            if not os.path.islink(self._full(here)):  # noqa: PTH114
                continue
            target = _decoded(os.readlink(self._full(here)))  # noqa: PTH115
            self._add(here)
            links += 1
            done.pop()
            joined = posixpath.normpath(posixpath.join("/".join(done), target))
            if target.startswith("/") or joined.split("/")[0] == ".." or links > _MAX_LINKS:
                self._fail(
                    f"the link {here!r} leads out of the context, to {target!r}", "copy the file itself"
                )
            done, todo = [], [part for part in joined.split("/") if part not in {"", "."}] + todo
        return "/".join(done)

    def _add(self, path: str) -> bool:
        """Add a path and what is below it; whether any of it is not ignored."""
        if path in self._files:
            return True
        check_time("reading the context")
        mode = os.lstat(self._full(path)).st_mode
        ignored = bool(path) and self._rules.ignores(path)
        if stat.S_ISDIR(mode):
            return self._add_folder(path, ignored=ignored)
        if ignored:
            return False
        self._check_name(path)
        if stat.S_ISLNK(mode):
            target = _decoded(os.readlink(self._full(path)))  # noqa: PTH115
            self._check_name(target)
            self._files[path] = ContextFile(path, executable=False, content=None, target=target)
        else:
            self._files[path] = self._read(path)
        return True

    def _add_folder(self, path: str, *, ignored: bool) -> bool:
        if ignored and not self._rules.brings_back:
            return False
        found = [self._add(f"{path}/{name}".lstrip("/")) for name in self._names(path)]
        if not any(found) and not ignored and path:
            self._check_name(path)
            self._files[path] = ContextFile(path, executable=False, content=None)
        return any(found) or not ignored

    def _check_name(self, path: str) -> None:
        try:
            path.encode()
        except UnicodeEncodeError:
            self._fail(f"the name {path!r} is not UTF-8", "rename the file")

    def _read(self, path: str) -> ContextFile:
        if not stat.S_ISREG(os.lstat(self._full(path)).st_mode):
            self._fail(f"{path!r} is no file, link or folder", f"leave it out in {self._ignore_file}")
        handle = open_below(os.fsencode(self._root), _encoded(path).split(b"/"))
        try:
            mode = os.fstat(handle).st_mode
            content = read_up_to(handle, self._left, path)
        finally:
            os.close(handle)
        self._left -= len(content)
        if self._left < 0:
            self._fail(
                f"the context is larger than {self._limit} bytes",
                f"leave files out in {self._ignore_file}, or copy fewer",
            )
        return ContextFile.of(path, content, executable=bool(mode & stat.S_IXUSR))


def _encoded(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _climbs(path: str) -> bool:
    """Whether a relative path rises above its start at any point."""
    depth = 0
    for part in path.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def write_tar(files: Iterable[ContextFile]) -> IO[bytes]:
    """A build context as a tar, the same bytes each time.

    Times and owners are zero, modes 0644 or 0755. The stream stands at its start.
    """
    out = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
    folders: set[str] = set()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for file in files:
            for parent in _parents(file):
                if parent not in folders:
                    folders.add(parent)
                    _add_folder(tar, parent)
            if file.content is not None:
                _add_bytes(tar, file.path, file.content, 0o755 if file.executable else 0o644)
            elif file.target is not None:
                entry = tarfile.TarInfo(file.path)
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, file.target, 0o777
                tar.addfile(entry)
    out.seek(0)
    return out


def _parents(file: ContextFile) -> list[str]:
    """The folders that must stand before a file, outermost first; a folder is its own last one."""
    parts = file.path.split("/")
    count = len(parts) + (1 if file.content is None and file.target is None else 0)
    return ["/".join(parts[:depth]) for depth in range(1, count)]


def _add_folder(tar: tarfile.TarFile, path: str) -> None:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(entry)


def _add_bytes(tar: tarfile.TarFile, path: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
