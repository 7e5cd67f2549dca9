"""Compiled pipelines: rules with operations. Sources are joined, transformed and split, always in this order:

    each source's own ops -> concat, merge, multiply, divide or dequantize -> stack -> ops
        -> unstack -> split or copy -> each target's own ops

A pipeline is symbolic: its numbers may be params. `Pipeline.resolve` evaluates them, and `plans/groups.py` turns the
result into moves.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span, Text
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.ops import base, dtype, join
from remapkit.ops.calls import Arg, Call, CallReader, Params, evaluate_arg, list_params
from remapkit.ops.combine import Combine, Kind
from remapkit.patterns.charset import DIGITS
from remapkit.patterns.finite import MAX_WORDS
from remapkit.patterns.pattern import CANONICAL, Part, Pattern
from remapkit.patterns.template import Template
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat
from remapkit.rulefile.arithmetic import BadNumber
from remapkit.rulefile.syntax import WrittenFill, WrittenPipeline
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, ScalarNode
from remapkit.rules.axes import (
    MAX_PARTS,
    Axis,
    describe_counts,
    list_joining,
    list_making,
    list_scalars,
    read_names,
)
from remapkit.tensors.dtypes import CASTABLE_FLOATS
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How a tensor is split or joined: `sizes` are the part sizes; `equal` requires equal parts.

    Without sizes, a split makes equal parts and a concat accepts parts of any size.
    """

    dim: int
    sizes: tuple[Arg, ...] | None = None
    equal: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CombineRule:
    """Arithmetic of the first source with the second; `block` has the sizes of blocks along the last dimensions."""

    kind: Kind
    to: str | None
    block: tuple[Arg, ...]
    span: Span | None = field(default=None, compare=False, repr=False)

    def resolve(self, params: Params) -> Combine:
        """Return the operation; raises `BadNumber`."""
        block = tuple(int(evaluate_arg(size, params)) for size in self.block)
        if block and min(block) < 1:
            raise BadNumber(f"a size of `block` must be at least 1, got {min(block)}")
        return Combine(self.kind, self.to, block)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The operations of a rule on values. `before` has the operations of each part, `after` those of each target.

    `order` has the pattern that each part of a `concat` or `merge` reads: several parts may read one.
    `templates[pattern][target]` are the target keys, in terms of the captures of each source's pattern. `family` is
    `by` of `concat` or `merge`, `spread` that of `split` or `copy`. No template has a capture of `stack.by` or
    `family.by` (they are folded); every template has those of `unstack.by` and `spread.by`, which no pattern has.
    """

    id: str
    span: Span
    patterns: tuple[Pattern, ...]
    templates: tuple[tuple[Template, ...], ...]
    before: tuple[tuple[Call, ...], ...]
    after: tuple[tuple[Call, ...], ...]
    ops: tuple[Call, ...] = ()
    concat: SplitRule | None = None
    stack: Axis | None = None
    unstack: Axis | None = None
    split: SplitRule | None = None
    share: Literal["copy", "tie"] | None = None
    merge: bool = False
    family: Axis | None = None
    spread: Axis | None = None
    order: tuple[int, ...] = (0,)
    combine: CombineRule | None = None

    @property
    def folded(self) -> tuple[str, ...]:
        """The captures whose values are joined into one tensor, in the order of the joined sources."""
        return tuple(name for axis in (self.stack, self.family) if axis is not None for name in axis.by)

    @property
    def made(self) -> tuple[str, ...]:
        """The captures that only the targets have: each target has an index of one tensor."""
        return tuple(name for axis in (self.unstack, self.spread) if axis is not None for name in axis.by)

    def find_made_counts(self, params: Params) -> dict[str, int | None]:
        """Return for each capture of `made` the number of its values, if that is known."""
        axes = [axis for axis in (self.unstack, self.spread) if axis is not None]
        return {name: count for axis in axes for name, count in zip(axis.by, axis.find_counts(params), strict=True)}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the params that the pipeline needs."""
        calls = [*itertools.chain(*self.before, self.ops, *self.after)]
        numbers: list[Arg] = [arg for call in calls for _, arg in call.args]
        axes = (self.stack, self.family, self.unstack, self.spread)
        numbers += [count for axis in axes if axis is not None for count in axis.count or ()]
        numbers += [size for each in (self.split, self.concat) if each is not None for size in each.sizes or ()]
        numbers += self.combine.block if self.combine is not None else ()
        return tuple(dict.fromkeys(name for number in numbers for name in list_params(number)))

    def list_captures(self, params: Params) -> tuple[str, ...]:
        """Return the captures that its numbers use, so that they differ by key."""
        return tuple(name for name in self.names if name not in params)

    def resolve(self, params: Params) -> Resolved:
        """Return the pipeline with its numbers evaluated; raises `BadNumber` if the params do not allow that.

        `params` has the captures too, if the numbers use any (`list_captures`).
        """
        spans: dict[int, Span | None] = {}

        def resolve_calls(calls: tuple[Call, ...]) -> tuple[base.Op, ...]:
            made = []
            for call in calls:
                op = call.op(params)
                spans[id(op)] = call.span
                made.append(op)
            return tuple(made)

        return Resolved(
            before=tuple(map(resolve_calls, self.before)),
            ops=resolve_calls(self.ops),
            after=tuple(map(resolve_calls, self.after)),
            stacked=_resolve_counts(self.stack, params),
            unstacked=_resolve_counts(self.unstack, params),
            gathered=_resolve_counts(self.family, params, self.concat),
            spread=_resolve_counts(self.spread, params, self.split),
            sizes=_resolve_sizes(self.split, params),
            joined=_resolve_sizes(self.concat, params),
            combine=self.combine.resolve(params) if self.combine is not None else None,
            spans=spans,
        )


