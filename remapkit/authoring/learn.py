"""Rule files derived from examples: two checkpoints that hold the same weights, or pairs of keys that somebody wrote.

The derived file is compiled and tried on every key of the source, proven for all keys, and run through its own tests
before anybody sees it: a rule that says more than the examples is split until it does not. What it says of keys that
the source does not have (deeper models) is the author's to read.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from remapkit.authoring.derive import Draft, DraftRule, How, write_draft
from remapkit.authoring.generalize import generalize, split_example
from remapkit.authoring.pair_by_value import Pairing
from remapkit.authoring.scaffold import check_name_and_source, write_head
from remapkit.authoring.settle import Alike, By, Settled, settle_keys
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.diagnostics.wording import count_noun, escape_line, join_words, list_names
from remapkit.plans.check import make_check
from remapkit.plans.make import make_plan
from remapkit.proofs.model import Level
from remapkit.proofs.prover import prove
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.rules.selftest import run_tests
from remapkit.tensors.families import find_families
from remapkit.tensors.spec import StateDictSpec, TensorSpec, find_name_problem

MAX_ROUNDS = 40
"""So often rules are split; then what still does not hold is written key by key."""


@dataclass(frozen=True, slots=True)
class Learned:
    """A derived rule file, the pairs that it says, and what no example decided.

    Every key of A is in one of `pairs`, `undecided`, `only_a` and `unsaid`; every key of B is the target of a pair,
    or in one of `open_b` and `only_b`. `settled` are those of the pairs that values left open (constants, and bytes
    that several keys hold), with what settled them. `undecided` are keys of A that nothing settles, with the free
    keys of B that hold the same bytes; `open_b` are keys of B that have an equal, and that no rule leads to. `only_a`
    and `only_b` are keys that the other side has no equal of. `unsaid` are pairs that no rule can say.
    """

    text: str
    pairs: Mapping[str, str]
    settled: Mapping[str, Settled]
    undecided: Mapping[str, tuple[str, ...]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    open_b: tuple[str, ...] = ()
    unsaid: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_module(self) -> Mapping[str, str]:
        """The pairs that were settled because everything else of their module went to one module."""
        return {fqn: settled.target for fqn, settled in self.settled.items() if settled.by is By.MODULE}


def learn(
    name: str,
    source: StateDictSpec,
    target: StateDictSpec,
    pairing: Pairing,
    source_ref: str | None = None,
    target_ref: str | None = None,
) -> Learned:
    """The rule file that says a pairing, and settles by its rules what values alone could not.

    It lints, is proven for all keys, and its tests hold. Raises `UsageError`: RK623 for a name that is none, RK625
    where nothing tells two keys apart, RK655 where no rules can be written that hold.

    >>> from remapkit.tensors.spec import StateDictSpec, TensorSpec
    >>> pairs = {f"layers.{n}.{p}.w": f"h.{n}.{p}_proj.w" for n in range(3) for p in "qk"}
    >>> one, other = (StateDictSpec(dict.fromkeys(keys, TensorSpec("F32", (8,)))) for keys in (pairs, pairs.values()))
    >>> print("\\n".join(learn("mine", one, other, Pairing(pairs, {}, (), ())).text.splitlines()[9:16]))
    tables:
      part: {q: q_proj, k: k_proj}
    <BLANKLINE>
    rules:
      # 6 keys
      - id: layers.w
        path: 'layers.{layer:int}.{part:part}.w'
    """
    check_name_and_source(name, source)
    # The language has no word for the empty key, and no checkpoint may hold a name that steers a terminal.
    pairs = {fqn: other for fqn, other in pairing.pairs.items() if fqn and other and not find_name_problem(other)}
    fitting = _Fitting(name, source, target, source_ref, target_ref)
    pairs, settled = _settle_pairs(fitting, pairs, pairing)
    if not pairs:
        raise UsageError(_report_no_pairs(source, target, pairing))
    text, said = fitting.fit_by_proof(pairs)
    learned = _account_for_keys(text, source, target, pairing, said, pairs, settled)
    left = "\n".join(_write_leftovers(source, target, learned))
    return replace(learned, text=f"{text}{left}\n") if left else learned


def _settle_pairs(
    fitting: _Fitting, pairs: dict[str, str], pairing: Pairing
) -> tuple[dict[str, str], dict[str, Settled]]:
    """The pairs with those that can be settled, and what settled each of these."""
    source, target = fitting.source, fitting.target
    alike = {fqn: others for fqn, others in _find_candidates(source, target, pairing).items() if fqn}
    settled: dict[str, Settled] = {}
    while alike:
        rules = compile_rules(read_text(fitting.fit_by_replay(pairs, alike).text, fitting.name)) if pairs else None
        found = settle_keys(rules, pairs, alike, pairing)
        if not found:
            break
        settled |= found
        known = pairs | {fqn: each.target for fqn, each in found.items()}
        pairs = {fqn: known[fqn] for fqn in source if fqn in known}
        alike = {fqn: others for fqn, others in alike.items() if fqn not in settled}
    return pairs, settled


def _find_candidates(source: StateDictSpec, target: StateDictSpec, pairing: Pairing) -> Alike:
    """Where each key without a pair may go: to equal bytes; where values are unknown, to equal dtype and shape."""
    if pairing.by_value:
        return _map_distinct(pairing.alike, frozenset)
    free: defaultdict[TensorSpec, set[str]] = defaultdict(set)
    for fqn in pairing.only_b:
        free[target[fqn]].add(fqn)
    return {fqn: free[source[fqn]] for fqn in pairing.only_a}


_T = TypeVar("_T")


def _map_distinct(alike: Mapping[str, tuple[str, ...]], made: Callable[[tuple[str, ...]], _T]) -> dict[str, _T]:
    """What is made of the keys that each key is equal to; made once for all keys that share them.

    Thousands of biases may all be equal to thousands of others.
    """
    distinct = {id(others): others for others in alike.values()}
    found = {number: made(others) for number, others in distinct.items()}
    return {fqn: found[id(others)] for fqn, others in alike.items()}


def _account_for_keys(
    text: str,
    source: StateDictSpec,
    target: StateDictSpec,
    pairing: Pairing,
    said: Mapping[str, str],
    pairs: Mapping[str, str],
    settled: Mapping[str, Settled],
) -> Learned:
    """Every key of either side in its place."""
    reached = set(said.values())
    unsaid = {fqn: other for fqn, other in {**pairing.pairs, **pairs}.items() if fqn not in said}
    undecided = _map_distinct(
        {fqn: others for fqn, others in pairing.alike.items() if fqn not in pairs},
        lambda others: tuple(other for other in others if other not in reached),
    )
    only_a = tuple(fqn for fqn in pairing.only_a if fqn not in pairs)
    only_b = tuple(fqn for fqn in pairing.only_b if fqn not in reached)
    without = {*reached, *only_b}
    open_b = tuple(fqn for fqn in target if fqn not in without)
    kept = {fqn: each for fqn, each in settled.items() if fqn in said}
    return Learned(text, said, kept, undecided, only_a, only_b, open_b, unsaid)


def _report_no_pairs(source: StateDictSpec, target: StateDictSpec, pairing: Pairing) -> Diagnostic:
    title = f"no tensor of {source.name} has the dtype, shape and bytes of one of {target.name} alone"
    said = _map_distinct(pairing.alike, lambda others: join_words(others, 3, "or"))
    if pairing.alike:
        title = f"what {source.name} and {target.name} share tells no key apart: constants, or bytes of several keys"
    return Diagnostic(
        "RK625",
        title,
        notes=(list_names([f"{fqn}: {said[fqn]}" for fqn in pairing.alike]),) if pairing.alike else (),
        help=(
            "give two checkpoints that hold the same weights: convert one by the means that you have now",
            "or write the pairs that you know into a JSON object, source key to target key: --pairs FILE",
        ),
    )


# ------------------------------------------------------------------------------------------------ a text that fits


@dataclass(frozen=True, slots=True)
class _Fitting:
    """What a text has to fit: two headers, and where the file will say that they lie."""

    name: str
    source: StateDictSpec
    target: StateDictSpec
    source_ref: str | None
    target_ref: str | None

    def fit_by_replay(self, pairs: Mapping[str, str], alike: Alike) -> Draft:
        """The most general text that says the pairs, and of other keys only what leads them to equal values."""
        return self.fit_rules(pairs, alike, proves=False)[0]

    def fit_by_proof(self, pairs: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """The most general text that says the pairs and takes nothing else, proven; with the pairs that it says."""
        found, parts = self.fit_rules(pairs, {}, proves=True)
        return found.text, {fqn: pairs[fqn] for part in parts for fqn, _ in part.example.pairs}

    def fit_rules(self, pairs: Mapping[str, str], alike: Alike, *, proves: bool) -> tuple[Draft, list[DraftRule]]:
        parts = [DraftRule(example) for example in generalize(pairs)]
        problems: Sequence[Diagnostic] = ()
        for number in itertools.count():
            if not parts:
                raise UsageError(_report_no_rules(len(pairs), problems))
            said = {fqn: other for part in parts for fqn, other in part.example.pairs}
            found = write_draft(parts, self.write_head_lines(said))
            wrong, problems = self.find_wrong_parts(found, said, alike, proves=proves)
            if not wrong:
                return found, parts
            # What says most gives way first: of a rule and a literal that take one key, the rule.
            widest = min((parts[place].how for place in wrong), key=list(How).index)
            wrong = {place for place in wrong if parts[place].how is widest}
            parts = [
                each
                for place, part in enumerate(parts)
                for each in (_narrow_part(part, at_once=number >= MAX_ROUNDS) if place in wrong else (part,))
            ]
        raise AssertionError("counting does not end")

    def write_head_lines(self, said: Mapping[str, str]) -> list[str]:
        """The lines before the rules."""
        reached = set(said.values())
        return list(
            write_head(
                *(self.name, self.source, self.source_ref, self.target, self.target_ref),
                all_taken=all(fqn in said for fqn in self.source),
                all_reached=all(fqn in reached for fqn in self.target),
            )
        )

    def find_wrong_parts(
        self, found: Draft, said: Mapping[str, str], alike: Alike, *, proves: bool
    ) -> tuple[set[int], Sequence[Diagnostic]]:
        """The numbers of the parts that do not hold, and what is wrong with them."""
        try:
            rules = compile_rules(read_text(found.text, self.name))
        except InvalidRules as error:
            return _find_owners(found, error.diagnostics), error.diagnostics
        replayed = _find_wrong_rules(rules, self.source, said, alike)
        if replayed or not proves:
            return {found.ids[id] for id in replayed}, ()
        problems, ids = _find_problems(rules, self.source, self.target)
        if not problems:
            return set(), ()
        return {found.ids[id] for id in ids} or _find_owners(found, problems), problems


def _narrow_part(part: DraftRule, *, at_once: bool) -> Iterator[DraftRule]:
    """What takes the place of a part that does not hold: the same with fewer keys, or several; or nothing at all."""
    if part.how is How.FREE and not at_once:
        yield DraftRule(part.example, How.TIGHT)
    elif len(part.example.pairs) > 1:
        yield from (DraftRule(example) for example in split_example(part.example, singly=at_once))
    elif part.how is not How.LITERAL:
        yield DraftRule(part.example, How.LITERAL)


def _find_owners(found: Draft, problems: Iterable[Diagnostic]) -> set[int]:
    """The parts in whose lines the problems lie; all of them where a problem lies in none."""
    lines = {label.span.line for problem in problems for label in problem.labels}
    owners = {found.owners[line - 1] for line in lines if line <= len(found.owners)} - {-1}
    return owners or set(found.owners) - {-1}


def _find_wrong_rules(rules: CompiledRules, source: StateDictSpec, said: Mapping[str, str], alike: Alike) -> set[str]:
    """The ids of rules that lead a key to anything but its equal, or two keys to one target: every key is tried."""
    found: set[str] = set()
    first: dict[str, str] = {}
    for fqn in source:
        matches = rules.match(fqn)
        wanted: Collection[str | None] = (said[fqn],) if fqn in said else alike.get(fqn, ())
        for match in matches:
            again = not alike and first.setdefault(match.target or "", fqn) != fqn
            if match.target not in wanted or len(matches) > 1 or again:
                found.add(match.rule.id)
        if fqn in said and not matches:
            raise AssertionError(f"the derived rules do not take {fqn}")
    return found


def _find_problems(
    rules: CompiledRules, source: StateDictSpec, target: StateDictSpec
) -> tuple[list[Diagnostic], set[str]]:
    """What lint, the proof over all keys and the file's own tests find, and the ids of the rules concerned."""
    declares = rules.file.source_keys is not None
    proof = prove(rules, header=source if declares else None)
    problems = [*rules.warnings, *proof.findings]
    ids = {rules.everything[number].id for witness in proof.witnesses for number in witness.key_maps}
    ids.update(*proof.undecided)
    problems += run_tests(rules).problems
    if declares:
        plan = make_plan(rules, source)
        checked = rules.file.target is not None and not plan.problems
        problems += make_check(plan, target).problems if checked else plan.problems
    if proof.level is not Level.ALL and not problems:
        problems.append(Diagnostic("RK655", f"the rules hold only as far: {proof.verdict}"))
    return problems, ids


