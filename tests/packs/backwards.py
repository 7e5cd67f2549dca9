"""The references the other way round, each a function from state dict to state dict.

A converter that only moves elements is a permutation. Where every element is given a number of its own, it says by
itself where each one goes, and so where each came from: `undone` is the reference's own inverse, and no guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import oracles
import torch
from pack_kit import BY_NAME, Case, State
from torch import Tensor


def numbered(case: Case) -> State:
    """The small source state dict of a case, with a number of its own in each element."""
    header, start = case.small(case.source), 0
    state: State = {}
    for fqn, shape in header.items():
        count = torch.Size(shape).numel()
        state[fqn] = torch.arange(start, start + count).reshape(shape)
        start += count
    return state


def undone(pack: str, state: Mapping[str, Tensor]) -> State:
    """The state dict that the reference of a pack makes this one of, in the small shapes of its case."""
    case = BY_NAME[pack]
    source = numbered(case)
    went = case.oracle(source)
    assert went.keys() == state.keys()
    total = sum(tensor.numel() for tensor in source.values())
    numbers = torch.cat([went[fqn].reshape(-1) for fqn in state])
    assert torch.equal(numbers.sort().values, torch.arange(total)), f"the reference of {pack} is no permutation"
    values = torch.empty(total, dtype=next(iter(state.values())).dtype)
    values[numbers] = torch.cat([tensor.reshape(-1) for tensor in state.values()])
    return {fqn: values[tensor] for fqn, tensor in source.items()}


BACK: dict[str, Callable[[Mapping[str, Tensor]], State]] = {
    case.back: partial(undone, case.pack) for case in BY_NAME.values() if case.pack != "mixtral_per_expert"
} | {"mixtral_fused": oracles.mixtral_fused}
"""By the name of the pack for the way back. Of Mixtral transformers knows both ways itself."""

wan21_vae_diffusers = BACK["wan21_vae_diffusers"]
wan22_vae_diffusers = BACK["wan22_vae_diffusers"]
wan21_dit_diffusers = BACK["wan21_dit_diffusers"]
flux_diffusers = BACK["flux_diffusers"]
llama_hf = BACK["llama_hf"]
mixtral_fused = BACK["mixtral_fused"]
gpt2_nanogpt = BACK["gpt2_nanogpt"]
vit_hf = BACK["vit_hf"]
