"""Where channels and packages are fetched from: mirrors first, then the channel itself with its credentials.

A package keeps the URL that its channel gives it, in locks, in ``conda-meta`` and in messages: mirrors and
credentials are chosen anew by whoever fetches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from envbuild.conda.variables import fill_variables
from envbuild.spec.channel import split_credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envbuild.spec.conda import CondaSection


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
        variables: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Self:
        """The origins of some channels.

        Args:
            urls: The channels' URLs as they were written, maybe with credentials; of two that differ by these
                alone the first one counts.
            mirrors: For the URL of a channel, or of several, the URLs to read in its place.
            variables: For the names of variables that may stand for credentials the servers that these are
                for.

        Raises:
            SpecError: A variable may not be used, or is not set.
        """
        private: dict[str, str] = {}
        for url in urls:
            if not url.startswith("file:"):
                public, own = split_credentials(fill_variables(url, variables or {}))
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


def _longest(pair: tuple[str, object]) -> int:
    return -len(pair[0])
