"""The times in layers that an engine made, so that equal content gives equal bytes."""

from __future__ import annotations

import hashlib
import tarfile
from typing import TYPE_CHECKING, Final

from envbuild.build.steps_image import NewLayer
from envbuild.conda.link import FIXED_TIME
from envbuild.digest import Digest

if TYPE_CHECKING:
    from envbuild.build.steps_image import BuiltSteps

SLACK: Final = 3600.0
"""Seconds by which an engine's clock may be behind ours."""

_MOUNT_POINTS: Final = frozenset({"dev", "etc", "proc", "sys"})
"""Folders that an engine makes in an image without them, to mount something there while it builds."""

_TIMES: Final = ("mtime", "atime", "ctime")


def settled(built: BuiltSteps, started: float) -> tuple[NewLayer, ...]:
    """The layers, with the times of whatever the build wrote set to 1980; those without entries are left out.

    Empty folders that only the engine wanted are left out as well. Times from before the build are kept: they
    came with the files.

    Args:
        built: What an engine built; the layers given back are gone when it is closed.
        started: When the build began, in seconds since 1970.
    """
    layers = (_settled(layer, started - SLACK) for layer in built.layers)
    return tuple(layer for layer in layers if layer is not None)


def _settled(layer: NewLayer, since: float) -> NewLayer | None:
    path = layer.path.with_name(f"{layer.path.name}-settled")
    with layer.open() as stream, tarfile.open(fileobj=stream) as source:
        entries = source.getmembers()
        used = {entry.name.partition("/")[0] for entry in entries if "/" in entry.name}
        kept = [entry for entry in entries if entry.name not in _MOUNT_POINTS - used]
        if not kept:
            return None
        with tarfile.open(path, "x", format=tarfile.PAX_FORMAT) as target:
            for entry in kept:
                entry.mtime = FIXED_TIME if entry.mtime >= since else int(entry.mtime)
                headers = entry.pax_headers.items()
                entry.pax_headers = {name: text for name, text in headers if name not in _TIMES}
                target.addfile(entry, source.extractfile(entry) if entry.isreg() else None)
    with path.open("rb") as written:
        return NewLayer(Digest(hashlib.file_digest(written, "sha256").hexdigest()), path)
