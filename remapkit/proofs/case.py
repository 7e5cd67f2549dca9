"""A case of a key map as data: source and target as sequences of words and independent variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remapkit.proofs.automata import Nfa


@dataclass(frozen=True, slots=True)
class Slot:
    """A part of the source key: a word, or a variable with its language; `part` is its number in the pattern."""

    part: int
    name: str | None
    word: str | None
    piece: Nfa | None


@dataclass(frozen=True, slots=True)
class Copy:
    """A part of the target that is a slot of the source, unchanged."""

    slot: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """A part of the target that a finite map gives to the words of its slots, one entry per combination.

    `lossy`: the author admits that entries share a text.
    """

    slots: tuple[int, ...]
    entries: tuple[tuple[tuple[str, ...], str], ...]
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class Free:
    """A part of the target that may be any word of a language, whatever the source: an index made by `unstack`, or
    a capture's further use, which is over-approximated."""

    piece: Nfa


@dataclass(frozen=True, slots=True)
class Hidden:
    """The end of the hidden outputs (`KeyMap`): no key has its character."""


TargetPart = str | Copy | Lookup | Free | Hidden


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a key map. Its slots are independent: it has every combination of their words.

    `loose`: captures that the target uses in several places, each of which may be any of its words here. Then the
    source is exact, and the targets include all real ones, but perhaps others.
    """

    slots: tuple[Slot, ...]
    target: tuple[TargetPart, ...]
    loose: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[int, ...]:
        """The slots that the target depends on, in the order of the target."""
        found: list[int] = []
        for part in self.target:
            if isinstance(part, Copy):
                found.append(part.slot)
            elif isinstance(part, Lookup):
                found += part.slots
        return tuple(found)

    @property
    def unused(self) -> tuple[int, ...]:
        """The variables of the source that the target does not depend on."""
        used = set(self.used)
        return tuple(
            number
            for number, slot in enumerate(self.slots)
            if slot.word is None and number not in used and slot.name not in self.loose
        )

    @property
    def in_order(self) -> bool:
        """Whether a one-way transducer can read one side and write the other: same order, no part of two slots."""
        used = self.used
        joint = any(isinstance(part, Lookup) and len(part.slots) > 1 for part in self.target)
        return not joint and list(used) == sorted(used) and not self.loose

    def key(self, words: Sequence[str]) -> str:
        """Return the source key with these words in the slots that are variables."""
        return "".join(
            slot.word if slot.word is not None else word for slot, word in zip(self.slots, words, strict=True)
        )
