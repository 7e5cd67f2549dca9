"""Operations as written: a name and arguments, some of them params. What they are once params have values, and back.

A `Call` is symbolic: `rope: {to: half, heads: n_heads, head_dim: 128}` knows no number of heads. `Call.op` gives the
operation of `kinds` for given params, `Call.inverse` the call that undoes it, or the reason why none does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.errors import InvalidRules
from remapkit.diagnostics.source import Span
from remapkit.diagnostics.wording import quote_excerpt
from remapkit.ops import attention, base, dtype
from remapkit.ops import shape as kinds
from remapkit.rulefile.arithmetic import BadNumber, Expr, check_names, parse_expression
from remapkit.rulefile.syntax import WrittenOp
from remapkit.rulefile.yaml.nodes import ListNode, MapNode, Node, ScalarNode

Arg = int | float | str | None | Expr | tuple["Arg", ...]
Params = Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Call:
    """An operation with its arguments, all of them present; numbers may be arithmetic on params."""

    name: str
    args: tuple[tuple[str, Arg], ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> Arg:
        return dict(self.args)[name]

    def op(self, params: Params) -> base.Op:
        """The operation itself; raises `NoValue` or `BadNumber` where the params do not give its numbers."""
        values = {name: evaluate_arg(arg, params) for name, arg in self.args}
        checks = _FORMS[self.name].at_least
        for name, least in checks.items():
            value = values[name]
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None and each < least and not (each == -1 and self.name == "reshape"):
                    raise BadNumber(f"`{name}` of {self.name} is {each}, and must be at least {least}")
        return _FORMS[self.name].make(values)

    @property
    def names(self) -> tuple[str, ...]:
        """The params it speaks of."""
        return tuple(dict.fromkeys(name for _, arg in self.args for name in list_params(arg)))

    @property
    def inverse(self) -> Call | str:
        """The call that undoes it, or a sentence that says why there is none."""
        return _FORMS[self.name].inverse(self)

    def with_args(self, **args: Arg) -> Call:
        """The same call with other arguments."""
        return Call(self.name, tuple((name, args.get(name, arg)) for name, arg in self.args))

    def to_plain(self) -> object:
        """As YAML would have it, in its shortest form.

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


def to_plain_arg(arg: Arg) -> Any:
    """An argument as plain data."""
    if isinstance(arg, tuple):
        return [to_plain_arg(each) for each in arg]
    return arg.text if isinstance(arg, Expr) else arg


def evaluate_arg(arg: Arg, params: Params) -> Any:
    """An argument with its arithmetic done."""
    if isinstance(arg, tuple):
        return tuple(evaluate_arg(each, params) for each in arg)
    return arg.value(params) if isinstance(arg, Expr) else arg


def list_params(arg: Arg) -> tuple[str, ...]:
    """The params that an argument speaks of."""
    if isinstance(arg, tuple):
        return tuple(name for each in arg for name in list_params(each))
    return arg.names if isinstance(arg, Expr) else ()


Inverse = Callable[[Call], "Call | str"]


@dataclass(frozen=True, slots=True)
class _Form:
    """How an operation is written: its arguments and their defaults, which one may stand alone, and its inverse.

    `bare` where the name alone is enough; `short` the argument that may stand without its name, and `unwrap` where
    one element of it may stand without a list. `words` are the arguments that are texts, all others are numbers.
    """

    args: tuple[tuple[str, Any], ...]
    make: Callable[[dict[str, Any]], base.Op]
    inverse: Inverse
    short: str | None = None
    bare: bool = False
    unwrap: bool = False
    at_least: Mapping[str, int] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def get_default(self, name: str) -> Any:
        return dict(self.args)[name]


class _Required:
    """The default of an argument that has none."""


REQUIRED: Any = _Required()


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
    if not dtype.is_exact(str(old), str(new)):
        return f"a cast from {old} to {new} rounds, and what it rounded away is gone"
    if str(old) not in dtype.FLOATS:
        return f"there is no cast from {new} back to {old}: values might be lost"
    return call.with_args(**{"from": new, "to": old})


def _undo_scale(call: Call) -> Call | str:
    factor = float(call["factor"])  # type: ignore[arg-type]
    mantissa = abs(factor)
    while mantissa >= 2:
        mantissa /= 2
    while 0 < mantissa < 1:
        mantissa *= 2
    if mantissa != 1:
        return f"scale by {call['factor']} rounds; only powers of two are undone exactly"
    back = 1 / factor
    return call.with_args(factor=int(back) if back == int(back) else back)


def _undo_rope(call: Call) -> Call:
    return call.with_args(to="interleaved" if call["to"] == "half" else "half")


_DIM = (("dim", 0),)
_HEADS = (("heads", REQUIRED), ("kv_heads", None), ("head_dim", REQUIRED), *_DIM)
_HEADS_FROM = {"heads": 1, "kv_heads": 1, "head_dim": 1}


def _make_qkv(kind: type[attention.UngroupQkv] | type[attention.GroupQkv]) -> Callable[[dict[str, Any]], base.Op]:
    def make(args: dict[str, Any]) -> base.Op:
        return kind(args["heads"], args["kv_heads"] or args["heads"], args["head_dim"], args["dim"])

    return make


