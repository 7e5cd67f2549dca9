"""PEFT's matrices of layers that store their weight as [IN, OUT]: Conv1D, as in transformers' GPT-2.

up [OUT, r] and down [r, IN] are then those of the transposed weight, and `fan_in_fan_out` is in the config. A rule
that transposes the weight of a linear layer, or that of a Conv1D, makes the one of the other: PEFT's matrices stay as
they are. Other formats' matrices are those of the weight as it is stored. Source: peft/tuners/lora/layer.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from remapkit.adapters.factors import CannotFollow
from remapkit.adapters.names import Adapter, get_module
from remapkit.adapters.push import Pushed, Stored, fits
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import FailedCheck
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.ops.join import Join
from remapkit.ops.shape import Transpose
from remapkit.plans.moves import Move
from remapkit.tensors.spec import TensorSpec


def find_transposed(adapter: Adapter, base: Mapping[str, TensorSpec], *, is_flagged: bool) -> set[str]:
    """Return the weights of which a PEFT adapter has the matrices of the transposed ones.

    The shapes show it, except where they are square: these are like all others, or, where all are, as the config
    says (`is_flagged`). Raises `FailedCheck` (RK735) if they may be either.
    """
    found: dict[tuple[bool, bool], set[str]] = {}
    for module in adapter.modules if adapter.style.format == "peft" else ():
        spec = base[module.weight]
        if len(spec.shape) == 2 and {"up", "down"} <= module.tensors.keys():
            stored = Stored("lora", *(adapter.header[module.tensors[role]] for role in ("up", "down")))
            either = fits(stored, spec), fits(stored, flip_spec(spec))
            found.setdefault(either, set()).add(module.weight)
    flat, turned, square = (found.get(each, set()) for each in ((True, False), (False, True), (True, True)))
    if square and flat and (turned or is_flagged):
        what = count_noun(len(square), "weight")
        title = f"{what} may be stored as [OUT, IN] or as [IN, OUT], and square matrices do not show it"
        help = ("apply the rules to an adapter of the linear layers, and to one of the others",)
        notes = (list_names([get_module(fqn) for fqn in sorted(square)]),)
        raise FailedCheck(Diagnostic("RK735", title, notes=notes, help=help, place=adapter.header.name))
    return turned | square if turned or is_flagged else set()


def flip_spec(spec: TensorSpec) -> TensorSpec:
    """Return the header of a transposed matrix."""
    return TensorSpec(spec.dtype, spec.shape[::-1])


def flip_sources(move: Move, transposed: Collection[str]) -> Move:
    """Return a move that reads the transposed ones of some sources; raises `CannotFollow`."""
    flags = [fqn in transposed for fqn in move.sources]
    if not any(flags):
        return move
    if not move.ops or not isinstance(join := move.ops[0], Join):
        return replace(move, ops=(Transpose(), *move.ops))
    width = len(join.branches)
    if join.combine is not None or any(flag != flags[at % width] for at, flag in enumerate(flags)):
        raise CannotFollow("it joins weights of which some are stored as [IN, OUT]")
    branches = tuple(
        (Transpose(), *branch) if flag else branch for branch, flag in zip(join.branches, flags, strict=False)
    )
    return replace(move, ops=(replace(join, branches=branches), *move.ops[1:]))


def flip_target(move: Move) -> Move:
    """Return a move whose result is transposed."""
    return replace(move, ops=(*move.ops, Transpose()))


def is_flipped(made: Pushed) -> bool:
    """Return whether the rows of a weight come from columns: its first matrix is made of second ones."""
    return made.second is not None and all(part.place == 1 for part in made.first.parts)
