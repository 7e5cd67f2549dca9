"""Random rules with operations: sources joined, changed and taken apart, and what each target must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from tests.ops.cases import LAYOUT_DTYPES, opaque, random_tensor

Draw = Callable[[Any], Any]


@dataclass(frozen=True)
class Flowing:
    """A rule file, a state dict that it reads, and the state dict that must come out."""

    text: str
    state: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """How many branches, indices and parts; None where the rule has no such thing."""

    branches: int
    stacked: int | None
    unstacked: bool
    parts: int


def _branch_op(draw: Draw) -> tuple[Any, Callable[[torch.Tensor], torch.Tensor]]:
    """An operation that keeps the shape of a tensor with an even first dimension."""
    return draw(
        st.sampled_from(
            (
                (None, lambda x: x),
                ("flip_halves", lambda x: torch.cat(x.chunk(2)[::-1])),
                ({"rope": {"to": "half", "heads": 1, "head_dim": "rows"}}, lambda x: torch.cat([x[::2], x[1::2]])),
            )
        )
    )


@st.composite
def flowing(draw: Draw) -> Flowing:
    """One rule over layers 0..n, with every combination of concat, stack, ops, unstack and split."""
    shape = Shape(
        draw(st.integers(1, 3)), draw(st.sampled_from((None, 1, 2, 3))), draw(st.booleans()), draw(st.integers(1, 3))
    )
    rows, columns = (2 * draw(st.integers(1, 2)) * shape.parts for _ in range(2))
    dtype = draw(st.sampled_from(LAYOUT_DTYPES))
    layers = draw(st.integers(1, 2))
    seeds = iter(range(draw(st.integers(0, 1 << 20)), 1 << 21))
    befores = [_branch_op(draw) for _ in range(shape.branches)]
    afters = [_branch_op(draw) for _ in range(shape.parts)]
    concat_dim, stack_dim = draw(st.integers(0, 1)), draw(st.integers(0, 2))
    rule: dict[str, Any] = {"id": "r"}
    e = "" if shape.stacked is None else ".{e:int}"
    sources = [f"in.{{i:int}}.b{branch}{e}" for branch in range(shape.branches)]
    state = {}
    expected = {}
    for layer in range(layers):
        made = []
        for index in range(shape.stacked or 1):
            row = []
            for branch in range(shape.branches):
                tensor = random_tensor(dtype, (rows, columns), next(seeds))
                name = f"in.{layer}.b{branch}" + ("" if shape.stacked is None else f".{index}")
                state[name] = tensor
                row.append(befores[branch][1](opaque(tensor)) if shape.branches > 1 else opaque(tensor))
            made.append(torch.cat(row, concat_dim) if shape.branches > 1 else row[0])
        whole = torch.stack(made, stack_dim) if shape.stacked is not None else made[0]
        last = whole.dim() - 1
        whole = whole.transpose(0, last)
        pieces = [(str(n), whole.select(0, n)) for n in range(whole.shape[0])] if shape.unstacked else [("", whole)]
        for number, piece in pieces:
            dim = _even_dim(piece, shape.parts)
            for part, cut in enumerate(piece.chunk(shape.parts, dim) if shape.parts > 1 else (piece,)):
                name = f"out.{layer}.p{part}" + (f".{number}" if shape.unstacked else "")
                done = afters[part][1](cut) if shape.parts > 1 and cut.shape[0] == rows else cut
                expected[name] = done.contiguous().view(getattr(torch, str(state[next(iter(state))].dtype)[6:]))
    written = [
        {"path": path, "ops": [op[0]]} if op[0] is not None else path
        for path, op in zip(sources, befores, strict=True)
    ]
    if shape.branches > 1:
        rule["concat"] = {"dim": concat_dim, "sizes": "equal", "from": written}
    else:
        rule["path"] = sources[0]
    if shape.stacked is not None:
        rule["stack"] = {"dim": stack_dim, "by": "e"}
    rank = 2 + (shape.stacked is not None)
    rule["ops"] = [{"transpose": [0, rank - 1]}]
    if shape.unstacked:
        rule["unstack"] = {"dim": 0, "by": "f"}
    f = ".{f}" if shape.unstacked else ""
    targets: list[Any] = [f"out.{{i}}.p{part}{f}" for part in range(shape.parts)]
    if shape.parts > 1:
        first = expected_piece(whole, shape.unstacked)
        dim = _even_dim(first, shape.parts)
        cut = first.chunk(shape.parts, dim)[0]
        rule["split"] = {
            "dim": dim,
            "into": [
                {"to": to, "ops": [op[0]]} if op[0] is not None and cut.shape[0] == rows else to
                for to, op in zip(targets, afters, strict=True)
            ],
        }
    else:
        rule["to"] = targets[0]
    text = f"remapkit: 1\nname: t\nparams: {{rows: {rows}}}\nrules:\n  - {json.dumps(rule)}\n"
    return Flowing(text, state, expected)


def expected_piece(whole: torch.Tensor, unstacked: bool) -> torch.Tensor:
    return whole.select(0, 0) if unstacked else whole


def _even_dim(piece: torch.Tensor, parts: int) -> int:
    """A dimension that splits into equal parts: one has the columns, a multiple of them."""
    return next(dim for dim in reversed(range(piece.dim())) if piece.shape[dim] % parts == 0)
