"""Witnesses: concrete keys that show a fault."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal as OneOf
from typing import TypeVar

T = TypeVar("T")


Fault = OneOf["ambiguous", "cut", "within", "across", "open"]


@dataclass(frozen=True, slots=True)
class Witness:
    """Keys that show a fault.

    `ambiguous`: one key that two rules match. `cut`: one key with two readings (a text for each part of the pattern)
    and their targets. `within`, `across`: two keys with the same target. `open`: a key that a rule maps to the
    target, and the target itself, which passes through unmatched. `lost` is the part of the pattern that the target
    does not use, if that is the cause; `admitted`: the author declares the loss. `covered` are key maps whose keys
    are all matched by the other one too; `matching` are all key maps that match the key, if they are many.
    """

    fault: Fault
    key_maps: tuple[int, ...]
    keys: tuple[str, ...]
    targets: tuple[str, ...] = ()
    readings: tuple[tuple[str, ...], ...] = ()
    lost: int | None = None
    admitted: bool = False
    covered: tuple[int, ...] = ()
    matching: tuple[int, ...] = ()
    rules: tuple[str, ...] = ()
    """The ids of the rules, keeps, drops or entries of `add` of its key maps."""


@dataclass(slots=True)
class Answers:
    """All answers: witnesses, undecided questions (fault and key maps), and key maps that match no key."""

    witnesses: list[Witness] = field(default_factory=list)
    undecided: list[tuple[Fault, tuple[int, ...]]] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    unasked: int = 0
    """The number of pairs of key maps that were not examined because there were too many faults already."""

    @property
    def clean(self) -> bool:
        """Whether every question was answered without a fault."""
        return not self.witnesses and not self.undecided and not self.unasked
