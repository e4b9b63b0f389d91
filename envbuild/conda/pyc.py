"""Compiled modules of ``noarch: python`` packages: whether there are any, where they stand, and their order.

They are made while a package is linked, by the interpreter of the environment's own python package. Their
bytes follow from the module's text, its path in the image and that package, so every machine makes the same.
"""

from __future__ import annotations

import os
import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from envbuild.errors import SpecError
from envbuild.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from concurrent.futures import Future

    from envbuild.lock import PackageRecord

NO_PYC: Final = "none"
"""The mode of a layer without compiled modules."""

PYC_FORMAT: Final = 1
"""The version of the compiled form: raised by whatever changes the bytes that an interpreter gives."""

_AHEAD: Final = 64
"""How many modules are written before the first one's compiled form; it decides the layer's order."""

_OLDEST: Final = 11
_OTHERS: Final = re.compile(r"pypy|graalpy|cp\d+t(?![a-z])")


class Compiler(Protocol):
    """Compiles modules, several at once."""

    def compile(self, source: bytes, path: str) -> Future[bytes]:
        """The compiled file of a module; empty where it is none that the interpreter can read.

        Args:
            source: The module's text.
            path: Its absolute path in the image.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pyc:
    """How modules are compiled.

    Attributes:
        mode: What the layer key says of it.
        tag: What stands in the names of compiled files, as ``cpython-311``.
        compiler: Does it.
    """

    mode: str
    tag: str
    compiler: Compiler = field(compare=False, repr=False)


def can_compile(python: PackageRecord) -> bool:
    """Whether that python compiles to the same bytes each time, which decides the layer key.

    It must be a CPython of 3.11 or newer, with the global lock: before 3.11 the order of a set's members in a
    compiled file depended on addresses.
    """
    found = re.match(r"3\.(\d+)", python.version)
    return found is not None and int(found[1]) >= _OLDEST and not _OTHERS.search(python.build)


def is_own(platform: Platform) -> bool:
    """Whether this machine runs programs of a platform."""
    try:
        return platform == Platform.parse(f"linux/{os.uname().machine}")
    except SpecError:
        return False


def pyc_mode(python: PackageRecord) -> str:
    """The mode of layers whose modules that python compiles."""
    return f"unchecked-hash/{PYC_FORMAT}/{python.sha256.hex}"


@dataclass
class Modules:
    """The modules of one package that are compiled while it is linked.

    Attributes:
        pyc: How.
        prefix: The prefix in the image.
        site_packages: Where the python keeps its packages, relative to the prefix.
        taken: Paths of the package's own files; what it has compiled itself stays.
    """

    pyc: Pyc
    prefix: str
    site_packages: str
    taken: Collection[str]
    _waiting: deque[tuple[str, Future[bytes]]] = field(default_factory=deque)

    def places(self) -> frozenset[str]:
        """Where the compiled files of the package's modules may be."""
        return frozenset(place for path in self.taken if (place := self.place(path)) is not None)

    def place(self, path: str) -> str | None:
        """Where a file's compiled form stands; None where it has none."""
        folder, _, name = path.rpartition("/")
        if not name.endswith(".py") or not f"{folder}/".startswith(f"{self.site_packages}/"):
            return None
        place = f"{folder}/__pycache__/{name[:-3]}.{self.pyc.tag}.pyc"
        return None if place in self.taken else place

    def add(self, path: str, source: bytes) -> None:
        """Have a module compiled."""
        place = self.place(path)
        if place is not None:
            future = self.pyc.compiler.compile(source, f"{self.prefix}/{path}")
            self._waiting.append((place, future))

    def ready(self, *, last: bool = False) -> Iterator[tuple[str, bytes]]:
        """The compiled files to write at this point, in the order of their modules.

        Args:
            last: Whether no module follows.

        Raises:
            BuildError: The interpreter does not work.
        """
        while len(self._waiting) > (0 if last else _AHEAD):
            place, future = self._waiting.popleft()
            if content := future.result():
                yield place, content
