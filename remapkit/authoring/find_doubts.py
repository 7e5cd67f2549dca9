"""Runs a converter on values and dtypes that no random checkpoint has, and says for which it does something else.

Normal random numbers are never all negative, equal, huge or infinite: a converter that clamps, drops tensors of
zeros or decides by a mean would look like one that renames. What it does then is not what the rules do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remapkit.authoring.call_converter import Runner
from remapkit.authoring.pair_by_value import Pairing
from remapkit.authoring.random_tensors import RandomTensors, StateTensors
from remapkit.authoring.relation import Relation
from remapkit.authoring.verify_relation import Verifier
from remapkit.diagnostics.errors import UsageError
from remapkit.tensors.spec import StateDictSpec, TensorSpec

KINDS = {
    "wide": "very large and very small values",
    "special": "infinities and NaN",
    "negative": "negative values",
    "positive": "positive values",
    "zero": "zeros",
}
"""The kinds of values that are tried, and what they are called."""
SMALL = 256 << 20
"""Of larger sources only the first kind is tried."""
_OTHER_DTYPES = {"F32": "F16", "F64": "F32", "F16": "F32", "BF16": "F32"}


@dataclass(frozen=True, slots=True)
class Doubt:
    """A kind of values or dtypes for which the converter makes other keys, or other tensors, than the rules do."""

    given: str
    targets: tuple[str, ...]


def find_doubts(
    runner: Runner, header: StateDictSpec, pairing: Pairing, relations: Sequence[Relation], targets: Sequence[str]
) -> Iterator[Doubt]:
    """Yield the values and dtypes for which pairs, relations or the keys of the result do not hold.

    `targets` are the keys that the converter has always made. Where it raises, it says so itself, and there is no
    doubt. The last runs are on the first values: what depends on chance that no seed controls may show then.
    """
    first = RandomTensors(header)
    for kind, name in KINDS.items():
        if kind == "wide" or header.nbytes <= SMALL:
            values = RandomTensors(header, 2, kind=kind)
            yield from _compare(runner, values, name, pairing, relations, targets)
    if header.nbytes <= SMALL:
        other = {
            fqn: TensorSpec(_OTHER_DTYPES.get(each.dtype, each.dtype), each.shape) for fqn, each in header.items()
        }
        if other != dict(header):
            names = sorted({each.dtype for fqn, each in other.items() if each != header[fqn]})
            values = RandomTensors(StateDictSpec(other, name=header.name))
            yield from _compare(runner, values, f"tensors of {' and '.join(names)}", pairing, (), targets)
        for _ in range(4):
            found = [*_compare(runner, first, "the same values in another run", pairing, relations, targets)]
            if found:
                yield found[0]
                break


def _compare(
    runner: Runner,
    source: RandomTensors,
    given: str,
    pairing: Pairing,
    relations: Sequence[Relation],
    targets: Sequence[str],
) -> Iterator[Doubt]:
    try:
        result = runner.run(source).tensors
    except UsageError as error:
        if error.diagnostics[0].code != "RK669":  # it returns nothing
            yield Doubt(given, tuple(targets))
        return
    made = result.header()
    differ = [fqn for fqn in (*targets, *made) if (fqn in made) != (fqn in targets)] if [*made] != [*targets] else []
    if not differ:
        differ = list(_list_broken(source, result, pairing, relations))
    if differ:
        yield Doubt(given, tuple(dict.fromkeys(differ)))


def _list_broken(
    source: RandomTensors, result: StateTensors, pairing: Pairing, relations: Sequence[Relation]
) -> Iterator[str]:
    one, other = source.digests(), result.digests()
    yield from (target for fqn, target in pairing.pairs.items() if one[fqn] != other[target])
    for fqn, targets in pairing.copies.items():
        yield from (target for target in targets if one[fqn] != other[target])
    # NaN has many bit patterns, and no operation promises which one it makes.
    verifier = Verifier(source, result)
    for each in relations if source.kind != "special" else ():
        if not verifier.is_true(each):
            yield from each.targets
