"""Runs a converter on unique random values: where each tensor of its result comes from, and what it does wrong.

Every tensor of A gets values of its own, so equal bytes in B show where they come from. Two sets of values are tried:
what holds for both is no chance, and what is equal in both is constant. Further runs, on other values of some keys
and on other orders of the keys, show what no run ever uses, and which keys the converter leads to one target.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from remapkit.authoring.call_converter import Runner
from remapkit.authoring.find_doubts import Doubt, find_doubts
from remapkit.authoring.find_relations import find_relations
from remapkit.authoring.pair_by_value import Pairing
from remapkit.authoring.random_tensors import RandomTensors, StateTensors
from remapkit.authoring.relation import Relation
from remapkit.authoring.verify_relation import Verifier
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import format_bytes, join_words, show_key
from remapkit.models.converter import Converter
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.from_torch import TORCH_DTYPES
from remapkit.tensors.spec import StateDictSpec, TensorSpec

MAX_BYTES = 8 << 30
"""The largest source to run a converter on: it is in memory once, and its result once more."""
MAX_ORDERS = 8
"""The runs in other orders of the keys that look for keys with one target; and the keys tried singly then."""
MAX_SEARCH = 96
"""The number of runs that look for keys which the converter does not use."""
LEAST_SEARCH = 4
"""The number of these runs that are always made, whatever they cost."""
_MAX_READ = 64 << 30
"""The bytes that they may convert in all."""
_SMALL_SOURCE = 64 << 20
"""The most bytes of a source on which further values are tried, where single bits leave something open."""
_CERTAIN_BITS = 20
"""Values of at least this many random bits, over all runs, are equal by no chance."""
_RANDOM_BITS = {"BOOL": 1, "F16": 10, "BF16": 8, "F8_E8M0": 1}
"""The random bits of an element, where they are not half of its bits."""

Digests = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a converter does to a source, as far as runs show.

    `pairing` and `relations` hold for two sets of values. `source` and `result` are one of these runs, to try rules
    on. `collisions` maps a target to the keys that the converter leads to it, the one that stays last; `vanished`
    are other keys that change nothing in the result; `unclear` are keys of which the budget of runs does not say
    whether they do. `kept` are keys that keep name and values; `constant` are targets with the same values in each
    of `runs` runs on other values of A; `unstable` are targets that differ from run to run on the same values.
    `beside` names values that are no tensors. `doubts` are values and dtypes for which the converter does something
    else, and `reads` the lines of its code that look at values.
    """

    pairing: Pairing
    target: StateDictSpec
    source: RandomTensors
    result: StateTensors
    relations: tuple[Relation, ...] = ()
    collisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vanished: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    runs: int = 0
    unstable: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    reads: tuple[str, ...] = ()


def run_converter(
    converter: Converter, header: StateDictSpec, progress: Callable[[int, int], None] | None = None
) -> Conversion:
    """Run a converter until its effect on each key is known, or the budget of runs is spent.

    At most one source and two results are in memory at a time, besides what is being read.

    Raises `UsageError`: RK608 for a dtype that torch lacks, RK669 if the converter raises, RK671 if it returns no
    state dict or other keys from run to run, RK673 if the source is too large.
    """
    _check_source(converter, header)
    runner = Runner(converter, progress)
    first, other = RandomTensors(header), RandomTensors(header, 1)
    digests = runner.run(first).tensors.digests()
    returned = runner.run(other)
    target, again = returned.tensors.header(), returned.tensors.digests()
    _check_keys(converter, digests, again, "other values")
    seen: list[tuple[Digests, Digests]] = [(first.digests(), digests), (other.digests(), again)]
    pairing = _pair_by_runs(header, target, seen)
    trial = _shrink_trial(runner, header, pairing, digests)
    if pairing.alike or _find_constant(pairing.only_b, seen):
        seen += _run_more(runner, first if trial is None else trial.source, header, target)
        pairing = _pair_by_runs(header, target, seen)
    constant = _find_constant(pairing.only_b, seen)
    open_b = [fqn for fqn in pairing.only_b if fqn not in constant]
    relations: tuple[Relation, ...] = ()
    if open_b:
        relations = find_relations(
            other, returned.tensors, pairing.only_a, open_b, pairing.pairs, copies=pairing.copies
        ).relations
    del returned  # before the next result
    returned = runner.run(first)
    result = returned.tensors
    _check_keys(converter, digests, again := result.digests(), "the same values")
    unstable = {fqn for fqn, digest in digests.items() if again[fqn] != digest}
    if unstable:
        pairing = _pair_by_runs(header, target, seen, unstable)
    verifier = Verifier(first, result)
    relations = tuple(each for each in relations if unstable.isdisjoint(each.targets) and verifier.is_true(each))
    effects = _find_effects(runner, trial, _Trial(first, result), pairing, relations, frozenset(unstable))
    doubts = _find_doubts(runner, trial, header, pairing, relations, list(target))
    return Conversion(
        *(pairing, target, first, result, relations, effects.collisions, effects.vanished, effects.unclear),
        kept=tuple(fqn for fqn, made in pairing.pairs.items() if fqn == made),
        constant=tuple(fqn for fqn in pairing.only_b if fqn in constant and fqn not in unstable),
        runs=len(seen),
        unstable=tuple(fqn for fqn in digests if fqn in unstable),
        beside=returned.beside,
        doubts=tuple(doubts),
        reads=tuple(runner.reads),
    )


