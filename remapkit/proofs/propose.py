"""Candidates for fixes of a finding, the most likely first; `FixTester` decides which of them work."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from remapkit.diagnostics.wording import join_words
from remapkit.patterns.literals import literal_text
from remapkit.patterns.pattern import SEGMENT, Part
from remapkit.patterns.template import MapItem
from remapkit.proofs.concrete import list_lossy_items, read_parts
from remapkit.proofs.edit_rules import MAX_LISTED, RuleEditor, find_core, splice
from remapkit.proofs.fixes import Edit, Fix, Place
from remapkit.proofs.keymap import KeyMap
from remapkit.proofs.witness import Witness
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.tensors.families import is_canonical_integer


class Proposer(RuleEditor):
    """Finds candidates for fixes."""

    # -------------------------------------------------------------------------------------------- two patterns

    def fix_ambiguous(
        self, witness: Witness, one: KeyMap, other: KeyMap, covered: Sequence[tuple[KeyMap, KeyMap]]
    ) -> Iterator[Fix]:
        """Keep two patterns apart, or remove one of them; `covered` pairs each that is not needed with the other."""
        key, are_sources = witness.keys[0], one.owner == other.owner
        for narrow, wide in covered:
            if self.is_source(narrow):
                yield from self.remove_source(narrow)
            elif witness.targets[0] == witness.targets[1] and not are_sources:
                yield self.remove(narrow, f": {wide.rule_id} gives its keys the same names")
        yield from self.exclude(one, key, partial(_matches, other))
        yield from self.exclude(other, key, partial(_matches, one))
        for each in (one, other):
            where = "" if are_sources else f"in {self.name_pattern(each)}, "
            for fix in (*self.narrow_classes(each), *(self.refuse_empty(each) if not key else ())):
                yield replace(fix, words=where + fix.words)
        yield from self.declare_domain()
        if not are_sources:
            for narrow, wide in covered:
                if not self.is_source(narrow):
                    yield self.remove(narrow, f": {wide.rule_id} matches all of its keys")
            yield from (self.remove(each) for each in (one, other) if each.kind != "rule")

    def fix_across(self, witness: Witness, one: KeyMap, other: KeyMap) -> Iterator[Fix]:
        """Exclude one of two keys with one target, or both, or change a target."""
        pairs = list(zip((one, other), witness.keys, strict=True))
        left, right = (list(self.exclude(key_map, key)) for key_map, key in pairs)
        yield from (*left, *right)
        if left and right:
            words = f"{left[0].words}, and {right[0].words}"
            yield Fix(words, (*left[0].edits, *right[0].edits), narrows=True)
        yield from self.declare_domain()
        for key_map, key in reversed(pairs):
            place = self.find_template(key_map)
            if place is not None:
                prefix = literal_text(key.split(".")[0]) or literal_text(key_map.rule_id.split(".")[0])
                changed = f"{prefix}.{self.get_value(place)}"
                yield Fix(f"in {self.name_pattern(key_map)}, write to: {changed}", (Edit(place, changed),))

    def fix_outputs(self, second: KeyMap) -> Iterator[Fix]:
        """Give two outputs of one rule different targets."""
        place = self.find_template(second)
        assert place is not None
        text = self.get_value(place)
        before, dot, leaf = text.rpartition(".")
        for changed in (f"{before}{dot}{leaf}_2", f"{text}.2", f"second.{text}"):
            yield Fix(f"give the second output its own target: {changed}", (Edit(place, changed),))

    # -------------------------------------------------------------------------------------------- one pattern

    def fix_cut(self, key_map: KeyMap, witness: Witness) -> Iterator[Fix]:
        """Make one of two readings impossible."""
        yield from self.narrow_and_separate(key_map)
        for part, *texts in zip(key_map.pattern.parts, *witness.readings, strict=True):
            if part.name is None or part.values is None or texts[0] == texts[1]:
                continue
            for text in reversed(texts):
                left = [word for word in part.values if word != text]
                if 0 < len(left) <= MAX_LISTED:
                    yield self.restrict(key_map, part, left)

    def narrow_and_separate(self, key_map: KeyMap) -> Iterator[Fix]:
        """Narrow the captures; if that is not enough, put dots between them in the target as well."""
        narrowed = list(self.narrow_classes(key_map))
        yield from narrowed
        place = self.find_template(key_map)
        if place is not None and "}{" in self.get_value(place):
            changed = self.get_value(place).replace("}{", "}.{")
            for fix in narrowed:
                yield Fix(f"{fix.words} and to: {changed}", (*fix.edits, Edit(place, changed)))

    def fix_lost(self, key_map: KeyMap, lost: int) -> Iterator[Fix]:
        """Write a part of the pattern as text, use it in the target, or declare that it may be omitted."""
        part, place = key_map.pattern.parts[lost], self.find_template(key_map)
        _, values = self.cut_known(key_map, lost)
        if len(values) == 1:
            yield self.write_literal(key_map, lost, values[0])
        if part.name in key_map.folded:
            yield from self.spell_once(key_map, part)
        elif place is not None and part.name is not None:
            words, forget = f"use {part.name!r} in `to:`", self.remove_from_forget(key_map, part)
            for target in self.insert_field(key_map, lost, place, part.name):
                help = f"{words} and remove it from `forget:`: write to: {target}"
                yield Fix(help, (Edit(place, target), forget))
        elif place is not None:
            yield from self.escape_dots(key_map)
            yield from self.name_lost(key_map, lost, place)

    def name_lost(self, key_map: KeyMap, lost: int, place: Place) -> Iterator[Fix]:
        """Capture a part of the pattern, to use it in the target or to declare that it may be omitted."""
        text, at = key_map.pattern.text.value, find_core(key_map.pattern.parts[lost])[0]
        taken = {each.name for each in key_map.pattern.captures}
        name = next(name for n in itertools.count() if (name := f"x{n or ''}") not in taken)
        captured = splice(text, at, f"(?P<{name}>{text[slice(*at)]})")
        pattern = self.set_pattern(key_map, captured)
        first, *others = (
            Fix(f"use it in `to:`: write match: {captured} and to: {target}", (pattern, Edit(place, target)))
            for target in self.insert_field(key_map, lost, place, name)
        )
        forget = Edit((*self.find_entry(key_map), "forget"), [*key_map.forget, name])
        words = f"if it never differs within one checkpoint, write match: {captured} and add `forget: [{name}]`"
        yield from (first, Fix(words, (pattern, forget)), *others)

    def insert_field(self, key_map: KeyMap, lost: int, place: Place, name: str) -> Iterator[str]:
        """Yield templates with one more field: after the field of the capture before it, or as the last segment."""
        to = self.get_value(place)
        before = [part.name for part in key_map.pattern.parts[:lost] if part.name is not None]
        for capture in reversed(before):
            found = re.search(rf"\{{{capture}(\|\w+)?\}}", to)
            if found is not None:
                yield f"{to[: found.end()]}.{{{name}}}{to[found.end() :]}"
                break
        yield f"{to}.{{{name}}}"
        head, dot, last = to.partition(".")
        yield f"{head}.{{{name}}}{dot}{last}"

    def spell_once(self, key_map: KeyMap, part: Part) -> Iterator[Fix]:
        """Allow one spelling of an index: 1, not 01."""
        if part.name in self.list_guards(key_map):
            words = [word for word in part.values or () if is_canonical_integer(word)]
            if words:
                yield self.restrict(key_map, part, words)
            return
        is_path = key_map.pattern.surface == "path"
        written = f"{{{part.name}:int}}" if is_path else f"(?P<{part.name}>0|[1-9][0-9]*)"
        yield self.rewrite(key_map, splice(key_map.pattern.text.value, part.at, written))

    def fix_split(self, key_map: KeyMap) -> Iterator[Fix]:
        """Fix a target that several keys share although it uses all captures."""
        place = self.find_template(key_map)
        if place is None:
            return
        yield from self.fix_arithmetic(key_map, place)
        to = self.get_value(place)
        pairs = ", ".join(f"{a} and {b}" for a, b in re.findall(r"(\{[^{}]*\})(?=(\{[^{}]*\}))", to))
        for sign in (".", "_", "-") if "}{" in to else ():
            changed = to.replace("}{", f"}}{sign}{{")
            yield Fix(f"separate {pairs}: write to: {changed}", (Edit(place, changed),))
        yield from self.narrow_and_separate(key_map)
        if key_map.pattern.surface == "path":
            for part in key_map.pattern.captures:
                if part.node == SEGMENT:
                    written = splice(key_map.pattern.text.value, part.at, f"{{{part.name}:int}}")
                    yield self.rewrite(key_map, written)

    def fix_numbers(self, key_map: KeyMap) -> Iterator[Fix]:
        """Fix arithmetic that gives two keys one number: see `fix_arithmetic`; or restrict or forget its capture."""
        place = self.find_template(key_map)
        if place is None:
            return
        yield from self.fix_arithmetic(key_map, place)
        for item in key_map.items or ():
            if not isinstance(item, MapItem) or item.table is not None or len(item.names) > 1:
                continue
            (name,) = item.names
            part = key_map.pattern.capture(name)
            numbers = dict[str, str]()
            for word in (part.values or ()) if part is not None else ():
                if item.mapping[(word,)] in numbers:
                    break
                numbers[item.mapping[(word,)]] = word
            if part is not None and len(numbers) > 1:
                yield self.restrict(key_map, part, list(numbers.values()))
            if name not in key_map.forget:
                edit = Edit((*self.find_entry(key_map), "forget"), [*key_map.forget, name])
                words = f"if {name} never differs within one checkpoint, add `forget: [{name}]`"
                yield Fix(words, (edit,), narrows=True)

    def fix_arithmetic(self, key_map: KeyMap, place: Place) -> Iterator[Fix]:
        """Make arithmetic injective: restrict a capture, add a remainder, or write the captures themselves."""
        to = self.get_value(place)
        for item in key_map.items or ():
            if not isinstance(item, MapItem) or item.table is not None:
                continue
            for step in map(int, re.findall(r"\*\s*(\d+)", item.written)):
                for part in map(key_map.pattern.capture, item.names[1:]):
                    values = part.values or () if part is not None else ()
                    words = [word for word in values if int(word) < step]
                    if part is not None and 0 < len(words) < len(values):
                        yield self.restrict(key_map, part, words)
            fields = re.findall(r"\{[^{}]*\}", to)
            field = next((each for each in fields if each[1:-1].strip() == item.written.strip("{} ")), None)
            if field is not None:
                divided = re.fullmatch(r"\{(\w+)\s*//\s*(\d+)\}", field)
                written = ".".join(f"{{{name}}}" for name in item.names)
                if divided is not None:
                    written = f"{field}.{{{divided[1]}%{divided[2]}}}"
                changed = to.replace(field, written, 1)
                yield Fix(f"write to: {changed}", (Edit(place, changed),))

    def drop_lossy_words(self, key_map: KeyMap, witness: Witness) -> Iterator[Fix]:
        """Exclude one of two words that a lossy table maps to one value."""
        one, other = (key_map.reader(key) or {} for key in witness.keys)
        for item in list_lossy_items(key_map):
            part = key_map.pattern.capture(item.names[0])
            if part is None or part.values is None or one.get(item.names[0]) == other.get(item.names[0]):
                continue
            words = dict[str, str]()
            for word in part.values:
                words.setdefault(item.mapping[(word,)], word)
            yield self.restrict(key_map, part, list(words.values()))

    # -------------------------------------------------------------------------------------------- what is known

    def cut_known(self, key_map: KeyMap, lost: int) -> tuple[list[tuple[str, ...]], list[str]]:
        """Split the known keys into parts; return also the different values of a lost part, without fixed text."""
        _, before, after = find_core(key_map.pattern.parts[lost])
        found = [
            tuple(text[before : len(text) - after] if number == lost else text for number, text in enumerate(texts))
            for key in self.keys
            if (texts := read_parts(key_map, key)) is not None
        ]
        return found, sorted({cut[lost] for cut in found}, key=lambda word: (len(word), word))

    def describe_known_values(self, key_map: KeyMap, lost: int) -> tuple[list[str], list[str]]:
        """Return a note with the known values of a lost part, and advice if they depend on a capture."""
        found, values = self.cut_known(key_map, lost)
        known = f"in the {len(self.keys)} known keys ({len(found)} of them match this rule)"
        if len(values) < 2:
            return [f"{known} it is always {value}" for value in values], []
        for number, part in enumerate(key_map.pattern.parts):
            if part.name is None or number == lost or part.values is None or len(part.values) < 2:
                continue
            by_case = {cut[number]: cut[lost] for cut in found}
            if 1 < len(by_case) <= 4 and all(by_case[cut[number]] == cut[lost] for cut in found):
                cases = ", ".join(f"{value} where {part.name} is {case}" for case, value in by_case.items())
                hint = f"write one rule for each {part.name}, with that text in its place"
                return [f"{known} it is {cases}"], [hint]
        return [f"{known} it is {join_words(values, 5, 'or')}"], []

    # -------------------------------------------------------------------------------------------- the whole file

    def declare_domain(self) -> Iterator[Fix]:
        """Declare the shapes of the known keys as the only keys that can occur."""
        shapes = list_shapes(self.keys)
        if 0 < len(shapes) <= MAX_LISTED and not self.rules.domain:
            words = f"if no other keys occur, declare `source: {{domain: {emit_flow(shapes)}}}`"
            yield Fix(words, (Edit(("source", "domain"), shapes),))

    def close(self) -> Iterator[Fix]:
        """Name the keys that pass through, and let no other keys pass."""
        passing = list_shapes([key for key in self.keys if not self.rules.match(key)])
        if 0 < len(passing) <= MAX_LISTED:
            keep = [*(self.data.get("keep") or ()), *passing]
            words = f"name these keys, `keep: {emit_flow(passing)}`, and remove `unmatched`"
            yield Fix(words, (Edit(("keep",), keep), Edit(("unmatched",))))
        elif not passing:
            words = "remove `unmatched: keep`, and name under `keep:` the keys that are to pass through"
            yield Fix(words, (Edit(("unmatched",)),), is_certain=True)
        yield from self.declare_domain()


def list_shapes(keys: Sequence[str]) -> list[str]:
    """Return paths for keys, in which every index is any whole number.

    >>> list_shapes(["a.0.w", "a.1.w", "b"])
    ['a.{i:int}.w', 'b']
    """
    shapes = dict[str, None]()
    for key in keys:
        names = iter("ijklmnopqrstuvwxyz")
        segments = [
            f"{{{next(names, 'z')}:int}}" if is_canonical_integer(each) else literal_text(each)
            for each in key.split(".")
        ]
        shapes[".".join(segments)] = None
        if len(shapes) > 2 * MAX_LISTED:
            break
    return list(shapes)


def _matches(key_map: KeyMap, key: str) -> bool:
    return key_map.reader(key) is not None
