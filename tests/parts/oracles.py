"""Other people's programs that speak to registries, each run without the user's settings."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.programs import fetched_program, program

_COSIGN_PASSWORD = "of a key for tests"


@dataclass(frozen=True, slots=True)
class Oracles:
    """The programs, with a folder that is their home and has their logins.

    Attributes:
        home: The folder; ``config.json`` in it is Docker's.
    """

    home: Path

    def skopeo(self, *words: str) -> str:
        """Debian's ``skopeo``."""
        return self._run(program("skopeo", "skopeo"), *words)

    def crane(self, *words: str) -> str:
        """``crane``, the tool of go-containerregistry."""
        return self._run(fetched_program("crane"), *words)

    def oras(self, *words: str) -> str:
        """``oras``."""
        return self._run(fetched_program("oras"), *words)

    def oras_json(self, *words: str) -> Any:
        """What ``oras`` says in JSON."""
        return json.loads(self.oras(*words, "--format", "json"))

    def cosign(self, *words: str) -> str:
        """``cosign``; without a network, so without a transparency log."""
        return self._run(fetched_program("cosign"), *words)

    def _run(self, *command: str) -> str:
        self.home.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DOCKER_CONFIG": str(self.home),
            "REGISTRY_AUTH_FILE": str(self.home / "config.json"),
            "COSIGN_PASSWORD": _COSIGN_PASSWORD,
        }
        done = subprocess.run(
            command, cwd=self.home, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            message = f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            raise AssertionError(message)
        return done.stdout