def _find_doubts(
    runner: Runner,
    trial: _Trial | None,
    header: StateDictSpec,
    pairing: Pairing,
    relations: Sequence[Relation],
    targets: Sequence[str],
) -> list[Doubt]:
    """Try other values on small tensors; relations, which have sizes, on those of the real ones."""
    if trial is None:
        return list(find_doubts(runner, header, pairing, relations, targets))
    found = list(find_doubts(runner, trial.source.header(), pairing, (), targets))
    if relations and not found:
        found += find_doubts(runner, header, pairing, relations, targets)
    return found


def _check_source(converter: Converter, header: StateDictSpec) -> None:
    if header.nbytes > MAX_BYTES:
        size, most = format_bytes(header.nbytes), format_bytes(MAX_BYTES)
        title = f"{header.name} holds {size}; a converter is run on at most {most}"
        help = ("pass the manifest of a smaller model of this kind, with fewer layers: rules hold for any number",)
        raise UsageError(Diagnostic("RK673", title, help=help))
    for fqn, spec in header.items():
        if spec.dtype not in TORCH_DTYPES:
            title = f"{show_key(fqn)} of {header.name} is {spec.dtype}, which torch cannot hold"
            raise UsageError(Diagnostic("RK608", title, help=(f"{converter.reference} cannot be run on it",)))


def _check_keys(converter: Converter, first: Digests, again: Digests, values: str) -> None:
    if again.keys() != first.keys():
        differs = [fqn for fqn in (*first, *again) if (fqn in first) != (fqn in again)]
        names = join_words(map(show_key, differs), 3)
        title = f"{converter.reference} returns other keys when it runs again on {values}: {names}"
        raise UsageError(Diagnostic("RK671", title, help=("a converter must do the same in every run",)))


# ------------------------------------------------------------------------------------------------ pairs


def _run_more(
    runner: Runner, source: RandomTensors, header: StateDictSpec, target: StateDictSpec
) -> list[tuple[Digests, Digests]]:
    """Run on further values until single bits are certain; tensors with another size than in `header` stay open.

    Only small sources, at most the runs that a tensor of one bit takes.
    """
    found: list[tuple[Digests, Digests]] = []
    if source.header().nbytes > _SMALL_SOURCE:
        return found
    for seed in range(2, _CERTAIN_BITS):
        values = RandomTensors(source.header(), seed)
        try:
            result = runner.run(values).tensors
        except UsageError:
            break
        if list(result.header()) != list(target):
            break
        found.append(
            (
                {fqn: one if header[fqn] == source.header()[fqn] else b"" for fqn, one in values.digests().items()},
                {fqn: one if target[fqn] == result.header()[fqn] else b"" for fqn, one in result.digests().items()},
            )
        )
    return found


def _pair_by_runs(
    a: StateDictSpec, b: StateDictSpec, runs: Sequence[tuple[Digests, Digests]], but: Collection[str] = ()
) -> Pairing:
    """Pair keys whose bytes are equal in every run; too few random bits are only `alike`, never certain.

    The targets `but` count as equal to nothing.
    """
    in_a: defaultdict[tuple[bytes, ...], list[str]] = defaultdict(list)
    in_b: defaultdict[tuple[bytes, ...], list[str]] = defaultdict(list)
    for fqn in a:
        in_a[tuple(one[fqn] for one, _ in runs)].append(fqn)
    for fqn in b:
        if fqn not in but:
            in_b[tuple(other[fqn] for _, other in runs)].append(fqn)
    pairs: dict[str, str] = {}
    alike: dict[str, tuple[str, ...]] = {}
    copies: dict[str, tuple[str, ...]] = {}
    for content, fqns in in_a.items():
        others = tuple(in_b.get(content, ()))
        certain = len(fqns) == 1 and len(runs) * _count_random_bits(a[fqns[0]]) >= _CERTAIN_BITS
        if certain and len(others) == 1:
            pairs[fqns[0]] = others[0]
        elif certain and others:
            copies[fqns[0]] = others
        elif others:
            alike.update(dict.fromkeys(fqns, others))
    equal = {fqn for content in in_a for fqn in in_b.get(content, ())}
    return Pairing(
        {fqn: pairs[fqn] for fqn in a if fqn in pairs},
        {fqn: alike[fqn] for fqn in a if fqn in alike},
        tuple(fqn for fqn in a if fqn not in pairs and fqn not in alike and fqn not in copies),
        tuple(fqn for fqn in b if fqn not in equal),
        copies={fqn: copies[fqn] for fqn in a if fqn in copies},
    )


