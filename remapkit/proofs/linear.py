r"""Arrows as linear variants: a key is a sequence of words and variables, and so is its target.

That is what makes the proofs simple. In a variant every variable is independent of every other: guards on the whole
key (`leaf:`, a domain) are worked into the languages of the variables, and captures that hang together (used twice,
or put into one number) are spelt out, one variant for each combination, where that is needed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from remapkit.patterns.charset import Ranges, one
from remapkit.patterns.template import Copy, Literal, Mapped
from remapkit.proofs.automata import Letters, Piece, Pieces, characters, joined, reads, shortest_words
from remapkit.proofs.budget import Budget, Exhausted
from remapkit.proofs.dfa import BothGuides, Guide, LeafGuide, Product, walk
from remapkit.proofs.keymap import Arrow, Made

MAX_VARIANTS = 4096
"""Past so many variants of one arrow a question is undecided."""

MAX_LISTED = 50_000
"""So many combinations of captures are listed at most, where each is only looked at once."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of the source key: a word, or a variable with its language; `part` is the pattern's part it is."""

    part: int
    name: str | None
    word: str | None
    piece: Piece | None


@dataclass(frozen=True, slots=True)
class Same:
    """A stretch of the target that is a slot of the source, as it was read."""

    slot: int


@dataclass(frozen=True, slots=True)
class Table:
    """A stretch of the target that a slot of the source is mapped to; `lossy` where the author said it may lose."""

    slot: int
    entries: tuple[tuple[str, str], ...]
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class Loose:
    """A stretch of the target that captures which hang together decide: here any of its words, whatever they are."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Beyond:
    """What stands between a target and what counts as part of it."""


@dataclass(frozen=True, slots=True)
class Index:
    """A stretch of the target that is a number whatever the source is: what `unstack` counts."""

    made: Made


Stretch = str | Same | Table | Loose | Beyond | Index


@dataclass(frozen=True, slots=True)
class Variant:
    """Source and target of an arrow, side by side; `loose` are the captures that its `Loose` stretches depend on."""

    slots: tuple[Slot, ...]
    target: tuple[Stretch, ...]
    loose: tuple[str, ...] = ()

    @property
    def unused(self) -> tuple[Slot, ...]:
        """The variables of the source that the target does not depend on."""
        used = {each.slot for each in self.target if isinstance(each, Same | Table)}
        return tuple(
            slot
            for number, slot in enumerate(self.slots)
            if slot.word is None and number not in used and slot.name not in self.loose
        )

    @property
    def in_order(self) -> bool:
        """Whether the variables stand in the target as they do in the source."""
        used = [each.slot for each in self.target if isinstance(each, Same | Table)]
        return used == sorted(used)


@dataclass(frozen=True, slots=True)
class Tools:
    """What every question of one proof shares: the partition of the alphabet, the pieces, the budget."""

    letters: Letters
    pieces: Pieces
    budget: Budget
    words: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """The values of the maps that were looked at, by the identity of the map: rules may share one."""

    def values(self, mapping: Mapping[tuple[str, ...], str]) -> tuple[str, ...]:
        """The distinct values of a map, sorted."""
        found = self.words.get(id(mapping))
        if found is None:
            found = self.words[id(mapping)] = tuple(sorted(set(mapping.values())))
            self.budget.spend(len(mapping))
        return found

    def injective(self, mapping: Mapping[tuple[str, ...], str]) -> bool:
        """Whether no two entries of a map have one value."""
        return len(self.values(mapping)) == len(mapping)

    @classmethod
    def for_arrows(cls, arrows: Iterable[Arrow], more: Iterable[Ranges], budget: Budget) -> Tools:
        """The tools for some arrows, and for other sets of characters that are to be told apart."""
        letters = Letters(dict.fromkeys([*more, *(chars for arrow in arrows for chars in _sets(arrow))]))
        return cls(letters, Pieces(letters), budget)


def _sets(arrow: Arrow) -> Iterator[Ranges]:
    text: set[str] = set()
    for part in arrow.pattern.parts:
        if part.values is not None:
            text.update(*part.values)
        if part.values is None or len(part.values) > 1:
            yield from characters(part.node)
    if arrow.pattern.leaf is not None:
        text.update(".", *arrow.pattern.leaf)
    for item in arrow.items or ():
        if isinstance(item, Literal):
            text.update(item.text)
        elif isinstance(item, Made):
            yield from characters(item.node)
        elif isinstance(item, Mapped):
            text.update(*item.mapping.values())
    yield from map(one, text)


# ------------------------------------------------------------------------------------------------ from arrows


def hanging_together(arrow: Arrow) -> tuple[str, ...]:
    """The captures that the target cannot be said to depend on one by one."""
    if arrow.together is None:
        object.__setattr__(arrow, "together", _hanging_together(arrow))
    assert arrow.together is not None
    return arrow.together


def _hanging_together(arrow: Arrow) -> tuple[str, ...]:
    fixed = _constants(arrow)
    uses = Counter[str]()
    together: set[str] = set()
    for item in arrow.items or ():
        if isinstance(item, Copy):
            uses[item.name] += 1
        elif isinstance(item, Mapped):
            names = [name for name in dict.fromkeys(item.names) if name not in fixed]
            uses.update(names)
            if len(names) > 1 or "" in item.mapping.values() or any("" in values for values in item.mapping):
                together.update(names)
    uses.update(arrow.folded)
    together.update(name for name, count in uses.items() if count > 1 and name not in fixed)
    # What shares an item with one of them hangs on it too.
    for item in arrow.items or ():
        if isinstance(item, Mapped) and together.intersection(item.names):
            together.update(name for name in item.names if name not in fixed)
    return tuple(part.name for part in arrow.pattern.captures if part.name is not None and part.name in together)


def confused(arrow: Arrow, tools: Tools) -> tuple[Mapping[str, str], Mapping[str, str]] | None:
    """The two shortest combinations of captures that hang together and decide the same stretches."""
    names = hanging_together(arrow)
    items = [item for item in arrow.items or () if isinstance(item, Copy | Mapped) and _depends(item, names)]
    alone = items[0] if len(items) == 1 else None
    if isinstance(alone, Mapped) and set(alone.names) == set(names) and tools.injective(alone.mapping):
        return None
    pairs = list(_confused(arrow))
    return min(pairs, key=lambda pair: sum(len(word) for each in pair for word in each.values()), default=None)


def _confused(arrow: Arrow) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Each combination with the shortest earlier one that decides the same, shorter ones first."""
    fixed, names = _constants(arrow), hanging_together(arrow)
    items = [item for item in arrow.items or () if isinstance(item, Copy | Mapped) and _depends(item, names)]
    seen: dict[tuple[str, ...], dict[str, str]] = {}
    for values in sorted(_assignments(arrow, names, MAX_LISTED), key=lambda each: sum(map(len, each.values()))):
        known = {**fixed, **values}
        stretches = tuple(
            known[item.name] if isinstance(item, Copy) else item.mapping[tuple(known[name] for name in item.names)]
            for item in items
        )
        first = seen.setdefault(stretches, values)
        if first is not values:
            yield first, values


