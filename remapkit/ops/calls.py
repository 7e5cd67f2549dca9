"""Operations as rule files write them: a name and arguments, some of them params.

A `Call` is symbolic: `rope: {to: half, heads: n_heads, head_dim: 128}` has no number of heads yet. `Call.op` returns
the operation for given params, `Call.inverse` the call that undoes it, or the reason why it cannot be undone.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import quote_excerpt
from remapkit.ops import attention, base, dtype, rearrange, reorder, shape
from remapkit.rulefile.arithmetic import BadNumber, Expr, Values, check_names, parse_expression
from remapkit.rulefile.syntax import WrittenOp
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, Node, ScalarNode
from remapkit.tensors.dtypes import CASTABLE_FLOATS, is_exact_cast

Arg = int | float | str | None | Expr | tuple["Arg", ...]
Params = Values


@dataclass(frozen=True, slots=True)
class Call:
    """An operation with all of its arguments; numbers may be arithmetic on params."""

    name: str
    args: tuple[tuple[str, Arg], ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> Arg:
        return dict(self.args)[name]

    def op(self, params: Params) -> base.Op:
        """Return the operation; raises `NoValue` or `BadNumber` if the params do not determine its numbers."""
        values = {name: evaluate_arg(arg, params) for name, arg in self.args}
        form = _FORMS[self.name]
        checks = dict.fromkeys(self.sizes, 1) if form.sizes else form.at_least
        for name, least in checks.items():
            value = values[name]
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and number < least and not (number == -1 and self.name == "reshape"):
                    raise BadNumber(f"`{name}` of {self.name} must be at least {least}, got {number}")
        return form.make(values)

    @property
    def sizes(self) -> dict[str, Arg]:
        """Return the arguments whose names the author chose: the sizes of axes."""
        return {name: arg for name, arg in self.args if _FORMS[self.name].get_default(name) is UNKNOWN}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the params that its arguments use."""
        return tuple(dict.fromkeys(name for _, arg in self.args for name in list_params(arg)))

    @property
    def inverse(self) -> Call | str:
        """Return the call that undoes it, or a sentence that says why it cannot be undone."""
        return _FORMS[self.name].inverse(self)

    def with_args(self, **args: Arg) -> Call:
        """Return the same call with other arguments."""
        return Call(self.name, tuple((name, args.get(name, arg)) for name, arg in self.args))

    def rename_captures(self, names: Mapping[str, str]) -> Call:
        """Return the same call with other expressions for some of the names in its numbers."""
        return self.with_args(**{name: rename_captures(arg, names) for name, arg in self.args})

    def to_plain(self) -> object:
        """Return the call as plain data for YAML, in its shortest form.

        >>> Call("transpose", (("dims", (0, 1)),)).to_plain(), Call("flip_halves", (("dim", 0),)).to_plain()
        ({'transpose': [0, 1]}, 'flip_halves')
        """
        form = _FORMS[self.name]
        given = {name: to_plain_arg(arg) for name, arg in self.args if form.get_default(name) != arg}
        if not given and form.bare:
            return self.name
        if form.short is not None and set(given) <= {form.short}:
            value = given[form.short]
            return {self.name: value[0] if form.unwrap and isinstance(value, list) and len(value) == 1 else value}
        return {self.name: given}


def rename_captures(arg: Arg, names: Mapping[str, str]) -> Arg:
    """Return an argument with other expressions for some of its names.

    >>> str(rename_captures(parse_expression("64 * kv_heads[i]"), {"i": "j-1"}))
    '64 * kv_heads[(j-1)]'
    """
    if isinstance(arg, tuple):
        return tuple(rename_captures(item, names) for item in arg)
    if not isinstance(arg, Expr) or not names.keys() & set(arg.names):
        return arg
    written = {name: text if text.isidentifier() or text.isdigit() else f"({text})" for name, text in names.items()}
    return parse_expression(re.sub(r"[A-Za-z_]\w*", lambda found: written.get(found[0], found[0]), arg.text))


