"""Small modules, what they hold, and whether two hold the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import remapkit

Snapshot = dict[str, tuple[int, int, bool, str, bytes]]


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, whatever its dtype, layout and device."""
    return bytes(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def everything(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter, every buffer and every plain tensor attribute, under all of their names."""
    for owner, each in module.named_modules(remove_duplicate=False):
        held: Mapping[str, Any] = {**each._parameters, **each._buffers, **vars(each)}
        for name, value in held.items():
            if isinstance(value, torch.Tensor):
                yield f"{owner}.{name}".lstrip("."), value


def snapshot(module: nn.Module) -> Snapshot:
    """What must not change where loading is refused: identities, storages, flags and bytes."""
    found = {}
    for name, value in everything(module):
        data = b"" if value.is_meta else raw(value)
        pointer = 0 if value.is_meta else value.data_ptr()
        found[name] = (id(value), pointer, value.requires_grad, str(value.dtype), data)
    return found


def same_state(one: nn.Module, other: nn.Module) -> None:
    """Same names, dtypes, flags and bytes, and nothing on meta."""
    ours, theirs = dict(everything(one)), dict(everything(other))
    assert sorted(ours) == sorted(theirs)
    for name, value in ours.items():
        wanted = theirs[name]
        assert not value.is_meta, name
        assert type(value) is type(wanted), name
        assert (value.dtype, value.shape, value.requires_grad) == (wanted.dtype, wanted.shape, wanted.requires_grad)
        assert raw(value) == raw(wanted), name


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The module without memory for its weights."""
    with torch.device("meta"):
        return build()


def refused(code: str, model: nn.Module, *args: Any, **options: Any) -> str:
    """What loading says when it refuses with this code; the module is as it was, to the bit and the identity."""
    before = snapshot(model)
    flags = [each.training for each in model.modules()]
    with pytest.raises(remapkit.RemapkitError) as caught:
        remapkit.load_into(model, *args, **options)
    assert code in [each.code for each in caught.value.diagnostics], str(caught.value)
    assert snapshot(model) == before
    assert [each.training for each in model.modules()] == flags
    return str(caught.value)


class Tiny(nn.Module):
    """Parameters, a persistent and a non-persistent buffer, two weights tied."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)
        self.register_buffer("scale", torch.arange(width, dtype=torch.float32), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.embed(tokens) * self.scale + self.frozen)
        out: torch.Tensor = self.head(hidden)
        return out


class Plain(nn.Module):
    """Two layers and nothing that a checkpoint would not have."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a = nn.Linear(width, width)
        self.b = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x))
        return out
