"""Which packages have a post-link script: their layers' path hashes tell, also of layers nobody fetches."""

from __future__ import annotations

from envbuild.conda.layer import PathHashes


def script_of(name: str) -> str:
    """Where a package's script is, relative to the prefix."""
    return f"bin/.{name}-post-link.sh"


def has_script(name: str, files: bytes) -> bool:
    """Whether a package has a script.

    Args:
        name: The package's name.
        files: The hashes of the paths of the layer that the package is in.
    """
    wanted = PathHashes.of((script_of(name),), ()).files
    at = files.find(wanted)
    while at % len(wanted) and at >= 0:
        at = files.find(wanted, at + 1)
    return at >= 0
