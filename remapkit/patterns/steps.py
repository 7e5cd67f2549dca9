"""Steps: what rules cost to compile and to match, counted rather than timed, with a limit."""

from __future__ import annotations

from collections.abc import Callable


class TooMany(Exception):
    """Work would exceed its limit."""


class Steps:
    """The elementary steps that may still be taken; one takes about a microsecond.

    >>> steps = Steps(100)
    >>> steps.spend(60), steps.left
    (None, 40)
    >>> steps.spend(60)
    Traceback (most recent call last):
        ...
    remapkit.patterns.steps.TooMany
    """

    __slots__ = ("left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = self.left = limit

    def spend(self, count: int) -> None:
        """Spend some steps; raises `TooMany` if there are not that many left."""
        if count > self.left:
            self.left = 0
            raise TooMany
        self.left -= count

    @property
    def spent(self) -> int:
        """The steps that are spent."""
        return self.limit - self.left


def is_shown(check: Callable[[Steps], bool], most: int, steps: Steps | None) -> bool:
    """Return what `check` finds in at most `most` steps, which are spent; False if they, or those left, are too few.

    >>> steps = Steps(10)
    >>> is_shown(lambda within: within.spend(7) is None, 8, steps), steps.left
    (True, 3)
    >>> is_shown(lambda within: within.spend(7) is None, 8, steps), steps.left
    (False, 0)
    """
    within = Steps(most if steps is None else min(most, steps.left))
    try:
        return check(within)
    except TooMany:
        return False
    finally:
        if steps is not None:
            steps.left -= within.spent