def _find_constant(fqns: Iterable[str], runs: Sequence[tuple[Digests, Digests]]) -> set[str]:
    """Return the targets that are the same in every run.

    Two runs do not show it: what follows from a single bit (a slice of a `BOOL` tensor, the sign of a sum) is the
    same in half of all pairs of runs, whatever its own dtype and size.
    """
    return {fqn for fqn in fqns if len({made[fqn] for _, made in runs if made[fqn]}) == 1}


def _count_random_bits(spec: TensorSpec) -> int:
    bits = DTYPE_BITS[spec.dtype]
    is_float = TORCH_DTYPES[spec.dtype].is_floating_point or TORCH_DTYPES[spec.dtype].is_complex
    return spec.numel * _RANDOM_BITS.get(spec.dtype, bits // 2 if is_float else bits)


# ------------------------------------------------------------------------------------------------ more runs


@dataclass(frozen=True, slots=True)
class _Trial:
    """A run that further ones are compared with."""

    source: RandomTensors
    result: StateTensors


@dataclass(frozen=True, slots=True)
class _Effects:
    """What becomes of the keys that no pair and no relation reads."""

    collisions: Mapping[str, tuple[str, ...]]
    vanished: tuple[str, ...]
    unclear: tuple[str, ...]


def _find_effects(
    runner: Runner,
    small: _Trial | None,
    full: _Trial,
    pairing: Pairing,
    relations: Sequence[Relation],
    unstable: frozenset[str],
) -> _Effects:
    """Tell keys that are overwritten, and keys that are not used, from those that are used in ways no rule says."""
    read = {fqn for each in relations for fqn in each.sources}
    lost = [fqn for fqn in pairing.only_a if fqn not in read]
    if not lost:
        return _Effects({}, (), ())
    holders = {target: fqn for fqn, target in pairing.pairs.items()}
    holders |= {target: fqn for fqn, targets in pairing.copies.items() for target in targets}
    holders |= {target: each.sources[-1] for each in relations for target in each.targets}
    targets = [fqn for fqn in pairing.only_b if fqn not in holders]
    trial = small or full
    search = _Search(runner, trial.source, trial.result.digests(), unstable)
    unused, unclear = search.find_unused([fqn for fqn in lost if not _is_seen(trial, fqn, targets)])
    collisions, vanished = search.find_collisions(holders, unused)
    if small is not None and unused:
        # Small tensors may be treated in another way than those of the real sizes.
        sizes = _Search(runner, full.source, full.result.digests(), unstable)
        if not sizes.stays_equal(unused):
            return _Effects({}, (), tuple(fqn for fqn in full.source.header() if fqn in {*unused, *unclear}))
    if unstable:  # and nobody knows whether these follow from such a key
        unclear, vanished = [fqn for fqn in full.source.header() if fqn in {*vanished, *unclear}], []
    return _Effects(collisions, tuple(vanished), tuple(unclear))


def _shrink_trial(runner: Runner, header: StateDictSpec, pairing: Pairing, digests: Digests) -> _Trial | None:
    """Return a run on small tensors, for the many further ones; None if it shows anything else than the large run.

    Rules are never learned from it. It may stand for the large run if it has the same keys, pairs and leftovers.
    """
    small = {fqn: TensorSpec(each.dtype, tuple(map(_shrink_size, each.shape))) for fqn, each in header.items()}
    if small == dict(header):
        return None
    source = RandomTensors(StateDictSpec(small, name=header.name))
    try:
        result = runner.run(source).tensors
    except UsageError:  # it has sizes of its own
        return None
    one, other = source.digests(), result.digests()
    if list(other) != list(digests):
        return None
    lost = {one[fqn] for fqn in pairing.only_a}
    same = all(one[fqn] == other[target] for fqn, target in pairing.pairs.items())
    return _Trial(source, result) if same and lost.isdisjoint(other.values()) else None


def _shrink_size(size: int) -> int:
    """Return a small size that the usual splits divide."""
    return size if size <= 48 else 48


@dataclass(frozen=True, slots=True)
class _Search:
    """Further runs, on other values and in other orders; `first` are the digests of the first result."""

    runner: Runner
    source: RandomTensors
    first: Digests
    unstable: frozenset[str]

    def find_unused(self, fqns: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the keys whose values change nothing in the result, and those that the budget leaves open.

        A group of keys gets other values at once: if the result stays, none of them is used; else it is halved. It
        ends: groups become smaller, and each costs one run of the budget.
        """
        unused: list[str] = []
        unclear: list[str] = []
        waiting = [list(fqns)] if fqns else []
        header = self.source.header()
        budget = max(LEAST_SEARCH, min(MAX_SEARCH, _MAX_READ // max(1, header.nbytes)))
        runs = 0
        while waiting:
            group = waiting.pop()
            if runs >= budget:
                unclear += group
                continue
            runs += 1
            if self.stays_equal(group):
                unused += group
            elif len(group) > 1:
                half = len(group) // 2
                waiting += [group[half:], group[:half]]
        known = {fqn: place for place, fqn in enumerate(header)}
        return sorted(unused, key=known.__getitem__), sorted(unclear, key=known.__getitem__)

    def stays_equal(self, group: Sequence[str]) -> bool:
        """Return whether other values of these keys change nothing."""
        return self.list_changed(self.first, self.try_run(others=group)) == []

    def try_run(self, order: Sequence[str] | None = None, others: Sequence[str] = ()) -> Digests | None:
        """Return the digests of a run; None if the converter does not take it."""
        try:
            return self.runner.run(RandomTensors(self.source.header(), 0, others), order).tensors.digests()
        except UsageError:
            return None

    def list_changed(self, one: Digests | None, other: Digests | None) -> list[str] | None:
        """Return the targets that differ; None if the keys do, or a run is missing."""
        if one is None or other is None or one.keys() != other.keys():
            return None
        return [fqn for fqn in self.first if fqn not in self.unstable and one.get(fqn) != other.get(fqn)]

    def find_collisions(
        self, holders: Mapping[str, str], unused: Sequence[str]
    ) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """Return the keys that take turns at one target, and the keys that vanish in every order.

        What a later key overwrites, it overwrites no more where it comes first. Each round puts the keys that are
        still missing last; it ends when a round finds none, or after `MAX_ORDERS`. Then some are tried singly.
        """
        shared: dict[str, list[str]] = {}
        left = list(unused)
        values = self.source.digests() if left else {}
        for number in range(MAX_ORDERS):
            last = set(left)
            front = [fqn for fqn in self.source.header() if fqn not in last]
            digests = self.try_run([*front, *(left if number % 2 else reversed(left))]) if left else None
            if digests is None:  # nothing is left, or this converter needs its order
                break
            places = {digest: target for target, digest in digests.items() if self.first.get(target) != digest}
            now = {fqn: places[values[fqn]] for fqn in left if values[fqn] in places}
            if not now:
                break
            for fqn, target in now.items():
                shared.setdefault(target, []).append(fqn)
            left = [fqn for fqn in left if fqn not in now]
        for fqn in left[:MAX_ORDERS]:
            for target in self.find_overwritten(fqn):
                shared.setdefault(target, []).append(fqn)
        found = {fqn for fqns in shared.values() for fqn in fqns}
        collisions = {
            target: (*fqns, *((holders[target],) if target in holders else ())) for target, fqns in shared.items()
        }
        return {target: collisions[target] for target in self.first if target in collisions}, [
            fqn for fqn in left if fqn not in found
        ]

    def find_overwritten(self, fqn: str) -> list[str]:
        """Return the targets that an unused key makes if it comes last: by its values, not only by its place."""
        order = [*(each for each in self.source.header() if each != fqn), fqn]
        moved = self.try_run(order)
        fed = self.list_changed(moved, self.try_run(order, [fqn])) if moved is not None else None
        return [target for target in fed or () if target in (self.list_changed(self.first, moved) or ())]


def _is_seen(trial: _Trial, fqn: str, targets: Iterable[str]) -> bool:
    """Return whether an element of a float tensor of A is one of B: a slice, a transpose or a concatenation of it."""
    tensor = trial.source.make(fqn).reshape(-1)
    if not tensor.numel() or tensor.dtype not in (torch.float32, torch.float64):
        return False
    sample = tensor[:: max(1, tensor.numel() // 4)]
    same = (made for made in map(trial.result.get, targets) if made.dtype == tensor.dtype)
    return any(bool(torch.isin(sample, made.reshape(-1)).any()) for made in same)
