"""Panics of rattler, which raises them as exceptions that no other code expects: told as errors of ours."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.errors import EnvbuildError

_PANICS: Final = frozenset({"PanicException", "RustPanic"})
"""The first is a BaseException; both are made as they are needed, and cannot be imported."""


@contextlib.contextmanager
def panics_told(told: Callable[[str], EnvbuildError]) -> Iterator[None]:
    """Turn a panic over what somebody else wrote into an error.

    Args:
        told: Makes the error of the panic's first line.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ not in _PANICS:
            raise
        raise told(str(error).partition("\n")[0][:300]) from None