def _depends(item: Copy | Mapped, names: Sequence[str]) -> bool:
    return item.name in names if isinstance(item, Copy) else not set(item.names).isdisjoint(names)


def _constants(arrow: Arrow) -> dict[str, str]:
    return {
        part.name: part.values[0] for part in arrow.pattern.captures if part.name and part.values and part.constant
    }


def _assignments(arrow: Arrow, names: Sequence[str], limit: int = MAX_VARIANTS) -> Iterator[dict[str, str]]:
    spaces = []
    for name in names:
        part = arrow.pattern.capture(name)
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
    arrow: Arrow,
    tools: Tools,
    domain: Guide | None = None,
    *,
    exact: bool = False,
    folded: bool = False,
    only: Sequence[Mapping[str, str]] | None = None,
) -> tuple[Variant, ...]:
    """The variants of an arrow.

    Without `exact`, captures that hang together are taken to be independent: sources are then as they are, and
    targets more than there are. With `folded`, folded captures count as part of the target. `only` are the
    combinations of such captures that are wanted, where not all are.
    """
    names = hanging_together(arrow)
    found: list[Variant] = []
    combinations = only if only is not None else _assignments(arrow, names) if exact and names else ({},)
    for values in combinations:
        tools.budget.spend(len(arrow.pattern.parts))
        fixed = {**_constants(arrow), **values}
        slots = _slots(arrow, fixed, tools)
        loose = names if not exact else ()
        whole = Variant(slots, _target(arrow, fixed, slots, loose, tools, folded=folded), loose)
        guide = _guide(arrow, tools, domain)
        if guide is None:
            found.append(whole)
        else:
            found += _guarded(whole, guide, tools)
        if len(found) > MAX_VARIANTS:
            raise Exhausted
    return tuple(found)


