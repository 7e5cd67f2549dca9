"""Random pairs of checkpoints whose true mapping is known, and a judge who compares bytes, not names.

The judge never asks what `learn` claims: it takes the written rules, leads every key of A through them, and holds
what arrives against the bytes of B.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from remapkit.api.ruleset import compile_rules
from remapkit.authoring.learn import Learned, learn
from remapkit.authoring.pair_by_value import pair_by_value
from remapkit.plans.check import make_check
from remapkit.plans.make import make_plan
from remapkit.proofs.model import Level
from remapkit.rulefile.read import read_text
from remapkit.rules.selftest import run_tests
from remapkit.tensors.spec import StateDictSpec, TensorSpec

Tensor = tuple[TensorSpec, bytes]
PARTS = (("q", "k", "v"), ("norm1", "norm2"), ("mlp", "attn", "é"), ("op", "skip"))
LEAVES = ("weight", "bias", "gamma", "scale")
ODD = ("no", "1e3", "it's", "{x}", "a|b", "back\\slash", "\U000e0001", "\ue000", "*", "“w”", "")


class Memory:
    """A checkpoint in memory, as far as pairing reads one."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor], recorded: Mapping[str, str] | None = None) -> None:
        self.name, self.tensors, self.recorded = name, dict(tensors), dict(recorded or {})

    def header(self) -> StateDictSpec:
        specs = {fqn: spec for fqn, (spec, _) in self.tensors.items()}
        return StateDictSpec(specs, name=self.name, recorded=self.recorded)

    def chunks(self, fqn: str, size: int = 7) -> Iterator[memoryview]:
        data = self.tensors[fqn][1]
        return (memoryview(data[start : start + size]) for start in range(0, len(data), size))


@dataclass(slots=True)
class Case:
    """A, B, and which key of A is which of B: of those in `harmed`, B holds something else or nothing."""

    a: Memory
    b: Memory
    truth: dict[str, str]
    harmed: set[str] = field(default_factory=set)


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    truth = {"first.weight": "one.weight"}
    for number in range(rng.randint(1, 4)):
        for source, target in rng.choice(FAMILIES)(rng, number).items():
            if source and target and source not in truth and target not in truth.values():
                truth[source] = target
    for _ in range(rng.choice((0, 0, 1, 2))):
        _swap(rng, truth)
    for fqn in rng.sample(sorted(truth), min(len(truth) - 1, rng.choice((0, 0, 1, 3)))):
        del truth[fqn]
    a = _values(rng, truth)
    b = {target: a[source] for source, target in truth.items()}
    case = Case(Memory("a.pth", a), Memory("b.pth", b), truth)
    for _ in range(rng.choice((0, 1, 1, 2))):
        rng.choice(HARMS)(rng, case)
    # What is turned twice is what it was.
    case.harmed = {fqn for fqn, other in truth.items() if case.b.tensors.get(other) != case.a.tensors[fqn]}
    for side in (case.a, case.b):
        items = list(side.tensors.items())
        rng.shuffle(items)
        side.tensors = dict(items)
    return case


# ------------------------------------------------------------------------------------------------ families of keys


def _stack(rng: random.Random, number: int) -> dict[str, str]:
    """`layers.N.PART.LEAF`, words through a table, indices copied, shifted, turned round or thinned."""
    words, leaves = rng.choice(PARTS), rng.sample(LEAVES, rng.randint(1, 3))
    name = {word: rng.choice((word, f"{word}_proj", f"self.{word}", rng.choice(ODD) or "x")) for word in words}
    depth = rng.randint(1, 12)
    index = rng.choice((lambda n: n, lambda n: n + 2, lambda n: depth - 1 - n, lambda n: n * 2 + 1))
    holes = {n for n in range(depth) if rng.random() < 0.1}
    drops_leaf = rng.random() < 0.3
    return {
        f"l{number}.{n}.{word}.{leaf}": f"h{number}.{index(n)}.{name[word]}.{leaf}"
        for n in range(depth)
        for word in words
        for leaf in leaves
        if n not in holes and not (drops_leaf and rng.random() < 0.2)
    }


