"""Why a section has no solution, in terms of its own lines: names, versions and channels that do not exist.

The solver reports its own search; a person asks which line to change. No channel is asked here: what they
hold is given.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from envbuild.lint.conda import contradictions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from envbuild.spec.document import Mark
    from envbuild.spec.match import MatchSpec

_RECORD: Final = re.compile(r"─ (\S++) ")
_HIDDEN: Final = "excluded because due to strict channel priority"
"""What the solver says of a record that another channel hides, on the record's line."""

_SHOWN: Final = 5
_MAX_NAMES: Final = 5
_OTHER_NAMES: Final = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "build": "python-build",
    "cv2": "opencv",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "graphviz-python": "python-graphviz",
    "kafka": "kafka-python",
    "lightgbm-gpu": "lightgbm",
    "magic": "python-magic",
    "msgpack": "msgpack-python",
    "nvidia-cuda-runtime": "cuda-cudart",
    "opencv-contrib-python": "opencv",
    "opencv-python": "opencv",
    "opencv-python-headless": "opencv",
    "pil": "pillow",
    "psycopg2-binary": "psycopg2",
    "pyqt5": "pyqt",
    "python3": "python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tables": "pytables",
    "tensorflow-gpu": "tensorflow",
    "torch": "pytorch",
    "xgboost-gpu": "xgboost",
    "yaml": "pyyaml",
}
"""What is called otherwise on PyPI or where it is imported; suggested only where the channels have it."""


class Offer(NamedTuple):
    """One build of a package in a channel.

    Attributes:
        channel: The channel's name.
        version: Its version.
        build: Its build.
        fits: The spellings of the match specs of its name that allow it, their channels set aside.
        versioned: The spellings of those that allow its version, whatever else they ask.
        late: Whether it is newer than the moment that the definition asks for, and so is not there.
    """

    channel: str
    version: str
    build: str
    fits: frozenset[str]
    versioned: frozenset[str]
    late: bool = False


Offers: TypeAlias = "Mapping[str, Sequence[Offer]]"
"""What the channels hold of packages, the newest first."""


class Finding(NamedTuple):
    """A reason that a line of the definition gives.

    Attributes:
        mark: The line; None where it is not known.
        what: What is wrong.
        hint: What to do.
    """

    mark: Mark | None
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.what}" if self.mark is not None and self.mark.source else self.what


