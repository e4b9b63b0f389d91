"""Certificates for test servers, signed by themselves."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parts.programs import program

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, ECDSA on P-256, each in a file."""

    path: Path
    key_path: Path

    @classmethod
    def make(cls, folder: Path, name: str = "localhost", *, authority: bool = True) -> Certificate:
        """A certificate for a name, good for two days; some clients take an authority's from no server."""
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder / f"{name}.crt", folder / f"{name}.key")
        command = [program("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
        command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", f"/CN={name}"]
        command += [] if authority else ["-addext", "basicConstraints=critical,CA:FALSE"]
        command += ["-addext", f"subjectAltName=DNS:{name}", "-keyout", str(made.key_path)]
        subprocess.run([*command, "-out", str(made.path)], check=True, capture_output=True)
        return made
