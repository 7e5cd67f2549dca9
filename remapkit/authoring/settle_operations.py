"""Operations on tensors that values alone leave open: the rules of other keys say them, and the bytes must agree.

Constants, and tensors of which A has several, fit many places. Where a rule that was found on other keys leads such
a tensor to a key of B with exactly these values, that is likely, but not certain: the relation says so in `by`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from remapkit.authoring.derive import DraftRule, write_draft
from remapkit.authoring.fold_relation import is_rename
from remapkit.authoring.generalize import Example, generalize
from remapkit.authoring.relation import Relation
from remapkit.authoring.settle import By
from remapkit.authoring.verify_relation import Verifier
from remapkit.diagnostics.errors import InvalidRules
from remapkit.plans.make import make_plan
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules
from remapkit.tensors.spec import StateDictSpec


def settle_operations(
    relations: Sequence[Relation], a: StateDictSpec, open_b: Collection[str], verifier: Verifier
) -> list[Relation]:
    """Return relations of keys of B that are open; `a` are the keys of A that no relation reads.

    Each key of A is read by one relation at most, and each relation was run. Cost: a pass over `a` for each rule.
    """
    left = dict(a)
    reached: set[str] = set()
    found: list[Relation] = []
    for example in generalize([each for each in relations if not is_rename(each)]):
        for relation in _propose(example, StateDictSpec(left, name=a.name)):
            is_free = all(fqn in open_b and fqn not in reached for fqn in relation.targets)
            if is_free and verifier.is_true(relation):
                found.append(relation)
                reached.update(relation.targets)
                for fqn in relation.sources:
                    left.pop(fqn, None)
    return found


def _propose(example: Example, left: StateDictSpec) -> Iterator[Relation]:
    """Yield what a rule with any index does to keys that it was not learned from."""
    draft = write_draft([DraftRule(example)], ["remapkit: 1", "name: settled", ""])
    try:
        rules = compile_rules(read_text(draft.text))
    except InvalidRules:
        return
    taken = StateDictSpec({fqn: spec for fqn, spec in left.items() if rules.match(fqn)}, name=left.name)
    if not taken:
        return
    moves: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for move in make_plan(rules, taken).moves:
        moves[tuple(move.sources)].append(move.target)
    for sources, targets in moves.items():
        yield replace(example.relations[0], sources=sources, targets=tuple(targets), by=By.RULE.value, rounded="")
