"""Wheels, archives and projects on this machine, which count by what they hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from envbuild.spec.context import MAX_CONTEXT_BYTES, ContextFile, Source, collect
from envbuild.spec.document import fail
from envbuild.spec.files import read_file, require
from envbuild.spec.patterns import IgnoreRules
from envbuild.spec.reading import is_folder

if TYPE_CHECKING:
    from envbuild.spec.document import Mark

_PROJECT_RULES = (
    "**/.git\n**/.hg\n**/.svn\n**/.venv\n**/__pycache__\n**/*.py[co]\n**/*.egg-info\n.dockerignore\n"
)
_FILE_SCHEME = re.compile(r"\Afile:(?://)?", re.IGNORECASE)
_PROJECT_FILES = ("pyproject.toml", "setup.py")


class Origin(NamedTuple):
    """Where a wheel says that it is from.

    Attributes:
        url: A URL without credentials. For what is on this machine it is a name without a folder: folders are
            no part of the key, and the image is the same on every machine.
        built_from: What the wheel was built from: ``folder``, or the sha256 of an archive; None for a wheel
            that was named itself.
    """

    url: str
    built_from: str | None = None


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A wheel, an archive or a project folder, read once.

    Attributes:
        path: Where it was read; no part of the key.
        name: The file's name, which tells version and tags; empty for a folder.
        files: The bytes: one file, or the folder's files sorted by path.
        built: For a wheel that was built in place of what the definition names: the origin of that.
    """

    path: Path = field(compare=False)
    name: str
    files: tuple[ContextFile, ...] = field(repr=False)
    built: Origin | None = field(default=None, compare=False)

    @property
    def origin(self) -> Origin:
        """Where a wheel says that it is from, if a requirement names it."""
        return self.built or Origin(local_url(self.name))

    def to_json(self) -> dict[str, Any]:
        """The source's part of a canonical form: what it holds, not where it is."""
        return {"files": [file.to_json() for file in self.files], "name": self.name}


def local_url(name: str) -> str:
    """The URL of a file or folder on some machine."""
    return f"file:///{quote(name)}"


def without_file_scheme(value: str) -> str:
    """A path, or the path in a ``file:`` URL, in capitals or not."""
    return _FILE_SCHEME.sub("", value, count=1)


def local_path(value: str, mark: Mark, folder: Path | None) -> Path:
    """The absolute path that a value names.

    Raises:
        SpecError: It holds a variable, or is relative to nothing.
    """
    if "${" in value:
        fail(mark, f"a variable in the path {value[:80]!r}: the key cannot know its value", "write the path")
    path = Path(without_file_scheme(value))
    if not path.is_absolute() and folder is None:
        fail(
            mark,
            f"the relative path {value[:80]!r} in a definition without a folder",
            "write an absolute path",
        )
    try:
        path = folder / path if folder else path
        require(path, mark)
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        fail(mark, f"{value[:80]!r} is no path: {error}", "write a plain path")


class ReadSources:
    """What requirements of a definition name on this machine: each is read once, all together are bounded."""

    def __init__(self) -> None:
        self._read: dict[Path, LocalSource] = {}
        self._left = MAX_CONTEXT_BYTES

    def find(self, path: Path) -> LocalSource | None:
        """The source at a path, if it was read."""
        return self._read.get(path)

    def add(self, source: LocalSource, mark: Mark) -> LocalSource:
        """Keep a source.

        Raises:
            SpecError: All together are too large.
        """
        self._read[source.path] = source
        self._left -= sum(file.size for file in source.files)
        if self._left < 0:
            fail(
                mark,
                f"the files that requirements name have more than {MAX_CONTEXT_BYTES} bytes",
                "name fewer",
            )
        return source


def read_local(
    value: str, mark: Mark, folder: Path | None, *, project: bool, sources: ReadSources | None = None
) -> LocalSource:
    """Read a wheel, an archive or a folder.

    Args:
        value: A path or a ``file:`` URL, as written.
        mark: Where it is written.
        folder: What a relative path is relative to.
        project: Whether a folder must hold a Python project.
        sources: Those that were read for the same definition, where ``project`` was the same.

    Raises:
        SpecError: It is not there, is no project though it must be, cannot be read or is too large.
    """
    path = local_path(value.split("#", 1)[0], mark, folder)
    if sources is not None:
        return sources.find(path) or sources.add(read_local(value, mark, folder, project=project), mark)
    if is_folder(path):
        if project and not any((path / name).is_file() for name in _PROJECT_FILES):
            fail(
                mark,
                f"the folder {value[:80]!r} is no Python project",
                f"looked for {' or '.join(_PROJECT_FILES)} in {path}; check the path",
            )
        files = collect(path, [Source("", "pip", mark)], rules=IgnoreRules.parse(_PROJECT_RULES))
        return LocalSource(path, "", files)
    try:
        if not path.is_file():
            fail(mark, f"{value[:80]!r} is not there", f"looked for {path}; check the path")
        content = read_file(path, MAX_CONTEXT_BYTES)
    except OSError as error:
        fail(mark, f"{value[:80]!r} cannot be read: {error.strerror}", "check its permissions")
    if len(content) > MAX_CONTEXT_BYTES:
        fail(mark, f"{value[:80]!r} is larger than {MAX_CONTEXT_BYTES} bytes", "put it on an index")
    return LocalSource(path, path.name, (ContextFile.of(path.name, content),))
