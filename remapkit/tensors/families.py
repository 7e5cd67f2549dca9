"""Key families: a lossless summary of hundreds of keys in a few dozen lines.

A family is a product: one set of words per place, and exactly the keys that combine one word from each set. So its
pattern and its count determine its keys, and nothing is lost by showing the pattern instead. The places are the
segments; a segment with numbers between `_`, as adapters' files have them, is cut at these.

    encoder.downsamples.{0..3}.downsamples.{0,1}.residual.{2,6}.{weight|bias}          32 keys
    lora_unet_single_blocks_{0..37}_{linear1|linear2}.{lora_down|lora_up}.weight      152 keys
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from remapkit.tensors.spec import StateDictSpec, TensorSpec

MAX_DIGITS = 18
"""The most digits of an integer in a key: it fits in 64 bits, and Python refuses to parse 5,000 digits."""
_INTEGER = re.compile(rf"0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}}")
_CUT = re.compile(r"(?<![^._])[0-9]+(?![^._])")
_BESIDE = re.compile(r"_[0-9]+(?![^._])|(?<![^._])[0-9]+_")
_NUMBERED = re.compile(rf"(.*?[^0-9])({_INTEGER.pattern})", re.DOTALL)


def cut_key(fqn: str) -> tuple[str, tuple[str, ...]]:
    """Return the words of a key, and the sign before each but the first: `.`, or `_` beside a number in a segment.

    A segment is not cut where an empty word would be left, nor is any of a key with an empty segment.

    >>> cut_key("lora_unet_blocks_3_attn_q.lora_up.weight")
    ('__..', ('lora_unet_blocks', '3', 'attn_q', 'lora_up', 'weight'))
    >>> cut_key("layers.3.conv_1x1.w2"), cut_key("_0_.b")
    (('...', ('layers', '3', 'conv_1x1', 'w2')), ('.', ('_0_', 'b')))
    """
    segments = fqn.split(".")
    if _BESIDE.search(fqn) is None or "" in segments:
        return "." * (len(segments) - 1), tuple(segments)
    cut = [_cut_segment(segment) for segment in segments]
    return ".".join("_" * (len(words) - 1) for words in cut), tuple(word for words in cut for word in words)


def _cut_segment(segment: str) -> list[str]:
    parts = segment.split("_")
    runs = [list(run) for _, run in groupby(enumerate(parts), key=lambda each: _get_run(*each))]
    words = ["_".join(part for _, part in run) for run in runs]
    return [segment] if "" in words else words


def _get_run(place: int, part: str) -> int:
    """Return what neighbours that stay together have in common: a number stands alone."""
    return place if is_canonical_integer(part) else -1


def join_key(separators: str, words: Iterable[str]) -> str:
    """Return the key with these words, the inverse of `cut_key`."""
    first, *others = words
    return first + "".join(f"{sign}{word}" for sign, word in zip(separators, others, strict=True))


@dataclass(frozen=True, slots=True)
class Family:
    """Keys that differ only in the words of their places.

    `words` contains the words of each place, integers sorted, other words in the order of the header; `separators`
    are the signs between them. `fqns` are the keys in the header's order: all combinations of the sets, without
    duplicates.
    """

    words: tuple[tuple[str, ...], ...]
    separators: str
    fqns: tuple[str, ...]
    specs: tuple[TensorSpec, ...]

    @property
    def pattern(self) -> str:
        """The family in one line: `layers.{0..31}.attn.{q|k|v}.weight`."""
        return join_key(self.separators, map(_format_words, self.words))

    def list_segments(self, texts: Sequence[str]) -> list[str]:
        """Return a text for each segment of the keys, joined from one for each place."""
        segments = [texts[0]]
        for sign, text in zip(self.separators, texts[1:], strict=True):
            if sign == ".":
                segments.append(text)
            else:
                segments[-1] += sign + text
        return segments

    @property
    def nbytes(self) -> int:
        """The size of all its tensors in bytes."""
        return sum(spec.nbytes for spec in self.specs)

    @property
    def dtypes(self) -> Mapping[str, int]:
        """The number of tensors of each dtype."""
        return Counter(spec.dtype for spec in self.specs)

    @property
    def dtypes_text(self) -> str:
        """The dtypes in one line: `F32`, or `62 F8_E4M3, 2 F32` if there are several."""
        if len(self.dtypes) == 1:
            return self.specs[0].dtype
        return ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())

    @property
    def shapes_text(self) -> str:
        """The shapes in one line, `160..640` for a dimension that varies; a list of shapes if the rank varies."""
        ranks = sorted({len(spec.shape) for spec in self.specs}, reverse=True)
        return " ".join(
            _format_shapes([spec.shape for spec in self.specs if len(spec.shape) == rank]) for rank in ranks
        )

    def __contains__(self, fqn: object) -> bool:
        separators, words = cut_key(str(fqn))
        return separators == self.separators and all(
            word in known for word, known in zip(words, self.words, strict=True)
        )


def find_families(spec: StateDictSpec) -> tuple[Family, ...]:
    """Group the keys of a header into families, in the order of their first keys. Every key is in exactly one.

    Sets are joined from the last place to the first, if all other places are the same: first the keys in a layer,
    then the layers that have the same keys. Numbers are never joined with words.

    >>> from remapkit.tensors.spec import StateDictSpec, TensorSpec
    >>> keys = [f"layers.{n}.{part}.{leaf}" for n in range(4) for part in ("q", "k") for leaf in ("weight", "bias")]
    >>> for family in find_families(StateDictSpec(dict.fromkeys(keys, TensorSpec("F32", (8,))))):
    ...     print(len(family.fqns), family.pattern, family.dtypes_text, family.shapes_text)
    16 layers.{0..3}.{q|k}.{weight|bias} F32 [8]
    """
    alike: dict[str, list[tuple[str, ...]]] = {}
    for fqn in spec:
        separators, words = cut_key(fqn)
        alike.setdefault(separators, []).append(words)
    return _fill_families([(separators, box) for separators, keys in alike.items() for box in _join_keys(keys)], spec)


class _WordSets:
    """Sets of words, each with a number of its own: numbers are compared faster than words.

    Integers are sorted, other words in the order of the keys, so that a set in two orders is one set.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.sets: list[tuple[str, ...]] = [(word,) for word in words]
        self.order = {word: number for number, (word,) in enumerate(self.sets)}
        self.numbers = {own: number for number, own in enumerate(self.sets)}
        self.kinds = [-1 if is_canonical_integer(own[0]) else -2 for own in self.sets]

    def join(self, numbers: Sequence[int]) -> int:
        """Return the number of the union of some sets."""
        words = [word for number in numbers for word in self.sets[number]]
        kind = self.kinds[numbers[0]]
        words.sort(key=int if kind == -1 else self.order.__getitem__)
        joined = tuple(words)
        if joined not in self.numbers:
            self.numbers[joined] = len(self.sets)
            self.sets.append(joined)
            self.kinds.append(kind)
        return self.numbers[joined]