def _nested(rng: random.Random, number: int) -> dict[str, str]:
    """Two indices that become one, or one that becomes two, some with parts that differ from block to block."""
    stride, blocks = rng.randint(2, 4), rng.randint(1, 4)
    words = rng.choice(PARTS)
    found = {}
    for i in range(blocks):
        for j in range(stride):
            for word in rng.sample(words, rng.randint(1, len(words))):
                one, other = f"n{number}.{i}.{j}.{word}", f"flat{number}.{i * stride + j}.{word[0]}"
                found.update([(one, other) if number % 2 else (other, one)])
    return found


def _ragged(rng: random.Random, number: int) -> dict[str, str]:
    """Blocks numbered through on one side, by kind on the other: `i.4.skip -> d.1.r`, `i.3.op -> d.0.s`."""
    found, seen = {}, {"op": 0, "skip": 0}
    for n in range(rng.randint(2, 9)):
        word = rng.choice(("op", "skip"))
        found[f"i{number}.{n}.{word}"] = f"d{number}.{seen[word]}.{'s' if word == 'op' else 'r'}"
        seen[word] += 1
    return found


def _singles(rng: random.Random, number: int) -> dict[str, str]:
    """Keys on their own, with words that YAML, regular expressions and templates read in their own way."""
    words = rng.sample(ODD, rng.randint(1, 5))
    return {f"s{number}.{word}": f"{rng.choice(ODD)}.t{number}.{place}" for place, word in enumerate(words)}


def _heads(rng: random.Random, number: int) -> dict[str, str]:
    """Modules whose bias goes with the weight, or does not."""
    found = {}
    for word in rng.sample(("fc", "head", "embed", "pos"), rng.randint(1, 4)):
        home = rng.choice(("net", "norm", "out", word)) + str(number)
        found[f"{word}{number}.weight"] = f"{home}.{word}.weight"
        found[f"{word}{number}.bias"] = rng.choice((f"{home}.{word}.bias", f"other{number}.{word}.bias"))
    return found


FAMILIES: tuple[Callable[[random.Random, int], dict[str, str]], ...] = (
    _stack,
    _stack,
    _nested,
    _ragged,
    _singles,
    _heads,
)


def _swap(rng: random.Random, truth: dict[str, str]) -> None:
    if len(truth) > 1:
        one, other = rng.sample(sorted(truth), 2)
        truth[one], truth[other] = truth[other], truth[one]


# ------------------------------------------------------------------------------------------------ values


def _values(rng: random.Random, fqns: Mapping[str, str]) -> dict[str, Tensor]:
    """Random tensors; biases often zeros, gammas often ones, some equal to another, some of a single number."""
    found: dict[str, Tensor] = {}
    trivial = rng.choice((0.0, 0.2, 0.9))
    for fqn in fqns:
        count = rng.choice((1, 4, 4, 6))
        spec = TensorSpec("F32", (count,) if rng.random() < 0.9 else (1, count))
        if fqn.endswith(("bias", "gamma", "scale")) and rng.random() < trivial:
            unit = b"\0\0\0\0" if fqn.endswith("bias") else b"\0\0\x80\x3f"
            found[fqn] = spec, unit * count
        elif found and rng.random() < 0.05:
            found[fqn] = found[rng.choice(list(found))]
        else:
            found[fqn] = spec, rng.randbytes(4 * count)
    return found


def _flip(rng: random.Random, case: Case) -> None:
    """One tensor of B has its elements the other way round."""
    fqn = rng.choice(sorted(case.truth))
    if (target := case.truth[fqn]) in case.b.tensors:
        spec, data = case.b.tensors[target]
        turned = b"".join(data[place : place + 4] for place in range(len(data) - 4, -1, -4))
        case.b.tensors[target] = spec, turned if turned != data else rng.randbytes(len(data))