def _resolve_sizes(split: SplitRule | None, params: Params) -> tuple[int, ...] | None:
    if split is None or split.sizes is None:
        return None
    sizes = tuple(int(evaluate_arg(size, params)) for size in split.sizes)
    if min(sizes) < 1:
        raise BadNumber(f"a size must be at least 1, got {min(sizes)}")
    return sizes


def _resolve_counts(axis: Axis | None, params: Params, parts: SplitRule | None = None) -> tuple[int, ...] | None:
    """Return the numbers of values, which `sizes` of the parts must agree with."""
    counts = axis.resolve_counts(params) if axis is not None else None
    if axis is None or counts is None:
        return None
    if parts is not None and parts.sizes is not None and len(parts.sizes) != math.prod(counts):
        raise BadNumber(f"`sizes` has {len(parts.sizes)} entries, but `count` is {describe_counts(counts)}")
    if axis.word in ("split", "copy") and math.prod(counts) > MAX_PARTS:
        raise BadNumber(f"`count` must make at most {MAX_PARTS:,} targets, got {math.prod(counts):,}")
    return counts


@dataclass(frozen=True, slots=True)
class Resolved:
    """A pipeline with its numbers evaluated; `spans` maps operations (by identity) to positions in the rule file."""

    before: tuple[tuple[base.Op, ...], ...]
    ops: tuple[base.Op, ...]
    after: tuple[tuple[base.Op, ...], ...]
    stacked: tuple[int, ...] | None
    unstacked: tuple[int, ...] | None
    gathered: tuple[int, ...] | None
    spread: tuple[int, ...] | None
    sizes: tuple[int, ...] | None
    joined: tuple[int, ...] | None
    combine: Combine | None
    spans: dict[int, Span | None]


@dataclass(frozen=True, slots=True)
class AddedTargets:
    """One compiled entry of `add`; `targets` has all its target keys."""

    id: str
    span: Span
    targets: tuple[str, ...]
    value: str | float
    shape: tuple[Arg, ...]
    dtype: str
    template: Template | None = None

    def op(self, params: Params) -> join.FillOp:
        """Return the operation that creates its value; raises `BadNumber` or `RefusedOp`."""
        shape = tuple(int(evaluate_arg(size, params)) for size in self.shape)
        if shape and min(shape) < 0:
            raise BadNumber(f"a size must be at least 0, got the shape {list(shape)}")
        spec = TensorSpec(self.dtype, shape)
        if isinstance(self.value, float | int):
            dtype.check_value(self.value, self.dtype)
        if self.value == "arange" and self.dtype not in CASTABLE_FLOATS and spec.numel:
            dtype.check_value(spec.numel - 1, self.dtype)
        if self.value == "tril" and len(shape) < 2:
            raise base.RefusedOp("tril needs at least two dimensions")
        return join.FillOp(self.value, spec)


