"""Building an image again from the lock that is attached to it, and comparing what comes out.

Nothing of it stays: it is built with an empty cache into a layout in a temporary folder, so that every layer
is made of its package again, and no repository is written.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from envbuild import lockfile
from envbuild.build.assemble import difference
from envbuild.build.job import Again
from envbuild.checks import Check
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import BuildError, ChannelError, IntegrityError, SpecError, counted
from envbuild.lockfile.document import LockFile
from envbuild.oci.family import entries
from envbuild.oci.manifest import Manifest
from envbuild.progress import silent
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from envbuild.restore import compression, in_folder, lock_of, policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.lockfile.document import LockEntry
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference, TaggedReference


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Builds images again.

    Attributes:
        config: The settings for building; workspace, cache and whatever is published are not used.
        registry: The repository of the images.
        base: Where the base is; where the lock says, if None.
        progress: Told what is going on.
        deadline: For the whole of it.
    """

    config: Config
    registry: Registry
    base: ImageReference | TaggedReference | None = None
    progress: Progress = silent
    deadline: Deadline = NO_DEADLINE

    def checks(self, manifest: Manifest | ImageIndex) -> Iterator[Check]:
        """Build an image again, or every image of an index, and say what was found.

        Args:
            manifest: The image.

        Raises:
            RegistryError: A repository could not be asked; that is no answer about the image.
            SolveError: A package could not be had.
        """
        if isinstance(manifest, Manifest):
            yield from self._image(manifest, "")
            return
        for entry in entries(manifest, str(self.registry.repository)):
            part = self.registry.by(self.deadline).get_manifest(entry.digest)
            prefix = f"{entry.platform or entry.digest.short} "
            if isinstance(part, Manifest):
                yield from self._image(part, prefix)
            else:
                yield Check(f"{prefix}rebuild", False, "an index in an index, expected an image", asked=True)

    def _image(self, manifest: Manifest, prefix: str) -> Iterator[Check]:
        try:
            lock = lock_of(self.registry.by(self.deadline), manifest)
        except (IntegrityError, SpecError) as error:
            yield Check(f"{prefix}rebuild", False, error.message, asked=True)
            return
        if lock is None:
            detail = "no lock is attached, so there is nothing to build it again from"
            yield Check(f"{prefix}rebuild", False, detail, asked=True)
            return
        (entry,) = lock.entries
        count = len(entry.lock.packages) + len(entry.pip)
        yield Check(f"{prefix}packages", True, f"the lock has {counted(count, 'package')}")
        try:
            yield self._compared(manifest, entry, f"{prefix}rebuild")
        except (SpecError, BuildError, ChannelError) as error:
            yield Check(f"{prefix}rebuild", None, f"cannot be built again: {error.message}", asked=True)

    def _compared(self, manifest: Manifest, entry: LockEntry, name: str) -> Check:
        with tempfile.TemporaryDirectory(prefix="envbuild-") as folder:
            path, workspace = Path(folder) / lockfile.FILE_NAME, Repository.parse(f"oci:{folder}/images")
            in_folder(LockFile.of("", [entry]), path.parent, self.base).write(path)
            spec = lockfile.load(path)
            config = replace(
                self.config,
                workspace=workspace,
                global_=None,
                cache_dir=Path(folder) / "cache",
                attach=False,
                trust=None,
                compression=compression(manifest),
            )
            again = Again(manifest, self.registry.repository, must=False)
            locks = policy(path, manifest)
            with Resolver(config, progress=self.progress, locks=locks, again=again) as resolver:
                image = resolver.build(spec, timeout=self.deadline.remaining())
                made = resolver.registries.open(workspace).get_manifest(image.reference.digest)
        return comparison(manifest, made, name, runs=spec.steps_after is not None)


def comparison(manifest: Manifest, made: Manifest | ImageIndex, name: str, *, runs: bool) -> Check:
    """Whether an image that was built again is the same.

    Args:
        manifest: The image.
        made: What came out.
        name: The name of the check.
        runs: Whether steps after the environment were run again, which need not give the same bytes.
    """
    told, digest = difference(manifest, made), made.descriptor.digest
    if told is None and digest == manifest.descriptor.digest:
        return Check(name, True, f"gave {digest}, all {len(manifest.layers)} layers alike")
    if told is None:
        return Check(name, True, f"gave {digest}: the same image, which another definition named first")
    if runs:
        told = f"gave {digest}: steps after the environment were run again, and need not give the same bytes"
        return Check(name, None, told, asked=True)
    return Check(name, False, told)
