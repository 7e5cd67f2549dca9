"""Edits that make a pattern match fewer keys: a capture with fewer values, a class with fewer characters, a leaf."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from remapkit.patterns.charset import Ranges, complement, merge_ranges, singleton
from remapkit.patterns.literals import literal_text
from remapkit.patterns.pattern import CANONICAL, SEGMENT, Part
from remapkit.patterns.template import TextItem
from remapkit.patterns.tree import Chars, Repeat, Seq
from remapkit.patterns.unparse import unparse
from remapkit.proofs.edit_rules import RuleEditor
from remapkit.proofs.fixes import Fix
from remapkit.proofs.keymap import KeyMap, readings
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rules.model import CompiledRules
from remapkit.tensors.families import is_canonical_integer

MAX_VARIED = 2000
"""The most values of a capture that are tried one by one, and the most numbers of a range that is proposed."""

MAX_LISTED = 12
"""The most words, leaves or shapes of keys that a fix lists."""


class Narrower(RuleEditor):
    """Makes edits that narrow a pattern; `keys` are known source keys."""

    def __init__(self, rules: CompiledRules, keys: Sequence[str]) -> None:
        super().__init__(rules)
        self.keys = keys
        self.known: dict[int, list[tuple[str, Mapping[str, str]]]] = {}
        """The known keys that each key map matches, by its `id`, with their captures."""

    def exclude(self, key_map: KeyMap, key: str, clashes: Callable[[str], bool] | None = None) -> Iterator[Fix]:
        """Exclude a key from a pattern by restricting one of its captures, or its leaf."""
        cuts = readings(key_map.pattern, key, 1)
        if not cuts:
            return
        known = self.list_known(key_map, clashes)
        for number, part in enumerate(key_map.pattern.parts):
            if part.name is None:
                continue
            word = cuts[0][number]
            if part.values is not None:
                asked = clashes if len(part.values) <= MAX_VARIED else None
                rest = [
                    other
                    for other in part.values
                    if other != word
                    and not (asked and asked("".join((*cuts[0][:number], other, *cuts[0][number + 1 :]))))
                ]
                if rest:
                    yield self.restrict(key_map, part, rest)
                continue
            seen = sorted({cut[part.name] for cut in known}, key=lambda text: (len(text), text))
            if seen and word not in seen:
                if all(map(is_canonical_integer, seen)) and int(seen[-1]) - int(seen[0]) < MAX_VARIED:
                    yield self.restrict(key_map, part, list(map(str, range(int(seen[0]), int(seen[-1]) + 1))))
                if len(seen) <= MAX_LISTED:
                    yield self.restrict(key_map, part, seen)
            if part.node == SEGMENT and not is_canonical_integer(word):
                yield from self.retype(key_map, part, "int")
            if part.node == CANONICAL and len(word) < 4:
                numbers = range(int(word)) if int(word) else range(1, 1000)
                yield self.restrict(key_map, part, list(map(str, numbers)))
        yield from self.exclude_leaf(key_map, key)

    def exclude_leaf(self, key_map: KeyMap, key: str) -> Iterator[Fix]:
        leaf = key.rpartition(".")[2]
        leaves = key_map.pattern.leaf
        if leaves is None:
            leaves = tuple(dict.fromkeys(each.rpartition(".")[2] for each in self.keys if key_map.reader(each)))
        left = [each for each in leaves if each != leaf]
        if 0 < len(left) <= MAX_LISTED and (len(left) < len(leaves) or leaf not in leaves):
            value = [literal_text(each) for each in left]
            edit = self.set_guard(key_map, ("leaf",), value)
            yield Fix(f"add `leaf: {emit_flow(value)}` to {self.name_pattern(key_map)}", (edit,), narrows=True)

    def list_known(self, key_map: KeyMap, clashes: Callable[[str], bool] | None) -> list[Mapping[str, str]]:
        """Return the captures of the known keys that only this pattern matches."""
        if id(key_map) not in self.known:
            found = ((key, key_map.reader(key)) for key in self.keys)
            self.known[id(key_map)] = [(key, cut) for key, cut in found if cut is not None]
        return [cut for key, cut in self.known[id(key_map)] if clashes is None or not clashes(key)]

    def narrow_classes(self, key_map: KeyMap) -> Iterator[Fix]:
        """Exclude from repeated characters what follows, or dots, or all separators: `[^.]+` instead of `.+`."""
        if key_map.pattern.surface != "match":
            return
        yield from self.escape_dots(key_map)
        parts = key_map.pattern.parts
        guarded = self.list_guards(key_map)
        repeats = {
            number: repeat
            for number, part in enumerate(parts)
            if part.name is not None and part.name not in guarded and (repeat := _find_repeat(part)) is not None
        }
        following = {
            number: _find_first(parts[number + 1]) for number in reversed(repeats) if number + 1 < len(parts)
        }
        for number, chars in following.items():
            yield from self.subtract(key_map, {number: repeats[number]}, {number: chars})
        yield from self.subtract(key_map, repeats, following)
        segments = re.sub(r"(?<!\\)\.(?=[*+])", "[^.]", key_map.pattern.text.value)
        if segments != key_map.pattern.text.value:
            yield self.rewrite(key_map, segments)
        texts = [part.values[0] for part in parts if part.name is None and part.values and part.is_constant]
        texts += [item.text for item in key_map.items or () if isinstance(item, TextItem)]
        edges = merge_ranges(chars for text in texts if text for chars in (*singleton(text[0]), *singleton(text[-1])))
        yield from self.subtract(key_map, repeats, dict.fromkeys(repeats, edges))

    def subtract(
        self, key_map: KeyMap, repeats: Mapping[int, Repeat], excluded: Mapping[int, Ranges]
    ) -> Iterator[Fix]:
        """Exclude characters from captures that repeat a class, if something is left of each class."""
        text = key_map.pattern.text.value
        changed = text
        for number in sorted(repeats, reverse=True):
            part, repeat = key_map.pattern.parts[number], repeats[number]
            assert isinstance(repeat.item, Chars)
            chars = complement(merge_ranges([*complement(repeat.item.chars), *excluded.get(number, ())]))
            if chars and chars != repeat.item.chars:
                written = f"(?P<{part.name}>{unparse(Repeat(Chars(chars), repeat.low, repeat.high))})"
                changed = f"{changed[: part.at[0]]}{written}{changed[part.at[1] :]}"
        if changed != text:
            yield self.rewrite(key_map, changed)

    def refuse_empty(self, key_map: KeyMap) -> Iterator[Fix]:
        """Require at least one character at the end: `+` instead of `*`."""
        changed = re.sub(r"(?<!\\)\*(?=\)?$)", "+", key_map.pattern.text.value)
        if key_map.pattern.surface == "match" and changed != key_map.pattern.text.value:
            yield self.rewrite(key_map, changed)

    def escape_dots(self, key_map: KeyMap) -> Iterator[Fix]:
        """Escape the dots of a regular expression that stand for any one character."""
        text = key_map.pattern.text.value
        escaped = re.sub(r"(\\.|\[(?:\\.|[^\]])*\])|\.(?![*+?{])", lambda found: found[1] or r"\.", text)
        if key_map.pattern.surface == "match" and escaped != text:
            yield self.rewrite(key_map, escaped)


def _find_repeat(part: Part) -> Repeat | None:
    """Return the repeated class that is all of a part."""
    node = part.node.items[0] if isinstance(part.node, Seq) and len(part.node.items) == 1 else part.node
    return node if isinstance(node, Repeat) and isinstance(node.item, Chars) else None


def _find_first(part: Part) -> Ranges:
    """Return the characters that a part begins with, if that is a class."""
    first = part.node.items[0] if isinstance(part.node, Seq) and part.node.items else part.node
    return first.chars if isinstance(first, Chars) else ()
