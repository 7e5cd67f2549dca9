"""Runs a converter on unique random values: two state dicts in memory, A and what the converter makes of it.

Every tensor of A gets values of its own, so equal bytes in B show where they come from. Further runs, on the same
and on other values and on other orders of the keys, show what depends on chance, what is constant, what no run ever
uses, and which keys the converter leads to one target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from remapkit.authoring.pair_by_value import Pairing, pair_by_value
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import UsageError
from remapkit.diagnostics.wording import format_bytes, join_words, show_key
from remapkit.models.converter import Converter
from remapkit.models.isolation import isolate_guest
from remapkit.tensors.dtypes import DTYPE_BITS
from remapkit.tensors.from_torch import TORCH_DTYPES, get_dtype_name
from remapkit.tensors.spec import StateDictSpec, TensorSpec

MAX_BYTES = 8 << 30
"""The largest source to run a converter on: it is in memory once, and its result once more."""
MAX_ORDERS = 8
"""The number of runs in other orders of the keys that look for keys with one target."""
MAX_SEARCH = 96
"""The number of runs that look for keys which the converter does not use."""
_MAX_READ = 64 << 30
"""The bytes that these runs may convert in all; four runs are always made."""
_TRIES = 64
_CERTAIN_BITS = 32
"""Values of at least this many random bits are equal by no chance."""


class RandomTensors:
    """A checkpoint in memory without its bytes: the values of each tensor follow from its key and a seed.

    The values of two keys differ wherever their dtypes and sizes allow it: a second `BOOL` of one element may repeat.
    """

    def __init__(self, header: StateDictSpec, seed: int = 0, others: Iterable[str] = ()) -> None:
        """`others` are keys that get the values of the next seed instead."""
        self._header, self._seed, self._others = header, seed, frozenset(others)
        self._tries: dict[str, int] = {}
        taken: set[bytes] = set()
        for fqn, spec in header.items():
            if spec.nbytes > 64:  # random values of more bytes do not repeat
                continue
            for attempt in range(_TRIES):
                self._tries[fqn] = attempt
                digest = bytes(self.make(fqn).reshape(-1).view(torch.uint8).numpy()) + repr(spec).encode()
                if digest not in taken:
                    break
            taken.add(digest)

    def header(self) -> StateDictSpec:
        """Names, dtypes and shapes."""
        return self._header

    def make(self, fqn: str) -> torch.Tensor:
        """Return the tensor; each call makes it anew."""
        spec = self._header[fqn]
        seed = self._seed + (fqn in self._others)
        name = f"{seed}/{self._tries.get(fqn, 0)}/{fqn}".encode(errors="surrogatepass")
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=7).digest()))
        return _fill(spec, generator)

    def make_state(self, order: Iterable[str] | None = None) -> dict[str, Any]:
        """Return a plain dict of new tensors, in the header's or another order."""
        return {fqn: self.make(fqn) for fqn in (self._header if order is None else order)}

    def chunks(self, fqn: str) -> Iterator[memoryview]:
        """Yield the tensor's bytes."""
        yield _view_bytes(self.make(fqn))


