"""Answering a registry that asks who we are: basic authentication, and bearer tokens of a token server.

Tokens are kept for a repository and its scopes, never for a host. Credentials are sent to their own registry
and to the token server that this registry names, and to nobody else. Sources: RFC 9110 ("WWW-Authenticate"),
Distribution's "Token Authentication Specification" and "OAuth2 Token Authentication".
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlencode

from envbuild.errors import Unauthorized
from envbuild.oci.credentials import Credentials, Keychain
from envbuild.oci.transport import failure, is_loopback
from envbuild.url import Url, UrlError, read_url

if TYPE_CHECKING:
    from envbuild.reference import Repository

__all__ = ["Authority", "Challenge", "Credentials", "Fetch", "Keychain", "scope"]

Fetch = Callable[[str, Mapping[str, str], bytes | None], tuple[int, Mapping[str, str], bytes]]
"""Sends a GET, or a POST if there is a body, to a URL with headers; gives status, headers and body."""

_PART: Final = re.compile(
    r"""(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]++)"""
    r"""(?:\s*+=\s*+(?:"(?P<quoted>(?>(?:[^"\\]|\\.)*))"|(?P<plain>[^\s,"]++)))?"""
)
_SHORTEST_LIFE: Final = 60
"""Seconds that a token lives where its server does not say: the specification's words."""
_LONGEST_LIFE: Final = 86_400
"""Seconds for which a token is used at most, whatever its server says."""
_MARGIN: Final = 0.9
"""The share of a token's life in which it is used."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for.

    Attributes:
        scheme: ``basic``, ``bearer`` or another, lower case.
        parameters: ``realm``, ``service``, ``scope`` and so on.
    """

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, header: str) -> tuple[Challenge, ...]:
        """The challenges of a ``WWW-Authenticate`` header, in its order; what is malformed is left out."""
        found: list[tuple[str, dict[str, str]]] = []
        for part in _PART.finditer(header[:8192]):
            value = part["plain"] if part["quoted"] is None else re.sub(r"\\(.)", r"\1", part["quoted"])
            if value is None:
                found.append((part["name"].lower(), {}))
            elif found:
                found[-1][1].setdefault(part["name"].lower(), value)
        return tuple(cls(scheme, parameters) for scheme, parameters in found)


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    expires: float

    @property
    def header(self) -> str:
        return f"Bearer {self.value}"


def scope(path: str, *actions: str) -> str:
    """A scope as token servers know it: ``repository:team/envs:pull,push``."""
    return f"repository:{path}:{','.join(actions)}"


