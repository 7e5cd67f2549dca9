r"""Cases: a key map as a union of maps whose captures are independent, which is what the searches can read.

Four things make captures depend on each other, and each has its price in the verdict:

* A guard on the whole key (`leaf:`, a domain). A deterministic automaton of the guard cuts a key in one way only, so
  one case for each way through its states is exact: no key belongs to two cases.
* The reading that the matcher takes, of a pattern with several (`preferred.py`): a guard on readings, split likewise.
* A finite map of several captures. It is one `Lookup` of several slots, exact, if nothing else uses them.
* A capture that the target uses several times (`{n//4}.{n%4}`, `{p}.{p}`): *correlated*. Either every use may be any
  of its words (`loose`: more targets than there are, so "proven" stands and a collision must be replayed), or, with
  `fixed`, there is one case for each combination of words: exact, and as costly as there are combinations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from remapkit.patterns.charset import Ranges, singleton
from remapkit.patterns.finite import build_words_node
from remapkit.patterns.pattern import CANONICAL, Part, Pattern
from remapkit.patterns.template import CaptureItem, MapItem, TextItem
from remapkit.patterns.tree import Chars, Repeat
from remapkit.proofs.automata import LetterClasses, Nfa, Pieces, characters, concatenate, reads
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.case import Case, Copy, Free, Hidden, Lookup, Slot, TargetPart
from remapkit.proofs.correlated import MAX_CASES, find_constants, find_correlated
from remapkit.proofs.dfa import Dfa, GuidedPiece, IntersectionDfa, LeafDfa, SubsetDfa, walk
from remapkit.proofs.keymap import KeyMap, Made
from remapkit.proofs.preferred import PreferredReading

_ZEROS = Repeat(Chars(singleton("0")), 0, None)


@dataclass(frozen=True, slots=True)
class ProofContext:
    """The data shared by all questions of one proof: the partition of the alphabet, the pieces, the budget."""

    letters: LetterClasses
    pieces: Pieces
    budget: Budget
    domain: Dfa | None = None

    @classmethod
    def for_key_maps(cls, key_maps: Iterable[KeyMap], domain: Sequence[Pattern], budget: Budget) -> ProofContext:
        """Make the context for key maps, and for the patterns of a domain if there are any."""
        sets = dict.fromkeys(chars for key_map in key_maps for chars in _list_sets(key_map, budget))
        for pattern in domain:
            sets.update(dict.fromkeys(chars for part in pattern.parts for chars in characters(part.node)))
            sets.update(dict.fromkeys(singleton(sign) for leaf in pattern.leaf or () for sign in f".{leaf}"))
        budget.spend(sum(map(len, sets)))
        letters = LetterClasses(sets)
        pieces = Pieces(letters, budget)
        guide = SubsetDfa([_build_pattern(each, pieces) for each in domain], letters, budget) if domain else None
        return cls(letters, pieces, budget, guide)


def _list_sets(key_map: KeyMap, budget: Budget) -> Iterator[Ranges]:
    """Yield the sets of characters that the patterns and targets of a key map distinguish."""
    text: set[str] = set()
    for part in key_map.pattern.parts:
        if part.values is not None:
            budget.spend(len(part.values))
            text.update(*part.values)
        if part.values is None or len(part.values) > 1:
            yield from characters(part.node)
    if key_map.pattern.leaf is not None:
        text.update(".", *key_map.pattern.leaf)
    if key_map.folded:
        text.add("0")
        yield from characters(CANONICAL)
    for item in key_map.items or ():
        if isinstance(item, TextItem):
            text.update(item.text)
        elif isinstance(item, Made):
            yield from characters(item.node)
        elif isinstance(item, MapItem):
            budget.spend(len(item.mapping))
            text.update(*item.mapping.values())
    yield from map(singleton, sorted(text))


def _build_pattern(pattern: Pattern, pieces: Pieces) -> Nfa:
    """Build one piece for the keys of a pattern."""
    whole = concatenate([pieces.of(part.node) for part in pattern.parts])
    if pattern.leaf is None:
        return whole
    guide = LeafDfa(pattern.leaf, pieces.letters, pieces.budget)
    guided = GuidedPiece(whole, guide, guide.start, pieces.budget)
    return guided.ending_in({end for end in guided.ends if guide.accepts(end)})


# ------------------------------------------------------------------------------------------------ building cases


def build_cases(
    key_map: KeyMap,
    context: ProofContext,
    *,
    hidden: Sequence[str] = (),
    fixed: Iterable[Mapping[str, str]] = ({},),
    quotient: bool = False,
    reading: PreferredReading | None = None,
) -> tuple[Case, ...]:
    """Return the cases of a key map: loose ones, or those with the words in `fixed` for some captures.

    `hidden` are captures that count as part of the target: a folded one as an integer, the others as text. They stand
    before the target, so that runs which differ there part at once. With `quotient`, lossy tables have only one key
    for each value; with `reading`, no key has two readings.
    """
    context.budget.spend(1)
    guides = [each for each in (reading, _find_guide(key_map, context)) if each is not None]
    constants = find_constants(key_map)
    found: list[Case] = []
    for words in fixed:
        known = {**constants, **words}
        for slots in _list_slots(key_map, known, hidden, context):
            case = Case(slots, *_build_target(key_map, known, slots, hidden, context))
            split: Iterable[Case] = [case]
            for guide in guides:
                split = [part for each in split for part in _split_by_guide(each, guide, context)]
            found += split
            if len(found) > MAX_CASES:
                raise Exhausted
    return tuple(map(_take_one_key_per_value, found)) if quotient else tuple(found)


def _take_one_key_per_value(case: Case) -> Case:
    """Return the case with the shortest key of each value of its lossy tables.

    Two keys that agree in such a value are then one run, so any two runs left are not what the author admits.
    """
    target: list[TargetPart] = []
    for part in case.target:
        if isinstance(part, Lookup) and part.lossy:
            by_text: dict[str, tuple[str, ...]] = {}
            for words, text in sorted(part.entries, key=lambda entry: sum(map(len, entry[0]))):
                by_text.setdefault(text, words)
            part = replace(part, entries=tuple((words, text) for text, words in by_text.items()))
        target.append(part)
    return replace(case, target=tuple(target))


def _find_guide(key_map: KeyMap, context: ProofContext) -> Dfa | None:
    if key_map.pattern.leaf is None:
        return context.domain if key_map.has_source else None
    leaf = LeafDfa(key_map.pattern.leaf, context.letters, context.budget)
    return leaf if context.domain is None else IntersectionDfa(leaf, context.domain, context.budget)


def _list_slots(
    key_map: KeyMap, known: Mapping[str, str], hidden: Sequence[str], context: ProofContext
) -> Iterator[tuple[Slot, ...]]:
    """Yield the slots of each way to write the hidden integers: in all other respects there is one."""
    ways: list[list[tuple[Slot, ...]]] = []
    for number, part in enumerate(key_map.pattern.parts):
        context.budget.spend(1)
        word = known.get(part.name) if part.name is not None else None
        if word is None and part.values is not None and len(part.values) == 1:
            word = part.values[0]
        if word is not None:
            ways.append([(Slot(number, part.name, word, None),)])
        elif part.name in hidden and part.name in key_map.folded and not _is_canonical(part):
            ways.append(_split_zeros(number, part, context))
        else:
            ways.append([(Slot(number, part.name, None, context.pieces.of(part.node)),)])
    if key_map.identity:
        whole = concatenate([read_slot(slot, context) for way in ways for slot in way[0]])
        yield (Slot(0, None, None, whole),)
        return
    for chosen in itertools.product(*ways):
        yield tuple(itertools.chain.from_iterable(chosen))


def _is_canonical(part: Part) -> bool:
    """Return whether no two words of a part are one integer, as far as can be seen at a glance."""
    if part.values is not None:
        return all(word == "0" or word[:1] != "0" for word in part.values)
    return part.node == CANONICAL


def _split_zeros(number: int, part: Part, context: ProofContext) -> list[tuple[Slot, ...]]:
    """Return an integer's leading zeros and the rest as slots: the rest is the integer, and the zeros are not used.

    `\\d+` is one case: any zeros, then a canonical integer. A language that ties the two together, such as `\\d{3}`,
    is one case for each way to cut its words.
    """
    pieces = context.pieces
    zeros = Slot(number, None, None, pieces.of(_ZEROS))
    digits = Slot(number, part.name, None, pieces.of(CANONICAL))
    guide = SubsetDfa([pieces.of(part.node)], context.letters, context.budget)
    return [case.slots for case in _split_by_guide(Case((zeros, digits), ()), guide, context)]


def read_slot(slot: Slot, context: ProofContext) -> Nfa:
    """Return the language of a slot, one word or many."""
    if slot.piece is not None:
        return slot.piece
    assert slot.word is not None
    return context.pieces.word(slot.word)


def _build_target(
    key_map: KeyMap,
    known: Mapping[str, str],
    slots: Sequence[Slot],
    hidden: Sequence[str],
    context: ProofContext,
) -> tuple[tuple[TargetPart, ...], tuple[str, ...]]:
    """Return the hidden outputs and the target as parts, and the captures that are used more than once."""
    if key_map.identity:
        return (Copy(0),), ()
    place = {slot.name: number for number, slot in enumerate(slots) if slot.name is not None}
    correlated = [name for name in find_correlated(key_map, hidden) if name not in known]
    taken: set[str] = set()
    target: list[TargetPart] = []

    def copy(name: str) -> TargetPart:
        if name in known:
            return known[name]
        slot = slots[place[name]]
        if name not in taken:
            taken.add(name)
            return Copy(place[name])
        assert slot.piece is not None
        return Free(slot.piece)

    for name in hidden:
        target += [copy(name), Hidden()]
    for item in key_map.items or ():
        if isinstance(item, TextItem):
            target.append(item.text)
        elif isinstance(item, Made):
            target.append(Free(context.pieces.of(item.node)))
        elif isinstance(item, CaptureItem):
            target.append(copy(item.name))
        else:
            lossy = item.table in key_map.lossy
            target.append(_look_up(item, known, place, correlated, context, lossy=lossy))
    return tuple(target), tuple(correlated)


def _look_up(
    item: MapItem,
    known: Mapping[str, str],
    place: Mapping[str, int],
    correlated: Sequence[str],
    context: ProofContext,
    *,
    lossy: bool,
) -> TargetPart:
    names = [name for name in dict.fromkeys(item.names) if name not in known]
    if not names:
        return item.mapping[tuple([known[name] for name in item.names])]
    context.budget.spend(len(item.mapping))
    rows: dict[tuple[str, ...], str] = {}
    if names == list(item.names):
        rows.update(item.mapping)
        return _make_lookup(names, rows, place, correlated, context, lossy=lossy)
    for values, text in item.mapping.items():
        row = dict(zip(item.names, values, strict=True))
        if all(known.get(name, value) == value for name, value in row.items()):
            rows[tuple([row[name] for name in names])] = text
    return _make_lookup(names, rows, place, correlated, context, lossy=lossy)


def _make_lookup(
    names: Sequence[str],
    rows: Mapping[tuple[str, ...], str],
    place: Mapping[str, int],
    correlated: Sequence[str],
    context: ProofContext,
    *,
    lossy: bool,
) -> TargetPart:
    if names[0] in correlated:
        return Free(context.pieces.of(build_words_node(tuple(sorted(set(rows.values()))))))
    return Lookup(tuple(place[name] for name in names), tuple(rows.items()), lossy)


# ------------------------------------------------------------------------------------------------ guards


def _split_by_guide(case: Case, guide: Dfa | PreferredReading, context: ProofContext) -> Iterator[Case]:
    """Yield one case for each way through the guide that matters to the slots behind it.

    The guide is deterministic, so a reading of a key has one way: no reading belongs to two cases. Invariant of
    `ways`: `state` stands for all states at this boundary from which the same ways lead on (`groups`), so that the
    number of cases is that of the ways that differ, not of the states.
    """
    slots = case.slots
    walked, guided, groups = _find_boundaries(slots, guide, context)

    def ways(number: int, state: int, before: tuple[Slot, ...]) -> Iterator[tuple[Slot, ...]]:
        context.budget.spend(1)
        if number == len(slots):
            yield before
            return
        slot = slots[number]
        if slot.word is not None:
            yield from ways(number + 1, walked[number, state], (*before, slot))
            return
        piece = guided[number, state]
        by_group: dict[object, set[int]] = {}
        for end in sorted(piece.ends):
            if end in groups[number + 1]:
                by_group.setdefault(groups[number + 1][end], set()).add(end)
        for ends in by_group.values():
            yield from ways(number + 1, min(ends), (*before, replace(slot, piece=piece.ending_in(ends))))

    if guide.start in groups[0]:
        for found in ways(0, guide.start, ()):
            target = tuple(_narrow(part, found, context) for part in case.target)
            yield Case(found, target, case.loose)


def _find_boundaries(
    slots: Sequence[Slot], guide: Dfa | PreferredReading, context: ProofContext
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], GuidedPiece], list[dict[int, object]]]:
    """Return the guide's states between slots: after words, after variables, and which are alike from there on."""
    walked: dict[tuple[int, int], int] = {}
    guided: dict[tuple[int, int], GuidedPiece] = {}
    reached = [{guide.start}]
    for number, slot in enumerate(slots):
        following: set[int] = set()
        here = guide.in_part(slot.part) if isinstance(guide, PreferredReading) else guide
        for state in sorted(reached[-1]):
            if slot.piece is None:
                assert slot.word is not None
                context.budget.spend(len(slot.word) + 1)
                to = walk(here, state, slot.word, context.letters)
                if to is not None:
                    walked[number, state] = to
                    following.add(to)
            else:
                guided[number, state] = GuidedPiece(slot.piece, here, state, context.budget)
                following |= guided[number, state].ends
        reached.append(following)
    groups: list[dict[int, object]] = [{} for _ in reached]
    groups[-1] = {state: True for state in reached[-1] if guide.accepts(state)}
    for number in range(len(slots) - 1, -1, -1):
        for state in reached[number]:
            if (number, state) in walked:
                if walked[number, state] in groups[number + 1]:
                    groups[number][state] = groups[number + 1][walked[number, state]]
            elif (number, state) in guided and not guided[number, state].ends.isdisjoint(groups[number + 1]):
                groups[number][state] = (number, state)
    return walked, guided, groups


