"""Images that only a Docker Engine holds, as bases: brought into a layout on disk under a digest.

An engine has no manifest for what it built, and its IDs mean the config with one kind of storage and a
manifest with another. So a manifest is made of what all of them have: the config's bytes as they are, and
each layer as the uncompressed tar that the config's ``diff_ids`` name. Nothing else goes into it, so its
digest is the same whatever the engine is, how it stores images and how it compresses them.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from envbuild.digest import Descriptor
from envbuild.errors import IntegrityError, SpecError, StorageError
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER, Manifest
from envbuild.oci.registry import find_manifest
from envbuild.reference import ImageReference, Repository, Tag
from envbuild.storage import key_lock, private_folder

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.build.archive import SavedImage, SavedLayer
    from envbuild.build.engine_http import EngineHttp
    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.oci.registry import Registry
    from envbuild.reference import TaggedReference

FOLDER: Final = "engine-images"
"""The layout's name in the cache folder; it may be deleted whenever nothing is built."""


@dataclass(frozen=True, slots=True)
class LocalImages:
    """The images of an engine.

    Attributes:
        cache_dir: The cache folder, which holds the layout.
        docker_host: The engine's address; None for the usual places.
    """

    cache_dir: Path
    docker_host: str | None = field(default=None, repr=False)

    def bring(
        self, reference: ImageReference | TaggedReference, deadline: Deadline
    ) -> tuple[Registry, Digest]:
        """The layout, and the digest that the image has in it.

        A tag is asked of the engine each time: what is built here today is wanted today. The image is read
        from the engine once. A digest that the layout has needs no engine.

        Raises:
            SpecError: The engine has no such image.
            BuildError: No engine answered, or it refused.
            IntegrityError: The engine gave something else than the image.
            DeadlineExceeded: The time ran out.
        """
        from envbuild.build.engine import Engine

        if isinstance(reference, ImageReference) and self._complete(reference.digest):
            return self._layout, reference.digest
        with Engine.connect(self.docker_host) as engine:
            if isinstance(reference, ImageReference):
                return self._layout, self._pinned(engine.http, reference, deadline)
            seen = engine.http.inspect(f"{reference.repository.path}:{reference.tag}")
            if seen is None:
                raise SpecError(
                    f"the Docker Engine at {engine.http.endpoint} has no image {reference}",
                    hint="build or pull it there; `docker image ls` tells which there are",
                )
            return self._layout, self._brought(engine.http, str(seen["Id"]), deadline)

    @property
    def _layout(self) -> LayoutRegistry:
        return LayoutRegistry(Repository("", str(private_folder(private_folder(self.cache_dir) / FOLDER))))

    def _pinned(self, engine: EngineHttp, reference: ImageReference, deadline: Deadline) -> Digest:
        """Look at every image of that name for the one with the digest."""
        with engine.errors("list its images"):
            listed: list[dict[str, Any]] = engine.session.images(name=reference.repository.path)
        for identity in dict.fromkeys(str(each["Id"]) for each in listed):
            if self._brought(engine, identity, deadline) == reference.digest:
                return reference.digest
        raise SpecError(
            f"the Docker Engine at {engine.endpoint} has no image {reference}",
            hint="the image of that name is another one by now: name the base by its tag, and lock again",
        )

    def _brought(self, engine: EngineHttp, identity: str, deadline: Deadline) -> Digest:
        """The digest of an image of the engine, which is in the layout when this returns."""
        tag = Tag(f"id-{identity.removeprefix('sha256:')}")
        with key_lock(self.cache_dir, f"engine-image-{tag}", deadline):
            known = find_manifest(self._layout, tag)
            if known is not None and self._complete(known.descriptor.digest):
                return known.descriptor.digest
            return self._export(engine, identity, tag, deadline)

    def _complete(self, digest: Digest) -> bool:
        manifest = find_manifest(self._layout, digest)
        return isinstance(manifest, Manifest) and all(
            self._layout.has_blob(blob.digest) for blob in manifest.blobs
        )

    def _export(self, engine: EngineHttp, identity: str, tag: Tag, deadline: Deadline) -> Digest:
        from envbuild.build.archive import unpack_image
        from envbuild.build.watch import Watch

        folder = self.cache_dir / f"{FOLDER}.{tag}"  # one name an image: what a killed process left is found
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with (
                Watch.over(deadline, None, "reading the base from the engine") as watch,
                engine.save(identity, watch) as archive,
            ):
                folder.mkdir(mode=0o700)
                saved = unpack_image(archive, folder)
            return self._store(saved, tag)
        except OSError as error:
            raise StorageError(f"the base cannot be kept in {folder}: {error.strerror}") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _store(self, saved: SavedImage, tag: Tag) -> Digest:
        layout = self._layout
        config = Descriptor.of(saved.config, OCI_CONFIG)
        layout.put_blob(config, lambda: io.BytesIO(saved.config))
        layers = tuple(_put(layout, layer) for layer in saved.layers)
        manifest = Manifest.build(config, layers, {})
        layout.put_manifest(manifest, tag)
        return manifest.descriptor.digest


def _put(layout: LayoutRegistry, layer: SavedLayer) -> Descriptor:
    if (path := layer.path) is None:
        raise IntegrityError(f"the engine's archive lacks the layer {layer.diff_id}")
    descriptor = Descriptor(OCI_LAYER, layer.diff_id, path.stat().st_size)
    layout.put_blob(descriptor, lambda: path.open("rb"))
    return descriptor
