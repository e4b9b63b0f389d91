"""What is kept in mind of a layer's files while they are written, and reading what others kept."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from envbuild.conda.activate import is_activation
from envbuild.conda.clobber import Clobber
from envbuild.conda.tar import Kind
from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envbuild.conda.link import LinkedFile

MAX_ACTIVATION: Final = 1 << 16
"""An activation script of more bytes is no list of variables; it is not looked at."""


@dataclass
class Seen:
    """The files of one layer that somebody asks for later.

    Attributes:
        activation: The text of the files that take part in activation, by path; None for one without text.
        records: The records in ``conda-meta``, by path.
        clobbers: The packages that carry one path.
    """

    activation: dict[str, str | None] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)
    clobbers: list[Clobber] = field(default_factory=list)

    def watch(self, files: Iterable[LinkedFile]) -> Iterator[LinkedFile]:
        """The same files, as they pass."""
        for file in files:
            if file.is_record:
                content = b"".join(file.chunks)
                self.records[file.path] = content
                yield replace(file, chunks=(content,))
            elif is_activation(file.path):
                yield self._activation(file)
            else:
                yield file

    def _activation(self, file: LinkedFile) -> LinkedFile:
        self.activation[file.path] = None
        if file.kind is not Kind.FILE or file.size > MAX_ACTIVATION:
            return file
        content = b"".join(file.chunks)
        with contextlib.suppress(UnicodeDecodeError):
            self.activation[file.path] = content.decode()
        return replace(file, chunks=(content,))

    @property
    def activation_text(self) -> str:
        """The activation as an index entry holds it."""
        return json.dumps(self.activation, sort_keys=True, separators=(",", ":")) if self.activation else ""

    @property
    def clobbers_text(self) -> str:
        """The clobbers as an index entry holds them."""
        return json.dumps(self.clobbers, separators=(",", ":")) if self.clobbers else ""


def activation_files(document: Any) -> dict[str, str | None]:
    """The text of files that take part in activation, by path, as somebody else wrote it down.

    Raises:
        IntegrityError: It is something else.
    """
    files = document if isinstance(document, dict) else {"": None}
    for path, text in files.items():
        if not is_activation(path) or not (text is None or _is_text(text, MAX_ACTIVATION)):
            raise IntegrityError(f"{path!r:.80} is no file that takes part in activation")
    return files


def clobbers_in(document: Any) -> list[Clobber]:
    """Packages that carry one path, as somebody else wrote them down.

    Raises:
        IntegrityError: It is something else.
    """
    found = []
    for each in document if isinstance(document, list) else [None]:
        match each:
            case [str(loser), str(winner), str(path), int(total)] if _is_text(loser + winner + path, _LINE):
                found.append(Clobber(loser, winner, path, total))
            case _:
                raise IntegrityError(f"{each!r:.80} does not tell of packages that carry one path")
    return found


def json_in(text: str, otherwise: str) -> Any:
    """The JSON of a note that somebody else wrote.

    Args:
        text: The note.
        otherwise: What an empty one stands for.

    Raises:
        IntegrityError: It is no JSON.
    """
    try:
        return json.loads(text or otherwise)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{text!r:.80} is not JSON") from None


def _is_text(text: Any, most: int) -> bool:
    try:
        return isinstance(text, str) and len(text.encode()) <= most
    except UnicodeEncodeError:  # half a surrogate pair
        return False


_LINE: Final = 1 << 12
