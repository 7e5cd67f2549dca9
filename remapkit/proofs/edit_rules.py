"""Edits of a rule file: where patterns and templates are in its data, and how fixes describe their changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from remapkit.patterns.literals import literal_text
from remapkit.patterns.pattern import Part
from remapkit.patterns.tree import Chars, Seq
from remapkit.proofs.fixes import Edit, Fix, Place, read_data
from remapkit.proofs.keymap import KeyMap
from remapkit.rulefile.yaml.emit import emit_flow
from remapkit.rules.model import CompiledRules
from remapkit.tensors.families import is_canonical_integer


class RuleEditor:
    """Makes edits of a rule file, whose content is read only when a finding needs a fix."""

    def __init__(self, rules: CompiledRules) -> None:
        self.rules = rules
        self.is_about_several = False

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The content of the rule file as plain data."""
        return read_data(self.rules)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The place of each rule by its id."""
        return {rule.id.value: number for number, rule in enumerate(self.rules.file.rules)}

    def find_entry(self, key_map: KeyMap) -> Place:
        """Return the place of the rule, `keep` or `drop` of a key map."""
        if key_map.kind == "rule":
            return "rules", self.numbers[key_map.rule_id]
        return key_map.kind, int(key_map.rule_id.removeprefix(f"{key_map.kind}[").removesuffix("]"))

    def get_value(self, place: Place) -> Any:
        value: Any = self.data
        for step in place:
            value = value[step]
        return value

    def find_pattern(self, key_map: KeyMap) -> Place:
        """Return the place of the mapping or the text of a pattern."""
        place = self.find_entry(key_map)
        inside = key_map.kind == "rule" and "concat" in self.get_value(place)
        return (*place, "concat", "from", key_map.branch) if inside else place

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

    def find_template(self, key_map: KeyMap) -> Place | None:
        """Return the place of the text of a template; None for a `keep` or `drop`."""
        rule = next((each for each in self.rules.file.rules if each.id.value == key_map.rule_id), None)
        if key_map.kind != "rule" or rule is None:
            return None
        place = self.find_entry(key_map)
        written = self.get_value(place)
        if rule.pipeline is None or "to" in written:
            return *place, "to"
        number = next(n for n, output in enumerate(rule.pipeline.outputs) if output.to.span == key_map.to)
        field: Place = ("split", "into") if "split" in written else ("copy",) if "copy" in written else ("tie",)
        output = (*place, *field, number)
        return output if isinstance(self.get_value(output), str) else (*output, "to")

    def rewrite(self, key_map: KeyMap, text: str, *others: Edit, narrows: bool = True, also: str = "") -> Fix:
        """Return a fix that replaces a pattern."""
        words = f"write {key_map.pattern.surface}: {text}{also}"
        return Fix(self.say_where(key_map) + words, (self.set_pattern(key_map, text), *others), narrows)

    def retarget(self, key_map: KeyMap, text: str) -> Fix | None:
        """Return a fix that replaces a template."""
        place = self.find_template(key_map)
        if place is None:
            return None
        return Fix(f"{self.say_where(key_map)}write to: {text}", (Edit(place, text),))

    def say_where(self, key_map: KeyMap) -> str:
        """Return the words that name the rule to change, if the finding is about several."""
        return f"in {self.name_pattern(key_map)}, " if self.is_about_several else ""

    def restrict(self, key_map: KeyMap, part: Part, words: Sequence[str]) -> Fix:
        """Return a fix that restricts a capture to some of its words."""
        name, pattern = str(part.name), key_map.pattern
        value = write_words(words)
        guarded = name in self.list_guards(key_map)
        if isinstance(value, str) and pattern.surface == "path" and not guarded:
            start, end = part.at
            text = pattern.text.value
            edit = self.set_pattern(key_map, f"{text[:start]}{{{name}:{value}}}{text[end:]}")
            written = text[start:end]
            words_ = f"restrict {written} of {self.name_pattern(key_map)} to {{{name}:{value}}}"
            return Fix(words_, (edit,), narrows=True)
        edit = self.set_guard(key_map, ("where", name), value)
        verb = "change" if guarded else "add"
        words_ = (
            f"{verb} `where: {emit_flow({name: value})}` {'in' if guarded else 'to'} {self.name_pattern(key_map)}"
        )
        return Fix(words_, (edit,), narrows=True)

    def write_literal(self, key_map: KeyMap, lost: int, value: str) -> Fix:
        """Return a fix that replaces a part of a pattern with the only text that is known for it."""
        text, (start, end) = key_map.pattern.text.value, core_of(key_map.pattern.parts[lost])[0]
        if key_map.pattern.surface == "path":
            escaped = literal_text(value)
        else:
            escaped = re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", value)
            opened = re.search(r"\(\?P<\w+>$", text[:start])
            if opened is not None and text[end : end + 1] == ")":
                start, end = opened.start(), end + 1
        name = key_map.pattern.parts[lost].name
        left = [each for each in key_map.forget if each != name]
        forget = (Edit((*self.find_entry(key_map), "forget"), left or None),) if name in key_map.forget else ()
        also = f", and remove {name!r} from `forget:`" if forget else ""
        return self.rewrite(key_map, f"{text[:start]}{escaped}{text[end:]}", *forget, also=also)

    def name_pattern(self, key_map: KeyMap) -> str:
        """Return the id of a rule, with the source if it has several."""
        if "concat" not in self.find_pattern(key_map):
            return key_map.rule_id
        return f"the source {key_map.pattern.text.value} of {key_map.rule_id}"

    def list_guards(self, key_map: KeyMap) -> tuple[str, ...]:
        written = self.get_value(self.find_pattern(key_map))
        return tuple(written.get("where") or ()) if isinstance(written, dict) else ()

    def remove_source(self, key_map: KeyMap) -> Iterator[Fix]:
        """Remove one source of a `concat`; if only one is left, the rule reads that one directly."""
        place = self.find_pattern(key_map)
        if "concat" not in place:
            return
        words = f"remove the source {key_map.pattern.text.value}"
        sources = self.get_value(place[:-1])
        if len(sources) > 2:
            yield Fix(words, (Edit(place),))
            return
        other = sources[1 - key_map.branch]
        fields = {"path": other} if isinstance(other, str) else other
        rule = place[:2]
        if set(fields).isdisjoint(self.get_value(rule)):
            sets = (Edit((*rule, name), value) for name, value in fields.items())
            yield Fix(f"{words}, and read the other one without `concat`", (Edit((*rule, "concat")), *sets))

    def remove(self, key_map: KeyMap, why: str = "") -> Fix:
        return Fix(f"remove {key_map.rule_id}{why}", (Edit(self.find_entry(key_map)),), narrows=True)

    def retype(self, key_map: KeyMap, part: Part, kind: str) -> Iterator[Fix]:
        if key_map.pattern.surface == "path" and part.name not in self.list_guards(key_map):
            start, end = part.at
            text = key_map.pattern.text.value
            edit = self.set_pattern(key_map, f"{text[:start]}{{{part.name}:{kind}}}{text[end:]}")
            words = f"restrict {text[start:end]} of {self.name_pattern(key_map)} to {{{part.name}:{kind}}}"
            yield Fix(words, (edit,), narrows=True)


def write_words(words: Sequence[str]) -> str | list[str]:
    """Return the words of a guard as a rule file has them: as a range if they are one, else as a list.

    >>> write_words(["2", "3", "4"]), write_words(["0", "2"])
    ('2..4', ['0', '2'])
    """
    numbers = sorted(map(int, words)) if all(map(is_canonical_integer, words)) else []
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}..{numbers[-1]}"
    return [literal_text(word) for word in words]


def core_of(part: Part) -> tuple[tuple[int, int], int, int]:
    """Return the position of a part without its fixed characters, and the numbers of those before and after it."""
    items = part.node.items if isinstance(part.node, Seq) else (part.node,)
    fixed = [isinstance(item, Chars) and item.chars[0][0] == item.chars[-1][1] for item in items]
    if part.name is not None or all(fixed):
        return part.at, 0, 0
    before, after = fixed.index(False), fixed[::-1].index(False)
    return (items[before].at[0], items[len(items) - 1 - after].at[1]), before, after
