"""Archives that go to a Docker Engine and come from it: images (as in ``docker save``) and build contexts.

Everything streams: an image's layers are never held in memory, and compressed layers that the engine can
read go to it as they are. Source: the "docker-archive" format (``manifest.json``) of moby's ``image/spec``.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
import tempfile
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Final

from envbuild.build.base import LAYER_BOUNDS
from envbuild.digest import CHUNK, Digest, VerifyingReader
from envbuild.errors import BuildError, BuildLimit, IntegrityError
from envbuild.inflate import Codec, Inflated, codec_of
from envbuild.spec.steps import CONTEXT_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from envbuild.digest import Descriptor

DOCKERFILE: Final = ".envbuild.Dockerfile"
"""The Dockerfile's name beside the folder of the context."""

_BLOCK = tarfile.BLOCKSIZE
_SMALL: Final = 1 << 20
"""Known layers up to this size are kept: a step that changes nothing makes the same empty layer again."""


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """A layer of an unpacked image archive.

    Attributes:
        diff_id: The digest of the uncompressed tar.
        path: The uncompressed tar, or None for a big layer that was known already and not kept.
        needles: The names of the needles that were found in it.
    """

    diff_id: Digest
    path: Path | None
    needles: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image archive, unpacked: its config's bytes and its layers, lowest first."""

    config: bytes
    layers: tuple[SavedLayer, ...]


def image_chunks(
    config: bytes, layers: Sequence[Descriptor], open_blob: Callable[[Descriptor], IO[bytes]], tag: str
) -> Iterator[bytes]:
    """The bytes of a docker-archive for ``docker load``.

    Args:
        config: The image's config.
        layers: The layers' descriptors, lowest first: tar, gzip or zstd.
        open_blob: Opens a layer; what it gives is verified here.
        tag: The name that the image shall have in the engine.

    Raises:
        IntegrityError: A layer is not what its descriptor says.
    """
    name = f"{Digest.of(config).hex}.json"
    yield from _member(name, config)
    for layer in dict.fromkeys(layers):
        yield from _layer_member(layer, open_blob)
    entry = {"Config": name, "RepoTags": [tag], "Layers": [_layer_name(layer) for layer in layers]}
    yield from _member("manifest.json", json.dumps([entry]).encode())
    yield bytes(2 * _BLOCK)


def context_chunks(
    context: IO[bytes] | None, dockerfile: str, more: Mapping[str, bytes] = MappingProxyType({})
) -> Iterator[bytes]:
    """The bytes of what an engine gets: the entries of ``context``, a tar, in a folder; then the Dockerfile.

    No instruction reads anything but that folder, so nothing beside it is ever copied, and no engine takes a
    ``.dockerignore`` or ``.containerignore`` in it for its own.

    Args:
        context: The files of the steps, or None.
        dockerfile: The text of the Dockerfile, which is called :data:`DOCKERFILE`.
        more: Further files by name, beside the Dockerfile.

    Raises:
        BuildError: The context is not a tar, or has an entry outside its root.
    """
    folder = tarfile.TarInfo(CONTEXT_FOLDER)
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    yield folder.tobuf(tarfile.PAX_FORMAT)
    if context is not None:
        try:
            with tarfile.open(fileobj=context, mode="r|") as files:
                for entry in files:
                    yield from _context_member(files, entry)
        except tarfile.TarError as error:
            raise BuildError(f"the build context is not a tar archive: {error}") from None
    for name, content in ((DOCKERFILE, dockerfile.encode()), *more.items()):
        yield from _member(name, content)
    yield bytes(2 * _BLOCK)


