"""Copies values into a module's existing tensors, so that an optimizer keeps the same ones.

The order makes it safe. First every new value is completed: in memory, on its device, in its dtype, and copied if it
comes from a mapped file (where a read error raises a signal) or from memory that will be written to. Then the
module's own loading assigns the new tensors, which can be undone. Only then the old tensors are put back under their
names and receive the values, all in one call that can no longer fail for a known reason.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

Pair = tuple[torch.Tensor, torch.Tensor]
"""A tensor of the module, and the new tensor with its values."""

MemoryRange = tuple[str, int, int]
"""A range of bytes: its space (a device's memory or a mapped file), start and end."""


@dataclass(frozen=True, slots=True)
class HeldName:
    """A name under which a module stores a tensor that is kept."""

    owner: nn.Module
    table: str
    name: str
    held: torch.Tensor


def find_held_names(root: nn.Module, staying: Iterable[torch.Tensor]) -> tuple[HeldName, ...]:
    """Return every name of these tensors, including names outside the state dict."""
    wanted = {id(tensor) for tensor in staying}
    return tuple(
        HeldName(module, table, name, value)
        for module in root.modules()
        for table in ("_parameters", "_buffers")
        for name, value in getattr(module, table).items()
        if id(value) in wanted
    )


def restore_tensors(places: Sequence[HeldName]) -> list[Pair]:
    """Put each tensor back under its name, and return it with the one that replaced it meanwhile.

    Nothing is done where the module's own loading wrote into its tensors; if it removed a name, or created a tensor
    of another shape, its result is kept.
    """
    pairs = []
    for place in places:
        table = getattr(place.owner, place.table)
        new = table.get(place.name)
        if new is not None and new is not place.held and new.shape == place.held.shape:
            table[place.name] = place.held
            pairs.append((place.held, new))
    return pairs


def copy_values(pairs: Sequence[Pair]) -> None:
    """Copy all values in one call into C++, which no Python signal handler can interrupt."""
    for is_inference in (False, True):
        chosen = [pair for pair in pairs if pair[0].is_inference() == is_inference]
        if chosen:
            with torch.inference_mode(is_inference), torch.no_grad():  # in this order: the first one sets grad mode
                torch._foreach_copy_([held for held, _ in chosen], [new for _, new in chosen])


def has_shared_elements(tensor: torch.Tensor) -> bool:
    """Return whether several elements share one memory location, as after `expand`: they cannot differ.

    >>> has_shared_elements(torch.zeros(1).expand(3)), has_shared_elements(torch.zeros(3).t())
    (True, False)
    """
    return any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def locate_tensor(tensor: torch.Tensor) -> MemoryRange:
    """Return the range of memory from a tensor's first element to its last; empty if it has no elements."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return str(tensor.device), start, start + (last + 1) * tensor.element_size() * (tensor.numel() > 0)


def merge_memory_ranges(ranges: Iterable[MemoryRange]) -> list[MemoryRange]:
    """Merge ranges into sorted ranges without overlaps.

    >>> merge_memory_ranges([("cpu", 4, 8), ("cpu", 0, 2), ("cpu", 5, 6), ("cpu", 7, 9), ("cpu", 3, 3)])
    [('cpu', 0, 2), ('cpu', 4, 9)]
    """
    merged: list[MemoryRange] = []
    for where, start, stop in sorted(part for part in ranges if part[1] < part[2]):
        if merged and merged[-1][0] == where and start < merged[-1][2]:
            where, start, end = merged.pop()
            stop = max(stop, end)
        merged.append((where, start, stop))
    return merged


def has_overlap(one: MemoryRange, others: Sequence[MemoryRange]) -> bool:
    """Return whether a range overlaps one of the others, which must be merged. Takes logarithmic time.

    >>> others = [("cpu", 0, 2), ("cpu", 4, 9)]
    >>> has_overlap(("cpu", 2, 5), others), has_overlap(("cpu", 2, 4), others)
    (True, False)
    """
    where, start, stop = one
    before = bisect_left(others, (where, stop, stop))  # how many begin before it ends: the last one ends last
    return before > 0 and others[before - 1][0] == where and start < others[before - 1][2]


def find_shared_memory(named: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Return pairs of different tensors that share elements, such as a parameter and its transpose or a slice of it.

    One tensor under two names, and two views of exactly the same elements, are tied weights and not included. Tensors
    whose ranges of memory overlap are compared element by element, so that the columns of one matrix are not
    reported.

    >>> whole = torch.zeros(4, 4)
    >>> find_shared_memory({"a": whole, "b": whole.t()}), find_shared_memory({"a": whole[:, :2], "b": whole[:, 2:]})
    ([('a', 'b')], [])
    """
    pairs: list[tuple[str, str]] = []
    reach: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
    for fqn, held in named.items():
        if held.numel():
            device, start, stop = locate_tensor(held)
            reach.setdefault((device, held.untyped_storage().data_ptr()), []).append((start, stop, fqn))
    for ranges in reach.values():
        ranges.sort()
        for number, (_, stop, fqn) in enumerate(ranges):
            for start, _, other in ranges[number + 1 :]:
                if start >= stop:
                    break
                if not _is_same_view(named[fqn], named[other]) and _has_common_element(named[fqn], named[other]):
                    pairs.append((fqn, other))
    return pairs


def _is_same_view(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.shape, one.stride(), one.data_ptr(), one.dtype) == (
        other.shape,
        other.stride(),
        other.data_ptr(),
        other.dtype,
    )


def _has_common_element(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two views of one storage share an element; assumed to be true for different dtypes."""
    if one.dtype != other.dtype:
        return True
    base = min(one.storage_offset(), other.storage_offset())
    size = one.untyped_storage().nbytes() // one.element_size() - base
    marks = torch.zeros(size, dtype=torch.bool)
    marks.as_strided(one.shape, one.stride(), one.storage_offset() - base).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), other.storage_offset() - base).any())
