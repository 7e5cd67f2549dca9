"""`remapkit learn`: a rule file derived from two checkpoints with the same weights, or from pairs written by hand.

The file is compiled, tried on every key of the source, proven for all keys, and its tests are run before it is
returned: a rule that does more than the examples is narrowed until it does not. The author has to review what the
rules do to keys that the source does not have (deeper models).
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from remapkit.authoring.count_layers import count_layers
from remapkit.authoring.derive import Draft, DraftRule, How, Notes, write_draft
from remapkit.authoring.fold_relation import is_rename
from remapkit.authoring.generalize import generalize, split_example
from remapkit.authoring.learned import Learned as Learned
from remapkit.authoring.learned import write_leftovers
from remapkit.authoring.pair_by_value import Pairing
from remapkit.authoring.relation import Relation
from remapkit.authoring.require_depths import find_depths, write_requirements
from remapkit.authoring.settle import Alike, By, Settled, settle_keys
from remapkit.authoring.settle_symmetric import settle_renames
from remapkit.authoring.spell_parts import is_countable, spell_parts
from remapkit.authoring.write_rules import check_name_and_source, write_head
from remapkit.diagnostics.diagnostic import Diagnostic
from remapkit.diagnostics.errors import InvalidRules, UsageError
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.plans.check import make_check
from remapkit.plans.make import make_plan
from remapkit.plans.moves import Move
from remapkit.proofs.keymap import key_maps
from remapkit.proofs.model import Level, Proof
from remapkit.proofs.prover import prove
from remapkit.rulefile.read import read_text
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.rules.requirements import find_unmet_requirements
from remapkit.rules.selftest import run_tests
from remapkit.tensors.spec import StateDictSpec, TensorSpec, find_name_problem

MAX_ROUNDS = 40
"""After this many rounds of narrowing, rules that are still wrong are written key by key."""


Replay = Callable[[Move], bool]
"""Whether a move gives the bytes that B has under its target."""


def learn(
    name: str,
    source: StateDictSpec,
    target: StateDictSpec,
    pairing: Pairing,
    source_ref: str | None = None,
    target_ref: str | None = None,
    relations: Sequence[Relation] = (),
    replay: Replay | None = None,
    *,
    reasons: Mapping[str, str] | None = None,
) -> Learned:
    """Derive the rule file for a pairing; its rules also decide pairs that values alone leave open.

    `relations` are targets that follow by operations; `replay` says whether a move gives B's bytes, and is asked for
    every move that a rule with operations makes; `reasons` says of other keys of B why nothing gives them. The file
    passes lint, is proven for all keys, and passes its tests.

    Raises `UsageError`: RK623 for an invalid name, RK625 if values pair no keys at all, RK655 if no rules can be
    proven, RK656 if none can express the pairs.

    >>> from remapkit.tensors.spec import StateDictSpec, TensorSpec
    >>> pairs = {f"layers.{n}.{p}.w": f"h.{n}.{p}_proj.w" for n in range(3) for p in "qk"}
    >>> one, other = (StateDictSpec(dict.fromkeys(keys, TensorSpec("F32", (8,)))) for keys in (pairs, pairs.values()))
    >>> print("\\n".join(learn("mine", one, other, Pairing(pairs, {}, (), ())).text.splitlines()[9:16]))
    tables:
      part: {q: q_proj, k: k_proj}
    <BLANKLINE>
    rules:
      # 6 keys: layer 0-2, part q and k; by value
      - id: layers.w
        path: 'layers.{layer:int}.{part:part}.w'
    """
    check_name_and_source(name, source)
    # The language cannot express the empty key, and checkpoints may not contain names with control characters.
    pairs = {fqn: other for fqn, other in pairing.pairs.items() if fqn and other and not find_name_problem(other)}
    copies = [
        Relation((fqn,), others, cut="copy", by=By.SIMPLEST.value if fqn in pairing.symmetric else "")
        for fqn, others in pairing.copies.items()
    ]
    relations = _select_relations([*relations, *copies])
    fitting = _Fitting(name, source, target, source_ref, target_ref, replay)
    taken = {fqn for relation in relations for fqn in relation.sources}
    pairs = {fqn: other for fqn, other in pairs.items() if fqn not in taken}
    pairs, settled = _settle_pairs(fitting, pairs, pairing, relations)
    if not pairs and not relations:
        raise UsageError(_report_no_pairs(source, target, pairing))
    text, parts = fitting.fit_by_proof(pairs, relations, settled, by_value=pairing.by_value)
    learned = _account_for_keys(text, source, target, pairing, parts, pairs, settled, relations)
    why = {fqn: reasons[fqn] for fqn in learned.only_b if fqn in reasons} if reasons else {}
    learned = replace(learned, reasons=why)
    left = "\n".join(write_leftovers(source, target, learned))
    return replace(learned, text=f"{text}{left}\n") if left else learned


def _select_relations(relations: Iterable[Relation]) -> list[Relation]:
    """Return the relations that rules can express together: no name is read or made by two of them."""
    sources: set[str] = set()
    targets: set[str] = set()
    kept = []
    for relation in relations:
        names = (*relation.sources, *relation.targets)
        if any(not fqn or find_name_problem(fqn) for fqn in names):
            continue
        if sources.isdisjoint(relation.sources) and targets.isdisjoint(relation.targets):
            kept.append(relation)
            sources.update(relation.sources)
            targets.update(relation.targets)
    return kept


def _settle_pairs(
    fitting: _Fitting, pairs: dict[str, str], pairing: Pairing, relations: Sequence[Relation]
) -> tuple[dict[str, str], dict[str, Settled]]:
    """Return the pairs including those that can be decided, and the evidence for the latter.

    Each round fits rules to the pairs so far and lets them, or weaker evidence, decide more keys. It ends: every
    round but the last takes at least one key out of `alike`. A round costs one fit: a few passes over the source.
    """
    source, target = fitting.source, fitting.target
    taken = {fqn for relation in relations for fqn in relation.sources}
    made = {fqn for relation in relations for fqn in relation.targets}
    alike = {fqn: others for fqn, others in _find_candidates(source, target, pairing, made).items() if fqn}
    alike = {fqn: others for fqn, others in alike.items() if fqn not in taken}
    settled = {
        fqn: Settled(pairs[fqn], By.GIVEN if is_equal else By.GIVEN_ONLY)
        for fqn, is_equal in pairing.given.items()
        if fqn in pairs
    }
    settled = settle_renames(pairs, pairing) | settled
    while alike:
        rules = _compile_text(fitting.fit_by_replay(pairs, alike).text, fitting.name) if pairs else None
        found = settle_keys(rules, pairs, alike, pairing)
        if not found:
            break
        settled |= found
        known = pairs | {fqn: each.target for fqn, each in found.items()}
        pairs = {fqn: known[fqn] for fqn in source if fqn in known}
        alike = {fqn: others for fqn, others in alike.items() if fqn not in settled}
    return pairs, settled


def _find_candidates(source: StateDictSpec, target: StateDictSpec, pairing: Pairing, made: Collection[str]) -> Alike:
    """Find the candidates of unpaired keys: equal bytes or, without values, equal dtype and shape; none of `made`."""
    if pairing.by_value:
        return _map_distinct(pairing.alike, lambda others: frozenset(others).difference(made))
    free: defaultdict[TensorSpec, set[str]] = defaultdict(set)
    for fqn in pairing.only_b:
        free[target[fqn]].add(fqn)
    return {fqn: free[source[fqn]] for fqn in pairing.only_a}


_T = TypeVar("_T")


def _map_distinct(alike: Mapping[str, tuple[str, ...]], made: Callable[[tuple[str, ...]], _T]) -> dict[str, _T]:
    """Apply `made` to the candidates of each key, once for all keys that share one tuple of candidates.

    Thousands of biases may all be equal to thousands of others: one call per key would be quadratic.
    """
    distinct = {id(others): others for others in alike.values()}
    found = {number: made(others) for number, others in distinct.items()}
    return {fqn: found[id(others)] for fqn, others in alike.items()}


def _account_for_keys(
    text: str,
    source: StateDictSpec,
    target: StateDictSpec,
    pairing: Pairing,
    parts: Sequence[DraftRule],
    pairs: Mapping[str, str],
    settled: Mapping[str, Settled],
    relations: Sequence[Relation],
) -> Learned:
    """Sort every key of either side into the fields of `Learned`; `parts` are the rules of the text."""
    written = {relation.sources[0]: relation for part in parts for relation in part.example.relations}
    covered = {fqn: other for fqn, other in pairs.items() if fqn in written and is_rename(written[fqn])}
    related = tuple(
        each for each in relations if written.get(each.sources[0]) in (each, spell_parts(each, source, target))
    )
    read = {fqn for each in related for fqn in each.sources}
    reached = {*covered.values(), *(fqn for each in related for fqn in each.targets)}
    unsaid = {fqn: other for fqn, other in {**pairing.pairs, **pairs}.items() if fqn not in covered}
    unsaid |= {fqn: each.targets[0] for each in relations if each not in related for fqn in each.sources}
    unsaid |= {fqn: others[0] for fqn, others in pairing.copies.items() if fqn not in read}
    unsaid = {fqn: unsaid[fqn] for fqn in source if fqn in unsaid and fqn not in read}
    told = {*pairs, *read, *unsaid}
    undecided = _map_distinct(
        {fqn: others for fqn, others in pairing.alike.items() if fqn not in told},
        lambda others: tuple(other for other in others if other not in reached),
    )
    only_a = tuple(fqn for fqn in pairing.only_a if fqn not in told)
    only_b = tuple(fqn for fqn in pairing.only_b if fqn not in reached)
    accounted = {*reached, *only_b}
    open_b = tuple(fqn for fqn in target if fqn not in accounted)
    kept = {fqn: decision for fqn, decision in settled.items() if fqn in covered}
    return Learned(
        *(text, covered, kept, undecided, only_a, only_b, open_b, unsaid, related), by_value=pairing.by_value
    )


def _report_no_pairs(source: StateDictSpec, target: StateDictSpec, pairing: Pairing) -> Diagnostic:
    title = f"no tensor of {source.name} equals exactly one tensor of {target.name} in dtype, shape and bytes"
    candidates = _map_distinct(pairing.alike, lambda others: join_words(others, 3, "or"))
    if pairing.alike:
        title = (
            f"{source.name} and {target.name} share only constants, or tensors that several keys hold: "
            "values pair no keys"
        )
    return Diagnostic(
        "RK625",
        title,
        notes=(list_names([f"{fqn}: {candidates[fqn]}" for fqn in pairing.alike]),) if pairing.alike else (),
        help=(
            "pass two checkpoints with the same weights: convert one with the converter that you use now",
            "or pass the pairs that you know as a JSON object, {source key: target key}: --pairs FILE",
        ),
    )


# ------------------------------------------------------------------------------------------------ a text that fits


@dataclass(frozen=True, slots=True)
class _Fitting:
    """Fits a text to two headers and the manifests that the file will declare for them."""

    name: str
    source: StateDictSpec
    target: StateDictSpec
    source_ref: str | None
    target_ref: str | None
    replay: Replay | None = None

    def fit_by_replay(self, pairs: Mapping[str, str], alike: Alike) -> Draft:
        """Return the most general text that maps the pairs, and other keys to equal values only. Not proven."""
        return self.fit_rules(_list_renames(pairs), alike, Notes(), proves=False)[0]

    def fit_by_proof(
        self,
        pairs: Mapping[str, str],
        relations: Sequence[Relation],
        settled: Mapping[str, Settled],
        *,
        by_value: bool,
    ) -> tuple[str, list[DraftRule]]:
        """Return the most general proven text that maps the pairs and relations and no other key, and its rules."""
        notes = Notes({fqn: each.by.value for fqn, each in settled.items()}, self.target.recorded, by_value)
        order = {fqn: number for number, fqn in enumerate(self.source)}
        wanted = sorted([*_list_renames(pairs), *relations], key=lambda each: order.get(each.sources[0], len(order)))
        draft, parts = self.fit_rules(wanted, {}, notes, proves=True)
        counted = count_layers(parts, self.source)
        if counted != parts:
            deeper = write_draft(counted, self.write_head_lines(counted), notes)
            # Nothing may change for A: if anything does, the indices stay those that were seen.
            if self.find_wrong_parts(deeper, counted, {}, proves=True) == (set(), ()):
                draft, parts = deeper, counted
        return self.require_depths(draft, parts, notes).text, parts

    def require_depths(self, draft: Draft, parts: Sequence[DraftRule], notes: Notes) -> Draft:
        """Return the draft with what its rules assume of the numbers of layers, which A meets."""
        depths = find_depths(parts, self.source)
        if not depths:
            return draft
        taken = re.findall(r"\w+", draft.text)
        lines, params = write_requirements(depths, taken)
        protected = write_draft(parts, [*self.write_head_lines(parts), *lines], notes, params)
        rules = _compile_text(protected.text, self.name)
        unmet = [*find_unmet_requirements(rules, self.source), *_find_problems(rules, self.source, self.target)[0]]
        assert not unmet, unmet
        return protected

    def fit_rules(
        self, wanted: Sequence[Relation], alike: Alike, notes: Notes, *, proves: bool
    ) -> tuple[Draft, list[DraftRule]]:
        """Write rules, find the wrong ones, narrow these, until none is wrong.

        It ends, since every step narrows: any index, these indices, fewer keys, one literal key, no index counted,
        nothing. That could take a round per key, so after `MAX_ROUNDS` wrong rules become single keys at once. A
        round costs a pass over the source and, with `proves`, one proof.
        """
        written = [each if is_countable(each) else self.spell_parts(each) for each in wanted]
        parts = [DraftRule(example) for example in generalize(written, loosely=proves)]
        problems: Sequence[Diagnostic] = ()
        for number in itertools.count():
            if not parts:
                raise UsageError(_report_no_rules(wanted, problems))
            draft = write_draft(parts, self.write_head_lines(parts), notes)
            wrong, problems = self.find_wrong_parts(draft, parts, alike, proves=proves)
            if not wrong:
                return draft, parts
            # Narrow the widest rules first: if a rule and a literal match the same key, the rule.
            wrong = {place for place in wrong if parts[place].example.is_loose} or wrong
            widest = min((parts[place].how for place in wrong), key=list(How).index)
            wrong = {place for place in wrong if parts[place].how is widest}
            if widest is How.LITERAL:
                wrong = {place for place in wrong if self.find_spelled(parts[place]) is not None} or wrong
            parts = [
                narrower
                for place, part in enumerate(parts)
                for narrower in (self.narrow_part(part, at_once=number >= MAX_ROUNDS) if place in wrong else (part,))
            ]
        raise AssertionError("counting does not end")

    def spell_parts(self, relation: Relation) -> Relation:
        return spell_parts(relation, self.source, self.target)

    def find_spelled(self, part: DraftRule) -> Relation | None:
        """Return what a rule makes without counting any index; None if it counts none."""
        spelled = self.spell_parts(part.example.relations[0])
        return spelled if spelled != part.example.relations[0] else None

    def narrow_part(self, part: DraftRule, *, at_once: bool) -> Iterator[DraftRule]:
        """Yield the replacement of a wrong rule: a narrower one, several with fewer keys, one that counts nothing."""
        if part.how is How.FREE and not at_once and not part.example.is_loose:
            yield DraftRule(part.example, How.TIGHT)
        elif len(part.example.relations) > 1:
            yield from (DraftRule(example) for example in split_example(part.example, singly=at_once))
        elif part.how is not How.LITERAL:
            yield DraftRule(part.example, How.LITERAL)
        elif (spelled := self.find_spelled(part)) is not None:
            # A rule that counts `e.{e:int}` also takes the experts that its relation leaves alone.
            yield from (DraftRule(example) for example in generalize([spelled]))

    def write_head_lines(self, parts: Sequence[DraftRule]) -> list[str]:
        written = [relation for part in parts for relation in part.example.relations]
        read = {fqn for relation in written for fqn in relation.sources}
        reached = {fqn for relation in written for fqn in relation.targets}
        return list(
            write_head(
                *(self.name, self.source, self.source_ref, self.target, self.target_ref),
                takes_all=all(fqn in read for fqn in self.source),
                reaches_all=all(fqn in reached for fqn in self.target),
            )
        )

    def find_wrong_parts(
        self, draft: Draft, parts: Sequence[DraftRule], alike: Alike, *, proves: bool
    ) -> tuple[set[int], Sequence[Diagnostic]]:
        """Return the numbers of the wrong draft rules, and their problems."""
        try:
            rules = _compile_text(draft.text, self.name)
        except InvalidRules as error:
            return _find_owners(draft, error.diagnostics), error.diagnostics
        written = [relation for part in parts for relation in part.example.relations]
        covered = {fqn: each.targets[0] if is_rename(each) else "" for each in written for fqn in each.sources}
        replayed = _find_wrong_rules(rules, self.source, covered, alike)
        if replayed or not proves:
            return {draft.ids[id] for id in replayed}, ()
        if wrong := self.find_wrong_operations(rules, draft, parts):
            return wrong, ()
        problems, ids = _find_problems(rules, self.source, self.target)
        if not problems:
            return set(), ()
        return {draft.ids[id] for id in ids} or _find_owners(draft, problems), problems

    def find_wrong_operations(self, rules: CompiledRules, draft: Draft, parts: Sequence[DraftRule]) -> set[int]:
        """Return the rules with operations that make anything else than what their relations make, bytes included."""
        wanted = {
            fqn: (place, relation)
            for place, part in enumerate(parts)
            for relation in part.example.relations
            if not is_rename(relation)
            for fqn in relation.targets
        }
        if not wanted:
            return set()
        read = {fqn: self.source[fqn] for fqn in self.source if rules.match(fqn)}
        plan = make_plan(rules, StateDictSpec(read, name=self.source.name))
        if plan.problems:
            return _find_owners(draft, plan.problems)
        makers = {place for place, _ in wanted.values()}
        moves = [move for move in plan.moves if draft.ids.get(move.rule.id) in makers]
        wrong: set[int] = set()
        for move in moves:
            place, relation = wanted.pop(move.target, (-1, None))
            is_meant = relation is not None and set(move.sources) == set(relation.sources)
            if place != draft.ids[move.rule.id] or not is_meant or move.spec != self.target[move.target]:
                wrong.add(draft.ids[move.rule.id])
        wrong.update(place for place, _ in wanted.values())
        if wrong or self.replay is None:
            return wrong
        return {draft.ids[move.rule.id] for move in moves if not self.replay(move)}


@lru_cache(maxsize=8)
def _compile_text(text: str, name: str) -> CompiledRules:
    """Compile a draft. A third of the drafts are one of the last few again: those that fit begin the next round."""
    return compile_rules(read_text(text, name))


def _list_renames(pairs: Mapping[str, str]) -> list[Relation]:
    return [Relation((fqn,), (other,)) for fqn, other in pairs.items()]


def _find_owners(draft: Draft, problems: Iterable[Diagnostic]) -> set[int]:
    """Return the draft rules that the problems refer to; all rules if the problems refer to none."""
    lines = {label.span.line for problem in problems for label in problem.labels}
    owners = {draft.owners[line - 1] for line in lines if line <= len(draft.owners)} - {-1}
    return owners or set(draft.owners) - {-1}


def _find_wrong_rules(
    rules: CompiledRules, source: StateDictSpec, covered: Mapping[str, str], alike: Alike
) -> set[str]:
    """Try every key; return the ids of rules that map a key to an unequal tensor, or two keys to one target.

    A key that only rules with operations may take is covered with an empty name.
    """
    wrong: set[str] = set()
    first: dict[str, str] = {}
    for fqn in source:
        matches = rules.match(fqn)
        wanted: Collection[str | None] = (covered[fqn],) if fqn in covered else alike.get(fqn, ())
        for match in matches:
            if match.rule.pipeline is not None:
                if covered.get(fqn) != "" or len(matches) > 1:
                    wrong.add(match.rule.id)
                continue
            again = not alike and first.setdefault(match.target or "", fqn) != fqn
            if match.target not in wanted or len(matches) > 1 or again:
                wrong.add(match.rule.id)
        if fqn in covered and not matches:
            raise AssertionError(f"the derived rules do not take {fqn}")
    return wrong


def find_text_problems(text: str, source: StateDictSpec, target: StateDictSpec) -> Sequence[Diagnostic]:
    """Return the findings of lint, of the proof over all keys and of the file's tests, for a whole file.

    >>> from remapkit.tensors.spec import StateDictSpec, TensorSpec
    >>> header = StateDictSpec({"a.w": TensorSpec("F32", (2,))})
    >>> rules = ["{id: a, path: '{x}.w', to: 'b.{x}'}", "{id: b, path: 'a.{y}', to: 'c.{y}'}"]
    >>> text = "\\n  - ".join(["remapkit: 1\\nname: t\\nrules:", *rules]) + "\\n"
    >>> [each.code for each in find_text_problems(text, header, header)]
    ['RK201']
    """
    try:
        rules = compile_rules(read_text(text))
    except InvalidRules as error:
        return error.diagnostics
    proof = prove(rules, header=source if rules.file.source_keys is not None else None)
    return _collect_problems(rules, source, target, proof)


def _find_problems(
    rules: CompiledRules, source: StateDictSpec, target: StateDictSpec
) -> tuple[list[Diagnostic], set[str]]:
    """Return the findings of lint, of the proof over all keys and of the file's tests, and the rule ids concerned."""
    proof = prove(rules, header=source if rules.file.source_keys is not None else None)
    found = key_maps(rules)
    ids = {found[number].rule_id for witness in proof.witnesses for number in witness.key_maps}
    ids.update(*proof.undecided)
    return _collect_problems(rules, source, target, proof), ids


