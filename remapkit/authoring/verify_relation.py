"""Runs a relation with the engine that applies rules, and compares each byte with B."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from remapkit.authoring.pair_by_value import PairableTensors
from remapkit.authoring.relation import OpText, Relation
from remapkit.compute.move_bytes import read_target_chunks
from remapkit.diagnostics.errors import InvalidRules
from remapkit.files.source_file import CHUNK, Extent, split_evenly
from remapkit.formats.reader import FileReader
from remapkit.plans.make import make_plan
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.tensors.spec import StateDictSpec


def signature(relation: Relation) -> tuple[object, ...]:
    """Return all but the names: relations with equal signatures may become one rule."""
    numbers = {fqn: place for place, fqn in reversed(list(enumerate(relation.sources)))}
    return (
        tuple(numbers[fqn] for fqn in relation.sources),
        len(relation.targets),
        json.dumps(
            [
                *(relation.join, relation.cut, relation.dim, relation.sizes, relation.before),
                *(relation.ops, relation.after, relation.count, relation.count_dim),
            ]
        ),
    )


class Verifier:
    """Runs relations; the rule of each signature is compiled once."""

    def __init__(self, a: PairableTensors, b: PairableTensors) -> None:
        self._a, self._b = a, b
        self._compiled: dict[tuple[object, ...], CompiledRules | None] = {}

    def is_true(self, relation: Relation) -> bool:
        """Return whether the engine makes of the sources exactly the bytes of all targets, with dtype and shape."""
        sign = signature(relation)
        if sign not in self._compiled:
            self._compiled[sign] = _compile_rule(relation)
        rules = self._compiled[sign]
        if rules is None:
            return False
        sources, targets = _name_keys(relation)
        reader = _Renamed(self._a, dict(zip(sources, relation.sources, strict=True)))
        plan = make_plan(rules, reader.header())
        wanted = dict(zip(targets, relation.targets, strict=True))
        there = self._b.header()
        if plan.problems or {move.target: move.spec for move in plan.moves} != {
            name: there[fqn] for name, fqn in wanted.items()
        }:
            return False
        return all(
            has_equal_bytes(read_target_chunks(move, reader), self._b.chunks(wanted[move.target]))
            for move in plan.moves
        )


class _Renamed(FileReader):
    """Some tensors of A under the names of the rule that is run."""

    format = "renamed"

    def __init__(self, a: PairableTensors, names: Mapping[str, str]) -> None:
        self._a, self._names = a, names
        header = a.header()
        self._header = StateDictSpec({name: header[fqn] for name, fqn in names.items()})
        self.root, self.notes, self.sources, self.shards = "", (), (), {}

    def header(self) -> StateDictSpec:
        """Return dtypes and shapes by the new names."""
        return self._header

    def extent(self, fqn: str) -> Extent | None:
        """Return where the bytes are, if A is a file."""
        find = getattr(self._a, "extent", None)
        found: Extent | None = None if find is None else find(self._names[fqn])
        return found

    def chunks(self, fqn: str, size: int = CHUNK) -> Iterator[memoryview]:
        """Yield the bytes of a tensor."""
        return self._a.chunks(self._names[fqn])


def has_equal_bytes(made: Iterator[memoryview], wanted: Iterator[memoryview]) -> bool:
    one, other = split_evenly(made, 1 << 20), split_evenly(wanted, 1 << 20)
    while True:
        piece, like = next(one, None), next(other, None)
        if piece is None or like is None:
            return piece is like
        if piece != like:
            return False


def _name_keys(relation: Relation) -> tuple[list[str], list[str]]:
    """Return the names of sources and targets in the rule that is run: a source that is read twice has one name."""
    first = {fqn: place for place, fqn in reversed(list(enumerate(relation.sources)))}
    stacked = len(first) if relation.join == "stack" else relation.count if relation.join else 0
    unstacked = len(relation.targets) if relation.cut == "unstack" else relation.count if relation.cut else 0
    sources = _number_names("s", len(relation.sources), stacked) or [f"s{first[fqn]}" for fqn in relation.sources]
    targets = _number_names("t", len(relation.targets), unstacked) or [f"t{n}" for n in range(len(relation.targets))]
    return sources, targets


def _number_names(letter: str, number: int, count: int) -> list[str]:
    """Return names of `count` groups with the index of the group, [] if nothing is counted."""
    width = number // count if count else 0
    return [f"{letter}{place % width}.{place // width}" for place in range(number)] if width else []


def _compile_rule(relation: Relation) -> CompiledRules | None:
    rule = {"id": "r", **_write_sources(relation)}
    if relation.ops:
        rule["ops"] = list(relation.ops)
    rule.update(_write_targets(relation))
    text = f"remapkit: 1\nname: relation\nrules:\n  - {json.dumps(rule)}\n"
    try:
        return compile_rules(read_text(text))
    except InvalidRules:
        return None


def _write_sources(relation: Relation) -> dict[str, object]:
    sources, _ = _name_keys(relation)
    if relation.join == "stack":
        return {"path": "s0.{e:int}", "stack": {"dim": relation.dim, "by": "e", "count": len(sources)}}
    if relation.join == "concat":
        concat, counted = _write_parts(relation, ("from", "path"), sources, relation.before, "{e:int}")
        return {"concat": concat, **({"stack": counted} if counted else {})}
    return {"path": "s0"}


def _write_targets(relation: Relation) -> dict[str, object]:
    _, targets = _name_keys(relation)
    if relation.cut == "unstack":
        return {"unstack": {"dim": relation.dim, "by": "e", "count": len(targets)}, "to": "t0.{e}"}
    if relation.cut == "copy":
        after = relation.after or ((),) * len(targets)
        return {"copy": [_add_ops("to", name, ops) for name, ops in zip(targets, after, strict=True)]}
    if relation.cut == "split":
        split, counted = _write_parts(relation, ("into", "to"), targets, relation.after, "{e}")
        return {"split": split, **({"unstack": counted} if counted else {})}
    return {"to": "t0"}


def _write_parts(
    relation: Relation, fields: tuple[str, str], names: Sequence[str], ops: Sequence[Sequence[OpText]], index: str
) -> tuple[dict[str, object], dict[str, object]]:
    """Return a concat or a split, and what counts its groups."""
    width = len(names) // (relation.count or 1)
    suffix = f".{index}" if relation.count else ""
    each = ops or ((),) * len(names)
    parts = [
        _add_ops(fields[1], name.partition(".")[0] + suffix, own)
        for name, own in zip(names[:width], each, strict=False)
    ]
    sizes = {"sizes": list(relation.sizes)} if relation.sizes else {}
    counted = {"dim": relation.count_dim, "by": "e", "count": relation.count} if relation.count else {}
    return {"dim": relation.dim, fields[0]: parts, **sizes}, counted


def _add_ops(field: str, name: str, ops: Sequence[OpText]) -> object:
    return {field: name, "ops": list(ops)} if ops else name
