"""The captures that a rule joins tensors by, or makes tensors for: the field `by` of its operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from remapkit.diagnostics.source import Span, Text
from remapkit.ops.calls import Arg, Params, evaluate_arg
from remapkit.rulefile.arithmetic import BadNumber
from remapkit.rulefile.syntax import WrittenPipeline
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, Node, ScalarNode

MAX_PARTS = 10_000
"""The most targets that `split` or `copy` may make of one tensor by `count`."""


@dataclass(frozen=True, slots=True)
class Axis:
    """`by` of `stack`, `concat` or `merge` (captures that are joined), of `unstack`, `split` or `copy` (new ones).

    Several captures count like the digits of a number, the last one fastest. `count` is the required number of values
    of each (None: any). `dim` is the dimension that they become or were; None for `merge` and `copy`.
    """

    word: str
    by: tuple[str, ...]
    dim: int | None = None
    count: tuple[Arg, ...] | None = None
    span: Span | None = field(default=None, compare=False, repr=False)

    def resolve_counts(self, params: Params) -> tuple[int, ...] | None:
        """Return the number of values of each capture, None if any is right; raises `BadNumber`."""
        if self.count is None:
            return None
        counts = tuple(int(evaluate_arg(count, params)) for count in self.count)
        if min(counts) < 1:
            raise BadNumber(f"`count` must be at least 1, got {min(counts)}")
        return counts

    def find_counts(self, params: Params) -> tuple[int | None, ...]:
        """Return the number of values of each capture where the rule gives it and its params have values."""
        try:
            return self.resolve_counts(params) or (None,) * len(self.by)
        except BadNumber:
            return (None,) * len(self.by)


def describe_counts(counts: tuple[int, ...]) -> str:
    """Write numbers of values with their product.

    >>> describe_counts((8,)), describe_counts((2, 4))
    ('8', '2 x 4 = 8')
    """
    return str(counts[0]) if len(counts) == 1 else f"{' x '.join(map(str, counts))} = {math.prod(counts)}"


def list_joining(written: WrittenPipeline) -> Iterator[tuple[str, MapNode]]:
    """Yield the operations that join tensors by captures, outermost first: the order of a group's sources."""
    for word, node in (("stack", written.stack), ("concat", written.concat), ("merge", written.merge)):
        if isinstance(node, MapNode) and node.get("by") is not None:
            yield word, node


def list_making(written: WrittenPipeline) -> Iterator[tuple[str, MapNode]]:
    """Yield the operations that make several tensors of one by counting, outermost first."""
    for word, node in (("unstack", written.unstack), ("split", written.split), ("copy", written.copy)):
        if isinstance(node, MapNode) and node.get("by") is not None:
            yield word, node


def read_names(node: MapNode) -> tuple[Text, ...]:
    """Return the captures of `by`."""
    return tuple(each.text for each in list_scalars(node.get("by")))


def list_scalars(node: Node | None) -> tuple[ScalarNode, ...]:
    """Return the scalars of a list, or a scalar alone."""
    items = node.items if isinstance(node, ListNode) else (node,)
    return tuple(item for item in items if isinstance(item, ScalarNode))
