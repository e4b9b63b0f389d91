"""Rules, findings, and the list of all checks."""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envbuild.spec.document import Mark
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.match import MatchSpec
    from envbuild.spec.requirement import PipRequirement

Seen: TypeAlias = "tuple[str, Mark | None]"
"""What a rule saw, and where, if that is known."""
Check: TypeAlias = "Callable[[EnvironmentSpec], Iterable[Seen]]"


class Severity(enum.StrEnum):
    """How much a finding matters: a warning should be dealt with, a note should be known."""

    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule.

    Attributes:
        code: ``EB`` and three digits; never used again for anything else.
        name: The rule in two or three words.
        severity: How much a finding matters.
        why: What goes wrong.
        advice: What to do.
        settled_by_lock: Whether a lock that matches the definition takes the harm away.
        settled_by_moment: Whether ``as_of`` does: what is newest then is always the same.
    """

    code: str
    name: str
    severity: Severity
    why: str
    advice: str
    settled_by_lock: bool = False
    settled_by_moment: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A place in a definition that a rule speaks of.

    Attributes:
        rule: The rule.
        what: What was seen; free of credentials.
        source: The definition's name.
        mark: Where it stands; None where that is not known.
    """

    rule: Rule
    what: str
    source: str
    mark: Mark | None = None

    @property
    def place(self) -> str:
        """``file:line:column``, or the definition's name."""
        return str(self.mark) if self.mark is not None and self.mark.source else self.source

    def __str__(self) -> str:
        return f"{self.place}: {self.rule.code} {self.rule.severity}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        mark = self.mark if self.mark is not None and self.mark.source else None
        return {
            "code": self.rule.code,
            "name": self.rule.name,
            "severity": str(self.rule.severity),
            "what": self.what,
            "why": self.rule.why,
            "advice": self.rule.advice,
            "source": mark.source if mark else self.source,
            "line": mark.line if mark else None,
            "column": mark.column if mark else None,
        }


WARNING: Final = Severity.WARNING
NOTE: Final = Severity.NOTE
CHECKS: Final[list[tuple[Rule, Check]]] = []


def rule(
    code: str,
    name: str,
    severity: Severity,
    why: str,
    advice: str,
    *,
    lock: bool = False,
    moment: bool = False,
) -> Callable[[Check], Check]:
    """Make a rule of a function that yields what it sees and where; arguments as in :class:`Rule`."""

    def register(check: Check) -> Check:
        CHECKS.append((Rule(code, name, severity, why, advice, lock, moment), check))
        return check

    return register


def dependencies_of(spec: EnvironmentSpec) -> tuple[MatchSpec, ...]:
    """The Conda dependencies, if there are any."""
    return spec.conda.dependencies if spec.conda is not None else ()


def requirements_of(spec: EnvironmentSpec) -> tuple[PipRequirement, ...]:
    """The pip requirements, if there are any."""
    return spec.pip.requirements if spec.pip is not None else ()


def by_name(spec: EnvironmentSpec) -> dict[str, list[MatchSpec]]:
    """The Conda dependencies by name."""
    found: dict[str, list[MatchSpec]] = defaultdict(list)
    for one in dependencies_of(spec):
        found[one.name].append(one)
    return found
