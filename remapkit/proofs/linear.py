r"""Key maps as linear maps: a key is a sequence of words and independent variables, and so is its target.

This makes the proofs simple. Guards on the whole key (`leaf:`, a domain) become part of the languages of the
variables, and captures that depend on each other in the target (used twice, or in one number) are enumerated if
needed, with one linear map per combination of their values.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from remapkit.patterns.charset import Ranges, singleton
from remapkit.patterns.template import CaptureItem, MapItem, TextItem
from remapkit.proofs.automata import LetterClasses, Nfa, Pieces, characters, concatenate, reads, shortest_words
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.dfa import Dfa, IntersectionDfa, LeafDfa, Product, walk
from remapkit.proofs.keymap import KeyMap, Made
from remapkit.proofs.linear_map import (
    AnyWord,
    Index,
    LinearMap,
    Separator,
    TableRef,
    TargetPart,
    Variable,
    VariableRef,
)

MAX_VARIANTS = 4096
"""A question about a key map with more linear maps is undecided."""

MAX_LISTED = 50_000
"""The most combinations of captures that are listed, if each is used only once."""


@dataclass(frozen=True, slots=True)
class ProofContext:
    """The data shared by all questions of one proof: the partition of the alphabet, the automata, the budget."""

    letters: LetterClasses
    pieces: Pieces
    budget: Budget
    words: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """The values of the maps examined so far, by the identity of the map: rules may share one."""

    def values(self, mapping: Mapping[tuple[str, ...], str]) -> tuple[str, ...]:
        """Return the distinct values of a map, sorted."""
        found = self.words.get(id(mapping))
        if found is None:
            found = self.words[id(mapping)] = tuple(sorted(set(mapping.values())))
            self.budget.spend(len(mapping))
        return found

    def injective(self, mapping: Mapping[tuple[str, ...], str]) -> bool:
        """Return whether no two entries of a map have the same value."""
        return len(self.values(mapping)) == len(mapping)

    @classmethod
    def for_key_maps(cls, key_maps: Iterable[KeyMap], more: Iterable[Ranges], budget: Budget) -> ProofContext:
        """Make the context for key maps and further sets of characters that must be distinguished."""
        letters = LetterClasses(dict.fromkeys([*more, *(chars for key_map in key_maps for chars in _sets(key_map))]))
        return cls(letters, Pieces(letters), budget)


def _sets(key_map: KeyMap) -> Iterator[Ranges]:
    text: set[str] = set()
    for part in key_map.pattern.parts:
        if part.values is not None:
            text.update(*part.values)
        if part.values is None or len(part.values) > 1:
            yield from characters(part.node)
    if key_map.pattern.leaf is not None:
        text.update(".", *key_map.pattern.leaf)
    for item in key_map.items or ():
        if isinstance(item, TextItem):
            text.update(item.text)
        elif isinstance(item, Made):
            yield from characters(item.node)
        elif isinstance(item, MapItem):
            text.update(*item.mapping.values())
    yield from map(singleton, text)


# ------------------------------------------------------------------------------------------------ from key maps


def find_dependent_captures(key_map: KeyMap) -> tuple[str, ...]:
    """Return the captures that the target does not depend on independently of each other."""
    if key_map.together is None:
        object.__setattr__(key_map, "together", _hanging_together(key_map))
    assert key_map.together is not None
    return key_map.together


def _hanging_together(key_map: KeyMap) -> tuple[str, ...]:
    fixed = _constants(key_map)
    uses = Counter[str]()
    together: set[str] = set()
    for item in key_map.items or ():
        if isinstance(item, CaptureItem):
            uses[item.name] += 1
        elif isinstance(item, MapItem):
            names = [name for name in dict.fromkeys(item.names) if name not in fixed]
            uses.update(names)
            if len(names) > 1 or "" in item.mapping.values() or any("" in values for values in item.mapping):
                together.update(names)
    uses.update(key_map.folded)
    together.update(name for name, count in uses.items() if count > 1 and name not in fixed)
    # Captures that share an item with a dependent one are dependent too.
    for item in key_map.items or ():
        if isinstance(item, MapItem) and together.intersection(item.names):
            together.update(name for name in item.names if name not in fixed)
    return tuple(part.name for part in key_map.pattern.captures if part.name is not None and part.name in together)


def find_confused(key_map: KeyMap, tools: ProofContext) -> tuple[Mapping[str, str], Mapping[str, str]] | None:
    """Return the two shortest combinations of dependent captures that determine the same parts of the target."""
    names = find_dependent_captures(key_map)
    items = [
        item for item in key_map.items or () if isinstance(item, CaptureItem | MapItem) and _depends(item, names)
    ]
    alone = items[0] if len(items) == 1 else None
    if isinstance(alone, MapItem) and set(alone.names) == set(names) and tools.injective(alone.mapping):
        return None
    pairs = list(_confused(key_map))
    return min(pairs, key=lambda pair: sum(len(word) for each in pair for word in each.values()), default=None)


def _confused(key_map: KeyMap) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Yield each combination with the shortest earlier one that determines the same parts, shorter ones first."""
    fixed, names = _constants(key_map), find_dependent_captures(key_map)
    items = [
        item for item in key_map.items or () if isinstance(item, CaptureItem | MapItem) and _depends(item, names)
    ]
    seen: dict[tuple[str, ...], dict[str, str]] = {}
    for values in sorted(_assignments(key_map, names, MAX_LISTED), key=lambda each: sum(map(len, each.values()))):
        known = {**fixed, **values}
        stretches = tuple(
            known[item.name]
            if isinstance(item, CaptureItem)
            else item.mapping[tuple(known[name] for name in item.names)]
            for item in items
        )
        first = seen.setdefault(stretches, values)
        if first is not values:
            yield first, values


