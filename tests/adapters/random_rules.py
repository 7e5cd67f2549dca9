"""Random rules: every operation, and every way in which one rule makes tensors of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import strategies as st

Shape = tuple[int, ...]
T = TypeVar("T")
STARTS = {
    "kohya": "lora_unet_",
    "comfy": "diffusion_model.",
    "diffusers": "transformer.",
    "peft": "base_model.model.",
}
"""What stands before the names of modules in files of each format."""
STYLES = tuple(STARTS)
LEAVES = {"kohya": ("lora_up", "lora_down"), "comfy": ("lora_up", "lora_down")}
"""The matrices in formats with alphas; those of the others are `lora_B` and `lora_A`."""


@dataclass(frozen=True)
class Draw:
    """Hypothesis's choices, in few words."""

    draw: st.DrawFn

    def pick(self, values: Sequence[T]) -> T:
        return self.draw(st.sampled_from(values))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flag(self, often: float = 0.5) -> bool:
        return self.number(1, 10) <= often * 10

    def order(self, size: int) -> list[int]:
        return list(self.draw(st.permutations(range(size))))


# ------------------------------------------------------------------------------------------------ operations

Made = tuple[str, Shape] | None


def resize(shape: Shape, dim: int, size: int) -> Shape:
    return (*shape[:dim], size, *shape[dim + 1 :])


def make_slice(draw: Draw, shape: Shape, dim: int) -> Made:
    start = draw.number(0, shape[dim] - 1)
    stop = draw.number(start + 1, shape[dim])
    end = "" if stop == shape[dim] and draw.flag() else f", stop: {stop}"
    return f"{{slice: {{dim: {dim}, start: {start}{end}}}}}", resize(shape, dim, stop - start)


def make_pad(draw: Draw, shape: Shape, dim: int) -> Made:
    size = shape[dim] + draw.number(0, 3)
    return f"{{pad: {{dim: {dim}, to: {size}, value: {draw.pick([0, 1])}}}}}", resize(shape, dim, size)


def make_index(draw: Draw, shape: Shape, dim: int) -> Made:
    order = draw.order(shape[dim])
    if shape[dim] > 1 and draw.flag(0.3):  # one twice, one left out
        order = [*order[:-1], order[0]]
    return f"{{index: {{dim: {dim}, order: {order}}}}}", shape


def make_permute(draw: Draw, shape: Shape, dim: int) -> Made:
    order = draw.order(len(shape))
    return f"{{permute: {order}}}", tuple(shape[at] for at in order)


def make_transpose(draw: Draw, shape: Shape, dim: int) -> Made:
    if len(shape) == 2:
        return "transpose", shape[::-1]
    other = draw.number(0, len(shape) - 1)
    if other == dim:
        return None
    order = list(range(len(shape)))
    order[dim], order[other] = other, dim
    return f"{{transpose: [{dim}, {other}]}}", tuple(shape[at] for at in order)


