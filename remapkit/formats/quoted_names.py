"""Rewrite the names of tensors and modules that entries of `__metadata__` quote, or say why an entry cannot be.

Where names lie is known for `_quantization_metadata` (ComfyUI) and `lora_adapter_metadata` (diffusers). In any other
entry that is JSON, a text with a dot that names a tensor or a module of the file is that name; a single word may be
anything, unless it lies beside such a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic, Severity
from remapkit.diagnostics.wording import count_noun, list_names, show_key
from remapkit.files.json_edit import Member, Node, encode_like, is_same_json, parse_nodes, write_members
from remapkit.formats.name_map import NameMap, Names, UnclearName

QUANTIZATION = "_quantization_metadata"
"""ComfyUI: `{"layers": {MODULE: {"format": "float8_e4m3fn"}}}`."""
LORA = "lora_adapter_metadata"
"""diffusers: the fields of `LoraConfig`, each behind the model that it is of: `transformer.target_modules`."""

ENDS = ("target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "exclude_modules", "ignore")
"""Fields that refer to modules by the end of their path."""

DEEPEST = 100
"""The deepest nesting of an entry that is read."""
_OF_PATTERNS = frozenset("*+?()|^$\\{}[]")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as it will be written: what was rewritten, and what was not, with the reason.

    If there is a reason, the text is the old one.
    """

    text: str
    rewritten: Mapping[str, Names] = field(default_factory=dict)
    unclear: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Place:
    """What texts at a place are: `any`, names of `modules` or their `ends` below a module, or `nothing`."""

    kind: str
    below: str = ""
    is_certain: bool = False


_NOTHING = _Place("nothing")


def may_quote(text: str) -> bool:
    """Return whether a text may be JSON that contains names: an object, a list or a string."""
    return text.lstrip()[:1] in ("{", "[", '"')


def rewrite_entries(metadata: Mapping[str, str], names: NameMap) -> dict[str, Entry]:
    """Return the entries that quote names which change.

    >>> names = NameMap({"a.q.weight": ["b.q.weight"]})
    >>> entry = '{"layers": {"a.q": {"format": "float8_e4m3fn"}}}'
    >>> rewrite_entries({"_quantization_metadata": entry, "who": "a.q"}, names)["_quantization_metadata"].text
    '{"layers": {"b.q": {"format": "float8_e4m3fn"}}}'
    """
    found = {}
    for name, text in metadata.items():
        if may_quote(text) and not names.is_identity and (root := parse_nodes(text)) is not None:
            entry = _Rewriter(name, text, names).rewrite(root)
            if entry.rewritten or entry.unclear:
                found[name] = entry
    return found


def rewrite_quoted(metadata: dict[str, str], names: NameMap, place: str) -> list[Diagnostic]:
    """Rewrite entries of the metadata of a file whose tensors are read under other names; return what stays stale."""
    found = rewrite_entries(metadata, names)
    metadata.update({name: entry.text for name, entry in found.items()})
    return [report_entry(name, entry, place) for name, entry in found.items() if entry.unclear]


def read_layers(text: str) -> dict[str, str]:
    """Return what `_quantization_metadata` says of each module, as JSON.

    >>> read_layers('{"layers": {"a": {"format": "float8_e4m3fn"}}}')
    {'a': '{"format": "float8_e4m3fn"}'}
    """
    return {
        member.key: text[member.value.start : member.value.end]
        for node in _find_layers(parse_nodes(text))
        for member in node.members
        if member.key is not None
    }


def _find_layers(root: Node | None) -> list[Node]:
    members = root.members if root is not None and root.opens == "{" else ()
    return [each.value for each in members if each.key == "layers" and each.value.opens == "{"]


