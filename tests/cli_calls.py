"""What tests of the command line share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ENVBUILD = (sys.executable, "-m", "envbuild")


@dataclass(frozen=True)
class Answer:
    """What a call came to."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The JSON objects on standard output."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The JSON objects on standard error that are errors and not events."""
        documents: list[dict[str, Any]] = [json.loads(line) for line in self.err.splitlines()]
        return [document for document in documents if "error" in document]


Call = Callable[..., Answer]
