"""The platform of an image, and the Conda subdir that belongs to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from envbuild.errors import SpecError

_SUBDIRS: dict[tuple[str, str, str | None], str] = {
    ("linux", "amd64", None): "linux-64",
    ("linux", "arm64", None): "linux-aarch64",
    ("linux", "ppc64le", None): "linux-ppc64le",
    ("linux", "s390x", None): "linux-s390x",
    ("linux", "riscv64", None): "linux-riscv64",
}
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_PLAIN = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
"""The variant that is meant where none is named."""
_LEVEL = re.compile(r"v([0-9]{1,3})(?:\.([0-9]{1,3}))?")


@dataclass(frozen=True, slots=True)
class Platform:
    """An OCI platform: operating system, architecture and, rarely, a variant."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``linux/amd64``, ``linux/arm64`` (also ``linux/arm64/v8``) or a Conda subdir as ``linux-64``.

        Raises:
            SpecError: envbuild cannot build for that platform.
        """
        for (os, architecture, variant), subdir in _SUBDIRS.items():
            if text == subdir:
                return cls(os, architecture, variant)
        parts = [_MACHINES.get(part, part) for part in text.lower().split("/")]
        if parts[1:] == ["arm64", "v8"]:
            parts.pop()
        if len(parts) != 2 or (parts[0], parts[1], None) not in _SUBDIRS:
            raise SpecError(f"platform {text!r} is not known", hint=f"use one of {_known()}")
        return cls(parts[0], parts[1])

    def __lt__(self, other: Platform) -> bool:
        return str(self) < str(other)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def subdir(self) -> str:
        """The Conda subdir, as ``linux-64``.

        Raises:
            SpecError: Conda has no packages for this platform, or only with another variant.
        """
        try:
            return _SUBDIRS[self.os, self.architecture, self.variant]
        except KeyError:
            raise SpecError(f"platform {self} has no Conda subdir", hint=f"use one of {_known()}") from None

    def suits(self, offered: Platform) -> tuple[int, int] | None:
        """How well an image for another platform serves this one; the greatest answer is the best image.

        As container engines have it: a processor runs what was made for an older variant of its architecture
        and never what was made for a newer one; where no variant is named, ``amd64`` means ``v1``, ``arm64``
        means ``v8`` and ``arm`` means ``v7``. On all other architectures the variants must be equal.

        Returns:
            The offered variant as numbers; None where the image does not serve.
        """
        architecture = _MACHINES.get(offered.architecture, offered.architecture)
        if (offered.os, architecture) != (self.os, self.architecture):
            return None
        wanted, seen = _level(self), _level(offered)
        if wanted is None or seen is None:
            return (0, 0) if self.variant == offered.variant else None
        return seen if seen <= wanted else None

    def to_json(self) -> dict[str, str]:
        """The JSON object of an image index's entry."""
        entry = {"architecture": self.architecture, "os": self.os}
        return {**entry, "variant": self.variant} if self.variant else entry


def _level(platform: Platform) -> tuple[int, int] | None:
    """A variant as numbers, where the variants of its architecture are in order."""
    architecture = _MACHINES.get(platform.architecture, platform.architecture)
    plain = _PLAIN.get(architecture)
    found = _LEVEL.fullmatch(platform.variant or plain) if plain is not None else None
    return (int(found[1]), int(found[2] or 0)) if found is not None else None


def _known() -> str:
    return ", ".join(f"{os}/{architecture}" for os, architecture, _ in _SUBDIRS)


LINUX_AMD64 = Platform("linux", "amd64")
