"""Names that stand for channels with credentials, so that the solver never holds a secret.

The solver keeps the URLs that it reads in files and in what it says. It is given ``https://<name>.invalid``
instead of the server with its user, password or token; only its HTTP client knows what that stands for. Two
credentials of one server are two names, for they need not see the same packages.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote, urlsplit

from envbuild.spec.channel import split_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable

_MIRRORS: Final = 100
"""The solver's client gives up a mirror after three failures, for all of its life, and calls missing what was
there; one that is listed so often it does not."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """One server with one set of credentials.

    Attributes:
        name: The host that stands for it.
        private: ``scheme://user:password@host/folder/t/token``.
        public: ``scheme://host/folder``.
    """

    name: str
    private: str
    public: str

    @property
    def url(self) -> str:
        """What the solver reads for :attr:`private`."""
        return f"https://{self.name}"

    @property
    def place(self) -> str:
        """Where requests go: the token is in the path, user and password are in a header."""
        parts = urlsplit(self.private)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def authorization(self) -> str | None:
        """The header with user and password, or None."""
        userinfo, at, _ = urlsplit(self.private).netloc.rpartition("@")
        if not at:
            return None
        user, _, password = userinfo.partition(":")
        pair = f"{unquote(user)}:{unquote(password)}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    def __repr__(self) -> str:
        return f"StandIn({self.name} for {self.public})"


@dataclass(frozen=True, slots=True)
class StandIns:
    """The stand-ins of one solve. Most callers want :meth:`of`.

    Attributes:
        all: Each of them.
        names: Each channel that has credentials: its URL without them, and the one for the solver.
    """

    all: tuple[StandIn, ...]
    names: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, urls: Iterable[str]) -> Self:
        """Those that some channels need.

        Args:
            urls: The channels' URLs; of two that differ by their credentials alone the first one counts.
        """
        found: dict[str, StandIn] = {}
        names: dict[str, str] = {}
        for public, url in map(_split, urls):
            if url == public or public in names:
                continue
            path = _common_end(urlsplit(url).path, urlsplit(public).path)
            private = url.removesuffix(path)
            stand_in = found.setdefault(private, StandIn(_name(private), private, public.removesuffix(path)))
            names[public] = stand_in.url + path
        return cls(tuple(found.values()), tuple(names.items()))

    def named(self, url: str) -> str:
        """The URL of a channel, or of something in it, as the solver reads it."""
        plain = _split(url)[0]
        for public, name in self.names:
            if f"{plain}/".startswith(f"{public}/"):
                return name + plain.removeprefix(public)
        return url

    def private(self, url: str) -> str:
        """The URL to fetch from for one that the solver gave."""
        for each in self.all:
            if url.startswith(f"{each.url}/"):
                return each.private + url.removeprefix(each.url)
        return url

    def public(self, text: str) -> str:
        """What the solver said, with servers by their own names and without credentials."""
        for each in self.all:
            host = urlsplit(each.public).netloc
            for form, plain in ((each.url, each.public), (each.place, each.public), (each.name, host)):
                text = text.replace(form, plain)
        return text

    def headers(self, host: str, _path: str) -> dict[str, str] | None:
        """The headers for a request to a host, as the solver's client asks for them."""
        for each in self.all:
            if each.name == host and (value := each.authorization()) is not None:
                return {"Authorization": value}
        return None

    def mirrors(self) -> dict[str, list[str]]:
        """Where the requests for each stand-in go, as the solver's client asks for it."""
        return {f"{each.url}/": [f"{each.place}/"] * _MIRRORS for each in self.all}

    def __repr__(self) -> str:
        return f"StandIns({', '.join(each.public for each in self.all)})"


def _common_end(private: str, public: str) -> str:
    """The path behind the token, which both have; the whole path where there is no token in it."""
    segments: list[str] = []
    pairs = zip(reversed(private.split("/")), reversed(public.split("/")), strict=False)
    for segment, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs):
        segments.insert(0, segment)
    path = "/".join(segments)
    return path if path.startswith("/") or not path else f"/{path}"


def _split(url: str) -> tuple[str, str]:
    return (url, url) if url.startswith("file:") else split_credentials(url)


@functools.lru_cache(maxsize=64)
def _name(private: str) -> str:
    """A name, always the same, from which nobody learns the credentials by trying many."""
    secret = hashlib.scrypt(private.encode(), salt=b"envbuild channel", n=1 << 14, r=8, p=1, dklen=16)
    return f"{secret.hex()}.invalid"
