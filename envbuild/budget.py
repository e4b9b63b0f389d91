"""What evaluating a text may cost: variables that name each other make a short text a very long one."""

from __future__ import annotations

from typing import Final

MAX_CHARACTERS: Final = 16 << 20


class OverBudgetError(Exception):
    """An evaluator made more than its budget; who knows the place of the text says so in a typed error."""


class Budget:
    """The characters that evaluators may still make from one text; they share one budget.

    Args:
        characters: How many there are.
    """

    def __init__(self, characters: int = MAX_CHARACTERS) -> None:
        self._characters = characters
        self._left = characters

    def spend(self, characters: int) -> None:
        """Pay for characters, before they are made.

        Raises:
            OverBudgetError: There are not so many left.
        """
        self._left -= characters
        if self._left < 0:
            raise OverBudgetError(f"its variables come to more than {self._characters} characters")
