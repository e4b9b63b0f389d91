"""Opening a repository: a layout on disk or a registry server, whichever its name says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from envbuild.deadline import NO_DEADLINE
from envbuild.errors import SpecError
from envbuild.oci.transport import Settings

if TYPE_CHECKING:
    from envbuild.deadline import Deadline
    from envbuild.oci.registry import Registry
    from envbuild.reference import Repository

_MIRROR_CONNECT, _MIRROR_READ = 3.0, 10.0
__all__ = ["Settings", "open_registry"]


def open_registry(
    repository: Repository,
    *,
    settings: Settings | None = None,
    deadline: Deadline = NO_DEADLINE,
    mirrors: tuple[str, ...] = (),
) -> Registry:
    """The repository, ready to be used; nothing is asked yet.

    Args:
        repository: Where it is.
        settings: How registry servers are spoken to.
        deadline: For every call; :meth:`~envbuild.oci.registry.Registry.by` gives another.
        mirrors: Where it may be read too, each as ``HOST`` or ``HOST/PREFIX``.
    """
    # Imported here: a registry server costs ten times the import time of a layout.
    if repository.is_layout:
        from envbuild.oci.layout import LayoutRegistry

        return LayoutRegistry(repository).by(deadline)
    if repository.is_engine:
        raise SpecError(
            f"{repository} is in a Docker Engine, expected a registry or a layout on disk",
            hint="an image of an engine can be a base; push it to use it otherwise",
        )
    from envbuild.oci.remote import RemoteRegistry

    settings = settings or Settings()
    origin = RemoteRegistry(repository, settings=settings, deadline=deadline)
    if not mirrors:
        return origin
    from envbuild.oci.mirror import MirroredRegistry, on_mirror

    # The origin is at hand: a mirror in trouble is neither waited for nor asked twice.
    hasty = replace(
        settings,
        connect_timeout=min(settings.connect_timeout, _MIRROR_CONNECT),
        read_timeout=min(settings.read_timeout, _MIRROR_READ),
        retries=0,
    )
    places = (on_mirror(each, repository) for each in mirrors)
    others = (RemoteRegistry(each, settings=hasty, deadline=deadline) for each in places)
    return MirroredRegistry(origin, tuple(others))
