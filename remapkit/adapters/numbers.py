"""Read the one number that a tensor holds, such as an alpha, from its bytes."""

from __future__ import annotations

import struct

from remapkit.tensors.spec import TensorSpec

_FORMS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


def decode_number(data: bytes, spec: TensorSpec) -> float | None:
    """Return the number of a tensor of one element; None for other shapes and dtypes.

    >>> decode_number(bytes.fromhex("8040"), TensorSpec("BF16", ()))
    4.0
    """
    if spec.numel != 1:
        return None
    if spec.dtype == "BF16":  # the upper half of an F32
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    form = _FORMS.get(spec.dtype)
    return None if form is None else float(struct.unpack(form, data)[0])
