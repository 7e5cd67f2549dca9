"""Candidates for fixes of a finding, the most likely first; `FixTester` decides which of them work."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import partial

from remapkit.diagnostics.wording import join_words
from remapkit.patterns.literals import literal_text
from remapkit.patterns.pattern import SEGMENT, Part
from remapkit.patterns.template import MapItem
from remapkit.proofs.concrete import list_lossy_captures
from remapkit.proofs.edit_rules import core_of
from remapkit.proofs.fixes import Edit, Fix, Place
from remapkit.proofs.keymap import KeyMap, readings
from remapkit.proofs.narrow import MAX_LISTED, Narrower
from remapkit.proofs.witness import Witness
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rules.model import CompiledRules
from remapkit.tensors.families import is_canonical_integer


class Proposer(Narrower):
    """Finds candidates for fixes; `keys` are known source keys."""

    def __init__(self, rules: CompiledRules, key_maps: Sequence[KeyMap], keys: Sequence[str]) -> None:
        super().__init__(rules, keys)
        self.key_maps = key_maps

    # -------------------------------------------------------------------------------------------- by fault

    def find_places(self, witness: Witness) -> list[Place]:
        """Return the entries of the rule file that a witness is about."""
        return [self.find_entry(self.key_maps[number]) for number in witness.key_maps]

    def list_fixes(self, witness: Witness) -> Iterator[Fix]:
        """Yield candidates for a witness, the most likely first."""
        found = [self.key_maps[number] for number in witness.key_maps]
        self.is_about_several = len({key_map.owner for key_map in found}) > 1
        if witness.fault == "ambiguous":
            yield from self.fix_ambiguous(witness, found[0], found[1])
        elif witness.fault == "cut":
            yield from self.fix_cut(found[0], witness)
        elif witness.fault == "open":
            yield from self.close()
        elif witness.fault == "across":
            yield from self.fix_across(witness, found[0], found[1])
        elif len(found) == 2:
            yield from self.fix_outputs(found[0], found[1])
        elif witness.lost is not None:
            _, values = self.cut_known(found[0], witness.lost)
            if len(values) == 1:
                yield self.write_literal(found[0], witness.lost, values[0])
            yield from self.fix_lost(found[0], found[0].pattern.parts[witness.lost])
        else:
            yield from self.fix_split(found[0], witness)

    def simplify(self, found: Sequence[KeyMap]) -> Iterator[Fix]:
        """Yield candidates for a question that took too long."""
        self.is_about_several = len({key_map.owner for key_map in found}) > 1
        for key_map in found:
            yield from self.narrow_classes(key_map)

    def fix_ambiguous(self, witness: Witness, one: KeyMap, other: KeyMap) -> Iterator[Fix]:
        key = witness.keys[0]
        same_rule = one.owner == other.owner
        for number in witness.covered:
            covered, by = (one, other) if number == witness.key_maps[0] else (other, one)
            if "concat" in self.find_pattern(covered):
                yield from self.remove_source(covered)
            elif witness.targets[0] == witness.targets[1]:
                yield self.remove(covered, f": {by.rule_id} gives its keys the same names")
        for wide, narrow in ((one, other), (other, one)):
            yield from self.exclude(wide, key, partial(_matches, narrow))
        for wide in (one, other):
            yield from self.narrow_classes(wide)
            if not key:
                yield from self.refuse_empty(wide)
        yield from self.declare_domain()
        if not same_rule:
            for number in witness.covered:
                covered, by = (one, other) if number == witness.key_maps[0] else (other, one)
                if "concat" not in self.find_pattern(covered):
                    yield self.remove(covered, f": {by.rule_id} matches all of its keys")
            yield from (self.remove(each) for each in (one, other) if each.kind != "rule")

    def fix_across(self, witness: Witness, one: KeyMap, other: KeyMap) -> Iterator[Fix]:
        excluded = [list(self.exclude(key_map, key)) for key_map, key in zip((one, other), witness.keys, strict=True)]
        yield from itertools.chain(*excluded)
        if all(excluded):
            left, right = (fixes[0] for fixes in excluded)
            yield Fix(f"{left.words}, and {right.words}", (*left.edits, *right.edits), narrows=True)
        yield from self.declare_domain()
        for key_map, key in ((other, witness.keys[1]), (one, witness.keys[0])):
            place = self.find_template(key_map)
            if place is not None:
                prefix = literal_text(key.split(".")[0]) or literal_text(key_map.rule_id.split(".")[0])
                fix = self.retarget(key_map, f"{prefix}.{self.get_value(place)}")
                yield from () if fix is None else (fix,)

    def fix_cut(self, key_map: KeyMap, witness: Witness) -> Iterator[Fix]:
        """Make one of two readings impossible."""
        yield from self.narrow_and_separate(key_map)
        for number, part in enumerate(key_map.pattern.parts):
            texts = [reading[number] for reading in witness.readings]
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

    def fix_outputs(self, one: KeyMap, other: KeyMap) -> Iterator[Fix]:
        """Give two outputs of one rule different targets."""
        place = self.find_template(other)
        if place is None:
            return
        text = self.get_value(place)
        before, dot, leaf = text.rpartition(".")
        for changed in (f"{before}{dot}{leaf}_2", f"{text}.2", f"second.{text}"):
            yield Fix(f"give the second output its own target: {changed}", (Edit(place, changed),))

    def fix_lost(self, key_map: KeyMap, part: Part) -> Iterator[Fix]:
        """Use a part of the pattern that the target omits, or declare that it may be omitted."""
        text, place = key_map.pattern.text.value, self.find_template(key_map)
        if part.name is not None and part.name in key_map.folded:
            yield from self.spell_once(key_map, part)
            return
        if place is None:
            return
        to = self.get_value(place)
        if part.name is not None:
            left = [name for name in key_map.forget if name != part.name]
            forget = Edit((*self.find_entry(key_map), "forget"), left or None)
            words = f"use {part.name!r} in `to:` and remove it from `forget:`: "
            for target in self.insert_field(key_map, part, to, part.name):
                yield Fix(f"{words}write to: {target}", (Edit(place, target), forget))
            return
        yield from self.escape_dots(key_map)
        start, end = core_of(part)[0]
        taken = {each.name for each in key_map.pattern.captures}
        name = next(name for n in itertools.count() if (name := f"x{n or ''}") not in taken)
        captured = f"{text[:start]}(?P<{name}>{text[start:end]}){text[end:]}"
        pattern = self.set_pattern(key_map, captured)
        uses = [
            Fix(f"use it in `to:`: write match: {captured} and to: {target}", (pattern, Edit(place, target)))
            for target in self.insert_field(key_map, part, to, name)
        ]
        forget = Edit((*self.find_entry(key_map), "forget"), [*key_map.forget, name])
        words = f"if it never differs within one checkpoint, write match: {captured} and add `forget: [{name}]`"
        yield from (uses[0], Fix(words, (pattern, forget)), *uses[1:])

    def insert_field(self, key_map: KeyMap, part: Part, to: str, name: str) -> Iterator[str]:
        """Yield templates with one more field: after the field of the capture before it, or as the last segment."""
        parts = key_map.pattern.parts
        before = [str(each.name) for each in parts[: parts.index(part)] if each.name is not None]
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
        text, (start, end) = key_map.pattern.text.value, part.at
        if part.name in self.list_guards(key_map):
            words = [word for word in part.values or () if is_canonical_integer(word)]
            if words:
                yield self.restrict(key_map, part, words)
            return
        is_path = key_map.pattern.surface == "path"
        written = f"{{{part.name}:int}}" if is_path else f"(?P<{part.name}>0|[1-9][0-9]*)"
        yield Fix(
            f"write {key_map.pattern.surface}: {text[:start]}{written}{text[end:]}",
            (self.set_pattern(key_map, f"{text[:start]}{written}{text[end:]}"),),
        )

    def fix_split(self, key_map: KeyMap, witness: Witness) -> Iterator[Fix]:
        """Fix a target that several keys share although it uses all captures."""
        place = self.find_template(key_map)
        if place is None:
            return
        to = self.get_value(place)
        if witness.admitted:
            yield from self.drop_lossy_words(key_map, witness)
            return
        yield from self.fix_arithmetic(key_map, to)
        for sign in (".", "_", "-"):
            if "}{" in to:
                pairs = ", ".join(f"{a} and {b}" for a, b in re.findall(r"(\{[^{}]*\})(?=(\{[^{}]*\}))", to))
                changed = to.replace("}{", f"}}{sign}{{")
                fix = self.retarget(key_map, changed)
                if fix is not None:
                    yield Fix(f"separate {pairs}: write to: {changed}", fix.edits)
        yield from self.narrow_and_separate(key_map)
        captures = [part for part in key_map.pattern.captures if part.node == SEGMENT]
        for part in captures:
            start, end = part.at
            text = key_map.pattern.text.value
            if key_map.pattern.surface == "path":
                yield self.rewrite(key_map, f"{text[:start]}{{{part.name}:int}}{text[end:]}")

    def fix_arithmetic(self, key_map: KeyMap, to: str) -> Iterator[Fix]:
        """Make arithmetic injective: restrict a capture, add a remainder, or write the captures themselves."""
        for item in key_map.items or ():
            if not isinstance(item, MapItem) or item.table is not None:
                continue
            parts = [key_map.pattern.capture(name) for name in item.names]
            for step in map(int, re.findall(r"\*\s*(\d+)", item.written)):
                for part in parts[1:]:
                    words = [word for word in (part.values or ()) if int(word) < step] if part is not None else []
                    if part is not None and words and len(words) < len(part.values or ()):
                        yield self.restrict(key_map, part, words)
            fields = [
                field for field in re.findall(r"\{[^{}]*\}", to) if field[1:-1].strip() == item.written.strip("{} ")
            ]
            for field in fields[:1]:
                divided = re.fullmatch(r"\{(\w+)\s*//\s*(\d+)\}", field)
                written = (
                    f"{field}.{{{divided[1]}%{divided[2]}}}" if divided else ".".join(f"{{{n}}}" for n in item.names)
                )
                fix = self.retarget(key_map, to.replace(field, written, 1))
                yield from () if fix is None else (fix,)

    def drop_lossy_words(self, key_map: KeyMap, witness: Witness) -> Iterator[Fix]:
        """Exclude one of two words that a lossy table maps to one value."""
        one, other = (key_map.reader(key) or {} for key in witness.keys)
        for name in list_lossy_captures(key_map):
            part = key_map.pattern.capture(name)
            if part is None or part.values is None or one.get(name) == other.get(name):
                continue
            tables = (item for item in key_map.items or () if isinstance(item, MapItem) and item.names == (name,))
            table = next((item for item in tables if item.table in key_map.lossy), None)
            if table is None:
                continue
            seen = dict[str, str]()
            for word in part.values:
                seen.setdefault(table.mapping[(word,)], word)
            yield self.restrict(key_map, part, list(seen.values()))

    # -------------------------------------------------------------------------------------------- what is known

    def cut_known(self, key_map: KeyMap, lost: int) -> tuple[list[tuple[str, ...]], list[str]]:
        """Split the known keys into parts; return also the different values of a lost part, without fixed text."""
        _, before, after = core_of(key_map.pattern.parts[lost])
        found = [
            tuple(text[before : len(text) - after] if number == lost else text for number, text in enumerate(cuts[0]))
            for key in self.keys
            if (cuts := readings(key_map.pattern, key, 2))
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
