"""``--dry-run``: what a call would do, told without writing to any registry."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from envbuild.build.preview import Previewer
from envbuild.cli import report
from envbuild.cli.answers import as_json as as_document
from envbuild.cli.options import amount
from envbuild.cli.progress import shown
from envbuild.errors import CacheMiss, EnvbuildError
from envbuild.key import index_key
from envbuild.lockkey import LockKey
from envbuild.resolver import ResolvedImage, Resolver

if TYPE_CHECKING:
    from envbuild.build.preview import Preview
    from envbuild.cli.options import Common
    from envbuild.platform import Platform
    from envbuild.spec.environment import EnvironmentSpec

    Found = ResolvedImage | dict[Platform, ResolvedImage | Preview]


def dry_run(specs: tuple[str, ...], options: Common, *, look: bool, build: bool = True) -> int:
    """Say of each definition where its image is, or what building it would take.

    Args:
        specs: The definitions.
        options: The shared options.
        look: Whether to look for the image first.
        build: Whether a miss would be built.
    """
    code = 0
    config = replace(options.config, promote=False)
    with shown(options) as display, Resolver(config, progress=display, locks=options.locks) as resolver:
        for spec in specs:
            subject = spec if len(specs) > 1 else None
            try:
                found = preview(resolver, options.load(spec), look=look, build=build)
            except EnvbuildError as error:
                display.pause()
                report(error, as_json=options.as_json, subject=subject)
                code = code or error.exit_code
                continue
            display.pause()
            _tell(spec, found, as_json=options.as_json)
    return code


def preview(resolver: Resolver, spec: EnvironmentSpec, *, look: bool = True, build: bool = True) -> Found:
    """The image of a definition, or what building it would do; arguments as above.

    Returns:
        The image; or for each platform its image, or the preview of it.

    Raises:
        EnvbuildError: As :meth:`Resolver.resolve` raises it.
    """
    loaded = resolver.load(spec)
    if look:
        try:
            return resolver.resolve(loaded, build=False)
        except CacheMiss:
            if not build:
                raise
    parts = resolver.parts(loaded)
    if len(parts) == 1:
        return {platform: _preview(resolver, part) for platform, part in parts.items()}
    return {platform: _part(resolver, part, look=look) for platform, part in parts.items()}


def _part(resolver: Resolver, part: EnvironmentSpec, *, look: bool) -> ResolvedImage | Preview:
    """One platform of several: its image may be there though the index is not."""
    if look:
        try:
            return resolver.resolve(part, build=False)
        except CacheMiss:
            pass
    return _preview(resolver, part)


def _preview(resolver: Resolver, part: EnvironmentSpec) -> Preview:
    previewer = Previewer(resolver.config, resolver.index, resolver.registries, resolver.progress)
    return previewer.preview(resolver.job(resolver.request(part)))


def _tell(spec: str, found: Found, *, as_json: bool) -> None:
    if isinstance(found, ResolvedImage):
        if as_json:
            click.echo(json.dumps({"spec": spec} | as_document(found), ensure_ascii=False))
        else:
            _print(spec, found)
        return
    if not as_json:
        for platform, one in found.items():
            _print(spec if len(found) == 1 else f"{spec} ({platform})", one)
        return
    documents = [_document(platform, one) for platform, one in found.items()]
    document = documents[0]
    if len(documents) > 1:
        together = index_key({platform: one.key for platform, one in found.items()})
        document = {"source": "dry-run", "key": str(together), "platforms": documents}
    click.echo(json.dumps({"spec": spec} | document, ensure_ascii=False))


def _document(platform: Platform, found: ResolvedImage | Preview) -> dict[str, Any]:
    if isinstance(found, ResolvedImage):
        return as_document(found)
    return {
        "source": "dry-run",
        "platform": str(platform),
        "key": str(found.key),
        "lock": found.lock_key,
        "locked": isinstance(found.name, LockKey),
        "steps": found.steps,
        "same_solution": found.same_solution,
        "packages": list(found.packages),
        "wheels": None if found.wheels is None else list(found.wheels),
        "layers": [
            {"title": layer.title, "size": layer.size, "place": layer.place} for layer in found.layers
        ],
        "layers_to_make": len(found.to_make),
        "bytes_to_fetch": sum(layer.size for layer in found.to_make),
        "base_bytes_to_copy": found.base_bytes,
    }


def _print(spec: str, found: ResolvedImage | Preview) -> None:
    if isinstance(found, ResolvedImage):
        click.echo(f"{spec}: {found.reference} is in the {found.source}; nothing would be done")
        return
    click.echo(f"{spec}: would be built as {found.name.tag}")
    click.echo(f"  packages  {len(found.packages)}")
    if found.wheels != ():
        click.echo(f"  wheels    {'resolved at the build' if found.wheels is None else len(found.wheels)}")
    if found.steps != "none":
        click.echo(f"  steps     {found.steps}")
    if found.same_solution:
        click.echo("  layers    all known: the workspace has an image of the same solution")
        return
    known, fetch = len(found.layers) - len(found.to_make), sum(layer.size for layer in found.to_make)
    click.echo(f"  layers    {known} known, {len(found.to_make)} to make ({amount(fetch)} to fetch)")
    if found.base_bytes:
        click.echo(f"  base      {amount(found.base_bytes)} to copy to the workspace")
    for layer in found.to_make:
        click.echo(f"  make      {layer.title}  {amount(layer.size)}")
