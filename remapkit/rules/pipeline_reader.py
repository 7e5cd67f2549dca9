"""Reads rules with operations: what is written becomes a pipeline, with a problem for whatever does not fit."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.source import Span, Text
from remapkit.diagnostics.wording import count_noun, join_words
from remapkit.ops.call_reader import CallReader
from remapkit.ops.calls import Arg
from remapkit.ops.combine import Kind
from remapkit.patterns.charset import DIGITS
from remapkit.patterns.finite import MAX_WORDS
from remapkit.patterns.pattern import CANONICAL, Part, Pattern
from remapkit.patterns.template import Template
from remapkit.patterns.tree import Alt, Chars, Group, PatternNode, Repeat
from remapkit.rulefile.read import COMBINED
from remapkit.rulefile.syntax import WrittenFill, WrittenPipeline
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, Node, ScalarNode
from remapkit.rules.axes import (
    Axis,
    list_joining,
    list_making,
    list_scalars,
    read_names,
)
from remapkit.rules.pipeline import CombineRule, SplitRule


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

    def read_split(self, node: MapNode | None, parts: int | None, *, sized: bool = False) -> SplitRule | None:
        """Read `split` or `concat`, with one size per part (None: as many as `count` says).

        `sized`: the sizes may use those of the tensor that is split.
        """
        if node is None:
            return None
        sizes = node.get("sizes")
        equal = isinstance(sizes, ScalarNode)
        numbers: tuple[Arg, ...] | None = None
        if isinstance(sizes, ListNode):
            items = (item for item in sizes.items if isinstance(item, ScalarNode))
            numbers = tuple(self.calls.read_number(item, sized=sized) for item in items)
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
        """Read `multiply`, `divide`, `dequantize` or `fold_weight_norm`."""
        if len(written.combined) + (written.concat is not None) > 1:
            name = written.combined[-1][0]
            help = "keep one of them, and do the rest with a second rule file"
            self.add_problem(
                f"a rule has one of {join_words(f'`{each}`' for each in ('concat', *COMBINED))}", name.span, help
            )
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
        to_dtype = to.value if isinstance(to, ScalarNode) else None
        over = node.get("over")
        number = self.calls.read_number(over, sized=True) if isinstance(over, ScalarNode) else 1
        if isinstance(over, ScalarNode) and isinstance(number, int) and number < 1:
            help = "divide by the LoRA rank, for example: `size(1)` of an up matrix"
            self.add_problem(f"`over` must be at least 1, got {number}", over.span, help, code="RK216")
        return CombineRule(kind, to_dtype, numbers, self._read_norm_dim(node.get("dim")), number, node.span)

    def _read_norm_dim(self, node: Node | None) -> int | None:
        """Read the dimension of `fold_weight_norm`: 0 by default, None for `all`."""
        if not isinstance(node, ScalarNode):
            return 0
        if node.kind == "integer" and int(node.value) >= 0:
            return int(node.value)
        if node.value != "all":
            title = f"`dim` must be a dimension from 0, or `all`, got {node.value}"
            help = "`all` is the norm of the whole tensor, which torch's weight_norm calls None or -1"
            self.add_problem(title, node.span, help, code="RK216")
        return None

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
