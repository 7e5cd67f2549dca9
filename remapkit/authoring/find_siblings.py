"""Proposes for biases what was found for the weights of their modules: constants have no values to go by."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from remapkit.authoring.relation import OpText, Relation
from remapkit.tensors.spec import StateDictSpec

BY_WEIGHT = "the weights of the same modules go this way"
_KEEPS_LENGTH = ("rope", "flip", "flip_halves", "roll", "index", "group_qkv", "ungroup_qkv", "slice")


def propose_siblings(
    relations: Sequence[Relation], a: StateDictSpec, b: StateDictSpec, open_b: Collection[str]
) -> Iterator[Relation]:
    """Yield for each relation of weights the same of the biases, if all of them exist and are vectors."""
    for relation in list(relations):
        sources = tuple(map(_name_bias, relation.sources))
        targets = tuple(map(_name_bias, relation.targets))
        if sources == relation.sources or not all(fqn in a for fqn in sources):
            continue
        if not all(fqn in open_b for fqn in targets):
            continue
        dims = (relation.dim,) if relation.join or relation.cut in ("split", "unstack") else (0, 1)
        yield from _propose_vectors(relation, sources, targets, dims, a, b)


def _propose_vectors(
    relation: Relation,
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    dims: tuple[int, ...],
    a: StateDictSpec,
    b: StateDictSpec,
) -> Iterator[Relation]:
    stacks = relation.join == "stack" or relation.cut == "unstack"
    for dim in dims:
        if not stacks and not relation.count:
            weights = [a[fqn].shape for fqn in relation.sources]
            lengths = [shape[dim] if dim < len(shape) else -1 for shape in weights]
            if relation.join and [a[fqn].shape for fqn in sources] != [(length,) for length in lengths]:
                continue
            if not relation.join and a[sources[0]].shape not in {(length,) for length in weights[0]}:
                continue
        before = tuple(_adapt_ops(ops, dim) for ops in relation.before)
        after = tuple(_adapt_ops(ops, dim) for ops in relation.after)
        cast: tuple[OpText, ...] = ()
        if a[sources[0]].dtype != b[targets[0]].dtype:
            cast = ({"cast": b[targets[0]].dtype},)
        yield replace(
            relation,
            sources=sources,
            targets=targets,
            dim=0,
            before=before if any(before) else (),
            ops=(*_adapt_ops(relation.ops, dim), *cast),
            after=after if any(after) else (),
            by=BY_WEIGHT,
        )
        return


def _adapt_ops(ops: Sequence[OpText], dim: int) -> tuple[OpText, ...]:
    """Return what the operations on a weight are on its bias, a vector along the weight's dimension `dim`."""
    found: list[OpText] = []
    for op in ops:
        if isinstance(op, str):
            continue
        ((name, value),) = op.items()
        if name in _KEEPS_LENGTH and isinstance(value, dict) and value.get("dim", 0) == dim:
            found.append({name: {**value, "dim": 0}})
        elif (
            name == "rearrange"
            and isinstance(value, dict)
            and value["pattern"].startswith(("(", "... (")[dim : dim + 1])
        ):
            found.append(op)
    return tuple(found)


def _name_bias(fqn: str) -> str:
    module, dot, leaf = fqn.rpartition(".")
    return f"{module}{dot}{leaf.replace('weight', 'bias')}"