Box = tuple[tuple[str, ...], ...]
"""The words of each place."""


def _join_keys(keys: Sequence[tuple[str, ...]]) -> list[Box]:
    """Return the products that keys with as many words are."""
    sets = _WordSets(dict.fromkeys(word for words in keys for word in words))
    boxes = [tuple(map(sets.order.__getitem__, words)) for words in keys]
    before = len(boxes) + 1
    while len(boxes) < before:
        before = len(boxes)
        for place in reversed(range(len(boxes[0]))):
            boxes = _join_boxes(boxes, place, sets)
    return [tuple(map(sets.sets.__getitem__, box)) for box in boxes]


def _join_boxes(boxes: list[tuple[int, ...]], place: int, sets: _WordSets) -> list[tuple[int, ...]]:
    """Join boxes that differ only in the words at a place, in the order of their first boxes."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for box in boxes:
        groups.setdefault((*box[:place], sets.kinds[box[place]], *box[place + 1 :]), []).append(box[place])
    if len(groups) == len(boxes):
        return boxes
    return [
        (*mask[:place], own[0] if len(own) == 1 else sets.join(own), *mask[place + 1 :])
        for mask, own in groups.items()
    ]


def is_canonical_integer(word: str) -> bool:
    """Return whether a word is a canonical decimal integer, `0|[1-9][0-9]*`, of at most `MAX_DIGITS` digits.

    >>> [is_canonical_integer(word) for word in ("0", "12", "012", "w1", "")]
    [True, True, False, False, False]
    """
    return "0" <= word[:1] <= "9" and _INTEGER.fullmatch(word) is not None  # most words are none by their first sign


def mask_indices(fqn: str) -> str:
    """Replace the numbers in a key by `*`: the keys of all layers and experts then look the same.

    Numbers with leading zeros are replaced too: only the appearance of keys matters here.

    >>> mask_indices("layers.31.attn.q.weight")
    'layers.*.attn.q.weight'
    """
    return ".".join("*" if segment.isdecimal() else segment for segment in fqn.split("."))


def mask_numbers(fqn: str) -> str:
    """Replace the numbers in a key by `*`, those between `_` too.

    >>> mask_numbers("lora_unet_blocks_3_mlp_0.lora_up.weight")
    'lora_unet_blocks_*_mlp_*.lora_up.weight'
    """
    return _CUT.sub("*", fqn)


def _fill_families(boxes: Sequence[tuple[str, Box]], spec: StateDictSpec) -> tuple[Family, ...]:
    members: dict[str, int] = {}
    for number, (separators, box) in enumerate(boxes):
        for fqn in _list_keys(separators, box):
            members[fqn] = number
    fqns_of_box: list[list[str]] = [[] for _ in boxes]
    for fqn in spec:
        fqns_of_box[members[fqn]].append(fqn)
    filled = [
        Family(box, separators, tuple(fqns), tuple(spec[fqn] for fqn in fqns))
        for (separators, box), fqns in zip(boxes, fqns_of_box, strict=True)
    ]
    order = {fqn: number for number, fqn in enumerate(spec)}
    return tuple(sorted(filled, key=lambda family: order[family.fqns[0]]))


def _list_keys(separators: str, box: Box) -> Iterable[str]:
    fqns = list(box[0])
    for sign, words in zip(separators, box[1:], strict=True):
        fqns = [f"{fqn}{sign}{word}" for fqn in fqns for word in words]
    return fqns


# ------------------------------------------------------------------------------------------------ in one line


def _format_words(words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    if is_canonical_integer(words[0]):
        return "{" + format_ranges([int(word) for word in words]) + "}"
    parts = [_NUMBERED.fullmatch(word) for word in words]
    prefixes = {part.group(1) for part in parts if part}
    if len(words) > 2 and all(parts) and len(prefixes) == 1:
        return prefixes.pop() + "{" + format_ranges([int(part.group(2)) for part in parts if part]) + "}"
    shared = _find_shared_start(words)
    return shared + "{" + "|".join(word[len(shared) :] for word in words) + "}"


def _find_shared_start(words: Sequence[str]) -> str:
    """Return what all words start with, up to a `_`, if something is left of each.

    >>> _find_shared_start(["to_q", "to_k"]), _find_shared_start(["to_", "to_k"]), _find_shared_start(["key", "kind"])
    ('to_', '', '')
    """
    first, last = min(words), max(words)
    same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    shared = first[: first.rfind("_", 0, same) + 1]
    return "" if shared in words else shared


def format_ranges(numbers: Iterable[int]) -> str:
    """Format distinct integers in one line, runs of three and more as ranges.

    >>> format_ranges([0, 1, 2, 3, 7, 8])
    '0..3,7,8'
    """
    runs = []
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)))
    return ",".join(runs)


def _format_shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    dimensions = [
        str(min(sizes)) if len(set(sizes)) == 1 else f"{min(sizes)}..{max(sizes)}"
        for sizes in zip(*shapes, strict=True)
    ]
    return f"[{', '.join(dimensions)}]"
