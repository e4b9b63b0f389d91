"""Which proxy the environment names for a server, and what to say where the way there is the trouble."""

from __future__ import annotations

import os
import re
import urllib.request
from typing import TYPE_CHECKING, Final

from envbuild.oci.transport import BUNDLES, is_loopback
from envbuild.url import read_url

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_AUTHORITY: Final = frozenset({18, 19, 20, 21})
"""OpenSSL's codes of a certificate that no known authority stands for."""
_NO_ISSUER: Final = re.compile(r"invalid peer certificate: (?:UnknownIssuer|BadSignature)")
"""The same in a solver's words; the second where another authority of the same name is known."""

_ASKED: Final = re.compile(r"https?://[^\s()'\"`<>]+")
_ON_THE_WAY: Final = re.compile(
    r"client error \((?:Connect|SendRequest)\)|tunnel|tcp connect error|connection (?:closed|reset)|dns error"
)
"""What the solvers say where no server answered; where one did, the way to it is not the trouble."""


def private_proxy_for(url: str) -> str | None:
    """The proxy for a URL's server as the environment has it, maybe with a user and a password."""
    place = read_url(url)
    if is_loopback(place.netloc) or urllib.request.proxy_bypass(place.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(place.scheme) or proxies.get("all")


def proxy_for(url: str) -> str | None:
    """The proxy for a URL's server, without its user and password."""
    if not (found := private_proxy_for(url)):
        return None
    scheme, separator, place = found.rpartition("://")
    return f"{scheme}{separator}{place.rpartition('@')[2]}"


def way_hint(url: str, error: BaseException | str) -> str | None:
    """What to look at on the way to a server: authorities that are not known, a proxy; None for neither.

    Args:
        url: What was asked.
        error: What went wrong; of the solvers, which report no more, their words.
    """
    bundles: tuple[str, ...] = BUNDLES
    if isinstance(error, str):
        no_authority, bundles = _NO_ISSUER.search(error) is not None, BUNDLES[:1]
        if "CaUsedAsEndEntity" in error:
            return "the server shows the certificate of an authority: give it one that the authority signed"
    else:
        codes = {getattr(each, "verify_code", None) for each in causes(error)}
        no_authority = bool(codes & _NO_AUTHORITY)
    if no_authority:
        named = [f"{name}={os.environ[name]}" for name in bundles if os.environ.get(name)]
        if named:
            return f"{' and '.join(named)} lacks the authority of the server's certificate: add it there"
        return "if the server's authority is your own, name the file of its certificates in SSL_CERT_FILE"
    if (proxy := proxy_for(url)) is not None:
        return f"it is asked through the proxy {proxy}: check that, or name the server in NO_PROXY"
    return None


def said_hint(said: str) -> str | None:
    """:func:`way_hint` where a solver's words, which name the URL, are all there is."""
    if _ON_THE_WAY.search(said) and (asked := _ASKED.search(said)):
        return way_hint(asked[0], said)
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the reasons that it gives."""
    yield error
    for inner in (getattr(error, "reason", None), error.__cause__, *error.args):
        if isinstance(inner, BaseException) and inner is not error:
            yield from causes(inner)
