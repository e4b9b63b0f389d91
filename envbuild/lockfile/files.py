"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from envbuild.errors import StorageError


def write_whole(path: Path, content: bytes) -> None:
    """Put bytes into a file: whoever opens it sees what was there before, or all of them.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise StorageError(f"the lock {path} cannot be written: {error.strerror}") from None
