"""Private copies of what was read with a definition: what is hashed is what is resolved and built.

The definition's folder may change at any time; the copies, named by what they hold, do not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from envbuild.errors import StorageError, StorageFull
from envbuild.spec.local import LocalSource
from envbuild.storage import private_folder, read_own, written_whole

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.spec.pip import PipSection
    from envbuild.spec.requirement import PipRequirement

_WHEEL = ".whl"


def with_copies(section: PipSection, cache_dir: Path) -> PipSection:
    """The section, with copies in place of its wheels on this machine.

    Each wheel of a folder of links is a source of its own then. Projects and source archives stay as they
    were read, in memory.

    Args:
        section: The section.
        cache_dir: The cache folder.

    Raises:
        StorageError: A copy cannot be written.
    """

    def copied(requirement: PipRequirement) -> PipRequirement:
        local = requirement.local
        if local is None or not local.name.endswith(_WHEEL):
            return requirement
        path = keep(cache_dir, local.name, local.files[0].content or b"")
        return requirement._replace(local=replace(local, path=path))

    return replace(
        section,
        requirements=tuple(map(copied, section.requirements)),
        constraints=tuple(map(copied, section.constraints)),
        find_links_local=tuple(
            LocalSource(keep(cache_dir, file.path, file.content), file.path, (file,))
            for links in section.find_links_local
            for file in links.files
            if file.path.endswith(_WHEEL) and "/" not in file.path and file.content is not None
        ),
    )


def source_archives(section: PipSection) -> list[str]:
    """The names of the source archives in the section's folders of links, which uv tells of."""
    return [
        PurePosixPath(file.path).name
        for links in section.find_links_local
        for file in links.files
        if file.path.endswith((".tar.gz", ".zip")) and "/" not in file.path
    ]


def keep(cache_dir: Path, name: str, content: bytes) -> Path:
    """Keep a wheel.

    Args:
        cache_dir: The cache folder.
        name: Its file name.
        content: Its bytes.

    Returns:
        A file that holds them, the only one in its folder.

    Raises:
        StorageError: It cannot be written.
    """
    path = place_of(cache_dir, name, hashlib.sha256(content).hexdigest())
    with contextlib.suppress(OSError):
        if read_own(path) == content:
            return path
    try:
        with written_whole(path, 0o600) as file:
            file.write(content)
    except OSError as error:
        kind = StorageFull if error.errno in {errno.ENOSPC, errno.EDQUOT} else StorageError
        raise kind(
            f"{path} cannot be written: {error.strerror}",
            hint="free space there, or name another folder with --cache-dir",
        ) from error
    return path


def place_of(cache_dir: Path, name: str, sha256: str) -> Path:
    """Where :func:`keep` keeps a wheel; its folder is there.

    Equal bytes under two names have two places: a folder of links offers what is in it.
    """
    digest = hashlib.sha256(f"{sha256} {name}".encode()).hexdigest()
    return private_folder(private_folder(cache_dir / "wheels") / digest) / name