def _context_member(files: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    for name in (entry.name, *([entry.linkname] if entry.islnk() else [])):
        path = posixpath.normpath(name)
        if path.startswith(("/", "../")) or path == "..":
            raise BuildError(f"the build context may not have an entry named {name!r}")
    # a name in the extended header would win over the one that is set here
    entry.pax_headers = {key: text for key, text in entry.pax_headers.items() if not key.endswith("path")}
    entry.name = f"{CONTEXT_FOLDER}/{entry.name}"
    if entry.islnk():
        entry.linkname = f"{CONTEXT_FOLDER}/{entry.linkname}"
    if entry.issym() or entry.isdir() or entry.islnk():
        yield entry.tobuf(tarfile.PAX_FORMAT)
    elif entry.isreg() and (content := files.extractfile(entry)) is not None:
        yield entry.tobuf(tarfile.PAX_FORMAT)
        yield from _padded(content, entry.size)
    else:
        raise BuildError(f"the build context's {entry.name!r} is neither a file, a folder nor a link")


def _layer_name(layer: Descriptor) -> str:
    return f"{layer.digest.hex}/layer.tar"


def _layer_member(layer: Descriptor, open_blob: Callable[[Descriptor], IO[bytes]]) -> Iterator[bytes]:
    with VerifyingReader(open_blob(layer), layer, f"layer {layer.digest}") as blob:
        if not layer.media_type.endswith("zstd"):
            yield _header(_layer_name(layer), layer.size)
            yield from _padded(blob, layer.size)
            return
        with tempfile.TemporaryFile(prefix="envbuild-") as plain:  # engines before 23 cannot read zstd
            packed = io.BufferedReader(blob)
            for chunk in Inflated(packed, Codec.ZSTD, LAYER_BOUNDS, f"layer {layer.digest}"):
                plain.write(chunk)
            while packed.read(CHUNK):  # to its end, where it is verified
                pass
            size = plain.tell()
            plain.seek(0)
            yield _header(_layer_name(layer), size)
            yield from _padded(plain, size)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.PAX_FORMAT)


def _member(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content)) + content + bytes(-len(content) % _BLOCK)


def _padded(stream: Any, size: int) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk
    yield bytes(-size % _BLOCK)


def unpack_image(
    stream: IO[bytes],
    folder: Path,
    *,
    known: Collection[Digest] = (),
    needles: Callable[[bytes], frozenset[str]] = lambda _: frozenset(),
    overlap: int = 0,
    max_bytes: int | None = None,
) -> SavedImage:
    """Unpack what ``docker save`` gives for one image, reading it once.

    Args:
        stream: The archive.
        folder: An empty folder for the layers; entry names of the archive are never used as paths.
        known: Diff IDs of layers that need not be kept if they are big.
        needles: Finds forbidden things in a piece of a layer and gives their names.
        overlap: How many bytes the pieces given to ``needles`` overlap.
        max_bytes: How many bytes the kept layers may have in all.

    Raises:
        IntegrityError: The archive is not one image, or a layer is not what the config says.
        BuildLimit: The kept layers have more bytes than ``max_bytes``.
    """
    spool = _Spool(folder, frozenset(known), needles, overlap, max_bytes)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as files:
            for entry in files:
                spool.take(files, entry)
    except tarfile.TarError as error:
        raise IntegrityError(f"the engine's image archive cannot be read: {error}") from None
    listed = spool.manifest()
    config = spool.read(str(listed.get("Config")))
    layers = tuple(
        spool.layer(str(name), diff_id)
        for name, diff_id in zip(listed.get("Layers") or (), diff_ids(config), strict=True)
    )
    size = sum(
        layer.path.stat().st_size for layer in layers if layer.path is not None and layer.diff_id not in known
    )
    check_size(size, max_bytes)
    return SavedImage(config, layers)


def check_size(size: int, max_bytes: int | None) -> None:
    """Hold the bytes of new layers against the limit.

    Raises:
        BuildLimit: There are more.
    """
    if max_bytes is not None and size > max_bytes:
        raise BuildLimit(
            f"the steps wrote {size} bytes, at most {max_bytes} are allowed",
            hint="raise step_disk, or make the steps write less",
        )


def diff_ids(config: bytes) -> tuple[Digest, ...]:
    """The diff IDs in an image config, lowest first.

    Raises:
        IntegrityError: The config has none.
    """
    try:
        return tuple(Digest.parse(text) for text in json.loads(config)["rootfs"]["diff_ids"] or ())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise IntegrityError("the image's config has no list of diff IDs") from None


