"""Variables that stand for logins in URLs of channels and indexes: which may, and for which server.

Whoever writes a definition chooses the URL, and whoever runs envbuild owns the variables. So a variable is
filled in only where the latter bound it to the server that it would be sent to.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from envbuild.errors import SpecError
from envbuild.url import Url, read_url

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONE_PERCENT: Final = re.compile("%(?![0-9A-Fa-f]{2})")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def holds_variables(url: str) -> bool:
    """Whether a variable stands in a URL."""
    return _VARIABLE.search(url) is not None


def fill_variables(url: str, allowed: Mapping[str, tuple[str, ...]]) -> str:
    """A URL with the variables in its credentials filled in.

    Elsewhere in a URL none can stand: the key, which knows a URL without its credentials, would not know it.

    Args:
        url: The URL, as the definition has it.
        allowed: For the name of a variable the servers that it may be sent to, as ``https://host``.

    Raises:
        SpecError: A variable may not be sent there, or is not set.
    """
    if not holds_variables(url):
        return url
    server = Url.parse(url, None, template=True)
    place = server.netloc if server.scheme == "https" else f"{server.scheme}://{server.netloc}"

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if not any(server.origin == read_url(each).origin for each in allowed.get(name, ())):
            raise SpecError(
                f"the variable {name} may not be sent to {place}",
                hint=f'allow it where envbuild runs: ENVBUILD_LOGIN_VARIABLES="{name}={place}", or '
                f'login_variables.{name} = "{place}" in your own settings, not in those of the project',
            )
        if not (text := os.environ.get(name)):
            raise SpecError(
                f"the variable {name} in a URL of {place} is not set, or empty",
                hint=f"set {name} where envbuild runs",
            )
        # A value may be encoded already; as it is, it could end the credentials and begin a host.
        return _LONE_PERCENT.sub("%25", quote(text, safe="%:!$&'()*+,;="))

    return _VARIABLE.sub(value, url)
