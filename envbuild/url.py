r"""URLs, read once: a grammar so strict that no two readers take one URL for two places.

RFC 3986 and WHATWG's URL Standard read some texts differently: ``http://a\@b`` leads to ``b`` by the first
and to ``a`` by the second. Libraries follow one or the other, and some follow neither. So what they could
disagree on is refused here, and whoever sends a request gets the URL that was put together again.

Sources: RFC 3986, appendix A; WHATWG, "URL Standard", sections 3.5 (hosts) and 4.4 (parsing).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Collection

PORTS: Final = {"http": 80, "https": 443}
WEB: Final = frozenset(PORTS)
FILE: Final = frozenset({"file"})
FETCHED: Final = WEB | FILE

_MAX_LENGTH: Final = 8192
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*+")
_USERINFO: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
_VARIABLE: Final = re.compile(r"\$\{[A-Za-z0-9_]+\}")
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_BYTE: Final = re.compile(r"0|[1-9][0-9]{0,2}")
_ADDRESS: Final = re.compile(r"\[[0-9A-Fa-f:]{2,39}\]")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_DOTS: Final = re.compile(r"(?:^|/)(?:\.|%2[Ee]){1,2}(?:/|$)")
_TAIL: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_FRAGMENT: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})*")
"""No server sees it, and pip has brackets there."""
_LONGEST_PLAIN: Final = 250
_PLAIN: Final = re.compile(
    r"(https?)://((?:[a-z0-9]++(?:-[a-z0-9]++)*+\.)*+[a-z][a-z0-9]*+)"
    r"((?:/[A-Za-z0-9_~+-][A-Za-z0-9._~+-]*+)*+/?)"
)
"""Most URLs that are written, read in one piece: a part of the grammar, and no other one."""
_HIDDEN: Final = re.compile(r"[^!-~]")
_ESCAPED: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|[ \"<>\[\\\]^`{|}\x80-\xff]")
"""What belongs into escapes; a header's bytes above ASCII are read as Latin-1."""


class UrlError(ValueError):
    """A text that is no URL, or none that all readers read alike. The message says why, without a login."""


@dataclass(frozen=True, slots=True)
class Url:
    """A URL in its parts. Most callers want :meth:`parse`; ``str`` puts it together again.

    Attributes:
        scheme: In lower case.
        host: In lower case, of IPv6 with its brackets; empty for a file.
        port: None where it is the scheme's own.
        path: Empty, or from its first slash on; escapes stay as they were written.
        query: What follows ``?``; None where there is none.
        fragment: What follows ``#``; None where there is none.
        userinfo: What precedes ``@``, escapes and all; None where there is none. It is not shown.
    """

    scheme: str
    host: str
    port: int | None = None
    path: str = field(default="", repr=False)
    query: str | None = field(default=None, repr=False)
    fragment: str | None = field(default=None, repr=False)
    userinfo: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, schemes: Collection[str] | None = WEB, *, template: bool = False) -> Self:
        """Read a URL.

        Args:
            text: The URL.
            schemes: Those that are allowed; any if None.
            template: Whether ``${NAME}`` may stand in user and password, and in the path for a token.

        Raises:
            UrlError: It is none, or some readers would read it in another way.
        """
        if len(text) <= _LONGEST_PLAIN and (plain := _PLAIN.fullmatch(text)):
            scheme, host, path = plain.groups()
            if schemes is None or scheme in schemes:
                return cls(scheme, host, None, path)
        if len(text) > _MAX_LENGTH:
            raise UrlError(f"it has {len(text)} characters, at most {_MAX_LENGTH} are read")
        if found := _HIDDEN.search(text):
            what = "a space" if found[0] == " " else f"the character U+{ord(found[0]):04X}"
            raise UrlError(f"it holds {what}; write it as %XX, and a host in its ASCII form")
        if "\\" in text:
            raise UrlError("it holds a backslash, which some readers take for '/'; write it as %5C")
        scheme, separator, rest = text.partition("://")
        if not separator or not _SCHEME.fullmatch(scheme):
            raise UrlError("it does not begin as https://")
        if schemes is not None and scheme.lower() not in schemes:
            raise UrlError(f"its scheme is {scheme.lower()!r}, expected {' or '.join(sorted(schemes))}")
        rest, has_fragment, fragment = rest.partition("#")
        rest, has_query, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        return cls(
            scheme.lower(),
            *_authority(authority, scheme.lower()),
            _path(slash + path, is_file=scheme.lower() in FILE, template=template),
            _whole(_TAIL, query, "query") if has_query else None,
            _whole(_FRAGMENT, fragment, "fragment") if has_fragment else None,
            _userinfo(authority, template=template),
        )

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what a login is for."""
        return self.scheme, _canonical(self.host), self.port or PORTS.get(self.scheme, 0)

    @property
    def hostname(self) -> str:
        """The host; of IPv6 without its brackets."""
        return self.host.removeprefix("[").removesuffix("]")

    @property
    def netloc(self) -> str:
        """Host and port, as in the header ``Host``."""
        return self.host if self.port is None else f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query, as in a request."""
        return (self.path or "/") + ("" if self.query is None else f"?{self.query}")

    @property
    def user(self) -> str | None:
        """The user, escapes and all."""
        return None if self.userinfo is None else self.userinfo.partition(":")[0]

    @property
    def password(self) -> str | None:
        """The password, escapes and all; None where no colon stands."""
        if self.userinfo is None:
            return None
        _, colon, password = self.userinfo.partition(":")
        return password if colon else None

    @property
    def bare(self) -> Url:
        """The same without user and password."""
        return self if self.userinfo is None else replace(self, userinfo=None)

    def join(self, location: str) -> Url:
        """Where a redirect, or a link in an answer, leads from here, without its fragment.

        A server's answers are less well kept than what people write: in a query, what has to be escaped is.

        Args:
            location: A URL, or a path from here on.

        Raises:
            UrlError: It is none, some readers would read it in another way, or it names a user.
        """
        found = self._joined(location)
        if found.userinfo is not None:
            raise UrlError("it names a user, which is for the one to say who asks")
        return replace(found, fragment=None)

    def _joined(self, location: str) -> Url:
        place, mark, rest = location.partition("?")
        if mark:
            rest = _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", rest)
        text = f"{place}{mark}{rest}"
        if _SCHEME.match(place) and ":" in place.partition("/")[0]:
            return Url.parse(text)
        here = f"{self.scheme}://{self.netloc}"
        if text.startswith("//"):
            return Url.parse(f"{self.scheme}:{text}")
        if text.startswith("/"):
            return Url.parse(here + text)
        if not text or text.startswith("#"):
            return Url.parse(f"{here}{self.target}{text}")
        if not place:
            return Url.parse(f"{here}{self.path}{text}")
        return Url.parse(f"{here}{self.path.rpartition('/')[0]}/{text}")

    def __str__(self) -> str:
        login = "" if self.userinfo is None else f"{self.userinfo}@"
        query = "" if self.query is None else f"?{self.query}"
        fragment = "" if self.fragment is None else f"#{self.fragment}"
        return f"{self.scheme}://{login}{self.netloc}{self.path}{query}{fragment}"


