"""Which builder makes an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envbuild.build.job import Builder
    from envbuild.config import Config
    from envbuild.index import Index
    from envbuild.oci.registries import Registries
    from envbuild.progress import Progress


def builder_for(config: Config, index: Index, registries: Registries, progress: Progress) -> Builder:
    """The builder that the settings name; ``auto`` is the one that needs no daemon.

    Args:
        config: The settings.
        index: Knows layers and facts.
        registries: The repositories.
        progress: Told what is going on.
    """
    if config.builder == "docker":
        from envbuild.build.docker_builder import DockerBuilder

        return DockerBuilder(config, index, registries, progress)
    from envbuild.build.layers import LayersBuilder

    return LayersBuilder(config, index, registries, progress)
