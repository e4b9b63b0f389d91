"""The image that a command is about, named by a reference or by a definition."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envbuild.deadline import Deadline
from envbuild.errors import CacheMiss
from envbuild.reference import ImageReference, parse_reference
from envbuild.resolver import Resolver
from envbuild.spec.fields import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.cli.options import Common
    from envbuild.digest import Digest
    from envbuild.oci.registry import Registry
    from envbuild.reference import Tag, TaggedReference


@contextlib.contextmanager
def named(
    image: str, options: Common
) -> Iterator[tuple[Resolver, ImageReference | TaggedReference, Tag | Digest]]:
    """A resolver, the image, and its tag or digest; a definition's image is looked up, never built.

    Raises:
        CacheMiss: No repository holds the definition's image.
    """
    # Looking must not copy a global hit anywhere.
    with Resolver(replace(options.config, promote=False)) as resolver:
        found = _found(resolver, image, options)
        yield resolver, found, found.digest if isinstance(found, ImageReference) else found.tag


@contextlib.contextmanager
def source_image(
    image: str, options: Common
) -> Iterator[tuple[Registry, Tag | Digest, ImageReference | TaggedReference | None]]:
    """The repository of an image, its tag or digest, and where --base says that the base is."""
    found = parse_reference(image)
    base = options.overrides["base"]
    named = reference(base, Path.cwd(), None) if base else None
    with Resolver(options.config) as resolver:
        registry = resolver.registries.open(found.repository).by(Deadline.after(options.config.timeout))
        yield registry, found.digest if isinstance(found, ImageReference) else found.tag, named


def _found(resolver: Resolver, image: str, options: Common) -> ImageReference | TaggedReference:
    if image != "-" and not Path(image).exists():
        return parse_reference(image)
    try:
        return resolver.resolve(options.load(image), build=False).reference
    except CacheMiss as miss:
        raise CacheMiss(miss.message, hint=f"build it with `envbuild resolve {image}`") from None