_FORMS: Mapping[str, _Form] = {
    "transpose": _Form((("dims", None),), lambda a: kinds.Transpose(a["dims"]), _keep_call, short="dims", bare=True),
    "permute": _Form((("order", REQUIRED),), lambda a: kinds.PermuteOp(a["order"]), _undo_permute, short="order"),
    "reshape": _Form(
        (("from", None), ("to", REQUIRED)),
        lambda a: kinds.ReshapeOp(a["to"], a["from"]),
        _undo_reshape,
        short="to",
        at_least={"from": 0, "to": 0},
    ),
    "squeeze": _Form(
        (("dims", REQUIRED),),
        lambda a: kinds.Squeeze(a["dims"]),
        lambda call: Call("unsqueeze", call.args),
        short="dims",
        unwrap=True,
    ),
    "unsqueeze": _Form(
        (("dims", REQUIRED),),
        lambda a: kinds.Unsqueeze(a["dims"]),
        lambda call: Call("squeeze", call.args),
        short="dims",
        unwrap=True,
    ),
    "slice": _Form(
        (*_DIM, ("start", 0), ("stop", None)),
        lambda a: kinds.Slice(a["dim"], a["start"], a["stop"]),
        _refuse_inverse("slice leaves elements behind, and nothing brings them back"),
        at_least={"start": 0, "stop": 0},
    ),
    "pad": _Form(
        (*_DIM, ("to", REQUIRED), ("value", 0)),
        lambda a: kinds.PadOp(a["dim"], a["to"], a["value"]),
        _refuse_inverse("pad does not say how many elements there were before"),
        at_least={"to": 0},
    ),
    "flip_halves": _Form(_DIM, lambda a: attention.FlipHalves(a["dim"]), _keep_call, bare=True),
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
    """Reads written operations; what is wrong goes to `problems`. `params` are the names that numbers may use."""

    def __init__(self, params: Mapping[str, object], problems: list[Diagnostic]) -> None:
        self.params, self.problems = params, problems

    def add_problem(self, code: str, title: str, span: Span, *help: str) -> None:
        """Note a problem."""
        self.problems.append(Diagnostic(code, title, (Label(span),), help))

    def calls(self, written: Sequence[WrittenOp]) -> tuple[Call, ...]:
        """Every operation that can be read."""
        found = (self.read_call(each) for each in written)
        return tuple(each for each in found if each is not None)

    def read_call(self, written: WrittenOp) -> Call | None:
        """One operation, or None where it has a problem."""
        name = written.name.value
        form = _FORMS[name]
        before = len(self.problems)
        given = self._read_args(form, written.args)
        args = tuple((key, given.get(key, default)) for key, default in form.args)
        call = Call(name, args, written.span)
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
        """One argument: a list, a number, or arithmetic on params."""
        if isinstance(node, ListNode):
            return tuple(self.read_arg(item) for item in node.items)
        assert isinstance(node, ScalarNode)
        value: Arg = self.read_real(node) if node.kind == "number" else self.read_number(node)
        return (value,) if wrap else value

    def read_real(self, node: ScalarNode) -> float:
        """A number with a fraction or an exponent; 0 where no float holds it, which is noted."""
        value = float(node.value)
        if math.isinf(value):
            title = f"{quote_excerpt(node.value)} is beyond the largest number there is, {sys.float_info.max:.3g}"
            self.add_problem("RK163", title, node.span, "write a smaller number")
            return 0
        return value

    def read_number(self, node: ScalarNode) -> Arg:
        """An integer, or arithmetic on params; 0 where it cannot be read, which is noted."""
        if node.kind == "integer":
            return int(node.value)
        try:
            expression = parse_expression(node.text)
        except InvalidRules as error:
            self.problems += error.diagnostics
            return 0
        if (problem := check_names(expression, self.params)) is not None:
            self.problems.append(problem)
        return expression if expression.names else _evaluate_constant(expression, self.problems)

    def _locate_argument(self, written: WrittenOp, name: str, otherwise: Span) -> Span:
        """Where an argument's value stands."""
        node = written.args.get(name) if isinstance(written.args, MapNode) else None
        return node.span if node is not None else otherwise

    def _check_call(self, call: Call, written: WrittenOp) -> None:
        """What can be told without a tensor."""
        span = written.args.span if written.args is not None else written.span
        if call.name == "permute":
            order = call["order"]
            assert isinstance(order, tuple)
            if sorted(map(repr, order)) != sorted(map(repr, range(len(order)))):
                title = f"{to_plain_arg(order)} is no order of {len(order)} dimensions"
                self.add_problem(
                    "RK163", title, span, "name every dimension from 0 on, each once: permute: [2, 0, 1]"
                )
        elif call.name == "transpose" and isinstance(dims := call["dims"], tuple):
            if len(dims) != 2 or dims[0] == dims[1]:
                self.add_problem("RK163", "transpose swaps two dimensions", span, "name both: transpose: [0, 1]")
        elif call.name == "reshape":
            for side in (call["from"], call["to"]):
                if isinstance(side, tuple) and sum(size == -1 for size in side) > 1:
                    self.add_problem("RK163", "two sizes are -1", span, "one size can be what is left, not two")
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
                "RK163", "scale by 0 leaves nothing", span, "name the targets under `add:` with fill: zeros"
            )
        try:
            call.op(dict.fromkeys(self.params))
        except base.RefusedOp as refused:
            self.add_problem("RK163", refused.title, span, *refused.help)
        except BadNumber as error:
            if not call.names:
                self.add_problem("RK163", str(error), span, "correct the number")


def _evaluate_constant(expression: Expr, problems: list[Diagnostic]) -> int:
    try:
        return expression.value({})
    except BadNumber as error:
        labels = (Label(expression.span),) if expression.span else ()
        problems.append(Diagnostic("RK161", str(error), labels, ("correct the arithmetic",)))
        return 0