def _report_no_rules(count: int, problems: Sequence[Diagnostic]) -> Diagnostic:
    return Diagnostic(
        "RK655",
        f"{count_noun(count, 'pair')} found, but no rules that say them can be proven: nothing is written",
        notes=(list_names([problem.title for problem in problems]),) if problems else (),
        help=("report this with the two headers (`remapkit inspect CKPT --manifest`)",),
    )


# ------------------------------------------------------------------------------------------------ what is left


def _write_leftovers(source: StateDictSpec, target: StateDictSpec, learned: Learned) -> Iterator[str]:
    """What the author has to know or to decide, as comments."""
    for by in By:
        fqns = [fqn for fqn, settled in learned.settled.items() if settled.by is by]
        if fqns:
            yield ""
            yield f"# Values leave these open (constants, bytes of several keys). Taken, because {by.value}:"
            yield from _write_families(source, fqns)
    if learned.undecided:
        yield ""
        yield "# Values leave these open (constants, bytes of several keys), and nothing settles them:"
        yield from _write_families(source, tuple(learned.undecided))
    if learned.open_b:
        yield "# Keys of the target that have an equal, and that no rule leads to:"
        yield from _write_families(target, learned.open_b)
    for fqn, other in learned.unsaid.items():
        yield f"# No rule can say this pair: {escape_line(fqn)} -> {escape_line(other)}"
    for rest, header, what in ((learned.only_a, source, "source"), (learned.only_b, target, "target")):
        if rest:
            yield ""
            count = f"{len(rest)} of {count_noun(len(header), 'key')}"
            yield f"# In the {what} only, or computed on the way (fused, transposed, cast): {count}."
            yield from _write_families(header, rest)


def _write_families(header: StateDictSpec, fqns: Sequence[str]) -> Iterator[str]:
    some = StateDictSpec({fqn: header[fqn] for fqn in fqns}, name=header.name)
    yield from (f"#   {escape_line(family.pattern)}  # {len(family.fqns)}" for family in find_families(some))