@dataclass(frozen=True)
class Unsolvable:
    """A section without a solution.

    Attributes:
        dependencies: Its match specs.
        channels: The names of its channels, the first before others.
        placed: For the spelling of a match spec with a channel the names of what the channel stands for.
        strict: Whether the first channel that has a package hides it in all others.
        said: The solver's words.
    """

    dependencies: tuple[MatchSpec, ...]
    channels: tuple[str, ...]
    placed: Mapping[str, tuple[str, ...]]
    strict: bool
    said: str

    @property
    def names(self) -> list[str]:
        """The packages of which to find out what the channels hold."""
        asked = {each.name for each in self.dependencies if each.private_url is None}
        return sorted(asked | set(_hidden_names(self.said)))

    def needs_names(self, offers: Offers) -> bool:
        """Whether a name is unknown, so that all others are needed to say what was meant."""
        return any(name not in offers for name in self._asked())

    def findings(self, offers: Offers, known: Sequence[str]) -> tuple[Finding, ...]:
        """What is wrong, line by line.

        Args:
            offers: What the channels hold of :attr:`names`.
            known: The names of all packages in the channels; empty where :meth:`needs_names` is false.
        """
        found = [
            Finding(mark, what, "correct or delete one of the constraints")
            for what, mark in contradictions(self.dependencies)
        ]
        unknown = [name for name in self._asked() if name not in offers][:_MAX_NAMES]
        meant = {name: _meant(name, known) for name in unknown}
        seen: set[str] = set()
        for each in sorted(self.dependencies, key=lambda one: one.mark or ("", 0, 0)):
            if each.private_url is not None:
                continue
            finding = (
                self._missing(each, meant.get(each.name, []))
                if each.name not in offers
                else self._unfit(each, offers[each.name])
            )
            if finding is not None:
                seen.add(each.name)
                found.append(finding)
        others = sorted(set(_hidden_names(self.said)) - seen)
        hidden = (self._hidden(None, name, offers.get(name, ())) for name in others)
        return (*found, *(each for each in hidden if each is not None))

    def _asked(self) -> list[str]:
        """The names of the dependencies in order of their lines; virtual packages are in no channel."""
        ordered = sorted(self.dependencies, key=lambda one: one.mark or ("", 0, 0))
        asked = (each.name for each in ordered if each.private_url is None)
        return [name for name in dict.fromkeys(asked) if not name.startswith("__")]

    def _missing(self, spec: MatchSpec, meant: list[str]) -> Finding | None:
        if spec.name.startswith("__"):
            return None
        places = f"the channel{'s' if len(self.channels) > 1 else ''} {', '.join(self.channels)}"
        if not meant:
            hint = "check its name, or add the channel that has it; what only PyPI has goes under `pip:`"
            return Finding(spec.mark, f"no package {spec.name} is in {places}", hint)
        names = " or ".join(meant)
        what = f"no package {spec.name} is in {places}: did you mean {names}?"
        return Finding(spec.mark, what, f"write {meant[0]} in place of {spec.name}")

    def _unfit(self, spec: MatchSpec, offers: Sequence[Offer]) -> Finding | None:
        own = self.placed.get(spec.spelling)
        placed = [each for each in offers if own is None or each.channel in own]
        if own is not None and not placed:
            where = _listed(dict.fromkeys(each.channel for each in offers))
            what = f"no package {spec.name} is in the channel {', '.join(own)}: {where} has it"
            return Finding(spec.mark, what, "name the channel that has it, or none")
        fitting = [each for each in placed if spec.spelling in each.fits]
        if fitting and all(each.late for each in fitting):
            what = f"{spec.spelling}: {_versions(fitting)}, newer than as_of"
            return Finding(spec.mark, what, f"choose a later as_of, or an older version of {spec.name}")
        placed = [each for each in placed if not each.late] or placed
        fitting = [each for each in fitting if not each.late]
        if fitting:
            first = self._first(offers)
            hidden = self.strict and own is None and all(each.channel != first for each in fitting)
            return (
                self._hidden(spec, spec.name, offers) if hidden and not self._is_placed(spec.name) else None
            )
        if not any(spec.spelling in each.versioned for each in placed):
            what = f"no version of {spec.name} is {spec.version}: {_versions(placed)}"
            return Finding(spec.mark, what, f"choose a version of {spec.name} that exists")
        builds = _listed(dict.fromkeys(f"{each.version}={each.build}" for each in placed))
        what = f"no build of {spec.name} is as {spec.spelling} asks: there are {builds}"
        return Finding(spec.mark, what, f"choose a build of {spec.name} that exists")

    def _is_placed(self, name: str) -> bool:
        """Whether one of the match specs of a name says which channel it comes from."""
        return any(each.name == name and each.spelling in self.placed for each in self.dependencies)

    def _first(self, offers: Sequence[Offer]) -> str:
        """The first channel that has a package."""
        have = {each.channel for each in offers}
        return next((channel for channel in self.channels if channel in have), "")

    def _hidden(self, spec: MatchSpec | None, name: str, offers: Sequence[Offer]) -> Finding | None:
        first = self._first(offers)
        fitting = [
            each
            for each in offers
            if each.channel != first and not each.late and (spec is None or spec.spelling in each.fits)
        ]
        if not fitting:
            return None
        asked = spec.spelling if spec is not None else name
        channel = self._first(fitting)
        theirs = _listed(dict.fromkeys(each.version for each in fitting if each.channel == channel))
        ours = _listed(dict.fromkeys(each.version for each in offers if each.channel == first))
        return Finding(
            spec.mark if spec is not None else None,
            f"{asked}: the channel {channel} has {theirs}, hidden by the channel {first}, which comes first "
            f"and has {ours} (channel_priority: strict)",
            f"take it from that channel with {channel}::{name}, or set channel_priority: flexible",
        )


def _hidden_names(said: str) -> Iterator[str]:
    """The packages of which the solver says that another channel hides them."""
    for line in said.split("\n"):
        end = line.rfind(_HIDDEN)
        if end >= 0 and (record := _RECORD.search(line, 0, end)):
            yield record[1]


def _meant(name: str, known: Sequence[str]) -> list[str]:
    """What may have been meant by a name that no channel has."""
    there = set(known)
    if (other := _OTHER_NAMES.get(name)) is not None and other in there:
        return [other]
    dashed = {name.replace("_", "-"), name.replace("-", "_"), f"python-{name}", name.removeprefix("python-")}
    if spelled := sorted((dashed & there) - {name}):
        return spelled[:3]
    return difflib.get_close_matches(name, known, n=3, cutoff=0.75)


def _versions(offers: Sequence[Offer]) -> str:
    found: dict[str, dict[str, None]] = {}
    for each in offers:
        found.setdefault(each.channel, {})[each.version] = None
    return "; ".join(f"{channel} has {_listed(versions)}" for channel, versions in found.items())


def _listed(found: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    items = list(found)
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
