"""Random rule files as plain data, with every feature of the rule language, few characters and short keys."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from key_oracle import fits

T = TypeVar("T")
Data = dict[str, Any]

PIECES = (
    "a", "a*", "b?", "a|b", "[ab]", "[ab]*", "[ab.]*", "[^.]+", "aa?", "a*b?", "[ab]{2}", "(?:a|b0)*", "0|a",
    r"\d+", "[01]", r"\w", ".", ".*", ".+", "(?:ab)*", "(?:a|ab)", "(?:aa)*", "(?:ba)?", "a{1,2}", "[^.]*",
    "(?:a?b)*", "(?:a*)*", "[a.]+", r"(?:a|\.a)", "a+", "(?:a|aa|b)", r"\D", r"\S*", "[^a]", "[^.a]*",
    "[a-b0-1]", "a{2,}", r"\W?", "(?:a|b){1,2}",
)  # fmt: skip
"""What captures of a `match` may be."""
CLEAN = ("[^.]+", r"\d+", "[ab]+", "a|b", "[ab]*", r"\d", "a*")
"""What they are in rules of which little is wrong: a single fault stands out."""
INDEX_PIECES = (r"\d", r"[01]+", "0|1[01]*", "[01]{1,2}", "0?1", "0|1")
"""What the capture of a `stack` may be."""
BETWEEN = ("a", "b", r"\.", r"\.", r"a\.", "0", "x")
LOOSE = ("a", "b", r"\.", "a*", "[ab]", "x?", r"(?:\.b)?", "(?:a|b)", ".*")
WORDS = ("a", "b", "0", "1", "ab", "aa", "ba", "x", "10")
TABLES: tuple[dict[str, str], ...] = (
    {"a": "b", "b": "a"},
    {"a": "x", "b": "x"},
    {"0": "1", "1": "0", "a": "0"},
    {"a": "", "b": "b"},
    {"a": "", "ab": "b", "b": ""},
    {"a": "a.b", "b": "a"},
    {"0": "a0", "a": "a"},
    {"a": "ab", "aa": "a", "b": "b"},
    {"0": "0", "1": "0", "10": "1"},
    {"a.b": "a", "a": "b"},
)
RANGES = (
    ("0..1", ("0", "1")),
    ("0..2", ("0", "1", "2")),
    ("1..2", ("1", "2")),
    ("0..p-1", ("0", "1")),
    ("p//2..p", ("1", "2")),
)
"""Ranges of guards, and their numbers."""
OPS: tuple[Any, ...] = (
    "transpose",
    {"scale": 2},
    {"cast": "F16"},
    {"squeeze": 0},
    {"reshape": ["p", -1]},
    "flip_halves",
)


@dataclass(frozen=True)
class Capture:
    """A capture that a template may use; `values` are all that it can be, if they are few and known."""

    name: str
    values: tuple[str, ...] | None = None

    @property
    def is_counted(self) -> bool:
        return self.values is not None and all(fits("0|[1-9][0-9]*", value) for value in self.values)


class Maker:
    """Makes rule files from choices: `pick(n)` gives a number below n (random, or hypothesis's)."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        self.pick = pick
        self.tables: dict[str, dict[str, str]] = {}
        self.plain = False
        self.clean = False

    def of(self, choices: Sequence[T]) -> T:
        return choices[self.pick(len(choices))]

    def chance(self, one_in: int) -> bool:
        return self.pick(one_in) == 0

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        left = list(choices)
        return [left.pop(self.pick(len(left))) for _ in range(min(count, len(left)))]

    # -------------------------------------------------------------------------------------------- patterns

    def expression(self, depth: int = 2) -> str:
        """Return an expression without captures."""
        kind = self.pick(9) if depth else 0
        if kind < 6:
            return self.of(PIECES)
        inner = f"(?:{self.expression(depth - 1)})"
        # Where an iteration can be empty by an earlier branch, `re` ends the loop and takes no later branch.
        if kind == 6 and ("|" not in inner or not fits(inner, "")):
            return inner + self.of(("*", "+", "?", "{1,2}", "{2}", "{0,2}"))
        if kind < 8:
            return inner + f"(?:{self.expression(depth - 1)})"
        return f"{self.expression(depth - 1)}|{self.expression(depth - 1)}"

    def match(self, names: Sequence[str]) -> tuple[Data, list[Capture]]:
        text, where, captures = "", Data(), []
        for name in names:
            if self.clean or self.chance(2):
                text += self.of(BETWEEN) if not self.clean else r"\." if text else self.of(("", r"x\."))
            values: tuple[str, ...] | None = None
            if self.tables and self.chance(5):
                table = self.of(sorted(self.tables))
                piece, values = self.of((".*", "[^.]+", r"[\w.]*")), tuple(self.tables[table])
                where[name] = table
                values = tuple(value for value in values if fits(piece, value))
            elif self.chance(7):
                piece, (where[name], values) = r"\d+", self.of(RANGES)
            elif self.chance(6):
                piece = self.expression()
                inside = [word for word in ("", "a.b", *WORDS) if fits(piece, word)]
                if inside:
                    where[name] = self.some(inside, 1 + self.pick(3))
                    values = tuple(where[name])
            else:
                pieces = CLEAN if self.clean else PIECES
                piece = self.expression() if self.chance(3) and not self.clean else self.of(pieces)
            text += f"(?P<{name}>{piece})"
            captures.append(Capture(name, values))
        if self.chance(4):
            text += self.of(LOOSE)
        if self.chance(8) and not self.clean:
            text = self.of(LOOSE) + text
        return ({"match": text or "a", **({"where": where} if where else {})}, captures)

    def path(self, names: Sequence[str]) -> tuple[Data, list[Capture]]:
        segments, where, captures = [], Data(), []
        deep, before = False, ""
        for name in names:
            if self.chance(3):
                segments.append(self.of(("a", "b", "x", "0")))
                before = ""
            kinds: list[tuple[str, tuple[str, ...] | None]] = [
                ("", None), ("", None), (":int", None), (":0..1", ("0", "1")), (":0..2", ("0", "1", "2")),
                (":a|b", ("a", "b")), (":b|ab|a", ("a", "ab", "b")), (":**", None),
            ]  # fmt: skip
            kinds += [(f":{table}", tuple(entries)) for table, entries in self.tables.items()] * 2
            kinds += [(":0..p", ("0", "1", "2")), (":p-1..p*2-1", ("1", "2", "3")), (":p-1", ("1",))][self.pick(5) :]
            kinds += [(":0..11", tuple(map(str, range(12)))), (":0..39", tuple(map(str, range(40))))][self.pick(9) :]
            kind, values = self.of(kinds)
            if kind == ":**" and deep:
                kind = ""
            deep = deep or kind == ":**"
            segment = f"{{{name}{kind}}}"
            if kind != ":**" and self.chance(6):
                segment = self.of(("a", "b", "x")) + segment
            elif kind != ":**" and self.chance(8):
                segment += self.of(("a", "b"))
            # Several captures in one segment: the first is bounded, so that many such paths are accepted.
            if kind != ":**" and before not in ("", ":**") and self.chance(4):
                segments[-1] += self.of(("x", "_", "a", "")) + segment
            else:
                segments.append(segment)
            before = kind or self.of(("", ":"))
            if kind in ("", ":int", ":**") and self.chance(7):
                words = {"": WORDS, ":int": ("0", "1"), ":**": ("a", "a.b", "b.a", "ab", "a.a.b")}[kind]
                where[name] = self.some(words, 1 + self.pick(3))
                values = tuple(where[name])
            captures.append(Capture(name, values))
        if self.chance(3) or not segments:
            segments.insert(self.pick(len(segments) + 1), self.of(("a", "b", "x", "0") * 3 + ("{{", "a{'[0]'}")))
        return ({"path": ".".join(segments), **({"where": where} if where else {})}, captures)

    def pattern(self, names: Sequence[str]) -> tuple[Data, list[Capture]]:
        pattern, captures = (self.path if self.chance(2) else self.match)(names)
        if self.chance(8):
            pattern["leaf"] = self.some(("a", "b", "ab", "ba", "0", "aa", "1"), 2 + self.pick(3))
        return pattern, captures

    def names(self, prefix: str = "c") -> list[str]:
        return [f"{prefix}{number}" for number in range(1 + self.pick(3))]

    # -------------------------------------------------------------------------------------------- templates

    def field(self, captures: Sequence[Capture], capture: Capture) -> str:
        """Return a field that uses a capture: as it is, in a table, or as a number."""
        values = capture.values
        tables = [name for name, entries in self.tables.items() if values and set(values) <= set(entries)]
        if tables and not self.chance(3):
            return f"{{{capture.name}|{self.of(tables)}}}"
        if values is None or not capture.is_counted or self.chance(2):
            return f"{{{capture.name}}}"
        name = capture.name
        others = [each.name for each in captures if each.is_counted and each != capture]
        if others and self.chance(3):
            other = self.of(others)
            forms = (
                f"{name}*3+{other}",
                f"{name}*2+{other}",
                f"{name}+{other}",
                f"{name}*40+{other}",
                f"{other}*12+{name}",
                f"{name}*p+{other}",
                f"{name}+o[{other}%2]",
            )
            return "{" + self.of(forms) + "}"
        return (
            "{"
            + self.of(
                (
                    *(f"{name}+1", f"{name}*2", f"{name}//2", f"{name}%2", f"3*({name}+1)", f"{name}+9"),
                    *(f"{name}%3", f"p*20-{name}", f"{name}+p", f"{name}//p"),
                )
            )
            + "}"
        )

    def template(self, captures: Sequence[Capture], used: Sequence[Capture], *, shuffled: bool) -> str:
        fields = []
        for capture in used:
            fields.append(self.field(captures, capture))
            if capture.values is not None and self.chance(8):
                fields.append(self.field(captures, capture))
        if shuffled:
            fields = self.some(fields, len(fields))
        text, joint = "", self.of((".", ".", ""))
        for field in fields:
            if self.clean:
                text += joint if text else ""
            elif self.chance(2):
                text += self.of(
                    (".", ".", "a", "b", "0", "a.", "y", "{{", "{'[0]'}") if self.chance(4) else (".", "a", "b", "a.")
                )
            text += field
        if not text or self.chance(3):
            text += self.of(("a", "b", ".y", "0", "y"))
        return text

    # -------------------------------------------------------------------------------------------- rules

    def rule(self, id: str) -> Data:
        if self.chance(12):
            return self.adjacent(id)
        names = self.names()
        self.clean = self.chance(2)
        operations = ("", "", "concat", "stack", "unstack", "split", "copy", "tie", "both", "ops", "family", "merge")
        operation = "" if self.plain else self.of(operations)
        pattern, captures = self.pattern(names)
        rule: Data = {"id": id, **pattern}
        folded = ""
        if operation in ("stack", "both"):
            folded = self.fold(rule)
            rule["stack"] = {"dim": 0, "by": folded, **({"count": 2} if self.chance(5) else {})}
        if operation in ("concat", "both"):
            sources = [{key: rule.pop(key) for key in ("match", "path", "where", "leaf") if key in rule}]
            bounded = any(each.values is not None for each in captures)
            for _ in range(1 + self.chance(4)):
                fresh = not bounded and not folded and self.chance(3)
                sources.append(self.pattern(names)[0] if fresh else self.another(sources[0]))
            if self.chance(5):
                sources.insert(self.pick(len(sources) + 1), {**self.of(sources), "ops": ["zeros"]})
            rule["concat"] = {"dim": 0, "from": sources}
        if operation == "merge":
            rule["merge"] = [{key: rule.pop(key) for key in ("match", "path", "where", "leaf") if key in rule}]
            rule["merge"] += [self.another(rule["merge"][0]) for _ in range(1 + self.chance(4))]
        if operation == "family" or (operation == "stack" and self.chance(4)):
            folded = [self.fold(rule, name) for name in ("t", "s")[: 1 + self.chance(3)]]
            by = folded[0] if len(folded) == 1 else folded
            if self.chance(2):
                rule["merge"] = {"by": by}
            else:
                rule["concat"] = {
                    "dim": 0,
                    "by": by,
                    **({"sizes": [1, 2]} if self.chance(4) and len(folded) == 1 else {}),
                }
        if operation == "ops" or (operation and self.chance(12)):
            rule["ops"] = [self.of(OPS)]
        forgotten = self.of((6, 6, 6, 2))
        used = [capture for capture in captures if not self.chance(forgotten)]
        made = list(used)
        if operation == "unstack" or (operation == "both" and self.chance(2)):
            count = self.of((None, None, 2, 3, "p"))
            rule["unstack"] = {"dim": 0, "by": "k", **({} if count is None else {"count": count})}
            number = 2 if count == "p" else count
            made.append(Capture("k", None if number is None else tuple(map(str, range(number)))))
        if operation == "family" and self.chance(3):
            self.spread(rule, made)
        shuffled = self.chance(4) or ("unstack" in rule and not self.clean)
        self.outputs(rule, operation, captures, made, shuffled)
        target = str(rule.get("to", ""))
        lost = [capture.name for capture in captures if capture not in used]
        if any(f"{{{name}" in target for name in lost):
            return rule
        if self.chance(2):
            # Arithmetic may lose what differs, and say so.
            lost += [each.name for each in used if f"{{{each.name}%" in target or f"{{{each.name}//" in target]
        if lost:
            rule["forget"] = lost
        return rule

    def adjacent(self, id: str) -> Data:
        """Make a rule with an admitted loss between captures that the target does not keep apart."""
        free = ("a*", "[ab]*", "a+", "(?:ab?)*", "[^.]*", "b?")
        lost = self.of(("[01]", r"\d", "b?", "[^.]", "a|b"))
        between = self.of((r"\.", "", "x"))
        text = f"(?P<c0>{self.of(free)}){between}(?P<c1>{lost}){between}(?P<c2>{self.of(free)})"
        target = self.of(("{c0}{c2}", "{c2}{c0}", "y{c0}{c2}", "{c0}a{c2}", "{c0}.{c2}"))
        return {"id": id, "match": text, "to": target, "forget": ["c1"]}

    def outputs(
        self, rule: Data, operation: str, captures: Sequence[Capture], made: Sequence[Capture], shuffled: bool
    ) -> None:
        counted = [each for each in made if each in captures or each.name in ("k", "m", "n")]
        if operation in ("split", "copy", "tie") or (operation == "both" and self.chance(3)):
            texts = [self.template(counted, made, shuffled=shuffled) for _ in range(2 + self.chance(5))]
            if not self.chance(4):
                marks = self.some(("q", ".v", "a", "b"), len(texts))
                texts = [f"{text}{mark}" for text, mark in zip(texts, marks, strict=True)]
            if operation in ("copy", "tie"):
                rule[operation] = texts
            else:
                into = [{"to": texts[0], "ops": ["transpose"]} if self.chance(4) else texts[0], *texts[1:]]
                sizes = {"sizes": [1, "p", 2][: len(texts)]} if self.chance(4) else {}
                rule["split"] = {"dim": 0, "into": into, **sizes}
            return
        rule["to"] = self.template(counted, made, shuffled=shuffled)

    def spread(self, rule: Data, made: list[Capture]) -> None:
        """Add indices that `split` or `copy` counts."""
        names, numbers = ("m", "n")[: 1 + self.chance(3)], [self.of((1, 2, 3)), 2]
        counts: list[Any] = numbers[: len(names)]
        if numbers[0] == 2 and self.chance(2):
            counts[0] = "p"
        several = len(names) > 1
        by = {"by": list(names) if several else names[0], "count": counts if several else counts[0]}
        if self.chance(2):
            rule["copy"] = by
        else:
            rule["split"] = {"dim": 0, **by}
        made += [Capture(name, tuple(map(str, range(n)))) for name, n in zip(names, numbers, strict=False)]

    def fold(self, rule: Data, name: str = "e") -> str:
        """Add a capture that `stack`, `concat` or `merge` joins tensors by to a pattern."""
        if "match" in rule:
            mark = r"\." if self.clean else self.of(("", r"\.", "x"))
            index = f"(?P<{name}>{self.of(INDEX_PIECES)})"
            rule["match"] = f"{index}{mark}{rule['match']}" if self.chance(4) else f"{rule['match']}{mark}{index}"
        else:
            index = self.of(("{%s:int}", "{%s:0..2}", "{%s:0|1|00}", "x{%s:int}")) % name
            rule["path"] = f"{index}.{rule['path']}" if self.chance(4) else f"{rule['path']}.{index}"
        return name

    def another(self, source: Data) -> Data:
        """Return another source of a rule, with the same captures."""
        other = dict(source)
        name = "match" if "match" in other else "path"
        mark = self.of(("a", "b", "x", "y", "q"))
        change = self.pick(4)
        if change == 0:
            other[name] = f"{mark}{'.' if name == 'path' else ''}{other[name]}"
        elif change == 1:
            other[name] = f"{other[name]}.{mark}" if name == "path" else f"{other[name]}{mark}"
        elif change == 2 and name == "match":
            other[name] = rf"{mark}\.{other[name]}"
        else:
            other[name] = f"{mark}.{other[name]}" if name == "path" else f"{mark}{other[name]}"
        return other

    # -------------------------------------------------------------------------------------------- files

    def file(self, *, plain: bool = False) -> Data:
        """Make a file; `plain`: it only renames, keeps and drops."""
        data: Data = {"remapkit": 1, "name": "t"}
        self.tables, self.plain = {}, plain or self.chance(2)
        if self.chance(2):
            self.tables = {name: self.of(TABLES) for name in ("t", "u")[: 1 + self.chance(3)]}
        rules = [self.rule(f"r{number}") for number in range(self.of((1, 1, 1, 2, 2, 3)))]
        data["rules"] = rules
        for kind in ("keep", "drop"):
            if self.chance(5):
                pattern, _ = self.pattern(self.names("d"))
                plain = set(pattern) == {"path"} and self.chance(2)
                data[kind] = [pattern["path"] if plain else pattern]
        if self.chance(5):
            data["source"] = {"domain": [self.domain() for _ in range(1 + self.pick(3))]}
        if not self.plain and self.chance(3):
            data["add"] = [self.added() for _ in range(1 + self.chance(4))]
        if self.chance(4):
            data["unmatched"] = self.of(("keep", "keep", "drop"))
        if self.chance(6):
            words = ("a", "b", "0", "1", "ab", "x", "10")
            data["header"] = [".".join(self.some(words, 1 + self.pick(3))) for _ in range(1 + self.pick(4))]
        if re.search(r"\b[po]\b", repr(data)):
            data["params"] = {"p": 2, "o": [0, 3]}
        self.add_tables(data)
        return data

    def domain(self) -> str | Data:
        pattern, _ = self.pattern(self.names("d"))
        return pattern["path"] if set(pattern) == {"path"} else pattern

    def added(self) -> Data:
        entry: Data = {"to": self.of(("a", "b", "a.", "ab", "0", "y", "a.y")), "fill": "zeros", "shape": [1]}
        if self.chance(2):
            values = self.of(("0..1", "0..p-1", ["a", "b"], *sorted(self.tables)))
            field = "{n}"
            if isinstance(values, str) and values in self.tables:
                field = self.of(("{n}", f"{{n|{values}}}"))
            elif values in ("0..1", "0..p-1"):
                field = self.of(("{n}", "{n+1}", "{p-n}"))
            entry.update(to=self.of(("", "a", "a.")) + field + self.of(("", "y")), each={"n": values})
        return {**entry, "dtype": "F32"}

    def add_tables(self, data: Data) -> None:
        """Add the tables that are used; one that has a value twice must say that it is lossy."""
        text = repr(data)
        for name, entries in self.tables.items():
            if f"|{name}}}" in text or f":{name}}}" in text or f"'{name}'" in text:
                twice = len(set(entries.values())) < len(entries)
                lossy = twice or self.chance(6)
                data.setdefault("tables", {})[name] = {"lossy": True, "entries": dict(entries)} if lossy else entries


class _Plain(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes what occurs twice in full: rule files have no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def write_text(data: Mapping[str, Any]) -> str:
    """Write plain data as the text of a rule file; its known keys are no part of it."""
    data = {name: value for name, value in data.items() if name != "header"}
    return yaml.dump(data, Dumper=_Plain, sort_keys=False, width=1000, default_flow_style=None)


def seeded(seed: int) -> Maker:
    return Maker(random.Random(seed).randrange)


def files(seed: int, count: int) -> Iterator[tuple[int, Data]]:
    for number in range(seed, seed + count):
        yield number, seeded(number).file()


def is_plain(data: Mapping[str, Any]) -> bool:
    """Return whether a file only renames, keeps and drops."""
    operations = {"concat", "merge", "stack", "unstack", "split", "copy", "tie", "ops"}
    return "add" not in data and not any(operations & set(rule) for rule in data.get("rules") or ())
