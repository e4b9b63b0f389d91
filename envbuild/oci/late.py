"""Libraries that another library imports and that we never use: imported when somebody does."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_GUARD = threading.RLock()


class _Late(ModuleType):
    """Stands for a module and imports it when one of its names is asked for."""

    def __getattr__(self, name: str) -> Any:
        with _GUARD:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def imported_late(name: str) -> Iterator[None]:
    """What is imported inside the block gets a module that is imported at its first use.

    Other importers are not concerned: afterwards the name is as if nobody had imported it.
    """
    if name in sys.modules:
        yield
        return
    late = sys.modules[name] = _Late(name)
    try:
        yield
    finally:
        with _GUARD:
            if sys.modules.get(name) is late:
                del sys.modules[name]
