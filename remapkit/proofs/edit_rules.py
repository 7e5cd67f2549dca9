"""Edits of a rule file: where patterns and templates are in its data, how they are narrowed or replaced, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from remapkit.patterns.charset import Ranges, complement, merge_ranges, singleton
from remapkit.patterns.literals import literal_text
from remapkit.patterns.pattern import CANONICAL, SEGMENT, Part
from remapkit.patterns.template import TextItem
from remapkit.patterns.tree import Chars, Repeat, Seq, literal
from remapkit.patterns.unparse import unparse
from remapkit.proofs.concrete import read_parts
from remapkit.proofs.fixes import Edit, Fix, Place, find_entries, read_data
from remapkit.proofs.keymap import KeyMap
from remapkit.rulefile.read import COMBINED
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rules.model import CompiledRules
from remapkit.tensors.families import is_canonical_integer

MAX_VARIED = 2000
"""The most values of a capture that are tried one by one, and the most numbers of a range that is proposed."""

MAX_LISTED = 12
"""The most words, leaves or shapes of keys that a fix lists."""


class RuleEditor:
    """Makes edits of a rule file, whose content is read only when needed; `keys` are known source keys."""

    def __init__(self, rules: CompiledRules, keys: Sequence[str]) -> None:
        self.rules, self.keys = rules, keys
        self.known: dict[int, list[tuple[str, Mapping[str, str]]]] = {}
        """The known keys that each key map matches, by its `id`, with their captures."""

    # -------------------------------------------------------------------------------------------- places

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The content of the rule file as plain data."""
        return read_data(self.rules)

    @cached_property
    def entries(self) -> Mapping[tuple[str, str], Place]:
        """The place of each rule, `keep`, `drop` and entry of `add`, by its kind and its name."""
        return find_entries(self.rules)

    def get_value(self, place: Place) -> Any:
        value: Any = self.data
        for step in place:
            value = value[step]
        return value

    def find_entry(self, key_map: KeyMap) -> Place:
        """Return the place of the rule, `keep` or `drop` of a key map."""
        return self.entries[key_map.owner]

    def find_pattern(self, key_map: KeyMap) -> Place:
        """Return the place of the mapping or the text of a pattern."""
        place = self.find_entry(key_map)
        written = self.get_value(place) if key_map.kind == "rule" else {}
        second = next((name for name in COMBINED if name in written), None)
        if second is not None:
            return (*place, second, COMBINED[second]) if key_map.branch else place
        field: Place = ("concat", "from") if "from" in (written.get("concat") or {}) else ("merge",)
        if field == ("merge",) and not isinstance(written.get("merge"), list):
            return place
        pipeline = self.rules.file.rules[int(place[1])].pipeline
        assert pipeline is not None
        return (*place, *field, pipeline.order.index(key_map.branch))

    def is_source(self, key_map: KeyMap) -> bool:
        """Return whether a pattern is one of several sources of a rule."""
        return self.find_pattern(key_map) != self.find_entry(key_map)

    def find_template(self, key_map: KeyMap) -> Place | None:
        """Return the place of the text of a template; None for a `keep` or `drop`."""
        if key_map.kind != "rule":
            return None
        place = self.find_entry(key_map)
        written, pipeline = self.get_value(place), self.rules.file.rules[int(place[1])].pipeline
        if pipeline is None or "to" in written:
            return *place, "to"
        number = [output.to.span for output in pipeline.outputs].index(key_map.to)  # type: ignore[arg-type]
        field: Place = ("split", "into") if "split" in written else ("copy" if "copy" in written else "tie",)
        output = (*place, *field, number)
        return output if isinstance(self.get_value(output), str) else (*output, "to")

    def list_guards(self, key_map: KeyMap) -> tuple[str, ...]:
        """Return the captures that have a guard under `where`."""
        written = self.get_value(self.find_pattern(key_map))
        return tuple(written.get("where") or ()) if isinstance(written, dict) else ()

    def name_pattern(self, key_map: KeyMap) -> str:
        """Return the id of a rule, with the source if it has several."""
        if len(self.find_pattern(key_map)) == len(self.find_entry(key_map)):
            return key_map.rule_id
        return f"the source {key_map.pattern.text.value} of {key_map.rule_id}"

    # -------------------------------------------------------------------------------------------- other texts

    def set_pattern(self, key_map: KeyMap, text: str) -> Edit:
        place = self.find_pattern(key_map)
        return Edit(place if isinstance(self.get_value(place), str) else (*place, key_map.pattern.surface), text)

    def set_guard(self, key_map: KeyMap, field: tuple[str, ...], value: object) -> Edit:
        """Set `leaf`, or a capture under `where`."""
        place = self.find_pattern(key_map)
        written = self.get_value(place)
        if isinstance(written, str):
            return Edit(place, {"path": written, field[0]: {field[1]: value} if len(field) > 1 else value})
        return Edit((*place, *field), value)

    def rewrite(self, key_map: KeyMap, text: str) -> Fix:
        """Return a fix that replaces a pattern by a narrower one."""
        return Fix(f"write {key_map.pattern.surface}: {text}", (self.set_pattern(key_map, text),), narrows=True)

    def rewrite_match(self, key_map: KeyMap, text: str) -> Iterator[Fix]:
        """Yield a fix that replaces a regular expression by a narrower one, if they differ."""
        if key_map.pattern.surface == "match" and text != key_map.pattern.text.value:
            yield self.rewrite(key_map, text)

    def write_literal(self, key_map: KeyMap, lost: int, value: str) -> Fix:
        """Return a fix that replaces a part of a pattern with the only text that is known for it."""
        part, text = key_map.pattern.parts[lost], key_map.pattern.text.value
        start, end = find_core(part)[0]
        if key_map.pattern.surface == "path":
            written = literal_text(value)
        else:
            written = unparse(literal(value))
            opened = re.search(r"\(\?P<\w+>$", text[:start])
            if opened is not None and text[end : end + 1] == ")":
                start, end = opened.start(), end + 1
        fix = self.rewrite(key_map, splice(text, (start, end), written))
        if part.name not in key_map.forget:
            return fix
        words = f"{fix.words}, and remove {part.name!r} from `forget:`"
        return Fix(words, (*fix.edits, self.remove_from_forget(key_map, part)), narrows=True)

    def remove_from_forget(self, key_map: KeyMap, part: Part) -> Edit:
        """Remove a capture from `forget:`."""
        left = [name for name in key_map.forget if name != part.name]
        return Edit((*self.find_entry(key_map), "forget"), left or None)

    # -------------------------------------------------------------------------------------------- removals

    def remove(self, key_map: KeyMap, why: str = "") -> Fix:
        return Fix(f"remove {key_map.rule_id}{why}", (Edit(self.find_entry(key_map)),), narrows=True)

    def remove_source(self, key_map: KeyMap) -> Iterator[Fix]:
        """Remove one source of a `concat` or `merge`; if only one is left, the rule reads that one directly."""
        place = self.find_pattern(key_map)
        words = f"remove the source {key_map.pattern.text.value}"
        sources = self.get_value(place[:-1])
        if len(sources) > 2:
            yield Fix(words, (Edit(place),))
            return
        other = sources[1 - int(place[-1])]
        fields = {"path": other} if isinstance(other, str) else other
        rule, joined = place[:2], str(place[2])
        if set(fields).isdisjoint(self.get_value(rule)):
            sets = (Edit((*rule, name), value) for name, value in fields.items())
            yield Fix(f"{words}, and read the other one without `{joined}`", (Edit((*rule, joined)), *sets))

    # -------------------------------------------------------------------------------------------- fewer values

    def restrict(self, key_map: KeyMap, part: Part, words: Sequence[str]) -> Fix:
        """Return a fix that restricts a capture to some of its words."""
        value, name = write_words(words), str(part.name)
        if isinstance(value, str) and self.can_retype(key_map, part):
            return self.retype(key_map, part, value)
        verb, preposition = ("change", "in") if name in self.list_guards(key_map) else ("add", "to")
        guard = f"`where: {emit_flow({name: value})}`"
        edit = self.set_guard(key_map, ("where", name), value)
        return Fix(f"{verb} {guard} {preposition} {self.name_pattern(key_map)}", (edit,), narrows=True)

    def can_retype(self, key_map: KeyMap, part: Part) -> bool:
        """Return whether the type of a capture is written in the pattern."""
        return key_map.pattern.surface == "path" and part.name not in self.list_guards(key_map)

    def retype(self, key_map: KeyMap, part: Part, kind: str) -> Fix:
        """Return a fix that gives a capture of a path another type."""
        text, field = key_map.pattern.text.value, f"{{{part.name}:{kind}}}"
        words = f"restrict {text[slice(*part.at)]} of {self.name_pattern(key_map)} to {field}"
        return Fix(words, (self.set_pattern(key_map, splice(text, part.at, field)),), narrows=True)

    def exclude(self, key_map: KeyMap, key: str, clashes: Callable[[str], bool] | None = None) -> Iterator[Fix]:
        """Exclude a key, and others that clash, from a pattern by restricting one of its captures, or its leaf."""
        texts = read_parts(key_map, key)
        if texts is None:
            return
        known = [cut for other, cut in self.list_known(key_map) if clashes is None or not clashes(other)]
        for number, part in enumerate(key_map.pattern.parts):
            if part.name is None:
                continue
            before, word, after = "".join(texts[:number]), texts[number], "".join(texts[number + 1 :])
            if part.values is not None:
                rest = [other for other in part.values if other != word]
                if clashes is not None and len(part.values) <= MAX_VARIED:
                    rest = [other for other in rest if not clashes(f"{before}{other}{after}")]
                if rest:
                    yield self.restrict(key_map, part, rest)
                continue
            seen = sorted({cut[part.name] for cut in known}, key=lambda text: (len(text), text))
            if seen and word not in seen:
                if all(map(is_canonical_integer, seen)) and int(seen[-1]) - int(seen[0]) < MAX_VARIED:
                    yield self.restrict(key_map, part, list(map(str, range(int(seen[0]), int(seen[-1]) + 1))))
                if len(seen) <= MAX_LISTED:
                    yield self.restrict(key_map, part, seen)
            if part.node == SEGMENT and not is_canonical_integer(word) and self.can_retype(key_map, part):
                yield self.retype(key_map, part, "int")
            if part.node == CANONICAL and len(word) < 4:
                numbers = range(int(word)) if int(word) else range(1, 1000)
                yield self.restrict(key_map, part, list(map(str, numbers)))
        yield from self.exclude_leaf(key_map, key)

    def exclude_leaf(self, key_map: KeyMap, key: str) -> Iterator[Fix]:
        leaf, leaves = key.rpartition(".")[2], key_map.pattern.leaf
        if leaves is None:
            leaves = tuple(dict.fromkeys(each.rpartition(".")[2] for each, cut in self.list_known(key_map) if cut))
        left = [each for each in leaves if each != leaf]
        if 0 < len(left) <= MAX_LISTED and (len(left) < len(leaves) or leaf not in leaves):
            value = list(map(literal_text, left))
            edit = self.set_guard(key_map, ("leaf",), value)
            yield Fix(f"add `leaf: {emit_flow(value)}` to {self.name_pattern(key_map)}", (edit,), narrows=True)

    def list_known(self, key_map: KeyMap) -> list[tuple[str, Mapping[str, str]]]:
        """Return the known keys that a pattern matches, with their captures."""
        if id(key_map) not in self.known:
            found = ((key, key_map.reader(key)) for key in self.keys)
            self.known[id(key_map)] = [(key, cut) for key, cut in found if cut is not None]
        return self.known[id(key_map)]

    # -------------------------------------------------------------------------------------------- fewer characters

    def narrow_classes(self, key_map: KeyMap) -> Iterator[Fix]:
        """Exclude from repeated characters what follows, or dots, or all separators: `[^.]+` instead of `.+`."""
        if key_map.pattern.surface != "match":
            return
        yield from self.escape_dots(key_map)
        parts, guarded = key_map.pattern.parts, self.list_guards(key_map)
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
        yield from self.rewrite_match(key_map, re.sub(r"(?<!\\)\.(?=[*+])", "[^.]", key_map.pattern.text.value))
        texts = [part.values[0] for part in parts if part.name is None and part.values and part.is_constant]
        texts += [item.text for item in key_map.items or () if isinstance(item, TextItem)]
        edges = merge_ranges(chars for text in texts if text for chars in (*singleton(text[0]), *singleton(text[-1])))
        yield from self.subtract(key_map, repeats, dict.fromkeys(repeats, edges))

    def subtract(
        self, key_map: KeyMap, repeats: Mapping[int, Repeat], excluded: Mapping[int, Ranges]
    ) -> Iterator[Fix]:
        """Exclude characters from captures that repeat a class, if something is left of each class."""
        changed = key_map.pattern.text.value
        for number in sorted(repeats, reverse=True):
            part, repeat = key_map.pattern.parts[number], repeats[number]
            assert isinstance(repeat.item, Chars)
            chars = complement(merge_ranges([*complement(repeat.item.chars), *excluded.get(number, ())]))
            if chars and chars != repeat.item.chars:
                written = unparse(Repeat(Chars(chars), repeat.low, repeat.high))
                changed = splice(changed, part.at, f"(?P<{part.name}>{written})")
        yield from self.rewrite_match(key_map, changed)

    def refuse_empty(self, key_map: KeyMap) -> Iterator[Fix]:
        """Require at least one character at the end: `+` instead of `*`."""
        yield from self.rewrite_match(key_map, re.sub(r"(?<!\\)\*(?=\)?$)", "+", key_map.pattern.text.value))

    def escape_dots(self, key_map: KeyMap) -> Iterator[Fix]:
        """Escape the dots of a regular expression that stand for any one character."""
        dots = r"(\\.|\[(?:\\.|[^\]])*\])|\.(?![*+?{])"
        escaped = re.sub(dots, lambda found: found[1] or r"\.", key_map.pattern.text.value)
        yield from self.rewrite_match(key_map, escaped)


