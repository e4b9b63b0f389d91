"""What is known of a wheel before it is fetched, and what its layer is named after."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import rfc8785

if TYPE_CHECKING:
    from envbuild.conda.layer import Compression
    from envbuild.conda.link import PythonTarget
    from envbuild.digest import Digest

WHEEL_FORMAT: Final = 1
"""The version of a wheel layer's form: raised by whatever changes the bytes of an equal wheel's layer."""

PYC: Final = "none"
"""Whether a wheel's layer has compiled modules that the wheel has not: not in this form."""


@dataclass(frozen=True, slots=True)
class PipDistribution:
    """One wheel of a solution.

    Attributes:
        name: The PEP 503 name.
        version: The version.
        url: Where the wheel is, without credentials; ``https:``, ``http:`` or ``file:``.
        sha256: The digest of the wheel.
        size: The wheel's size in bytes, or None where the index does not say.
        file_name: The wheel's file name.
        direct_url: The URL, without credentials, where the definition names one; None for a wheel from an
            index or a local file.
    """

    name: str
    version: str
    url: str
    sha256: Digest
    size: int | None
    file_name: str
    direct_url: str | None = None

    @property
    def identity(self) -> dict[str, str | None]:
        """What tells this wheel's files from every other's: the fields that keys are made of."""
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256.hex,
            "directUrl": self.direct_url,
        }

    def __lt__(self, other: PipDistribution) -> bool:
        return (self.name, self.version, self.sha256.hex) < (other.name, other.version, other.sha256.hex)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class WheelTarget:
    """Where wheels are installed.

    Attributes:
        prefix: The prefix in the image.
        python: The environment's python.
        venv: Whether the prefix is a virtual environment over a python that is elsewhere in the image.
    """

    prefix: str
    python: PythonTarget
    venv: bool = False

    @property
    def headers(self) -> str:
        """The folder, relative to the prefix, that holds a folder of headers for each distribution."""
        return f"include/{'site/' if self.venv else ''}python{self.python.short}"


def wheel_key(distribution: PipDistribution, target: WheelTarget, compression: Compression) -> str:
    """The name, 64 hex digits, of the layer that a wheel becomes: known before the wheel is fetched."""
    form: dict[str, Any] = {
        "format": WHEEL_FORMAT,
        "prefix": target.prefix,
        "compression": compression.to_json(),
        "sha256": distribution.sha256.hex,
        "directUrl": distribution.direct_url,
        "python": target.python.short,
        "sitePackages": target.python.site_packages,
        "headers": target.headers,
        "pyc": PYC,
    }
    return hashlib.sha256(b"envbuild/wheel-layer/v1\x00" + rfc8785.dumps(form)).hexdigest()
