"""Headers without data: names, dtypes and shapes of tensors, and which of them share storage.

The names of dtypes are those of the safetensors format (`F32`, `BF16`, `F8_E4M3`, ...), and a manifest is a header
saved as JSON in the same form: `{"<fqn>": {"dtype": "F32", "shape": [160]}}`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from remapkit.tensors.dtypes import DTYPE_BITS


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype (safetensors name) and the shape of a tensor, without its data.

    >>> TensorSpec("F32", (160, 12, 3, 3, 3)).nbytes
    207360
    >>> print(TensorSpec("BF16", (48,)))
    BF16 [48]
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements: 1 for a 0-dim tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the packed elements in bytes, rounded up."""
        return (self.numel * DTYPE_BITS[self.dtype] + 7) // 8

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class StateDictSpec(Mapping[str, TensorSpec]):
    """A header: an ordered mapping FQN -> `TensorSpec`, with other information on the tensors of a file.

    `tied` contains the groups of FQNs that share one storage with the same offset, shape and strides, `metadata` the
    file's `__metadata__`, and `name` its name in messages. `recorded` maps names without a tensor to tensors of
    which, according to the metadata, they are another name: `other -> kept`. They are not keys; a plan uses one only
    if a rule or a target requests it (`with_recorded`). `prefixes` are those that files were mounted under: a root
    lies behind one of them.

    >>> header = StateDictSpec({"conv1.weight": TensorSpec("F32", (96, 96))}, name="tiny.pth")
    >>> header["conv1.weight"].shape, len(header), header.nbytes
    ((96, 96), 1, 36864)
    """

    tensors: Mapping[str, TensorSpec]
    tied: tuple[tuple[str, ...], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = "<header>"
    recorded: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ("",)

    def __getitem__(self, fqn: str) -> TensorSpec:
        return self.tensors[fqn]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes; tied ones count once per name."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def with_recorded(self, names: Iterable[str]) -> StateDictSpec:
        """Return the header with some recorded names as keys, tied to the tensors that contain their data.

        >>> header = StateDictSpec({"embed": TensorSpec("F32", (2,))}, recorded={"head": "embed", "author": "embed"})
        >>> header.with_recorded(["head"]).tied, list(header.with_recorded(["head"]))
        ((('embed', 'head'),), ['embed', 'head'])
        """
        taken = [fqn for fqn in names if fqn in self.recorded]
        if not taken:
            return self
        groups: dict[str, list[str]] = {group[0]: list(group) for group in self.tied}
        first = {fqn: group[0] for group in self.tied for fqn in group}
        for fqn in taken:
            kept = self.recorded[fqn]
            groups.setdefault(first.get(kept, kept), [kept]).append(fqn)
        tensors = {**self.tensors, **{fqn: self.tensors[self.recorded[fqn]] for fqn in taken}}
        left = {fqn: kept for fqn, kept in self.recorded.items() if fqn not in tensors}
        return replace(self, tensors=tensors, tied=tuple(map(tuple, groups.values())), recorded=left)


def find_recorded_names(tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the pairs in a file's metadata that may be names of tied tensors: `other -> kept`.

    The safetensors format has no aliases. Its writers keep one name of a tied tensor and put `other: kept` into the
    metadata, among pairs of any other meaning: if there is a tensor `w`, `{"author": "w"}` looks the same.

    >>> find_recorded_names({"w": TensorSpec("F32", (2,))}, {"head": "w", "format": "pt", "who": "me"})
    {'head': 'w'}
    """
    return {
        other: kept
        for other, kept in metadata.items()
        if kept in tensors
        and other
        and other not in tensors
        and other not in ("format", "__metadata__")
        and not other.startswith("remapkit.")
        and find_name_problem(other) is None
    }


MAX_NAME = 1 << 16
"""The longest name of a tensor, in bytes of UTF-8. The longest in real checkpoints have a few hundred."""

OPAQUE = TensorSpec("BOOL", (0,))
"""The spec of a value of which only the name is known; compare it with `is`, never with `==`."""

_REORDERING = frozenset({*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, 0x200E, 0x200F, 0x061C})


def find_name_problem(fqn: str) -> str | None:
    r"""Return why a name cannot be an FQN, or None: its length, or characters that no legitimate checkpoint has.

    >>> find_name_problem("encoder.conv1.weight"), find_name_problem("a\nb")
    (None, 'holds the control character U+000A')
    """
    if len(fqn) > MAX_NAME // 4 and len(fqn.encode("utf-8", "surrogatepass")) > MAX_NAME:
        return f"is {len(fqn):,} characters long; at most {MAX_NAME:,} bytes are read"
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


def get_leaf(fqn: str) -> str:
    """Return the last segment of an FQN.

    >>> get_leaf("encoder.conv1.weight"), get_leaf("weight")
    ('weight', 'weight')
    """
    return fqn.rpartition(".")[2]
