"""A real registry server: Debian's ``docker-registry`` (CNCF Distribution) on a free loopback port."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from parts.programs import program
from parts.server_process import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

    from parts.certificates import Certificate
    from parts.token_server import TokenServer

USERNAME: Final = "alice"
PASSWORD: Final = "correct horse"
_PASSWORD_HASH: Final = "$2b$04$6EHKDzuupQlRdfjBwS6YAuh414xhmez6FPFohkuIp4n84DheqhBpy"
"""bcrypt of :data:`PASSWORD` at the lowest cost: ``htpasswd -nbB -C 4 alice 'correct horse'``."""


class RegistryServer(ServerProcess):
    """One server with deletion enabled, its data in a folder of its own.

    Args:
        folder: Where configuration, data and log are kept.
        authenticated: Whether to ask for :data:`USERNAME` and :data:`PASSWORD`.
        certificate: What to speak HTTPS with, as ``localhost``; plain HTTP without it.
        tokens: Who gives out the tokens that are asked for, if any.
        cached: Whether it remembers which blobs it has, as Debian's own configuration has it. What is removed
            behind its back, or through another repository, is then thought to be there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authenticated: bool = False,
        certificate: Certificate | None = None,
        tokens: TokenServer | None = None,
        cached: bool = False,
    ) -> None:
        super().__init__(folder)
        self.authenticated, self._cached = authenticated, cached
        self._certificate, self._tokens = certificate, tokens
        if certificate is not None:
            self.scheme, self.name = "https", "localhost"
        (folder / "htpasswd").write_text(f"{USERNAME}:{_PASSWORD_HASH}\n")
        (folder / "config.yml").write_text(json.dumps(self._configuration()))  # JSON is YAML

    def _command(self) -> list[str]:
        return [program("docker-registry", "docker-registry"), "serve", str(self.folder / "config.yml")]

    def _welcome(self) -> int:
        return 401 if self.authenticated or self._tokens is not None else 200

    def _requests_in(self, lines: list[str]) -> list[str]:
        parts = [line.split('"') for line in lines if ' HTTP/1.1" ' in line or ' HTTP/2.0" ' in line]
        return [f"{part[1].rpartition(' ')[0]} {part[2].split()[0]}" for part in parts if len(part) > 2]

    def _configuration(self) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": f"127.0.0.1:{self.port}", "secret": "of no use"}
        if self._certificate is not None:
            http["tls"] = {"certificate": str(self._certificate.path), "key": str(self._certificate.key_path)}
        configuration: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "data")},
                "delete": {"enabled": True},
            },
            "http": http,
        }
        if self._cached:
            configuration["storage"]["cache"] = {"blobdescriptor": "inmemory"}
        if self.authenticated:
            configuration["auth"] = {
                "htpasswd": {"realm": "envbuild tests", "path": str(self.folder / "htpasswd")}
            }
        if self._tokens is not None:
            configuration["auth"] = {"token": self._tokens.configuration}
        return configuration
