"""Operations as rule files write them: a name and arguments, some of them params.

A `Call` is symbolic: `rope: {to: half, heads: n_heads, head_dim: 128}` has no number of heads yet. `Call.op` returns
the operation for given params, `Call.inverse` the call that undoes it, or the reason why it cannot be undone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from remapkit.diagnostics.source import Span
from remapkit.ops import attention, base, dtype, rearrange, reorder, shape
from remapkit.ops.steps import OpStep
from remapkit.rulefile.arithmetic import SIZE, BadNumber, Expr, NoValue, ParamValue, Values, parse_expression
from remapkit.tensors.dtypes import CASTABLE_FLOATS, is_exact_cast
from remapkit.tensors.spec import TensorSpec

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
        """Return the operation; raises `NoValue` or `BadNumber` if the params do not determine its numbers.

        Numbers with `size(k)` are evaluated for each tensor, unless `params` have a shape.
        """
        if SIZE in self.names and SIZE not in params:
            return SizedOp(self, take_values([name for name in self.names if name != SIZE], params))
        values = {name: evaluate_arg(arg, params) for name, arg in self.args}
        form = FORMS[self.name]
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
        return {name: arg for name, arg in self.args if FORMS[self.name].get_default(name) is UNKNOWN}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the params that its arguments use."""
        return tuple(dict.fromkeys(name for _, arg in self.args for name in list_params(arg)))

    @property
    def inverse(self) -> Call | str:
        """Return the call that undoes it, or a sentence that says why it cannot be undone."""
        if SIZE in self.names:
            return f"{self.name} uses size(k), and nothing keeps the sizes of the tensor before it: use params"
        return FORMS[self.name].inverse(self)

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
        form = FORMS[self.name]
        given = {name: to_plain_arg(arg) for name, arg in self.args if form.get_default(name) != arg}
        if not given and form.bare:
            return self.name
        if form.short is not None and set(given) <= {form.short}:
            value = given[form.short]
            return {self.name: value[0] if form.unwrap and isinstance(value, list) and len(value) == 1 else value}
        return {self.name: given}


def take_values(names: Iterable[str], params: Params) -> tuple[tuple[str, ParamValue], ...]:
    """Return the values of some names; raises `NoValue` if one has none."""
    values = [(name, params.get(name)) for name in names]
    if lacking := tuple(name for name, value in values if value is None):
        raise NoValue(lacking)
    return tuple((name, value) for name, value in values if value is not None)


@dataclass(frozen=True, slots=True)
class SizedOp(base.Op):
    """An operation whose numbers use `size(k)`: they are evaluated for each tensor that it gets."""

    call: Call
    values: tuple[tuple[str, ParamValue], ...]

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the operation."""
        return self.call.name

    def steps(self, spec: TensorSpec) -> tuple[OpStep, ...]:
        """Return the steps of the operation for the sizes of this tensor."""
        return self.find_op(spec).steps(spec)

    def find_op(self, spec: TensorSpec) -> base.Op:
        """Return the operation for a tensor; raises `RefusedOp` if its sizes give no numbers."""
        try:
            return self.call.op({**dict(self.values), SIZE: spec.shape})
        except BadNumber as error:
            raise base.RefusedOp(str(error), "size(k) counts dimensions from 0; -1 is the last") from None


_NAME = re.compile(r"[A-Za-z_]\w*(?!\w|\s*\()", re.ASCII)
"""A param, a list or a capture in an expression, not a function."""


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
    return parse_expression(_NAME.sub(lambda found: written.get(found[0], found[0]), arg.text))


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
class Form:
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


FORMS: Mapping[str, Form] = {
    "transpose": Form((("dims", None),), lambda a: shape.Transpose(a["dims"]), _keep_call, short="dims", bare=True),
    "permute": Form((("order", REQUIRED),), lambda a: shape.PermuteOp(a["order"]), _undo_permute, short="order"),
    "reshape": Form(
        (("from", None), ("to", REQUIRED)),
        lambda a: shape.ReshapeOp(a["to"], a["from"]),
        _undo_reshape,
        short="to",
        at_least={"from": 0, "to": 0},
    ),
    "squeeze": Form(
        (("dims", REQUIRED),),
        lambda a: shape.Squeeze(a["dims"]),
        lambda call: Call("unsqueeze", call.args),
        short="dims",
        unwrap=True,
    ),
    "unsqueeze": Form(
        (("dims", REQUIRED),),
        lambda a: shape.Unsqueeze(a["dims"]),
        lambda call: Call("squeeze", call.args),
        short="dims",
        unwrap=True,
    ),
    "zeros": Form((), lambda a: shape.Zeros(), _refuse_inverse("zeros replaces every element"), bare=True),
    "slice": Form(
        (*_DIM, ("start", 0), ("stop", None)),
        lambda a: shape.Slice(a["dim"], a["start"], a["stop"]),
        _refuse_inverse("slice drops elements, which cannot be restored"),
        at_least={"start": 0, "stop": 0},
    ),
    "pad": Form(
        (*_DIM, ("to", REQUIRED), ("value", 0)),
        lambda a: shape.PadOp(a["dim"], a["to"], a["value"]),
        _refuse_inverse("pad does not say how many elements there were before"),
        at_least={"to": 0},
    ),
    "flip_halves": Form(_DIM, lambda a: attention.FlipHalves(a["dim"]), _keep_call, bare=True),
    "flip": Form(_DIM, lambda a: reorder.Flip(a["dim"]), _keep_call, bare=True),
    "roll": Form((*_DIM, ("by", REQUIRED)), lambda a: reorder.Roll(a["dim"], a["by"]), _undo_roll),
    "index": Form(
        (*_DIM, ("order", REQUIRED)),
        lambda a: reorder.Index(a["dim"], a["order"]),
        _undo_index,
        at_least={"order": 0},
    ),
    "rearrange": Form(
        (("pattern", REQUIRED),), _make_rearrange, _undo_rearrange, short="pattern", words=("pattern",), sizes=True
    ),
    "rope": Form(
        (("to", REQUIRED), ("heads", REQUIRED), ("head_dim", REQUIRED), *_DIM),
        lambda a: attention.Rope(a["to"], a["heads"], a["head_dim"], a["dim"]),
        _undo_rope,
        at_least={"heads": 1, "head_dim": 2},
        words=("to",),
    ),
    "ungroup_qkv": Form(
        _HEADS, _make_qkv(attention.UngroupQkv), lambda call: Call("group_qkv", call.args), at_least=_HEADS_FROM
    ),
    "group_qkv": Form(
        _HEADS, _make_qkv(attention.GroupQkv), lambda call: Call("ungroup_qkv", call.args), at_least=_HEADS_FROM
    ),
    "cast": Form(
        (("from", None), ("to", REQUIRED)),
        lambda a: dtype.CastOp(a["to"], a["from"]),
        _undo_cast,
        short="to",
        words=("from", "to"),
    ),
    "scale": Form((("factor", REQUIRED),), lambda a: dtype.ScaleOp(float(a["factor"])), _undo_scale, short="factor"),
    "add": Form(
        (("term", REQUIRED),),
        lambda a: dtype.AddOp(float(a["term"])),
        _refuse_inverse("add rounds: x + 1 - 1 is not x for every float"),
        short="term",
    ),
}
"""Every operation on one tensor, by its name in rule files."""

OPERATIONS = tuple(FORMS)
"""The names of all operations on one tensor."""
