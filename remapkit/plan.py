"""A plan: for one concrete header, every move, and everything that stands in its way.

Pure: no file is opened and no data is read. Shapes and dtypes of the targets are inferred from the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from remapkit.source import Span
from remapkit.spec import TensorSpec


class Op(Protocol):
    """An operation on values, as a plan sees it; `ops.py` has them."""

    name: str


@dataclass(frozen=True, slots=True)
class RuleRef:
    """The rule that made a move: its id (`keep[0]` for the first `keep`) and its place in its file."""

    id: str
    span: Span | None


@dataclass(frozen=True, slots=True)
class Move:
    """One target tensor: where it comes from, what is done on the way, and what it will be."""

    target: str
    sources: tuple[str, ...]
    ops: tuple[Op, ...]
    rule: RuleRef
    spec: TensorSpec
