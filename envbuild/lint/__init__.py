"""What is allowed in a definition and still likely to hurt: rules over a parsed definition, without I/O.

Each rule has a code that never changes its meaning; ``docs/lint.md`` lists them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from envbuild.lint import conda, image, pip  # each registers its rules
from envbuild.lint.rule import CHECKS, Finding, Rule, Severity

if TYPE_CHECKING:
    from envbuild.spec.environment import EnvironmentSpec

__all__ = ["RULES", "Finding", "Rule", "Severity", "conda", "image", "lint", "pip", "warnings_of"]

RULES: Final[tuple[Rule, ...]] = tuple(sorted((rule for rule, _ in CHECKS), key=lambda rule: rule.code))
"""Every rule, by code."""


def lint(spec: EnvironmentSpec) -> tuple[Finding, ...]:
    """All findings in a definition, in the order of the file where places are known, then by code."""
    found = [
        Finding(rule, what, spec.source, mark)
        for rule, check in CHECKS
        for what, mark in check(spec)
        if spec.as_of is None or not rule.settled_by_moment
    ]
    return tuple(sorted(found, key=lambda one: (one.mark or (one.source, 0, 0), one.rule.code)))


def warnings_of(spec: EnvironmentSpec, *, locked: bool = False) -> tuple[str, ...]:
    """The warnings for somebody who only wants the image: a line a rule, however often it is broken.

    Args:
        spec: The definition.
        locked: Whether a lock that matches it is used.
    """
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in lint(spec):
        if finding.rule.severity is Severity.WARNING and not (locked and finding.rule.settled_by_lock):
            groups[finding.rule.code].append(finding)
    lines = []
    for code in sorted(groups):
        first, *others = groups[code]
        more = f" (and {len(others)} more like it)" if others else ""
        lines.append(f"{first.place}: {code} {first.what}{more}: {first.rule.advice}")
    return tuple(lines)
