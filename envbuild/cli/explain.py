"""What ``resolve`` says beside its answer: warnings, and why an image was not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from envbuild.errors import CacheMiss

if TYPE_CHECKING:
    from envbuild.resolver import ResolvedImage, Resolver
    from envbuild.spec.environment import EnvironmentSpec


def warnings(resolver: Resolver, spec: EnvironmentSpec) -> tuple[str, ...]:
    """The warnings of a definition, a line a rule; without those that its lock settles."""
    from envbuild.lint import warnings_of
    from envbuild.lockfile import apply

    loaded = resolver.load(spec)
    locked = apply(loaded, loaded.platforms[0], resolver.locks).entry is not None
    return warnings_of(loaded, locked=locked)


def explained(resolver: Resolver, spec: EnvironmentSpec, *, build: bool) -> ResolvedImage:
    """Resolve; where the image is nowhere, say first what differs from the nearest one that is known.

    Raises:
        EnvbuildError: As :meth:`envbuild.resolver.Resolver.resolve`.
    """
    from envbuild.diff import explain

    try:
        return resolver.resolve(spec, build=False)
    except CacheMiss:
        form = resolver.form(spec)
        click.echo(explain(str(form.key), form.fields, resolver.index.forms()), err=True)
        if not build:
            raise
    return resolver.resolve(spec)
