"""Where a pip section's wheels come from: indexes, folders of wheels, and the credentials for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from envbuild.conda.variables import fill_variables, holds_variables
from envbuild.errors import SpecError
from envbuild.pip.logins import Logins, is_trusted
from envbuild.spec.pip import IndexStrategy
from envbuild.spec.requirement import redacted, strip_credentials, without_login
from envbuild.spec.tokens import token_prefixes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.spec.pip import PipSection
    from envbuild.spec.requirement import PipRequirement


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
        variables: For the names of variables that may stand for credentials the servers that these are for.
    """

    section: PipSection
    indexes: tuple[str, ...] = field(repr=False)
    links: tuple[str, ...] = field(repr=False)
    direct: dict[str, str] = field(repr=False)
    tokens: tuple[tuple[str, str], ...] = field(repr=False)
    logins: Logins
    variables: Mapping[str, tuple[str, ...]] = field(repr=False)

    @classmethod
    def of(
        cls,
        section: PipSection,
        pypi: str,
        deadline: Deadline,
        variables: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Self:
        """The sources of a section.

        Args:
            section: The section.
            pypi: Where the Python Package Index is.
            deadline: When to give up.
            variables: For the names of variables that may stand for credentials the servers that these are
                for.

        Raises:
            SpecError: A variable may not be used, or is not set.
        """
        allowed, trusted = variables or {}, section.trusted_hosts
        direct = [each.fetch_url for each in section.requirements if each.url and each.fetch_url]
        for url in (*section.fetch_indexes, *section.fetch_links, *direct):
            if holds_variables(url) and is_trusted(url, trusted):
                raise SpecError(
                    f"a variable would be sent to {redacted(url)}, which --trusted-host lets be anybody",
                    hint="take out --trusted-host, and have the server's authority in SSL_CERT_FILE",
                )
        written = [fill_variables(url, allowed) for url in section.fetch_indexes]
        main, extra = (written[0], written[1:]) if section.own_index else (pypi, written)
        # Of equal files pip takes those of the last index, so that one comes first.
        strict = section.index_strategy is IndexStrategy.FIRST_INDEX
        indexes = (*(extra if strict else reversed(extra)), main)
        if "--no-index" in section.switches:
            indexes = ()
        links = [fill_variables(url, allowed) for url in section.fetch_links]
        named = {
            bare(each.url): fill_variables(each.fetch_url, allowed)
            for each in section.requirements
            if each.url and each.fetch_url
        }
        logins = Logins((*indexes, *links), deadline, trusted)
        return cls(
            section,
            tuple(map(logins.fill, indexes)),
            tuple(map(logins.fill, links)),
            {public: logins.fill(url) for public, url in named.items()},
            tuple(_tokens(section, pypi, allowed)),
            logins,
            allowed,
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
        return "".join(f"{line}\n" for line in self._texts(self.section.requirements))

    def constraints(self) -> str:
        """A constraints file; it may hold credentials."""
        return "".join(f"{line}\n" for line in self._texts(self.section.constraints))

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

    def _texts(self, requirements: tuple[PipRequirement, ...]) -> Iterator[str]:
        """Requirements as uv reads them: variables filled in; hashes are held against the wheels later."""
        for each in requirements:
            url = each.fetch_url and fill_variables(each.fetch_url, self.variables)
            yield each._replace(fetch_url=url, hashes=()).text()


def bare(url: str) -> str:
    """The URL without user, password and fragment."""
    return without_login(url).partition("#")[0]


def _tokens(
    section: PipSection, pypi: str, allowed: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, str]]:
    """What the URLs with tokens begin with, without and with them."""
    pairs = [(strip_credentials(url), url) for url in (*section.fetch_indexes, pypi)]
    pairs += [(strip_credentials(url, of_file=True), url) for url in section.fetch_links]
    pairs += [(each.url, each.fetch_url) for each in section.requirements if each.url and each.fetch_url]
    for public, private in pairs:
        if (prefixes := token_prefixes(bare(public), bare(fill_variables(private, allowed)))) is not None:
            yield prefixes
