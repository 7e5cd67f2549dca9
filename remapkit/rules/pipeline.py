"""Pipelines: what rules with operations do, compiled. Sources are joined, changed and taken apart, in this one order:

    each source's own ops -> concat -> stack -> ops -> unstack -> split -> each target's own ops

A pipeline is symbolic: its numbers may be params. `Pipeline.resolve` gives it numbers, and `plans/groups.py` makes
moves of it.
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
from remapkit.patterns.charset import DIGITS
from remapkit.patterns.finite import MAX_WORDS
from remapkit.patterns.pattern import CANONICAL, Part, Pattern
from remapkit.patterns.template import Template
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat
from remapkit.rulefile.arithmetic import BadNumber
from remapkit.rulefile.syntax import WrittenFill, WrittenPipeline
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, ScalarNode
from remapkit.tensors.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Axis:
    """A dimension that an index counts: `stack` and `unstack`. `count` is how many there must be, None: any."""

    dim: int
    by: str
    count: Arg = None
    span: Span | None = field(default=None, compare=False, repr=False)

    def find_count(self, params: Params) -> int | None:
        """How many there are, where the rule says so and its params have values."""
        try:
            return _resolve_count(self, params)
        except BadNumber:
            return None


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Where a tensor is cut, or put together: `sizes` are those of the parts, `equal` says that they are the same.

    A split without sizes is an equal one; a concat without them takes whatever comes.
    """

    dim: int
    sizes: tuple[Arg, ...] | None = None
    equal: bool = False
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a rule does with values. `before` has the operations of each source, `after` those of each target.

    `templates[source][target]` are the target keys in the captures of each source's pattern. The capture `stack.by`
    is in none of them (it is folded); `unstack.by` is in each of them, and in no pattern.
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

    @property
    def folded(self) -> str | None:
        """The capture whose values become one dimension."""
        return self.stack.by if self.stack is not None else None

    @property
    def names(self) -> tuple[str, ...]:
        """The params that it needs."""
        calls = [*itertools.chain(*self.before, self.ops, *self.after)]
        numbers: list[Arg] = [arg for call in calls for _, arg in call.args]
        numbers += [axis.count for axis in (self.stack, self.unstack) if axis is not None]
        numbers += [size for each in (self.split, self.concat) if each is not None for size in each.sizes or ()]
        return tuple(dict.fromkeys(name for number in numbers for name in list_params(number)))

    def resolve(self, params: Params) -> Resolved:
        """The pipeline with numbers; raises `BadNumber` where the params do not give them."""
        spans: dict[int, Span | None] = {}

        def ops(calls: tuple[Call, ...]) -> tuple[base.Op, ...]:
            made = []
            for call in calls:
                op = call.op(params)
                spans[id(op)] = call.span
                made.append(op)
            return tuple(made)

        return Resolved(
            before=tuple(map(ops, self.before)),
            ops=ops(self.ops),
            after=tuple(map(ops, self.after)),
            stacked=_resolve_count(self.stack, params),
            unstacked=_resolve_count(self.unstack, params),
            sizes=_resolve_sizes(self.split, params),
            joined=_resolve_sizes(self.concat, params),
            spans=spans,
        )


def _resolve_sizes(split: SplitRule | None, params: Params) -> tuple[int, ...] | None:
    if split is None or split.sizes is None:
        return None
    sizes = tuple(int(evaluate_arg(size, params)) for size in split.sizes)
    if min(sizes) < 1:
        raise BadNumber(f"a part has the size {min(sizes)}")
    return sizes


def _resolve_count(axis: Axis | None, params: Params) -> int | None:
    if axis is None or axis.count is None:
        return None
    count = int(evaluate_arg(axis.count, params))
    if count < 1:
        raise BadNumber(f"`count` is {count}, and must be at least 1")
    return count


@dataclass(frozen=True, slots=True)
class Resolved:
    """A pipeline with numbers; `spans` are the places of its operations in the rule file, by identity."""

    before: tuple[tuple[base.Op, ...], ...]
    ops: tuple[base.Op, ...]
    after: tuple[tuple[base.Op, ...], ...]
    stacked: int | None
    unstacked: int | None
    sizes: tuple[int, ...] | None
    joined: tuple[int, ...] | None
    spans: dict[int, Span | None]


@dataclass(frozen=True, slots=True)
class AddedTargets:
    """One entry of `add`, compiled: `targets` are all its target keys."""

    id: str
    span: Span
    targets: tuple[str, ...]
    value: str | float
    shape: tuple[Arg, ...]
    dtype: str
    template: Template | None = None

    def op(self, params: Params) -> join.FillOp:
        """What it holds; raises `BadNumber` or `Refused`."""
        shape = tuple(int(evaluate_arg(size, params)) for size in self.shape)
        if shape and min(shape) < 0:
            raise BadNumber(f"the shape {list(shape)} has a negative size")
        spec = TensorSpec(self.dtype, shape)
        if isinstance(self.value, float | int):
            dtype.check_value(self.value, self.dtype)
        if self.value == "arange" and self.dtype not in dtype.FLOATS and spec.numel:
            dtype.check_value(spec.numel - 1, self.dtype)
        if self.value == "tril" and len(shape) < 2:
            raise base.RefusedOp("tril wants two dimensions at least")
        return join.FillOp(self.value, spec)


