"""What runs Docker steps: a Docker Engine, Podman, or a builder of buildx."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envbuild.build.buildx_builder import BuildxBuilder
    from envbuild.build.engine import Engine
    from envbuild.config import Config


def connect(config: Config) -> Engine | BuildxBuilder:
    """What the settings name: the builder of buildx, else the engine.

    Raises:
        BuildError: It does not answer.
    """
    if config.buildx is not None:
        from envbuild.build.buildx_builder import BuildxBuilder

        return BuildxBuilder.connect(config.buildx)
    from envbuild.build.engine import Engine

    return Engine.connect(config.docker_host)