def make_reshape(draw: Draw, shape: Shape, dim: int) -> Made:
    size = shape[dim]
    if size % 2 == 0 and draw.flag():
        new = (*shape[:dim], *draw.pick([(2, size // 2), (size // 2, 2)]), *shape[dim + 1 :])
    elif dim + 1 < len(shape):
        new = (*shape[:dim], size * shape[dim + 1], *shape[dim + 2 :])
    else:
        return None
    return f"{{reshape: {list(new)}}}", new


def make_rearrange(draw: Draw, shape: Shape, dim: int) -> Made:
    if shape[dim] % 2:
        return None
    names = [chr(97 + at) for at in range(len(shape))]
    left = " ".join(f"(x {name})" if at == dim else name for at, name in enumerate(names))
    kind, size = draw.number(0, 2), shape[dim] // 2
    if kind == 0:
        right, new = " ".join(f"({name} x)" if at == dim else name for at, name in enumerate(names)), shape
    elif kind == 1:  # one axis to the front
        right, new = f"x {' '.join(names)}", (2, *resize(shape, dim, size))
    else:  # one axis into the last dimension: rows and columns mix, if it is not there
        *most, last = names
        shorter = resize(shape, dim, size)
        right, new = " ".join([*most, f"({last} x)"]), (*shorter[:-1], shorter[-1] * 2)
    return f"{{rearrange: {{pattern: '{left} -> {right}', x: 2}}}}", new


def make_squeeze(draw: Draw, shape: Shape, dim: int) -> Made:
    return (f"{{squeeze: {dim}}}", shape[:dim] + shape[dim + 1 :]) if shape[dim] == 1 and len(shape) > 1 else None


def make_qkv(draw: Draw, shape: Shape, dim: int) -> Made:
    if shape[dim] % 4:
        return None
    name = draw.pick(["group_qkv", "ungroup_qkv"])
    heads = 2 if shape[dim] % 8 else draw.pick([1, 2])  # with one head for each, all groups are one head: q, k, v
    kv_heads = draw.pick([1, heads])
    if shape[dim] % (heads + 2 * kv_heads):
        return None
    size = shape[dim] // (heads + 2 * kv_heads)
    return f"{{{name}: {{heads: {heads}, kv_heads: {kv_heads}, head_dim: {size}, dim: {dim}}}}}", shape


def make_rope(draw: Draw, shape: Shape, dim: int) -> Made:
    if shape[dim] % 4:
        return None
    size = draw.pick([shape[dim], shape[dim] // 2])
    to = draw.pick(["half", "interleaved"])
    return f"{{rope: {{to: {to}, heads: {shape[dim] // size}, head_dim: {size}, dim: {dim}}}}}", shape


def make_flip(draw: Draw, shape: Shape, dim: int) -> Made:
    at = draw.pick([dim, dim - len(shape)]) if len(shape) > 1 else dim
    return f"{{flip: {{dim: {at}}}}}", shape


OPS: Mapping[str, Callable[[Draw, Shape, int], Made]] = {
    "cast": lambda draw, shape, dim: ("{cast: F64}", shape),
    "scale": lambda draw, shape, dim: (f"{{scale: {draw.pick(['0.5', '-2', '3'])}}}", shape),
    "add": lambda draw, shape, dim: ("{add: 1}", shape),
    "zeros": lambda draw, shape, dim: ("zeros", shape) if draw.flag(0.2) else None,
    "flip": make_flip,
    "flip_halves": lambda draw, shape, dim: None if shape[dim] % 2 else (f"{{flip_halves: {{dim: {dim}}}}}", shape),
    "roll": lambda draw, shape, dim: (f"{{roll: {{dim: {dim}, by: {draw.number(-3, 3)}}}}}", shape),
    "index": make_index,
    "slice": make_slice,
    "pad": make_pad,
    "transpose": make_transpose,
    "permute": make_permute,
    "reshape": make_reshape,
    "rearrange": make_rearrange,
    "squeeze": make_squeeze,
    "unsqueeze": lambda draw, shape, dim: (f"{{unsqueeze: {dim}}}", (*shape[:dim], 1, *shape[dim:])),
    "rope": make_rope,
    "group_qkv": make_qkv,
    "ungroup_qkv": make_qkv,
}  # fmt: skip
ALONG = ("flip", "flip_halves", "roll", "index", "slice", "rope", "group_qkv", "scale")
"""Operations after which rows are rows of a model with a magnitude for each."""


def draw_ops(
    draw: Draw, shape: Shape, most: int, names: Sequence[str] = tuple(OPS), dim: int | None = None
) -> tuple[str, Shape]:
    """Return `, ops: [...]` with up to `most` operations, or nothing, and the resulting shape."""
    texts = []
    for _ in range(draw.number(0, most)):
        at = draw.number(0, len(shape) - 1) if dim is None else dim
        made = OPS[draw.pick(names)](draw, shape, at)
        if made is not None:
            texts.append(made[0])
            shape = made[1]
    return (f", ops: [{', '.join(texts)}]" if texts else ""), shape


# ------------------------------------------------------------------------------------------------ rules


@dataclass
class Case:
    """A rule, the shapes of its model's weights, and what the adapter has."""

    rule: str
    weights: dict[str, Shape]
    style: str = "kohya"
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The parts that the adapter has for each weight."""

    @property
    def text(self) -> str:
        return f"remapkit: 1\nname: r\nrules:\n  - {{id: a, {self.rule}}}\n"

    @property
    def is_generic(self) -> bool:
        """Whether no update is of a low rank by chance: one that has zeros or the same rows twice, or a stack's."""
        is_stack = "stack" in self.rule or "m0" in self.weights
        return (
            not is_stack
            and "pad" not in self.rule
            and "index" not in self.rule
            and len(self.parts) == len(self.weights)
        )


def draw_rule(draw: Draw) -> Case:
    """Return a rule of any kind on linear, convolution or stacked weights."""
    kind = draw.pick(["one", "split", "copy", "concat", "concat", "stack", "unstack", "stacked"])
    rank = draw.pick([2, 2, 2, 3, 4])
    base = (draw.pick([4, 8, 12]), draw.pick([4, 6, 8]), *(draw.pick([1, 2]) for _ in range(rank - 2)))
    if kind in ("one", "split", "copy"):
        ops, shape = draw_ops(draw, base, 3)
        return Case(f"path: m0.weight{ops}, {draw_targets(draw, kind, shape)}", {"m0.weight": base})
    if kind == "concat":
        return draw_concat(draw, base)
    if kind == "stacked":  # a stack of matrices from the start
        stack = (3, *base[:2])
        ops, shape = draw_ops(draw, stack, 2)
        return Case(f"path: m0{ops}, {draw_targets(draw, draw.pick(['one', 'split', 'copy']), shape)}", {"m0": stack})
    if kind == "unstack":
        return Case("path: m, unstack: {dim: 0, by: e}, to: 't.{e}.weight'", {"m": (3, *base[:2])})
    parts = ["a", "b"][: draw.number(1, 2)]
    dim, by = draw.pick([0, 0, 0, 1]), draw.pick([0, 0, 1, 2])
    shape = resize(base[:2], dim, base[dim] * len(parts))
    ops, _ = draw_ops(draw, (*shape[:by], 3, *shape[by:]), 2)
    weights = {f"e.{at}.{part}.weight": base[:2] for at in range(3) for part in parts}
    sources = [f"'e.{{e:int}}.{part}.weight'" for part in parts]
    join = f"path: {sources[0]}" if len(parts) == 1 else f"concat: {{dim: {dim}, from: [{', '.join(sources)}]}}"
    return Case(f"{join}, stack: {{dim: {by}, by: e}}{ops}, to: t0", weights)


def draw_targets(draw: Draw, kind: str, shape: Shape) -> str:
    if kind == "one":
        return "to: t0.weight"
    if kind == "copy":
        ops, _ = draw_ops(draw, shape, 2)
        more, _ = draw_ops(draw, shape, 1)
        return f"copy: [{{to: t0.weight{more}}}, {{to: t1.weight{ops}}}]"
    dim = draw.pick([at for at, size in enumerate(shape) if size > 1] or [0])
    first = draw.number(1, max(1, shape[dim] - 1))
    ops, _ = draw_ops(draw, resize(shape, dim, first), 1)
    one = f"{{to: t0.weight{ops}}}" if ops else "t0.weight"
    return f"split: {{dim: {dim}, sizes: [{first}, {shape[dim] - first}], into: [{one}, t1.weight]}}"


def draw_concat(draw: Draw, base: Shape) -> Case:
    dim, weights, parts = draw.number(0, len(base) - 1), {}, []
    for at in range(3):
        shape = weights[f"m{at}.weight"] = resize(base, dim, draw.pick([2, 4, 6]))
        ops, after = draw_ops(draw, shape, 1)
        parts.append(f"{{path: m{at}.weight{ops}}}" if ops and after == shape else f"m{at}.weight")
    whole = resize(base, dim, sum(shape[dim] for shape in weights.values()))
    ops, shape = draw_ops(draw, whole, 2)
    targets = draw_targets(draw, "one" if draw.flag(0.8) else "split", shape)
    return Case(f"concat: {{dim: {dim}, from: [{', '.join(parts)}]}}{ops}, {targets}", weights)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A rule, and low-rank updates for some of its weights."""
    own = Draw(draw)
    case = draw_rule(own)
    case.style = own.pick(STYLES)
    case.parts = {weight: ("lora",) for weight in case.weights if len(case.weights) == 1 or own.flag(0.7)}
    if not case.parts:
        case.parts[own.pick(list(case.weights))] = ("lora",)
    return case


BESIDE = {"kohya": "comfy", "comfy": "kohya", "diffusers": "peft", "peft": "diffusers"}
"""Formats that have names for the same parts."""


@st.composite
def row_cases(draw: st.DrawFn) -> Case:
    """A rule for the rows of weights and biases alike, and adapters with magnitudes, differences and whole biases."""
    own = Draw(draw)
    style = own.pick(STYLES)
    more = ["diff", "diff_b"] if style in LEAVES else ["lora_B.bias", "whole"]
    common = [part for part in ("magnitude",) if own.flag()]
    if "whole" in more and own.flag(0.3):
        common.append("whole")
        more = []
    more = [part for part in more if part != "whole"]
    count, rows, columns = own.pick([1, 2, 3]), own.pick([8, 12]), own.pick([(4,), (3, 2), (2, 1, 1)])
    names = ALONG if "magnitude" in common else (*ALONG, "add", "pad")
    ops, (size,) = draw_ops(own, (rows * count,), 2, names, 0)
    sources = [f"'m{at}.{{leaf:weight|bias}}'" for at in range(count)]
    start = f"path: {sources[0]}" if count == 1 else f"concat: {{dim: 0, from: [{', '.join(sources)}]}}"
    targets = ["to: 't0.{leaf}'", "copy: ['t0.{leaf}', {to: 't1.{leaf}', ops: [{flip: {dim: 0}}]}]"]
    if size > 1:
        first = own.number(1, size - 1)
        sizes = f"[{first}, {size - first}]"
        targets.append(f"split: {{dim: 0, sizes: {sizes}, into: ['t0.{{leaf}}', 't1.{{leaf}}']}}")
    to = own.pick(targets)
    case = Case(f"{start}{ops}, {to}", {}, style)
    for at in range(count):
        case.weights |= {f"m{at}.weight": (rows, *columns), f"m{at}.bias": (rows,)}
        case.parts[f"m{at}.weight"] = ("lora", *common, *(part for part in more if own.flag()))
    return case