class StateTensors:
    """A state dict in memory as a checkpoint to compare."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: str) -> None:
        self._tensors = tensors
        specs = {fqn: TensorSpec(get_dtype_name(each.dtype), tuple(each.shape)) for fqn, each in tensors.items()}
        self._header = StateDictSpec(specs, name=name)

    def header(self) -> StateDictSpec:
        """Names, dtypes and shapes."""
        return self._header

    def chunks(self, fqn: str) -> Iterator[memoryview]:
        """Yield the tensor's bytes."""
        yield _view_bytes(self._tensors[fqn])

    def digests(self) -> dict[str, bytes]:
        """Return a digest of each tensor's dtype, shape and bytes."""
        return {
            fqn: hashlib.blake2b(
                _view_bytes(each), digest_size=20, key=repr(self._header[fqn]).encode()[:64]
            ).digest()
            for fqn, each in self._tensors.items()
        }


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a converter does to a source, as far as runs show.

    `collisions` maps a target to the keys that the converter leads to it, the one that stays last; `vanished` are
    other keys that change nothing in the result; `unclear` are keys of which the budget of runs does not say whether
    they do. `kept` are keys that keep name and values; `constant` are targets with the same values whatever A holds;
    `unstable` are targets that differ from run to run on the same values. `beside` names values that are no tensors.
    """

    pairing: Pairing
    target: StateDictSpec
    source: RandomTensors
    result: StateTensors
    collisions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vanished: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def run_converter(converter: Converter, header: StateDictSpec) -> Conversion:
    """Run a converter until its effect on each key is known, or the budget of runs is spent.

    Raises `UsageError`: RK608 for a dtype that torch lacks, RK669 if the converter raises, RK671 if it returns no
    state dict or other keys from run to run, RK673 if the source is too large.
    """
    _check_source(converter, header)
    source = RandomTensors(header)
    tensors, beside = _run(converter, source)
    result = StateTensors(tensors, f"what {converter.reference} returns")
    pairing = _promote_unique(pair_by_value(source, result), source)
    tried, trial, tried_pairs = _shrink_trial(converter, header, pairing, result) or (source, result, pairing)
    first = trial.digests()
    again = _digest_run(converter, tried)
    if again.keys() != first.keys():
        differs = [fqn for fqn in (*first, *again) if (fqn in first) != (fqn in again)]
        title = (
            f"{converter.reference} returns other keys when it runs again: {join_words(map(show_key, differs), 3)}"
        )
        raise UsageError(Diagnostic("RK671", title, help=("a converter must do the same in every run",)))
    unstable = tuple(fqn for fqn in first if again[fqn] != first[fqn])
    search = _Search(converter, tried.header(), first, frozenset(unstable))
    lost = [fqn for fqn in tried_pairs.only_a if not _is_seen(tried, fqn, trial, tried_pairs.only_b)]
    unused, unclear = search.find_unused(lost)
    collisions, vanished = search.find_collisions(tried_pairs, unused)
    other = _digest_run(converter, RandomTensors(tried.header(), 1))
    return Conversion(
        *(pairing, result.header(), source, result, collisions, tuple(vanished), tuple(unclear)),
        kept=tuple(fqn for fqn, target in pairing.pairs.items() if fqn == target),
        constant=tuple(fqn for fqn in pairing.only_b if other.get(fqn) == first[fqn] and fqn not in unstable),
        unstable=unstable,
        beside=beside,
    )


def _shrink_trial(
    converter: Converter, header: StateDictSpec, pairing: Pairing, result: StateTensors
) -> tuple[RandomTensors, StateTensors, Pairing] | None:
    """Return a run on small tensors, for the many further ones; None if it shows anything else than the large run.

    Rules are never learned from it. It may stand for the large run if it has the same keys, pairs and leftovers.
    """
    small = {fqn: TensorSpec(each.dtype, tuple(map(_shrink_size, each.shape))) for fqn, each in header.items()}
    if small == dict(header):
        return None
    source = RandomTensors(StateDictSpec(small, name=header.name))
    try:
        trial = StateTensors(_run(converter, source)[0], "")
    except UsageError:  # it has sizes of its own
        return None
    found = _promote_unique(pair_by_value(source, trial), source)
    same = found.pairs == pairing.pairs and (found.only_a, found.only_b) == (pairing.only_a, pairing.only_b)
    return (source, trial, found) if same and list(trial.header()) == list(result.header()) else None


def _shrink_size(size: int) -> int:
    """Return a small size that the usual splits divide."""
    return size if size <= 48 else 48


def _digest_run(converter: Converter, source: RandomTensors) -> dict[str, bytes]:
    return StateTensors(_run(converter, source)[0], "").digests()


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


# ------------------------------------------------------------------------------------------------ one run


def _run(
    converter: Converter, source: RandomTensors, order: Sequence[str] | None = None
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the tensors that the converter makes of a fresh copy, and the keys of what is no tensor."""
    state = source.make_state(order)
    random_state = torch.get_rng_state()
    try:
        with isolate_guest(), torch.no_grad():
            returned = converter.call(state)
    except (Exception, SystemExit) as error:
        raise UsageError(_diagnose_failure(converter, error, source.header())) from error
    finally:
        torch.set_rng_state(random_state)
    found = state if returned is None else _find_mapping(returned)
    if found is None:
        title = f"{converter.reference} returned a {type(returned).__name__}, not a state dict"
        raise UsageError(Diagnostic("RK671", title, help=("it must return a dict of tensors, or change its own",)))
    tensors = {fqn: value for fqn, value in found.items() if isinstance(value, torch.Tensor)}
    for fqn, value in tensors.items():
        if not isinstance(fqn, str):
            title = f"{converter.reference} returned a tensor under the key {fqn!r}, which is not text"
            raise UsageError(Diagnostic("RK671", title))
        if value.is_meta or value.layout is not torch.strided or value.is_quantized:
            title = f"{converter.reference} returned no plain tensor of values for {show_key(fqn)}"
            raise UsageError(Diagnostic("RK671", title))
    if not tensors:
        kind = "an empty dict" if not found else "a dict without tensors"
        raise UsageError(Diagnostic("RK671", f"{converter.reference} returned {kind}"))
    # The result must not share the dict: the converter may keep it.
    return {fqn: value.detach() for fqn, value in tensors.items()}, tuple(map(str, found.keys() - tensors.keys()))


