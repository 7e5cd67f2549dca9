"""State dicts of every shape, and torch.load as the oracle of what a reader must give."""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from remapkit.formats import Reader, open_checkpoint

DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F64": torch.float64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "C128": torch.complex128,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, contiguous and row-major."""
    if not tensor.numel():
        return b""
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).resolve_conj().reshape(-1)
    if flat.stride() != (1,):
        flat = torch.stack([*flat])
    return flat.view(torch.uint8).numpy().tobytes()


@dataclass(frozen=True)
class Saved:
    """How a state dict is saved: the format, the pickle's protocol, what wraps it, and what kind of dict it is."""

    zipped: bool
    protocol: int
    wrapper: tuple[str, ...]
    kind: type


SAVED = st.builds(
    Saved,
    zipped=st.booleans(),
    protocol=st.integers(2, 5),
    wrapper=st.sampled_from([(), ("state_dict",), ("model",), ("ema", "module")]),
    kind=st.sampled_from([dict, collections.OrderedDict]),
)


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides and offset: contiguous ones, and transposed, sliced, expanded, overlapping and empty ones."""
    shape = tuple(draw(st.lists(st.integers(0, 4) if draw(st.booleans()) else st.integers(1, 4), max_size=4)))
    offset = draw(st.integers(0, 3))
    if draw(st.booleans()):
        stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        if draw(st.booleans()) and len(shape) > 1:
            order = draw(st.permutations(range(len(shape))))
            return tuple(shape[axis] for axis in order), tuple(stride[axis] for axis in order), offset
        return shape, tuple(stride), offset
    return shape, tuple(draw(st.integers(0, 7)) for _ in shape), offset


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Up to six tensors over up to three storages of random bytes: several views of one are common."""
    state: dict[str, torch.Tensor] = {}
    for number in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        wanted = draw(st.lists(views(), min_size=1, max_size=2))
        if draw(st.integers(0, 2)) == 0:
            wanted.append(wanted[0])
        spans = [
            offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True) if n) + 1
            for shape, stride, offset in wanted
        ]
        numel = max(max(spans), 4)
        width = torch.empty(0, dtype=dtype).element_size()
        content = bytearray(draw(st.binary(min_size=8, max_size=8)) * (numel * width // 8 + 1))
        for at in range(0, len(content), 8):
            content[at] = at // 8 % 256
        if dtype is torch.bool:
            content = bytearray(byte & 1 for byte in content)
        base = torch.frombuffer(content[: numel * width], dtype=torch.uint8).clone().view(dtype)
        for view, (shape, stride, offset) in enumerate(wanted):
            tensor = torch.as_strided(base, shape, stride, offset)
            if tensor.is_floating_point() and width > 1 and draw(st.booleans()):
                tensor = torch.nn.Parameter(tensor, requires_grad=draw(st.booleans()))
            state[f"block.{number}.{'weight' if view == 0 else f'view{view}'}"] = tensor
    return state


def save(state: dict[str, torch.Tensor], saved: Saved, path: Path) -> None:
    whole: Any = saved.kind(state)
    for key in reversed(saved.wrapper):
        whole = {"epoch": 3, key: whole, "lr": 1e-3, "betas": (0.9, 0.999)}
    torch.save(whole, path, _use_new_zipfile_serialization=saved.zipped, pickle_protocol=saved.protocol)


def load(path: Path, wrapper: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """What torch itself reads."""
    # The files are our own, and the restricted unpickler does not know every opcode of protocols 3 to 5.
    found = torch.load(path, weights_only=False)
    for key in wrapper:
        found = found[key]
    return dict(found)


def tied(state: dict[str, torch.Tensor]) -> set[frozenset[str]]:
    """Names of tensors that are one view of one storage."""
    groups = collections.defaultdict(set)
    for name, tensor in state.items():
        if tensor.numel():
            key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            groups[key, tensor.dtype].add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def assert_same(reader: Reader, state: dict[str, torch.Tensor], size: int = 1 << 18) -> None:
    """The reader gives exactly these tensors, in this order, to the bit, by chunks and by extents."""
    header = reader.header()
    assert list(header) == list(state)
    for fqn, tensor in state.items():
        assert header[fqn].dtype == NAMES[tensor.dtype], fqn
        assert header[fqn].shape == tuple(tensor.shape), fqn
        pieces = [bytes(piece) for piece in reader.chunks(fqn, size)]
        assert b"".join(pieces) == raw(tensor), fqn
        assert all(pieces), "no empty pieces"
        assert max(map(len, pieces), default=0) <= max(size, tensor.element_size()), fqn
        extent = reader.extent(fqn)
        if extent is None:
            assert not tensor.is_contiguous(), f"{fqn}: a contiguous tensor is one stretch of the file"
        else:
            assert tensor.is_contiguous(), fqn
            assert 0 <= extent.offset <= extent.offset + extent.length <= extent.source.size
            assert extent.source.read(extent.offset, extent.length) == raw(tensor), fqn
    assert {frozenset(group) for group in header.tied} == tied(state)


def check_saved(state: dict[str, torch.Tensor], saved: Saved, size: int, path: Path) -> None:
    """The property: what is read is what torch reads."""
    save(state, saved, path)
    try:
        expected = load(path, saved.wrapper)
    except AttributeError:
        # torch writes its newer dtypes into legacy files and cannot read them back itself.
        assert not saved.zipped
        expected = state
    with open_checkpoint(path) as reader:
        assert reader.format == ("pth" if saved.zipped else "legacy pth")
        assert reader.root == ".".join(saved.wrapper)
        assert_same(reader, expected, size)
