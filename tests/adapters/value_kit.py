"""Random rules, random adapters of their models, and both ways through: rules on the weights, rules on the adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

import remapkit
from remapkit.adapters.alphas import PeftConfig
from remapkit.adapters.build import AdapterRules, Options, build_adapter
from remapkit.tensors.spec import StateDictSpec, TensorSpec
from tests.adapters.effect import find_effective, find_magnitude_shape, find_peft_factors, multiply

Shape = tuple[int, ...]
T = TypeVar("T")
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}
LEAVES = {"kohya": ("lora_up", "lora_down"), "comfy": ("lora_up", "lora_down")}
STARTS = {
    "kohya": "lora_unet_",
    "comfy": "diffusion_model.",
    "diffusers": "transformer.",
    "peft": "base_model.model.",
}
STYLES = tuple(STARTS)


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
        order = order[:-1] + [order[0]]
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


OPS: Mapping[str, Callable[[Draw, Shape, int], Made]] = {
    "cast": lambda draw, shape, dim: ("{cast: F64}", shape),
    "scale": lambda draw, shape, dim: (f"{{scale: {draw.pick(['0.5', '-2', '3'])}}}", shape),
    "add": lambda draw, shape, dim: ("{add: 1}", shape),
    "zeros": lambda draw, shape, dim: ("zeros", shape) if draw.flag(0.2) else None,
    "flip": lambda draw, shape, dim: (f"{{flip: {{dim: {draw.pick([dim, dim - len(shape)]) if len(shape) > 1 else dim}}}}}", shape),
    "flip_halves": lambda draw, shape, dim: (f"{{flip_halves: {{dim: {dim}}}}}", shape) if shape[dim] % 2 == 0 else None,
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


def name_module(style: str, weight: str) -> str:
    module = weight.removesuffix(".weight")
    return STARTS[style] + (module.replace(".", "_") if style == "kohya" else module)


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


# ------------------------------------------------------------------------------------------------ adapters


@dataclass
class LoRA:
    """An adapter: its tensors, and the alphas that are in its config."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    """The LoRA rank of each weight."""

    def read_config(self) -> PeftConfig | None:
        return None if self.config is None else PeftConfig.of(self.config, "adapter_config.json")


def make_matrices(shape: Shape, rank: int, generator: torch.Generator, *, is_stack: bool) -> tuple[Tensor, Tensor]:
    """Return up and down of a linear layer or a convolution, or of each matrix of a stack."""

    def noise(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    if is_stack:
        return noise(*shape[:2], rank), noise(shape[0], rank, shape[2])
    return noise(shape[0], rank, *(1,) * (len(shape) - 2)), noise(rank, *shape[1:])


@st.composite
def adapters(draw: st.DrawFn, case: Case) -> LoRA:
    """The adapter of a case: random matrices, alphas where its style has them, the other parts that the case names."""
    own = Draw(draw)
    ranks = {weight: own.number(1, 3) for weight in case.parts}
    has_alphas = case.style in LEAVES
    alphas = {weight: own.pick([1, 2, rank, 4]) for weight, rank in ranks.items() if has_alphas and own.flag(0.7)}
    made = make_adapter(case, ranks, alphas, own.number(0, 99))
    if case.style == "peft":
        made.config = draw(configs(made.ranks))
    return made


def make_adapter(case: Case, ranks: Mapping[str, int], alphas: Mapping[str, float], seed: int = 0) -> LoRA:
    """Return the parts that a case names, with random values."""
    made, generator = LoRA({}), torch.Generator().manual_seed(seed)
    up, down = LEAVES.get(case.style, ("lora_B", "lora_A"))
    for weight, parts in case.parts.items():
        name, shape = name_module(case.style, weight), case.weights[weight]
        if "lora" in parts:
            rank = made.ranks[weight] = ranks[weight]
            matrices = make_matrices(shape, rank, generator, is_stack=len(shape) == 3 == shape[0])
            made.tensors |= {f"{name}.{leaf}.weight": each for leaf, each in zip((up, down), matrices, strict=True)}
            if weight in alphas:
                made.tensors[f"{name}.alpha"] = torch.tensor(float(alphas[weight]))
        if "magnitude" in parts:
            leaf = f"{name}.{'dora_scale' if case.style in LEAVES else 'lora_magnitude_vector'}"
            sizes = find_magnitude_shape(name, torch.Size(shape), [leaf])
            made.tensors[leaf] = torch.rand(sizes, generator=generator) + 1
        others = {"diff": shape, "diff_b": shape[:1], f"{up}.bias": shape[:1]}
        made.tensors |= {
            f"{name}.{part}": torch.randn(others[part], generator=generator) for part in parts if part in others
        }
        if "whole" in parts:
            key = f"{STARTS[case.style]}{weight.removesuffix('.weight')}.bias"
            made.tensors[key] = torch.randn(shape[:1], generator=generator)
    return made


@st.composite
def configs(draw: st.DrawFn, ranks: Mapping[str, int]) -> dict[str, Any] | None:
    """The `adapter_config.json` of these modules; None if the file is not there."""
    own = Draw(draw)
    if own.flag(0.2):
        return None
    modules = {weight.removesuffix(".weight"): rank for weight, rank in ranks.items()}
    return {
        "peft_type": "LORA",
        "r": 7,
        "lora_alpha": own.pick([1, 2, 4]),
        "use_rslora": own.flag(0.2),
        "rank_pattern": modules,
        "alpha_pattern": {module: own.pick([1, 8]) for module in modules if own.flag(0.3)},
    }


def spec_of(state: Mapping[str, Tensor]) -> StateDictSpec:
    return StateDictSpec({key: TensorSpec(DTYPES[value.dtype], tuple(value.shape)) for key, value in state.items()})


def build(
    rules: remapkit.RuleSet,
    weights: Mapping[str, Tensor],
    lora: LoRA,
    options: Options,
    *,
    known: bool = True,
    prove: bool = True,
) -> tuple[AdapterRules, dict[str, Tensor]]:
    """Return the rules of an adapter, and the adapter that they make; `known`: alphas are read."""

    def read(key: str) -> float | None:
        return lora.tensors[key].item() if known else None

    built = build_adapter(rules, spec_of(weights), spec_of(lora.tensors), options, read)
    made = dict(lora.tensors)
    for text in built.texts:
        own = remapkit.loads(text)
        assert not prove or own.prove().level.value.startswith("proven"), text
        made = own(made)
    return built, made


def find_error(
    rules: remapkit.RuleSet,
    weights: Mapping[str, Tensor],
    lora: LoRA,
    built: AdapterRules,
    made: Mapping[str, Tensor],
) -> float:
    """Return the largest difference of the two ways, relative to the largest element of each tensor."""
    style = built.adapter.style
    names = {module.weight: module.name for module in built.adapter.modules}
    assert all(style.prefix in name for name in names.values())
    factors = None
    if lora.config is not None:
        ranks = {weight.removesuffix(".weight"): rank for weight, rank in lora.ranks.items()}
        found = find_peft_factors(lora.config, ranks)
        factors = {names[weight]: found[weight.removesuffix(".weight")] for weight in lora.ranks}
    exact = {key: value.double() for key, value in weights.items()}
    wanted = rules(find_effective(lora.tensors, exact, names, factors))
    plain = rules(exact)
    after = {key: name_after(built, key) for key in plain}
    new = None
    if built.config is not None:
        ranks = {key.removesuffix(".weight"): rank for key, rank in find_ranks(made, plain, after).items()}
        found = find_peft_factors(built.config, ranks)
        new = {
            after[key]: found[key.removesuffix(".weight")] for key in plain if key.removesuffix(".weight") in found
        }
    got = find_effective(made, plain, after, new)
    assert {*wanted} == {*got}
    return max(compare(got[key], wanted[key]) for key in wanted)


def find_ranks(
    adapter: Mapping[str, Tensor], weights: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, int]:
    """Return the LoRA rank of each weight that has one."""
    found = {}
    for weight, name in names.items():
        if (up := adapter.get(f"{name}.lora_B.weight")) is not None:
            found[weight] = multiply(up, adapter[f"{name}.lora_A.weight"], weights[weight].shape)[1]
    return found


def name_after(built: AdapterRules, weight: str) -> str:
    style, module = built.style, weight.removesuffix(".weight")
    return style.prefix + (module.replace(".", "_") if style.is_flat else module)


def compare(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or one.isnan().any():
        return math.inf
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30)) if one.numel() else 0.0


def needs_refusal(rules: remapkit.RuleSet, weights: Mapping[str, Tensor], lora: LoRA) -> bool:
    """Return whether no adapter of the joined LoRA ranks says what the rules make of the weights' updates.

    A target whose update has a higher rank needs it, as do one that is no matrix, and one that is no longer changed."""
    style = next(style for style, start in STARTS.items() if next(iter(lora.tensors)).startswith(start))
    exact = {key: value.double() for key, value in weights.items()}
    names = {key: name_module(style, key) for key in lora.ranks}
    updated = rules(find_effective(lora.tensors, exact, names))
    updates = {key: updated[key] - value for key, value in rules(exact).items()}
    if any(update.ndim < 2 for update in updates.values()) or not any(update.any() for update in updates.values()):
        return True
    return any(is_full(update.flatten(1), sum(lora.ranks.values())) for update in updates.values())


def is_full(matrix: Tensor, most: int) -> bool:
    """Return whether a matrix has a higher rank, or the highest that its size allows."""
    return int(torch.linalg.matrix_rank(matrix)) > min(most, *(size - 1 for size in matrix.shape))
