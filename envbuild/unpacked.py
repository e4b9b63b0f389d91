"""Whether layers are what a config and an engine take them for: archives with a known digest and sound paths.

A layer is read once, for its own digest and for that of the tar in it. What a layer may hold is what engines
unpack: base images have devices, absolute names and whatever else distributions ship, so less is refused here
than in the layers that envbuild writes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Final, cast

from envbuild.build.base import decompressed
from envbuild.conda.tar import WHITEOUT, Kind, TarReader
from envbuild.digest import CHUNK, Digest
from envbuild.errors import IntegrityError
from envbuild.oci.registry import reread

if TYPE_CHECKING:
    from envbuild.conda.tar import Header
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.inflate import Source
    from envbuild.oci.registry import Registry

_MOST_MEMBERS: Final = 5_000_000
_MAX_NAME: Final = 255
_MAX_PATH: Final = 4096
_NODES: Final = b"346"
"""Types of devices and pipes."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a layer unpacks to.

    Attributes:
        diff_id: The digest of its tar.
        size: The tar's bytes.
        fault: What is wrong with it as an archive; empty for nothing.
    """

    diff_id: str
    size: int
    fault: str = ""


def unpacked(registry: Registry, layer: Descriptor, deadline: Deadline) -> Unpacked:
    """Read a layer to its end and look at what it unpacks to; nothing is kept.

    Args:
        registry: The repository.
        layer: The layer.
        deadline: When to give up.

    Raises:
        NotFound: It is missing.
        IntegrityError: Its bytes are not those of its digest and size.
        DeadlineExceeded: The time ran out.
    """
    return reread(partial(_unpacked, registry, layer, deadline))


def _unpacked(registry: Registry, layer: Descriptor, deadline: Deadline) -> Unpacked:
    with registry.open_blob(layer) as stream:
        packed = _Packed(stream)
        tar = _Hashed(decompressed(cast("IO[bytes]", packed), layer.media_type, deadline))
        fault = ""
        try:
            _look(tar)
        except IntegrityError as error:
            if packed.fault is not None:
                raise packed.fault from None
            fault = error.message
        while stream.read(CHUNK):
            deadline.check("reading a layer")
    return Unpacked(str(Digest(tar.hash.hexdigest())), tar.size, fault)


def _look(tar: _Hashed) -> None:
    reader = TarReader(tar, "it")
    for count, member in enumerate(reader.headers(), 1):
        if count > _MOST_MEMBERS:
            raise IntegrityError(f"it has more than {_MOST_MEMBERS} members")
        _check_member(member)
    for piece in reader.rest():
        if piece.strip(b"\0"):
            raise IntegrityError("it goes on behind the end of its archive, which some readers never see")


def _check_member(member: Header) -> None:
    """Refuse what leads out of an image's root, deletes what it cannot name, or no file system takes."""
    if member.kind is None and member.flag not in _NODES:
        raise IntegrityError(f"it has {member.path!r:.200} of tar type {member.flag!r}")
    _check_path(member.path)
    if member.kind is Kind.HARDLINK:
        _check_path(member.target)


def _check_path(path: str) -> None:
    names = path.strip("/").removeprefix("./").split("/")
    last = names[-1]
    if ".." in names:
        raise IntegrityError(f"it has the path {path!r:.200}, which leads out of the image")
    if last.startswith(WHITEOUT) and last[len(WHITEOUT) :] in {"", ".", ".."}:
        raise IntegrityError(f"it has the path {path!r:.200}, which deletes a folder itself")
    content = path.encode("utf-8", "surrogateescape")
    if not content or len(content) > _MAX_PATH or max(map(len, content.split(b"/"))) > _MAX_NAME:
        raise IntegrityError(f"it has the path {path!r:.200}, which no file system takes")


class _Packed:
    """A blob's stream that remembers whether the fault was its own."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.fault: IntegrityError | None = None

    def read(self, size: int, /) -> bytes:
        try:
            return self._stream.read(size)
        except IntegrityError as error:
            self.fault = error
            raise


class _Hashed:
    """A tar that is hashed as it passes by."""

    def __init__(self, tar: Source) -> None:
        self._tar = tar
        self.hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        content = self._tar.read(size)
        self.hash.update(content)
        self.size += len(content)
        return content
