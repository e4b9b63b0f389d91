"""The user's own logins for the servers of channels: where Conda's tools and others look for them.

In this order: ``RATTLER_AUTH_FILE``, the keyring's service ``rattler`` (where ``pixi auth login`` and
``rattler auth login`` put them), ``~/.rattler/credentials.json``, and ``netrc``. A login is for one host, is
sent to no other, and over plain HTTP only to this machine. An entry ``default`` of ``netrc`` is for every
host, public ones too, and is not used.
"""

from __future__ import annotations

import base64
import functools
import json
import netrc
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, unquote

from envbuild.errors import SpecError
from envbuild.oci.transport import is_loopback
from envbuild.url import read_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_AUTH_FILE: Final = "RATTLER_AUTH_FILE"
_SERVICE: Final = "rattler"
_KEYRING_SECONDS: Final = 10.0
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Login:
    """How to be let in at a server. Shown nowhere.

    Attributes:
        header: The value of ``Authorization``, or None.
        token: A token that stands as ``/t/TOKEN`` at the start of the path, or None.
    """

    header: str | None = None
    token: str | None = None

    @classmethod
    def basic(cls, user: str, password: str) -> Self:
        """User and password."""
        return cls(header=f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")

    @classmethod
    def parse(cls, entry: Any) -> Self | None:
        """An entry of a file of rattler's; None where it is of a kind that is no login for HTTP."""
        if not isinstance(entry, dict):
            return None
        pair, bearer, token = (entry.get(kind) for kind in ("BasicHTTP", "BearerToken", "CondaToken"))
        if isinstance(pair, dict) and all(isinstance(pair.get(key), str) for key in ("username", "password")):
            return cls.basic(pair["username"], pair["password"])
        if isinstance(bearer, str) and bearer.isprintable():
            return cls(header=f"Bearer {bearer}")
        return cls(token=token) if isinstance(token, str) else None

    def applied(self, url: str) -> tuple[str, dict[str, str]]:
        """The URL and the headers of a request with this login."""
        if self.token is not None:
            place = read_url(url)
            url = str(replace(place, path=f"/t/{quote(self.token, safe='')}{place.path}"))
        return url, {"Authorization": self.header} if self.header is not None else {}

    def __repr__(self) -> str:
        return "Login(***)"


def authorised(url: str, find: Callable[[str], Login | None] | None = None) -> tuple[str, dict[str, str]]:
    """The URL without user and password, and the headers that carry these or the user's own login.

    Args:
        url: A URL, maybe with credentials; these win.
        find: Gives the user's login for a URL without credentials; :func:`find_login` where it is None.

    Raises:
        SpecError: A file of logins cannot be read.
    """
    if url.startswith("file:"):
        return url, {}
    place = read_url(url)
    if place.user is not None:
        _, headers = Login.basic(unquote(place.user), unquote(place.password or "")).applied(url)
        return str(place.bare), headers
    login = (find or find_login)(url)
    if login is None or (login.token is not None and "/t/" in place.path):
        return url, {}
    return login.applied(url)


def find_login(url: str) -> Login | None:
    """The user's login for the server of a URL; None where there is none, or none is needed.

    Args:
        url: A URL without credentials.

    Raises:
        SpecError: A file of logins cannot be read.
    """
    if not may_carry_logins(url):
        return None
    place = read_url(url)
    return next(_found(place.hostname, place.netloc), None)


def may_carry_logins(url: str) -> bool:
    """Whether the user's own logins go to a URL: over TLS, or to this machine.

    Whoever writes a definition chooses the scheme, and would have a password go out in clear.
    """
    if url.startswith("file:"):
        return False
    place = read_url(url)
    return place.scheme == "https" or is_loopback(place.netloc)


def _found(host: str, server: str) -> Iterator[Login]:
    home = os.environ.get("HOME")
    if named := os.environ.get(_AUTH_FILE):
        yield from _in_table(_table(Path(named), required=True), host, server)
    for name in _names(host):
        if (program := _keyring_program()) and (login := _in_keyring(program, name)):
            yield login
    if home:
        table = _table(Path(home, ".rattler", "credentials.json"), required=False)
        yield from _in_table(table, host, server)
    if (pair := in_netrc(host)) is not None:
        yield Login.basic(*pair)


def _names(host: str) -> list[str]:
    """The names of a host's login: its own, then ``*.example.com`` from the closest domain up."""
    parts = host.split(".")
    if parts[-1].isdigit() or ":" in host:
        return [host]
    return [host, *(f"*.{'.'.join(parts[at:])}" for at in range(len(parts) - 1))]


def _in_table(table: Mapping[str, Any], host: str, server: str) -> Iterator[Login]:
    """The logins of a file of rattler's; one for the very port goes before one for any port of the host."""
    for name in dict.fromkeys((server, *_names(host))):
        if (login := Login.parse(table.get(name))) is not None:
            yield login


def _table(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        content = _content(path)
        if content is None and required:
            raise SpecError("the logins are not there", source=str(path), hint=_FORM)
        found = json.loads(content) if content is not None else {}
    except (OSError, ValueError, RecursionError) as error:
        # The parser's own words may quote what the file holds.
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise SpecError(f"the logins cannot be read: {reason}", source=str(path), hint=_FORM) from None
    if not isinstance(found, dict):
        raise SpecError("the logins are not a JSON object", source=str(path), hint=_FORM)
    return found


_FORM: Final = 'write {"HOST": {"BearerToken": "…"}} as rattler and pixi read it, or unset RATTLER_AUTH_FILE'


def in_netrc(host: str) -> tuple[str, str] | None:
    """User and password that ``netrc`` has for a host; errors as :func:`in_netrc_at_all`."""
    return in_netrc_at_all().get(host)


def in_netrc_at_all() -> dict[str, tuple[str, str]]:
    """Users and passwords that ``netrc`` has, by host.

    Raises:
        SpecError: The file cannot be read.
    """
    named, home = os.environ.get("NETRC"), os.environ.get("HOME")
    path = Path(named) if named else Path(home, ".netrc") if home else None
    if path is None:
        return {}
    try:
        status = path.stat()
        found = _netrc_hosts(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, netrc.NetrcParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is malformed"
        line = error.lineno if isinstance(error, netrc.NetrcParseError) else None
        raise SpecError(
            f"the logins cannot be read: {reason}",
            source=str(path),
            line=line,
            hint="correct or move the file",
        ) from None
    return {host: (user, word) for host, (user, _, word) in found.items()}


@functools.lru_cache(maxsize=4)
def _netrc_hosts(path: Path, _changed: int, size: int) -> dict[str, tuple[str, str, str]]:
    if size > _MAX_BYTES:
        raise ValueError(f"{size} bytes")
    hosts = netrc.netrc(path).hosts
    machines = {host: each for host, each in hosts.items() if host != "default"}
    return {host: (user, account, word or "") for host, (user, account, word) in machines.items()}


def _content(path: Path) -> bytes | None:
    """What a file of logins holds; None where it is not there."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(content) > _MAX_BYTES:
        raise ValueError("too large")
    return content


def _keyring_program() -> str | None:
    """The program ``keyring``, of the user's or beside this python."""
    beside = Path(sys.executable).with_name("keyring") if sys.executable else None
    return shutil.which("keyring") or (str(beside) if beside is not None and beside.is_file() else None)


@functools.lru_cache(maxsize=64)
def _in_keyring(program: str, name: str) -> Login | None:
    """What the keyring has, asked once a process; a keyring that is locked or broken has nothing."""
    try:
        asked = subprocess.run(
            [program, "get", _SERVICE, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_KEYRING_SECONDS,
            check=False,
        )
        return Login.parse(json.loads(asked.stdout)) if asked.returncode == 0 else None
    except (OSError, ValueError, RecursionError, subprocess.TimeoutExpired):
        return None