def to_plain_arg(arg: Arg) -> Any:
    """Return an argument as plain data."""
    if isinstance(arg, tuple):
        return [to_plain_arg(item) for item in arg]
    return arg.text if isinstance(arg, Expr) else arg


def evaluate_arg(arg: Arg, params: Params) -> Any:
    """Evaluate the arithmetic in an argument."""
    if isinstance(arg, tuple):
        return tuple(evaluate_arg(item, params) for item in arg)
    return arg.value(params) if isinstance(arg, Expr) else arg


def list_params(arg: Arg) -> tuple[str, ...]:
    """Return the params that an argument uses."""
    if isinstance(arg, tuple):
        return tuple(name for item in arg for name in list_params(item))
    return arg.names if isinstance(arg, Expr) else ()


Inverse = Callable[[Call], "Call | str"]


@dataclass(frozen=True, slots=True)
class _Form:
    """The written form of an operation: its arguments and their defaults, its short form, and its inverse.

    `bare` means that the name alone is enough; `short` is the argument that may be written without its name, and
    `unwrap` means that a single element of it may be written without a list. `words` are the arguments that are
    texts; all others are numbers. `sizes` means that it takes further arguments, whose names the author chooses.
    """

    args: tuple[tuple[str, Any], ...]
    make: Callable[[dict[str, Any]], base.Op]
    inverse: Inverse
    short: str | None = None
    bare: bool = False
    unwrap: bool = False
    at_least: Mapping[str, int] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    sizes: bool = False

    def get_default(self, name: str) -> Any:
        return dict(self.args).get(name, UNKNOWN)


class _Placeholder:
    """The default of an argument that has none."""


REQUIRED: Any = _Placeholder()
UNKNOWN: Any = _Placeholder()


def _keep_call(call: Call) -> Call:
    return call


def _refuse_inverse(reason: str) -> Inverse:
    return lambda call: reason


def _undo_permute(call: Call) -> Call:
    order = call["order"]
    assert isinstance(order, tuple)
    back = sorted(range(len(order)), key=lambda n: order[n])  # type: ignore[arg-type, return-value]
    return call.with_args(order=tuple(back))


def _undo_reshape(call: Call) -> Call | str:
    if call["from"] is None:
        return "reshape does not say which shape it came from: write reshape: {from: [...], to: [...]}"
    return call.with_args(**{"from": call["to"], "to": call["from"]})


def _undo_cast(call: Call) -> Call | str:
    old, new = call["from"], call["to"]
    if old is None:
        return f"cast to {new} does not say from which dtype: write cast: {{from: ..., to: {new}}}"
    if not is_exact_cast(str(old), str(new)):
        return f"a cast from {old} to {new} rounds, so it cannot be undone"
    if str(old) not in CASTABLE_FLOATS:
        return f"a cast from {new} back to {old} might lose values"
    return call.with_args(**{"from": new, "to": old})


def _undo_scale(call: Call) -> Call | str:
    factor = float(call["factor"])  # type: ignore[arg-type]
    mantissa = abs(factor)
    while mantissa >= 2:
        mantissa /= 2
    while 0 < mantissa < 1:
        mantissa *= 2
    if mantissa != 1:
        return f"scale by {call['factor']} rounds; only powers of two can be undone exactly"
    back = 1 / factor
    return call.with_args(factor=int(back) if back == int(back) else back)


def _undo_rope(call: Call) -> Call:
    return call.with_args(to="interleaved" if call["to"] == "half" else "half")


def _undo_rearrange(call: Call) -> Call | str:
    pattern = str(call["pattern"])
    unknown = rearrange.parse_pattern(pattern).find_open(call.sizes, after=True)
    if unknown:
        listed = " and ".join(map(repr, unknown))
        return f"rearrange joins {listed} without their sizes: give all but one of them"
    return call.with_args(pattern=rearrange.swap_sides(pattern))


def _make_rearrange(args: dict[str, Any]) -> base.Op:
    sizes = tuple((name, size) for name, size in args.items() if name != "pattern")
    return rearrange.Rearrange(args["pattern"], sizes)


