"""When two results count as the same: bytes that were moved are equal, floats that were computed are close.

A cast, a view, a copy, one rounding by IEEE 754 is exact everywhere: these are compared bit for bit. A sum of many
numbers is not: a library adds them in an order that depends on the instructions of the processor, on the number of
threads, on the layout, and on how far the memory is from a multiple of 64 bytes (a mapped file begins elsewhere than
fresh memory). Two ways to the same sum may then differ in the last bits, with nothing wrong in either.
"""

from __future__ import annotations

import torch

ULPS = {torch.float64: 64, torch.float32: 64, torch.float16: 8, torch.bfloat16: 4}
"""How many roundings of the dtype a result may be away: a few layers, each of whose sums was added in another order.

A sum of n terms in another order is apart by about sqrt(n) roundings; the small models of these tests have n below
1,000 and a dozen layers. In 16 bits sums are kept in single precision and rounded once a layer. A wrong weight, frame
or channel is apart by the size of the values: 10,000 times as much in single precision, 30 times in 16 bits.
"""


def computed_alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two ways of computing gave the same, within roundings of the largest value.

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
    # Of the largest value, not of each: what cancels to nearly nothing keeps the roundings of its terms.
    allowed = ULPS[found.dtype] * torch.finfo(found.dtype).eps * wanted.abs().max()
    return bool(((wide - wanted).abs() <= allowed).all())
