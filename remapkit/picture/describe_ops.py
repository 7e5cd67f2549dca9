"""Operations as a page shows them: a drawing for each, with the numbers that it needs, and a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from remapkit.ops.base import Op
from remapkit.ops.calls import SizedOp, to_plain_arg
from remapkit.ops.join import FillOp, Join, Nested, SplitPart, TakeIndex

DRAWN = (
    *("concat", "split", "stack", "unstack", "merge", "combine", "transpose", "permute", "reshape", "rearrange"),
    *("squeeze", "unsqueeze", "slice", "pad", "cast", "scale", "add", "fill", "zeros", "flip", "flip_halves"),
    *("roll", "index", "rope", "group_qkv", "ungroup_qkv"),
)
"""The operations that have a drawing in `drawings.js`; every other one has that of `other`."""
MAX_TEXT = 160

Drawing = tuple[str, int, int, int]
"""The name of a drawing, the dimension, and which part of how many: `("split", 0, 1, 3)`; 0 where it needs none."""


def describe_ops(ops: Sequence[Op], sources: int = 1) -> tuple[tuple[Drawing, ...], str]:
    """Return the drawings and the text of the operations on a number of sources; both empty if there is none.

    >>> describe_ops([SplitPart(0, 1, 3)])
    ((('split', 0, 1, 3),), 'split along dim 0: part 2 of 3')
    >>> describe_ops([Join(((), ()), 0, None)], sources=2)
    ((('concat', 0, 0, 2),), 'concat along dim 0')
    """
    drawings = tuple(dict.fromkeys(drawing for op in ops for drawing in _draw(op, sources)))
    text = " → ".join(_describe(op) for op in ops)
    return drawings, text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _draw(op: Op, sources: int) -> list[Drawing]:
    if isinstance(op, Nested):
        inner = [drawing for each in op.inputs for drawing in describe_ops(each)[0]]
        return [*inner, *_draw_join(op.join, len(op.inputs))]
    if isinstance(op, Join):
        return _draw_join(op, sources)
    if isinstance(op, SplitPart):
        return [("split", op.dim, op.index, op.count)]
    if isinstance(op, TakeIndex):
        return [("unstack", op.dim, 0, 0)]  # which one is in the text: one drawing for all experts
    name = "fill" if isinstance(op, FillOp) else op.name
    return [(name if name in DRAWN else "other", _find_dim(op), 0, 0)]


def _draw_join(join: Join, sources: int) -> list[Drawing]:
    found = [drawing for branch in join.branches for drawing in describe_ops(branch)[0]]
    if join.merge or join.combine is not None:
        found.append(("merge" if join.merge else "combine", 0, 0, 0))
    width = len(join.branches) if join.stack is not None else sources
    found += [("concat", join.concat, 0, width)] if join.concat is not None else []
    found += [("stack", join.stack, 0, sources // max(width, 1))] if join.stack is not None else []
    return found


def _find_dim(op: Op) -> int:
    dim: Any = getattr(op, "dim", 0)
    return dim if isinstance(dim, int) else 0


def _describe(op: Op) -> str:
    if isinstance(op, Nested):
        inner = [f"[{' → '.join(map(_describe, each))}]" for each in op.inputs if each]
        return " ".join([*inner, "→", _describe(op.join)] if inner else [_describe(op.join)])
    if isinstance(op, Join):
        return _describe_join(op)
    if isinstance(op, SplitPart):
        sizes = f" (of sizes {', '.join(map(str, op.sizes))})" if op.sizes is not None else ""
        return f"split along dim {op.dim}: part {op.index + 1} of {op.count}{sizes}"
    if isinstance(op, TakeIndex):
        return f"unstack dim {op.dim}: number {op.index}"
    if isinstance(op, FillOp):
        return f"fill with {op.value}"
    if isinstance(op, SizedOp):
        return f"{op.name} {', '.join(f'{name} {to_plain_arg(arg)}' for name, arg in op.call.args)}"
    if not is_dataclass(op):
        return op.name
    named = [(each.name, getattr(op, each.name)) for each in fields(op)]
    parts = ", ".join(
        f"{name} {_write(value)}" for name, value in named if isinstance(value, int | float | str | tuple)
    )
    return f"{op.name} {parts}".strip()


def _write(value: object) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _describe_join(op: Join) -> str:
    parts = ["merge equal tensors"] if op.merge else [op.combine.kind] if op.combine is not None else []
    parts += [f"concat along dim {op.concat}"] if op.concat is not None else []
    parts += [f"stack along dim {op.stack}"] if op.stack is not None else []
    inner = dict.fromkeys(f"[{' → '.join(map(_describe, branch))}]" for branch in op.branches if branch)
    return " ".join([*inner, *(["→"] if inner and parts else []), ", then ".join(parts)]).strip() or "join"