class Authority:
    """Finds the ``Authorization`` header for one repository. May be used by several threads.

    Args:
        repository: The repository.
        base_url: The URL of its registry; the header goes nowhere else.
        keychain: Where credentials are found, or the credentials themselves.
    """

    def __init__(self, repository: Repository, base_url: str, keychain: Keychain | Credentials) -> None:
        self._repository = repository
        self._base_url = base_url
        self._keychain = keychain
        self._guard = threading.Lock()
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._basic: str | None = None
        self._bearer: Challenge | None = None
        self._asked = False

    def fresh(self, scopes: tuple[str, ...], fetch: Fetch, what: str) -> str | None:
        """As :meth:`header`, with a new token where one is needed: a large body is not sent in vain.

        Raises:
            Unauthorized: The token server refuses.
            Unavailable: The token server could not be asked.
        """
        header, bearer = self.header(scopes), self._bearer
        if header is not None or bearer is None:
            return header
        return self._renew(bearer, scopes, fetch, what)

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """The header that should do, without asking anybody; None to try without one."""
        with self._guard:
            token = self._tokens.get(scopes)
            if token is not None and time.monotonic() < token.expires:
                return token.header
            if not self._asked:
                # Saves the first 401 of a basic registry. Helper programs are run only if it comes to that.
                self._asked = True
                found = self._find(helpers=False)
                self._basic = found.basic if found else None
            return self._basic

    def answer(
        self, challenge: str, scopes: tuple[str, ...], refused: str | None, fetch: Fetch, what: str
    ) -> str:
        """The header that answers a 401.

        Args:
            challenge: The ``WWW-Authenticate`` header.
            scopes: What the request needs.
            refused: The header that was refused, or None.
            fetch: Asks token servers.
            what: Names the request for messages.

        Raises:
            Unauthorized: There are no credentials, or they are wrong.
            Unavailable: The token server could not be asked.
        """
        challenges = {each.scheme: each for each in reversed(Challenge.parse(challenge))}
        if (bearer := challenges.get("bearer")) is not None:
            return self._renew(bearer, scopes, fetch, what)
        if "basic" not in challenges:
            raise Unauthorized(f"{what}: the registry asks for {challenge[:80]!r}, which is not known")
        return self._answer_basic(refused, what)

    def _renew(self, bearer: Challenge, scopes: tuple[str, ...], fetch: Fetch, what: str) -> str:
        token = self._fetch_token(bearer, scopes, fetch, what)
        with self._guard:
            self._basic, self._asked = None, True
            self._tokens[scopes] = token
            known = {name: value for name, value in bearer.parameters.items() if name != "scope"}
            self._bearer = Challenge(bearer.scheme, known)
        return token.header

    def _answer_basic(self, refused: str | None, what: str) -> str:
        found = self._find()
        header = found.basic if found else None
        host = self._repository.host
        if header is None:
            raise Unauthorized(
                f"{what}: {host} asks for a user name and a password, and there are none for it",
                hint=f"docker login {host}, or set ENVBUILD_USERNAME, ENVBUILD_PASSWORD and ENVBUILD_HOST",
            )
        if header == refused:
            raise Unauthorized(
                f"{what}: {host} refuses the password of {found.username if found else ''!r}",
                hint=f"log in again: docker login {host}",
            )
        with self._guard:
            self._basic = header
        return header

    def _find(self, *, helpers: bool = True) -> Credentials | None:
        if isinstance(self._keychain, Credentials):
            return self._keychain
        return self._keychain.find(self._repository, helpers=helpers)

    def _fetch_token(self, asked: Challenge, scopes: tuple[str, ...], fetch: Fetch, what: str) -> _Token:
        realm = self._realm(asked, what)
        service = asked.parameters.get("service")
        wanted = tuple(dict.fromkeys((*scopes, *asked.parameters.get("scope", "").split())))
        found = self._find()
        if found is not None and found.identity_token is not None:
            status, headers, body = fetch(*_refresh(realm, service, wanted, found.identity_token))
        else:
            basic = {"Authorization": found.basic} if found and found.basic else {}
            status, headers, body = fetch(_with_query(realm, service, wanted), basic, None)
        if status != 200:
            raise failure(status, headers, body, f"{what}: asking {realm.netloc} for a token")
        return _parse_token(body, what)

    def _realm(self, asked: Challenge, what: str) -> Url:
        realm = asked.parameters.get("realm", "")
        said = f"{what}: the registry names {realm[:200]!r} as its token server; nothing is sent there"
        try:
            found = Url.parse(realm)
        except UrlError as error:
            raise Unauthorized(f"{said}: {error}") from None
        # In clear at most to where the registry itself is: whoever stands between could name any other.
        own = read_url(self._base_url)
        near = found.host == own.host or (is_loopback(found.netloc) and is_loopback(own.netloc))
        plain = own.scheme == "http" and near
        if found.userinfo is not None or (found.scheme != "https" and not plain):
            raise Unauthorized(said)
        return replace(found, fragment=None)


def _with_query(realm: Url, service: str | None, scopes: tuple[str, ...]) -> str:
    query = parse_qsl(realm.query or "")
    query += [("service", service)] if service else []
    query += [("scope", each) for each in scopes]
    return str(replace(realm, query=urlencode(query)))


def _refresh(
    realm: Url, service: str | None, scopes: tuple[str, ...], token: str
) -> tuple[str, Mapping[str, str], bytes]:
    form = {
        "grant_type": "refresh_token",
        "client_id": "envbuild",
        "refresh_token": token,
        "scope": " ".join(scopes),
        "service": service or "",
    }
    return (
        str(realm),
        {"Content-Type": "application/x-www-form-urlencoded"},
        urlencode(form).encode(),
    )


def _parse_token(body: bytes, what: str) -> _Token:
    try:
        document = json.loads(body)
        value = document.get("token") or document.get("access_token")
        seconds = document.get("expires_in") or _SHORTEST_LIFE
    except (ValueError, AttributeError, RecursionError):
        value = seconds = None
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise Unauthorized(f"{what}: the token server's answer holds no token")
    if not isinstance(seconds, int | float) or not seconds > 0:
        seconds = _SHORTEST_LIFE
    life = min(seconds, _LONGEST_LIFE)
    return _Token(value, time.monotonic() + life * _MARGIN)
