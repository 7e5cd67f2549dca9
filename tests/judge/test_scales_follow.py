"""Scales that follow their weights: whatever is accepted keeps the value of every weight, element by element."""

# ruff: noqa: E501 - tables of cases, one line each

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import remapkit
from remapkit.diagnostics.errors import FailedCheck

HEAD = "remapkit: 1\nname: t\nrules:\n"
State = dict[str, torch.Tensor]


def value(state: Mapping[str, torch.Tensor], module: str, block: tuple[int, ...]) -> torch.Tensor:
    """The value of a weight: each scale is for a block, or for the whole tensor."""
    weight, scale = state[f"{module}.weight"].float(), state[f"{module}.weight_scale"]
    if scale.dim() != weight.dim():
        assert scale.numel() == 1
        return weight * scale.reshape(())
    for dim, (size, wide) in enumerate(zip(weight.shape, block, strict=True)):
        assert scale.shape[dim] == -(-size // wide), "scales that do not fit the blocks"
        scale = scale.repeat_interleave(wide, dim).narrow(dim, 0, size)
    return weight * scale


def readings(state: State) -> Iterator[tuple[int, int]]:
    """Every size of blocks that the shapes allow, up to one that no tensor here has."""
    for block in itertools.product((1, 2, 3, 4, 5, 1024), repeat=2):
        with contextlib.suppress(AssertionError):
            for fqn in state:
                value(state, fqn.partition(".")[0], block)
            yield block


OPS = ("concat", "split", "stack", "unstack")


@st.composite
def conversions(draw: Any) -> tuple[str, str, State]:
    """An operation on weights, rules for their scales (often wrong ones), and the tensors."""
    kind, dim = draw(st.sampled_from(OPS)), draw(st.integers(0, 1))
    block = tuple(draw(st.sampled_from((1, 2, 4))) for _ in "rc")
    form = draw(st.sampled_from(("tensor", "one", "rows", "columns", "blocks")))
    sizes = draw(st.lists(st.sampled_from((1, 2, 3, 4)), min_size=2, max_size=2))
    equal = draw(st.booleans())

    def tensors(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        grid = tuple(-(-size // wide) for size, wide in zip(shape, block, strict=True))
        scale_shape = {"tensor": (), "one": (1,), "rows": (shape[0], 1), "columns": (1, shape[1]), "blocks": grid}[
            form
        ]
        scale = torch.full(scale_shape, 2.0) if equal else torch.rand(scale_shape) + 0.5
        return torch.randn(shape).to(torch.float8_e4m3fn), scale

    state: State = {}
    if kind in ("concat", "stack"):
        shapes = [(size, 4) if dim == 0 else (4, size) for size in (sizes if kind == "concat" else sizes[:1] * 2)]
        for module, shape in zip("ab", shapes, strict=True):
            state[f"{module}.weight"], state[f"{module}.weight_scale"] = tensors(shape)
    else:
        whole = sum(sizes) if kind == "split" else 2
        weight, scale = tensors((whole, 4) if dim == 0 else (4, whole))
        state = {"w.weight": weight, "w.weight_scale": scale}
    order = draw(st.sampled_from(("ab", "ba")))
    rename = {
        "concat": ["join", "merge", "stack"],
        "stack": ["stack", "merge", "join"],
        "split": ["split", "copy"],
        "unstack": ["unstack", "copy"],
    }

    def write(id: str, leaf: str, what: str, order: str = "ab", cut: list[int] = sizes) -> str:
        listed = f"[{', '.join(f'{module}.{leaf}' for module in order)}]"
        return (
            f"  - {{id: {id}, "
            + {
                "join": f"concat: {{dim: {dim}, from: {listed}}}, to: w.{leaf}}}\n",
                "merge": f"merge: {listed}, to: w.{leaf}}}\n",
                "stack": f"path: '{{m:a|b}}.{leaf}', to: w.{leaf}}}\n",
                "split": f"path: w.{leaf}, split: {{dim: {dim}, sizes: {cut}, into: {listed}}}}}\n",
                "copy": f"path: w.{leaf}, copy: {listed}}}\n",
                "unstack": f"path: w.{leaf}, unstack: {{dim: {dim}, by: e}}, to: 'e{{e}}.{leaf}'}}\n",
            }[what]
        )

    if kind == "stack":  # by number
        state = {f"{'ab'.index(fqn[0])}{fqn[1:]}": tensor for fqn, tensor in state.items()}
        rules = "".join(
            f"  - {{id: {leaf}, path: '{{e:int}}.{leaf}', stack: {{dim: {dim}, by: e}}, to: w.{leaf}}}\n"
            for leaf in ("weight", "weight_scale")
        )
        return kind, rules, state
    second = write(
        "s", "weight_scale", draw(st.sampled_from([each for each in rename[kind] if each != "stack"])), order
    )
    return kind, write("w", "weight", "join" if kind == "concat" else kind) + second, state


@settings(max_examples=200, deadline=None)
@given(conversions())
def test_what_is_accepted_keeps_every_value(case: tuple[str, str, State]) -> None:
    """Nobody knows the size of blocks here: a value must be right whatever size the shapes allow."""
    kind, text, state = case
    dim = int(re.search(r"dim: (\d)", text)[1])  # type: ignore[index]
    try:
        made = remapkit.loads(HEAD + text)(state)
    except FailedCheck as refused:
        assert {each.code for each in refused.diagnostics} <= {"RK347", "RK350", "RK351", "RK353", "RK362"}
        return
    for reading in readings(state):
        known = {module.partition(".")[0] for module in state}
        before = {module: value(state, module, reading) for module in known}
        if kind == "concat":
            assert torch.equal(value(made, "w", reading), torch.cat([before["a"], before["b"]], dim))
        elif kind == "stack":
            stacked = value(made, "w", (*reading[:dim], 1, *reading[dim:]))
            assert torch.equal(stacked, torch.stack([before["0"], before["1"]], dim))
        elif kind == "split":
            assert torch.equal(torch.cat([value(made, module, reading) for module in "ab"], dim), before["w"])
        else:
            parts = [value(made, f"e{e}", tuple(x for d, x in enumerate(reading) if d != dim)) for e in range(2)]
            assert torch.equal(torch.stack(parts, dim), before["w"])


def f8(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(torch.float8_e4m3fn)


JOIN = "  - {id: w, concat: {dim: 0, from: [q.weight, k.weight]}, to: qk.weight}\n"
CUT = "  - {id: w, path: qk.weight, split: {dim: 0, sizes: [4, 2], into: [q.weight, k.weight]}}\n"
MERGE = "  - {id: s, merge: [q.weight_scale, k.weight_scale], to: qk.weight_scale}\n"
ROWS = "  - {id: s, concat: {dim: 0, from: [q.weight_scale, k.weight_scale]}, to: qk.weight_scale}\n"
SPLIT = "  - {id: s, path: qk.weight_scale, split: {dim: 0, sizes: [4, 2], into: [q.weight_scale, k.weight_scale]}}\n"
COPY = "  - {id: s, path: qk.weight_scale, copy: [q.weight_scale, k.weight_scale]}\n"


def pair(one: torch.Tensor, other: torch.Tensor) -> State:
    return {"q.weight": f8(4, 3), "k.weight": f8(2, 3), "q.weight_scale": one, "k.weight_scale": other}


@pytest.mark.parametrize(
    ("rules", "state"),
    [
        (JOIN + MERGE, pair(torch.tensor(2.0), torch.tensor(2.0))),
        (JOIN + MERGE, pair(torch.tensor([2.0]), torch.tensor([2.0]))),
        (JOIN + ROWS, pair(torch.rand(4, 1), torch.rand(2, 1))),
        (JOIN + ROWS, pair(torch.rand(4, 2), torch.rand(2, 2))),  # groups along the other dimension
        (CUT + COPY, {"qk.weight": f8(6, 3), "qk.weight_scale": torch.tensor(2.0)}),
        (CUT + COPY, {"qk.weight": f8(6, 3), "qk.weight_scale": torch.rand(1, 3)}),
        (CUT + SPLIT, {"qk.weight": f8(6, 3), "qk.weight_scale": torch.rand(6, 1)}),
    ],
)
def test_what_is_right_is_accepted(rules: str, state: State) -> None:
    assert remapkit.loads(HEAD + rules)(state)


@pytest.mark.parametrize(
    ("rules", "state", "message"),
    [
        (JOIN + MERGE, pair(torch.tensor(2.0), torch.tensor(3.0)), "k.weight_scale differs from q.weight_scale"),
        (JOIN + ROWS, pair(torch.ones(1), torch.ones(1)), "its scales must be equal: `merge` them"),
        (JOIN + MERGE, pair(torch.ones(1, 1), torch.ones(1, 1)), "q.weight_scale is [1, 1], which may be scales of blo"),
        (JOIN + ROWS, pair(torch.rand(2, 1), torch.rand(1, 1)), "q.weight_scale is [2, 1], which may be scales of blo"),
        (CUT + SPLIT.replace("[4, 2]", "[2, 4]"), {"qk.weight": f8(6, 3), "qk.weight_scale": torch.rand(6, 1)}, "the same `split`"),
        (CUT + COPY, {"qk.weight": f8(6, 3), "qk.weight_scale": torch.rand(6, 1)}, "need the same `split`"),
        (CUT + SPLIT.replace("sizes: [4, 2], ", ""), {"qk.weight": f8(6, 3), "qk.weight_scale": torch.rand(2, 1)}, "scales of blocks"),
        (JOIN + "drop: [q.weight_scale, k.weight_scale]\n", pair(torch.ones(()), torch.ones(())), "join on a scaled weight, but not on its scales"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(rules: str, state: State, message: str) -> None:
    with pytest.raises(FailedCheck, match=re.escape(message)) as caught:
        remapkit.loads(HEAD + rules)(state)
    assert "dequantize" in str(caught.value)


def test_packed_numbers_do_not_follow() -> None:
    state = {f"{module}.qweight": torch.zeros(4, 3, dtype=torch.int32) for module in "qk"}
    state |= {f"{module}.scales": torch.rand(4, 1) for module in "qk"}
    rules = JOIN.replace(".weight", ".qweight") + ROWS.replace("weight_scale", "scales")
    with pytest.raises(FailedCheck, match="on a scaled weight, but not on its scales"):
        remapkit.loads(HEAD + rules)(state)


def test_the_example_of_three_scales_is_one_problem() -> None:
    state = {f"{n}.weight": f8(2, 2) for n in range(3)} | {f"{n}.weight_scale": torch.rand(2, 2) for n in range(3)}
    ids = itertools.count()
    rules = "".join(
        f"  - {{id: r{next(ids)}, path: '{{e:int}}.{leaf}', {what}, to: w.{leaf}}}\n"
        for leaf, what in (("weight", "concat: {dim: 0, by: e}"), ("weight_scale", "stack: {dim: 0, by: e}"))
    )
    with pytest.raises(FailedCheck) as caught:
        remapkit.loads(HEAD + rules)(state)
    assert [each.code for each in caught.value.diagnostics] == ["RK362"]
