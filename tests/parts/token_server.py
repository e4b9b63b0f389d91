"""A token server for Distribution's token authentication.

Sources: Distribution's "Token Authentication Specification" and its OAuth 2 form. Tokens are JSON Web Tokens,
signed with the key of a certificate that the registry has as its ``rootcertbundle``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import jwt

from parts.certificates import Certificate

SERVICE: Final = "envbuild tests"
ISSUER: Final = "envbuild token server"
_SCOPE: Final = re.compile(r"(repository|registry):([^:]+):([a-z,*]+)")


class TokenServer(ThreadingHTTPServer):
    """Gives a token for what is asked to whoever shows the right name and password, and reading to anybody.

    Args:
        certificate: Whose key signs.
        users: Passwords by name.
        lifetime: Seconds that a token holds; Distribution grants another 60.

    Attributes:
        granted: What was granted so far: the user's name, "" for nobody's, and the scopes.
    """

    daemon_threads = True

    def __init__(self, certificate: Certificate, users: dict[str, str], lifetime: int = 300) -> None:
        super().__init__(("127.0.0.1", 0), _Call)
        self._certificate, self._users, self._lifetime = certificate, users, lifetime
        self.granted: list[tuple[str, tuple[str, ...]]] = []
        self.refresh_tokens: dict[str, str] = {}

    @property
    def configuration(self) -> dict[str, str]:
        """The ``auth.token`` of Distribution's configuration."""
        return {
            "realm": f"http://127.0.0.1:{self.server_port}/token",
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": str(self._certificate.path),
        }

    def refresh_token(self, user: str) -> str:
        """A new identity token of a user, as ``docker login`` keeps one."""
        token = uuid.uuid4().hex
        self.refresh_tokens[token] = user
        return token

    def user_of(self, authorization: str | None) -> str | None:
        """Who shows an ``Authorization`` header: "" is nobody, None somebody with a wrong password."""
        if authorization is None:
            return ""
        kind, _, encoded = authorization.partition(" ")
        name, _, password = base64.b64decode(encoded).decode().partition(":")
        return name if kind == "Basic" and self._users.get(name) == password else None

    def token(self, user: str, scopes: list[str]) -> dict[str, Any]:
        """A token and how long it holds, as the specification has it."""
        access = []
        for kind, name, actions in (found.groups() for each in scopes if (found := _SCOPE.fullmatch(each))):
            allowed = [each for each in actions.split(",") if user or each == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        self.granted.append((user, tuple(scopes)))
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "jti": uuid.uuid4().hex,
            "access": access,
            "iat": now,
            "nbf": now - 10,
            "exp": now + self._lifetime,
        }
        body = "".join(self._certificate.path.read_text().split("-----")[2].split())
        key = self._certificate.key_path.read_text()
        token = jwt.encode(claims, key, algorithm="ES256", headers={"x5c": [body]})
        return {"token": token, "access_token": token, "expires_in": self._lifetime}


class _Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TokenServer

    def do_GET(self) -> None:
        """A token by basic authentication, or for nobody."""
        asked = parse_qs(urlsplit(self.path).query)
        self._answer(self.server.user_of(self.headers.get("Authorization")), asked.get("scope", []))

    def do_POST(self) -> None:
        """A token by an identity token, or by name and password in a form."""
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        if form.get("grant_type") == ["refresh_token"]:
            user = self.server.refresh_tokens.get(form["refresh_token"][0])
        else:
            pair = f"{form['username'][0]}:{form['password'][0]}".encode()
            user = self.server.user_of(f"Basic {base64.b64encode(pair).decode()}")
        self._answer(user, " ".join(form.get("scope", [])).split())

    def _answer(self, user: str | None, scopes: list[str]) -> None:
        scopes = [each for scope in scopes for each in scope.split()]
        status, document = (401, {}) if user is None else (200, self.server.token(user, scopes))
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def giving_tokens(
    certificate: Certificate, users: dict[str, str], lifetime: int = 300
) -> Iterator[TokenServer]:
    """A running token server."""
    server = TokenServer(certificate, users, lifetime)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
