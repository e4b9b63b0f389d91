"""The second registry implementation: cuelabs.dev's registry in memory, with the referrers API."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

from parts.programs import fetched_program
from parts.server_process import ServerProcess

if TYPE_CHECKING:
    from envbuild.digest import Digest


class OcimemServer(ServerProcess):
    """One server; what it holds is gone when it stops. See ``tools/ocimem/main.go``."""

    def spoil(self, digest: Digest, content: bytes) -> None:
        """Replace what is stored under a digest, in every repository."""
        request = urllib.request.Request(f"{self.url}/spoil/{digest}", content, method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def _command(self) -> list[str]:
        return [fetched_program("ocimem"), f"127.0.0.1:{self.port}"]

    def _requests_in(self, lines: list[str]) -> list[str]:
        return lines