def _guide(arrow: Arrow, tools: Tools, domain: Guide | None) -> Guide | None:
    if arrow.pattern.leaf is None:
        return domain
    leaf = LeafGuide(arrow.pattern.leaf, tools.letters)
    return leaf if domain is None else BothGuides(leaf, domain)


def _slots(arrow: Arrow, fixed: Mapping[str, str], tools: Tools) -> tuple[Slot, ...]:
    slots = []
    for number, part in enumerate(arrow.pattern.parts):
        word = fixed.get(part.name) if part.name is not None else None
        if word is None and part.values is not None and len(part.values) == 1:
            word = part.values[0]
        slots.append(Slot(number, part.name, word, None if word is not None else tools.pieces.of(part.node)))
    if not arrow.identity:
        return tuple(slots)
    whole = joined([piece_of(slot, tools) for slot in slots])
    return (Slot(0, None, None, whole),)


def piece_of(slot: Slot, tools: Tools) -> Piece:
    """The language of a slot, one word or many."""
    if slot.piece is not None:
        return slot.piece
    assert slot.word is not None
    return tools.pieces.word(slot.word)


def _target(
    arrow: Arrow,
    fixed: Mapping[str, str],
    slots: Sequence[Slot],
    loose: Sequence[str],
    tools: Tools,
    *,
    folded: bool,
) -> tuple[Stretch, ...]:
    if arrow.identity:
        return (Same(0),)
    place = {slot.name: number for number, slot in enumerate(slots) if slot.name is not None}
    target: list[Stretch] = []
    for item in arrow.items or ():
        if isinstance(item, Literal):
            target.append(item.text)
        elif isinstance(item, Made):
            target.append(Index(item))
        elif isinstance(item, Copy):
            target.append(_copied(item, arrow, fixed, place, loose))
        elif not fixed and (len(set(item.names)) > 1 or item.names[0] in loose):
            target.append(Loose(tools.values(item.mapping)))
        else:
            target.append(_mapped(item, fixed, place, loose, lossy=item.table in arrow.lossy))
    for name in arrow.folded if folded else ():
        target += [Beyond(), _copied(Copy(name), arrow, fixed, place, loose)]
    return tuple(target)


def _copied(
    item: Copy, arrow: Arrow, fixed: Mapping[str, str], place: Mapping[str, int], loose: Sequence[str]
) -> Stretch:
    if item.name in fixed:
        return fixed[item.name]
    if item.name not in loose:
        return Same(place[item.name])
    part = arrow.pattern.capture(item.name)
    assert part is not None
    if part.values is None:
        raise Exhausted
    return Loose(part.values)


def _mapped(
    item: Mapped, fixed: Mapping[str, str], place: Mapping[str, int], loose: Sequence[str], *, lossy: bool
) -> Stretch:
    names = [name for name in dict.fromkeys(item.names) if name not in fixed]
    if not names:
        return item.mapping[tuple(fixed[name] for name in item.names)]
    rows = {
        tuple(values[item.names.index(name)] for name in names): text
        for values, text in item.mapping.items()
        if all(fixed.get(name, value) == value for name, value in zip(item.names, values, strict=True))
    }
    if len(names) > 1 or names[0] in loose:
        return Loose(tuple(sorted(set(rows.values()))))
    return Table(place[names[0]], tuple((key, text) for (key,), text in rows.items()), lossy)


