"""Holds what the proofs say against brute force."""

from __future__ import annotations

from prove_kit import MadeSet, Truth, brute

from remapkit.api.ruleset import RuleSet
from remapkit.proofs.budget import Budget
from remapkit.proofs.checks import Questions
from remapkit.proofs.keymap import key_maps
from remapkit.proofs.witness import Answers


def asked(rules: RuleSet, budget: int = 2_000_000) -> Answers:
    """The answers themselves, before anything is made of them."""
    return Questions(key_maps(rules), Budget(budget), rules.domain, passes=rules.unmatched == "keep").run()


def differences(made: MadeSet, rules: RuleSet, answers: Answers, length: int) -> list[str]:
    """Where answers and brute force disagree; each word says what, and for which rules."""
    return against(brute(made, length), rules, answers, length)


def against(truth: Truth, rules: RuleSet, answers: Answers, length: int) -> list[str]:
    """The same, for what is known to be true already."""
    return [*_missed(truth, answers), *_wrong(truth, rules, answers, length)]


def _missed(truth: Truth, answers: Answers) -> list[str]:
    """Faults that brute force has and the answers lack."""
    said = {(witness.fault, witness.key_maps) for witness in answers.witnesses}
    open_questions = {numbers for fault, numbers in answers.undecided}
    cut = {witness.key_maps[0] for witness in answers.witnesses if witness.fault == "cut"}
    unsure = cut | {number for numbers in open_questions for number in numbers}
    found = []
    for pair in truth.ambiguous:
        if ("ambiguous", pair) not in said and not unsure.issuperset(pair):
            found.append(f"missed: ambiguous {pair}")
    for number in truth.cut:
        if ("cut", (number,)) not in said and number not in unsure:
            found.append(f"missed: cut {number}")
    for number in truth.within:
        if ("within", (number,)) not in said and number not in unsure:
            found.append(f"missed: within {number}")
    for pair in truth.across:
        blocked = pair in truth.ambiguous or not unsure.isdisjoint(pair)
        if ("across", pair) not in said and not blocked:
            found.append(f"missed: across {pair}")
    sure = set(truth.open) - unsure
    if sure and not any(witness.fault == "open" for witness in answers.witnesses):
        found.append(f"missed: open {sorted(sure)}")
    return found


def _wrong(truth: Truth, rules: RuleSet, answers: Answers, length: int) -> list[str]:
    """Witnesses that are none, or not the smallest."""
    found = []
    ordered = rules.everything
    smallest_within: dict[int, int] = {}
    for witness in answers.witnesses:
        matches = [{id(match.rule): match for match in rules.match(key)} for key in witness.keys]
        wanted = [id(ordered[number]) for number in witness.key_maps]
        name = f"{witness.fault} {witness.key_maps} {witness.keys} {witness.targets}"
        size = sum(map(len, witness.keys))
        if witness.fault == "ambiguous":
            if not all(each in matches[0] for each in wanted):
                found.append(f"no witness: {name}")
            elif size <= length and truth.ambiguous.get(witness.key_maps) != size:
                found.append(f"not the shortest: {name}, {truth.ambiguous.get(witness.key_maps)}")
        elif witness.fault == "cut":
            if matches[0][wanted[0]].target != witness.targets[0] or witness.targets[0] == witness.targets[1]:
                found.append(f"no witness: {name}")
            elif size <= length and truth.cut.get(witness.key_maps[0]) != size:
                found.append(f"not the shortest: {name}, {truth.cut.get(witness.key_maps[0])}")
        elif witness.fault == "open":
            if matches[0][wanted[0]].target != witness.keys[1] or matches[1]:
                found.append(f"no witness: {name}")
            elif max(map(len, witness.keys)) <= length and truth.open.get(witness.key_maps[0], 0) != size:
                best = truth.open.get(witness.key_maps[0])
                found.append(f"not the smallest: {name}, {best}")
        else:
            hits = [matches[0].get(wanted[0]), matches[1].get(wanted[-1])]
            made = [hit and hit.target for hit in hits]
            if made[0] is None or made[0] != made[1] or witness.keys[0] == witness.keys[1]:
                found.append(f"no witness: {name}")
            elif witness.fault == "across":
                best = truth.across.get(witness.key_maps)
                # The other pair of lengths may be out of the oracle's sight.
                if best is not None and best < size and witness.key_maps not in truth.ambiguous:
                    found.append(f"not the smallest: {name}, {best}")
            else:
                number = witness.key_maps[0]
                smallest_within[number] = min(size, smallest_within.get(number, 999))
    for number, size in smallest_within.items():
        best = truth.within.get(number)
        if best is not None and best < size:
            found.append(f"not the smallest: within {number}: {size}, {best}")
    return found
