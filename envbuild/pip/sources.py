"""Where a pip section's wheels come from: indexes, folders of wheels, and the credentials for them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit, urlunsplit

from envbuild.errors import SolveError
from envbuild.spec.requirement import strip_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.spec.pip import PipSection
    from envbuild.spec.requirement import PipRequirement

_VARIABLE: Final = re.compile(r"\$\{([A-Z0-9_]+)\}")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Sources:
    """The sources of one section, credentials filled in.

    Attributes:
        section: The section.
        pypi: Where the Python Package Index is.
        indexes: The section's indexes, ready to be asked.
        links: The section's links, ready to be asked.
        direct: The fetch URL of each URL that the section names.
    """

    section: PipSection
    pypi: str
    indexes: tuple[str, ...] = field(repr=False)
    links: tuple[str, ...] = field(repr=False)
    direct: dict[str, str] = field(repr=False)

    @classmethod
    def of(cls, section: PipSection, pypi: str) -> Self:
        """The sources of a section.

        Raises:
            SolveError: A variable for credentials is not set.
        """
        named = [_filled(each.fetch_url) for each in section.requirements if each.fetch_url]
        return cls(
            section,
            pypi,
            tuple(_filled(url) for url in section.fetch_indexes),
            tuple(_filled(url) for url in section.fetch_links),
            {bare(url): url for url in named},
        )

    def requirements(self, stubs: Path | None) -> str:
        """A requirements file in which uv finds the sources and the requirements; it may hold credentials.

        Args:
            stubs: A folder of stand-ins to be offered as well.
        """
        own = self.section.own_index
        lines = [f"--extra-index-url {url}" for url in self.indexes[1 if own else 0 :]]
        if "--no-index" in self.section.switches:
            lines = ["--no-index"]
        else:
            lines.append(f"--index-url {self.indexes[0] if own else self.pypi}")
        folders = [each.path for each in self.section.find_links_local] + ([stubs] if stubs else [])
        lines += [f"--find-links {link}" for link in (*self.links, *(path.as_uri() for path in folders))]
        return "".join(f"{line}\n" for line in [*lines, *_texts(self.section.requirements)])

    def constraints(self) -> str:
        """A constraints file; it may hold credentials."""
        return "".join(f"{line}\n" for line in _texts(self.section.constraints))

    def options(self) -> list[str]:
        """Arguments that say how, and hold no credentials."""
        options = []
        for host in self.section.trusted_hosts:
            options += ["--allow-insecure-host", host]
        if "--pre" in self.section.switches:
            options += ["--prerelease", "allow"]
        return options

    def fetch_url(self, url: str) -> str:
        """The URL, with the credentials of the index or link that is on the same host."""
        if (named := self.direct.get(url)) is not None:
            return named
        for source in (*self.indexes, *self.links, self.pypi):
            user, at, _ = urlsplit(source).netloc.rpartition("@")
            if at and _origin(source) == _origin(url):
                parts = urlsplit(url)
                return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc}"))
        return url


def _texts(requirements: tuple[PipRequirement, ...]) -> Iterator[str]:
    """Requirements as uv reads them.

    Variables are filled in, for uv's own environment has none; hashes are held against the wheels later.
    """
    for each in requirements:
        yield each._replace(fetch_url=each.fetch_url and _filled(each.fetch_url), hashes=()).text()


def bare(url: str) -> str:
    """The URL without credentials and fragment."""
    return strip_credentials(url).partition("#")[0]


def _filled(url: str) -> str:
    """The URL with the variables in its credentials filled in."""

    def value(found: re.Match[str]) -> str:
        try:
            return os.environ[found[1]]
        except KeyError:
            raise SolveError(
                f"the variable {found[1]} of {strip_credentials(url)} is not set",
                hint=f"set {found[1]} where envbuild runs",
            ) from None

    return _VARIABLE.sub(value, url)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