def _narrow(part: TargetPart, slots: Sequence[Slot], context: ProofContext) -> TargetPart:
    """Return a lookup without the entries that the guard excludes."""
    if not isinstance(part, Lookup):
        return part
    words: list[dict[str, bool]] = [{} for _ in part.slots]

    def is_read(column: int, word: str) -> bool:
        if word not in words[column]:
            piece = slots[part.slots[column]].piece
            assert piece is not None
            context.budget.spend(len(word) + 1)
            words[column][word] = reads(piece, word, context.letters)
        return words[column][word]

    entries = tuple(
        entry for entry in part.entries if all(is_read(column, word) for column, word in enumerate(entry[0]))
    )
    return replace(part, entries=entries)


# ------------------------------------------------------------------------------------------------ merging


def merge_slots(case: Case, context: ProofContext) -> Case:
    """Merge each run of slots that the target copies unchanged into one slot, and each run that it does not use.

    `(.*)\\.(.*)` to `{a}.{b}` can be cut in several ways, which does not matter: as one slot it has one.
    """
    place = {part.slot: number for number, part in enumerate(case.target) if isinstance(part, Copy)}
    unused = set(case.unused)
    slots: list[Slot] = []
    taken: dict[int, int] = {}
    gone: set[int] = set()
    number = 0
    while number < len(case.slots):
        end = _find_unused_end(case, number, unused) if number in unused else _find_run_end(case, number, place)
        if end > number:
            piece = concatenate([read_slot(slot, context) for slot in case.slots[number : end + 1]])
            context.budget.spend(len(piece.masks))
            if number in place:
                gone.update(range(place[number] + 1, place[end] + 1))
            slots.append(Slot(case.slots[number].part, None, None, piece))
        else:
            slots.append(case.slots[number])
        taken[number] = len(slots) - 1
        number = end + 1
    target: list[TargetPart] = []
    for number, part in enumerate(case.target):
        if number in gone:
            continue
        if isinstance(part, Copy):
            part = Copy(taken[part.slot])
        elif isinstance(part, Lookup):
            part = replace(part, slots=tuple(taken[slot] for slot in part.slots))
        target.append(part)
    return Case(tuple(slots), tuple(target), case.loose)


def _find_unused_end(case: Case, start: int, unused: Set[int]) -> int:
    """Return the last slot of the longest run of unused slots from `start`, with the words between them."""
    end = start
    for number in range(start + 1, len(case.slots)):
        if number in unused:
            end = number
        elif case.slots[number].word is None:
            break
    return end


def _find_run_end(case: Case, start: int, place: Mapping[int, int]) -> int:
    """Return the last slot of the longest run from `start` that is copied unchanged; `start` if there is none."""
    if start not in place:
        return start
    end, text, here = start, "", place[start]
    for number in range(start + 1, len(case.slots)):
        slot = case.slots[number]
        if slot.word is not None:
            text += slot.word
            continue
        if number not in place or place[number] < here:
            break
        between = case.target[here + 1 : place[number]]
        if any(not isinstance(each, str) for each in between) or "".join(map(str, between)) != text:
            break
        end, text, here = number, "", place[number]
    return end
