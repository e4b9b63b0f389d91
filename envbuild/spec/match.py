"""What a definition asks of one Conda package: :class:`MatchSpec`, in one canonical spelling.

The canonical spelling is ``name version[build="…",channel="…",…]``, a match spec itself; it never changes
within a scheme. What most definitions hold is read in ``shortmatch``, all else in ``matchgrammar``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from envbuild.errors import SpecError
from envbuild.spec.channel import redact
from envbuild.spec.document import fail
from envbuild.spec.shortmatch import read_short, spell

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.spec.channel import Channel
    from envbuild.spec.document import Mark
    from envbuild.spec.shortmatch import Fields


class MatchSpec(NamedTuple):
    """What a definition asks of one package. Most callers want :meth:`parse`.

    Attributes:
        name: The package's name, lower case.
        version: The canonical version constraint, or None where every version is allowed.
        fields: The other constraints in canonical spelling: name and value, in a fixed order.
        spelling: The three above in the one spelling of their meaning; see :meth:`canonical`.
        channel: The channel to take the package from, with its credentials; None where any channel will do.
            It takes no part in comparing, like all that follows, and is not shown.
        private_url: The package's URL with its credentials, where the match spec gives one.
        mark: Where the match spec stands.
    """

    name: str
    version: str | None
    fields: Fields
    spelling: str
    channel: Channel | None = None
    private_url: str | None = None
    mark: Mark | None = None

    def __eq__(self, other: object) -> bool:
        return self[:3] == other[:3] if isinstance(other, MatchSpec) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:3])

    def __repr__(self) -> str:
        return f"MatchSpec({self.canonical()!r})"

    @classmethod
    def parse(cls, text: str, mark: Mark | None = None, base_folder: Path | None = None) -> Self:
        """Parse a match spec as a definition writes it.

        Args:
            text: The match spec.
            mark: Where it stands.
            base_folder: The folder that relative channels start from; None refuses them.

        Raises:
            SpecError: It is not a match spec, or one whose meaning is not certain.
        """
        if (short := read_short(text, mark)) is not None:
            return tuple.__new__(cls, short)
        from envbuild.spec.matchgrammar import read_match

        try:
            name, version, fields, channel, private_url = read_match(text, base_folder)
        except SpecError as error:
            fail(mark, f"match spec {redact(text[:80])!r}: {error.message}", error.hint)
        return cls(name, version, fields, spell(name, version, fields), channel, private_url, mark)

    def under(self, alias: str) -> MatchSpec:
        """The same with its channel where that leads under an alias; see :meth:`Channel.under`."""
        if self.channel is None or (channel := self.channel.under(alias)) == self.channel:
            return self
        fields = tuple((key, channel.canonical if key == "channel" else value) for key, value in self.fields)
        spelling = spell(self.name, self.version, fields)
        return self._replace(fields=fields, spelling=spelling, channel=channel)

    def get(self, key: str) -> str | None:
        """A constraint beside name and version, as ``build`` or ``sha256``; None where it is not given."""
        for name, value in self.fields:
            if name == key:
                return value
        return None

    def canonical(self) -> str:
        """The one spelling of this meaning; without credentials."""
        return self.spelling

    def __str__(self) -> str:
        return self.spelling
