"""The place in a base where the environment goes: what is there stays as it is, or is refused.

Layers of packages are shared by all bases, so they hold the folder above the prefix with the usual mode and
owner, and take it for a folder. Engines put an upper layer's entry over whatever is below: a link would be
replaced, with all that is behind it, and another mode would be lost.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from envbuild.build.assemble import Layer
from envbuild.build.base import GlibcSearch, decompressed, finish, glibc_fact
from envbuild.build.upload import in_parallel
from envbuild.conda.layer import compress
from envbuild.conda.link import FIXED_TIME
from envbuild.conda.tar import Kind, TarReader
from envbuild.digest import CHUNK
from envbuild.errors import IntegrityError, NotFound, SpecError
from envbuild.oci.registry import reread

if TYPE_CHECKING:
    from envbuild.build.base import BaseImage
    from envbuild.build.upload import Upload
    from envbuild.conda.layer import Compression
    from envbuild.conda.tar import Header
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.index import Index
    from envbuild.inflate import Inflated

TITLE: Final = "the base's own folder"
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..opq"
"""An opaque whiteout's name behind the first ``.wh.``."""
_MANY: Final = 32
"""So many names in the prefix are remembered of a layer."""
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Node:
    """What an image has at a path.

    Attributes:
        kind: ``folder``, ``link`` or ``file``.
        target: Where a link points.
        mode: Permission bits.
        uid: Its user.
        gid: Its group.
    """

    kind: str
    target: str = ""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


USUAL: Final = Node("folder")
"""The folder above the prefix as package layers have it, and as engines make one that is left out."""


@dataclass(slots=True)
class _Seen:
    """What one layer says of the place, or what layers come to.

    Attributes:
        above: The folder above the prefix, or what stands for it.
        holds: Whether a layer has anything in that folder; its own entry may be left out then.
        prefix: What is at the prefix itself.
        inside: Names in the prefix.
        gone: What a layer takes from those below it: ``above``, ``around`` (all that is in the folder above),
            ``prefix``, ``inside``, and names in the prefix as ``/NAME``.
    """

    above: Node | None = None
    holds: bool = False
    prefix: Node | None = None
    inside: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)

    def add(self, path: str, node: Node, prefix: str) -> None:
        """Take in a member of the layer."""
        above = posixpath.dirname(prefix)
        folder, name = posixpath.split(path)
        if name.startswith(_WHITEOUT):
            self._remove(folder, name.removeprefix(_WHITEOUT), prefix)
            return
        self.holds |= path.startswith(f"{above}/")
        if path == above:
            self.above = node
        elif path == prefix:
            self.prefix = node
        elif path.startswith(f"{prefix}/") and len(self.inside) < _MANY:
            self.inside.add(path[len(prefix) + 1 :].partition("/")[0])

    def _remove(self, folder: str, name: str, prefix: str) -> None:
        above = posixpath.dirname(prefix)
        if name == _OPAQUE:
            all_in = {posixpath.dirname(above): "above", above: "around", prefix: "inside"}
            self.gone |= {all_in[folder]} if folder in all_in else set()
        elif posixpath.join(folder, name) in {above, prefix}:
            self.gone.add("prefix" if folder == above else "above")
        elif folder == prefix and len(self.gone) < _MANY:
            self.gone.add(f"/{name}")

    def over(self, below: _Seen) -> _Seen:
        """What an image has whose layers come to ``below``, and this one is on top of them."""
        above, prefix, inside = below.above, below.prefix, set(below.inside)
        if self.gone & {"above", "around", "prefix"}:
            above, prefix = None if "above" in self.gone else above, None
        if prefix is None or "inside" in self.gone:
            inside = set()
        inside -= {name[1:] for name in self.gone if name.startswith("/")}
        if self.above is not None or (self.holds and not _is_folder(above)):
            if not (_is_folder(above) and _is_folder(self.above)):
                prefix, inside = None, set()
            above = self.above or USUAL
        if self.prefix is not None or (self.inside and not _is_folder(prefix)):
            if not (_is_folder(prefix) and _is_folder(self.prefix)):
                inside = set()
            prefix = self.prefix or USUAL
        return _Seen(above, below.holds or self.holds, prefix, inside | self.inside)

    def to_json(self) -> str:
        """What is remembered of a layer."""
        nodes = [list(astuple(node)) if node is not None else None for node in (self.above, self.prefix)]
        return json.dumps([*nodes, self.holds, sorted(self.inside), sorted(self.gone)])

    @classmethod
    def read(cls, text: str) -> Self:
        """Read :meth:`to_json`'s text."""
        above, prefix, holds, inside, gone = json.loads(text)
        nodes = [Node(*node) if node is not None else None for node in (above, prefix)]
        return cls(nodes[0], holds, nodes[1], set(inside), set(gone))