def _depends(item: CaptureItem | MapItem, names: Sequence[str]) -> bool:
    return item.name in names if isinstance(item, CaptureItem) else not set(item.names).isdisjoint(names)


def _constants(key_map: KeyMap) -> dict[str, str]:
    return {
        part.name: part.values[0]
        for part in key_map.pattern.captures
        if part.name and part.values and part.is_constant
    }


def _assignments(key_map: KeyMap, names: Sequence[str], limit: int = MAX_VARIANTS) -> Iterator[dict[str, str]]:
    spaces = []
    for name in names:
        part = key_map.pattern.capture(name)
        if part is None or part.values is None:
            raise Exhausted
        spaces.append(part.values)
    count = 1
    for space in spaces:
        count *= len(space)
    if count > limit:
        raise Exhausted
    for values in itertools.product(*spaces):
        yield dict(zip(names, values, strict=True))


def variants(
    key_map: KeyMap,
    tools: ProofContext,
    domain: Dfa | None = None,
    *,
    exact: bool = False,
    folded: bool = False,
    only: Sequence[Mapping[str, str]] | None = None,
) -> tuple[LinearMap, ...]:
    """Return the variants of a key map.

    Without `exact`, dependent captures are treated as independent: sources are then exact, but there may be more
    targets than possible. With `folded`, folded captures count as part of the target. `only` limits the combinations
    of dependent captures.
    """
    names = find_dependent_captures(key_map)
    found: list[LinearMap] = []
    combinations = only if only is not None else _assignments(key_map, names) if exact and names else ({},)
    for values in combinations:
        tools.budget.spend(len(key_map.pattern.parts))
        fixed = {**_constants(key_map), **values}
        slots = _slots(key_map, fixed, tools)
        loose = names if not exact else ()
        whole = LinearMap(slots, _target(key_map, fixed, slots, loose, tools, folded=folded), loose)
        guide = _guide(key_map, tools, domain)
        if guide is None:
            found.append(whole)
        else:
            found += _guarded(whole, guide, tools)
        if len(found) > MAX_VARIANTS:
            raise Exhausted
    return tuple(found)


def _guide(key_map: KeyMap, tools: ProofContext, domain: Dfa | None) -> Dfa | None:
    if key_map.pattern.leaf is None:
        return domain
    leaf = LeafDfa(key_map.pattern.leaf, tools.letters)
    return leaf if domain is None else IntersectionDfa(leaf, domain)


def _slots(key_map: KeyMap, fixed: Mapping[str, str], tools: ProofContext) -> tuple[Variable, ...]:
    slots = []
    for number, part in enumerate(key_map.pattern.parts):
        word = fixed.get(part.name) if part.name is not None else None
        if word is None and part.values is not None and len(part.values) == 1:
            word = part.values[0]
        slots.append(Variable(number, part.name, word, None if word is not None else tools.pieces.of(part.node)))
    if not key_map.identity:
        return tuple(slots)
    whole = concatenate([piece_of(slot, tools) for slot in slots])
    return (Variable(0, None, None, whole),)


