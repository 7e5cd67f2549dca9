"""The parts of a plan: moves, drops, and references to the rules that made them."""

from __future__ import annotations

from dataclasses import dataclass

from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import join_words
from remapkit.ops.base import Op
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class RuleRef:
    """The rule that made a move: its id (`keep[0]` for the first `keep`) and its position in its file."""

    id: str
    span: Span | None = None

    def __str__(self) -> str:
        return self.id


UNMATCHED = RuleRef("unmatched")
"""The reference used if no rule matched the key, so `unmatched: keep` or `unmatched: drop` applied."""


@dataclass(frozen=True, slots=True)
class Move:
    """One target tensor: its sources, the operations on them, and its dtype and shape.

    A move without `ops` has exactly one source and copies its bytes. Several sources are joined by the first
    operation; a move without a source creates its tensor (`add:`).
    """

    target: str
    sources: tuple[str, ...]
    ops: tuple[Op, ...]
    rule: RuleRef
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Dropped:
    """A source key that is dropped, and the rule that drops it."""

    fqn: str
    rule: RuleRef


def describe_sources(move: Move) -> str:
    """Describe the sources of a move briefly.

    >>> describe_sources(Move("t", ("a", "b", "c"), (), RuleRef("r"), TensorSpec("F32", (1,))))
    'a and 2 more'
    """
    return join_words(move.sources, 1) or "(no source)"