def _find_mapping(returned: object) -> Mapping[Any, Any] | None:
    """Return the state dict: what was returned, or the first mapping of a tuple."""
    if isinstance(returned, Mapping):
        return returned
    if isinstance(returned, tuple | list):
        return next((each for each in returned if isinstance(each, Mapping)), None)
    return None


def _diagnose_failure(converter: Converter, error: BaseException, header: StateDictSpec) -> Diagnostic:
    cause = f"{type(error).__name__}: {error}".strip()
    key = _find_key(error, header)
    at = "" if key is None else f" at the key {show_key(key)}"
    help = ["check that the source has the layout that the converter reads"]
    if isinstance(error, KeyError):
        help[0] = f"the source has no such key: {help[0]}"
    elif isinstance(error, TypeError) and "argument" in str(error):
        help = ["give its arguments with --arg key=value"]
    return Diagnostic("RK669", f"{converter.reference} failed{at}", notes=(cause,), help=tuple(help))


def _find_key(error: BaseException, header: StateDictSpec) -> str | None:
    """Return the key that the converter was at: the innermost variable of its frames that holds one."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        if frame.f_code.co_filename == __file__:
            break
        for value in frame.f_locals.values():
            if isinstance(value, str) and value in header:
                return value
    return None


# ------------------------------------------------------------------------------------------------ more runs


@dataclass(frozen=True, slots=True)
class _Search:
    """Further runs, on other values and in other orders; `first` are the digests of the first run."""

    converter: Converter
    header: StateDictSpec
    first: Mapping[str, bytes]
    unstable: frozenset[str]

    def find_unused(self, fqns: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the keys whose values change nothing in the result, and those that the budget leaves open.

        A group of keys gets other values at once: if the result stays, none of them is used; else it is halved. It
        ends: groups become smaller, and each costs one run of the budget.
        """
        unused: list[str] = []
        unclear: list[str] = []
        waiting = [list(fqns)] if fqns else []
        budget = max(4, min(MAX_SEARCH, _MAX_READ // max(1, self.header.nbytes)))
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
        known = {fqn: place for place, fqn in enumerate(self.header)}
        return sorted(unused, key=known.__getitem__), sorted(unclear, key=known.__getitem__)

    def stays_equal(self, group: Sequence[str]) -> bool:
        digests = _digest_run(self.converter, RandomTensors(self.header, 0, group))
        return digests.keys() == self.first.keys() and all(
            digests[fqn] == digest for fqn, digest in self.first.items() if fqn not in self.unstable
        )

    def find_collisions(
        self, pairing: Pairing, vanished: Sequence[str]
    ) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        """Return the keys that take turns at one target, and the keys that vanish in every order.

        What a later key overwrites, it overwrites no more where it comes first. Each round puts the keys that are
        still missing last; it ends when a round finds none, or after `MAX_ORDERS`.
        """
        holders = {target: fqn for fqn, target in pairing.pairs.items()}
        shared: dict[str, list[str]] = {}
        left = list(vanished)
        for number in range(MAX_ORDERS):
            if not left:
                break
            last = set(left)
            front = [fqn for fqn in self.header if fqn not in last]
            try:
                source = RandomTensors(self.header)
                tensors, _ = _run(self.converter, source, [*front, *(left if number % 2 else reversed(left))])
            except UsageError:  # this converter needs its order
                break
            found = pair_by_value(source, StateTensors(tensors, ""))
            placed = {**found.pairs, **{fqn: others[0] for fqn, others in found.alike.items() if len(others) == 1}}
            now = {fqn: placed[fqn] for fqn in left if fqn in placed and placed[fqn] in self.first}
            if not now:
                break
            for fqn, target in now.items():
                shared.setdefault(target, []).append(fqn)
            left = [fqn for fqn in left if fqn not in now]
        collisions = {
            target: (*fqns, *((holders[target],) if target in holders else ())) for target, fqns in shared.items()
        }
        return {target: collisions[target] for target in self.first if target in collisions}, left


def _is_seen(source: RandomTensors, fqn: str, result: StateTensors, targets: Iterable[str]) -> bool:
    """Return whether an element of a float tensor of A is one of B: a slice, a transpose or a concatenation of it."""
    tensor = source.make(fqn).reshape(-1)
    if not tensor.numel() or DTYPE_BITS[source.header()[fqn].dtype] < _CERTAIN_BITS:
        return False
    sample = tensor[:: max(1, tensor.numel() // 4)]
    header = result.header()
    return any(
        bool(torch.isin(sample, result._tensors[other].reshape(-1)).any())
        for other in targets
        if header[other].dtype == source.header()[fqn].dtype
    )


def _promote_unique(pairing: Pairing, source: RandomTensors) -> Pairing:
    """Pair single elements too: with values made for this, enough random bits are equal by no chance."""
    header = source.header()
    held: dict[tuple[str, ...], int] = {}
    for others in pairing.alike.values():
        held[others] = held.get(others, 0) + 1
    sure = {
        fqn: others[0]
        for fqn, others in pairing.alike.items()
        if len(others) == 1 == held[others] and 8 * header[fqn].nbytes >= _CERTAIN_BITS
    }
    if not sure:
        return pairing
    pairs = {fqn: sure.get(fqn) or pairing.pairs[fqn] for fqn in header if fqn in sure or fqn in pairing.pairs}
    alike = {fqn: others for fqn, others in pairing.alike.items() if fqn not in sure}
    return replace(pairing, pairs=pairs, alike=alike, numbers=pairing.numbers - sure.keys())


# ------------------------------------------------------------------------------------------------ values


def _fill(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    dtype = TORCH_DTYPES[spec.dtype]
    if dtype is torch.bool:
        return torch.randint(0, 2, spec.shape, generator=generator).to(torch.bool)
    if dtype.is_complex:
        parts = torch.randn((*spec.shape, 2), generator=generator, dtype=torch.float64)
        return torch.view_as_complex(parts).to(dtype)
    if dtype.is_floating_point:
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        values = torch.randn(spec.shape, generator=generator, dtype=wide)
        return (values.abs() if spec.dtype == "F8_E8M0" else values).to(dtype)
    limits = torch.iinfo(dtype)
    # All of 64 bits are not a range that `randint` takes.
    low, high = max(limits.min, -(1 << 62)), min(limits.max, 1 << 62)
    return torch.randint(low, high, spec.shape, generator=generator, dtype=torch.int64).to(dtype)


def _view_bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data).cast("B") if flat.numel() else memoryview(b"")