# ------------------------------------------------------------------------------------------------- compilation


class PipelineReader:
    """Reader of the numbers and operations of written pipelines; adds their problems to `problems`."""

    def __init__(self, params: Mapping[str, object], problems: list[Diagnostic]) -> None:
        self.calls, self.problems = CallReader(params, problems), problems

    def add_problem(self, title: str, span: Span, *help: str, code: str = "RK164") -> None:
        """Add a problem."""
        self.problems.append(Diagnostic(code, title, (Label(span),), help))

    def read_axis(self, word: str, node: MapNode | ListNode | None) -> Axis | None:
        """Read the captures of `stack`, `unstack`, `concat`, `split`, `merge` or `copy`: its `by` and `count`."""
        if not isinstance(node, MapNode) or node.get("by") is None:
            return None
        names, count, sizes = read_names(node), node.get("count"), node.get("sizes")
        numbers: list[Arg] = []
        for item in list_scalars(count):
            number = self.calls.read_number(item)
            numbers.append(number)
            if isinstance(number, int) and number < 1:
                self.add_problem(
                    f"`count` must be at least 1, got {number}", item.span, "count the entries", code="RK216"
                )
        if count is not None and len(numbers) != len(names):
            title = f"`count` must have {count_noun(len(names), 'entry', 'entries')}, got {len(numbers)}"
            self.add_problem(title, count.span, f"one for each of {join_words(name.value for name in names)}")
        if count is None and isinstance(sizes, ListNode) and len(names) == 1:
            numbers = [len(sizes.items)]
        known = math.prod(number for number in numbers if isinstance(number, int))
        if (
            isinstance(sizes, ListNode)
            and numbers
            and all(isinstance(each, int) for each in numbers)
            and known != len(sizes.items)
        ):
            help = "one size for each part, or leave `sizes` out"
            self.add_problem(f"`sizes` must have {known} entries, got {len(sizes.items)}", sizes.span, help)
        needed = word in ("split", "copy") or isinstance(sizes, ListNode) or (word == "unstack" and len(names) > 1)
        if needed and not numbers:
            help = "add `count: 8`, with your own number"
            if len(names) > 1:
                help = "add `count: [2, 4]`, with your own numbers"
            self.add_problem(f"`{word}` by {join_words(name.value for name in names)} needs `count`", node.span, help)
        dim = node.get("dim")
        return Axis(
            word,
            tuple(name.value for name in names),
            int(dim.value) if isinstance(dim, ScalarNode) else None,
            tuple(numbers) if len(numbers) == len(names) else None,  # another number of them is reported above
            node.span,
        )

    def read_split(self, node: MapNode | None, parts: int | None) -> SplitRule | None:
        """Read `split` or `concat`, with one size per part (None: as many as `count` says)."""
        if node is None:
            return None
        sizes = node.get("sizes")
        equal = isinstance(sizes, ScalarNode)
        numbers: tuple[Arg, ...] | None = None
        if isinstance(sizes, ListNode):
            numbers = tuple(self.calls.read_number(item) for item in sizes.items if isinstance(item, ScalarNode))
            for number, item in zip(numbers, sizes.items, strict=False):
                if isinstance(number, int) and number < 1:
                    help = "give each part its own number of elements, or leave `sizes` out for equal parts"
                    self.add_problem(f"a size must be at least 1, got {number}", item.span, help, code="RK216")
            if parts is not None and len(numbers) != parts:
                self.add_problem(
                    f"`sizes` must have {parts} entries, got {len(numbers)}",
                    sizes.span,
                    "one size for each part",
                )
        return SplitRule(_read_integer(node, "dim"), numbers, equal, node.span)

    def read_combine(self, written: WrittenPipeline) -> CombineRule | None:
        """Read `multiply`, `divide` or `dequantize`."""
        if len(written.combined) + (written.concat is not None) > 1:
            name = written.combined[-1][0]
            help = "keep one of them, and do the rest with a second rule file"
            self.add_problem("a rule has one of `concat`, `multiply`, `divide` and `dequantize`", name.span, help)
            return None
        if not written.combined:
            return None
        ((name, node),) = written.combined
        block, to = node.get("block"), node.get("to")
        sizes = block.items if isinstance(block, ListNode) else ()
        numbers = tuple(self.calls.read_number(item) for item in sizes if isinstance(item, ScalarNode))
        for number, item in zip(numbers, sizes, strict=True):
            if isinstance(number, int) and number < 1:
                help = "give the number of elements that share one scale"
                self.add_problem(f"a size of `block` must be at least 1, got {number}", item.span, help, code="RK216")
        kind: Kind = name.value  # type: ignore[assignment]
        return CombineRule(kind, to.value if isinstance(to, ScalarNode) else None, numbers, node.span)

    def check_captures(self, written: WrittenPipeline, patterns: list[Pattern]) -> None:
        """Check that all patterns have the same captures, joined ones are integers, and counted ones are new."""
        first = {part.name for part in patterns[0].captures}
        for pattern in patterns[1:]:
            other = {part.name for part in pattern.captures}
            if other != first:
                lacking = sorted(map(str, first - other)) or sorted(map(str, other - first))
                labels = (Label(patterns[0].text.span, "and here", primary=False), Label(pattern.text.span))
                title = f"all sources of a rule must have the same captures, but {lacking[0]!r} is only in one"
                help = ("sources are joined by their captures: use the same names in each pattern",)
                self.problems.append(Diagnostic("RK164", title, labels, help))
        joining, making = list(list_joining(written)), list(list_making(written))
        self._check_axes(joining, making)
        for word, by in ((word, name) for word, node in joining for name in read_names(node)):
            self._check_index(word, by, patterns)
        self._check_templates(written, joining, making)
        for word, by in ((word, name) for word, node in making for name in read_names(node)):
            if by.value in first:
                title = f"`by` of `{word}` must be a new name, but the pattern captures {by.value!r}"
                self.add_problem(title, by.span, "choose another name for the index")

    def _check_axes(self, joining: list[tuple[str, MapNode]], making: list[tuple[str, MapNode]]) -> None:
        """Check that no capture is joined or made twice."""
        for axes in (joining, making):
            seen: dict[str, Text] = {}
            for name in (name for _, node in axes for name in read_names(node)):
                if name.value in seen:
                    title = f"{name.value!r} is in `by` twice"
                    self.add_problem(title, name.span, "each capture counts one thing: remove one, or name another")
                seen.setdefault(name.value, name)

    def _check_index(self, word: str, by: Text, patterns: list[Pattern]) -> None:
        """Check that a joined capture is an integer in every pattern."""
        for part in (pattern.capture(by.value) for pattern in patterns):
            if part is None:
                title = f"`by` of `{word}` must be a capture, got {by.value!r}"
                known = ", ".join(sorted(str(each.name) for each in patterns[0].captures)) or "nothing"
                self.add_problem(title, by.span, f"the pattern captures {known}")
                return
            if not is_integer_capture(part):
                title = f"`by` of `{word}` must be an integer, but {by.value!r} may be other text"
                self.add_problem(title, by.span, f"write {{{by.value}:int}} in the path, or \\d+ in the regex")
                return

    def admit_captures(self, written: WrittenPipeline | None, patterns: list[Pattern]) -> None:
        """Let numbers use the integer captures of a rule (None: of no rule), except the indices that it joins."""
        joining = list(list_joining(written)) if written is not None else []
        admitted: dict[str, str | None] = {}
        for part in patterns[0].captures if written is not None else ():
            same = [pattern.capture(str(part.name)) for pattern in patterns]
            is_number = all(each is not None and is_integer_capture(each) for each in same)
            admitted[str(part.name)] = None if is_number else "may be other text than an integer"
        for word, by in ((word, name.value) for word, node in joining for name in read_names(node)):
            if by in admitted:
                admitted[by] = f"is counted by `{word}`, so it has several values"
        self.calls.captures = admitted

    def _check_templates(
        self, written: WrittenPipeline, joining: list[tuple[str, MapNode]], making: list[tuple[str, MapNode]]
    ) -> None:
        """Check that no target has a joined index and every target has the made ones."""
        for output in written.outputs:
            for word, by in ((word, name.value) for word, node in joining for name in read_names(node)):
                if _has_name(output.to, by):
                    title = f"`{word}` joins every {by!r} into one tensor, so the target cannot have it"
                    self.add_problem(title, output.to.span, f"remove {{{by}}} from the target")
            for word, by in ((word, name.value) for word, node in making for name in read_names(node)):
                if not _has_name(output.to, by):
                    title = f"`{word}` makes one tensor for each {by!r}, so the target must have it"
                    self.add_problem(title, output.to.span, f"add {{{by}}} to the target")

    def check_single_join(self, written: WrittenPipeline) -> None:
        """Check that a rule joins in one way, and makes several targets in one way."""
        pairs = (("concat", written.concat, "merge", written.merge), ("split", written.split, "copy", written.copy))
        for one, first, other, second in pairs:
            if first is not None and second is not None:
                what = "joins its sources" if one == "concat" else "makes its targets"
                title = f"a rule {what} in one way, got `{one}` and `{other}`"
                self.add_problem(
                    title, second.span, "use two rule files, one after the other, or remove one of the two"
                )


