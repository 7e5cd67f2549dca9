"""The questions of a proof: which key maps share a key, split a key in two ways, or have colliding targets.

Every answer is a `Witness`: concrete keys and their targets. Nothing here depends on messages or rule files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal as OneOf

from remapkit.patterns.charset import singleton
from remapkit.patterns.pattern import Pattern
from remapkit.proofs import losses
from remapkit.proofs.automata import characters, concatenate, shortest_words
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.dfa import SubsetDfa, build_domain_dfa, walk
from remapkit.proofs.keymap import KeyMap, Made, PatternOf, readings
from remapkit.proofs.linear import (
    ProofContext,
    find_confused,
    find_dependent_captures,
    merge_captures,
    piece_of,
    variants,
    without_losses,
)
from remapkit.proofs.linear_map import LinearMap
from remapkit.proofs.product import (
    candidates,
    cheapest_of_line,
    cheapest_outside,
    find_shortest_shared_word,
    meets,
    splits,
    two_spellings,
)
from remapkit.proofs.transducer import find_conflict, transducer, words_cut_twice
from remapkit.proofs.union import NetBuilder, UnionNfa
from remapkit.proofs.witness import Answers, Fault, T, Witness

MAX_COMBINATIONS = 1000
"""The most combinations of dependent captures that are enumerated for comparison."""

MAX_FAULTS = 50
"""After this many faults or undecided questions, further pairs of rules are only counted."""

MAX_KEYS_TRIED = 100
"""The most keys with several splits that are tried, shortest first, if nothing else decides."""


class Questions:
    """All questions about a set of key maps; with a `domain`, only about the keys of its patterns."""

    def __init__(
        self, key_maps: Sequence[KeyMap], budget: Budget, domain: Sequence[Pattern] = (), *, passes: bool = False
    ) -> None:
        self.key_maps, self.budget, self.passes = key_maps, budget, passes
        more = [chars for pattern in domain for part in pattern.parts for chars in characters(part.node)]
        more += [singleton(sign) for pattern in domain for leaf in pattern.leaf or () for sign in f".{leaf}"]
        self.tools = ProofContext.for_key_maps(key_maps, more, budget)
        self.domain = build_domain_dfa(domain, self.tools.letters, self.tools.pieces, budget) if domain else None
        self.answers = Answers()
        self.found: dict[int, tuple[LinearMap, ...]] = {}
        self.several_cuts: set[int] = set()
        self.sources = UnionNfa(self.tools.letters)

    def run(self) -> Answers:
        """Answer all questions."""
        self._sources()
        self._ambiguities()
        targets = [number for number in self.found if self.key_maps[number].items is not None]
        exact = [number for number in targets if self._one_way(number)]
        self._targets(exact)
        if self.passes:
            self._pass_through(exact)
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

    def _sources(self) -> None:
        builder = NetBuilder(self.tools)
        self.sources = builder.net
        for number, key_map in enumerate(self.key_maps):
            found = self.ask("cut", (number,), None, variants, key_map, self.tools, self.domain)
            if found is None:
                continue
            if not found:
                self.answers.dead.append(number)
                continue
            if self.ask("cut", (number,), False, self._added, builder, number, found):
                self.found[number] = found

    def _added(self, builder: NetBuilder, number: int, found: tuple[LinearMap, ...]) -> bool:
        builder.sources(number, found)
        return True

    def _ambiguities(self) -> None:
        pairs = sorted(self.ask("ambiguous", (), set[tuple[int, int]](), candidates, self.sources, self.budget))
        first = self._first_of_each_source()
        for place, (one, other) in enumerate(pairs):
            if one not in first or other not in first:
                continue
            if self._enough():
                self.answers.unasked += len(pairs) - place
                return
            met = self.ask("ambiguous", (one, other), None, meets, self.sources, one, other, self.budget)
            if met:
                self.ask("ambiguous", (one, other), None, self._ambiguous, one, other)

    def _enough(self) -> bool:
        """Return whether there are so many faults or undecided questions that more would not help."""
        faults = sum(each.fault != "open" and not each.admitted for each in self.answers.witnesses)
        return faults >= MAX_FAULTS or sum(fault != "open" for fault, _ in self.answers.undecided) >= MAX_FAULTS

    def _first_of_each_source(self) -> set[int]:
        """Return one key map per pattern: a rule that writes several targets matches a key only once."""
        first: dict[PatternOf, int] = {}
        for number, key_map in enumerate(self.key_maps):
            first.setdefault(key_map.source, number)
        return set(first.values())

    def _ambiguous(self, one: int, other: int) -> None:
        meeting = find_shortest_shared_word(self.sources, one, other, self.budget)
        assert meeting is not None
        key = meeting.text
        targets = tuple(losses.render_target(self.key_maps[number], key) for number in (one, other))
        covered = tuple(a for a, b in ((one, other), (other, one)) if self._covers(b, a))
        self.answers.witnesses.append(Witness("ambiguous", (one, other), (key,), targets, covered=covered))

    def _covers(self, wide: int, narrow: int) -> bool:
        """Return whether one key map matches every key of the other; also False if deciding that takes too long."""
        pieces = [concatenate([piece_of(slot, self.tools) for slot in each.slots]) for each in self.found[wide]]
        self.budget.ask(self.budget.total // 100)
        try:
            matched = SubsetDfa(pieces, self.tools.letters, self.budget)
            return cheapest_outside(self.sources, narrow, matched, None, self.budget) is None
        except Exhausted:
            return False

    # -------------------------------------------------------------------------------------------- cuts

    def _one_way(self, number: int) -> bool:
        """Return whether every key has only one target; if the target depends on the split, add a witness."""
        key_map = self.key_maps[number]
        if key_map.identity or not self.ask("cut", (number,), True, splits, self.sources, number, self.budget):
            return True
        self.several_cuts.add(number)
        self.found[number] = self._merged(number, self.found[number])
        return self.ask("cut", (number,), False, self._cut_harmless, number)

    def _cut_harmless(self, number: int) -> bool:
        net = self._net(number, source=True)
        if not splits(net, number, self.budget):
            return True
        exact = self._exact(number)
        if all(variant.in_order for variant in exact):
            found = find_conflict(transducer(exact, self.tools), self.tools.letters, self.budget)
            words: Iterable[str] = () if found is None else (found.text,)
            harmless = found is None
        else:
            words, harmless = words_cut_twice(net, number, self.budget), False
        for tried, key in enumerate(words):
            if tried == MAX_KEYS_TRIED:
                break
            witness = self._two_targets(number, key)
            if witness is not None:
                self.answers.witnesses.append(witness)
                return False
        if not harmless:
            raise Exhausted
        return True

    def _two_targets(self, number: int, key: str) -> Witness | None:
        key_map = self.key_maps[number]
        by_target: dict[tuple[str, ...], tuple[str, ...]] = {}
        for reading in readings(key_map.pattern, key):
            by_target.setdefault(
                losses.identify_target(key_map, key, losses.bind_captures(key_map, reading)), reading
            )
        taken = key_map.reader(key)
        if len(by_target) < 2 or taken is None:
            return None
        first = losses.identify_target(key_map, key, taken)
        other = next(target for target in by_target if target != first)
        return Witness("cut", (number,), (key,), (first[0], other[0]), (by_target[first], by_target[other]))

    # -------------------------------------------------------------------------------------------- targets

    def _net(self, number: int, *, source: bool = False, exact: bool = False, admitted: bool = False) -> UnionNfa:
        found = self._exact(number) if exact else self._with_folded(number)
        builder = NetBuilder(self.tools, admitted=admitted)
        (builder.sources if source else builder.targets)(number, found)
        return builder.net

    def _with_folded(self, number: int) -> tuple[LinearMap, ...]:
        key_map = self.key_maps[number]
        if not key_map.folded:
            return self.found[number]
        return self._merged(number, variants(key_map, self.tools, self.domain, folded=True))

    def _exact(self, number: int, *, folded: bool = True) -> tuple[LinearMap, ...]:
        key_map = self.key_maps[number]
        if not find_dependent_captures(key_map):
            return self._with_folded(number) if folded else self.found[number]
        return self._merged(number, variants(key_map, self.tools, self.domain, exact=True, folded=folded))

    def _merged(self, number: int, found: tuple[LinearMap, ...]) -> tuple[LinearMap, ...]:
        """Return the linear maps, with captures merged if the key map can split a key in several ways."""
        return tuple(merge_captures(each, self.tools) for each in found) if number in self.several_cuts else found

    def _targets(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.ask("within", (number,), None, self._within, number)
        builder = NetBuilder(self.tools, admitted=True)
        for number in numbers:
            self.ask("across", (number,), None, builder.targets, number, self.found[number])
        net = builder.net
        pairs = sorted(self.ask("across", (), set[tuple[int, int]](), candidates, net, self.budget))
        for place, (one, other) in enumerate(pairs):
            left, right = self.key_maps[one], self.key_maps[other]
            if left.owner == right.owner or (left.identity and right.identity):
                continue
            if self._enough():
                self.answers.unasked += len(pairs) - place
                break
            self.ask("across", (one, other), None, self._across, net, one, other)
        self._within_rules(numbers)

    def _within_rules(self, numbers: Sequence[int]) -> None:
        """Compare the key maps of one rule and one branch, where folded captures count as part of the target."""
        by_source: dict[PatternOf, list[int]] = {}
        for number in numbers:
            by_source.setdefault(self.key_maps[number].source, []).append(number)
        for members in by_source.values():
            for place, one in enumerate(members):
                for other in members[place + 1 :]:
                    self.ask("within", (one, other), None, self._pair, one, other, "within")

    def _across(self, net: UnionNfa, one: int, other: int) -> None:
        if meets(net, one, other, self.budget):
            self._pair(one, other, "across")

    def _pair(self, one: int, other: int, fault: OneOf["within", "across"]) -> None:
        builder = NetBuilder(self.tools)
        for number in (one, other):
            builder.targets(number, self._exact(number, folded=fault == "within"))
        meeting = find_shortest_shared_word(builder.net, one, other, self.budget)
        if meeting is None:
            return
        keys = self._keys(builder.net, meeting.lines, meeting.positions, meeting.text)
        if keys[0] == keys[1] and fault == "across":
            # Both match this key, which is already reported as an error.
            return
        self._collision(fault, (one, other), keys, text=losses.get_shown_target(meeting.text, self.key_maps[one]))

    def _keys(
        self, net: UnionNfa, lines: tuple[int, int], positions: tuple[tuple[int, ...], tuple[int, ...]], text: str
    ) -> tuple[str, str]:
        return net.source(lines[0], positions[0], text), net.source(lines[1], positions[1], text)

    def _collision(
        self,
        fault: Fault,
        key_maps: tuple[int, ...],
        keys: tuple[str, str],
        lost: int | None = None,
        text: str | None = None,
    ) -> None:
        admitted = False
        if len(key_maps) == 1:
            key_map = self.key_maps[key_maps[0]]
            if lost is None:
                lost = losses.find_lost_part(key_map, keys)
            admitted = losses.is_admitted(key_map, keys)
            if any(each.key_maps == key_maps and each.keys == keys for each in self.answers.witnesses):
                return
        ordered = key_maps if len(key_maps) == 2 else key_maps * 2
        targets = tuple(
            losses.render_target(self.key_maps[number], key) for number, key in zip(ordered, keys, strict=True)
        )
        if text is not None and any(isinstance(item, Made) for item in self.key_maps[ordered[0]].items or ()):
            targets = (text, text)
        self.answers.witnesses.append(Witness(fault, key_maps, keys, targets, (), lost, admitted))

    # -------------------------------------------------------------------------------------------- within one key map

    def _within(self, number: int) -> None:
        """Find keys of one key map with the same target; each kind of collision has its own smallest pair.

        If the author declares a loss, the smallest pair may be a declared one and hide another. So pairs that agree
        in everything declared lossy are searched separately.
        """
        if self.key_maps[number].identity:
            return
        before = len(self.answers.witnesses)
        self._counted_twice(number)
        self._within_any(number)
        found = self.answers.witnesses[before:]
        if found and all(each.admitted for each in found):
            self._not_admitted(number)

    def _not_admitted(self, number: int) -> None:
        """Find the smallest pair that agrees in every capture that the author declares lossy."""
        key_map = self.key_maps[number]
        names = tuple(dict.fromkeys((*key_map.forget, *losses.list_lossy_captures(key_map))))
        found = [keys for each in losses.split_by_captures(key_map, names) for keys in self._collides(number, each)]
        found.sort(key=lambda keys: sum(map(len, keys)))
        told = next((keys for keys in found if not losses.is_admitted(key_map, keys)), None)
        if told is not None:
            self._collision("within", (number,), told)
        elif found:
            # Only other splits of the keys collide, which this search does not find.
            raise Exhausted

    def _collides(self, number: int, key_map: KeyMap) -> Iterator[tuple[str, str]]:
        """Yield small pairs of keys with the same target, of a key map that is a part of key map `number`."""
        found = variants(key_map, self.tools, self.domain, exact=True, folded=True)
        found = tuple(merge_captures(each, self.tools) for each in found) if number in self.several_cuts else found
        sources, targets = NetBuilder(self.tools), NetBuilder(self.tools)
        if not found:
            return
        sources.sources(number, found)
        targets.targets(number, found)
        if splits(sources.net, number, self.budget):
            yield from (keys for _, keys in self._losses(targets.net).values())
            if not all(variant.in_order for variant in found):
                raise Exhausted
            machine = transducer(found, self.tools, backwards=True)
            pair = find_conflict(machine, self.tools.letters, self.budget, by_written=True)
            if pair is not None:
                yield pair.written
            return
        yield from (keys for _, keys in self._losses(targets.net).values())
        if not splits(targets.net, number, self.budget):
            return
        meeting = find_shortest_shared_word(targets.net, number, number, self.budget)
        if meeting is None:
            return
        keys = self._keys(targets.net, meeting.lines, meeting.positions, meeting.text)
        if keys[0] == keys[1]:
            raise Exhausted
        yield keys

    def _counted_twice(self, number: int) -> None:
        """Find two spellings of one index, such as 1 and 01: `stack` sorts by the number."""
        key_map = self.key_maps[number]
        for name in key_map.folded:
            part = key_map.pattern.capture(name)
            assert part is not None
            pair = two_spellings(part.node, self.budget)
            if pair is None:
                continue
            keys = tuple(self._spell_key(key_map, name, word) for word in pair)
            inside = all(key_map.reader(key) is not None and self._inside(key) for key in keys)
            if not inside:
                # A guard on the whole key may exclude this pair, or every such pair.
                raise Exhausted
            self._collision("within", (number,), (keys[0], keys[1]), key_map.pattern.parts.index(part))

    def _spell_key(self, key_map: KeyMap, name: str, word: str) -> str:
        """Return the shortest key in which a capture is the given word."""
        texts = []
        for part in key_map.pattern.parts:
            piece = self.tools.pieces.of(part.node)
            texts.append(word if part.name == name else shortest_words(piece, self.tools.letters, 1, self.budget)[0])
        return "".join(texts)

    def _inside(self, key: str) -> bool:
        """Return whether a key is in the domain."""
        if self.domain is None:
            return True
        state = walk(self.domain, self.domain.start, key, self.tools.letters)
        return state is not None and self.domain.accepts(state)

    def _within_any(self, number: int) -> None:
        """Find the smallest pairs, declared or not."""
        key_map = self.key_maps[number]
        net = self._net(number, admitted=True)
        lossy = any(line.losses for line in net.lines)
        if (
            not lossy
            and find_dependent_captures(key_map)
            and (self.domain is not None or key_map.pattern.leaf is not None)
        ):
            # A guard may leave a slot one word per path, but several once the paths are enumerated.
            lossy = any(line.losses for line in self._net(number, exact=True).lines)
        if lossy:
            self._loss(number)
        if self._still_cut(number):
            self._inverse_conflict(number)
            return
        if losses.has_lossy_table(key_map) and splits(self._net(number, exact=True), number, self.budget):
            self._cheapest_within(number, blame=True)
        pair = find_confused(key_map, self.tools) if find_dependent_captures(key_map) else None
        if pair is not None and self._too_many(number):
            self._confused(number, pair)
        elif splits(net, number, self.budget) or pair is not None:
            net = self._net(number, exact=True, admitted=True)
            if splits(net, number, self.budget):
                self._cheapest_within(number, blame=False)

    def _too_many(self, number: int) -> bool:
        """Return whether there are too many combinations of captures to enumerate and compare."""
        captures, names = self.key_maps[number].pattern.captures, find_dependent_captures(self.key_maps[number])
        return math.prod(len(part.values or ()) for part in captures if part.name in names) > MAX_COMBINATIONS

    def _confused(self, number: int, pair: tuple[Mapping[str, str], Mapping[str, str]]) -> None:
        """Report the keys of two combinations that determine the same parts; the keys are otherwise equal."""
        builder = NetBuilder(self.tools, admitted=True)
        builder.targets(
            number, variants(self.key_maps[number], self.tools, self.domain, folded=True, exact=True, only=pair)
        )
        meeting = find_shortest_shared_word(builder.net, number, number, self.budget)
        if meeting is None:
            # A guard excludes one of them, and the other combinations were not examined.
            raise Exhausted
        self._collision("within", (number,), self._keys(builder.net, meeting.lines, meeting.positions, meeting.text))

    def _still_cut(self, number: int) -> bool:
        """Return whether keys have several splits even after merging (only asked if these are harmless)."""
        return splits(self._net(number, source=True), number, self.budget)

    def _inverse_conflict(self, number: int) -> None:
        """Check in the other direction that all readings of a target come from one key."""
        exact = self._exact(number)
        for admitted in (False, True) if losses.has_lossy_table(self.key_maps[number]) else (False,):
            found = exact if admitted else tuple(map(without_losses, exact))
            machine = transducer(found, self.tools, backwards=True)
            pair = find_conflict(machine, self.tools.letters, self.budget, by_written=True)
            if pair is not None:
                self._collision("within", (number,), pair.written)

    def _loss(self, number: int) -> None:
        """Find the smallest pairs that differ only in what the target omits: one per part of the pattern."""
        for part, (_, keys) in sorted(self._losses(self._net(number, exact=True)).items()):
            self._collision("within", (number,), keys, part)

    def _losses(self, net: UnionNfa) -> dict[int, tuple[int, tuple[str, str]]]:
        """Return the smallest pair, with its size, for each part that the targets of a net omit."""
        best: dict[int, tuple[int, tuple[str, str]]] = {}
        for line, each in enumerate(net.lines):
            if not each.losses:
                continue
            cost, text, positions = cheapest_of_line(net, line, self.budget)
            key = net.source(line, positions, text)
            for part, shorter, longer in each.losses:
                total = 2 * cost + len(longer) - len(shorter)
                if part not in best or total < best[part][0]:
                    net.shortest[line, part] = longer
                    best[part] = (total, (key, net.source(line, positions, text)))
                    net.shortest[line, part] = shorter
        return best

    def _cheapest_within(self, number: int, *, blame: bool) -> None:
        """Find the smallest pair; `blame`: lossy tables may cause it."""
        net = self._net(number, exact=True, admitted=not blame)
        meeting = find_shortest_shared_word(net, number, number, self.budget)
        if meeting is None:
            return
        keys = self._keys(net, meeting.lines, meeting.positions, meeting.text)
        if keys[0] == keys[1]:
            # The same key, split in two ways: neither a witness nor a proof.
            raise Exhausted
        self._collision("within", (number,), keys, text=losses.get_shown_target(meeting.text, self.key_maps[number]))

    # -------------------------------------------------------------------------------------------- pass-through

    def _pass_through(self, numbers: Sequence[int]) -> None:
        """Check whether an unmatched key can pass through onto the target of another key."""
        pieces = [
            concatenate([piece_of(slot, self.tools) for slot in variant.slots])
            for found in self.found.values()
            for variant in found
        ]
        matched = SubsetDfa(pieces, self.tools.letters, self.budget)
        for number in numbers:
            if not self.key_maps[number].identity:
                self.ask("open", (number,), None, self._open, number, matched)
            if self.answers.witnesses and self.answers.witnesses[-1].fault == "open":
                return

    def _open(self, number: int, matched: SubsetDfa) -> None:
        builder = NetBuilder(self.tools)
        builder.targets(number, self._exact(number, folded=False))
        found = cheapest_outside(builder.net, number, matched, self.domain, self.budget)
        if found is not None:
            text, positions, line = found
            key = builder.net.source(line, positions, text)
            self.answers.witnesses.append(Witness("open", (number,), (key, text), (text, text)))
