"""The questions of a proof: which key maps share a key, read a key in two ways, or have colliding targets.

Every answer is a `Witness`: concrete keys and their targets. Nothing here depends on messages or rule files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal as OneOf

from remapkit.patterns.pattern import Pattern
from remapkit.proofs import concrete
from remapkit.proofs.automata import SEPARATOR, concatenate
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.cases import ProofContext, read_slot
from remapkit.proofs.dfa import SubsetDfa
from remapkit.proofs.keymap import KeyMap, Made, PatternOf
from remapkit.proofs.product import (
    find_candidates,
    find_cheapest_outside,
    find_shortest_shared_word,
    meets,
    splits,
)
from remapkit.proofs.single_map import SingleMap
from remapkit.proofs.tagged import TaggedNfa
from remapkit.proofs.witness import Answers, Fault, T, Witness

MAX_FAULTS = 50
"""After this many faults or undecided questions, further pairs of rules are only counted."""

LARGE_GROUP = 10
"""If more key maps than this match one key, further pairs of them are not examined: the key shows them all."""


class Questions:
    """All questions about a set of key maps; with a `domain`, only about the keys of its patterns."""

    def __init__(
        self, key_maps: Sequence[KeyMap], budget: Budget, domain: Sequence[Pattern] = (), *, passes: bool = False
    ) -> None:
        self.key_maps, self.budget, self.domain, self.passes = key_maps, budget, domain, passes
        self.answers = Answers()
        self.maps: dict[int, SingleMap] = {}
        self.told: set[tuple[PatternOf, tuple[str, ...], int | None]] = set()

    def run(self) -> Answers:
        """Answer all questions."""
        everyone = tuple(range(len(self.key_maps)))
        context = self.ask("cut", (), None, ProofContext.for_key_maps, self.key_maps, self.domain, self.budget)
        if context is None:
            return self.answers
        self.context = context
        self.sources = TaggedNfa(context.letters)
        for number in everyone:
            self.ask("cut", (number,), None, self._add_source, number)
        self._find_ambiguities()
        targets = [number for number in self.maps if self.key_maps[number].items is not None]
        decided = [number for number in targets if self._has_one_target(number)]
        self._find_collisions(decided)
        if self.passes:
            self._find_passing(decided)
        self.answers.witnesses = [
            replace(each, rules=tuple(self.key_maps[number].rule_id for number in each.key_maps))
            for each in self.answers.witnesses
        ]
        return self.answers

    def ask(
        self, fault: Fault, key_maps: tuple[int, ...], otherwise: T, question: Callable[..., T], *given: object
    ) -> T:
        """Return the answer to one question, or `otherwise` if it takes too long (then it is undecided)."""
        self.budget.ask()
        try:
            return question(*given)
        except Exhausted:
            self.answers.undecided.append((fault, key_maps))
            return otherwise

    # -------------------------------------------------------------------------------------------- source keys

    def _add_source(self, number: int) -> None:
        single = SingleMap(self.key_maps[number], self.context)
        if not single.cases:
            self.answers.dead.append(number)
            return
        if single.key_map.has_source:
            self.sources.add_sources(number, single.cases, self.context)
        self.maps[number] = single

    def _find_ambiguities(self) -> None:
        candidates = self.ask("ambiguous", (), set[tuple[int, int]](), find_candidates, self.sources, self.budget)
        first = self._find_first_of_each_source()
        pairs = [pair for pair in sorted(candidates) if first.issuperset(pair)]
        groups: list[frozenset[int]] = []
        for place, (one, other) in enumerate(pairs):
            if any(one in group and other in group for group in groups):
                continue
            if self._has_enough():
                self.answers.unasked += len(pairs) - place
                return
            key = self.ask("ambiguous", (one, other), None, self._find_ambiguity, one, other)
            if key is not None:
                members = frozenset(number for number in first if self.key_maps[number].reader(key) is not None)
                if len(members) > LARGE_GROUP:
                    groups.append(members)
                    witnesses = self.answers.witnesses
                    witnesses[-1] = replace(witnesses[-1], matching=tuple(sorted(members)))

    def _has_enough(self) -> bool:
        """Return whether there are so many faults or undecided questions that more would not help."""
        faults = sum(each.fault != "open" and not each.admitted for each in self.answers.witnesses)
        return faults >= MAX_FAULTS or sum(fault != "open" for fault, _ in self.answers.undecided) >= MAX_FAULTS

    def _find_first_of_each_source(self) -> set[int]:
        """Return one key map per pattern: a rule that writes several targets matches a key only once."""
        first: dict[PatternOf, int] = {}
        for number in self.maps:
            if self.key_maps[number].has_source:
                first.setdefault(self.key_maps[number].source, number)
        return set(first.values())

    def _find_ambiguity(self, one: int, other: int) -> str | None:
        if not meets(self.sources, one, other, self.budget):
            return None
        word = find_shortest_shared_word(self.sources, one, other, self.budget)
        assert word is not None
        targets = tuple(concrete.render_target(self.key_maps[number], word.text) for number in (one, other))
        covered = tuple(narrow for narrow, wide in ((one, other), (other, one)) if self._covers(wide, narrow))
        self.answers.witnesses.append(Witness("ambiguous", (one, other), (word.text,), targets, covered=covered))
        return word.text

    def _covers(self, wide: int, narrow: int) -> bool:
        """Return whether one key map matches every key of the other; also False if deciding that takes too long."""
        self.budget.ask(self.budget.total // 500)
        try:
            matched = self._build_matched([wide])
            return find_cheapest_outside(self.sources, narrow, matched, None, self.budget) is None
        except Exhausted:
            return False

    def _build_matched(self, numbers: Iterable[int]) -> SubsetDfa:
        """Return the automaton of the keys that these key maps match."""
        pieces = [
            concatenate([read_slot(slot, self.context) for slot in case.slots])
            for number in numbers
            for case in self.maps[number].cases
        ]
        return SubsetDfa(pieces, self.context.letters, self.budget)

    # -------------------------------------------------------------------------------------------- readings

    def _has_one_target(self, number: int) -> bool:
        """Return whether every key has only one target; if the target depends on the reading, add a witness."""
        key_map = self.key_maps[number]
        if key_map.identity or not key_map.has_source:
            return True
        if not self.ask("cut", (number,), True, splits, self.sources, number, self.budget):
            return True
        return self.ask("cut", (number,), False, self._find_two_readings, number)

    def _find_two_readings(self, number: int) -> bool:
        found = self.maps[number].find_two_readings()
        if found is not None:
            self.answers.witnesses.append(Witness("cut", (number,), (found.key,), found.targets, found.readings))
        return found is None

    def _find_within(self, number: int) -> None:
        """Find keys of one key map with the same target."""
        key_map = self.key_maps[number]
        for found in self.maps[number].find_collisions():
            text = found.text
            targets = tuple(concrete.render_target(key_map, key) if text is None else text for key in found.keys)
            if not found.keys:
                targets = (str(text), str(text))
            # Another output of the rule, or another index that it makes, may show the same.
            told = key_map.source, found.keys, found.lost
            if told not in self.told:
                self.told.add(told)
                witness = Witness("within", (number,), found.keys, targets, (), found.lost, found.admitted)
                self.answers.witnesses.append(witness)

    # -------------------------------------------------------------------------------------------- two key maps

    def _find_collisions(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.ask("within", (number,), None, self._find_within, number)
        net = TaggedNfa(self.context.letters)
        for number in numbers:
            self.ask("across", (number,), None, net.add_targets, number, self.maps[number].cases, self.context)
        candidates = self.ask("across", (), set[tuple[int, int]](), find_candidates, net, self.budget)
        pairs = [pair for pair in sorted(candidates) if self._may_not_share(*pair)]
        for place, (one, other) in enumerate(pairs):
            if self._has_enough():
                self.answers.unasked += len(pairs) - place
                break
            self.ask("across", (one, other), None, self._find_shared_target, net, one, other)
        by_source: dict[PatternOf, list[int]] = {}
        for number in numbers:
            by_source.setdefault(self.key_maps[number].source, []).append(number)
        for members in by_source.values():
            for place, one in enumerate(members):
                for other in members[place + 1 :]:
                    self.ask("within", (one, other), None, self._compare, one, other, "within")

    def _may_not_share(self, one: int, other: int) -> bool:
        left, right = self.key_maps[one], self.key_maps[other]
        return left.owner != right.owner and not (left.identity and right.identity)

    def _find_shared_target(self, net: TaggedNfa, one: int, other: int) -> None:
        if meets(net, one, other, self.budget):
            self._compare(one, other, "across")

    def _compare(self, one: int, other: int, fault: OneOf["within", "across"]) -> None:
        """Report the smallest pair of keys of two key maps with one target.

        Within a rule hidden outputs count, and what is admitted is asked apart: a pair that differs in what the
        author says may be lost must not hide one that does not.
        """
        left, right = self.key_maps[one], self.key_maps[other]
        hidden = left.folded if fault == "within" else ()
        found = self._find_shared(one, other, fault, hidden)
        if found is None or (fault == "across" and len(found.keys) == 2 and found.keys[0] == found.keys[1]):
            # Two rules that match one key: that is already reported as an error.
            return
        admitted = fault == "within" and any(concrete.is_admitted(each, found.keys) for each in (left, right))
        lost = concrete.find_lost_part(left, found.keys) if admitted else None
        self.answers.witnesses.append(replace(found, lost=lost, admitted=admitted))
        if admitted:
            strict = self._find_shared(one, other, fault, concrete.list_losable(left, right))
            if strict is not None:
                self.answers.witnesses.append(strict)
            elif concrete.list_lossy_items(left) or concrete.list_lossy_items(right):
                # Keys with two values of a lossy table are not admitted by it, and may meet nonetheless.
                raise Exhausted

    def _find_shared(
        self, one: int, other: int, fault: OneOf["within", "across"], hidden: Sequence[str]
    ) -> Witness | None:
        """Return the smallest pair of keys of two key maps with one target, and the same hidden outputs, if any."""
        net, loose = TaggedNfa(self.context.letters), False
        for number in (one, other):
            cases = self.maps[number].list_best(hidden)
            loose = loose or any(case.loose for case in cases)
            net.add_targets(number, cases, self.context)
        word = find_shortest_shared_word(net, one, other, self.budget)
        if word is None:
            return None
        target = word.text.rpartition(SEPARATOR)[2]
        found = zip((one, other), word.read_keys(net), strict=True)
        keys = tuple(key for number, key in found if self.key_maps[number].has_source)
        if loose:
            for number, key in zip((one, other), keys, strict=False):
                self._replay_target(number, key, target)
        made = any(isinstance(item, Made) for number in (one, other) for item in self.key_maps[number].items or ())
        targets = [target, target]
        if not made:
            pairs = zip((one, other), keys, strict=True)
            targets = [concrete.render_target(self.key_maps[number], key) for number, key in pairs]
        return Witness(fault, (one, other), keys, tuple(targets))

    def _replay_target(self, number: int, key: str, target: str) -> None:
        """Raise `Exhausted` unless a key, found with loose cases, has the target."""
        key_map = self.key_maps[number]
        if key_map.has_source and not concrete.has_target(key_map, key, target):
            raise Exhausted

    # -------------------------------------------------------------------------------------------- pass-through

    def _find_passing(self, numbers: Sequence[int]) -> None:
        """Report the first rule onto whose targets an unmatched key can pass through, with its smallest pair."""
        readers = [number for number in self.maps if self.key_maps[number].has_source]
        matched = self.ask("open", (), None, self._build_matched, readers)
        if matched is None:
            return
        by_owner: dict[tuple[str, str], list[int]] = {}
        for number in numbers:
            if not self.key_maps[number].identity:
                by_owner.setdefault(self.key_maps[number].owner, []).append(number)
        for members in by_owner.values():
            found = [self.ask("open", (number,), None, self._find_open, number, matched) for number in members]
            witnesses = [each for each in found if each is not None]
            if witnesses:
                self.answers.witnesses.append(min(witnesses, key=lambda each: sum(map(len, each.keys))))
                return

    def _find_open(self, number: int, matched: SubsetDfa) -> Witness | None:
        cases = self.maps[number].list_best()
        net = TaggedNfa(self.context.letters)
        net.add_targets(number, cases, self.context)
        found = find_cheapest_outside(net, number, matched, self.context.domain, self.budget)
        if found is None:
            return None
        text, positions, line = found
        if not self.key_maps[number].has_source:
            return Witness("open", (number,), (text,), (text,))
        key = net.read_source(line, positions, text)
        if any(case.loose for case in cases):
            self._replay_target(number, key, text)
        return Witness("open", (number,), (key, text), (text, text))
