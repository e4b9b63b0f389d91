"""What ``resolve`` says beside its answer: warnings, and why an image was not there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from envbuild.errors import CacheMiss

if TYPE_CHECKING:
    from envbuild.cli.progress import Display
    from envbuild.platform import Platform
    from envbuild.resolver import ResolvedImage, Resolver
    from envbuild.spec.environment import EnvironmentSpec


def warnings(resolver: Resolver, spec: EnvironmentSpec) -> tuple[str, ...]:
    """The warnings of a definition, a line a rule; without those that its lock settles."""
    from envbuild.lint import warnings_of
    from envbuild.lockfile import apply

    loaded = resolver.load(spec)
    locked = all(
        apply(loaded, platform, resolver.locks, confine=resolver.config.confine).entry is not None
        for platform in loaded.platforms
    )
    return warnings_of(loaded, locked=locked)


def explained(
    resolver: Resolver, spec: EnvironmentSpec, display: Display, *, build: bool, as_json: bool
) -> ResolvedImage:
    """Resolve; where the image is nowhere, say first what differs from the nearest one that is known.

    Raises:
        EnvbuildError: As :meth:`envbuild.resolver.Resolver.resolve`.
    """
    try:
        return resolver.resolve(spec, build=False)
    except CacheMiss:
        display.pause()
        parts = resolver.parts(spec)
        for platform, part in parts.items():
            if len(parts) == 1 or not _is_known(resolver, part):
                document = _reason(resolver, platform, part)
                text = document["text"] if len(parts) == 1 else f"{platform}: {document['text']}"
                click.echo(json.dumps(document, ensure_ascii=False) if as_json else text, err=True)
        if not build:
            raise
    return resolver.resolve(spec)


def _reason(resolver: Resolver, platform: Platform, part: EnvironmentSpec) -> dict[str, Any]:
    """Why the image of one platform is nowhere."""
    from envbuild.diff import explain, nearest

    request = resolver.request(part)
    inputs, name = request.inputs, str(request.name)
    known = {each: form for each, form in resolver.index.forms().items() if form.keys() == inputs.keys()}
    found = nearest(inputs, known.items())
    return {
        "event": "explain",
        "subject": name,
        "platform": str(platform),
        "nearest": found[0] if found is not None else None,
        "changes": [change.to_json() for change in found[1]] if found is not None else [],
        "text": explain(name, inputs, known),
    }


def _is_known(resolver: Resolver, part: EnvironmentSpec) -> bool:
    try:
        resolver.resolve(part, build=False)
    except CacheMiss:
        return False
    return True
