"""The lines of a rule with operations: what it joins, does and cuts, from the relation that it generalises."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.authoring.relation import OpText, Relation
from remapkit.rulefile.yaml.emit import emit_flow, emit_scalar, quote_text

_WIDEST = 118
_NAMED = ("heads", "kv_heads", "head_dim")
"""The sizes that models have a name for."""


@dataclass(frozen=True, slots=True)
class Names:
    """The written names of a rule: its source patterns, its targets, and the captures that count."""

    sources: Sequence[str]
    targets: Sequence[str]
    joined: str = ""
    made: str = ""
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)


def write_operations(
    id: str, names: Names, relation: Relation, params: Mapping[str, int], *, tied: bool
) -> list[str]:
    """Return the lines of a rule, not indented; `params` are written by name where an operation has their value.

    >>> relation = Relation(("q", "k"), ("qk",), "concat")
    >>> names = Names(["q.{n:int}", "k.{n:int}"], ["qk.{n}"])
    >>> print("\\n".join(write_operations("qk", names, relation, {}, tied=False)))
    - id: qk
      concat: {dim: 0, sizes: equal, from: ['q.{n:int}', 'k.{n:int}']}
      to: 'qk.{n}'
    """
    lines = [f"- id: {emit_scalar(id)}"]
    if relation.join == "concat":
        lines += _write_parts(
            "concat", _describe_sizes(relation, equal=True), ("from", "path"), names.sources, relation.before
        )
    else:
        lines.append(f"  path: {quote_text(names.sources[0])}")
    if names.where:
        lines.append(f"  where: {emit_flow({name: list(words) for name, words in names.where.items()})}")
    if names.joined:
        lines.append(f"  stack: {_describe_count(relation, names.joined, params, relation.join == 'stack')}")
    ops = [*(relation.before[0] if relation.join != "concat" and relation.before else ()), *relation.ops]
    single = len(names.targets) == 1 and relation.cut not in ("split", "copy")
    ops += relation.after[0] if single and relation.after else ()
    if ops:
        lines.append(f"  ops: {_emit_ops(ops, params)}")
    if names.made:
        lines.append(f"  unstack: {_describe_count(relation, names.made, params, relation.cut == 'unstack')}")
    if relation.cut == "split":
        lines += _write_parts(
            "split", _describe_sizes(relation, equal=False), ("into", "to"), names.targets, relation.after
        )
    elif relation.cut == "copy":
        word = "tie" if tied and not any(relation.after) else "copy"
        parts = [_write_part("to", name, ops) for name, ops in _pair_ops(names.targets, relation.after)]
        lines += _fit_list(f"  {word}: [", parts, "]", f"  {word}:", "    - ")
    else:
        lines.append(f"  to: {quote_text(names.targets[0])}")
    return lines


def find_params(relations: Iterable[tuple[Relation, str]]) -> dict[str, int]:
    """Return the numbers that have a name, if one value explains all of them; relations come with what they count.

    >>> find_params([(Relation(("a",), ("b",), ops=({"rope": {"to": "half", "heads": 4, "head_dim": 8}},)), "")])
    {'heads': 4, 'head_dim': 8}
    """
    found: defaultdict[str, set[int]] = defaultdict(set)
    for relation, counted in relations:
        for op in (*relation.ops, *(op for ops in (*relation.before, *relation.after) for op in ops)):
            for arguments in op.values() if isinstance(op, Mapping) else ():
                for name, value in arguments.items() if isinstance(arguments, Mapping) else ():
                    if name in _NAMED and isinstance(value, int):
                        found[name].add(value)
        if counted:
            found[f"{counted}s"].add(_find_count(relation))
    return {name: next(iter(values)) for name, values in found.items() if len(values) == 1}


def _find_count(relation: Relation) -> int:
    if relation.count:
        return relation.count
    return len(relation.sources) if relation.join == "stack" else len(relation.targets)


def _describe_count(relation: Relation, by: str, params: Mapping[str, int], is_whole: bool) -> str:
    dim, count = (relation.dim if is_whole else relation.count_dim), _find_count(relation)
    name = f"{by}s"
    return emit_flow({"dim": dim, "by": by, "count": name if params.get(name) == count else count})


def _describe_sizes(relation: Relation, *, equal: bool) -> dict[str, object]:
    sizes: object = list(relation.sizes) if relation.sizes else "equal"
    return {"dim": relation.dim, **({"sizes": sizes} if relation.sizes or equal else {})}


def _pair_ops(names: Sequence[str], ops: Sequence[Sequence[OpText]]) -> Iterator[tuple[str, Sequence[OpText]]]:
    return zip(names, ops or [()] * len(names), strict=False)


def _write_part(field: str, name: str, ops: Sequence[OpText]) -> str:
    return f"{{{field}: {quote_text(name)}, ops: {_emit_ops(ops, {})}}}" if ops else quote_text(name)


def _write_parts(
    word: str,
    sizes: Mapping[str, object],
    fields: tuple[str, str],
    names: Sequence[str],
    ops: Sequence[Sequence[OpText]],
) -> list[str]:
    listed, field = fields
    parts = [_write_part(field, name, each) for name, each in _pair_ops(names, ops)]
    flow = emit_flow(sizes)[1:-1]
    short = f"  {word}: {{{flow}, {listed}: [{', '.join(parts)}]}}"
    if len(short) <= _WIDEST:
        return [short]
    lines = [f"  {word}:", *(f"    {name}: {emit_flow(value)}" for name, value in sizes.items())]
    return [*lines, f"    {listed}:", *(f"      - {part}" for part in parts)]


def _fit_list(start: str, parts: Sequence[str], end: str, head: str, item: str) -> list[str]:
    short = f"{start}{', '.join(parts)}{end}"
    return [short] if len(short) <= _WIDEST else [head, *(f"{item}{part}" for part in parts)]


def _emit_ops(ops: Sequence[OpText], params: Mapping[str, int]) -> str:
    return emit_flow([_name_numbers(op, params) for op in ops])


def _name_numbers(op: OpText, params: Mapping[str, int]) -> object:
    if isinstance(op, str):
        return op
    return {
        word: {
            name: name if name in _NAMED and isinstance(value, int) and params.get(name) == value else value
            for name, value in arguments.items()
        }
        if isinstance(arguments, Mapping)
        else arguments
        for word, arguments in op.items()
    }
