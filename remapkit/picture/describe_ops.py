"""Operations in a few characters: a glyph for the edge between two keys, and a text beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass

from remapkit.ops.base import Op
from remapkit.ops.join import Join

GLYPHS = {
    "join": "⊕",
    "split": "⑃",
    "unstack": "⊟",
    "transpose": "⤢",
    "permute": "⤨",
    "reshape": "▭",
    "squeeze": "▭",
    "unsqueeze": "▭",
    "slice": "✂",
    "pad": "⊞",
    "cast": "≈",
    "scale": "×",
    "add": "+",
    "flip": "⇋",
    "roll": "↻",
}
OTHER = "ƒ"
MAX_TEXT = 160


def describe_ops(ops: Sequence[Op]) -> tuple[str, str]:
    """Return the glyphs and the text of operations; two empty texts if there is none.

    >>> from remapkit.ops.join import SplitPart
    >>> describe_ops([SplitPart(0, 1, 3)])
    ('⑃', 'split dim 0, index 1, count 3')
    """
    glyphs = "".join(dict.fromkeys(_find_glyph(op) for op in ops))
    text = " → ".join(_describe(op) for op in ops)
    return glyphs, text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _find_glyph(op: Op) -> str:
    return GLYPHS.get(op.name, OTHER)


def _describe(op: Op) -> str:
    if isinstance(op, Join):
        return _describe_join(op)
    if not is_dataclass(op):
        return op.name
    named = [(each.name, getattr(op, each.name)) for each in fields(op)]
    parts = ", ".join(f"{name} {value}" for name, value in named if isinstance(value, int | float | str | tuple))
    return f"{op.name} {parts}".strip()


def _describe_join(op: Join) -> str:
    how = "merge" if op.merge else "combine" if op.combine is not None else ""
    parts = [how] if how else []
    parts += [f"concat dim {op.concat}"] if op.concat is not None else []
    parts += [f"stack dim {op.stack}"] if op.stack is not None else []
    inner = [f"[{' → '.join(map(_describe, branch))}]" for branch in op.branches if branch]
    return " ".join([" then ".join(parts) or "join", *inner])
