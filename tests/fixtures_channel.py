"""Fixtures made of real packages: the Conda channel and the base images, made once for all workers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_MAKE = Path(__file__).resolve().parent.parent / "fixtures" / "make.py"
_ENVIRONMENT = dict(os.environ)  # as it was before tests hide the user's settings


@dataclass(frozen=True, slots=True)
class ChannelFolder:
    """The fixture channel on disk.

    Attributes:
        path: The folder that holds ``noarch`` and ``linux-64``.
    """

    path: Path

    @property
    def url(self) -> str:
        """The channel's own URL."""
        return self.path.as_uri()

    @property
    def alias(self) -> str:
        """The URL to which ``channels: [fixtures]`` is relative."""
        return self.path.parent.as_uri()

    def package(self, name: str, version: str | None = None) -> Path:
        """The package file of ``name``; there must be exactly one that fits."""
        found = [
            path
            for path in self.path.glob(f"*/{name}-*")
            if path.name.rsplit("-", 2)[0] == name and version in (None, path.name.rsplit("-", 2)[1])
        ]
        assert len(found) == 1, f"expected one package {name} {version or ''}, found {found}"
        return found[0]


@dataclass(frozen=True, slots=True)
class Bases:
    """The base images, each an OCI layout with one image under the tag ``latest``."""

    minimal: Path
    minimal_rebuilt: Path
    python: Path


@pytest.fixture(scope="session")
def channel() -> ChannelFolder:
    """The Conda channel made of real packages."""
    return ChannelFolder(_made("--channel")["channel"])


@pytest.fixture(scope="session")
def bases() -> Bases:
    """Debian as base images."""
    made = _made("--bases")
    return Bases(made["minimal"], made["minimal-rebuilt"], made["python"])


def _made(option: str) -> dict[str, Path]:
    command = [sys.executable, str(_MAKE), option]
    result = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = (line.split("\t") for line in result.stdout.splitlines())
    return {name: Path(place) for name, place in lines}
