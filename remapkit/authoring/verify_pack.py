"""Runs a written pack with the engine that applies rules, and compares everything that it makes with B."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from remapkit.authoring.pair_by_value import PairableTensors
from remapkit.authoring.verify_relation import has_equal_bytes
from remapkit.compute.move_bytes import read_target_chunks
from remapkit.formats.reader import Reader
from remapkit.plans.make import make_plan
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules


def find_wrong_targets(text: str, a: Reader, b: PairableTensors, claimed: Collection[str]) -> Iterator[str]:
    """Apply the rules to A, and yield the targets that are not B's to the byte.

    Keys that no rule takes are dropped, as the user drops them once they are reviewed: they stay in the header,
    because `require:` counts what a checkpoint has. Also yielded are targets that the rules make without claiming
    it, or claim and do not make. Each target is yielded once, and computed at most once, in bounded memory.
    """
    rules = compile_rules(replace(read_text(text), unmatched="drop"))
    plan, wanted = make_plan(rules, a.header()), b.header()
    made = {move.target for move in plan.moves} if not plan.problems else set()
    misclaimed = dict.fromkeys(fqn for fqn in wanted if (fqn in made) != (fqn in claimed))
    yield from misclaimed
    for move in plan.moves if not plan.problems else ():
        if move.target in misclaimed:
            continue
        there = wanted.get(move.target) == move.spec
        if not there or not has_equal_bytes(read_target_chunks(move, a), b.chunks(move.target)):
            yield move.target