def _undo_roll(call: Call) -> Call:
    by = call["by"]
    if isinstance(by, int):
        return call.with_args(by=-by)
    assert isinstance(by, Expr)
    negated = by.text.removeprefix("0 - (").removesuffix(")") if _NEGATED.fullmatch(by.text) else f"0 - ({by.text})"
    return call.with_args(by=parse_expression(negated))


_NEGATED = re.compile(r"0 - \([^()]*\)")


def _undo_index(call: Call) -> Call | str:
    order = call["order"]
    assert isinstance(order, tuple)
    places = {number: place for place, number in enumerate(order)}
    if len(places) < len(order) or set(places) != set(range(len(order))):
        return f"index {list(order)} leaves elements out or repeats them, which cannot be undone"
    return call.with_args(order=tuple(places[number] for number in range(len(order))))


_DIM = (("dim", 0),)
_HEADS = (("heads", REQUIRED), ("kv_heads", None), ("head_dim", REQUIRED), *_DIM)
_HEADS_FROM = {"heads": 1, "kv_heads": 1, "head_dim": 1}


def _make_qkv(kind: type[attention.UngroupQkv] | type[attention.GroupQkv]) -> Callable[[dict[str, Any]], base.Op]:
    def make(args: dict[str, Any]) -> base.Op:
        return kind(args["heads"], args["kv_heads"] or args["heads"], args["head_dim"], args["dim"])

    return make


_FORMS: Mapping[str, _Form] = {
    "transpose": _Form((("dims", None),), lambda a: shape.Transpose(a["dims"]), _keep_call, short="dims", bare=True),
    "permute": _Form((("order", REQUIRED),), lambda a: shape.PermuteOp(a["order"]), _undo_permute, short="order"),
    "reshape": _Form(
        (("from", None), ("to", REQUIRED)),
        lambda a: shape.ReshapeOp(a["to"], a["from"]),
        _undo_reshape,
        short="to",
        at_least={"from": 0, "to": 0},
    ),
    "squeeze": _Form(
        (("dims", REQUIRED),),
        lambda a: shape.Squeeze(a["dims"]),
        lambda call: Call("unsqueeze", call.args),
        short="dims",
        unwrap=True,
    ),
    "unsqueeze": _Form(
        (("dims", REQUIRED),),
        lambda a: shape.Unsqueeze(a["dims"]),
        lambda call: Call("squeeze", call.args),
        short="dims",
        unwrap=True,
    ),
    "zeros": _Form((), lambda a: shape.Zeros(), _refuse_inverse("zeros replaces every element"), bare=True),
    "slice": _Form(
        (*_DIM, ("start", 0), ("stop", None)),
        lambda a: shape.Slice(a["dim"], a["start"], a["stop"]),
        _refuse_inverse("slice drops elements, which cannot be restored"),
        at_least={"start": 0, "stop": 0},
    ),
    "pad": _Form(
        (*_DIM, ("to", REQUIRED), ("value", 0)),
        lambda a: shape.PadOp(a["dim"], a["to"], a["value"]),
        _refuse_inverse("pad does not say how many elements there were before"),
        at_least={"to": 0},
    ),
    "flip_halves": _Form(_DIM, lambda a: attention.FlipHalves(a["dim"]), _keep_call, bare=True),
    "flip": _Form(_DIM, lambda a: reorder.Flip(a["dim"]), _keep_call, bare=True),
    "roll": _Form((*_DIM, ("by", REQUIRED)), lambda a: reorder.Roll(a["dim"], a["by"]), _undo_roll),
    "index": _Form(
        (*_DIM, ("order", REQUIRED)),
        lambda a: reorder.Index(a["dim"], a["order"]),
        _undo_index,
        at_least={"order": 0},
    ),
    "rearrange": _Form(
        (("pattern", REQUIRED),), _make_rearrange, _undo_rearrange, short="pattern", words=("pattern",), sizes=True
    ),
    "rope": _Form(
        (("to", REQUIRED), ("heads", REQUIRED), ("head_dim", REQUIRED), *_DIM),
        lambda a: attention.Rope(a["to"], a["heads"], a["head_dim"], a["dim"]),
        _undo_rope,
        at_least={"heads": 1, "head_dim": 2},
        words=("to",),
    ),
    "ungroup_qkv": _Form(
        _HEADS, _make_qkv(attention.UngroupQkv), lambda call: Call("group_qkv", call.args), at_least=_HEADS_FROM
    ),
    "group_qkv": _Form(
        _HEADS, _make_qkv(attention.GroupQkv), lambda call: Call("ungroup_qkv", call.args), at_least=_HEADS_FROM
    ),
    "cast": _Form(
        (("from", None), ("to", REQUIRED)),
        lambda a: dtype.CastOp(a["to"], a["from"]),
        _undo_cast,
        short="to",
        words=("from", "to"),
    ),
    "scale": _Form((("factor", REQUIRED),), lambda a: dtype.ScaleOp(float(a["factor"])), _undo_scale, short="factor"),
    "add": _Form(
        (("term", REQUIRED),),
        lambda a: dtype.AddOp(float(a["term"])),
        _refuse_inverse("add rounds: x + 1 - 1 is not x for every float"),
        short="term",
    ),
}
"""Every operation on one tensor, by its name in rule files."""

