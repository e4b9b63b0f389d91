"""Images that leave the registry: one file that other tools read, or an image in a Docker Engine."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import IO, TYPE_CHECKING, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import CHUNK
from envbuild.errors import BuildError, SpecError, StorageError, StorageFull
from envbuild.oci.manifest import ImageIndex, encode
from envbuild.progress import Event, silent
from envbuild.storage import written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.build.engine import Engine
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registries import Registries
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference

LOADED: Final = "envbuild"
"""The repository under which images stand in an engine: ``envbuild:<the digest's digits>``."""
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


def load_image(
    reference: ImageReference,
    *,
    engine: Engine,
    registries: Registries,
    progress: Progress = silent,
    deadline: Deadline = NO_DEADLINE,
) -> tuple[str, str]:
    """Put an image into an engine.

    Args:
        reference: The image; of one platform.
        engine: Where it is put.
        registries: Opens the repository that the image is in.
        progress: Told of it.
        deadline: When to give up.

    Returns:
        The engine's ID of the image, and the name that it has there.

    Raises:
        BuildError: It is an index, or the engine refused it.
        RegistryError: The image cannot be read.
        IntegrityError: A blob of it is not what its digest says.
    """
    from envbuild.build.steps_image import StepsBase

    registry, manifest, config = _read(reference, registries, deadline)
    name = f"{LOADED}:{reference.digest.hex}"
    progress(Event("load", str(reference), "start"))
    found = engine.load(StepsBase(manifest, config, registry.open_blob), name, deadline=deadline)
    progress(Event("load", str(reference), "done"))
    return found, name


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is built for it.

    Raises:
        SpecError: It is standard output, a folder, or in a folder that is not there.
    """
    if str(path) == "-":
        raise SpecError(
            "an archive is not written to standard output, which carries the reference",
            hint="name a file, as --output image.tar",
        )
    if path.is_dir():
        raise SpecError(f"{path} is a folder", hint=f"name a file in it, or use the workspace oci:{path}")
    if not path.parent.is_dir():
        raise SpecError(f"the folder {path.parent} is not there", hint="make it first")


def write_archive(
    reference: ImageReference,
    path: Path,
    *,
    registries: Registries,
    progress: Progress = silent,
    deadline: Deadline = NO_DEADLINE,
) -> None:
    """Write an image as one OCI archive, whole or not at all: a tar of an OCI image layout.

    The same image gives the same bytes. ``docker load`` reads the file too: beside the layout it has the
    ``manifest.json`` of Docker's own format, which names the same blobs.

    Args:
        reference: The image; of one platform.
        path: The file; one that is there is replaced.
        registries: Opens the repository that the image is in.
        progress: Told of it.
        deadline: When to give up.

    Raises:
        SpecError: The file cannot be one.
        BuildError: It is an index.
        RegistryError: The image cannot be read.
        IntegrityError: A blob of it is not what its digest says.
        StorageError: The file cannot be written.
    """
    check_file(path)
    registry, manifest, config = _read(reference, registries, deadline)
    total = sum(layer.size for layer in manifest.layers)
    progress(Event("output", str(path), "start", total=total))
    with _written(path) as file:
        _write(file, registry, reference, manifest, config)
    progress(Event("output", str(path), "done", total, total))


def _read(
    reference: ImageReference, registries: Registries, deadline: Deadline
) -> tuple[Registry, Manifest, bytes]:
    from envbuild.build.base import MAX_CONFIG, read_all

    registry = registries.open(reference.repository).by(deadline)
    manifest = registry.get_manifest(reference.digest)
    if isinstance(manifest, ImageIndex):
        raise BuildError(
            f"{reference} is an index of images, expected an image of one platform",
            hint="say which with --platform",
        )
    with registry.open_blob(manifest.config) as stream:
        return registry, manifest, read_all(stream, MAX_CONFIG, f"the config of {reference}")


def _write(
    file: IO[bytes], registry: Registry, reference: ImageReference, manifest: Manifest, config: bytes
) -> None:
    """The members in a fixed order: what says what it is, then the blobs by digest."""
    named = manifest.descriptor.annotated(**{_REF_NAME: reference.digest.hex})
    index = ImageIndex.build((named,), {})
    small = {
        "index.json": index.raw,
        "manifest.json": _docker_manifest(reference, manifest),
        "oci-layout": _LAYOUT,
    }
    held = {manifest.descriptor.digest: manifest.raw, manifest.config.digest: config}
    blobs = {blob.digest: blob for blob in (manifest.descriptor, *manifest.blobs)}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(small.items()):
            _add(archive, name, len(content), io.BytesIO(content))
        for folder in ("blobs", "blobs/sha256"):
            archive.addfile(_member(folder, 0, folder=True))
        for digest, blob in sorted(blobs.items()):
            with _opened(registry, blob, held.get(digest)) as stream:
                _add(archive, _path(blob), blob.size, stream)


def _opened(registry: Registry, blob: Descriptor, held: bytes | None) -> IO[bytes]:
    return registry.open_blob(blob) if held is None else io.BytesIO(held)


def _docker_manifest(reference: ImageReference, manifest: Manifest) -> bytes:
    entry = {
        "Config": _path(manifest.config),
        "RepoTags": [f"{LOADED}:{reference.digest.hex}"],
        "Layers": [_path(layer) for layer in manifest.layers],
    }
    return encode([entry])


def _path(blob: Descriptor) -> str:
    return f"blobs/sha256/{blob.digest.hex}"


def _member(name: str, size: int, *, folder: bool = False) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o755 if folder else 0o644
    member.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return member


def _add(archive: tarfile.TarFile, name: str, size: int, stream: IO[bytes]) -> None:
    """Add a file; its stream is read to the end, where a verified one says whether it was right."""
    archive.addfile(_member(name, size), stream)
    while stream.read(CHUNK):
        pass


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when all of it is on the disk; nothing is left where that fails.

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        with written_whole(path) as file:
            yield file
    except OSError as error:
        import errno

        kind = StorageFull if error.errno in {errno.ENOSPC, errno.EDQUOT} else StorageError
        raise kind(f"{path} cannot be written: {error.strerror}") from None
