"""Credentials, from wherever Docker, Podman or the environment keep them; read only when they are needed.

Order: ``ENVBUILD_USERNAME`` and ``ENVBUILD_PASSWORD`` for the host in ``ENVBUILD_HOST``, likewise
``ENVBUILD_USERNAME_<WORD>`` and the others with the same word; ``$DOCKER_CONFIG/config.json``, else
``~/.docker/config.json``; Podman's ``$REGISTRY_AUTH_FILE``, ``$XDG_RUNTIME_DIR/containers/auth.json`` and
``~/.config/containers/auth.json``. Sources: docker/cli ``config.json``, docker-credential-helpers' protocol,
containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild.errors import SpecError, Unauthorized
from envbuild.oci.transport import DOCKER_HUB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envbuild.reference import Repository

_HUB_KEY: Final = "https://index.docker.io/v1/"
_HUB_HOSTS: Final = frozenset({"index.docker.io", "registry-1.docker.io", DOCKER_HUB})
_USERNAME, _PASSWORD, _HOST = (f"ENVBUILD_{word}" for word in ("USERNAME", "PASSWORD", "HOST"))
_HELPER_SECONDS: Final = 30
_IDENTITY: Final = "<token>"
"""The user name under which a helper gives an identity token."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a registry knows a user by.

    Attributes:
        username: The user's name; empty beside an identity token.
        password: The password or access token.
        identity_token: A refresh token, to be exchanged at the registry's token server, or None.
    """

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)

    @property
    def basic(self) -> str | None:
        """The ``Authorization`` header for basic authentication, or None beside an identity token."""
        if self.identity_token is not None:
            return None
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True, slots=True)
class Keychain:
    """Finds credentials.

    Attributes:
        environment: Environment variables.
        home: The user's home folder.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    home: Path = field(default_factory=Path.home)

    def find(self, repository: Repository, *, helpers: bool = True) -> Credentials | None:
        """The credentials for a repository, or None to be anonymous.

        Args:
            repository: Whose host they are for.
            helpers: Whether helper programs may be run.

        Raises:
            SpecError: A file or variable that holds credentials cannot be understood.
            Unauthorized: A helper program is missing or failed.
        """
        found = self.located(repository, helpers=helpers)
        return found[0] if found is not None else None

    def located(self, repository: Repository, *, helpers: bool = True) -> tuple[Credentials, str] | None:
        """The same, and in words where they are kept: variables, a file, or a helper and who names it."""
        if (named := self._from_environment(repository.host)) is not None:
            return named
        for path in self._files():
            if (document := _load(path)) is None:
                continue
            if (found := _from_helper(document, repository, run=helpers)) is not None:
                return found, f"{_helper(document, repository)}, which {path} names"
            if (found := _from_auths(document, repository, path)) is not None:
                return found, str(path)
        return None

    def _from_environment(self, host: str) -> tuple[Credentials, str] | None:
        """The pair whose own ``ENVBUILD_HOST`` names the host: what stands behind the names is any word.

        Raises:
            SpecError: A pair has no host, or two pairs have the same one.
        """
        found: dict[str, Credentials] = {}
        for name in self.environment:
            end = name.removeprefix(_USERNAME)
            if end == name or (end and not end.startswith("_")):
                continue
            username, password, named = (
                self.environment.get(f"{variable}{end}") for variable in (_USERNAME, _PASSWORD, _HOST)
            )
            if username and password and _named_host(named, end) == host:
                found[end] = Credentials(username, password)
        if len(found) > 1:
            names = " and ".join(sorted(f"{_USERNAME}{end}" for end in found))
            raise SpecError(f"{names} are for the same host, {host}", hint="unset one of them")
        for end, credentials in found.items():
            return credentials, f"{_USERNAME}{end} and {_PASSWORD}{end}"
        return None

    def _files(self) -> Iterator[Path]:
        environment = self.environment
        yield Path(environment.get("DOCKER_CONFIG") or self.home / ".docker") / "config.json"
        if environment.get("REGISTRY_AUTH_FILE"):
            yield Path(environment["REGISTRY_AUTH_FILE"])
            return
        if environment.get("XDG_RUNTIME_DIR"):
            yield Path(environment["XDG_RUNTIME_DIR"]) / "containers/auth.json"
        yield Path(environment.get("XDG_CONFIG_HOME") or self.home / ".config") / "containers/auth.json"