def piece_of(slot: Variable, tools: ProofContext) -> Nfa:
    """Return the language of a slot, one word or many."""
    if slot.piece is not None:
        return slot.piece
    assert slot.word is not None
    return tools.pieces.word(slot.word)


def _target(
    key_map: KeyMap,
    fixed: Mapping[str, str],
    slots: Sequence[Variable],
    loose: Sequence[str],
    tools: ProofContext,
    *,
    folded: bool,
) -> tuple[TargetPart, ...]:
    if key_map.identity:
        return (VariableRef(0),)
    place = {slot.name: number for number, slot in enumerate(slots) if slot.name is not None}
    target: list[TargetPart] = []
    for item in key_map.items or ():
        if isinstance(item, TextItem):
            target.append(item.text)
        elif isinstance(item, Made):
            target.append(Index(item))
        elif isinstance(item, CaptureItem):
            target.append(_copied(item, key_map, fixed, place, loose))
        elif not fixed and (len(set(item.names)) > 1 or item.names[0] in loose):
            target.append(AnyWord(tools.values(item.mapping)))
        else:
            target.append(_mapped(item, fixed, place, loose, lossy=item.table in key_map.lossy))
    for name in key_map.folded if folded else ():
        target += [Separator(), _copied(CaptureItem(name), key_map, fixed, place, loose)]
    return tuple(target)


def _copied(
    item: CaptureItem, key_map: KeyMap, fixed: Mapping[str, str], place: Mapping[str, int], loose: Sequence[str]
) -> TargetPart:
    if item.name in fixed:
        return fixed[item.name]
    if item.name not in loose:
        return VariableRef(place[item.name])
    part = key_map.pattern.capture(item.name)
    assert part is not None
    if part.values is None:
        raise Exhausted
    return AnyWord(part.values)


def _mapped(
    item: MapItem, fixed: Mapping[str, str], place: Mapping[str, int], loose: Sequence[str], *, lossy: bool
) -> TargetPart:
    names = [name for name in dict.fromkeys(item.names) if name not in fixed]
    if not names:
        return item.mapping[tuple(fixed[name] for name in item.names)]
    rows = {
        tuple(values[item.names.index(name)] for name in names): text
        for values, text in item.mapping.items()
        if all(fixed.get(name, value) == value for name, value in zip(item.names, values, strict=True))
    }
    if len(names) > 1 or names[0] in loose:
        return AnyWord(tuple(sorted(set(rows.values()))))
    return TableRef(place[names[0]], tuple((key, text) for (key,), text in rows.items()), lossy)


# ------------------------------------------------------------------------------------------------ guards


def _guarded(variant: LinearMap, guide: Dfa, tools: ProofContext) -> Iterator[LinearMap]:
    """Yield one variant for each path through the guide that affects the following slots.

    The guide is deterministic, so a reading determines its path: no reading belongs to two variants.
    """
    slots = variant.slots
    walked, products, groups = _boundaries(slots, guide, tools)

    def ways(number: int, state: int, before: tuple[Variable, ...]) -> Iterator[tuple[Variable, ...]]:
        if number == len(slots):
            yield before
            return
        slot = slots[number]
        if slot.word is not None:
            yield from ways(number + 1, walked[number, state], (*before, slot))
            return
        product = products[number, state]
        by_group: dict[object, set[int]] = {}
        for end in product.ends:
            if end in groups[number + 1]:
                by_group.setdefault(groups[number + 1][end], set()).add(end)
        for ends in by_group.values():
            piece = product.ending_in(ends)
            yield from ways(number + 1, min(ends), (*before, replace(slot, piece=piece)))

    if guide.start in groups[0]:
        for found in ways(0, guide.start, ()):
            tools.budget.spend(len(found))
            yield LinearMap(found, tuple(_narrowed(each, found, tools) for each in variant.target), variant.loose)