OPERATIONS = tuple(_FORMS)
"""The names of all operations on one tensor."""


# -------------------------------------------------------------------------------------------- from written to calls


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
        form = _FORMS[name]
        before = len(self.problems)
        given = self._read_args(form, written.args)
        args = {**dict(form.args), **given}
        call = Call(name, tuple(args.items()), written.span)
        if len(self.problems) == before:
            self._check_call(call, written)
        return call if len(self.problems) == before else None

    def _read_args(self, form: _Form, node: Node | None) -> dict[str, Arg]:
        if node is None:
            return {}
        if isinstance(node, MapNode):
            return {key.value: self._read_argument(form, key.value, value) for key, value in node.entries}
        assert form.short is not None
        return {form.short: self._read_argument(form, form.short, node)}

    def _read_argument(self, form: _Form, name: str, node: Node) -> Arg:
        if name in form.words:
            assert isinstance(node, ScalarNode)
            return node.value
        return self.read_arg(node, wrap=form.unwrap)

    def read_arg(self, node: Node, *, wrap: bool = False) -> Arg:
        """Read one argument: a list, a number, or arithmetic on params."""
        if isinstance(node, ListNode):
            return tuple(self.read_arg(item) for item in node.items)
        assert isinstance(node, ScalarNode)
        value: Arg = self.read_real(node) if node.kind == "number" else self.read_number(node)
        return (value,) if wrap else value

    def read_real(self, node: ScalarNode) -> float:
        """Read a number with a fraction or an exponent; if it does not fit a float, add a problem and return 0."""
        value = float(node.value)
        if math.isinf(value):
            title = f"{quote_excerpt(node.value)} is too large; the largest number is {sys.float_info.max:.3g}"
            self.add_problem("RK163", title, node.span, "write a smaller number")
            return 0
        return value

    def read_number(self, node: ScalarNode) -> Arg:
        """Read an integer, or arithmetic on params; if that fails, add a problem and return 0."""
        if node.kind == "integer":
            return int(node.value)
        try:
            expression = parse_expression(node.text)
        except InvalidRules as error:
            self.problems += error.diagnostics
            return 0
        if (problem := self._check_names(expression)) is not None:
            self.problems.append(problem)
        return expression if expression.names else _evaluate_constant(expression, self.problems)

    def _check_names(self, expression: Expr) -> Diagnostic | None:
        """Return the problem (RK162) if an expression uses what is neither a param nor a capture that is a number."""
        for name in expression.names:
            reason = None if name in self.params else self.captures.get(name)
            if reason is not None:
                labels = (Label(expression.span),) if expression.span else ()
                return Diagnostic(
                    "RK162", f"{name!r} {reason}", labels, ("numbers may use params and integer captures",)
                )
        usable = [name for name, reason in self.captures.items() if reason is None]
        return check_names(expression, self.params, usable)

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
