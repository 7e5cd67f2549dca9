"""Key families: a lossless summary of hundreds of keys in a few dozen lines.

A family is a product: one set of words per segment, and exactly the keys that combine one word from each set. So its
pattern and its count determine its keys, and nothing is lost by showing the pattern instead.

    encoder.downsamples.{0..3}.downsamples.{0,1}.residual.{2,6}.{weight|bias}     32 keys
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
_NUMBERED = re.compile(rf"(.*?[^0-9])({_INTEGER.pattern})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Family:
    """Keys that differ only in the words of their segments.

    `segments` contains the words of each segment, integers sorted, other words in the order of the header. `fqns` are
    the keys in the header's order: all combinations of the sets, without duplicates.
    """

    segments: tuple[tuple[str, ...], ...]
    fqns: tuple[str, ...]
    specs: tuple[TensorSpec, ...]

    @property
    def pattern(self) -> str:
        """The family in one line: `layers.{0..31}.attn.{q|k|v}.weight`."""
        return ".".join(_format_words(words) for words in self.segments)

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
        words = str(fqn).split(".")
        return len(words) == len(self.segments) and all(
            word in known for word, known in zip(words, self.segments, strict=True)
        )


def find_families(spec: StateDictSpec) -> tuple[Family, ...]:
    """Group the keys of a header into families, in the order of their first keys. Every key is in exactly one.

    Sets are joined from the last segment to the first, if all other segments are the same: first the keys in a layer,
    then the layers that have the same keys. Numbers are never joined with words.

    >>> from remapkit.tensors.spec import StateDictSpec, TensorSpec
    >>> keys = [f"layers.{n}.{part}.{leaf}" for n in range(4) for part in ("q", "k") for leaf in ("weight", "bias")]
    >>> for family in find_families(StateDictSpec(dict.fromkeys(keys, TensorSpec("F32", (8,))))):
    ...     print(len(family.fqns), family.pattern, family.dtypes_text, family.shapes_text)
    16 layers.{0..3}.{q|k}.{weight|bias} F32 [8]
    """
    split = [fqn.split(".") for fqn in spec]
    first_seen = {
        word: number for number, word in enumerate(dict.fromkeys(word for words in split for word in words))
    }
    boxes: list[tuple[tuple[str, ...], ...]] = [tuple((word,) for word in words) for words in split]
    before = len(boxes) + 1
    while len(boxes) < before:
        before = len(boxes)
        for from_the_end in range(1, max(map(len, boxes), default=0) + 1):
            boxes = _join_boxes(boxes, from_the_end, first_seen)
    return _fill_families(boxes, spec)


def _join_boxes(
    boxes: Sequence[tuple[tuple[str, ...], ...]], place: int, first_seen: Mapping[str, int]
) -> list[tuple[tuple[str, ...], ...]]:
    """Join boxes that differ only in the segment at `place` (from the end), in the order of their first boxes."""
    groups: dict[object, list[str]] = {}
    for box in boxes:
        groups.setdefault(_mask_segment(box, place), []).extend(box[-place] if place <= len(box) else ())
    joined = []
    for box in boxes:
        words = groups.pop(_mask_segment(box, place), None)
        if words is not None:
            if place <= len(box):
                # Sorted, so that the same set in two orders does not count as two sets.
                words.sort(key=int if is_canonical_integer(words[0]) else first_seen.__getitem__)
                box = (*box[:-place], tuple(words), *box[len(box) - place + 1 :])
            joined.append(box)
    return joined


def _mask_segment(box: tuple[tuple[str, ...], ...], place: int) -> object:
    if place > len(box):
        return box
    return (*box[:-place], is_canonical_integer(box[-place][0]), *box[len(box) - place + 1 :])


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


def _fill_families(boxes: Sequence[tuple[tuple[str, ...], ...]], spec: StateDictSpec) -> tuple[Family, ...]:
    members: dict[str, int] = {}
    for number, box in enumerate(boxes):
        for fqn in _list_keys(box):
            members[fqn] = number
    fqns_of_box: list[list[str]] = [[] for _ in boxes]
    for fqn in spec:
        fqns_of_box[members[fqn]].append(fqn)
    filled = [
        Family(box, tuple(fqns), tuple(spec[fqn] for fqn in fqns))
        for box, fqns in zip(boxes, fqns_of_box, strict=True)
    ]
    order = {fqn: number for number, fqn in enumerate(spec)}
    return tuple(sorted(filled, key=lambda family: order[family.fqns[0]]))


def _list_keys(box: Sequence[Sequence[str]]) -> Iterable[str]:
    fqns: list[str] = [""]
    for number, words in enumerate(box):
        fqns = [f"{fqn}.{word}" if number else word for fqn in fqns for word in words]
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
    return "{" + "|".join(words) + "}"


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