def _has_name(to: Text, name: str) -> bool:
    return re.search(rf"{{[^}}]*\b{re.escape(name)}\b", to.value) is not None


def _read_integer(node: MapNode, name: str) -> int:
    value = node.get(name)
    assert isinstance(value, ScalarNode)
    return int(value.value)


def is_integer_capture(part: Part) -> bool:
    """Return whether every value of a part is an integer."""
    if part.values is not None:
        # Leading zeros are allowed: experts may be numbered 00, 01, 02.
        return all(value.isascii() and value.isdigit() for value in part.values)
    return part.node == CANONICAL or _has_only_digits(part.node)


def _has_only_digits(node: PatternNode) -> bool:
    if isinstance(node, Chars):
        return all(DIGITS[0][0] <= low and high <= DIGITS[0][1] for low, high in node.chars)
    if isinstance(node, Repeat):
        return node.low > 0 and _has_only_digits(node.item)
    if isinstance(node, Group):
        return _has_only_digits(node.item)
    if isinstance(node, Alt):
        return all(map(_has_only_digits, node.branches))
    return bool(node.items) and all(map(_has_only_digits, node.items))


def make_template_pattern(pattern: Pattern, written: WrittenPipeline, counts: Mapping[str, int | None]) -> Pattern:
    """Return the pattern to compile templates against: without joined indices, with those that operations make.

    Made indices are bounded by `counts` if all of these are known and few enough to be listed.
    """
    joined = {name.value for _, node in list_joining(written) for name in read_names(node)}
    parts = tuple(replace(part, name=None) if part.name in joined else part for part in pattern.parts)
    few = math.prod(count or 1 for count in counts.values()) <= MAX_WORDS
    for name, count in counts.items():
        made = Part(name, CANONICAL, (0, 0), written="int")
        parts = (*parts, made.restrict_to(tuple(map(str, range(count)))) if few and count is not None else made)
    return replace(pattern, parts=parts)


def make_fill_pattern(written: WrittenFill, parts: tuple[Part, ...]) -> Pattern:
    """Return the captures of an entry of `add` as a pattern to compile its template against."""
    return Pattern("path", written.to, written.node.span, parts)


def list_fill_targets(template: Template, parts: tuple[Part, ...]) -> Iterator[str]:
    """Yield every target key of an entry of `add`."""
    spaces = [part.values or () for part in parts]
    for values in itertools.product(*spaces):
        yield template.render({str(part.name): value for part, value in zip(parts, values, strict=True)})
