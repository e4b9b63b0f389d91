"""A content-addressed builder and cache of environment images.

>>> import envbuild
>>> image = envbuild.resolve("environment.yml", base="debian:12-slim")  # doctest: +SKIP
>>> str(image.reference)  # doctest: +SKIP
'registry.example.com/team/envs@sha256:...'
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False  # typing is not imported for it: the command must first see to signals
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from envbuild.config import Config
    from envbuild.errors import EnvbuildError
    from envbuild.foreign import load
    from envbuild.key import Key
    from envbuild.lockkey import Name
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference
    from envbuild.resolver import ResolvedImage, Resolver, Source
    from envbuild.spec.environment import EnvironmentSpec

__version__ = "0.1.0"

__all__ = [
    "Config",
    "EnvbuildError",
    "EnvironmentSpec",
    "ImageReference",
    "Key",
    "ResolvedImage",
    "Resolver",
    "Source",
    "key",
    "load",
    "resolve",
]

_HOMES = {
    "Config": "envbuild.config",
    "EnvbuildError": "envbuild.errors",
    "EnvironmentSpec": "envbuild.spec.environment",
    "ImageReference": "envbuild.reference",
    "Key": "envbuild.key",
    "ResolvedImage": "envbuild.resolver",
    "Resolver": "envbuild.resolver",
    "Source": "envbuild.resolver",
    "load": "envbuild.foreign",
}
_DEFINITION = ("base", "steps", "platforms", "as_of", "form")


def resolve(
    spec: EnvironmentSpec | Path | str,
    *,
    build: bool = True,
    timeout: float | None = None,
    progress: Progress | None = None,
    config: Config | None = None,
    **settings: Any,
) -> ResolvedImage:
    """The image of a definition: found, or built and pushed to the workspace.

    For many definitions keep a :class:`Resolver`: it keeps connections and caches.

    Args:
        spec: A definition, or the path of one, of an ``envbuild.lock``, or of another tool's lock.
        build: Whether a miss may be built; if not, it raises :class:`~envbuild.errors.CacheMiss`.
        timeout: Seconds after which to give up.
        progress: Told what is going on.
        config: The settings; those of :meth:`Config.load <envbuild.config.Config.load>` if None.
        settings: ``base``, ``steps``, ``platforms``, ``as_of`` are laid over the definition, ``form`` says
            what its file is; every other name is one of :class:`~envbuild.config.Config`'s, as
            ``workspace``; not together with ``config``.

    Raises:
        EnvbuildError: One of its kinds; see :mod:`envbuild.errors`.
    """
    from envbuild.progress import silent
    from envbuild.resolver import Resolver

    loaded, config = _prepare(spec, config, settings)
    with Resolver(config, progress=progress or silent) as resolver:
        return resolver.resolve(loaded, build=build, timeout=timeout)


def key(spec: EnvironmentSpec | Path | str, *, config: Config | None = None, **settings: Any) -> Name:
    """What :func:`resolve` looks for: the key of a definition, or the lock key where a lock matches.

    ``str(key)`` is its 64 hex digits; ``key.tag`` says which of the two it is. Settings as in
    :func:`resolve`.
    """
    from envbuild.resolver import Resolver

    loaded, config = _prepare(spec, config, settings)
    with Resolver(config) as resolver:
        return resolver.name(loaded)


def _prepare(
    spec: EnvironmentSpec | Path | str, config: Config | None, settings: dict[str, Any]
) -> tuple[EnvironmentSpec, Config]:
    from envbuild.config import Config
    from envbuild.foreign import load
    from envbuild.spec.environment import EnvironmentSpec

    overrides = {name: settings.pop(name) for name in _DEFINITION if settings.get(name) is not None}
    if config is None:
        config = Config.load(**settings)
    elif settings:
        raise TypeError(f"{', '.join(settings)}: give settings one by one or as a config, not both")
    if not isinstance(spec, EnvironmentSpec):
        return load(spec, **overrides, **config.reading), config
    if overrides:
        names = ", ".join(overrides)
        raise TypeError(f"{names} cannot be laid over a loaded definition: give them to load()")
    return spec, config


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'envbuild' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


class _KeyModule(ModuleType):
    """The module ``envbuild.key``, which may be called as the function of the same name."""

    def __call__(self, *arguments: Any, **settings: Any) -> Name:
        return _key(*arguments, **settings)


class _Package(ModuleType):
    """This package: its submodule ``key`` takes the name of the function once it is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "key" and isinstance(value, ModuleType):
            value.__class__ = _KeyModule
        super().__setattr__(name, value)


_key = key
sys.modules[__name__].__class__ = _Package
