"""Writing a file whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envbuild.errors import StorageError
from envbuild.storage import written_whole

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Put bytes into a file: whoever opens it sees what was there before, or all of them.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        with written_whole(path) as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"the lock {path} cannot be written: {error.strerror}") from None
