"""Targets that no source brings (`add:`) held against what the rules make: may a key, any key, become one of them?

A constant is one word, so the question is whether that word is in the image of an arrow: the template is read
backwards, every reading gives captures, and these give a source key that is tried out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from remapkit.arrows import Arrow, Made, readings
from remapkit.flows import Filled
from remapkit.pattern import Alt, Chars, Group, Node, Part, Pattern, Repeat, literal, words_node
from remapkit.template import Copy, Literal, Mapped


@dataclass(frozen=True, slots=True)
class Meeting:
    """A constant target that a rule may make too: from `key`, or, where no such key was found in time, from None."""

    added: Filled
    target: str
    arrow: Arrow
    key: str | None


def meetings(added: Sequence[Filled], found: Sequence[Arrow]) -> Iterator[Meeting]:
    """Every entry of `add` with every arrow that may lead to one of its targets; the first target of each pair."""
    for entry in added:
        for arrow in found:
            for target in entry.targets:
                meeting = _meeting(entry, target, arrow)
                if meeting is not None:
                    yield meeting
                    break


def twice(added: Sequence[Filled]) -> Iterator[tuple[Filled, Filled, str]]:
    """Two entries of `add` with one target."""
    seen: dict[str, Filled] = {}
    for entry in added:
        for target in entry.targets:
            if target in seen:
                yield seen[target], entry, target
                break
            seen[target] = entry


def _meeting(entry: Filled, target: str, arrow: Arrow) -> Meeting | None:
    if arrow.items is None:
        return None
    if arrow.identity:
        return Meeting(entry, target, arrow, target) if arrow.reader(target) is not None else None
    image = _image(arrow)
    cuts = readings(image, target)
    if not cuts:
        return None
    for cut in cuts:
        for captures in _captures(arrow, cut):
            key = _key(arrow, captures)
            read = arrow.reader(key)
            if read is not None and _makes(arrow, key, read, target):
                return Meeting(entry, target, arrow, key)
    return Meeting(entry, target, arrow, None)


def _makes(arrow: Arrow, key: str, captures: Mapping[str, str], target: str) -> bool:
    made = arrow.target(key, captures)
    index = next((item.name for item in arrow.items or () if isinstance(item, Made)), None)
    if made is None or index is None:
        return made == target
    before, _, after = made.partition(f"{{{index}}}")
    middle = target.removeprefix(before).removesuffix(after)
    return target == f"{before}{middle}{after}" and middle.isdecimal()


def _image(arrow: Arrow) -> Pattern:
    """What the targets of an arrow look like: one part for each item of its template."""
    parts = []
    for item in arrow.items or ():
        if isinstance(item, Literal):
            parts.append(Part(None, literal(item.text)))
        elif isinstance(item, Made):
            parts.append(Part(None, item.node))
        elif isinstance(item, Copy):
            part = arrow.pattern.capture(item.name)
            assert part is not None
            parts.append(Part(None, part.node))
        else:
            parts.append(Part(None, words_node(tuple(sorted(set(item.mapping.values()))))))
    return Pattern(arrow.pattern.surface, arrow.pattern.text, arrow.pattern.span, tuple(parts))


def _captures(arrow: Arrow, cut: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """The captures that a cut of the target stands for; several where a table or a formula has several."""
    ways: list[list[dict[str, str]]] = []
    for item, text in zip(arrow.items or (), cut, strict=True):
        if isinstance(item, Copy):
            ways.append([{item.name: text}])
        elif isinstance(item, Mapped):
            given = [values for values, value in item.mapping.items() if value == text]
            ways.append([dict(zip(item.names, values, strict=True)) for values in given[:50]])
    for combination in itertools.islice(itertools.product(*ways), 1000):
        captures: dict[str, str] = {}
        if all(captures.setdefault(name, value) == value for each in combination for name, value in each.items()):
            yield captures


def _key(arrow: Arrow, captures: Mapping[str, str]) -> str:
    """A source key with these captures; what they leave open is as short as it can be."""
    parts = arrow.pattern.parts
    return "".join(
        captures.get(part.name, _shortest(part.node)) if part.name else _shortest(part.node) for part in parts
    )


def _shortest(node: Node) -> str:
    if isinstance(node, Chars):
        low, high = node.chars[0]
        return next((sign for sign in "a0_" if any(a <= ord(sign) <= b for a, b in node.chars)), chr(min(low, high)))
    if isinstance(node, Alt):
        return min(map(_shortest, node.branches), key=len)
    if isinstance(node, Repeat):
        return _shortest(node.item) * node.low
    if isinstance(node, Group):
        return _shortest(node.item)
    return "".join(map(_shortest, node.items))
