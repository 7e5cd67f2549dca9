"""Values copied into the tensors that a module has: an optimizer, say, goes on holding the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

Pair = tuple[torch.Tensor, torch.Tensor]
"""A tensor of the module, and the new one that holds its values."""


@dataclass(frozen=True, slots=True)
class Place:
    """A name under which one module holds a tensor that stays."""

    owner: nn.Module
    table: str
    name: str
    held: torch.Tensor


def places_of(root: nn.Module, staying: Iterable[torch.Tensor]) -> tuple[Place, ...]:
    """Every name of these tensors, those outside the state dict too."""
    wanted = {id(tensor) for tensor in staying}
    return tuple(
        Place(module, table, name, value)
        for module in root.modules()
        for table in ("_parameters", "_buffers")
        for name, value in getattr(module, table).items()
        if id(value) in wanted
    )


def put_back(places: Sequence[Place]) -> list[Pair]:
    """Each tensor back under its name; gives what was put there meanwhile.

    A module whose own loading writes into its tensors has put nothing there, and one that took a name away, or made a
    tensor of another shape, keeps what it made.
    """
    pairs = []
    for place in places:
        table = getattr(place.owner, place.table)
        new = table.get(place.name)
        if new is not None and new is not place.held and new.shape == place.held.shape:
            table[place.name] = place.held
            pairs.append((place.held, new))
    return pairs


def copy_into(pairs: Sequence[Pair]) -> None:
    """All at once: everything is in memory, on its device, in its dtype; one call, which no signal comes into."""
    for is_inference in (False, True):
        chosen = [pair for pair in pairs if pair[0].is_inference() == is_inference]
        if chosen:
            with torch.inference_mode(is_inference), torch.no_grad():  # in this order: the first one sets gradients
                torch._foreach_copy_([held for held, _ in chosen], [new for _, new in chosen])


def writes_to_itself(tensor: torch.Tensor) -> bool:
    """Whether several elements are one place in memory, as `expand` makes them: they cannot take different values.

    >>> writes_to_itself(torch.zeros(1).expand(3)), writes_to_itself(torch.zeros(3).t())
    (True, False)
    """
    return any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def overlaps(one: tuple[str, int, int], others: Iterable[tuple[str, int, int]]) -> bool:
    """Whether a stretch of memory has bytes in common with one of the others."""
    where, start, stop = one
    return any(where == there and start < end and begin < stop for there, begin, end in others)
