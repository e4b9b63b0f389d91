"""Where channels and packages are fetched from: mirrors first, then the channel itself with its credentials.

A package keeps the URL that its channel gives it, in locks, in ``conda-meta`` and in messages: mirrors and
credentials are chosen anew by whoever fetches.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from envbuild.errors import SpecError
from envbuild.spec.channel import split_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envbuild.spec.conda import CondaSection

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Origins:
    """Where the packages of one definition are fetched from. Most callers want :meth:`of`.

    Attributes:
        private: Each channel's public URL, and its URL with credentials; the longest first.
        mirrors: URLs in front of channels, and what stands in their place, in order; the longest first.
    """

    private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    mirrors: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(
        cls,
        urls: Iterable[str],
        mirrors: Mapping[str, tuple[str, ...]] | None = None,
        variables: frozenset[str] = frozenset(),
    ) -> Self:
        """The origins of some channels.

        Args:
            urls: The channels' URLs as they were written, maybe with credentials; of two that differ by these
                alone the first one counts.
            mirrors: For the URL of a channel, or of several, the URLs to read in its place.
            variables: The names of variables that may stand for credentials.

        Raises:
            SpecError: A variable may not be used, or is not set.
        """
        private: dict[str, str] = {}
        for url in urls:
            if not url.startswith("file:"):
                public, own = split_credentials(fill_variables(url, variables))
                private.setdefault(public.rstrip("/"), own.rstrip("/"))
        ordered = ((url.rstrip("/"), places) for url, places in (mirrors or {}).items())
        return cls(
            tuple(sorted(private.items(), key=_longest)),
            tuple(sorted(ordered, key=_longest)),
        )

    def places(self, url: str) -> tuple[str, ...]:
        """Where to fetch something from, in order; credentials are with the last one alone.

        Args:
            url: The public URL of a channel, or of something in it.
        """
        found: list[str] = []
        for place, instead in self.mirrors:
            if f"{url}/".startswith(f"{place}/"):
                found = [f"{mirror.rstrip('/')}{url.removeprefix(place)}" for mirror in instead]
                break
        return (*found, self._own(url))

    def _own(self, url: str) -> str:
        for public, private in self.private:
            if f"{url}/".startswith(f"{public}/"):
                return private + url.removeprefix(public)
        return url


def channel_urls(section: CondaSection | None) -> list[str]:
    """The URLs of all channels that a section or its dependencies name, and of the folders of named packages.

    Args:
        section: The section, or None.
    """
    if section is None:
        return []
    named = [each.channel for each in section.dependencies if each.channel is not None]
    packages = [each.private_url for each in section.dependencies if each.private_url is not None]
    folders = [url.rpartition("/")[0] for url in packages]
    return [url for channel in (*section.channels, *named) for url in channel.urls()] + folders


def fill_variables(url: str, allowed: frozenset[str]) -> str:
    """A channel's URL with the variables in its credentials filled in.

    Elsewhere in a URL none can stand: the key, which knows a URL without its credentials, would not know it.

    Raises:
        SpecError: A variable may not be used, or is not set.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in allowed:
            raise SpecError(
                f"the variable {name} in the URL of a channel may not be used",
                hint=f'allow it where envbuild runs, with channel_variables = ["{name}"] in envbuild.toml or '
                f"ENVBUILD_CHANNEL_VARIABLES={name}",
            )
        if (text := os.environ.get(name)) is None:
            raise SpecError(
                f"the variable {name} in the URL of a channel is not set",
                hint=f"set {name} where envbuild runs",
            )
        # A value may be encoded already; as it is, it could end the credentials and begin a host.
        return quote(text, safe="%:!$&'()*+,;=")

    return _VARIABLE.sub(value, url)


def _longest(pair: tuple[str, object]) -> int:
    return -len(pair[0])
