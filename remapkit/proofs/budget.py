"""The steps that a search may take before it answers "undecided"."""

from __future__ import annotations


class Exhausted(Exception):
    """A question was not settled within its budget."""


class Budget:
    """Elementary steps that may still be spent, in all and on the question at hand.

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

    def ask(self, limit: int | None = None) -> None:
        """A new question, which may spend `limit` steps (a tenth of all where none is given)."""
        self.floor = max(0, self.left - (self.total // 10 if limit is None else limit))

    def spend(self, steps: int) -> None:
        """Spend; raises `Exhausted` where nothing is left."""
        self.left -= steps
        if self.left < self.floor or self.left <= 0:
            raise Exhausted
