"""Checkpoints in memory to run a converter on: unique random values, and what the converter makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from remapkit.files.source_file import CHUNK, Extent
from remapkit.formats.reader import FileReader
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name
from remapkit.tensors.spec import StateDictSpec, TensorSpec

_TRIES = 64
_SMALL = 64
"""Random values of more bytes do not repeat."""


class RandomTensors(FileReader):
    """A checkpoint without its bytes: the values of each tensor follow from its key and a seed.

    The values of two keys differ wherever their dtypes and sizes allow it: a second `BOOL` of one element may repeat.
    """

    format = "random"

    def __init__(
        self, header: StateDictSpec, seed: int = 0, others: Iterable[str] = (), *, kind: str = "normal"
    ) -> None:
        """`others` are keys that get values of the next seed instead, which differ as soon as there is an element.

        `kind` is of floats: `normal`, `wide`, `special`, `negative`, `positive` or `zero`.
        """
        super().__init__(Path(header.name), ())
        self._header, self._seed, self.kind = header, seed, kind
        self._tries: dict[str, tuple[int, int]] = {}
        self._last: tuple[str, torch.Tensor] | None = None
        taken: set[bytes] = set()
        for fqn, spec in header.items():
            if spec.nbytes > _SMALL:
                continue
            for attempt in range(1 if kind == "zero" else _TRIES):  # zeros are the same in every try
                self._tries[fqn] = (seed, attempt)
                digest = bytes(view_bytes(self.make(fqn))) + repr(spec).encode()
                if digest not in taken:
                    break
            taken.add(digest)
        for fqn in others:
            old = self.make(fqn) if header[fqn].nbytes <= _SMALL else None
            for attempt in range(_TRIES):
                self._tries[fqn] = (seed + 1, attempt)
                if old is None or view_bytes(self.make(fqn)) != view_bytes(old):
                    break

    def header(self) -> StateDictSpec:
        """Names, dtypes and shapes."""
        return self._header

    def make(self, fqn: str) -> torch.Tensor:
        """Return the tensor; each call makes it anew."""
        spec = self._header[fqn]
        seed, attempt = self._tries.get(fqn, (self._seed, 0))
        name = f"{seed}/{attempt}/{fqn}".encode(errors="surrogatepass")
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=7).digest()))
        return _change_values(_fill(spec, generator), self.kind, generator)

    def make_state(self, order: Iterable[str] | None = None) -> dict[str, Any]:
        """Return a plain dict of new tensors, in the header's or another order."""
        return {fqn: self.make(fqn) for fqn in (self._header if order is None else order)}

    def extent(self, fqn: str) -> Extent | None:
        """Return None: there is no file."""
        return None

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the tensor's bytes. The last tensor is kept: the parts of a split read it one after the other."""
        if self._last is None or self._last[0] != fqn:
            self._last = (fqn, self.make(fqn))
        yield view_bytes(self._last[1])

    def digests(self) -> dict[str, bytes]:
        """Return a digest of each tensor's dtype, shape and bytes."""
        return {fqn: _digest(self.make(fqn), spec) for fqn, spec in self._header.items()}


class StateTensors:
    """A state dict in memory as a checkpoint to compare."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: str) -> None:
        self._tensors = tensors
        specs = {fqn: TensorSpec(get_dtype_name(each.dtype), tuple(each.shape)) for fqn, each in tensors.items()}
        self._header = StateDictSpec(specs, name=name)

    def header(self) -> StateDictSpec:
        """Names, dtypes and shapes."""
        return self._header

    def get(self, fqn: str) -> torch.Tensor:
        """Return the tensor itself."""
        return self._tensors[fqn]

    def chunks(self, fqn: str) -> Iterator[memoryview]:
        """Yield the tensor's bytes."""
        yield view_bytes(self._tensors[fqn])

    def digests(self) -> dict[str, bytes]:
        """Return a digest of each tensor's dtype, shape and bytes."""
        return {fqn: _digest(each, self._header[fqn]) for fqn, each in self._tensors.items()}


def view_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the tensor's bytes: contiguous and row-major."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data).cast("B") if flat.numel() else memoryview(b"")


def _digest(tensor: torch.Tensor, spec: TensorSpec) -> bytes:
    digest = hashlib.blake2b(repr(spec).encode(), digest_size=20)
    digest.update(view_bytes(tensor))
    return digest.digest()


def _change_values(tensor: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Return values of a kind that random numbers hardly ever are; what is no plain float only becomes zero."""
    if kind == "zero":
        return torch.zeros_like(tensor)
    if kind == "normal" or tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return tensor
    if kind in ("positive", "negative"):
        return tensor.abs() if kind == "positive" else -tensor.abs()
    most = 2.0 * torch.tensor(torch.finfo(tensor.dtype).max, dtype=torch.float64).log2().item() - 2
    powers = (torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5) * most
    wide = (tensor.double().sign() * powers.exp2()).to(tensor.dtype)
    if kind == "special":
        flat, special = wide.reshape(-1), (float("nan"), float("inf"), float("-inf"), -0.0)
        flat[: len(special)] = torch.tensor(special, dtype=tensor.dtype)[: flat.numel()]
    return wide


def _fill(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    dtype = TORCH_DTYPES[spec.dtype]
    if dtype is torch.bool:
        return torch.randint(0, 2, spec.shape, generator=generator).to(torch.bool)
    if dtype.is_complex:
        parts = torch.randn((*spec.shape, 2), generator=generator, dtype=torch.float64)
        return torch.view_as_complex(parts).to(dtype)
    if dtype.is_floating_point:
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        values = torch.randn(spec.shape, generator=generator, dtype=wide)
        return (values.abs() if spec.dtype == "F8_E8M0" else values).to(dtype)
    limits = torch.iinfo(dtype)
    # All of 64 bits are not a range that `randint` takes.
    low, high = max(limits.min, -(1 << 62)), min(limits.max, 1 << 62)
    return torch.randint(low, high, spec.shape, generator=generator, dtype=torch.int64).to(dtype)
