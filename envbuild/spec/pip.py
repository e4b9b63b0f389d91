"""The pip section: requirements, constraints and the options that decide what is installed.

Source: pip's "Requirements File Format" page. Included files count by what they hold, local sources by their
bytes, URLs without their credentials. What would make pip read something that the key does not know (a
variable, a file on the web) is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, Self

from envbuild.errors import SpecError
from envbuild.spec.collector import Collector, logical_lines
from envbuild.spec.document import fail, refuse
from envbuild.spec.requirement import PipRequirement
from envbuild.spec.shortrequirement import read_short_requirement

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envbuild.spec.document import Mark
    from envbuild.spec.local import LocalSource


class Item(Protocol):
    """A text with its place, such as a scalar of a YAML document."""

    @property
    def value(self) -> str:
        """The text."""

    @property
    def mark(self) -> Mark:
        """Its place."""


class IndexStrategy(StrEnum):
    """Of which indexes a name's files are taken; pip's way is the default."""

    PIP = "pip"
    """All of them: the best version of any wins, as with pip."""

    FIRST_INDEX = "first-index"
    """The first that has the name: no later one can put its own in its place."""


@dataclass(frozen=True, slots=True)
class PipSection:
    """What pip is asked for. Equality and ``repr`` know no credentials.

    Attributes:
        requirements: Sorted, each once.
        constraints: Sorted, each once.
        indexes: The index URLs in order of search, without credentials; the first replaces PyPI where
            ``own_index`` is true.
        own_index: Whether ``--index-url`` was given.
        find_links: URLs without credentials, in order.
        find_links_local: Local folders or files of ``--find-links``.
        no_binary: Names, or ``:all:``, sorted.
        only_binary: Names, or ``:all:``, sorted.
        trusted_hosts: Sorted.
        switches: Of ``--no-index --no-require-hashes --pre --prefer-binary --require-hashes`` those that were
            given, sorted.
        all_releases: Names, or ``:all:``, of which pre-releases are taken; sorted.
        only_final: Names, or ``:all:``, of which none are taken; sorted.
        index_strategy: Which index's files of a name count.
        fetch_indexes: ``indexes`` as they were written, with credentials.
        fetch_links: ``find_links`` as they were written, with credentials.
    """

    requirements: tuple[PipRequirement, ...] = ()
    constraints: tuple[PipRequirement, ...] = ()
    indexes: tuple[str, ...] = ()
    own_index: bool = False
    find_links: tuple[str, ...] = ()
    find_links_local: tuple[LocalSource, ...] = ()
    no_binary: tuple[str, ...] = ()
    only_binary: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    all_releases: tuple[str, ...] = ()
    only_final: tuple[str, ...] = ()
    index_strategy: IndexStrategy = IndexStrategy.PIP
    fetch_indexes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    fetch_links: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def parse(cls, items: Iterable[Item], folder: Path | None) -> Self:
        """Parse the items under ``pip:`` of a Conda definition; each is one line of a requirements file.

        Args:
            items: The items.
            folder: What relative paths start from; None where there is no file, and so no relative path.

        Raises:
            SpecError: An item is not understood, refused, or names a file that cannot be read.
        """
        collector = Collector()
        mistakes: list[SpecError] = []
        for item in items:
            if (short := read_short_requirement(item.value)) is not None:
                collector.requirement(PipRequirement(*short, mark=item.mark))
                continue
            try:
                lines = list(logical_lines(item.value.strip(), item.mark))
                if "\n" in item.value.strip() or len(lines) > 1:
                    fail(
                        item.mark,
                        "a pip item of several lines, expected one",
                        "write one requirement an item",
                    )
                for text, _ in lines:
                    collector.line(text, item.mark, folder, constraint=False)
            except SpecError as error:
                mistakes.append(error)
        refuse(mistakes)
        return cls(**collector.members())

    @classmethod
    def from_requirements(cls, content: bytes, source: str, folder: Path | None) -> Self:
        """Parse a requirements file.

        Args:
            content: The file's bytes.
            source: Its name for messages.
            folder: What relative paths start from.

        Raises:
            SpecError: As :meth:`parse`.
        """
        collector = Collector()
        collector.file(content, source, folder, constraint=False)
        return cls(**collector.members())

    def canonical(self) -> dict[str, Any]:
        """The section's part of the canonical form: JSON values only.

        What came after the form was published is there only where it is given, so that no key moved.
        """
        later: dict[str, Any] = {
            "allReleases": list(self.all_releases),
            "indexStrategy": "" if self.index_strategy is IndexStrategy.PIP else str(self.index_strategy),
            "onlyFinal": list(self.only_final),
        }
        return {
            **{name: value for name, value in later.items() if value},
            "constraints": [one.to_json() for one in self.constraints],
            "findLinks": list(self.find_links),
            "findLinksLocal": [one.to_json() for one in self.find_links_local],
            "indexes": list(self.indexes),
            "noBinary": list(self.no_binary),
            "onlyBinary": list(self.only_binary),
            "ownIndex": self.own_index,
            "requirements": [one.to_json() for one in self.requirements],
            "switches": list(self.switches),
            "trustedHosts": list(self.trusted_hosts),
        }

    def requirements_text(self) -> str:
        """A requirements file that says the same without includes; it may hold credentials."""
        links = [*self.fetch_links, *(str(one.path) for one in self.find_links_local)]
        lines = [
            f"{'--index-url' if self.own_index and not position else '--extra-index-url'} {url}"
            for position, url in enumerate(self.fetch_indexes)
        ]
        lines += [f"--find-links {link}" for link in links]
        lines += [f"--no-binary {name}" for name in self.no_binary]
        lines += [f"--only-binary {name}" for name in self.only_binary]
        lines += [f"--all-releases {name}" for name in self.all_releases]
        lines += [f"--only-final {name}" for name in self.only_final]
        lines += [f"--trusted-host {host}" for host in self.trusted_hosts]
        lines += [*self.switches, *(one.text() for one in self.requirements)]
        return "".join(f"{line}\n" for line in lines)

    def constraints_text(self) -> str:
        """A constraints file; it may hold credentials."""
        return "".join(f"{one.text()}\n" for one in self.constraints)
