"""Where a pip section's wheels come from: indexes, folders of wheels, and the credentials for them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from envbuild.errors import SpecError
from envbuild.pip.logins import Logins
from envbuild.spec.pip import IndexStrategy
from envbuild.spec.requirement import redacted, strip_credentials, without_logins
from envbuild.spec.tokens import token_prefixes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.spec.pip import PipSection
    from envbuild.spec.requirement import PipRequirement

_VARIABLE: Final = re.compile(r"\$\{([A-Z0-9_]+)\}")


@dataclass(frozen=True)
class Sources:
    """The sources of one section, credentials filled in.

    Attributes:
        section: The section, with copies of its files (:func:`envbuild.pip.copies.with_copies`).
        indexes: The indexes in the order in which uv shall ask them, ready to be asked.
        links: The section's links, ready to be asked.
        direct: The fetch URL of each URL that the section names, and of the files that were found.
        tokens: What the URLs of servers with tokens begin with, without and with them.
        logins: Fills logins into URLs.
    """

    section: PipSection
    indexes: tuple[str, ...] = field(repr=False)
    links: tuple[str, ...] = field(repr=False)
    direct: dict[str, str] = field(repr=False)
    tokens: tuple[tuple[str, str], ...] = field(repr=False)
    logins: Logins

    @classmethod
    def of(cls, section: PipSection, pypi: str, deadline: Deadline) -> Self:
        """The sources of a section.

        Args:
            section: The section.
            pypi: Where the Python Package Index is.
            deadline: When to give up.

        Raises:
            SpecError: A variable for credentials is not set.
        """
        written = [_filled(url) for url in section.fetch_indexes]
        main, extra = (written[0], written[1:]) if section.own_index else (pypi, written)
        # Of equal files pip takes those of the last index, so that one comes first.
        strict = section.index_strategy is IndexStrategy.FIRST_INDEX
        indexes = (*(extra if strict else reversed(extra)), main)
        if "--no-index" in section.switches:
            indexes = ()
        links = [_filled(url) for url in section.fetch_links]
        named = {
            bare(each.url): _filled(each.fetch_url)
            for each in section.requirements
            if each.url and each.fetch_url
        }
        logins = Logins((*indexes, *links), deadline)
        return cls(
            section,
            tuple(map(logins.fill, indexes)),
            tuple(map(logins.fill, links)),
            {public: logins.fill(url) for public, url in named.items()},
            tuple(_tokens(section, pypi)),
            logins,
        )

    @property
    def are_merged(self) -> bool:
        """Whether the files of several indexes count as one index's, as with pip."""
        return self.section.index_strategy is IndexStrategy.PIP and len(self.indexes) > 1

    def places(self, turn: int, folder: Path | None) -> str:
        """The head of a requirements file: where uv finds wheels; it may hold credentials.

        Args:
            turn: Which of the indexes comes first.
            folder: A folder that is offered as well.
        """
        indexes = (*self.indexes[turn:], *self.indexes[:turn])
        lines = [f"--extra-index-url {url}" for url in indexes[:-1]]
        lines += [f"--index-url {url}" for url in indexes[-1:]] or ["--no-index"]
        folders = [each.path.parent for each in self.section.find_links_local] + ([folder] if folder else [])
        lines += [f"--find-links {link}" for link in (*self.links, *(path.as_uri() for path in folders))]
        return "".join(f"{line}\n" for line in lines)

    def requirements(self) -> str:
        """The requirements, a line each; they may hold credentials."""
        return "".join(f"{line}\n" for line in _texts(self.section.requirements))

    def constraints(self) -> str:
        """A constraints file; it may hold credentials."""
        return "".join(f"{line}\n" for line in _texts(self.section.constraints))

    def options(self) -> list[str]:
        """Arguments that say how, and hold no credentials."""
        options = []
        for host in self.section.trusted_hosts:
            options += ["--allow-insecure-host", host]
        chosen = dict.fromkeys(self.section.only_final, "disallow")
        chosen |= dict.fromkeys(self.section.all_releases, "allow")
        if "--pre" in self.section.switches:
            chosen[":all:"] = "allow"
        if ":all:" in chosen:
            options += ["--prerelease", chosen.pop(":all:")]
        for name, what in sorted(chosen.items()):
            options += ["--prerelease-package", f"{name}={what}"]
        return options

    def fetch_url(self, url: str) -> str:
        """The URL with the definition's login for its host, or the user's own."""
        if (known := self.direct.get(url)) is not None:
            return known
        for public, private in self.tokens:
            if url.startswith(f"{public}/"):
                return self.logins.fill(private + url.removeprefix(public))
        return self.logins.fill(url)

    def found(self, url: str) -> str:
        """The public URL of a file that was found; where it is fetched from is kept."""
        private = public = bare(url)
        for without, with_tokens in self.tokens:
            if private.startswith(f"{with_tokens}/"):
                public = without + private.removeprefix(with_tokens)
                self.direct.setdefault(public, self.logins.fill(private))
                break
        return public


def _texts(requirements: tuple[PipRequirement, ...]) -> Iterator[str]:
    """Requirements as uv reads them.

    Variables are filled in, for uv's own environment has none; hashes are held against the wheels later.
    """
    for each in requirements:
        yield each._replace(fetch_url=each.fetch_url and _filled(each.fetch_url), hashes=()).text()


def bare(url: str) -> str:
    """The URL without user, password and fragment."""
    return without_logins(url).partition("#")[0]


def _tokens(section: PipSection, pypi: str) -> Iterator[tuple[str, str]]:
    """What the URLs with tokens begin with, without and with them."""
    pairs = [(strip_credentials(url), url) for url in (*section.fetch_indexes, pypi)]
    pairs += [(strip_credentials(url, of_file=True), url) for url in section.fetch_links]
    pairs += [(each.url, each.fetch_url) for each in section.requirements if each.url and each.fetch_url]
    for public, private in pairs:
        if (prefixes := token_prefixes(bare(public), bare(_filled(private)))) is not None:
            yield prefixes


def _filled(url: str) -> str:
    """The URL with the variables in its credentials filled in."""

    def value(found: re.Match[str]) -> str:
        try:
            return os.environ[found[1]]
        except KeyError:
            raise SpecError(
                f"the variable {found[1]} of {redacted(url)} is not set",
                hint=f"set {found[1]} where envbuild runs",
            ) from None

    return _VARIABLE.sub(value, url)
