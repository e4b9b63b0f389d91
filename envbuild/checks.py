"""One question about an image and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from envbuild.errors import IntegrityError, NotFound, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.reference import ImageReference


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer.

    Attributes:
        name: What was looked at.
        passed: Whether it is as it should be; None where it was not checked.
        detail: What was seen, or why it was not checked.
        asked: Whether the caller asked for this check by name: then it counts as passed only if it was made.
    """

    name: str
    passed: bool | None
    detail: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """The result.

    Attributes:
        reference: The image.
        checks: In the order in which they were made.
    """

    reference: ImageReference
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed, and each that was asked for was made."""
        return all(check.passed or (check.passed is None and not check.asked) for check in self.checks)


class NotChecked(Exception):  # noqa: N818 - named for what it is
    """Why something was not checked."""


def checked(name: str, action: Callable[[], str], *, asked: bool = False) -> Check:
    """A check that fails where the action finds a fault, and that :class:`NotChecked` says was not made.

    Args:
        name: Its name.
        action: Looks, and says what it saw.
        asked: Whether the caller asked for it by name.
    """
    try:
        return Check(name, True, action(), asked)
    except NotChecked as reason:
        return Check(name, None, str(reason), asked)
    except (IntegrityError, NotFound, SpecError) as error:
        return Check(name, False, error.message, asked)