def _boundaries(
    slots: Sequence[Variable], guide: Dfa, tools: ProofContext
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], Product], list[dict[int, object]]]:
    """Return the guide states between slots: after words, after variables, and which states are equivalent there."""
    walked: dict[tuple[int, int], int] = {}
    products: dict[tuple[int, int], Product] = {}
    reached = [{guide.start}]
    for number, slot in enumerate(slots):
        following: set[int] = set()
        for state in reached[-1]:
            if slot.piece is None:
                assert slot.word is not None
                tools.budget.spend(len(slot.word))
                to = walk(guide, state, slot.word, tools.letters)
                if to is not None:
                    walked[number, state] = to
                    following.add(to)
            else:
                products[number, state] = Product(slot.piece, guide, state, tools.budget)
                following |= products[number, state].ends
        reached.append(following)
    groups: list[dict[int, object]] = [{} for _ in reached]
    groups[-1] = {state: True for state in reached[-1] if guide.accepts(state)}
    for number in range(len(slots) - 1, -1, -1):
        for state in reached[number]:
            if (number, state) in walked:
                if walked[number, state] in groups[number + 1]:
                    groups[number][state] = groups[number + 1][walked[number, state]]
            elif (number, state) in products and not products[number, state].ends.isdisjoint(groups[number + 1]):
                groups[number][state] = (number, state)
    return walked, products, groups


def _narrowed(stretch: TargetPart, slots: Sequence[Variable], tools: ProofContext) -> TargetPart:
    """Return a table without the entries that the guard excludes."""
    if not isinstance(stretch, TableRef):
        return stretch
    piece = slots[stretch.slot].piece
    assert piece is not None
    entries = tuple(entry for entry in stretch.entries if reads(piece, entry[0], tools.letters))
    return replace(stretch, entries=entries)


# ------------------------------------------------------------------------------------------------ merging


def merge_captures(variant: LinearMap, tools: ProofContext) -> LinearMap:
    """Merge each run of slots that the target copies unchanged into one variable.

    `(.*)\\.(.*)` to `{a}.{b}` can be split in several ways, which does not matter: as one variable it has one split.
    """
    place = {each.slot: number for number, each in enumerate(variant.target) if isinstance(each, VariableRef)}
    slots: list[Variable] = []
    target: list[TargetPart] = []
    taken: dict[int, int] = {}
    gone: set[int] = set()
    number = 0
    while number < len(variant.slots):
        run = _run(variant, number, place)
        if run > number:
            piece = concatenate([piece_of(slot, tools) for slot in variant.slots[number : run + 1]])
            gone.update(range(place[number] + 1, place[run] + 1))
            slots.append(Variable(variant.slots[number].part, None, None, piece))
        else:
            slots.append(variant.slots[number])
        taken[number] = len(slots) - 1
        number = run + 1
    for number, each in enumerate(variant.target):
        if number not in gone:
            target.append(replace(each, slot=taken[each.slot]) if isinstance(each, VariableRef | TableRef) else each)
    return LinearMap(tuple(slots), tuple(target), variant.loose)


def _run(variant: LinearMap, start: int, place: Mapping[int, int]) -> int:
    """Return the last slot of the longest run from `start` that is copied unchanged; `start` if there is none."""
    if start not in place:
        return start
    end, text, here = start, "", place[start]
    for number in range(start + 1, len(variant.slots)):
        slot = variant.slots[number]
        if slot.word is not None:
            text += slot.word
            continue
        if number not in place:
            break
        between = variant.target[here + 1 : place[number]] if place[number] > here else (Separator(),)
        if any(not isinstance(each, str) for each in between) or "".join(map(str, between)) != text:
            break
        end, text, here = number, "", place[number]
    return end


def find_losses(variant: LinearMap, tools: ProofContext) -> list[tuple[int, str, str]]:
    """Return the slots with several words that the target omits, with their two shortest words."""
    found = []
    for slot in variant.unused:
        assert slot.piece is not None
        words = shortest_words(slot.piece, tools.letters, 2, tools.budget)
        if len(words) == 2:
            found.append((slot.part, words[0], words[1]))
    return found


def without_losses(variant: LinearMap) -> LinearMap:
    """Return the variant with one key per value of the tables that are declared lossy."""
    target = []
    for each in variant.target:
        if isinstance(each, TableRef) and each.lossy:
            by_value: dict[str, str] = {}
            for key, value in sorted(each.entries, key=lambda entry: len(entry[0])):
                by_value.setdefault(value, key)
            each = replace(each, entries=tuple((key, value) for value, key in by_value.items()))
        target.append(each)
    return replace(variant, target=tuple(target))
