"""Which proxy the environment names for a server, and what to say where the way there is the trouble."""

from __future__ import annotations

import os
import urllib.request
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from envbuild.oci.transport import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_AUTHORITY: Final = frozenset({18, 19, 20, 21})
"""OpenSSL's codes of a certificate that no known authority stands for."""
_BUNDLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def proxy_for(url: str) -> str | None:
    """The proxy for a URL's server, without its user and password."""
    parts = urlsplit(url)
    if is_loopback(parts.netloc) or urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found:
        return None
    scheme, separator, place = found.rpartition("://")
    return f"{scheme}{separator}{place.rpartition('@')[2]}"


def way_hint(url: str, error: BaseException) -> str | None:
    """What to look at on the way to a server: authorities that are not known, a proxy; None for neither."""
    if any(getattr(each, "verify_code", None) in _NO_AUTHORITY for each in _all(error)):
        named = [f"{name}={os.environ[name]}" for name in _BUNDLES if os.environ.get(name)]
        if named:
            return f"{' and '.join(named)} lacks the authority of the server's certificate: add it there"
        return "if the server's authority is your own, name the file of its certificates in SSL_CERT_FILE"
    if (proxy := proxy_for(url)) is not None:
        return f"it is asked through the proxy {proxy}: check that, or name the server in NO_PROXY"
    return None


def _all(error: BaseException) -> Iterator[BaseException]:
    """An error and the reasons that it gives."""
    yield error
    for inner in (getattr(error, "reason", None), error.__cause__, *error.args):
        if isinstance(inner, BaseException) and inner is not error:
            yield from _all(inner)
