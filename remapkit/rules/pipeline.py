"""Compiled pipelines: rules with operations. Sources are joined, transformed and split, always in this order:

    each source's own ops -> concat, multiply, divide or dequantize -> stack
        -> ops -> unstack -> split -> each target's own ops

A pipeline is symbolic: its numbers may be params. `Pipeline.resolve` evaluates them, and `plans/groups.py` turns the
result into moves.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span, Text
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
from remapkit.tensors.dtypes import CASTABLE_FLOATS
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Axis:
    """The index dimension of a `stack` or `unstack`. `count` is the required number of indices (None: any)."""

    dim: int
    by: str
    count: Arg = None
    span: Span | None = field(default=None, compare=False, repr=False)

    def find_count(self, params: Params) -> int | None:
        """Return the number of indices if the rule gives one and its params have values."""
        try:
            return _resolve_count(self, params)
        except BadNumber:
            return None


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
    """The operations of a rule on values. `before` has the operations of each source, `after` those of each target.

    `templates[source][target]` are the target keys, in terms of the captures of each source's pattern. No template
    has the capture `stack.by` (it is folded); every template has `unstack.by`, which no pattern has.
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
    combine: CombineRule | None = None

    @property
    def folded(self) -> str | None:
        """The capture whose values become one dimension."""
        return self.stack.by if self.stack is not None else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the params that the pipeline needs."""
        calls = [*itertools.chain(*self.before, self.ops, *self.after)]
        numbers: list[Arg] = [arg for call in calls for _, arg in call.args]
        numbers += [axis.count for axis in (self.stack, self.unstack) if axis is not None]
        numbers += [size for each in (self.split, self.concat) if each is not None for size in each.sizes or ()]
        numbers += self.combine.block if self.combine is not None else ()
        return tuple(dict.fromkeys(name for number in numbers for name in list_params(number)))

    def resolve(self, params: Params) -> Resolved:
        """Return the pipeline with its numbers evaluated; raises `BadNumber` if the params do not allow that."""
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
            stacked=_resolve_count(self.stack, params),
            unstacked=_resolve_count(self.unstack, params),
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


def _resolve_count(axis: Axis | None, params: Params) -> int | None:
    if axis is None or axis.count is None:
        return None
    count = int(evaluate_arg(axis.count, params))
    if count < 1:
        raise BadNumber(f"`count` must be at least 1, got {count}")
    return count


@dataclass(frozen=True, slots=True)
class Resolved:
    """A pipeline with its numbers evaluated; `spans` maps operations (by identity) to positions in the rule file."""

    before: tuple[tuple[base.Op, ...], ...]
    ops: tuple[base.Op, ...]
    after: tuple[tuple[base.Op, ...], ...]
    stacked: int | None
    unstacked: int | None
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

    def read_axis(self, node: MapNode | None) -> Axis | None:
        """Read `stack` or `unstack`."""
        if node is None:
            return None
        count = node.get("count")
        number = self.calls.read_number(count) if isinstance(count, ScalarNode) else None
        if isinstance(number, int) and isinstance(count, ScalarNode) and number < 1:
            self.add_problem(
                f"`count` must be at least 1, got {number}", count.span, "count the entries", code="RK216"
            )
        return Axis(_read_integer(node, "dim"), _read_word(node, "by").value, number, node.span)

    def read_split(self, node: MapNode | None, parts: int) -> SplitRule | None:
        """Read `split` or `concat`, with one size per part."""
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
            if len(numbers) != parts:
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
        """Check that all patterns have the same captures, `stack.by` is an integer, and `unstack.by` is new."""
        first = {part.name for part in patterns[0].captures}
        for pattern in patterns[1:]:
            other = {part.name for part in pattern.captures}
            if other != first:
                lacking = sorted(map(str, first - other)) or sorted(map(str, other - first))
                labels = (Label(patterns[0].text.span, "and here", primary=False), Label(pattern.text.span))
                title = f"all sources of a rule must have the same captures, but {lacking[0]!r} is only in one"
                help = ("sources are joined by their captures: use the same names in each pattern",)
                self.problems.append(Diagnostic("RK164", title, labels, help))
        if written.stack is not None:
            by = _read_word(written.stack, "by")
            for part in (pattern.capture(by.value) for pattern in patterns):
                if part is None:
                    title = f"`by` of `stack` must be a capture, got {by.value!r}"
                    known = ", ".join(sorted(map(str, first))) or "nothing"
                    self.add_problem(title, by.span, f"the pattern captures {known}")
                    break
                if not is_integer_capture(part):
                    title = f"`by` of `stack` must be an integer, but {by.value!r} may be other text"
                    self.add_problem(title, by.span, f"write {{{by.value}:int}} in the path, or \\d+ in the regex")
                    break
        self._check_templates(written)
        if written.unstack is not None and (by := _read_word(written.unstack, "by")).value in first:
            title = f"`by` of `unstack` must be a new name, but the pattern captures {by.value!r}"
            self.add_problem(title, by.span, "choose another name for the index")

    def _check_templates(self, written: WrittenPipeline) -> None:
        """Check that no target has the `stack` index and every target has the `unstack` index."""
        for output in written.outputs:
            if written.stack is not None and _has_name(output.to, by := _read_word(written.stack, "by").value):
                title = f"`stack` joins every {by!r} into one tensor, so the target cannot have it"
                self.add_problem(title, output.to.span, f"remove {{{by}}} from the target")
            if written.unstack is not None and not _has_name(
                output.to, by := _read_word(written.unstack, "by").value
            ):
                title = f"`unstack` makes one tensor for each {by!r}, so the target must have it"
                self.add_problem(title, output.to.span, f"add {{{by}}} to the target")


def _has_name(to: Text, name: str) -> bool:
    return re.search(rf"{{[^}}]*\b{re.escape(name)}\b", to.value) is not None


def _read_integer(node: MapNode, name: str) -> int:
    value = node.get(name)
    assert isinstance(value, ScalarNode)
    return int(value.value)


def _read_word(node: MapNode, name: str) -> Text:
    value = node.get(name)
    assert isinstance(value, ScalarNode)
    return value.text


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


def make_template_pattern(pattern: Pattern, written: WrittenPipeline, count: int | None = None) -> Pattern:
    """Return the pattern to compile templates against: without the `stack` index, with the `unstack` index.

    The `unstack` index is bounded by `count` if that is known.
    """
    parts = pattern.parts
    if written.stack is not None:
        by = _read_word(written.stack, "by").value
        parts = tuple(replace(part, name=None) if part.name == by else part for part in parts)
    if written.unstack is not None:
        made = Part(_read_word(written.unstack, "by").value, CANONICAL, (0, 0), written="int")
        if count is not None and count <= MAX_WORDS:
            made = made.restrict_to(tuple(map(str, range(count))))
        parts = (*parts, made)
    return replace(pattern, parts=parts)


def make_fill_pattern(written: WrittenFill, parts: tuple[Part, ...]) -> Pattern:
    """Return the captures of an entry of `add` as a pattern to compile its template against."""
    return Pattern("path", written.to, written.node.span, parts)


def list_fill_targets(template: Template, parts: tuple[Part, ...]) -> Iterator[str]:
    """Yield every target key of an entry of `add`."""
    spaces = [part.values or () for part in parts]
    for values in itertools.product(*spaces):
        yield template.render({str(part.name): value for part, value in zip(parts, values, strict=True)})