# ------------------------------------------------------------------------------------------------ guards


def _guarded(variant: Variant, guide: Guide, tools: Tools) -> Iterator[Variant]:
    """One variant for each way through the guide that makes a difference to what follows.

    A reading decides its way, because the guide is deterministic: no reading belongs to two variants.
    """
    slots = variant.slots
    walked, products, groups = _boundaries(slots, guide, tools)

    def ways(number: int, state: int, before: tuple[Slot, ...]) -> Iterator[tuple[Slot, ...]]:
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
            yield Variant(found, tuple(_narrowed(each, found, tools) for each in variant.target), variant.loose)


def _boundaries(
    slots: Sequence[Slot], guide: Guide, tools: Tools
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], Product], list[dict[int, object]]]:
    """The states between the slots: where words lead, what variables lead to, and which states are alike there."""
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


def _narrowed(stretch: Stretch, slots: Sequence[Slot], tools: Tools) -> Stretch:
    """A table without the entries that the guarded slot cannot be."""
    if not isinstance(stretch, Table):
        return stretch
    piece = slots[stretch.slot].piece
    assert piece is not None
    entries = tuple(entry for entry in stretch.entries if reads(piece, entry[0], tools.letters))
    return replace(stretch, entries=entries)


# ------------------------------------------------------------------------------------------------ merging


def merged(variant: Variant, tools: Tools) -> Variant:
    """The variant with stretches that stand in the target as they do in the source taken as one variable.

    `(.*)\\.(.*)` to `{a}.{b}` can be cut in several ways, and it does not matter: as one variable it is cut in one.
    """
    place = {each.slot: number for number, each in enumerate(variant.target) if isinstance(each, Same)}
    slots: list[Slot] = []
    target: list[Stretch] = []
    taken: dict[int, int] = {}
    gone: set[int] = set()
    number = 0
    while number < len(variant.slots):
        run = _run(variant, number, place)
        if run > number:
            piece = joined([piece_of(slot, tools) for slot in variant.slots[number : run + 1]])
            gone.update(range(place[number] + 1, place[run] + 1))
            slots.append(Slot(variant.slots[number].part, None, None, piece))
        else:
            slots.append(variant.slots[number])
        taken[number] = len(slots) - 1
        number = run + 1
    for number, each in enumerate(variant.target):
        if number not in gone:
            target.append(replace(each, slot=taken[each.slot]) if isinstance(each, Same | Table) else each)
    return Variant(tuple(slots), tuple(target), variant.loose)


def _run(variant: Variant, start: int, place: Mapping[int, int]) -> int:
    """The last slot of the longest run from `start` on that is copied as it is; `start` where there is none."""
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
        between = variant.target[here + 1 : place[number]] if place[number] > here else (Beyond(),)
        if any(not isinstance(each, str) for each in between) or "".join(map(str, between)) != text:
            break
        end, text, here = number, "", place[number]
    return end


def lost(variant: Variant, tools: Tools) -> list[tuple[int, str, str]]:
    """The slots that can be several words and that the target does not show, with their two shortest words."""
    found = []
    for slot in variant.unused:
        assert slot.piece is not None
        words = shortest_words(slot.piece, tools.letters, 2, tools.budget)
        if len(words) == 2:
            found.append((slot.part, words[0], words[1]))
    return found


def without_losses(variant: Variant) -> Variant:
    """The variant with one key for each value of the tables that say they are lossy."""
    target = []
    for each in variant.target:
        if isinstance(each, Table) and each.lossy:
            by_value: dict[str, str] = {}
            for key, value in sorted(each.entries, key=lambda entry: len(entry[0])):
                by_value.setdefault(value, key)
            each = replace(each, entries=tuple((key, value) for value, key in by_value.items()))
        target.append(each)
    return replace(variant, target=tuple(target))
