"""What the shapes of a layout say at every size: relations between the dimensions of its tensors.

A manifest is of one size of a model. Two kinds of relations are read from it:

* A bias has one element for each output of its weight: it is as long as one of the weight's dimensions. Which one
  does not depend on the size: `[out, in]` in one layout, `[in, out]` in another. All dimensions that are as long as
  the bias in the manifest are possible, so that the right one is among them: a square matrix says nothing. A header
  in which none of them is as long is not of the layout.
* Dimensions that are equal in the manifest are usually equal in another size: the width, in each layer. Some are so
  by chance (4096 = 32 heads of 128), so that this excludes nothing. It only decides between layouts of which one has
  all of these equalities, and the other has not.

Numbers in names are left open: a relation of a kind of name is what all tensors of the kind have in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from remapkit.tensors.families import mask_indices
from remapkit.tensors.spec import OPAQUE, TensorSpec

WEIGHTS = ("weight", "kernel")
"""The ends of names of weights; `bias` instead is the name of their bias."""

Kind = tuple[str, int]
"""A kind of name, numbers left open, and the number of dimensions."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A bias that is as long as none of the dimensions of its weight that are possible in a layout."""

    weight: str
    bias: str
    weight_shape: tuple[int, ...]
    length: int
    dims: tuple[int, ...]

    def __str__(self) -> str:
        named = " or ".join(map(str, self.dims))
        sizes = " or ".join(str(self.weight_shape[dim]) for dim in self.dims)
        return (
            f"{self.bias} has {self.length} elements: not as many as dimension {named} of {self.weight} has, {sizes}"
        )


class Relations:
    """The relations of a manifest.

    >>> known = {"h.0.up.weight": TensorSpec("F32", (8, 32)), "h.0.up.bias": TensorSpec("F32", (32,))}
    >>> other = {"h.5.up.weight": TensorSpec("F32", (12, 3)), "h.5.up.bias": TensorSpec("F32", (12,))}
    >>> [str(each) for each in Relations(known).list_contradictions(other)]
    ['h.5.up.bias has 12 elements: not as many as dimension 1 of h.5.up.weight has, 3']
    """

    def __init__(self, known: Mapping[str, TensorSpec]) -> None:
        self._known = known

    @cached_property
    def _outputs(self) -> dict[Kind, frozenset[int]]:
        """The dimensions that can be the outputs, by kind of weight; without kinds with a bias of another length.

        Invariant: a dimension as long as the bias in one tensor of a kind stays possible for all of them.
        """
        found: dict[Kind, frozenset[int]] = {}
        other: set[Kind] = set()
        for fqn, spec, length in _list_biased(self._known):
            kind = mask_indices(fqn), len(spec.shape)
            dims = frozenset(dim for dim, size in enumerate(spec.shape) if size == length)
            found[kind] = found.get(kind, frozenset()) | dims
            other |= set() if dims else {kind}
        return {kind: dims for kind, dims in found.items() if kind not in other}

    @cached_property
    def _equal(self) -> list[list[tuple[Kind, int]]]:
        """The dimensions of kinds, in groups of equal ones; kinds with tensors of several shapes are left out.

        A group of one counts: tensors of one kind that are all of one shape are so in every size.
        """
        groups: defaultdict[int, list[tuple[Kind, int]]] = defaultdict(list)
        for kind, shapes in _list_shapes(self._known).items():
            if len(shapes) == 1:
                for dim, size in enumerate(next(iter(shapes))):
                    groups[size].append((kind, dim))
        return list(groups.values())

    def list_contradictions(
        self, tensors: Mapping[str, TensorSpec], but: Collection[str] = ()
    ) -> Iterator[Contradiction]:
        """Yield each bias that is not as long as it would be in any size of the layout; `but` are left out."""
        for fqn, spec, length in _list_biased(tensors):
            dims = self._outputs.get((mask_indices(fqn), len(spec.shape)))
            if dims and fqn not in but and all(spec.shape[dim] != length for dim in dims):
                yield Contradiction(fqn, _name_bias(fqn), spec.shape, length, tuple(sorted(dims)))

    def has_equal(self, tensors: Mapping[str, TensorSpec]) -> bool:
        """Return whether all dimensions that are equal in the manifest are so in other tensors, too.

        >>> known = {"in.weight": TensorSpec("F32", (8, 3)), "norm": TensorSpec("F32", (8,))}
        >>> Relations(known).has_equal({"in.weight": TensorSpec("F32", (2, 8)), "norm": TensorSpec("F32", (8,))})
        False
        """
        shapes = _list_shapes(tensors)
        return all(
            len({shape[dim] for kind, dim in group for shape in shapes.get(kind, ())}) <= 1 for group in self._equal
        )


def _list_shapes(tensors: Mapping[str, TensorSpec]) -> dict[Kind, set[tuple[int, ...]]]:
    found: defaultdict[Kind, set[tuple[int, ...]]] = defaultdict(set)
    for fqn, spec in tensors.items():
        if spec is not OPAQUE:
            found[mask_indices(fqn), len(spec.shape)].add(spec.shape)
    return found


def _list_biased(tensors: Mapping[str, TensorSpec]) -> Iterator[tuple[str, TensorSpec, int]]:
    """Yield each weight that has a bias, and the length of this."""
    for fqn, spec in tensors.items():
        bias = tensors.get(_name_bias(fqn)) if fqn.endswith(WEIGHTS) else None
        if bias is not None and len(bias.shape) == 1 and OPAQUE not in (spec, bias):
            yield fqn, spec, bias.shape[0]


def _name_bias(fqn: str) -> str:
    return f"{fqn[:-6]}bias"  # the ends of weights have six letters
