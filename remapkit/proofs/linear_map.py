"""A key map as data for the proofs: source and target as sequences of words and independent variables."""

from __future__ import annotations

from dataclasses import dataclass

from remapkit.proofs.automata import Nfa
from remapkit.proofs.keymap import Made


@dataclass(frozen=True, slots=True)
class Variable:
    """A stretch of the source key: a word, or a variable with its language; `part` is the pattern's part it is."""

    part: int
    name: str | None
    word: str | None
    piece: Nfa | None


@dataclass(frozen=True, slots=True)
class VariableRef:
    """A stretch of the target that is a slot of the source, as it was read."""

    slot: int


@dataclass(frozen=True, slots=True)
class TableRef:
    """A stretch of the target that a slot of the source is mapped to; `lossy` where the author said it may lose."""

    slot: int
    entries: tuple[tuple[str, str], ...]
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class AnyWord:
    """A stretch of the target that captures which hang together decide: here any of its words, whatever they are."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Separator:
    """What stands between a target and what counts as part of it."""


@dataclass(frozen=True, slots=True)
class Index:
    """A stretch of the target that is a number whatever the source is: what `unstack` counts."""

    made: Made


TargetPart = str | VariableRef | TableRef | AnyWord | Separator | Index


@dataclass(frozen=True, slots=True)
class LinearMap:
    """Source and target of a key map, side by side; `loose` are the captures that its `AnyWord` parts need."""

    slots: tuple[Variable, ...]
    target: tuple[TargetPart, ...]
    loose: tuple[str, ...] = ()

    @property
    def unused(self) -> tuple[Variable, ...]:
        """The variables of the source that the target does not depend on."""
        used = {each.slot for each in self.target if isinstance(each, VariableRef | TableRef)}
        return tuple(
            slot
            for number, slot in enumerate(self.slots)
            if slot.word is None and number not in used and slot.name not in self.loose
        )

    @property
    def in_order(self) -> bool:
        """Whether the variables stand in the target as they do in the source."""
        used = [each.slot for each in self.target if isinstance(each, VariableRef | TableRef)]
        return used == sorted(used)
