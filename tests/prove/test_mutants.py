"""Faults planted in the analyser: each is found by a named quick check, so each check is worth having.

Three of them are *equivalent*: what they take away only makes answers faster or nicer, and the test says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from claims import disagreements
from key_oracle import Truths
from rule_maker import seeded, write_text
from test_proofs import FAULTS, PASSES, PROVEN, ask, faults, key_map, rules

import remapkit
from remapkit.api.ruleset import RuleSet
from remapkit.diagnostics.errors import InvalidRules
from remapkit.proofs import automata as languages
from remapkit.proofs import checks as questions
from remapkit.proofs import dfa, losses
from remapkit.proofs import findings as verdicts
from remapkit.proofs import keymap as arrows_module
from remapkit.proofs import linear as variants
from remapkit.proofs import product as searches
from remapkit.proofs import prover as prove
from remapkit.proofs import transducer as delays
from remapkit.proofs import union as nets
from remapkit.proofs.automata import LetterClasses
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.checks import Questions
from remapkit.proofs.keymap import key_maps
from remapkit.proofs.model import Level
from remapkit.proofs.witness import Witness

# ------------------------------------------------------------------------------------------------ quick checks


RARE = (807, 1050, 5802, 6165, 7023, 10_578)
"""Seeds of files that show what few others do."""


@cache
def known(count: int = 260) -> tuple[tuple[RuleSet, Truths], ...]:
    """Random rule files that are judged rightly, and what is true of them, worked out once."""
    found = []
    for seed in (*range(190, 190 + count), *RARE):
        data = seeded(seed).file()
        try:
            rules, truths = remapkit.loads(write_text(data)), Truths(data, 3_000)
        except InvalidRules:
            continue
        if not disagreements(truths, rules.prove(header=truths.file.header)):
            found.append((rules, truths))
    return tuple(found)


def check_random_sets() -> bool:
    assert len(known()) > 200
    return not any(disagreements(truths, found.prove(header=truths.file.header)) for found, truths in known())


def check_proven() -> bool:
    return all(prove.prove(rules(*lines)).level is Level.ALL for lines in PROVEN.values())


def check_faults() -> bool:
    return all(
        [(fault, sorted(map(len, keys))) for fault, keys in faults(rules(*lines))]
        == [(fault, sorted(map(len, keys))) for fault, keys in expected]
        for lines, expected in FAULTS.values()
    )


def check_sampled_away() -> bool:
    """Classes of two characters that are never written literally: one sample of each is not enough."""
    lines = (rf"match: '{each}*(?P<x>{each}){each}*', to: '{{x}}'" for each in ("[ab]", "[^.]"))
    return all([fault for fault, _ in faults(rules(line))] == ["cut"] for line in lines)


def check_arrows() -> bool:
    stack = key_map("s", "x.{n:int}.{e:int}", "y.", "{n}", folded=("e",))
    split = [key_map("s", "a.{n:int}", to, "{n}") for to in ("q.", "k.")]
    same = [key_map("s", "a.{n:int}", "q.", "{n}", branch=number) for number in (0, 1)]
    twin = key_map("s", "z.{n:int}.{e:int}", "y.", "{n}", folded=("e",))
    plain = key_map("s", "x.{n:int}.{e:int}", "y.", "{n}")
    overlap = (key_map("s", "a.{n}", "x.", "{n}"), key_map("s", "a.{n:int}", "y.", "{n}", branch=1))
    answers = [ask(stack), ask(*split), ask(stack, twin), ask(plain), ask(*overlap), ask(*same)]
    both = [("ambiguous", (0, 1))]
    return answers == [[], [], [("within", (0, 1))], [("within", (0,))], both, both]


def check_budget() -> bool:
    found = rules("path: 'a.{n:int}.{rest:**}', to: 'b.{n}.{rest}'", "path: 'a.{n}.w', to: 'c.{n}'")
    counter = Budget(20_000)
    hard = [rf"match: '(?P<x>[ab]*a[ab]{{{n}}})', to: 'x{n}.{{x}}'" for n in (14, 15)]
    Questions(key_maps(rules(*hard, head=PASSES)), counter, passes=True).run()
    return prove.prove(found, budget=60).level is Level.UNDECIDED and counter.left >= -5_000


def check_domains() -> bool:
    found = rules("path: 'a.{n:int}.w', to: 'b.{n}.w'", head=PASSES)
    dead = rules("path: 'd.{n}', to: 'e.{n}'", head="unmatched: keep\nsource: {domain: ['a.{n}']}\n")
    either = (r"match: '(?P<a>a*)', to: 'x{a}'", r"match: '(?P<b>b*)', to: 'y{b}'")
    empty = rules(*either, head="source: {domain: [{match: 'a*'}]}\n")
    return (
        prove.prove(found, header=["a.0.w", "a.1.w", "c.w"]).level is Level.DOMAIN
        and prove.prove(found, header=["a.0.w", "b.7.w"]).level is Level.KEYS
        and "RK205" in [each.code for each in prove.prove(dead).findings]
        and [witness.keys for witness in prove.prove(empty).witnesses] == [("",)]
    )


def check_replay() -> bool:
    found = rules("path: 'a.{n}', to: 'b.{n}'", "path: 'c.{n}', to: 'd.{n}'")
    wrong = [
        Witness("ambiguous", (0, 1), ("a.0",), ("b.0", "")),
        Witness("across", (0, 1), ("a.0", "c.0"), ("b.0", "b.0")),
    ]
    return not verdicts.FindingWriter(found, key_maps(found), ()).write_findings(wrong, [], [], "...")[1]


def check_admitted() -> bool:
    line = r"match: '(?P<a>x*)\.(?P<b>x*)\.(?P<c>\d)', to: '{a}{b}', forget: [c]"
    lossy = rules("path: 'a.{s:t}', to: 'b.{s|t}'", head="tables:\n  t: {lossy: true, entries: {p: x, q: x}}\n")
    return prove.prove(rules(line)).level is Level.REFUTED and prove.prove(lossy).level is Level.KEYS


CHECKS: dict[str, Callable[[], bool]] = {
    "proven": check_proven,
    "faults": check_faults,
    "sampled away": check_sampled_away,
    "key_maps": check_arrows,
    "budget": check_budget,
    "domains": check_domains,
    "replay": check_replay,
    "admitted": check_admitted,
    "random sets": check_random_sets,
}


@pytest.mark.parametrize("name", CHECKS)
def test_without_a_fault_every_check_passes(name: str) -> None:
    assert CHECKS[name]()


# ------------------------------------------------------------------------------------------------ mutants


def _everyone(self: Questions) -> set[int]:
    return set(range(len(self.key_maps)))


def _first_of_each_rule(self: Questions) -> set[int]:
    first: dict[str, int] = {}
    for number, each in enumerate(self.key_maps):
        first.setdefault(each.rule_id, number)
    return set(first.values())


Patch = Callable[[pytest.MonkeyPatch], None]


def put(target: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(target, name, value)


def _one_sample(self: LetterClasses, mask: int) -> Iterator[str]:
    yield from (samples[0] for bit, samples in enumerate(self.samples) if mask >> bit & 1)


def _same_tag(self: nets.NetBuilder, piece: languages.Nfa, stretch: int) -> list[int]:
    if not self.net.stretches:
        self.net.stretches.append(0)
    return [0] * len(piece.masks)


def _free(patch: pytest.MonkeyPatch) -> None:
    """Targets cost nothing, so that the smallest pair is not looked for."""
    original = nets.NetBuilder._written
    patch.setattr(nets.NetBuilder, "_written", lambda self, each, variant: (original(self, each, variant)[0], 0))


def _without_wide(positions: Any, masks: Any, everything: int) -> Any:
    narrow: dict[int, list[int]] = {}
    wide: dict[int, list[int]] = {}
    for position in positions:
        mask = masks[position]
        (wide if mask & (mask - 1) else narrow).setdefault(mask, []).append(position)
    return list(narrow.items() or wide.items())


def _joined_without_nullable(patch: pytest.MonkeyPatch) -> None:
    original = languages.concatenate

    def joined(pieces: Any) -> Any:
        whole = original(pieces)
        whole.nullable = False
        return whole

    patch.setattr(variants, "concatenate", joined)
    patch.setattr(questions, "concatenate", joined)
    patch.setattr(dfa, "concatenate", joined)


def _not_merged_between(variant: Any, start: int, place: Any) -> int:
    """Merges what stands beside one another, whatever is between."""
    end = start
    if start in place:
        for number in range(start + 1, len(variant.slots)):
            if number in place and place[number] > place[end]:
                end = number
    return end


def _silent(self: Questions, fault: Any, numbers: Any, otherwise: Any, question: Any, *given: Any) -> Any:
    self.budget.ask()
    try:
        return question(*given)
    except Exhausted:
        return otherwise


def _states_only(self: Budget, steps: int) -> None:
    self.left -= 1 if steps else 0
    if self.left <= 0:
        raise Exhausted


def _first_reading(self: Questions, number: int, key: str) -> Witness | None:
    found = arrows_module.readings(self.key_maps[number].pattern, key)
    targets = [self.key_maps[number].target(key, losses.bind_captures(self.key_maps[number], each)) for each in found]
    other = next((n for n, target in enumerate(targets) if target != targets[-1]), None)
    if other is None:
        return None
    return Witness("cut", (number,), (key,), (str(targets[-1]), str(targets[other])), (found[-1], found[other]))


def _loose_ends(self: dfa.Product, ends: set[int]) -> languages.Nfa:
    return original_ending_in(self, set(self.ends))


original_ending_in = dfa.Product.ending_in
original_some_of_each = nets._some_of_each
original_variants = questions.variants
original_outside = questions.cheapest_outside

MUTANTS: dict[str, tuple[Patch, str]] = {
    "one sample of a class": (put(LetterClasses, "some", _one_sample), "sampled away"),
    "no cut is ever found": (put(questions, "splits", lambda *_: False), "faults"),
    "cuts are taken for harmless": (put(Questions, "_cut_harmless", lambda *_: True), "faults"),
    "stretches are not told apart": (put(nets.NetBuilder, "_tagged", _same_tag), "faults"),
    "delays are forgotten": (put(delays, "_delayed", lambda delay, one, other: ("", "")), "random sets"),
    "a difference is forgotten": (
        put(delays, "_delayed", lambda d, one, other: None if d is None else (d[0] + one, d[1] + other)),
        "proven",
    ),
    "transducers never disagree": (put(questions, "find_conflict", lambda *_, **__: None), "random sets"),
    "what is between merged captures is not looked at": (
        put(variants, "_run", _not_merged_between),
        "random sets",
    ),
    "nothing is merged": (put(questions, "merge_captures", lambda variant, tools: variant), "proven"),
    "no two key_maps are candidates": (put(questions, "candidates", lambda *_: set()), "faults"),
    "wide sets are lost beside narrow ones": (put(searches, "partition", _without_wide), "faults"),
    "no two key_maps meet": (put(questions, "meets", lambda *_: False), "faults"),
    "the empty key is not shared": (put(searches, "_empty", lambda *_: None), "faults"),
    "the empty word is lost where pieces are joined": (_joined_without_nullable, "random sets"),
    "targets cost nothing": (_free, "random sets"),
    "nothing is lost": (put(nets, "find_losses", lambda *_: []), "faults"),
    "only one shortest word": (put(variants, "shortest_words", lambda *_: [""]), "faults"),
    "captures never hang together": (
        lambda patch: (
            [patch.setattr(module, "find_dependent_captures", lambda _: ()) for module in (variants, questions)]
            and None
        ),
        "proven",
    ),
    "numbers are taken for one to one": (put(questions, "find_confused", lambda *_: None), "faults"),
    "exact variants are loose": (
        put(questions, "variants", lambda *given, exact=False, **rest: original_variants(*given, **rest)),
        "proven",
    ),
    "tables show one key of a value": (
        put(nets, "_some_of_each", lambda entries, count: original_some_of_each(entries, 1)),
        "admitted",
    ),
    "a loss that is admitted hides the others": (
        put(questions.Questions, "_cheapest_within", lambda self, number, *, blame: None),
        "admitted",
    ),
    "leaf guards are not looked at": (put(variants, "_guide", lambda key_map, tools, domain: domain), "random sets"),
    "guards are worked in without their ends": (put(dfa.Product, "ending_in", _loose_ends), "random sets"),
    "a domain without the empty key": (
        put(dfa.SubsetDfa, "accepts", lambda self, state: state and not self._sets[state].isdisjoint(self.ends)),
        "domains",
    ),
    "indices of known keys are not left free": (put(prove, "is_canonical_integer", lambda segment: False), "domains"),
    "what passes through is not looked at": (put(Questions, "_pass_through", lambda *_: None), "random sets"),
    "what passes through may be matched": (
        put(
            questions,
            "cheapest_outside",
            lambda net, key_map, matched, domain, budget: original_outside(
                net, key_map, dfa.SubsetDfa([], net.letters, budget), domain, budget
            ),
        ),
        "random sets",
    ),
    "overlaps within a rule are allowed": (put(Questions, "_first_of_each_source", _first_of_each_rule), "key_maps"),
    "two targets of a source are an ambiguity": (put(Questions, "_first_of_each_source", _everyone), "key_maps"),
    "folded captures are forgotten": (
        put(Questions, "_with_folded", lambda self, number: self.found[number]),
        "key_maps",
    ),
    "rules are not held against themselves": (put(Questions, "_within_rules", lambda *_: None), "key_maps"),
    "undecided is proven": (put(Questions, "ask", _silent), "budget"),
    "states are counted, not steps": (put(Budget, "spend", _states_only), "budget"),
    "witnesses are not replayed": (put(verdicts.FindingWriter, "is_replayed", lambda *_: True), "replay"),
    "the matcher's own reading is not asked for": (put(Questions, "_two_targets", _first_reading), "random sets"),
}

EQUIVALENT: dict[str, Patch] = {
    # Only pairs that cannot meet are saved: `meets` decides.
    "every two key_maps are candidates": put(
        questions, "candidates", lambda net, budget: set(itertools.combinations(sorted(net.starts), 2))
    ),
    # Only repeated work is saved.
    "pieces are not remembered": put(
        languages.Pieces, "of", lambda self, node: languages.Pieces(self.letters)._made(node)
    ),
    # Which of two characters of one class is shown is a matter of taste.
    "the least readable character": put(
        LetterClasses,
        "pick",
        lambda self, mask: next((sign for bit, sign in reversed(self._best) if bit & mask), "|"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known()
    plant, check = MUTANTS[name]
    plant(monkeypatch)
    try:
        passed = CHECKS[check]()
    except (AssertionError, IndexError, KeyError, StopIteration, RecursionError):
        passed = False
    assert not passed, f"{check!r} does not see it"


@pytest.mark.parametrize("name", EQUIVALENT)
def test_an_equivalent_change_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    EQUIVALENT[name](monkeypatch)
    assert all(check() for check in CHECKS.values())


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 20
