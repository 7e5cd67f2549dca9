"""Stacks and unstacks whose keys no index counts, as a concat or a split of parts with operations of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from remapkit.authoring.fold_relation import fold_relation
from remapkit.authoring.relation import OpText, Relation
from remapkit.authoring.split_keys import CUTS
from remapkit.tensors.spec import StateDictSpec

Parts = tuple[tuple[OpText, ...], ...]


def is_countable(relation: Relation) -> bool:
    """Return whether an index counts what a relation stacks or unstacks, however names are cut.

    >>> [is_countable(Relation(names, ("x",), "stack")) for names in (("e.0", "e.1"), ("e.0", "e.10"), ("q", "k"))]
    [True, False, False]
    """
    return any(fold_relation(relation, cut, cut) is not None for cut in CUTS)


def spell_parts(relation: Relation, source: StateDictSpec, target: StateDictSpec) -> Relation:
    """Return a relation that makes the same and lists its parts; itself if it stacks and unstacks nothing.

    >>> none = StateDictSpec({})
    >>> found = spell_parts(Relation(("q", "k"), ("qk",), "stack", dim=1), none, none)
    >>> found.join, found.dim, found.before
    ('concat', 1, (({'unsqueeze': 1},), ({'unsqueeze': 1},)))
    """
    if relation.join == "stack":
        before = _add_to_each((), {"unsqueeze": relation.dim}, len(relation.sources))
        relation = replace(relation, join="concat", before=before, sizes=())
    elif relation.join and relation.count and not any(relation.before):
        rank = len(source[relation.sources[0]].shape)
        apart, together = _write_axes(rank, relation)
        regroup: OpText = {"rearrange": {"pattern": f"{together} -> {apart}", "g": relation.count}}
        sizes = relation.sizes * relation.count
        relation = replace(relation, count=0, count_dim=0, sizes=sizes, ops=(regroup, *relation.ops))
    if relation.cut == "unstack":
        after = _add_to_each(relation.after, {"squeeze": relation.dim}, len(relation.targets))
        relation = replace(relation, cut="split", after=after, sizes=())
    elif relation.cut == "split" and relation.count and not any(relation.after):
        apart, together = _write_axes(len(target[relation.targets[0]].shape), relation)
        merge: OpText = {"rearrange": {"pattern": f"{apart} -> {together}"}}
        sizes = relation.sizes * relation.count
        relation = replace(relation, count=0, count_dim=0, sizes=sizes, ops=(*relation.ops, merge))
    return relation


def _add_to_each(own: Parts, op: OpText, count: int) -> Parts:
    return tuple((op, *ops) for ops in own or ((),) * count)


def _write_axes(rank: int, relation: Relation) -> tuple[str, str]:
    """Return the axes of the whole with the groups (`g`) as one of their own, and with them before those of `dim`."""
    names: Sequence[str] = [f"d{n}" for n in range(rank)]
    apart = [*names[: relation.count_dim], "g", *names[relation.count_dim :]]
    together = [f"(g {name})" if place == relation.dim else name for place, name in enumerate(names)]
    return " ".join(apart), " ".join(together)
