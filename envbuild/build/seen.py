"""What is kept in mind of a layer's files while they are written."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from envbuild.conda.activate import is_activation
from envbuild.conda.tar import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envbuild.conda.clobber import Clobber
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