def splice(text: str, at: tuple[int, int], written: str) -> str:
    """Return a text with something else in place of `text[at[0]:at[1]]`."""
    return f"{text[: at[0]]}{written}{text[at[1] :]}"


def write_words(words: Sequence[str]) -> str | list[str]:
    """Return the words of a guard as a rule file has them: as a range if they are one, else as a list.

    >>> write_words(["2", "3", "4"]), write_words(["0", "2"])
    ('2..4', ['0', '2'])
    """
    numbers = sorted(map(int, words)) if all(map(is_canonical_integer, words)) else []
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}..{numbers[-1]}"
    return [literal_text(word) for word in words]


def find_core(part: Part) -> tuple[tuple[int, int], int, int]:
    """Return the position of a part without its fixed characters, and the numbers of those before and after it."""
    items = part.node.items if isinstance(part.node, Seq) else (part.node,)
    fixed = [isinstance(item, Chars) and item.chars[0][0] == item.chars[-1][1] for item in items]
    if part.name is not None or all(fixed):
        return part.at, 0, 0
    before, after = fixed.index(False), fixed[::-1].index(False)
    return (items[before].at[0], items[len(items) - 1 - after].at[1]), before, after


def _find_repeat(part: Part) -> Repeat | None:
    """Return the repeated class that is all of a part."""
    node = part.node.items[0] if isinstance(part.node, Seq) and len(part.node.items) == 1 else part.node
    return node if isinstance(node, Repeat) and isinstance(node.item, Chars) else None


def _find_first(part: Part) -> Ranges:
    """Return the characters that a part begins with, if that is a class."""
    first = part.node.items[0] if isinstance(part.node, Seq) and part.node.items else part.node
    return first.chars if isinstance(first, Chars) else ()
