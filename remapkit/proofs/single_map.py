"""One key map: does its target depend on the reading of a key, and can two keys have one target?

Two keys are compared by the *augmented* map: the target with the hidden outputs. Folded indices are hidden outputs,
and so is what the author admits to lose (`forget`, lossy tables). A collision of the augmented map is a fault; one of
the map without what is admitted is only what the author admits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from remapkit.patterns.template import MapItem
from remapkit.proofs import concrete
from remapkit.proofs.automata import SEPARATOR, find_two_shortest
from remapkit.proofs.budget import Exhausted
from remapkit.proofs.case import Case
from remapkit.proofs.cases import ProofContext, build_cases, merge_slots
from remapkit.proofs.commuting import commutes
from remapkit.proofs.correlated import (
    drop_admitted,
    find_confused,
    find_constants,
    find_correlated,
    list_assignments,
)
from remapkit.proofs.keymap import KeyMap, Made, readings
from remapkit.proofs.preferred import PreferredReading
from remapkit.proofs.product import find_pairs, find_shortest_shared_word, list_ambiguous_words, pick_signs, splits
from remapkit.proofs.tagged import TaggedNfa
from remapkit.proofs.transducer import Transducer

MAX_KEYS_TRIED = 100
"""The most keys with several readings that are tried, shortest first, if nothing else decides."""


@dataclass(frozen=True, slots=True)
class TwoReadings:
    """A key with two readings, and their targets."""

    key: str
    targets: tuple[str, str]
    readings: tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Collision:
    """Two keys with one target.

    `lost` is the part of the pattern that the target does not use, if that is the cause; `text` is the target, if it
    depends on more than the keys; `admitted`: the author admits the loss.
    """

    keys: tuple[str, ...]
    text: str | None = None
    lost: int | None = None
    admitted: bool = False


def _count_characters(collision: Collision) -> int:
    return sum(map(len, collision.keys))


class SingleMap:
    """The questions about one key map."""

    def __init__(self, key_map: KeyMap, context: ProofContext) -> None:
        self.key_map, self.context, self.budget = key_map, context, context.budget
        self.has_several_readings = False
        self.reading: PreferredReading | None = None
        self.cases = build_cases(key_map, context)

    def build(
        self,
        hidden: Sequence[str] = (),
        *,
        fixed: Iterable[Mapping[str, str]] = ({},),
        quotient: bool = False,
    ) -> tuple[Case, ...]:
        """Return loose cases, or those with some captures fixed."""
        return build_cases(
            self.key_map, self.context, hidden=hidden, fixed=fixed, quotient=quotient, reading=self.reading
        )

    def list_best(self, hidden: Sequence[str] = ()) -> tuple[Case, ...]:
        """Return exact cases if there are not too many, else loose ones; hidden outputs stand before the target."""
        try:
            return self.list_exact(hidden)
        except Exhausted:
            return self.build(hidden)

    def _build_net(self, cases: Sequence[Case], *, source: bool = False, entries: bool = False) -> TaggedNfa:
        net = TaggedNfa(self.context.letters)
        if source:
            net.add_sources(0, cases, self.context, entries=entries)
        else:
            net.add_targets(0, cases, self.context)
        return net

    # -------------------------------------------------------------------------------------------- readings

    def find_two_readings(self) -> TwoReadings | None:
        """Return a smallest key whose target depends on its reading, if some key has several readings."""
        self.has_several_readings = True
        cases = [merge_slots(case, self.context) for case in self.list_exact(self.key_map.folded)]
        in_order = all(case.in_order for case in cases)
        net = self._build_net(cases, source=True, entries=in_order)
        if not splits(net, 0, self.budget):
            return None
        if in_order:
            conflict = Transducer(net, 0, self.budget).find_conflict()
            if conflict is None:
                return None
            words: Iterable[str] = (conflict.text,)
        else:
            graph = find_pairs(net, 0, self.budget)
            if commutes(net, graph, self.budget):
                return None
            words = list_ambiguous_words(net, 0, graph, pick_signs(net.masks, net), self.budget)
        for key in islice(words, MAX_KEYS_TRIED):
            found = self._find_two_targets(key)
            if found is not None:
                return found
        raise Exhausted

    def _find_two_targets(self, key: str) -> TwoReadings | None:
        key_map = self.key_map
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
        return TwoReadings(key, (first[0], other[0]), (by_target[first], by_target[other]))

    # -------------------------------------------------------------------------------------------- two keys

    def list_exact(
        self, hidden: Sequence[str] = (), *, quotient: bool = False, also: Sequence[str] = ()
    ) -> tuple[Case, ...]:
        """Return cases with one word for each correlated capture, and each of `also`, as far as they are finite.

        `quotient`: of combinations that the author admits to confuse, only one.
        """
        key_map = self.key_map
        names = [
            name
            for name in dict.fromkeys((*find_correlated(key_map, hidden), *also))
            if (part := key_map.pattern.capture(name)) is not None and part.values is not None
        ]
        fixed: Iterable[Mapping[str, str]] = ({},)
        if names:
            fixed = list_assignments(key_map, names, self.budget)
            fixed = drop_admitted(key_map, hidden, fixed) if quotient else fixed
        return self.build(hidden, fixed=fixed, quotient=quotient)

    def find_collisions(self) -> Iterator[Collision]:
        """Yield keys with the same target; each kind of collision has its own smallest pair.

        Raises `Exhausted` behind those that were found if there may be others.
        """
        key_map = self.key_map
        if not key_map.has_source:
            yield from self._find_repeat()
        if key_map.identity or not key_map.has_source:
            return
        if self.has_several_readings:
            self.reading = PreferredReading(key_map.pattern, self.context.letters, self.budget)
        known = find_constants(key_map)
        folded = [name for name in key_map.folded if name not in known]
        forgotten = [name for name in key_map.forget if key_map.pattern.capture(name) and name not in known]
        admits = bool(forgotten) or any(
            isinstance(item, MapItem) and item.table in key_map.lossy for item in key_map.items or ()
        )
        hidden = tuple(dict.fromkeys((*folded, *forgotten)))
        losses = self._find_losses(self.build(folded))
        found, undecided = list[Collision](), False
        try:
            collision = self._find_collision(hidden, losses, quotient=admits)
            found += [collision] if collision is not None else []
            collision = self._find_collision(folded, losses, quotient=False) if admits else None
            if collision is not None and concrete.is_admitted(key_map, collision.keys):
                found.append(replace(collision, admitted=True))
            # Tables that share a capture: a pair may be admitted by one of them, and others may not be.
            undecided = any(not each.admitted and concrete.is_admitted(key_map, each.keys) for each in found)
        except Exhausted:
            undecided = True
        yield from self._join(losses, [each for each in found if each.admitted or not undecided])
        if undecided:
            raise Exhausted

    def _join(self, losses: dict[int, Collision], further: Sequence[Collision]) -> Iterator[Collision]:
        """Yield the losses, then further collisions; one that shows a loss as well stands for it."""
        key_map = self.key_map
        others: list[Collision] = []
        for each in further:
            find_part = concrete.find_lost_part if each.admitted else concrete.find_only_difference
            part = find_part(key_map, each.keys)
            if part is not None and part in losses:
                losses[part] = min(losses[part], each, key=_count_characters)
            else:
                others.append(replace(each, lost=concrete.find_lost_part(key_map, each.keys)))
        shown: dict[tuple[str, ...], Collision] = {}
        for part, each in sorted(losses.items()):
            admitted = key_map.pattern.parts[part].name in key_map.forget
            shown.setdefault(each.keys, replace(each, lost=part, admitted=admitted))
        for each in others:
            shown.setdefault(each.keys, each)
        yield from shown.values()

    def _find_repeat(self) -> Iterator[Collision]:
        """Yield a target that one entry of `add` has twice."""
        (made,) = self.key_map.items or ()
        assert isinstance(made, Made)
        seen: set[str] = set()
        for word in made.words:
            self.budget.spend(1)
            if word in seen:
                yield Collision((), word)
                return
            seen.add(word)

    def _find_losses(self, cases: Iterable[Case]) -> dict[int, Collision]:
        """Return each part of the pattern that the target does not use, with the smallest pair that differs in it.

        The slots of a case are independent, so the shortest words of all the others complete a pair.
        """
        best: dict[int, Collision] = {}
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
                    found, part = Collision((case.key(shortest), case.key(longer))), case.slots[slot].part
                    best[part] = min(best.get(part, found), found, key=_count_characters)
        return best

    def _find_collision(
        self, hidden: Sequence[str], losses: dict[int, Collision], *, quotient: bool
    ) -> Collision | None:
        """Return a smallest pair of keys with the same target and hidden outputs, or None.

        First with loose cases, which are few. If even these have no word with two runs with different tags, every
        part of a target can be told from it; then keys can share one only if two combinations of correlated captures
        give all parts the same text. Otherwise with exact cases. Pairs that differ only in one of the parts of
        `losses` are known already, but a smaller one may be found.
        """
        key_map = self.key_map
        if quotient and self.is_guided:
            lossy = [name for item in concrete.list_lossy_items(key_map) for name in item.names]
            cases = self.list_exact(hidden, also=lossy)
            return self._search(cases, hidden, losses, self._find_admitted(cases, lossy))
        cases = self.build(hidden, quotient=quotient)
        if not any(case.loose for case in cases):
            return self._search(cases, hidden, losses)
        if not splits(self._build_net(cases), 0, self.budget):
            confused = find_confused(key_map, hidden, self.budget, quotient=quotient)
            if confused is None:
                return None
            cases = self.build(hidden, fixed=confused, quotient=quotient)
            found = self._search(cases, hidden, losses)
            if found is not None:
                return found
        return self._search(self.list_exact(hidden, quotient=quotient), hidden, losses)

    @property
    def is_guided(self) -> bool:
        """Whether the words of a capture may depend on those of others: by a guard, a domain or the reading.

        Then a key of a lossy table cannot stand for all keys with its value, as others may go with other words.
        """
        return self.reading is not None or self.key_map.pattern.leaf is not None or self.context.domain is not None

    def _find_admitted(self, cases: Sequence[Case], lossy: Sequence[str]) -> Callable[[int, int], bool]:
        """Return whether keys of two cases, by their numbers, differ in what the author admits to lose in tables.

        Each case has one word for each capture that a lossy table uses.
        """
        words = [{slot.name: slot.word for slot in case.slots if slot.name in lossy} for case in cases]
        known: dict[tuple[tuple[str, ...], tuple[str, ...]], bool] = {}
        rows = [tuple(str(each.get(name)) for name in lossy) for each in words]

        def is_admitted(one: int, other: int) -> bool:
            pair = rows[one], rows[other]
            if pair not in known:
                left, right = (dict(zip(lossy, row, strict=True)) for row in pair)
                known[pair] = concrete.is_table_loss(self.key_map, left, right)
            return known[pair]

        return is_admitted

    def _search(
        self,
        cases: Sequence[Case],
        hidden: Sequence[str],
        losses: dict[int, Collision],
        is_admitted: Callable[[int, int], bool] | None = None,
    ) -> Collision | None:
        """Return the smallest pair of keys that share a target of these cases, or None.

        Each key has one reading in them, so two runs over one target with different tags are two keys.
        `is_admitted` says of which cases the keys do not count as pairs.
        """
        if not cases:
            return None
        # With some captures given, a guard may leave a part more words than without, and shorter ones in one case.
        further = []
        for part, each in self._find_losses(cases).items():
            if part in losses:
                losses[part] = min(losses[part], each, key=_count_characters)
            else:
                further.append(each)
        found = self._search_two_runs(cases, hidden, is_admitted)
        return min([*further, *([found] if found else [])], key=_count_characters, default=None)

    def _search_two_runs(
        self, cases: Sequence[Case], hidden: Sequence[str], is_admitted: Callable[[int, int], bool] | None
    ) -> Collision | None:
        net = self._build_net(cases)
        if not splits(net, 0, self.budget):
            return None
        word = find_shortest_shared_word(net, 0, 0, self.budget, is_admitted)
        if word is None:
            return None
        keys = word.read_keys(net)
        if keys[0] == keys[1] or any(case.loose for case in cases):
            self._replay(keys, hidden)
        return self._make_collision(keys, word.text, hidden)

    def _make_collision(self, keys: tuple[str, str], text: str, hidden: Sequence[str]) -> Collision:
        made = any(isinstance(item, Made) for item in self.key_map.items or ())
        return Collision(keys, text.split(SEPARATOR)[len(hidden)] if made else None)

    def _replay(self, keys: tuple[str, str], hidden: Sequence[str]) -> None:
        """Raise `Exhausted` unless two keys, found with loose cases, are two and have one target."""
        key_map = self.key_map
        read = [key_map.reader(key) for key in keys]
        if keys[0] == keys[1] or None in read:
            raise Exhausted
        one, other = (
            (key_map.target(key, captures or {}), *((captures or {})[name] for name in hidden))
            for key, captures in zip(keys, read, strict=True)
        )
        if one != other:
            raise Exhausted
