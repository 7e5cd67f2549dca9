"""`--dtype`: cast all floats of a plan."""

from __future__ import annotations

from dataclasses import replace

from remapkit.companions.names import find_scaled_weights
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import count_noun, list_names
from remapkit.ops.dtype import CastOp
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.plans.rounding import report_roundings

PLAIN = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp64": "F64"}
"""The values of `--dtype` and the header names of these dtypes."""


def cast_plan(plan: ResolvedPlan, dtype: str) -> ResolvedPlan:
    """Return the plan with every plain float cast to one dtype; integers and bools are unchanged.

    Raises `UsageError` (RK642) for an unsupported dtype. 8-bit floats become a problem of the plan (RK346), because a
    cast would lose their scales.

    >>> from remapkit.plans.moves import Move, RuleRef
    >>> from remapkit.tensors.spec import StateDictSpec, TensorSpec
    >>> move = Move("a", ("a",), (), RuleRef("keep[0]"), TensorSpec("F32", (2,)))
    >>> cast = cast_plan(ResolvedPlan("t", StateDictSpec({"a": move.spec}), (move,)), "bf16")
    >>> str(cast.moves[0].spec), cast.warnings[0].title
    ('BF16 [2]', '1 tensor is cast from F32 to BF16, which rounds its values')
    """
    new = PLAIN.get(dtype.lower(), dtype.upper())
    if new not in PLAIN.values():
        help = f"choose one of {', '.join(PLAIN)}; casts to integers or 8-bit floats need a rule"
        raise UsageError(Diagnostic("RK642", f"--dtype {dtype} is not supported", help=(help,)))
    moves = tuple(_cast_move(move, new) for move in plan.moves)
    problems = [*plan.problems, *_report_small_floats(plan)]
    others = [warning for warning in plan.warnings if warning.code != "RK345"]
    notes = report_roundings(moves, plan.source)
    recorded = {fqn: _cast_move(move, new) for fqn, move in plan.recorded.items()}
    return replace(plan, moves=moves, problems=tuple(problems), warnings=(*others, *notes), recorded=recorded)


def _report_small_floats(plan: ResolvedPlan) -> list[Diagnostic]:
    """Report 8-bit floats and scaled weights: a cast would change only the values or only the scales."""
    scaled = find_scaled_weights(plan.source)
    small = [
        move.target
        for move in plan.moves
        if move.spec.dtype.startswith("F8") or any(fqn in scaled for fqn in move.sources)
    ]
    if not small:
        return []
    title = f"{count_noun(len(small), 'tensor')} of 8-bit floats would be cast without their scales"
    help = "leave --dtype out: scaled weights and their scales are kept or converted together"
    if not scaled:
        help = "leave --dtype out; as the file has no scales for them, a rule can cast them: ops: [{cast: BF16}]"
    elif not any(move.spec.dtype.startswith("F8") for move in plan.moves):
        title = f"{count_noun(len(small), 'scaled weight')} would be kept, but the scales would be cast"
    return [Diagnostic("RK346", title, (), (help,), (list_names(small),), values={"names": small})]


def _cast_move(move: Move, new: str) -> Move:
    if move.spec.dtype not in PLAIN.values() or move.spec.dtype == new:
        return move
    return replace(move, ops=(*move.ops, CastOp(new)), spec=replace(move.spec, dtype=new))
