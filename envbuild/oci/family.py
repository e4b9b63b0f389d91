"""What an image index names, and what its entries name in turn: each once, and not without end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from envbuild.errors import IntegrityError, NotFound
from envbuild.oci.manifest import ImageIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import Registry

MAX_DEPTH: Final = 4
"""How deep image indexes may be nested; real ones hold manifests."""
MAX_MANIFESTS: Final = 1024
"""How many manifests are read for one index; real ones have one or two for each of about ten platforms."""


def entries(index: ImageIndex, what: str) -> tuple[Descriptor, ...]:
    """The entries of an index whose manifests are to be read: each digest once.

    Raises:
        IntegrityError: There are far too many.
    """
    found: dict[Digest, Descriptor] = {}
    for entry in index.manifests:
        found.setdefault(entry.digest, entry)
    if len(found) > MAX_MANIFESTS:
        raise _too_many(what)
    return tuple(found.values())


def family(
    registry: Registry, manifest: Manifest | ImageIndex, absent: list[Descriptor] | None = None
) -> Iterator[Manifest | ImageIndex]:
    """Everything below a manifest and then itself, each once.

    Args:
        registry: Where they are; with the call's deadline.
        manifest: An image, or an index.
        absent: Takes the entries of an index that the repository lacks; an error if None.

    Raises:
        NotFound: The repository lacks something that an index names.
        IntegrityError: Indexes are nested too deep, or name far too many manifests.
    """
    return _family(registry, manifest, absent, {manifest.descriptor.digest}, 0)


def _family(
    registry: Registry,
    manifest: Manifest | ImageIndex,
    absent: list[Descriptor] | None,
    seen: set[Digest],
    depth: int,
) -> Iterator[Manifest | ImageIndex]:
    if depth > MAX_DEPTH:
        raise IntegrityError(f"an image index of {registry.repository} is nested more than {MAX_DEPTH} deep")
    for entry in manifest.manifests if isinstance(manifest, ImageIndex) else ():
        if entry.digest in seen:
            continue
        seen.add(entry.digest)
        if len(seen) > MAX_MANIFESTS:
            raise _too_many(str(registry.repository))
        try:
            found = registry.get_manifest(entry.digest)
        except NotFound:
            if absent is None:
                raise
            absent.append(entry)
        else:
            yield from _family(registry, found, absent, seen, depth + 1)
    yield manifest


def _too_many(what: str) -> IntegrityError:
    return IntegrityError(
        f"an image index of {what} names more than {MAX_MANIFESTS} manifests, expected one for each platform",
        hint="look at the index: it may be an attack on whoever reads it",
    )
