"""How targets follow from sources by value: what is found in the bytes, before it becomes a rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OpText = str | Mapping[str, object]
"""An operation as in a rule file: `"transpose"`, `{"flip": {"dim": 1}}`, `{"rearrange": {"pattern": "..."}}`."""

SIMPLEST = "it is the simplest of several orders that give these values"
"""What settled a relation that puts equal elements in order."""
TIED = "the names that could be meant are tied to one tensor in A, and this is the first of them"
"""What settled a relation of a tensor that the file has under several names."""
UNSETTLED = "several orders of equal elements give these values, and nothing tells which is meant"
"""The `by` of a relation that nothing settled: it is not to be used."""


@dataclass(frozen=True, slots=True)
class Relation:
    """One rule's worth on literal keys.

    Exactly one of: a move (one source, one target), a concat or stack (several sources, one target), a split or
    unstack (one source, several targets), or one tensor under several targets (copy).

    A concat with a `count` is stacked too: the sources are `count` groups of equal length, one after the other; each
    group is concatenated along `dim`, and the results are stacked along `count_dim`. A split with a `count` is
    the reverse: unstacked along `count_dim`, then each element is split along `dim`. As everywhere in the language,
    `dim` then counts the dimensions of one element.
    """

    sources: tuple[str, ...]
    """Keys of A, in the order of the parts. One may occur several times, with other operations in `before`."""
    targets: tuple[str, ...]
    """Keys of B."""
    join: Literal["", "concat", "stack"] = ""
    """How sources become one."""
    cut: Literal["", "split", "unstack", "copy"] = ""
    """How one becomes the targets."""
    dim: int = 0
    """The dimension of the join or the cut."""
    sizes: tuple[int, ...] = ()
    """The sizes of unequal parts, of one group if there is a `count`; () if they are equal."""
    before: tuple[tuple[OpText, ...], ...] = ()
    """Operations on each source; () if there are none at all."""
    ops: tuple[OpText, ...] = ()
    """Operations on the whole."""
    after: tuple[tuple[OpText, ...], ...] = ()
    """Operations on each target; () if there are none at all."""
    count: int = 0
    count_dim: int = 0
    by: str = ""
    """What settled it, where the values alone leave it open: completes the phrase "because ..."."""
    rounded: str = ""
    """The dtype of A in which both are equal, where A has fewer digits than B; then the result is B rounded."""
