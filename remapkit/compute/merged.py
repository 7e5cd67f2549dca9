"""Compares the sources of `merge` byte for byte before anything is written or assigned: one of them is then taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.files.source_file import CHUNK, split_evenly
from remapkit.formats.compare import Difference, compare_tensor
from remapkit.formats.reader import Reader
from remapkit.ops.base import Op, infer_ops
from remapkit.ops.join import Join
from remapkit.plans.moves import Move, RuleRef
from remapkit.sources.joined import show_with_file
from remapkit.tensors.spec import StateDictSpec, TensorSpec

ReadOps = Callable[[str, Sequence[Op]], Iterator[memoryview]]
"""Yields the bytes of a source after some operations: row-major, little-endian, in pieces."""


def get_merge(move: Move) -> Join | None:
    """Return the operation that merges the sources of a move, if one does."""
    first = move.ops[0] if move.ops else None
    return first if isinstance(first, Join) and first.merge else None


def read_with_ops(reader: Reader) -> ReadOps:
    """Return the function that reads the sources of a checkpoint."""

    def read(fqn: str, ops: Sequence[Op]) -> Iterator[memoryview]:
        if not ops:
            return reader.chunks(fqn)
        from remapkit.compute.stream import stream_move  # imports numpy

        spec = reader.header()[fqn]
        return stream_move(Move(fqn, (fqn,), tuple(ops), RuleRef("merge"), infer_ops(ops, spec)), reader)

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
    families: set[tuple[str, ...]] = set()  # the parts of one split have one family
    for move in moves:
        if (join := get_merge(move)) is None:
            continue
        width = len(join.branches)
        for at in range(0, len(move.sources), width):
            names = move.sources[at : at + width]
            if names not in families:
                families.add(names)
                failures.setdefault(move.rule, []).extend(
                    _describe_family(_Branches(names, join.branches, specs, read), show)
                )
    return [_report_rule(rule, lines, place) for rule, lines in failures.items() if lines]


@dataclass(frozen=True, slots=True)
class _Branches:
    """The tensors of one family after their own operations, by their position."""

    names: tuple[str, ...]
    branches: tuple[tuple[Op, ...], ...]
    specs: Mapping[str, TensorSpec]
    read: ReadOps

    def header(self) -> StateDictSpec:
        pairs = zip(self.names, self.branches, strict=True)
        made = {str(number): infer_ops(ops, self.specs[name]) for number, (name, ops) in enumerate(pairs)}
        return StateDictSpec(made)

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        return split_evenly(self.read(self.names[int(fqn)], self.branches[int(fqn)]), size)


def _describe_family(family: _Branches, show: Callable[[str], str]) -> Iterator[str]:
    names, branches = family.names, family.branches
    for number in range(1, len(names)):
        if (names[number], branches[number]) != (names[0], branches[0]):
            difference = compare_tensor(family, "0", family, str(number))
            if not difference.bytes_equal:
                yield f"{show(names[number])} differs from {show(names[0])} {_describe_difference(difference)}"


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


def _report_rule(rule: RuleRef, lines: list[str], place: str) -> Diagnostic:
    return Diagnostic(
        "RK347",
        f"{rule}: {count_noun(len(lines), 'tensor')} to merge {'differs' if len(lines) == 1 else 'differ'}; "
        "only equal tensors can be merged",
        labels=(Label(rule.span),) if rule.span is not None else (),
        notes=(list_names(lines),),
        help=("find out which one is right; then rename that one and drop the others, instead of merging them",),
        place=place,
        values={"rule": rule.id, "differing": lines},
    )
