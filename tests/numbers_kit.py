"""Compares results: moved bytes must be equal, computed floats must be close.

A cast, a view, a copy, or one rounding by IEEE 754 is exact everywhere: these are compared bit for bit. A sum of many
numbers is not: a library adds them in an order that depends on the processor's instructions, the number of threads,
the layout, and the alignment of the memory to 64 bytes (a mapped file has another alignment than new memory). So two
correct computations of the same sum may differ in the last bits.
"""

from __future__ import annotations

import torch

ULPS = {torch.float64: 64, torch.float32: 64, torch.float16: 8, torch.bfloat16: 4}
"""The allowed error in roundings of the dtype: for a few layers whose sums are added in another order.

The sum of n terms in another order differs by about sqrt(n) roundings; the small models of these tests have n below
1,000 and a dozen layers. In 16 bits, sums are computed in single precision and rounded once per layer. A wrong
weight, frame or channel changes the result by the size of the values: 10,000 times as much in single precision, 30
times in 16 bits.
"""


def computed_alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether two computations gave the same result, within roundings of the largest value.

    >>> one = torch.tensor([1.0, 1000.0])
    >>> computed_alike(one, one * (1 + 2e-7)), computed_alike(one, one.flip(0))
    (True, False)
    """
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    if not found.numel():
        return True
    wide, wanted = found.detach().double(), expected.detach().double()
    # Relative to the largest value, not to each one: a value that cancels to almost 0 keeps its terms' roundings.
    allowed = ULPS[found.dtype] * torch.finfo(found.dtype).eps * wanted.abs().max()
    return bool(((wide - wanted).abs() <= allowed).all())
