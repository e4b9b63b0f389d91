"""A virtual environment over the base's own python, for definitions without Conda's.

Which python a base has is read from the names in its layers; nothing of the base is run.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from envbuild.conda.link import FIXED_TIME, LinkedFile, PythonTarget
from envbuild.conda.tar import Kind, TarReader, parents
from envbuild.errors import BuildError, IntegrityError
from envbuild.pip.distribution import WheelTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from envbuild.digest import Digest

_PYTHON: Final = re.compile(r"(?:.*/)?bin/python(?:3(?:\.\d+)?)?")
_WHITEOUT: Final = re.compile(r"(?:.*/)?\.wh\.[^/]+")
_OPAQUE: Final = ".wh..wh..opq"
_SHORT: Final = re.compile(r"python(3\.\d+)")
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_LINKS: Final = 10
_MAX_NAMES: Final = 500_000
_MAX_PATH: Final = 4096


class BaseLayer(Protocol):
    """A layer of a base."""

    @property
    def digest(self) -> Digest:
        """The digest of its compressed bytes."""

    def chunks(self) -> Iterator[bytes]:
        """Its archive in pieces; read to the end, it is verified."""


@dataclass(frozen=True, slots=True)
class BasePython:
    """A base's python.

    Attributes:
        executable: Its absolute path, as ``/usr/bin/python3.11``.
        version: The version as far as it is known: ``3.11``, or ``3.11.9``.
    """

    executable: str
    version: str

    def target(self, prefix: str) -> WheelTarget:
        """Where wheels are installed for it."""
        short = ".".join(self.version.split(".")[:2])
        return WheelTarget(prefix, PythonTarget(self.version, f"lib/python{short}/site-packages"), venv=True)

    def files(self) -> Iterator[LinkedFile]:
        """The files that make the prefix a virtual environment over it.

        What the base has installed for its python can be imported too; what is in the prefix comes first.
        """
        short = ".".join(self.version.split(".")[:2])
        home = posixpath.dirname(self.executable)
        for name, target in (
            ("python", self.executable),
            ("python3", "python"),
            (f"python{short}", "python"),
        ):
            yield LinkedFile(f"bin/{name}", Kind.SYMLINK, 0o777, FIXED_TIME, target=target)
        text = f"home = {home}\ninclude-system-site-packages = true\nversion = {self.version}\n"
        yield LinkedFile.generated("pyvenv.cfg", text.encode())


def find_python(
    layers: Iterable[BaseLayer],
    variables: Mapping[str, str],
    remembered: Callable[[str], str | None],
    remember: Callable[[str, str], None],
) -> BasePython:
    """The python that a base's ``PATH`` finds.

    What a layer holds is remembered by its digest; a layer is read to its verified end before it is believed.

    Args:
        layers: The base's layers, lowest first.
        variables: The base's environment variables.
        remembered: Tells a fact.
        remember: Keeps a fact.

    Raises:
        BuildError: There is none.
        IntegrityError: A layer is not what its digest says, or no archive.
    """
    names: dict[str, str] = {}
    for layer in layers:
        fact = f"pythons and whiteouts {layer.digest}"
        known = remembered(fact)
        if known is None:
            known = json.dumps(_names(layer), sort_keys=True)
            remember(fact, known)
        _apply(names, json.loads(known))
    for folder in variables.get("PATH", _DEFAULT_PATH).split(":"):
        if (found := _in_folder(names, folder)) is not None:
            return BasePython(found[0], _full(found[1], variables))
    raise BuildError(
        "the base has no python 3 on its PATH, and the definition has no Conda section with one",
        hint="add python to the dependencies, choose a base with python, or install it with a step",
    )


def _names(layer: BaseLayer) -> list[list[str]]:
    """Path, and target where it is a link, of what is named like a python, and of what deletes, in order.

    Raises:
        IntegrityError: The layer is no archive, or has more of them than any real one.
    """
    found: list[list[str]] = []
    chunks = layer.chunks()
    what = f"the base's layer {layer.digest}"
    for member in TarReader(_Chunks(chunks), what).headers():
        path = posixpath.normpath("/" + member.path).lstrip("/")
        kind = member.kind in {Kind.FILE, Kind.SYMLINK, Kind.HARDLINK}
        if kind and (_PYTHON.fullmatch(path) or _WHITEOUT.fullmatch(path)):
            found.append([path, member.target if member.kind is Kind.SYMLINK else ""])
            if len(found) > _MAX_NAMES or len(path) > _MAX_PATH:
                raise IntegrityError(f"{what} has more than {_MAX_NAMES} whiteouts, or one of a longer path")
    for _ in chunks:
        pass
    return found


def _apply(names: dict[str, str], layer: list[list[str]]) -> None:
    """What a layer does to the names below it: deletes first, files and whole folders, then adds."""
    gone = set()
    for path, _ in layer:
        folder, slash, name = path.rpartition("/")
        if name.startswith(".wh."):
            gone.add(folder if name == _OPAQUE else f"{folder}{slash}{name.removeprefix('.wh.')}")
    if "" in gone:
        names.clear()
    for each in list(names) if gone else ():
        if each in gone or not gone.isdisjoint(parents(each)):
            del names[each]
    names.update({path: target for path, target in layer if _PYTHON.fullmatch(path)})


def _in_folder(names: dict[str, str], folder: str) -> tuple[str, str] | None:
    """The python of a folder: the one that ``python3`` or ``python`` is, else the newest."""
    if not folder.startswith("/"):
        return None
    here = folder.strip("/")
    for name in ("python3", "python"):
        path = _followed(names, f"{here}/{name}")
        if path is not None and (found := _SHORT.fullmatch(posixpath.basename(path))):
            return f"/{path}", found[1]
    inside = [path for path in names if posixpath.dirname(path) == here]
    numbered = [(path, short[1]) for path in inside if (short := _SHORT.fullmatch(posixpath.basename(path)))]
    if not numbered:
        return None
    path, newest = max(numbered, key=lambda pair: int(pair[1].partition(".")[2]))
    return f"/{path}", newest


def _followed(names: dict[str, str], path: str) -> str | None:
    for _ in range(_MAX_LINKS):
        target = names.get(path)
        if not target:
            return path if target == "" else None
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target)).lstrip("/")
    return None


def _full(short: str, variables: Mapping[str, str]) -> str:
    """The full version where the base says it, as the official images of Python do."""
    said = variables.get("PYTHON_VERSION", "")
    return said if re.fullmatch(re.escape(short) + r"\.\d+", said) else short


class _Chunks:
    """Chunks as a source to read from; each read gives one, which is no longer than what is asked for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, _size: int, /) -> bytes:
        return next(self._chunks, b"")
