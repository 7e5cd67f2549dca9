"""What scaled weights mean, written from the formats of their writers and not from remapkit: element by element."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence

import torch

State = dict[str, torch.Tensor]
F8 = torch.float8_e4m3fn


def dequantize(weight: torch.Tensor, scale: torch.Tensor, block: Sequence[int] | None) -> torch.Tensor:
    """The value of a weight in float64, where the product of 4 and 24 bits is exact.

    One number is for all; [OUT] has one for each row; blocks lie along the last two dimensions, and what is before
    them are weights of their own; with the dimensions of the weight and no blocks, each dimension has all or one.
    """
    if scale.dim() < 2 and scale.numel() == 1:
        return weight.double() * scale.double().reshape(())
    if scale.dim() == 1:
        assert scale.shape[0] == weight.shape[0], "a scale for each row"
        return weight.double() * scale.double().reshape(-1, *[1] * (weight.dim() - 1))
    assert scale.dim() == weight.dim(), "as many dimensions as the weight"
    widths = [1] * (weight.dim() - 2) + list(block) if block is not None else [0] * weight.dim()
    made = torch.empty(weight.shape, dtype=torch.float64)
    for index in itertools.product(*map(range, weight.shape)):
        places = zip(index, widths, scale.shape, strict=True)
        own = tuple(at // wide if wide else min(at, size - 1) for at, wide, size in places)
        made[index] = weight[index].double() * scale[own].double()
    for size, wide, there in zip(weight.shape, widths, scale.shape, strict=True):
        assert there == (math.ceil(size / wide) if wide else there) and (wide or there in (1, size)), "the form"
    return made


def make_scale(form: str, shape: Sequence[int], block: Sequence[int], rng: random.Random) -> torch.Tensor:
    """Scales of a form for a weight: powers of 2 are avoided, since these hide what is done twice."""
    rows = shape[0]
    grid = (*shape[:-2], *(math.ceil(size / wide) for size, wide in zip(shape[-2:], block, strict=True)))
    ones = [1] * (len(shape) - 1)
    own = {"tensor": (), "one": (1,), "flat": (rows,), "rows": (rows, *ones), "blocks": grid, "unknown": grid}[form]
    return torch.tensor([rng.choice([0.3, 0.7, 1.1, 2.9, 5.3]) for _ in range(math.prod(own))]).reshape(own)


def make_weight(shape: Sequence[int], rng: random.Random) -> torch.Tensor:
    """A weight of random 8-bit floats."""
    return torch.tensor([rng.uniform(-3, 3) for _ in range(math.prod(shape))]).reshape(*shape).to(F8)


def name_scale(weight: str, leaf: str) -> str:
    """`weight_scale_inv`, `scale_weight`, ... beside a weight; of a name without `.weight`, at its end."""
    head, dot, end = weight.rpartition(".")
    if end == "weight" or leaf.startswith("scale_"):
        return f"{head}{dot}{leaf.replace('weight', end)}"
    return f"{weight}{leaf.removeprefix('weight')}"


def values_of(state: Mapping[str, torch.Tensor], leaf: str, block: Sequence[int] | None) -> State:
    """The values of all weights, without scales; what has none is itself."""
    scales = {name_scale(fqn, leaf): fqn for fqn in state}
    made = {}
    for fqn, tensor in state.items():
        if fqn not in scales or scales[fqn] not in state:
            scale = state.get(name_scale(fqn, leaf))
            made[fqn] = tensor.double() if scale is None else dequantize(tensor, scale, block)
    return made


def rand_op(rng: random.Random, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | None:
    """An operation for a tensor of a shape, and the shape of its result; None if the draw does not fit."""
    n = len(shape)
    d = rng.randrange(n)
    s = shape[d]
    with_size = (*shape[:d], 0, *shape[d + 1 :])

    def sized(size: int) -> tuple[int, ...]:
        return tuple(size if at == d else with_size[at] for at in range(n))

    kind = rng.choice(OPS)
    if kind == "flip":
        return f"{{flip: {{dim: {d}}}}}", shape
    if kind == "roll":
        return f"{{roll: {{dim: {d}, by: {rng.choice([-2, 1, 2, 4])}}}}}", shape
    if kind == "index":
        order = rng.sample(range(s), s)
        return f"{{index: {{dim: {d}, order: {order}}}}}", shape
    if kind == "slice" and s > 2:
        start = rng.choice([0, *range(0, s - 1, 2)])
        stop = rng.choice([s, rng.randrange(start + 1, s + 1)])
        return f"{{slice: {{dim: {d}, start: {start}, stop: {stop}}}}}", sized(stop - start)
    if kind == "pad":
        to = s + rng.randrange(1, 4)
        return f"{{pad: {{dim: {d}, to: {to}, value: {rng.choice([0, 0, 1])}}}}}", sized(to)
    if kind == "permute":
        order = rng.sample(range(n), n)
        return f"{{permute: {order}}}", tuple(shape[at] for at in order)
    if kind == "flip_halves" and s % 2 == 0:
        return f"{{flip_halves: {{dim: {d}}}}}", shape
    if kind == "rope" and s % 4 == 0:
        return f"{{rope: {{to: half, heads: 2, head_dim: {s // 2}, dim: {d}}}}}", shape
    if kind == "unsqueeze":
        return f"{{unsqueeze: {d}}}", (*shape[:d], 1, *shape[d:])
    if kind == "squeeze" and s == 1 and n > 1:
        return f"{{squeeze: {d}}}", (*shape[:d], *shape[d + 1 :])
    if kind == "reshape" and s % 2 == 0:
        made = (*shape[:d], 2, s // 2, *shape[d + 1 :])
        return f"{{reshape: {list(made)}}}", made
    if kind == "rearrange" and s % 2 == 0:
        axes = [chr(97 + at) for at in range(n)]
        left = " ".join(f"(x {axis})" if at == d else axis for at, axis in enumerate(axes))
        return (
            f"{{rearrange: {{pattern: '{left} -> {left.replace(f'(x {axes[d]})', f'({axes[d]} x)')}', x: 2}}}}",
            shape,
        )
    return (f"{{{kind}: 2}}", shape) if kind in ("scale", "add") else None


OPS = (
    *("flip", "roll", "index", "slice", "slice", "pad", "permute", "flip_halves", "rope", "unsqueeze", "squeeze"),
    *("reshape", "rearrange", "scale", "add"),
)


def rand_ops(rng: random.Random, shape: tuple[int, ...], most: int) -> tuple[str, tuple[int, ...]]:
    """The `ops` of a rule as text (empty for none), and the shape after them."""
    made = []
    for _ in range(rng.randrange(most + 1)):
        if (found := rand_op(rng, shape)) is not None:
            made.append(found[0])
            shape = found[1]
    return (f", ops: [{', '.join(made)}]" if made else ""), shape


def rand_rule(rng: random.Random) -> tuple[str, dict[str, tuple[int, ...]]]:
    """A rule, and the shapes of the weights that it reads."""
    kind = rng.choice(["one", "one", "split", "split", "copy", "concat", "concat", "stack", "unstack"])
    base = (rng.choice([4, 6, 8, 12]), rng.choice([4, 6, 8]))
    if kind == "unstack":
        return "path: m.weight, unstack: {dim: 0, by: e}, to: 't{e}.weight'", {"m.weight": (2, *base)}
    if kind == "stack":
        shapes = {f"e.{e}.{part}.weight": base for e in range(2) for part in "ab"}
        ops, _ = rand_ops(rng, (2, 2 * base[0], base[1]), 1)
        parts = "['e.{e:int}.a.weight', 'e.{e:int}.b.weight']"
        return f"concat: {{dim: 0, from: {parts}}}, stack: {{dim: 0, by: e}}{ops}, to: t.weight", shapes
    if kind == "concat":
        dim = rng.choice([0, 0, 1])
        sizes = [rng.choice([2, 4, 6, 8]) for _ in range(2)]
        shapes = {f"m{at}.weight": (size, base[1]) if dim == 0 else (base[0], size) for at, size in enumerate(sizes)}
        total = (sum(sizes), base[1]) if dim == 0 else (base[0], sum(sizes))
        branch = ""
        if rng.random() < 0.3:
            found = rand_op(rng, shapes["m0.weight"])
            branch = f", ops: [{found[0]}]" if found is not None and found[1] == shapes["m0.weight"] else ""
        ops, _ = rand_ops(rng, total, 1)
        return f"concat: {{dim: {dim}, from: [{{path: m0.weight{branch}}}, m1.weight]}}{ops}, to: t.weight", shapes
    ops, shape = rand_ops(rng, base, 2)
    if kind == "one":
        return f"path: m.weight{ops}, to: t.weight", {"m.weight": base}
    if kind == "copy":
        return f"path: m.weight{ops}, copy: [t0.weight, t1.weight]", {"m.weight": base}
    dim = rng.randrange(len(shape))
    cut = rng.choice([size for size in (1, 2, 4, 6) if size < shape[dim]] or [1])
    sizes = [cut, shape[dim] - cut]
    return f"path: m.weight{ops}, split: {{dim: {dim}, sizes: {sizes}, into: [t0.weight, t1.weight]}}", {
        "m.weight": base
    }
