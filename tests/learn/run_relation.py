"""An interpreter of relations in torch, from the documentation alone: an oracle of what the finder claims."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from remapkit.authoring.relation import OpText, Relation

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def run_relation(relation: Relation, a: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the targets of a relation."""
    parts = [a[fqn] for fqn in relation.sources]
    if relation.before:
        parts = [run_ops(part, ops) for part, ops in zip(parts, relation.before, strict=True)]
    whole = run_ops(join(relation, parts), relation.ops)
    made = cut(relation, whole)
    if relation.after:
        made = [run_ops(one, ops) for one, ops in zip(made, relation.after, strict=True)]
    return dict(zip(relation.targets, made, strict=True))


def join(relation: Relation, parts: Sequence[Tensor]) -> Tensor:
    if relation.join == "stack":
        return torch.stack(list(parts), relation.dim)
    if relation.join == "concat" and relation.count:
        width = len(parts) // relation.count
        groups = [torch.cat(list(parts[at : at + width]), relation.dim) for at in range(0, len(parts), width)]
        return torch.stack(groups, relation.count_dim)
    if relation.join == "concat":
        sizes = relation.sizes or (parts[0].shape[relation.dim],) * len(parts)
        assert tuple(part.shape[relation.dim] for part in parts) == sizes
        return torch.cat(list(parts), relation.dim)
    (whole,) = parts
    return whole


def cut(relation: Relation, whole: Tensor) -> list[Tensor]:
    count = len(relation.targets)
    if relation.cut == "unstack":
        assert whole.shape[relation.dim] == count
        return list(whole.unbind(relation.dim))
    if relation.cut == "copy":
        return [whole] * count
    if relation.cut == "split":
        each = list(whole.unbind(relation.count_dim)) if relation.count else [whole]
        width = count // len(each)
        size = each[0].shape[relation.dim]
        sizes = list(relation.sizes) or [size // width] * width
        return [part for one in each for part in one.split(sizes, relation.dim)]
    return [whole]


def run_ops(tensor: Tensor, ops: Sequence[OpText]) -> Tensor:
    for op in ops:
        name, value = (op, None) if isinstance(op, str) else next(iter(op.items()))
        tensor = OPS[name](tensor, value)
    return tensor


def pick(tensor: Tensor, dim: int, order: Tensor) -> Tensor:
    return tensor.index_select(dim, order)


def transpose(tensor: Tensor, value: Any) -> Tensor:
    return tensor.transpose(*(value or (0, 1)))


def squeeze(tensor: Tensor, value: Any) -> Tensor:
    for dim in sorted([value] if isinstance(value, int) else value, reverse=True):
        assert tensor.shape[dim] == 1
        tensor = tensor.squeeze(dim)
    return tensor


def unsqueeze(tensor: Tensor, value: Any) -> Tensor:
    for dim in sorted([value] if isinstance(value, int) else value):
        tensor = tensor.unsqueeze(dim)
    return tensor


def rope(tensor: Tensor, value: Any) -> Tensor:
    dim, heads, size = value["dim"], value["heads"], value["head_dim"]
    rows = torch.arange(heads * size).reshape(heads, size)
    if value["to"] == "half":
        order = torch.cat([rows[:, 0::2], rows[:, 1::2]], 1)
    else:
        order = torch.stack([rows[:, : size // 2], rows[:, size // 2 :]], 2)
    return pick(tensor, dim, order.reshape(-1))


def list_ungrouped(heads: int, kv_heads: int, head_dim: int) -> Tensor:
    share = heads // kv_heads
    rows = torch.arange((heads + 2 * kv_heads) * head_dim).reshape(kv_heads, share + 2, head_dim)
    return torch.cat([rows[:, :share].reshape(-1), rows[:, share].reshape(-1), rows[:, share + 1].reshape(-1)])


def ungroup_qkv(tensor: Tensor, value: Any) -> Tensor:
    return pick(tensor, value["dim"], list_ungrouped(value["heads"], value["kv_heads"], value["head_dim"]))


def group_qkv(tensor: Tensor, value: Any) -> Tensor:
    order = list_ungrouped(value["heads"], value["kv_heads"], value["head_dim"]).argsort()
    return pick(tensor, value["dim"], order)


def rearrange(tensor: Tensor, value: Any) -> Tensor:
    """Split all dimensions into axes, permute these, and join them; `...` are axes of their own."""
    left, right = (list_groups(side) for side in value["pattern"].split(" -> "))
    rest = [f"_{n}" for n in range(tensor.dim() - sum(group != ["..."] for group in left))]
    left, right = ([one for group in side for one in spread(group, rest)] for side in (left, right))
    lengths: dict[str, int] = {}
    for group, size in zip(left, tensor.shape, strict=True):
        given = math.prod(value.get(name, 1) for name in group)
        lengths |= {name: value.get(name, size // given) for name in group}
    axes = [name for group in left for name in group]
    apart = tensor.reshape([lengths[name] for name in axes])
    moved = apart.permute([axes.index(name) for group in right for name in group])
    return moved.reshape([math.prod(lengths[name] for name in group) for group in right])


def list_groups(side: str) -> list[list[str]]:
    return [word.strip("()").split() for word in re.findall(r"\([^)]*\)|[^\s()]+", side)]


def spread(group: list[str], rest: list[str]) -> list[list[str]]:
    return [[name] for name in rest] if group == ["..."] else [group]


OPS: Mapping[str, Callable[[Tensor, Any], Tensor]] = {
    "transpose": transpose,
    "permute": lambda tensor, value: tensor.permute(value),
    "reshape": lambda tensor, value: tensor.reshape(value),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "slice": lambda tensor, value: tensor.narrow(value["dim"], value["start"], value["stop"] - value["start"]),
    "flip": lambda tensor, value: tensor.flip(value["dim"]),
    "flip_halves": lambda tensor, value: tensor.roll(tensor.shape[value["dim"]] // 2, value["dim"]),
    "roll": lambda tensor, value: tensor.roll(value["by"], value["dim"]),
    "index": lambda tensor, value: pick(tensor, value["dim"], torch.tensor(value["order"])),
    "rope": rope,
    "ungroup_qkv": ungroup_qkv,
    "group_qkv": group_qkv,
    "rearrange": rearrange,
    "cast": lambda tensor, value: tensor.to(DTYPES[value]),
    "add": lambda tensor, value: tensor + value,
}
