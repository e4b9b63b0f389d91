"""The one gate in front of the layer writer: what no layer may hold, whoever made the path.

Packages, wheels, their channels and indexes are others' work. Each reader refuses what it can tell; here
stands what must hold in the end, whatever was joined to what on the way.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from envbuild.conda.tar import WHITEOUT, Kind, parents
from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from envbuild.conda.link import LinkedFile

_CONTROL: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_ORDINARY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_RECORD: Final = re.compile(r"conda-meta/[^/]+\.json(?:/|\Z)")
"""A package's record, and what would need a folder in its place."""
_MAX_NAME: Final = 255
_MAX_PATH: Final = 4095
_HINT: Final = "look at the package: it is damaged, or an attack on whoever uses the image"


@dataclass
class Gate:
    """Admits the files of one layer, one after the other.

    Attributes:
        top: The prefix in the image, without ``/`` at its ends.
        files: Who brought each file and link that was admitted, by path.
        folders: The folders that have an entry.
    """

    top: str
    files: dict[str, str] = field(default_factory=dict)
    folders: dict[str, None] = field(default_factory=dict)
    _plain: set[str] = field(default_factory=set)

    def admit(self, file: LinkedFile) -> list[str]:
        """Let a file pass, or refuse it.

        Of two owners one may have a file where the other has one, or a folder: the later one stays. Nothing
        is ever written through a link, for each folder has an entry of its own before what is in it.

        Returns:
            The folders that must have an entry before it, the outermost first.

        Raises:
            IntegrityError: No layer may hold it; names who brought it, and the path.
        """
        if self._is_ordinary(file):
            self.files[file.path] = file.owner
            self._plain.add(file.path)
            return []
        _check_path(file, file.path, self.top)
        above = tuple(parents(file.path))
        clash = next((path for path in (*above, file.path) if self.files.get(path) == file.owner), None)
        if clash is not None and clash != file.path:
            _refuse(file, f"{clash!r} is a file of its own")
        if clash is not None:
            _refuse(file, "it has two files there")
        if file.kind is Kind.SYMLINK:
            _check_target(file, self.top)
        elif file.kind is Kind.HARDLINK and file.target not in self._plain:
            _refuse(file, f"it is a hard link to {file.target!r}, which is no file that came before it")
        if file.mode & ~0o777:
            _refuse(file, f"its mode is {file.mode:o}")
        for path in above:
            self._forget_file(path)
        if file.kind is not Kind.DIRECTORY:
            self._take(file)
        return self._new_folders((*above, file.path) if file.kind is Kind.DIRECTORY else above)

    def _is_ordinary(self, file: LinkedFile) -> bool:
        """Whether it is a new file of a short plain name in a folder that was let pass: nearly all are."""
        path = file.path
        folder, _, name = path.rpartition("/")
        return (
            folder in self.folders
            and folder != "conda-meta"
            and file.kind is Kind.FILE
            and _ORDINARY.fullmatch(name) is not None
            and len(path) < _MAX_PATH // 8
            and path not in self.files
            and path not in self.folders
            and not file.mode & ~0o777
        )

    def _take(self, file: LinkedFile) -> None:
        self._forget_file(file.path)
        if file.path in self.folders:
            inside = f"{file.path}/"
            gone = [path for path in self.folders if f"{path}/".startswith(inside)]
            for path in gone:
                del self.folders[path]
        self.files[file.path] = file.owner
        if file.kind in {Kind.FILE, Kind.HARDLINK}:
            self._plain.add(file.path)

    def _forget_file(self, path: str) -> None:
        self.files.pop(path, None)
        self._plain.discard(path)

    def _new_folders(self, paths: tuple[str, ...]) -> list[str]:
        new = [path for path in paths if path not in self.folders]
        self.folders.update(dict.fromkeys(new))
        return new


def _check_path(file: LinkedFile, path: str, top: str) -> None:
    """Refuse a path that is none, leads out of the prefix, deletes, or that no file system takes."""
    names = path.split("/")
    if _CONTROL.search(path):
        _refuse(file, "the path has control characters, or is no text")
    if not {"", ".", ".."}.isdisjoint(names):
        _refuse(file, "expected a path inside the prefix")
    deleting = [name for name in names if name.startswith(WHITEOUT)]
    if deleting and not (file.deletes and deleting == [names[-1]]):
        _refuse(file, f"a name that begins with {WHITEOUT!r} deletes files of other layers")
    if _RECORD.match(path) and not file.is_record:
        _refuse(file, "what stands there is a record of a package, which an installer alone writes")
    if len(path) > _MAX_NAME // 4 and _is_too_long(f"/{top}/{path}"):
        _refuse(file, f"at most {_MAX_NAME} bytes a name and {_MAX_PATH} in all can be unpacked")


def _is_too_long(path: str) -> bool:
    content = path.encode()
    return len(content) > _MAX_PATH or max(map(len, content.split(b"/"))) > _MAX_NAME


def _check_target(file: LinkedFile, top: str) -> None:
    """Refuse a relative link that climbs out of the prefix: no package knows how deep that is.

    An absolute one names a file of the base; nothing here ever follows it.
    """
    text = file.target
    end = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), text))
    if not text or end.split("/")[0] == "..":
        _refuse(file, f"it is a link to {text!r}, outside of /{top}")
    if _CONTROL.search(text) or len(text.encode()) > _MAX_PATH:
        _refuse(file, "it is a link to what is no path")


def _refuse(file: LinkedFile, why: str) -> NoReturn:
    shown = file.path if len(file.path) <= 300 else f"{file.path[:300]}…"
    who = file.owner or "the environment"
    raise IntegrityError(f"{who} would install {shown!r}: {why}", hint=_HINT)