@dataclass(frozen=True, slots=True)
class _Spooled:
    path: Path
    digest: Digest
    needles: frozenset[str]


class _Spool:
    """Keeps the files of an archive under numbers, and its links as links."""

    def __init__(
        self,
        folder: Path,
        known: frozenset[Digest],
        needles: Callable[[bytes], frozenset[str]],
        overlap: int,
        max_bytes: int | None,
    ) -> None:
        self._folder, self._known, self._needles, self._overlap = folder, known, needles, overlap
        self._max_bytes, self._kept = max_bytes, 0
        self._files: dict[str, _Spooled] = {}
        self._links: dict[str, str] = {}
        self._count = 0

    def take(self, files: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        name = posixpath.normpath(entry.name)
        if entry.issym():
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.linkname))
        elif entry.islnk():
            self._links[name] = posixpath.normpath(entry.linkname)
        elif entry.isreg() and (content := files.extractfile(entry)) is not None:
            small = entry.size <= _SMALL
            fits = small or self._max_bytes is None or self._kept + entry.size <= self._max_bytes
            self._files[name] = self._write(content) if fits else self._passed(content)
            if self._files[name].digest not in self._known:
                self._kept += 0 if small else entry.size
                check_size(self._kept, self._max_bytes)
            elif fits and not small:
                self._files[name].path.unlink()

    def _write(self, content: Any) -> _Spooled:
        self._count += 1
        path = self._folder / str(self._count)
        seen, found, before = hashlib.sha256(), frozenset[str](), b""
        with path.open("xb") as out:
            while chunk := content.read(CHUNK):
                seen.update(chunk)
                out.write(chunk)
                found |= self._needles(before + chunk)
                before = chunk[-self._overlap :] if self._overlap else b""
        return _Spooled(path, Digest(seen.hexdigest()), found)

    def _passed(self, content: Any) -> _Spooled:
        """Something too big to be kept; of the base's layers only the digest is needed."""
        self._count += 1
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return _Spooled(self._folder / str(self._count), Digest(digest), frozenset())

    def _find(self, name: str) -> _Spooled:
        name = posixpath.normpath(name)
        for _ in range(8):
            if name in self._files:
                return self._files[name]
            name = self._links.get(name, name)
        raise IntegrityError(f"the engine's image archive has no {name!r}")

    def read(self, name: str) -> bytes:
        return self._find(name).path.read_bytes()

    def manifest(self) -> dict[str, Any]:
        try:
            entries = json.loads(self.read("manifest.json"))
        except ValueError:
            entries = None
        if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
            raise IntegrityError("the engine's image archive does not hold exactly one image")
        if len(entries[0].get("Layers") or ()) != len(diff_ids(self.read(str(entries[0].get("Config"))))):
            raise IntegrityError("the engine's image archive has more or fewer layers than its config")
        return entries[0]

    def layer(self, name: str, diff_id: Digest) -> SavedLayer:
        spooled = self._find(name)
        if diff_id in self._known and not spooled.path.exists():
            return SavedLayer(diff_id, None)
        if spooled.digest != diff_id:
            spooled = self._inflate(spooled)
        if spooled.digest != diff_id:
            raise IntegrityError(
                f"the engine's layer {name!r} has digest {spooled.digest}, its config says {diff_id}"
            )
        return SavedLayer(diff_id, spooled.path, spooled.needles)

    def _inflate(self, spooled: _Spooled) -> _Spooled:
        """The containerd store saves layers compressed."""
        with spooled.path.open("rb") as packed:
            codec = codec_of(packed.read(8))
            if codec not in {Codec.GZIP, Codec.ZSTD}:
                return spooled
            packed.seek(0)
            plain = Inflated(packed, codec, LAYER_BOUNDS, f"the engine's layer {spooled.digest}")
            return self._write(plain)