def _is_folder(node: Node | None) -> bool:
    return node is not None and node.kind == "folder"


def folder_above(base: BaseImage, prefix: str, index: Index, jobs: int, deadline: Deadline) -> Node | None:
    """The folder above the prefix as a base has it, where package layers would change its mode or owner.

    Each layer of the base is read once on a machine: what is found is remembered by the layer's digest.

    Args:
        base: The base with its steps.
        prefix: Where the environment goes, as ``/opt/env``.
        index: Remembers what layers hold.
        jobs: How many layers are read at once.
        deadline: When to give up.

    Raises:
        DeadlineExceeded: The deadline passed.
        SpecError: The folder above is none, or there is something at the prefix already.
        IntegrityError: A layer is not what its digest says, or no archive.
    """
    place = prefix.lstrip("/")

    def seen(layer: Descriptor) -> _Seen:
        fact = f"place {place} {layer.digest}"
        known = index.fact(fact)
        if known is None:
            read, glibc = reread(partial(_read, base, layer, place, deadline))
            known = read.to_json()
            index.put_fact(fact, known)
            index.put_fact(
                *glibc_fact(layer, glibc)
            )  # a solve asks for it, and need not read the layer again
        return _Seen.read(known)

    found = _Seen()
    for each in in_parallel(jobs, seen, base.manifest.layers):
        found = each.over(found)
    _check(found, base, prefix)
    return found.above if found.above not in {None, USUAL} else None


def _check(found: _Seen, base: BaseImage, prefix: str) -> None:
    above = posixpath.dirname(prefix)
    if found.above is not None and not _is_folder(found.above):
        raise SpecError(
            f"the base {base.reference} has {_shown(found.above)} at {above}, expected a folder for {prefix}",
            hint=f"make it a folder in a step (RUN rm {above} && mkdir {above}), or choose another base",
        )
    if found.prefix is None or (_is_folder(found.prefix) and not found.inside):
        return
    names = sorted(found.inside)
    holds = f" with {', '.join([*names[:_SHOWN], *(['…'] * (len(names) > _SHOWN))])}" if names else ""
    raise SpecError(
        f"the base {base.reference} has {_shown(found.prefix)}{holds} at {prefix}, expected nothing",
        hint=f"move it away in a step (RUN mv {prefix} {above}/NAME), or choose another base",
    )


def _shown(node: Node) -> str:
    return f"a link to {node.target}" if node.kind == "link" else f"a {node.kind}"


def _read(base: BaseImage, layer: Descriptor, prefix: str, deadline: Deadline) -> tuple[_Seen, str | None]:
    """What a layer says of the place, and of glibc; read to its verified end."""
    found, search = _Seen(), GlibcSearch()
    try:
        opened = base.open_layer(layer)
    except NotFound as error:
        raise IntegrityError(f"a layer of the base {base.reference} is missing: {error.message}") from None
    with opened as stream:
        archive = _Searched(decompressed(stream, layer.media_type, deadline), search)
        try:
            for member in TarReader(archive, f"the base's layer {layer.digest}").headers():
                found.add(posixpath.normpath(f"/{member.path}").lstrip("/"), _node(member), prefix)
            while archive.read(CHUNK):
                pass
        finally:
            finish(stream, deadline)
    return found, search.found


@dataclass(frozen=True, slots=True)
class _Searched:
    """A layer's tar, in which glibc is looked for as it passes by."""

    tar: Inflated
    search: GlibcSearch

    def read(self, size: int, /) -> bytes:
        content = self.tar.read(size)
        self.search.sees(content)
        return content


def _node(member: Header) -> Node:
    if member.kind is Kind.SYMLINK:
        return Node("link", member.target, member.mode, member.uid, member.gid)
    kind = "folder" if member.kind is Kind.DIRECTORY else "file"
    return Node(kind, "", member.mode, member.uid, member.gid)


def as_it_was(
    folder: Node | None, prefix: str, upload: Upload, compression: Compression
) -> tuple[Layer, ...]:
    """The layer, put into the target, that gives the folder above the prefix its mode and owner back.

    Args:
        folder: The folder; None where nothing has to be given back.
        prefix: Where the environment is.
        upload: The blobs.
        compression: How the layer is compressed.
    """
    if folder is None:
        return ()
    entry = tarfile.TarInfo(f"{posixpath.dirname(prefix).lstrip('/')}/")
    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, folder.mode, FIXED_TIME
    entry.uid, entry.gid = folder.uid, folder.gid
    content, out = entry.tobuf(tarfile.PAX_FORMAT) + bytes(2 * tarfile.BLOCKSIZE), io.BytesIO()
    descriptor, diff_id, _ = compress([content], out, compression)
    upload.put_bytes(descriptor, out.getvalue(), TITLE)
    return (Layer(descriptor, diff_id, TITLE),)