# ------------------------------------------------------------------------------------------------- compilation


class FlowReader:
    """Reads the numbers and operations of written pipelines; what is wrong goes to `problems`."""

    def __init__(self, params: Mapping[str, object], problems: list[Diagnostic]) -> None:
        self.calls, self.problems = CallReader(params, problems), problems

    def add_problem(self, title: str, span: Span, *help: str, code: str = "RK164") -> None:
        """Note a problem."""
        self.problems.append(Diagnostic(code, title, (Label(span),), help))

    def read_axis(self, node: MapNode | None) -> Axis | None:
        """`stack` or `unstack`."""
        if node is None:
            return None
        count = node.get("count")
        number = self.calls.read_number(count) if isinstance(count, ScalarNode) else None
        if isinstance(number, int) and isinstance(count, ScalarNode) and number < 1:
            self.add_problem(
                f"`count` must be at least 1, got {number}", count.span, "say how many there are", code="RK216"
            )
        return Axis(_read_integer(node, "dim"), _read_word(node, "by").value, number, node.span)

    def split(self, node: MapNode | None, parts: int) -> SplitRule | None:
        """`split` or `concat`, with one size for each part."""
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
                    f"{len(numbers)} sizes for {parts} parts", sizes.span, "one size for each entry of `into`"
                )
        return SplitRule(_read_integer(node, "dim"), numbers, equal, node.span)

    def check_captures(self, written: WrittenPipeline, patterns: list[Pattern]) -> None:
        """Every pattern of one rule has the same captures; what `stack` counts is an integer, `unstack` is new."""
        first = {part.name for part in patterns[0].captures}
        for pattern in patterns[1:]:
            other = {part.name for part in pattern.captures}
            if other != first:
                lacking = sorted(map(str, first - other)) or sorted(map(str, other - first))
                labels = (Label(patterns[0].text.span, "and here", primary=False), Label(pattern.text.span))
                title = f"the sources of one rule capture the same, and {lacking[0]!r} is in one only"
                help = ("sources are put together by their captures: name the same ones in each pattern",)
                self.problems.append(Diagnostic("RK164", title, labels, help))
        if written.stack is not None:
            by = _read_word(written.stack, "by")
            for part in (pattern.capture(by.value) for pattern in patterns):
                if part is None:
                    title = f"`stack` counts {by.value!r}, which the pattern does not capture"
                    known = ", ".join(sorted(map(str, first))) or "nothing"
                    self.add_problem(title, by.span, f"captured are: {known}")
                    break
                if not is_integer_capture(part):
                    title = f"`stack` counts {by.value!r}, which is no integer"
                    self.add_problem(title, by.span, f"write {{{by.value}:int}} in the path, or \\d+ in the regex")
                    break
        self._check_templates(written)
        if written.unstack is not None and (by := _read_word(written.unstack, "by")).value in first:
            title = f"`unstack` makes {by.value!r}, which the pattern captures already"
            self.add_problem(title, by.span, "give the index a name of its own")

    def _check_templates(self, written: WrittenPipeline) -> None:
        """What is counted away is in no target, and the index that is made in each."""
        for output in written.outputs:
            if written.stack is not None and _has_name(output.to, by := _read_word(written.stack, "by").value):
                title = f"`stack` puts every {by!r} into one tensor, so the target has none"
                self.add_problem(title, output.to.span, f"remove {{{by}}} from the target")
            if written.unstack is not None and not _has_name(
                output.to, by := _read_word(written.unstack, "by").value
            ):
                title = f"`unstack` makes one tensor for each {by!r}, and the target does not name it"
                self.add_problem(title, output.to.span, f"write {{{by}}} into the target")


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
    """Whether all that a part can be are integers."""
    if part.values is not None:
        # Not only canonical ones: experts may be numbered 00, 01, 02.
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
    """The pattern that templates are compiled against: without what is folded, with the index that is made.

    `count` is how many `unstack` makes, where that is known: then the index is bounded.
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
    """The captures of an entry of `add`, as a pattern that its template can be compiled against."""
    return Pattern("path", written.to, written.node.span, parts)


def list_fill_targets(template: Template, parts: tuple[Part, ...]) -> Iterator[str]:
    """Every target key of an entry of `add`."""
    spaces = [part.values or () for part in parts]
    for values in itertools.product(*spaces):
        yield template.render({str(part.name): value for part, value in zip(parts, values, strict=True)})