def _cast(rng: random.Random, case: Case) -> None:
    """One tensor of B has another dtype, shape or both, some with the very same bytes."""
    fqn = rng.choice(sorted(case.truth))
    if (target := case.truth[fqn]) in case.b.tensors:
        spec, data = case.b.tensors[target]
        bits = TensorSpec(rng.choice(("I32", "U32")), spec.shape), data
        half = TensorSpec("F16", spec.shape), data[: len(data) // 2]
        shape = TensorSpec("F32", (*spec.shape, 1)), data
        case.b.tensors[target] = rng.choice((bits, half, shape))


def _lose(rng: random.Random, case: Case) -> None:
    fqn = rng.choice(sorted(case.truth))
    case.b.tensors.pop(case.truth[fqn], None)


def _gain(rng: random.Random, case: Case) -> None:
    """B has one more: new values under a new name, or the name that a rule would lead a further key to."""
    spec = TensorSpec("F32", (4,))
    known = rng.choice(sorted(case.truth.values()))
    name = rng.choice(("more.weight", known.replace("0", "7"), known + ".x"))
    case.b.tensors.setdefault(name, (spec, rng.randbytes(16)))


def _left_over(rng: random.Random, case: Case) -> None:
    """A has one more, in a family of its own or in another's."""
    known = rng.choice(sorted(case.truth))
    name = rng.choice(("left.weight", known.replace("1", "6"), known + ".x"))
    case.a.tensors.setdefault(name, (TensorSpec("F32", (4,)), rng.randbytes(16)))


HARMS: tuple[Callable[[random.Random, Case], None], ...] = (_flip, _cast, _lose, _gain, _left_over)


# ------------------------------------------------------------------------------------------------ the judge


def sit(case: Case, **references: str) -> Learned:
    pairing = pair_by_value(case.a, case.b)
    source = case.a.header().with_recorded(pairing.recorded_a)
    target = case.b.header().with_recorded(pairing.recorded_b)
    return learn("t", source, target, pairing, **references)  # type: ignore[arg-type]


def wrong_tensors(case: Case, text: str) -> list[str]:
    """What the written rules lead to another place than to an equal tensor, and what they leave out without need."""
    rules = compile_rules(read_text(text))
    found: list[str] = []
    reached: dict[str, str] = {}
    counts: dict[Tensor, int] = {}
    for side in (case.a, case.b):
        for tensor in side.tensors.values():
            counts[tensor] = counts.get(tensor, 0) + 1
    held = Counter(case.a.tensors.values())
    for fqn, tensor in case.a.tensors.items():
        targets = [match.target for match in rules.match(fqn)]
        if len(targets) > 1 or None in targets:
            found.append(f"{fqn} is taken by {len(targets)} rules: {targets}")
        for target in filter(None, targets):
            if case.b.tensors.get(target) != tensor:
                found.append(f"{fqn} -> {target} has other bytes in B, or is not there")
            # Of several keys of A with these bytes no judge can say which is meant.
            if fqn in case.harmed and held[tensor] == 1:
                found.append(f"{fqn} is taken, and its true target {case.truth[fqn]} is not equal")
            if reached.setdefault(target, fqn) != fqn:
                found.append(f"{fqn} and {reached[target]} both become {target}")
        certain = counts[tensor] == 2 and fqn in case.truth and fqn not in case.harmed and not _is_trivial(tensor)
        if certain and targets != [case.truth[fqn]]:
            found.append(f"{fqn} is left out: {targets} instead of {case.truth[fqn]}")
    return found


def _is_trivial(tensor: Tensor) -> bool:
    data = tensor[1]
    return data == data[:4] * (len(data) // 4)


def unclean(case: Case, text: str) -> list[str]:
    """What lint, proof and test say of the file, with the manifests that it declares."""
    rules = compile_rules(read_text(text))
    source, target = case.a.header(), case.b.header()
    declared = rules.file.source_keys is not None
    proof = rules.prove(header=source if declared else None)
    found = [each.title for each in (*rules.warnings, *proof.findings, *run_tests(rules).problems)]
    if proof.level is not Level.ALL:
        found.append(proof.verdict)
    if declared:
        plan = make_plan(rules, source)
        found += [each.title for each in plan.problems]
        if rules.file.target is not None and plan.ok:
            found += [each.title for each in make_check(plan, target).problems]
    return found