def merge_entries(name: str, first: str, second: str) -> str | None:
    """Return one entry for those of two files, or None if they contradict each other.

    Equal JSON is one entry, and `_quantization_metadata` of different modules is that of all of them.

    >>> one, two = '{"layers": {"a": {}}}', '{"layers": {"b": {}}}'
    >>> merge_entries("_quantization_metadata", one, two), merge_entries("other", one, two)
    ('{"layers": {"a": {}, "b": {}}}', None)
    """
    if first == second or (may_quote(first) and is_same_json(first, second)):
        return first
    nodes = [_find_layers(parse_nodes(text)) for text in (first, second)] if name == QUANTIZATION else [[]]
    if not all(len(each) == 1 for each in nodes):
        return None
    (one,), (other,) = nodes
    rest = [text[: node.start] + "{}" + text[node.end :] for text, node in ((first, one), (second, other))]
    known, more = read_layers(first), read_layers(second)
    if not is_same_json(*rest) or not all(is_same_json(known[key], more[key]) for key in known if key in more):
        return None
    if not one.members:
        return second
    groups = [[first[each.start : each.value.end]] for each in one.members]
    groups[-1] += [second[each.start : each.value.end] for each in other.members if each.key not in known]
    return first[: one.start] + write_members(first, one, groups) + first[one.end :]


def report_entry(name: str, entry: Entry, place: str) -> Diagnostic:
    """Return the message on an entry that quotes names which change: RK369 or RK740."""
    if entry.unclear:
        count = count_noun(len(entry.unclear), "name")
        title = (
            f"the metadata entry `{show_key(name)}` contains {count} that the rules change; it is copied unchanged"
        )
        lines = [f"{show_key(each)}: {why}" for each, why in entry.unclear.items()]
        help = "correct the entry in the written file; programs that read it would look for the old names"
        values: dict[str, Any] = {"entry": name, "names": list(entry.unclear), "reasons": dict(entry.unclear)}
        return Diagnostic("RK369", title, (), (help,), (list_names(lines),), Severity.WARNING, place, values)
    count = count_noun(len(entry.rewritten), "name")
    title = f"{count} in the metadata entry `{show_key(name)}` rewritten"
    lines = [f"{show_key(old)} -> {_show_new(new)}" for old, new in entry.rewritten.items()]
    values = {"entry": name, "names": {old: list(new) for old, new in entry.rewritten.items()}}
    return Diagnostic("RK740", title, (), (), (list_names(lines),), Severity.NOTE, place, values)


def _show_new(names: Sequence[str]) -> str:
    return ", ".join(map(show_key, names[:3])) + (", ..." if len(names) > 3 else "") if names else "removed"


