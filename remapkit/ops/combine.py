"""Arithmetic with a second source: `multiply`, `divide`, `dequantize`, `fold_weight_norm`.

The second tensor is spread over the first: each of its elements applies to the whole of a dimension, to one element,
or to a block of elements, of which the last may be shorter. Nothing is guessed from shapes: blocks are given.
`fold_weight_norm` multiplies by the second tensor divided by norms of the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from remapkit.diagnostics.wording import join_words
from remapkit.ops.base import RefusedOp
from remapkit.rulefile.arithmetic import SIZE, BadNumber, Expr, ParamValue
from remapkit.tensors.dtypes import PLAIN_FLOATS
from remapkit.tensors.spec import TensorSpec

QUANTIZED = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
"""The dtypes that can be dequantized: their numbers are exact in single precision."""
Kind = Literal["multiply", "divide", "dequantize", "fold_weight_norm"]


@dataclass(frozen=True, slots=True)
class SizedNumber:
    """A number that uses `size(k)` of the first tensor, and the values of the other names in it."""

    expression: Expr
    values: tuple[tuple[str, ParamValue], ...]


@dataclass(frozen=True, slots=True)
class Combine:
    """The first tensor times the second, or divided by it: calculated in single precision and rounded once to `to`.

    Without `to`, the result has the first one's dtype; F64 is calculated in double precision. `block` is the number
    of elements along each of the last dimensions that share one element of the second tensor. `fold_weight_norm`
    takes a norm for each index of `dim`, over all other dimensions, or one for the whole tensor (None). `multiply`
    divides the second tensor by `over` first.
    """

    kind: Kind
    to: str | None = None
    block: tuple[int, ...] = ()
    dim: int | None = None
    over: int | SizedNumber = 1
    name: ClassVar[str] = "combine"

    def infer(self, first: TensorSpec, second: TensorSpec, names: Sequence[str] = ("", "")) -> TensorSpec:
        """Return the header of the result; raises `RefusedOp` with the names of the tensors."""
        allowed = QUANTIZED if self.kind == "dequantize" else PLAIN_FLOATS
        seconds = PLAIN_FLOATS if self.kind == "fold_weight_norm" else (*PLAIN_FLOATS, "F8_E8M0")
        for name, spec, known in ((names[0], first, allowed), (names[1], second, seconds)):
            if spec.dtype not in known:
                title = f"{self.kind} needs {join_words(known)}, but {name} is {spec.dtype}"
                help = "cast it first, or rename it without an operation"
                if spec.dtype in QUANTIZED:
                    help = "`dequantize` it if it has a scale, or rename it without an operation"
                raise RefusedOp(title, help, code="RK352")
        if self.kind == "fold_weight_norm":
            self._check_norms(first, second, names)
        self.find_over(first)
        self.find_widths(first, second, names)
        return TensorSpec(self.to or first.dtype, first.shape)

    def find_over(self, first: TensorSpec) -> int:
        """Return the number that the second tensor is divided by; raises `RefusedOp` if the sizes give none."""
        over = self.over
        try:
            number = (
                over if isinstance(over, int) else over.expression.value({**dict(over.values), SIZE: first.shape})
            )
        except BadNumber as error:
            raise RefusedOp(f"{self.kind}: {error}") from None
        if number < 1:
            raise RefusedOp(f"`over` must be at least 1, got {number}")
        return number

    def _check_norms(self, first: TensorSpec, second: TensorSpec, names: Sequence[str]) -> None:
        """Raise `RefusedOp` unless the second tensor has one element for each norm of the first."""
        rank = len(first.shape)
        shapes = [tuple(first.shape[d] if d == dim else 1 for d in range(rank)) for dim in range(rank)]
        if self.dim is not None and self.dim >= rank:
            title = f"there is no dimension {self.dim} in {names[0]}, {list(first.shape)}"
            raise RefusedOp(title, "`dim` is that of torch's weight_norm: 0 by default", code="RK351")
        if second.shape == shapes[self.dim] if self.dim is not None else second.numel == 1:
            return
        wanted = list(shapes[self.dim]) if self.dim is not None else "one element"
        title = f"{names[1]} is {list(second.shape)}, but the norms of {names[0]}, {list(first.shape)}, need {wanted}"
        others = [f"dim: {dim}" for dim, shape in enumerate(shapes) if shape == second.shape]
        others += ["dim: all"] if second.numel == 1 and not others else []
        help = f"the shape is that of `{others[0]}`" if others else "are both of one weight?"
        raise RefusedOp(title, help, code="RK353")

    def find_precision(self, first: TensorSpec, second: TensorSpec) -> Literal["F32", "F64"]:
        """Return the dtype to calculate in."""
        wide = self.kind != "dequantize" and "F64" in (first.dtype, second.dtype)
        return "F64" if wide else "F32"

    def find_widths(self, first: TensorSpec, second: TensorSpec, names: Sequence[str] = ("", "")) -> tuple[int, ...]:
        """Return how many elements along each dimension share one element of the second tensor.

        >>> scales = TensorSpec("F32", (2, 3))
        >>> Combine("dequantize", "BF16", (128, 128)).find_widths(TensorSpec("F8_E4M3", (200, 384)), scales)
        (128, 128)
        """
        if len(self.block) > len(first.shape):
            title = f"`block` has {len(self.block)} sizes, but {names[0]} is {list(first.shape)}"
            raise RefusedOp(title, "give one size for each of the last dimensions", code="RK353")
        if not self.block and second.numel == 1:
            return tuple(max(size, 1) for size in first.shape)
        blocks = (0,) * (len(first.shape) - len(self.block)) + self.block
        shape, wanted, widths = second.shape, [], []
        for dim, (size, block) in enumerate(zip(first.shape, blocks, strict=True)):
            whole = not block and len(shape) == len(first.shape) and shape[dim] == 1
            widths.append(block or (max(size, 1) if whole else 1))
            wanted.append(1 if whole else math.ceil(size / widths[-1]))
        if tuple(wanted) != shape:
            title = f"{names[1]} is {list(shape)}, which does not fit {names[0]}, {list(first.shape)}"
            if self.block:
                title += f": blocks of {' x '.join(map(str, self.block))} need {wanted}"
                raise RefusedOp(title, "take the block size from the config of the checkpoint", code="RK353")
            help = "each dimension must be the same or 1: a scale for each row is {path: ..., ops: [{unsqueeze: 1}]}"
            block_help = "one for each block needs its size: block: [128, 128]"
            raise RefusedOp(title, help, *([block_help] if self.kind == "dequantize" else []), code="RK353")
        return tuple(widths)
