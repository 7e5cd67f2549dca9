"""Compose two plans into one: the second reads what the first writes, and the tensors between are never made.

A move of the second takes the operations of the moves that make its sources in front of its own. Invariant: a
composed move computes the bytes that the two plans would one after the other, from the first plan's sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from remapkit.diagnostics.wording import join_words
from remapkit.ops.join import Join, Nested
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Dropped, Move, RuleRef
from remapkit.plans.stale_metadata import CODES, report_metadata

OF_THE_WHOLE = ("RK420", *CODES)
"""Notes on the names and the metadata of the source, which the first plan, or the whole, has to say."""


def compose_plans(first: ResolvedPlan, second: ResolvedPlan) -> ResolvedPlan:
    """Return the plan that does what `first` and then `second` do; `second` is the plan for the target of `first`.

    Its problems are those of both, the rules and warnings too. A source key counts as dropped if nothing of it is
    left at the end.

    >>> from remapkit.tensors.spec import StateDictSpec, TensorSpec
    >>> spec = TensorSpec("F32", (4,))
    >>> one = ResolvedPlan("one", StateDictSpec({"a": spec}), (Move("b", ("a",), (), RuleRef("r"), spec),))
    >>> two = ResolvedPlan("two", one.target, (Move("c", ("b",), (), RuleRef("s"), spec),))
    >>> both = compose_plans(one, two)
    >>> [(move.sources, move.target, move.rule.id) for move in both.moves], both.name
    ([(('a',), 'c', 'r > s')], 'one then two')
    """
    made = {move.target: move for move in first.moves}
    moves = tuple(_compose_move(move, made) for move in second.moves)
    recorded = {
        fqn: _compose_move(second.recorded[move.target], made)
        for fqn, move in first.recorded.items()
        if move.target in second.recorded
    }
    own = [each for each in first.warnings if each.code not in CODES]
    later = [each for each in second.warnings if each.code not in OF_THE_WHOLE]
    return ResolvedPlan(
        name=f"{first.name} then {second.name}",
        source=first.source,
        moves=moves,
        dropped=(*first.dropped, *_list_dropped(second, made, moves)),
        problems=(*first.problems, *second.problems),
        warnings=(*own, *later, *report_metadata(first.source, moves)),
        tied=second.tied,
        recorded=recorded,
        root=first.root,
    )


def _list_dropped(second: ResolvedPlan, made: Mapping[str, Move], moves: tuple[Move, ...]) -> list[Dropped]:
    """Return the source keys of which the second plan drops everything that is left."""
    used = {fqn for move in moves for fqn in move.sources}
    gone = {fqn: each.rule for each in second.dropped if each.fqn in made for fqn in made[each.fqn].sources}
    return [Dropped(fqn, rule) for fqn, rule in gone.items() if fqn not in used]


def _compose_move(move: Move, made: Mapping[str, Move]) -> Move:
    """Return a move of the second plan with the sources of the first."""
    if not move.sources:
        return move
    inputs = [made[fqn] for fqn in move.sources]
    sources = tuple(fqn for each in inputs for fqn in each.sources)
    rule = RuleRef(f"{join_words((each.rule.id for each in inputs), 3)} > {move.rule.id}", move.rule.span)
    first = move.ops[0] if move.ops else None
    if not any(each.ops for each in inputs):
        ops = move.ops
    elif isinstance(first, Join):
        nested = Nested(first, tuple(each.ops for each in inputs), tuple(len(each.sources) for each in inputs))
        ops = (nested, *move.ops[1:])
    else:
        ops = (*inputs[0].ops, *move.ops)
    return replace(move, sources=sources, ops=ops, rule=rule)
