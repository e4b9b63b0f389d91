"""The image that a command is about, named by a reference or by a definition."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from envbuild.deadline import Deadline
from envbuild.errors import CacheMiss
from envbuild.lockkey import LockKey
from envbuild.reference import ImageReference, parse_reference
from envbuild.resolver import Resolver
from envbuild.spec.fields import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.cli.options import Common
    from envbuild.digest import Digest
    from envbuild.lockkey import Name
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import Tag, TaggedReference
    from envbuild.resolver import ResolvedImage


class Target(NamedTuple):
    """An image that a command is about.

    Attributes:
        resolver: Opens its repository.
        reference: The image.
        wanted: Its tag or digest.
        name: What a definition's image was looked up by; None for what is named by a reference.
        platforms: The platforms that were looked up, or None.
    """

    resolver: Resolver
    reference: ImageReference | TaggedReference
    wanted: Tag | Digest
    name: Name | None = None
    platforms: tuple[Platform, ...] | None = None


@contextlib.contextmanager
def named(image: str, options: Common, progress: Progress) -> Iterator[Target]:
    """The image; a definition's is looked up, never built.

    Raises:
        CacheMiss: No repository holds the definition's image.
    """
    # Looking must not copy a global hit anywhere.
    with Resolver(replace(options.config, promote=False), progress=progress) as resolver:
        if image != "-" and not Path(image).exists():
            found = parse_reference(image)
            wanted = found.digest if isinstance(found, ImageReference) else found.tag
            yield Target(resolver, found, wanted)
            return
        answer = _resolved(resolver, image, options)
        name = LockKey(answer.lock_key) if answer.locked and answer.lock_key is not None else answer.key
        platforms = answer.platforms or (answer.platform,)
        yield Target(resolver, answer.reference, answer.reference.digest, name, platforms)


@contextlib.contextmanager
def source_image(
    image: str, options: Common, progress: Progress
) -> Iterator[tuple[Registry, Tag | Digest, ImageReference | TaggedReference | None]]:
    """The repository of an image, its tag or digest, and where --base says that the base is."""
    found = parse_reference(image)
    base = options.overrides["base"]
    named = reference(base, Path.cwd(), None) if base else None
    with Resolver(options.config, progress=progress) as resolver:
        registry = resolver.registries.open(found.repository).by(Deadline.after(options.config.timeout))
        yield registry, found.digest if isinstance(found, ImageReference) else found.tag, named


def _resolved(resolver: Resolver, image: str, options: Common) -> ResolvedImage:
    try:
        return resolver.resolve(options.load(image), build=False)
    except CacheMiss as miss:
        raise CacheMiss(miss.message, hint=f"build it with `envbuild resolve {image}`") from None