class _Rewriter:
    """One entry; every `_write` returns the new text of a node, or None if it stays."""

    def __init__(self, entry: str, text: str, names: NameMap) -> None:
        self.entry, self.text, self.names = entry, text, names
        self.rewritten: dict[str, Names] = {}
        self.unclear: dict[str, str] = {}

    def rewrite(self, root: Node) -> Entry:
        known = self.entry in (QUANTIZATION, LORA)
        new = self._write(root, _Place(self.entry if known and root.opens == "{" else "any"), 0)
        if self.unclear:
            return Entry(self.text, {}, self.unclear)
        if new is None:
            return Entry(self.text)
        return Entry(self.text[: root.start] + new + self.text[root.end :], self.rewritten)

    def _write(self, node: Node, place: _Place, depth: int) -> str | None:
        if depth > DEEPEST:
            self.unclear["..."] = f"it is nested deeper than {DEEPEST} levels"
            return None
        if place.kind == "nothing":
            return None
        if node.text is not None:
            return self._write_text(node, place)
        if node.opens == "{":
            return self._write_object(node, place, depth)
        return self._write_list(node, place, depth) if node.opens else None

    def _write_text(self, node: Node, place: _Place) -> str | None:
        assert node.text is not None
        new = self._find(node.text, place)
        if new is not None and len(new) == 1:
            return encode_like(new[0], self.text[node.start : node.end])
        if new is not None:
            said = (
                f"it would become {len(new)} names in a place for one"
                if new
                else "it is dropped, but its place stays"
            )
            self.unclear[node.text] = said
        return None

    def _write_list(self, node: Node, place: _Place, depth: int) -> str | None:
        place = self._settle_words(place, (each.value.text for each in node.members))
        changed, groups = False, list[list[str]]()
        owners: dict[str, str] = {}
        for member in node.members:
            text, token = member.value.text, self._cut(member.value)
            if text is None:
                inner = self._write(member.value, place, depth + 1)
                changed = changed or inner is not None
                groups.append([token if inner is None else inner])
                continue
            new = self._find(text, place)
            changed = changed or new is not None
            own = [name for name in ((text,) if new is None else new) if owners.setdefault(name, text) == text]
            groups.append([token if new is None else encode_like(name, token) for name in own])
        return write_members(self.text, node, groups) if changed else None

    def _write_object(self, node: Node, place: _Place, depth: int) -> str | None:
        place = self._settle_words(place, (each.key for each in node.members))
        changed, groups = False, list[list[str]]()
        owners: dict[str, tuple[str, str]] = {}
        for member in node.members:
            key = member.key or ""
            new = self._find(key, place) if place.kind in ("any", "modules", "ends") else None
            inner = self._write(member.value, self._enter(key, place), depth + 1)
            changed = changed or new is not None or inner is not None
            value = self._cut(member.value) if inner is None else inner
            groups.append([])
            for name in (key,) if new is None else new:
                owner = owners.setdefault(name, (key, value))
                if owner[0] == key:
                    groups[-1].append(self._write_key(member, name) + value)
                elif not is_same_json(owner[1], value):
                    said = f"{owner[0]} and {key} both become {name}, with different values"
                    self.unclear.update({owner[0]: said, key: said})
        return write_members(self.text, node, groups) if changed else None

    def _write_key(self, member: Member, name: str) -> str:
        token = self.text[member.start : member.key_end]
        between = self.text[member.key_end : member.value.start]
        return (token if name == member.key else encode_like(name, token)) + between

    def _enter(self, key: str, place: _Place) -> _Place:
        """Return what the texts in the value of a key are."""
        if place.kind == QUANTIZATION:
            return _Place("modules") if key == "layers" else _NOTHING
        head, _, last = key.rpartition(".")
        if place.kind in ("any", LORA) and last in ENDS:
            return _Place("ends", head if self.names.is_below(head) else "")
        if place.kind in ("modules", LORA):
            return _NOTHING
        return replace(place, is_certain=False)

    def _settle_words(self, place: _Place, texts: Iterable[str | None]) -> _Place:
        """Return the place of the texts of one list or object: one name with a dot makes words beside it names."""
        if place.kind != "any":
            return place
        return replace(place, is_certain=any(text and "." in text and self._is_name(text, place) for text in texts))

    def _is_name(self, text: str, place: _Place) -> bool:
        try:
            found = self.names.find_ends(text, place.below) if place.kind == "ends" else self.names.find(text)
        except UnclearName:
            return True
        return found is not None

    def _find(self, text: str, place: _Place) -> Names | None:
        """Return the new names of a text, or None if it stays; notes why if neither is right."""
        try:
            new = self._find_ends(text, place.below) if place.kind == "ends" else self.names.find(text)
        except UnclearName as unclear:
            self.unclear[text] = str(unclear)
            return None
        if new is None or new == (text,):
            return None
        if place.kind == "any" and "." not in text and not place.is_certain:
            self.unclear[text] = "it may be the name, or only the same word"
            return None
        self.rewritten[text] = new
        return new

    def _find_ends(self, text: str, below: str) -> Names | None:
        """Find an end, which may be written as a regular expression for it, as PEFT reads keys of `rank_pattern`."""
        literal = re.sub(r"\\(\W)", r"\1", text)
        if not _OF_PATTERNS.isdisjoint(literal):
            if self.names.renames:
                raise UnclearName("it is a pattern")
            return None
        new = self.names.find_ends(literal, below)
        return new if new is None or literal == text else tuple(map(re.escape, new))

    def _cut(self, node: Node) -> str:
        return self.text[node.start : node.end]
