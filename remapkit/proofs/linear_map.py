"""A key map as data for the proofs: source and target as sequences of words and independent variables."""

from __future__ import annotations

from dataclasses import dataclass

from remapkit.proofs.automata import Nfa
from remapkit.proofs.keymap import Made


@dataclass(frozen=True, slots=True)
class Variable:
    """A part of the source key: a word, or a variable with its language; `part` is its number in the pattern."""

    part: int
    name: str | None
    word: str | None
    piece: Nfa | None


@dataclass(frozen=True, slots=True)
class VariableRef:
    """A part of the target that is a variable of the source, copied unchanged."""

    slot: int


@dataclass(frozen=True, slots=True)
class TableRef:
    """A part of the target that a variable of the source is mapped to; `lossy` if the table is declared so."""

    slot: int
    entries: tuple[tuple[str, str], ...]
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class AnyWord:
    """A part of the target that several captures determine, approximated as any of its words."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Separator:
    """A separator between a target and the folded captures that count as part of it."""


@dataclass(frozen=True, slots=True)
class Index:
    """A part of the target that is an index independent of the source: the one made by `unstack`."""

    made: Made


TargetPart = str | VariableRef | TableRef | AnyWord | Separator | Index


@dataclass(frozen=True, slots=True)
class LinearMap:
    """Source and target of a key map; `loose` are the captures that determine its `AnyWord` parts."""

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
        """Whether the variables have the same order in the target as in the source."""
        used = [each.slot for each in self.target if isinstance(each, VariableRef | TableRef)]
        return used == sorted(used)