@functools.lru_cache(256)
def read_url(text: str) -> Url:
    """A web URL that is asked over and over, as :meth:`Url.parse` reads it."""
    return Url.parse(text)


def _userinfo(authority: str, *, template: bool) -> str | None:
    userinfo, at, _ = authority.rpartition("@")
    if not at:
        return None
    if not _USERINFO.fullmatch(_VARIABLE.sub("x", userinfo) if template else userinfo):
        # Not shown: it may be a password.
        raise UrlError("its user or password holds a character that must be written as %XX, as %40 for '@'")
    return userinfo


def _authority(authority: str, scheme: str) -> tuple[str, int | None]:
    """Host and port."""
    place = authority.rpartition("@")[2]
    if scheme == "file":
        if authority not in {"", "localhost"}:
            raise UrlError("it names a file of another machine; write it as file:///absolute/path")
        return "", None
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host = place
    number = int(port) if _PORT.fullmatch(port) else 0
    if colon and not 0 < number < 1 << 16:
        raise UrlError("its port is not a number from 1 to 65535 without zeros in front")
    return checked_host(host), None if not colon or number == PORTS.get(scheme) else number


def checked_host(host: str) -> str:
    """A host in lower case.

    Raises:
        UrlError: It is none, or some readers would take it for another one, as a number for an address.
    """
    if host.startswith("["):
        if not _ADDRESS.fullmatch(host) or _canonical(host.lower()) == "":
            raise UrlError("the host in brackets is not an IPv6 address")
        return host.lower()
    if not host:
        raise UrlError("it has no host")
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise UrlError("its host is not made of letters, digits and '-' between dots")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]) and not (
        len(labels) == 4 and all(_BYTE.fullmatch(label) and int(label) < 256 for label in labels)
    ):
        raise UrlError("its host ends in a number and is no address, which is written as 127.0.0.1")
    return host.lower()


def _canonical(host: str) -> str:
    """The one spelling of a host, for comparing; empty for brackets around what is no address."""
    if not host.startswith("["):
        return host
    import ipaddress

    try:
        return ipaddress.IPv6Address(host[1:-1]).exploded
    except ValueError:
        return ""


def _path(path: str, *, is_file: bool, template: bool) -> str:
    _whole(_PATH, _VARIABLE.sub("x", path) if template else path, "path")
    if not is_file and _DOTS.search(path):  # of a file it is resolved before anybody else reads it
        raise UrlError("its path holds '.' or '..'; write it without")
    if path.startswith("//"):
        raise UrlError("its path begins with two slashes; write one")
    return path


def _whole(pattern: re.Pattern[str], text: str, what: str) -> str:
    found = pattern.match(text)
    end = found.end() if found is not None else 0
    if end < len(text):
        raise UrlError(f"its {what} holds {text[end]!r}, which must be written as %{ord(text[end]):02X}")
    return text
