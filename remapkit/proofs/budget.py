"""The number of steps that a search may take before its answer is "undecided"."""

from __future__ import annotations

QUESTION = 200_000
"""The steps that one question may take even if that is much of a small budget."""


class Exhausted(Exception):
    """A question could not be decided: its budget is spent, or no method here decides it."""


class Budget:
    """Elementary steps that may still be spent, in total and on the current question.

    Building an automaton pays as well as walking one, so the limit holds from the first position on.

    >>> budget = Budget(100)
    >>> budget.ask(10)
    >>> budget.spend(5), budget.left
    (None, 95)
    >>> budget.spend(6)
    Traceback (most recent call last):
        ...
    remapkit.proofs.budget.Exhausted
    """

    def __init__(self, total: int) -> None:
        self.total = self.left = total
        self.floor = 0

    @property
    def spent(self) -> int:
        """The steps taken so far."""
        return self.total - self.left

    @property
    def rest(self) -> int:
        """The steps that the current question may still take."""
        return max(0, self.left - self.floor)

    def ask(self, limit: int | None = None) -> None:
        """Start a question, which may spend `limit` steps (by default a tenth of the total, or `QUESTION`)."""
        self.floor = max(0, self.left - (max(self.total // 10, QUESTION) if limit is None else limit))

    def spend(self, steps: int) -> None:
        """Spend some steps; raises `Exhausted` if none are left."""
        self.left -= steps
        if self.left < self.floor or self.left <= 0:
            raise Exhausted