def _collect_problems(
    rules: CompiledRules, source: StateDictSpec, target: StateDictSpec, proof: Proof
) -> list[Diagnostic]:
    problems = [*rules.warnings, *proof.findings, *run_tests(rules).problems]
    if rules.file.source_keys is not None:
        plan = make_plan(rules, source)
        checked = rules.file.target is not None and not plan.problems
        problems += make_check(plan, target).problems if checked else plan.problems
    if proof.level is not Level.ALL and not problems:
        problems.append(Diagnostic("RK655", f"the rules are not proven for all keys: {proof.verdict}"))
    return problems


def _report_no_rules(wanted: Sequence[Relation], problems: Sequence[Diagnostic]) -> Diagnostic:
    pairs = count_noun(len(wanted), "pair")
    if not problems:
        names = [f"{' + '.join(each.sources)} -> {' + '.join(each.targets)}" for each in wanted]
        help = ("write a rule by hand (docs/operations.md), or rename the keys in the checkpoint",)
        return Diagnostic(
            "RK656",
            f"no rule can express the {pairs}; nothing was written",
            notes=(list_names(names),),
            help=help,
        )
    return Diagnostic(
        "RK655",
        f"no rules for the {pairs} could be proven; nothing was written",
        notes=(list_names([problem.title for problem in problems]),),
        help=("please report this with both headers (`remapkit inspect CKPT --manifest FILE`)",),
    )
