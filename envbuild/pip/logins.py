"""The user's own logins for indexes: ``netrc``, and the keyring where it was asked for, as pip has them.

A login goes to the host that it is for. Source: pip's "Authentication" page; ``PIP_KEYRING_PROVIDER`` and
``UV_KEYRING_PROVIDER`` ask for the keyring, ``NETRC`` names the file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from posixpath import commonpath
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from envbuild.conda.logins import in_netrc, may_carry_logins
from envbuild.url import FETCHED, Url, read_url

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.deadline import Deadline

_VARIABLES: Final = ("PIP_KEYRING_PROVIDER", "UV_KEYRING_PROVIDER")
_ASKED: Final = frozenset({"auto", "import", "subprocess", "native"})
_LONGEST: Final = 60.0


def keyring_is_asked_for() -> bool:
    """Whether the user wants the keyring to be asked."""
    return any(os.environ.get(name, "").lower() in _ASKED for name in _VARIABLES)


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL: what a login is for."""
    return Url.parse(url, FETCHED).origin


def is_trusted(url: str, hosts: tuple[str, ...]) -> bool:
    """Whether ``--trusted-host`` gave up the proof that a URL's server is who it says."""
    place = Url.parse(url, None, template=True)
    port = place.origin[2]
    return place.hostname in hosts or f"{place.host}:{port}" in hosts


@dataclass(frozen=True)
class Logins:
    """Fills logins into URLs. Each question is asked once.

    Attributes:
        indexes: The URLs that the definition names, with the logins that it gives; the keyring may know them
            by their whole URL.
        deadline: When to give up.
        trusted: Hosts, maybe with ports, that need not prove who they are: the user's own logins are not for
            them.
    """

    indexes: tuple[str, ...] = field(repr=False)
    deadline: Deadline
    trusted: tuple[str, ...] = ()
    _known: dict[tuple[str, str | None], tuple[str, str] | None] = field(default_factory=dict, repr=False)

    def fill(self, url: str) -> str:
        """The URL with user and password, where the definition or the user has some for its origin."""
        if not url.startswith(("http://", "https://")):  # a file, or what is refused where it is fetched
            return url
        user, password = self._written(url)
        if user is None or password is None:
            user, password = self._own(url, user) or (user, password)
        if user is None:
            return url
        login = quote(user, safe="") + ("" if password is None else f":{quote(password, safe='')}")
        return str(replace(read_url(url), userinfo=login))

    def _written(self, url: str) -> tuple[str | None, str | None]:
        """The login in the URL, or in that of the nearest index on its origin."""
        for one in (url, *self._nearest(url)):
            place = read_url(one)
            if place.user is not None:
                return unquote(place.user), None if place.password is None else unquote(place.password)
        return None, None

    def _nearest(self, url: str) -> list[str]:
        """The indexes on a URL's origin, those first whose paths have most in common with it."""

        def distance(index: str) -> int:
            return -len(commonpath([f"/{read_url(one).path}" for one in (index, url)]))

        return sorted((index for index in self.indexes if origin(index) == origin(url)), key=distance)

    def _own(self, url: str, user: str | None) -> tuple[str, str] | None:
        if not may_carry_logins(url) or is_trusted(url, self.trusted):
            return None
        if (found := in_netrc(read_url(url).hostname)) is not None and user in {None, found[0]}:
            return found
        if not keyring_is_asked_for():
            return None
        bare = _bare(url)
        services = [_bare(index) for index in self._nearest(url)] or [bare]
        for service in (*dict.fromkeys(services), read_url(bare).netloc):
            if (found := self._from_keyring(service, user)) is not None:
                return found
        return None

    def _from_keyring(self, service: str, user: str | None) -> tuple[str, str] | None:
        asked = service, user
        if asked not in self._known:
            self._known[asked] = _ask_keyring(service, user, self.deadline)
        return self._known[asked]


def _ask_keyring(service: str, user: str | None, deadline: Deadline) -> tuple[str, str] | None:
    """What the program ``keyring`` says; it may know the user's name, too."""
    if (program := shutil.which("keyring")) is None:
        return None
    if user is not None and user.startswith("-"):  # the program would take it for an option
        return None
    answered = _run([program, "--mode=creds", "--output=json", "get", service, *_each(user)], deadline)
    if answered is not None:
        try:
            document = json.loads(answered)
            return str(document["username"]), str(document["password"])
        except (ValueError, KeyError, TypeError):
            return None
    if user is None:
        return None
    plain = _run([program, "get", service, user], deadline)  # keyrings before 25.2
    return None if plain is None else (user, plain.rstrip("\r\n"))


def _each(user: str | None) -> Iterable[str]:
    return () if user is None else (user,)


def _run(command: list[str], deadline: Deadline) -> str | None:
    deadline.check("asking the keyring")
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            timeout=deadline.remaining(at_most=_LONGEST),
            check=False,
        )
        return ended.stdout.decode() if ended.returncode == 0 else None
    except subprocess.TimeoutExpired:
        deadline.check("asking the keyring")
        return None
    except (OSError, UnicodeDecodeError):
        return None


def _bare(url: str) -> str:
    return str(read_url(url).bare)
