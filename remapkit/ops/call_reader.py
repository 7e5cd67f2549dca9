"""Reads the operations of rule files: from written nodes to calls, with a problem for whatever does not fit."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Span, Text
from remapkit.diagnostics.wording import quote_excerpt
from remapkit.ops import base, rearrange
from remapkit.ops.calls import FORMS, Arg, Call, Form, to_plain_arg
from remapkit.rulefile.arithmetic import BadNumber, Expr, check_names, parse_expression
from remapkit.rulefile.syntax import WrittenOp
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, Node, ScalarNode


class CallReader:
    """Reads written operations and adds errors to `problems`. `params` are the names that numbers may use.

    `captures` are those of the rule that is being read, which numbers may use too: each with the reason why it is no
    number, or None if it is one. A param hides a capture of its name.
    """

    def __init__(self, params: Mapping[str, object], problems: list[Diagnostic]) -> None:
        self.params, self.problems = params, problems
        self.captures: Mapping[str, str | None] = {}

    def add_problem(self, code: str, title: str, span: Span, *help: str) -> None:
        """Add a problem."""
        self.problems.append(Diagnostic(code, title, (Label(span),), help))

    def calls(self, written: Sequence[WrittenOp]) -> tuple[Call, ...]:
        """Return all operations that can be read."""
        calls = (self.read_call(call) for call in written)
        return tuple(call for call in calls if call is not None)

    def read_call(self, written: WrittenOp) -> Call | None:
        """Read one operation; return None if it has a problem."""
        name = written.name.value
        form = FORMS[name]
        before = len(self.problems)
        given = self._read_args(form, written.args)
        args = {**dict(form.args), **given}
        call = Call(name, tuple(args.items()), written.span)
        if len(self.problems) == before:
            self._check_call(call, written)
        return call if len(self.problems) == before else None

    def _read_args(self, form: Form, node: Node | None) -> dict[str, Arg]:
        if node is None:
            return {}
        if isinstance(node, MapNode):
            return {key.value: self._read_argument(form, key.value, value) for key, value in node.entries}
        assert form.short is not None
        return {form.short: self._read_argument(form, form.short, node)}

    def _read_argument(self, form: Form, name: str, node: Node) -> Arg:
        if name in form.words:
            assert isinstance(node, ScalarNode)
            return node.value
        return self.read_arg(node, wrap=form.unwrap, sized=True)

    def read_arg(self, node: Node, *, wrap: bool = False, sized: bool = False) -> Arg:
        """Read one argument: a list, a number, or arithmetic on params; if `sized`, it may use `size(k)`."""
        if isinstance(node, ListNode):
            return tuple(self.read_arg(item, sized=sized) for item in node.items)
        assert isinstance(node, ScalarNode)
        value: Arg = self.read_real(node) if node.kind == "number" else self.read_number(node, sized=sized)
        return (value,) if wrap else value

    def read_real(self, node: ScalarNode) -> float:
        """Read a number with a fraction or an exponent; if it does not fit a float, add a problem and return 0."""
        value = float(node.value)
        if math.isinf(value):
            title = f"{quote_excerpt(node.value)} is too large; the largest number is {sys.float_info.max:.3g}"
            self.add_problem("RK163", title, node.span, "write a smaller number")
            return 0
        return value

    def read_number(self, node: ScalarNode, *, sized: bool = False) -> Arg:
        """Read an integer, or arithmetic on params; if that fails, add a problem and return 1."""
        if node.kind == "integer":
            return int(node.value)
        return self.read_expression(node.text, 0, len(node.text.value), sized=sized)

    def read_expression(self, text: Text, start: int, end: int, *, sized: bool = False) -> Arg:
        """Read arithmetic on params in a part of a text; if that fails, add a problem and return 1."""
        try:
            expression = parse_expression(text, start=start, end=end)
        except InvalidRules as error:
            self.problems += error.diagnostics
            return 1
        if (problem := self._check_names(expression, sized=sized)) is not None:
            self.problems.append(problem)
        return expression if expression.names else _evaluate_constant(expression, self.problems)

    def _check_names(self, expression: Expr, *, sized: bool) -> Diagnostic | None:
        """Return the problem (RK162) if an expression uses what is neither a param nor a capture that is a number."""
        for name in expression.names:
            reason = None if name in self.params else self.captures.get(name)
            if reason is not None:
                labels = (Label(expression.span),) if expression.span else ()
                return Diagnostic(
                    "RK162", f"{name!r} {reason}", labels, ("numbers may use params and integer captures",)
                )
        usable = [name for name, reason in self.captures.items() if reason is None]
        return check_names(expression, self.params, usable, sized=sized)

    def _locate_argument(self, written: WrittenOp, name: str, otherwise: Span) -> Span:
        """Return the span of an argument's value, else `otherwise`."""
        node = written.args.get(name) if isinstance(written.args, MapNode) else None
        return node.span if node is not None else otherwise

    def _check_call(self, call: Call, written: WrittenOp) -> None:
        """Check what does not depend on a tensor."""
        span = written.args.span if written.args is not None else written.span
        if call.name == "rearrange":
            return self._check_rearrange(call, written)
        if call.name == "permute":
            order = call["order"]
            assert isinstance(order, tuple)
            if sorted(map(repr, order)) != sorted(map(repr, range(len(order)))):
                title = f"{to_plain_arg(order)} is not an order of {len(order)} dimensions"
                self.add_problem("RK163", title, span, "list every dimension once, from 0: permute: [2, 0, 1]")
        elif call.name == "transpose" and isinstance(dims := call["dims"], tuple):
            if len(dims) != 2 or dims[0] == dims[1]:
                self.add_problem("RK163", "transpose swaps two dimensions", span, "name both: transpose: [0, 1]")
        elif call.name == "reshape":
            for side in (call["from"], call["to"]):
                if isinstance(side, tuple) and sum(size == -1 for size in side) > 1:
                    self.add_problem("RK163", "only one size can be -1", span, "write all other sizes as numbers")
        elif (
            call.name == "slice" and isinstance(start := call["start"], int) and isinstance(stop := call["stop"], int)
        ):
            if 0 <= stop <= start:
                title = f"`stop` must be greater than `start`, got start {start} and stop {stop}"
                self.add_problem(
                    "RK216", title, self._locate_argument(written, "stop", span), "a slice keeps start to stop - 1"
                )
        elif call.name == "scale" and call["factor"] == 0:
            self.add_problem(
                "RK163", "scale by 0 makes every value 0", span, "name the targets under `add:` with fill: zeros"
            )
        try:
            call.op(dict.fromkeys(self.params))
        except base.RefusedOp as refused:
            self.add_problem("RK163", refused.title, span, *refused.help)
        except BadNumber as error:
            if not call.names:
                self.add_problem("RK163", str(error), span, "correct the number")

    def _check_rearrange(self, call: Call, written: WrittenOp) -> None:
        node = written.args.get("pattern") if isinstance(written.args, MapNode) else written.args
        assert isinstance(node, ScalarNode)
        try:
            rearrange.check_sizes(node.value, call.sizes)
        except rearrange.UnknownAxis as bad:
            assert isinstance(written.args, MapNode)
            keys = {key.value: key for key, _ in written.args.entries}
            self.add_problem("RK168", bad.title, keys[bad.name].span, bad.help)
        except rearrange.BadPattern as bad:
            self.add_problem("RK168", bad.title, node.text.at(*bad.at), bad.help)
        for name, size in call.sizes.items():
            if isinstance(size, int) and size < 1:
                title = f"the size of {name!r} must be at least 1, got {size}"
                self.add_problem(
                    "RK216", title, self._locate_argument(written, name, node.span), "count the elements along it"
                )


def _evaluate_constant(expression: Expr, problems: list[Diagnostic]) -> int:
    try:
        return expression.value({})
    except BadNumber as error:
        labels = (Label(expression.span),) if expression.span else ()
        problems.append(Diagnostic("RK161", str(error), labels, ("correct the arithmetic",)))
        return 0