def _named_host(host: str | None, end: str) -> str:
    """The host that a pair of variables is for."""
    # A password without a host would go to every host that asks for one.
    if not host:
        raise SpecError(
            f"{_USERNAME}{end} and {_PASSWORD}{end} say nothing of the host that they are for",
            hint=f"set {_HOST}{end} too, as {_HOST}{end}=registry.example.com",
        )
    if "/" in host:
        raise SpecError(f"{_HOST}{end} is {host!r}, expected HOST or HOST:PORT", hint="leave out the rest")
    return DOCKER_HUB if host.lower() in _HUB_HOSTS else host.lower()


def _load(path: Path) -> dict[str, Any] | None:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SpecError(f"credentials cannot be read: {error.strerror}", source=str(path)) from None
    try:
        document = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        # The content is not quoted: it may hold secrets.
        raise SpecError("expected a JSON object with 'auths'", source=str(path))
    return document


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name)
    return section if isinstance(section, dict) else {}


def _from_auths(document: dict[str, Any], repository: Repository, path: Path) -> Credentials | None:
    entries = {_normal(key): entry for key, entry in _section(document, "auths").items()}
    for name in _names(repository):
        entry = entries.get(name)
        if isinstance(entry, dict) and (found := _entry(entry, name, path)) is not None:
            return found
    return None


def _names(repository: Repository) -> Iterator[str]:
    """The names under which a repository's credentials may stand, the longest first."""
    name = f"{repository.host}/{repository.path}"
    while name:
        yield name
        name = name.rpartition("/")[0]


def _normal(key: str) -> str:
    name = re.sub(r"^https?://", "", key).rstrip("/")
    name = re.sub(r"/v[12]$", "", name)
    host, slash, path = name.partition("/")
    host = DOCKER_HUB if host.lower() in _HUB_HOSTS else host.lower()
    return f"{host}{slash}{path}"


def _entry(entry: dict[str, Any], name: str, path: Path) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials("", "", token)
    username, password = entry.get("username"), entry.get("password")
    if isinstance(username, str) and isinstance(password, str) and username:
        return Credentials(username, password)
    auth = entry.get("auth")
    if not isinstance(auth, str) or not auth:
        return None
    try:
        pair = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        pair = ""
    username, colon, password = pair.partition(":")
    if not colon:
        raise SpecError(
            f"the 'auth' of {name} is not the base64 of user:password",
            source=str(path),
            hint=f"log in again: docker login {name}",
        )
    return Credentials(username, password.rstrip("\0"))


def _from_helper(document: dict[str, Any], repository: Repository, *, run: bool) -> Credentials | None:
    program = _helper(document, repository) if run else None
    if program is None:
        return None
    server = _HUB_KEY if repository.host == DOCKER_HUB else repository.host
    return _ask_helper(program, server)


def _helper(document: dict[str, Any], repository: Repository) -> str | None:
    """The helper program for a repository's host."""
    helpers = {_normal(key): value for key, value in _section(document, "credHelpers").items()}
    suffix = helpers.get(repository.host) or document.get("credsStore")
    if not suffix:
        return None
    if not isinstance(suffix, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", suffix):
        raise SpecError(f"{suffix!r} is not the name of a credential helper")
    return f"docker-credential-{suffix}"


def _ask_helper(program: str, server: str) -> Credentials | None:
    import subprocess

    try:
        answer = subprocess.run(
            [program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise Unauthorized(
            f"the credential helper {program} for {server} is not there",
            hint=f"install {program}, or take it out of Docker's config.json",
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unauthorized(f"the credential helper {program} failed: {type(error).__name__}") from None
    if answer.returncode != 0:
        if b"not found" in answer.stdout + answer.stderr:
            return None
        raise Unauthorized(
            f"the credential helper {program} failed for {server} with exit code {answer.returncode}",
            hint=f"try it: echo {server} | {program} get",
        )
    return _helper_answer(answer.stdout, program)


def _helper_answer(content: bytes, program: str) -> Credentials | None:
    try:
        document = json.loads(content)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, KeyError, TypeError):
        raise Unauthorized(f"the credential helper {program} gave no user name and secret") from None
    if username == _IDENTITY:
        return Credentials("", "", str(secret))
    return Credentials(str(username), str(secret)) if username and secret else None
