"""Where wheels are installed, and what their layers are named after."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import rfc8785

if TYPE_CHECKING:
    from envbuild.conda.layer import Compression
    from envbuild.conda.link import PythonTarget
    from envbuild.lock import PipDistribution

WHEEL_FORMAT: Final = 1
"""The version of a wheel layer's form: raised by whatever changes the bytes of an equal wheel's layer."""

PYC: Final = "none"
"""Whether a wheel's layer has compiled modules that the wheel has not: not in this form."""


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
        **distribution.told,
    }
    return hashlib.sha256(b"envbuild/wheel-layer/v1\x00" + rfc8785.dumps(form)).hexdigest()
