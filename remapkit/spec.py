"""Headers without data: names, dtypes and shapes of tensors, and which of them share storage.

The names of dtypes are those of the safetensors format (`F32`, `BF16`, `F8_E4M3`, ...), and a manifest is a header
kept as JSON in the same form: `{"<fqn>": {"dtype": "F32", "shape": [160]}}`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C128": 128,
}
"""The width in bits of each dtype, by its name in safetensors (`C128` only occurs in `.pth` files)."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype (safetensors' name) and the shape of a tensor, without its data.

    >>> TensorSpec("F32", (160, 12, 3, 3, 3)).nbytes
    207360
    >>> print(TensorSpec("BF16", (48,)))
    BF16 [48]
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements: 1 for a 0-dim tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the elements take when packed, rounded up to a whole byte."""
        return (self.numel * DTYPE_BITS[self.dtype] + 7) // 8

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class StateDictSpec(Mapping[str, TensorSpec]):
    """A header: an ordered mapping FQN -> `TensorSpec`, with what else a file says about its tensors.

    `tied` holds the groups of FQNs that share one storage with the same offset, shape and strides, `metadata`
    the file's own `__metadata__`, and `name` what to call it in messages.

    >>> header = StateDictSpec({"conv1.weight": TensorSpec("F32", (96, 96))}, name="tiny.pth")
    >>> header["conv1.weight"].shape, len(header), header.nbytes
    ((96, 96), 1, 36864)
    """

    tensors: Mapping[str, TensorSpec]
    tied: tuple[tuple[str, ...], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = "<header>"

    def __getitem__(self, fqn: str) -> TensorSpec:
        return self.tensors[fqn]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, tied ones counted once a name."""
        return sum(spec.nbytes for spec in self.tensors.values())


OPAQUE = TensorSpec("BOOL", (0,))
"""Stands for a value of which only the name is known; told by `is`, never by `==`."""

_REORDERING = frozenset({*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0x200E, 0x200F, 0x061C})


def name_problem(fqn: str) -> str | None:
    r"""Why a name cannot be an FQN, or None: control characters and lone surrogates are in no honest checkpoint.

    >>> name_problem("encoder.conv1.weight"), name_problem("a\nb")
    (None, 'holds the control character U+000A')
    """
    if fqn.isprintable():
        return None
    for character in fqn:
        code = ord(character)
        if code < 32 or 127 <= code < 160:
            return f"holds the control character U+{code:04X}"
        if 0xD800 <= code < 0xE000:
            return f"holds the lone surrogate U+{code:04X}, which UTF-8 cannot write"
        if code in _REORDERING:
            return f"holds U+{code:04X}, which changes the order or the lines in which text is shown"
    return None


def leaf(fqn: str) -> str:
    """The last segment of an FQN.

    >>> leaf("encoder.conv1.weight"), leaf("weight")
    ('weight', 'weight')
    """
    return fqn.rpartition(".")[2]
