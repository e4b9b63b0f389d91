"""Threads that wait to write the tags of a layout: whoever has the turn writes those of all that wait.

``index.json`` is one file: each tag means to write all tags anew, and to wait for the disk. Threads that
write many tags at once share that.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.deadline import Deadline
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.reference import Tag


@dataclass(eq=False, slots=True)
class Wish:
    """A tag to be written.

    Attributes:
        tag: The tag.
        manifest: What it shall name.
        granted: Whether it is written.
    """

    tag: Tag
    manifest: Manifest | ImageIndex
    granted: bool = False


class Turns:
    """The wishes of one process for one layout. May be used by several threads."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._waiting: list[Wish] = []

    def grant(self, wish: Wish, write: Callable[[list[Wish]], None], deadline: Deadline, what: str) -> None:
        """Have a wish written, with all others that wait or by one of them.

        Args:
            wish: The wish.
            write: Writes wishes, all or none; what it raises is the caller's, and the others try again.
            deadline: When to give up.
            what: Names the layout for messages.

        Raises:
            DeadlineExceeded: Others wrote for too long.
        """
        with self._guard:
            self._waiting.append(wish)
        try:
            while not self._turn.acquire(timeout=deadline.slice()):
                deadline.check(f"others wrote the tags of {what}")
            try:
                if not wish.granted:
                    self._write(write)
            finally:
                self._turn.release()
        finally:
            with self._guard:
                self._waiting = [each for each in self._waiting if each is not wish]

    def _write(self, write: Callable[[list[Wish]], None]) -> None:
        with self._guard:
            taken = list(self._waiting)
        write(taken)
        for each in taken:
            each.granted = True
        with self._guard:
            self._waiting = [each for each in self._waiting if not each.granted]
