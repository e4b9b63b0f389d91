"""Things that several users hold together, as the connections to one host; the last to leave closes them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


class Shared:
    """Values by name, each made for the first that asks. May be used by several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[Hashable, list[Any]] = {}

    def take(self, name: Hashable, make: Callable[[], Any]) -> Lease:
        """Hold a value until the lease is closed."""
        with self._guard:
            if name not in self._held:
                self._held[name] = [make(), 0]
            self._held[name][1] += 1
            return Lease(self, name, self._held[name][0])

    def leave(self, name: Hashable) -> Any:
        """One user less; the value where that was the last one, else None."""
        with self._guard:
            self._held[name][1] -= 1
            return self._held.pop(name)[0] if self._held[name][1] == 0 else None


class Lease:
    """A value that is held together with others; most callers want :meth:`Shared.take`.

    Attributes:
        value: The value.
    """

    def __init__(self, shared: Shared, name: Hashable, value: Any) -> None:
        self.value = value
        self._shared = shared
        self._name = name
        self._guard = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Give the value back; its ``close`` is called by the last one. Closing twice is harmless."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
        if (last := self._shared.leave(self._name)) is not None:
            last.close()
