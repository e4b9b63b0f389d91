"""Finding the programs that real parts are made of."""

from __future__ import annotations

import shutil
from pathlib import Path

_FETCHED = Path(__file__).resolve().parent.parent.parent / ".cache" / "programs" / "bin"


def program(name: str, package: str) -> str:
    """The path of a program; without it the test fails, it is never skipped."""
    path = shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin") or shutil.which(name)
    if path is None:
        message = f"the tests need {name!r}: apt-get install {package} (or: make test)"
        raise RuntimeError(message)
    return path


def fetched_program(name: str) -> str:
    """The path of a program that ``tools/registry-programs`` fetches; without it the test fails."""
    path = _FETCHED / name
    if not path.is_file():
        message = f"the tests need {name!r}: tools/registry-programs (or: make test)"
        raise RuntimeError(message)
    return str(path)
