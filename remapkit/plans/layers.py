"""Judge a checkpoint of another size by the layers of the declared source.

A declared manifest is the header of one size. Its stacks of equal layers, `model.layers.{0..31}`, are of another
length in another size: what the manifest then says is which keys each layer has. Layers that differ from each other
(the blocks of an autoencoder) are no stack, and all of their keys are expected.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from remapkit.diagnostics.wording import SHOWN, count_noun
from remapkit.tensors.families import format_ranges, is_canonical_integer, mask_indices
from remapkit.tensors.spec import OPAQUE, StateDictSpec, TensorSpec

Segments = tuple[str, ...]
"""The segments of a key or of a prefix; `*` stands for the number of a layer of a stack."""


def is_another_size(source: Mapping[str, TensorSpec], known: StateDictSpec) -> bool:
    """Return whether a header is another size of the known layout: a known name changed shape, or more layers."""
    if any(fqn in known and spec is not OPAQUE and known[fqn].shape != spec.shape for fqn, spec in source.items()):
        return True
    more = [fqn for fqn in source if fqn not in known]
    kinds = {mask_indices(fqn) for fqn in known} if more else set()
    return any(mask_indices(fqn) in kinds for fqn in more)


@dataclass(frozen=True, slots=True)
class Layers:
    """The numbers of the layers of each stack that the known layout and a checkpoint have, outer stacks first."""

    known: Mapping[Segments, frozenset[int]]
    found: Mapping[Segments, frozenset[int]]

    def __str__(self) -> str:
        lines = [
            f"{'.'.join(stack)}: {count_noun(len(numbers), 'layer')} ({format_ranges(numbers)}), "
            f"declared are {len(self.known[stack])}"
            for stack, numbers in self.found.items()
            if numbers != self.known[stack]
        ]
        return "\n".join(lines[:SHOWN])


def find_stacks(known: StateDictSpec) -> dict[Segments, frozenset[int]]:
    """Return the stacks of a header with their numbers: two or more layers 0..n with the same keys and shapes.

    >>> w = TensorSpec("F32", (4,))
    >>> find_stacks(StateDictSpec(dict.fromkeys(("h.0.w", "h.1.w", "up.0.w", "up.1.b"), w)))
    {('h',): frozenset({0, 1})}
    """
    layers: defaultdict[Segments, defaultdict[int, dict[Segments, object]]] = defaultdict(lambda: defaultdict(dict))
    for fqn, spec in known.items():
        segments = tuple(fqn.split("."))
        for place, segment in enumerate(segments):
            if is_canonical_integer(segment):
                layers[segments[:place]][int(segment)][segments[place + 1 :]] = spec.shape
    stacks: dict[Segments, frozenset[int]] = {}
    for prefix, found in sorted(layers.items(), key=lambda item: len(item[0])):
        equal = len(found) > 1 and all(each == found.get(0) for each in found.values())
        if equal and max(found) == len(found) - 1:
            # All layers of an outer stack have the same inner ones, which become one here.
            stacks.setdefault(_mask(prefix, stacks), frozenset(found))
    return stacks


def _mask(segments: Segments, stacks: Collection[Segments]) -> Segments:
    masked: Segments = ()
    for segment in segments:
        masked += ("*" if masked in stacks and is_canonical_integer(segment) else segment,)
    return masked


def find_layers(source: Collection[str], known: StateDictSpec) -> Layers:
    """Return the layers of a checkpoint in the stacks of a known layout; keys that it does not know are ignored.

    >>> w = TensorSpec("F32", (4,))
    >>> print(find_layers(["h.0.w"], StateDictSpec(dict.fromkeys(("h.0.w", "h.1.w"), w))))
    h: 1 layer (0), declared are 2
    """
    stacks = find_stacks(known)
    kinds = {_mask(tuple(fqn.split(".")), stacks) for fqn in known}
    found: dict[Segments, set[int]] = {stack: set() for stack in stacks}
    for fqn in source:
        segments = tuple(fqn.split("."))
        masked = _mask(segments, stacks)
        if masked in kinds:
            for place, segment in enumerate(masked):
                if segment == "*" and masked[:place] in stacks:
                    found[masked[:place]].add(int(segments[place]))
    return Layers(stacks, {stack: frozenset(numbers) for stack, numbers in found.items()})


def list_lacking(source: Collection[str], required: Collection[str], layers: Layers, limit: int) -> list[str]:
    """Return keys that a checkpoint of another size lacks, at most `limit`; `required` are those of the known size.

    Every layer up to the last must be there, whole, and so must one layer of each stack. Ends after as many steps
    as there are keys and limited ones, because each step finds a key or adds one.
    """
    expected: dict[Segments, None] = dict.fromkeys(_mask(tuple(fqn.split(".")), layers.known) for fqn in required)
    lacking = (fqn for masked in expected for fqn in _fill(masked, layers) if fqn not in source)
    return list(itertools.islice(lacking, limit))


def _fill(masked: Segments, layers: Layers) -> Iterator[str]:
    places = [place for place, segment in enumerate(masked) if segment == "*" and masked[:place] in layers.known]
    stacks = [masked[:place] for place in places]
    # A hole is found among the first numbers, one more than there are: `h.0` and `h.999999999` cost three.
    numbers = [
        sorted(found | set(range(min(max(found) + 1, len(found) + 1)))) if found else sorted(layers.known[stack])
        for stack in stacks
        for found in (layers.found[stack],)
    ]
    for choice in itertools.product(*numbers):
        segments = list(masked)
        for place, number in zip(places, choice, strict=True):
            segments[place] = str(number)
        yield ".".join(segments)
