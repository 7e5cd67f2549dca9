"""Compares the sources of `merge` byte for byte before anything is written or assigned: one of them is then taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from remapkit.companions.names import can_have_companions
from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.files.source_file import CHUNK, split_evenly
from remapkit.formats.compare import Difference, compare_tensor
from remapkit.formats.reader import Reader
from remapkit.ops.base import Op
from remapkit.ops.join import Join, Nested, infer_move
from remapkit.plans.moves import Move, RuleRef
from remapkit.sources.joined import show_with_file
from remapkit.tensors.spec import StateDictSpec, TensorSpec

ReadOps = Callable[[Sequence[str], Sequence[Op]], Iterator[memoryview]]
"""Yields the bytes that some operations make of sources: row-major, little-endian, in pieces."""

Family = tuple[tuple[tuple[str, ...], tuple[Op, ...]], ...]
"""Tensors that must be equal, each by its sources and the operations on them."""


def get_merge(move: Move) -> Join | None:
    """Return the operation that merges the sources of a move, if one does."""
    first = move.ops[0] if move.ops else None
    return first if isinstance(first, Join) and first.merge else None


def has_merge(move: Move) -> bool:
    """Return whether anything is merged on the way to a target."""
    return next(list_families(move.ops, move.sources), None) is not None


def list_families(ops: Sequence[Op], sources: Sequence[str]) -> Iterator[Family]:
    """Yield every group of tensors that must be equal for a target to be right, those of inner operations first."""
    first = ops[0] if ops else None
    if isinstance(first, Nested):
        made = [(tuple(own), tuple(each)) for each, own in first.divide(sources)]
        for own, each in made:
            yield from list_families(each, own)
        first = first.join
    else:
        made = [((name,), ()) for name in sources]
    if isinstance(first, Join) and first.merge:
        width = len(first.branches)
        for at in range(0, len(made), width):
            pairs = zip(made[at : at + width], first.branches, strict=True)
            yield tuple((own, (*each, *branch)) for (own, each), branch in pairs)


def read_with_ops(reader: Reader) -> ReadOps:
    """Return the function that reads the sources of a checkpoint."""

    def read(names: Sequence[str], ops: Sequence[Op]) -> Iterator[memoryview]:
        if not ops:
            return reader.chunks(names[0])
        from remapkit.compute.stream import stream_move  # imports numpy

        spec = infer_move(ops, [reader.header()[fqn] for fqn in names], names)
        return stream_move(Move(names[0] if names else "", tuple(names), tuple(ops), RuleRef("merge"), spec), reader)

    return read


def find_unequal_in_files(moves: Sequence[Move], reader: Reader) -> list[Diagnostic]:
    """Compare all tensors of a checkpoint that are merged; return a problem for each rule."""
    header = reader.header()
    return find_unequal_merges(moves, header, read_with_ops(reader), header.name, partial(show_with_file, reader))


def find_unequal_merges(
    moves: Sequence[Move],
    specs: Mapping[str, TensorSpec],
    read: ReadOps,
    place: str,
    show: Callable[[str], str] = str,
) -> list[Diagnostic]:
    """Compare all sources that are merged with the first of their family; return a problem for each rule.

    `show` says how a message names a tensor.
    Reads each of these tensors once, in bounded memory, and a second time if it differs.
    """
    failures: dict[RuleRef, list[str]] = {}
    scales: set[RuleRef] = set()
    seen: set[Family] = set()  # the parts of one split have one family
    for move in moves:
        for family in list_families(move.ops, move.sources):
            scales |= {move.rule} if can_have_companions(move.sources) else set()
            if family not in seen:
                seen.add(family)
                failures.setdefault(move.rule, []).extend(_describe_family(_Branches(family, specs, read), show))
    return [_report_rule(rule, lines, place, rule in scales) for rule, lines in failures.items() if lines]


@dataclass(frozen=True, slots=True)
class _Branches:
    """The tensors of one family after their own operations, by their position."""

    family: Family
    specs: Mapping[str, TensorSpec]
    read: ReadOps

    def header(self) -> StateDictSpec:
        made = [infer_move(ops, [self.specs[name] for name in names], names) for names, ops in self.family]
        return StateDictSpec({str(number): spec for number, spec in enumerate(made)})

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        return split_evenly(self.read(*self.family[int(fqn)]), size)


def _describe_family(branches: _Branches, show: Callable[[str], str]) -> Iterator[str]:
    family = branches.family
    one, *others = (join_words(map(show, names), 2) for names, _ in family)
    for number, other in enumerate(others, 1):
        if family[number] != family[0]:
            difference = compare_tensor(branches, "0", branches, str(number))
            if not difference.bytes_equal:
                yield f"{other} differs from {one} {_describe_difference(difference)}"


def _describe_difference(difference: Difference) -> str:
    """Say how many elements differ, and by how much.

    >>> spec = TensorSpec("F32", (8,))
    >>> _describe_difference(Difference("a", "b", spec, spec, 0.25, differing=3))
    'in 3 of 8 elements, by at most 0.25'
    """
    if not difference.differing:
        return "only in its bytes: the values are equal (zeros of other signs, or NaN of other payloads)"
    text = f"in {difference.differing} of {count_noun(difference.spec_a.numel, 'element')}"
    if difference.max_abs is not None and not math.isnan(difference.max_abs):
        return f"{text}, by at most {difference.max_abs:g}"
    return f"{text}, {difference.nans} of which {'is' if difference.nans == 1 else 'are'} NaN in only one of the two"


def _report_rule(rule: RuleRef, lines: list[str], place: str, is_scale: bool) -> Diagnostic:
    help = "find out which one is right; then rename that one and drop the others, instead of merging them"
    if is_scale:
        help = "weights with unequal scales cannot be joined: `dequantize` each with its scale first"
    return Diagnostic(
        "RK347",
        f"{rule}: {count_noun(len(lines), 'tensor')} to merge {'differs' if len(lines) == 1 else 'differ'}; "
        "only equal tensors can be merged",
        labels=(Label(rule.span),) if rule.span is not None else (),
        notes=(list_names(lines),),
        help=(help,),
        place=place,
        values={"rule": rule.id, "differing": lines},
    )
