"""The questions of a proof: which key maps share a key, read a key in two ways, or have colliding targets.

Every answer is a `Witness`: concrete keys and their targets. Nothing here depends on messages or rule files.

Two keys of one key map are compared by its *augmented* map: the target with the hidden outputs. Folded indices are
hidden outputs, and so is what the author admits to lose (`forget`, lossy tables). A collision of the augmented map is
a fault; one of the map without what is admitted is only what the author admits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal as OneOf

from remapkit.patterns.pattern import Pattern
from remapkit.patterns.template import MapItem
from remapkit.proofs import concrete
from remapkit.proofs.automata import SEPARATOR, concatenate, find_two_shortest
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.case import Case
from remapkit.proofs.cases import (
    ProofContext,
    build_cases,
    drop_admitted,
    find_confused,
    find_constants,
    find_correlated,
    list_assignments,
    merge_copies,
    read_slot,
)
from remapkit.proofs.dfa import SubsetDfa
from remapkit.proofs.keymap import KeyMap, Made, PatternOf, readings
from remapkit.proofs.product import (
    find_candidates,
    find_cheapest_outside,
    find_pairs,
    find_shortest_shared_word,
    list_ambiguous_words,
    meets,
    pick_signs,
    splits,
)
from remapkit.proofs.tagged import TaggedNfa
from remapkit.proofs.transducer import Transducer
from remapkit.proofs.witness import Answers, Fault, T, Witness

MAX_FAULTS = 50
"""After this many faults or undecided questions, further pairs of rules are only counted."""

MAX_KEYS_TRIED = 100
"""The most keys with several readings that are tried, shortest first, if nothing else decides."""

LARGE_GROUP = 10
"""If more key maps than this match one key, further pairs of them are not examined: the key shows them all."""

Pair = tuple[str, str]


def _count_characters(keys: Pair) -> int:
    return len(keys[0]) + len(keys[1])


class Questions:
    """All questions about a set of key maps; with a `domain`, only about the keys of its patterns."""

    def __init__(
        self, key_maps: Sequence[KeyMap], budget: Budget, domain: Sequence[Pattern] = (), *, passes: bool = False
    ) -> None:
        self.key_maps, self.budget, self.domain, self.passes = key_maps, budget, domain, passes
        self.answers = Answers()
        self.cases: dict[int, tuple[Case, ...]] = {}
        self.read_in_several_ways: set[int] = set()

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
        targets = [number for number in self.cases if self.key_maps[number].items is not None]
        decided = [number for number in targets if self._has_one_target(number)]
        self._find_collisions(decided)
        if self.passes:
            self._find_passing(decided)
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
        key_map = self.key_maps[number]
        cases = build_cases(key_map, self.context)
        if not cases:
            self.answers.dead.append(number)
            return
        if key_map.has_source:
            self.sources.add_sources(number, cases, self.context)
        self.cases[number] = cases

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
        for number in self.cases:
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
            for case in self.cases[number]
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
        self.read_in_several_ways.add(number)
        return self.ask("cut", (number,), False, self._is_reading_harmless, number)

    def _merge(self, number: int, cases: tuple[Case, ...]) -> tuple[Case, ...]:
        """Return the cases, with copied slots merged if the key map reads keys in several ways."""
        if number not in self.read_in_several_ways:
            return cases
        return tuple(merge_copies(case, self.context) for case in cases)

    def _is_reading_harmless(self, number: int) -> bool:
        self.cases[number] = self._merge(number, self.cases[number])
        cases = self._list_exact(number, self.key_maps[number].folded)
        net = TaggedNfa(self.context.letters)
        net.add_sources(number, cases, self.context, entries=all(case.in_order for case in cases))
        if not splits(net, number, self.budget):
            return True
        if all(case.in_order for case in cases):
            conflict = Transducer(net, number, self.budget, backwards=False).find_conflict()
            if conflict is None:
                return True
            words: Iterable[str] = (conflict.text,)
        else:
            graph = find_pairs(net, number, self.budget)
            words = list_ambiguous_words(net, number, graph, pick_signs(net.masks, net), self.budget)
        for key in islice(words, MAX_KEYS_TRIED):
            witness = self._find_two_targets(number, key)
            if witness is not None:
                self.answers.witnesses.append(witness)
                return False
        raise Exhausted

    def _find_two_targets(self, number: int, key: str) -> Witness | None:
        key_map = self.key_maps[number]
        by_target: dict[tuple[str, ...], tuple[str, ...]] = {}
        for reading in readings(key_map.pattern, key):
            by_target.setdefault(
                concrete.identify_target(key_map, key, concrete.bind_captures(key_map, reading)), reading
            )
        taken = key_map.reader(key)
        if len(by_target) < 2 or taken is None:
            return None
        first = concrete.identify_target(key_map, key, taken)
        other = next(target for target in by_target if target != first)
        return Witness("cut", (number,), (key,), (first[0], other[0]), (by_target[first], by_target[other]))

    # -------------------------------------------------------------------------------------------- one key map

    def _list_exact(
        self, number: int, hidden: Sequence[str] = (), *, quotient: bool = False, also: Sequence[str] = ()
    ) -> tuple[Case, ...]:
        """Return cases with one word for each correlated capture and each of `also`, as far as they are finite.

        `quotient`: of combinations that the author admits to confuse, only one.
        """
        key_map = self.key_maps[number]
        names = [
            name
            for name in dict.fromkeys((*find_correlated(key_map, hidden), *also))
            if (part := key_map.pattern.capture(name)) is not None and part.values is not None
        ]
        fixed: Iterable[Mapping[str, str]] = ({},)
        if names:
            fixed = list_assignments(key_map, names, self.budget)
            fixed = drop_admitted(key_map, (*hidden, *also), fixed) if quotient else fixed
        return self._merge(number, build_cases(key_map, self.context, hidden=hidden, fixed=fixed, quotient=quotient))

    def _find_within(self, number: int) -> None:
        """Find keys of one key map with the same target; each kind of collision has its own smallest pair."""
        key_map = self.key_maps[number]
        if not key_map.has_source:
            self._find_repeat(number)
        if key_map.identity or not key_map.has_source:
            return
        known = find_constants(key_map)
        folded = [name for name in key_map.folded if name not in known]
        forgotten = [name for name in key_map.forget if key_map.pattern.capture(name) and name not in known]
        admits = bool(forgotten) or any(
            isinstance(item, MapItem) and item.table in key_map.lossy for item in key_map.items or ()
        )
        hidden = tuple(dict.fromkeys((*folded, *forgotten)))
        losses = self._find_losses(self._merge(number, build_cases(key_map, self.context, hidden=folded)))
        if admits and losses and number in self.read_in_several_ways:
            losses = self._replay_losses(number, losses, hidden)
        further: list[tuple[Pair, bool]] = []
        try:
            pair = self._find_pair(number, hidden, losses, quotient=admits)
            if pair is not None and admits and concrete.is_admitted(key_map, pair):
                # Tables that share a capture: this pair is admitted by one of them, but others may not be.
                raise Exhausted
            further += [(pair, False)] if pair is not None else []
            pair = self._find_pair(number, folded, losses, quotient=False) if admits else None
            further += [(pair, True)] if pair is not None and concrete.is_admitted(key_map, pair) else []
        finally:
            self._add_pairs(number, losses, further)

    def _add_pairs(self, number: int, losses: dict[int, Pair], further: Sequence[tuple[Pair, bool]]) -> None:
        """Report the losses, then further pairs, admitted or not; one that shows a loss as well stands for it."""
        key_map = self.key_maps[number]
        others = []
        for pair, admitted in further:
            part = (
                concrete.find_lost_part(key_map, pair) if admitted else concrete.find_only_difference(key_map, pair)
            )
            if part is not None and part in losses:
                losses[part] = min(losses[part], pair, key=_count_characters)
            else:
                others.append((pair, admitted))
        for part, pair in sorted(losses.items()):
            admitted = key_map.pattern.parts[part].name in key_map.forget
            self._add_collision("within", (number,), pair, lost=part, admitted=admitted)
        for pair, admitted in others:
            self._add_collision("within", (number,), pair, admitted=admitted)

    def _find_repeat(self, number: int) -> None:
        """Report a target that one entry of `add` has twice."""
        (made,) = self.key_maps[number].items or ()
        assert isinstance(made, Made)
        seen: set[str] = set()
        for word in made.words:
            self.budget.spend(1)
            if word in seen:
                self.answers.witnesses.append(Witness("within", (number,), (), (word, word)))
                return
            seen.add(word)

    def _replay_losses(self, number: int, losses: Mapping[int, Pair], hidden: Sequence[str]) -> dict[int, Pair]:
        """Return the losses that the matcher bears out, if it may read a key in another way than a case does.

        A pair that differs in a part that is not forgotten must do so for the matcher as well; otherwise others are
        tried, with every combination of words of the forgotten captures. Raises `Exhausted` if none does.
        """
        key_map = self.key_maps[number]
        found = {
            part: pair
            for part, pair in losses.items()
            if concrete.is_admitted(key_map, pair) == (key_map.pattern.parts[part].name in key_map.forget)
        }
        if len(found) < len(losses):
            for case in self._list_exact(number, hidden, also=hidden):
                for part, pair in self._find_losses([case]).items():
                    if not concrete.is_admitted(key_map, pair):
                        found[part] = min(found.get(part, pair), pair, key=_count_characters)
        if len(found) < len(losses):
            raise Exhausted
        return found

    def _find_losses(self, cases: Iterable[Case]) -> dict[int, Pair]:
        """Return each part of the pattern that the target does not use, with the smallest pair that differs in it.

        The slots of a case are independent, so the shortest words of all the others complete a pair.
        """
        best: dict[int, Pair] = {}
        for case in cases:
            if not case.unused:
                continue
            words = [
                [slot.word]
                if slot.piece is None
                else find_two_shortest(slot.piece, self.context.letters, self.budget)
                for slot in case.slots
            ]
            shortest = [str(each[0]) for each in words]
            for slot in case.unused:
                if len(words[slot]) > 1:
                    longer = [*shortest[:slot], str(words[slot][1]), *shortest[slot + 1 :]]
                    pair, part = (case.key(shortest), case.key(longer)), case.slots[slot].part
                    best[part] = min(best.get(part, pair), pair, key=_count_characters)
        return best

    def _find_pair(
        self, number: int, hidden: Sequence[str], losses: Mapping[int, Pair], *, quotient: bool
    ) -> Pair | None:
        """Return a smallest pair of keys of one key map with the same target and hidden outputs, or None.

        First with loose cases, which are few. If even these have no word with two runs with different tags, every
        part of a target can be told from it; then keys can share one only if two combinations of correlated captures
        give all parts the same text. Otherwise with exact cases. Pairs that differ only in a part of `losses` are
        known already.
        """
        key_map = self.key_maps[number]
        cases = self._merge(number, build_cases(key_map, self.context, hidden=hidden, quotient=quotient))
        if not any(case.loose for case in cases):
            try:
                return self._search_pair(number, cases, hidden, losses)
            except Exhausted:
                if not hidden:
                    raise
        elif not self._can_be_read_twice(number, cases):
            confused = find_confused(key_map, hidden, self.budget, quotient=quotient)
            if confused is None:
                return None
            cases = build_cases(key_map, self.context, hidden=hidden, fixed=confused)
            pair = self._search_pair(number, self._merge(number, cases), hidden, losses)
            if pair is not None:
                return pair
        try:
            return self._search_pair(number, self._list_exact(number, hidden, quotient=quotient), hidden, losses)
        except Exhausted:
            # Not in order because of the hidden outputs: with a word for each of them, what is left may be.
            exact = self._list_exact(number, hidden, quotient=quotient, also=hidden)
            return self._search_pair(number, exact, hidden, losses)

    def _can_be_read_twice(self, number: int, cases: Sequence[Case]) -> bool:
        if self._reads_in_several_ways(number, cases):
            return True
        net = TaggedNfa(self.context.letters)
        net.add_targets(number, cases, self.context)
        return splits(net, number, self.budget)

    def _reads_in_several_ways(self, number: int, cases: Sequence[Case]) -> bool:
        """Return whether a key has several readings, though all have one target."""
        if number not in self.read_in_several_ways:
            return False
        net = TaggedNfa(self.context.letters)
        net.add_sources(number, cases, self.context)
        return splits(net, number, self.budget)

    def _search_pair(
        self, number: int, cases: Sequence[Case], hidden: Sequence[str], losses: Mapping[int, Pair]
    ) -> Pair | None:
        """Return the smallest pair of keys that share a target of these cases, or None.

        If a key has one reading, two runs over one target with different tags are two keys. If it has several that
        all have one target, the map is still a function, and is injective iff its inverse is one.
        """
        if not cases:
            return None
        # With some captures given, a guard may leave a part more words than without.
        further = [pair for part, pair in self._find_losses(cases).items() if part not in losses]
        found = self._search_two_runs(number, cases, hidden)
        return min([*further, *([found] if found else [])], key=_count_characters, default=None)

    def _search_two_runs(self, number: int, cases: Sequence[Case], hidden: Sequence[str]) -> Pair | None:
        net = TaggedNfa(self.context.letters)
        net.add_targets(number, cases, self.context)
        if self._reads_in_several_ways(number, cases):
            if not all(case.in_order for case in cases):
                raise Exhausted
            conflict = Transducer(net, number, self.budget, backwards=True).find_conflict()
            return None if conflict is None else conflict.written
        if not splits(net, number, self.budget):
            return None
        word = find_shortest_shared_word(net, number, number, self.budget)
        assert word is not None
        pair = word.read_keys(net)
        if pair[0] == pair[1] or any(case.loose for case in cases):
            self._replay_pair(number, pair, hidden)
        return pair

    def _replay_pair(self, number: int, pair: Pair, hidden: Sequence[str]) -> None:
        """Raise `Exhausted` unless two keys, found with loose cases, are two and have one target."""
        key_map = self.key_maps[number]
        read = [key_map.reader(key) for key in pair]
        if pair[0] == pair[1] or None in read:
            raise Exhausted
        one, other = (
            (key_map.target(key, captures or {}), *((captures or {})[name] for name in hidden))
            for key, captures in zip(pair, read, strict=True)
        )
        if one != other:
            raise Exhausted

    def _add_collision(
        self,
        fault: Fault,
        key_maps: tuple[int, ...],
        keys: tuple[str, ...],
        *,
        lost: int | None = None,
        admitted: bool = False,
        text: str | None = None,
    ) -> None:
        if len(key_maps) == 1:
            if any(each.key_maps == key_maps and each.keys == keys for each in self.answers.witnesses):
                return
            if lost is None:
                lost = concrete.find_lost_part(self.key_maps[key_maps[0]], (keys[0], keys[1]))
        targets: tuple[str, ...] = (text, text) if text is not None else ()
        if text is None:
            ordered = key_maps if len(key_maps) == 2 else key_maps * 2
            pairs = zip(ordered, keys, strict=True)
            targets = tuple(concrete.render_target(self.key_maps[number], key) for number, key in pairs)
        self.answers.witnesses.append(Witness(fault, key_maps, keys, targets, (), lost, admitted))

    # -------------------------------------------------------------------------------------------- two key maps

    def _find_collisions(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.ask("within", (number,), None, self._find_within, number)
        net = TaggedNfa(self.context.letters)
        for number in numbers:
            self.ask("across", (number,), None, net.add_targets, number, self.cases[number], self.context)
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
        """Report the smallest pair of keys of two key maps with one target; within a rule, hidden outputs count."""
        net, loose = TaggedNfa(self.context.letters), False
        for number in (one, other):
            cases = self._list_best(number, self.key_maps[number].folded if fault == "within" else ())
            loose = loose or any(case.loose for case in cases)
            net.add_targets(number, cases, self.context)
        word = find_shortest_shared_word(net, one, other, self.budget)
        if word is None:
            return
        target = word.text.rpartition(SEPARATOR)[2]
        found = zip((one, other), word.read_keys(net), strict=True)
        keys = tuple(key for number, key in found if self.key_maps[number].has_source)
        if len(keys) == 2 and keys[0] == keys[1] and fault == "across":
            # Both match this key, which is already reported as an error.
            return
        if loose:
            for number, key in zip((one, other), keys, strict=False):
                self._replay_target(number, key, target)
        made = any(isinstance(item, Made) for number in (one, other) for item in self.key_maps[number].items or ())
        self._add_collision(fault, (one, other), keys, text=target if made else None)

    def _list_best(self, number: int, hidden: Sequence[str] = ()) -> tuple[Case, ...]:
        """Return exact cases if there are not too many, else loose ones."""
        try:
            return self._list_exact(number, hidden)
        except Exhausted:
            return self._merge(number, build_cases(self.key_maps[number], self.context, hidden=hidden))

    def _replay_target(self, number: int, key: str, target: str) -> None:
        """Raise `Exhausted` unless a key, found with loose cases, has the target."""
        key_map = self.key_maps[number]
        if key_map.has_source and not concrete.has_target(key_map, key, target):
            raise Exhausted

    # -------------------------------------------------------------------------------------------- pass-through

    def _find_passing(self, numbers: Sequence[int]) -> None:
        """Report the first rule onto whose targets an unmatched key can pass through, with its smallest pair."""
        readers = [number for number in self.cases if self.key_maps[number].has_source]
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
        cases = self._list_best(number)
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
