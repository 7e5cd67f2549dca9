"""What a plan is made of: moves, drops, and the rule that made each."""

from __future__ import annotations

from dataclasses import dataclass

from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import join_words
from remapkit.ops.base import Op
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class RuleRef:
    """The rule that made a move: its id (`keep[0]` for the first `keep`) and its place in its file."""

    id: str
    span: Span | None = None

    def __str__(self) -> str:
        return self.id


UNMATCHED = RuleRef("unmatched")
"""Stands for `unmatched: keep` and `unmatched: drop` where no rule took the key."""


@dataclass(frozen=True, slots=True)
class Move:
    """One target tensor: where it comes from, what is done on the way, and what it will be.

    A move without `ops` has exactly one source and copies its bytes. Several sources are joined by the first
    operation; a move without a source makes its tensor (`add:`).
    """

    target: str
    sources: tuple[str, ...]
    ops: tuple[Op, ...]
    rule: RuleRef
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Dropped:
    """A source key that is left behind, and the rule that says so."""

    fqn: str
    rule: RuleRef


def describe_sources(move: Move) -> str:
    """The sources of a move in a few words.

    >>> describe_sources(Move("t", ("a", "b", "c"), (), RuleRef("r"), TensorSpec("F32", (1,))))
    'a and 2 more'
    """
    return join_words(move.sources, 1) or "(no source)"
