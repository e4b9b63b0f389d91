"""Names that stand for channels that are read elsewhere or with a login: the solver never holds a secret.

The solver keeps the URLs that it reads in files and in what it says. It is given ``https://<name>.invalid``
instead of a server with its user, password or token, and instead of a mirror; only its HTTP client knows what
that stands for. Where a token stands in the path it reads a copy (:mod:`envbuild.conda.copies`). Two
credentials of one server are two names, for they need not see the same packages.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from envbuild.conda.logins import authorised
from envbuild.spec.channel import split_credentials
from envbuild.url import read_url

if TYPE_CHECKING:
    from collections.abc import Iterable

_MIRRORS: Final = 100
"""The solver's client gives up a mirror after three failures, for all of its life, and calls missing what was
there; one that is listed so often it does not."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """One channel in the place where it is read.

    Attributes:
        public: Its URL without credentials.
        place: Where requests go: maybe with a token in the path, maybe another server or a folder.
        header: The value of ``Authorization``, or None.
        copy: The ``file:`` URL of the folder that is read instead, or an empty text.
    """

    public: str
    place: str = field(repr=False)
    header: str | None = field(default=None, repr=False)
    copy: str = ""

    @property
    def host(self) -> str:
        """The host that stands for it; of a folder, which needs none, it is empty."""
        return "" if self._folder else f"{self.secret_name}.invalid"

    @property
    def secret_name(self) -> str:
        """A name that tells it from every other, and nobody the secret."""
        return _name(f"{self.place} {self.header or ''}")

    @property
    def has_token(self) -> bool:
        """Whether a token stands in the path of the place, which no solver may ask for."""
        return not self.place.startswith("file:") and split_credentials(self.place)[0] != self.place

    @property
    def _folder(self) -> str:
        return self.copy or (self.place if self.place.startswith("file:") else "")

    @property
    def url(self) -> str:
        """What the solver reads for :attr:`public`."""
        host = self.host
        return f"https://{host}{read_url(self.public).path}" if host else self._folder


@dataclass(frozen=True, slots=True)
class StandIns:
    """The stand-ins of one solve. Most callers want :meth:`of`.

    Attributes:
        all: Each of them, the longest public URL first.
    """

    all: tuple[StandIn, ...] = ()

    @classmethod
    def of(cls, places: Iterable[tuple[str, str]]) -> Self:
        """Those that some channels need.

        Args:
            places: For the public URL of each channel where it is read; of two for one URL the first counts.

        Raises:
            SpecError: A file of logins cannot be read.
        """
        found: dict[str, StandIn] = {}
        for public, wanted in places:
            place, headers = authorised(wanted)
            header = headers.get("Authorization")
            if (place, header) != (public, None):
                found.setdefault(public, StandIn(public, place, header))
        return cls(tuple(sorted(found.values(), key=lambda each: -len(each.public))))

    def named(self, url: str) -> str:
        """The public URL of a channel, or of something in it, as the solver reads it."""
        for each in self.all:
            if f"{url}/".startswith(f"{each.public}/"):
                return each.url + url.removeprefix(each.public)
        return url

    def public(self, text: str) -> str:
        """What the solver said, with channels by their own URLs and without credentials."""
        for each in self.all:
            host = each.host
            forms = (
                (each.url, each.public),
                (each.place, each.public),
                (host, read_url(each.public).netloc if host else ""),
            )
            for form, plain in forms:
                text = text.replace(form, plain) if form else text
        return text

    def is_named_in(self, url: str, text: str) -> bool:
        """Whether the solver speaks of a channel, by its public URL, or of the place where it is read."""
        places = {url, self.named(url), *(each.place for each in self.all if each.public == url)}
        return any(f"{place}/" in text for place in places)

    def headers(self, host: str, _path: str) -> dict[str, str] | None:
        """The headers for a request to a host, as the solver's client asks for them."""
        for each in self.all:
            if each.host == host and each.header is not None:
                return {"Authorization": each.header}
        return None

    def mirrors(self) -> dict[str, list[str]]:
        """Where the requests for each stand-in go, as the solver's client asks for it."""
        return {f"{each.url}/": [f"{each.place}/"] * _MIRRORS for each in self.all if each.host}

    def __repr__(self) -> str:
        return f"StandIns({', '.join(each.public for each in self.all)})"


@functools.lru_cache(maxsize=64)
def _name(private: str) -> str:
    """A name, always the same, from which nobody learns the credentials by trying many."""
    secret = hashlib.scrypt(private.encode(), salt=b"envbuild channel", n=1 << 14, r=8, p=1, dklen=16)
    return secret.hex()
