"""Explain a tensor of an adapter by its name alone: its module in the model, and what the rules make of it.

There is no file, so the model's manifest gives the shapes and the LoRA rank is open: the rules are derived for a file
that has adapters of all weights that are joined with this one, of some rank. What depends on the rank is not said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import reduce
from itertools import count

from remapkit.adapters.alphas import CONFIG
from remapkit.adapters.build import Options, build_adapter
from remapkit.adapters.names import WEIGHT, Module, get_module, read_adapter, split_leaf
from remapkit.companions.formats import Role, Style, flatten, read_formats
from remapkit.companions.names import find_adapter_module
from remapkit.diagnostics.errors import FailedCheck, UsageError
from remapkit.diagnostics.wording import join_words
from remapkit.ops.join import Join
from remapkit.plans.make import make_plan
from remapkit.plans.model import ResolvedPlan
from remapkit.rulefile.read import read_text
from remapkit.rules.chain import chain_rules
from remapkit.rules.compile import compile_rules
from remapkit.rules.model import CompiledRules
from remapkit.tensors.families import find_families
from remapkit.tensors.spec import OPAQUE, StateDictSpec, TensorSpec

ROLES: Mapping[Role, str] = {
    "up": "the up matrix [OUT, r]",
    "down": "the down matrix [r, IN]",
    "mid": "the `mid` tensor",
    "alpha": "the alpha",
    "magnitude": "the magnitude (DoRA)",
    "diff": "the difference",
    "diff_bias": "the difference of the bias",
    "up_bias": "the bias of the up matrix",
}
SHOWN = 4
"""The most names that are listed."""


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """A tensor of an adapter: `role` says what it is, `format` how it is named, `weight` is the key of its module.

    `rules` take the weight; `targets` are the tensors that this one becomes, together with `others` of the adapter if
    weights are joined. `reason` says why it cannot follow. With no `weight`, `nearest` are modules of the model.
    """

    key: str
    role: str
    format: str
    weight: str = ""
    rules: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    alpha: str = ""
    reason: str = ""
    nearest: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether its module is known, and it follows the weight."""
        return bool(self.weight) and not self.reason

    def describe(self) -> Iterator[str]:
        """Yield the lines below the key."""
        named = f"in the names of {read_formats().titles[self.format]}" if self.format else "without a prefix"
        if not self.weight:
            yield f"a tensor of an adapter, {named}, of no module that the rules read"
            yield f"the nearest are {join_words(self.nearest)}" if self.nearest else "no module has a similar name"
            return
        yield f"{self.role} of {self.weight}, {named}"
        became = f"becomes {_list_keys(self.weights)}" if self.weights else "is dropped"
        yield f"rule {join_words(self.rules)}: the weight {became}"
        yield f"it {self._say_how()}"
        if self.alpha:
            yield self.alpha

    def _say_how(self) -> str:
        if self.reason:
            return f"cannot follow: {self.reason}"
        if not self.targets:
            return "is dropped too"
        by = f", by {join_words(self.ops)}" if self.ops else ""
        to, several = _list_keys(self.targets), f"{len(self.targets)} tensors"
        if self.others:
            return f"is joined with {_list_keys(self.others)}, where the file has them, into {to}{by}"
        if len(self.targets) > 1:
            how = {(): "is copied to", ("split",): "is split into"}.get(self.ops)
            return f"{how} {several}: {to}" if how else f"becomes {several}{by}: {to}"
        return f"keeps its name{by}" if self.targets == (self.key,) else f"becomes {to}{by}"


def _list_keys(fqns: Sequence[str]) -> str:
    """Return some names as key families, which say all of them: `blocks.0.{q|k|v}.weight`."""
    families = find_families(StateDictSpec(dict.fromkeys(fqns, OPAQUE)))
    return join_words([family.pattern for family in families], SHOWN)


def may_be_of_adapter(fqn: str) -> bool:
    """Return whether a name ends like that of a tensor of an adapter.

    >>> may_be_of_adapter("m.lora_up.weight"), may_be_of_adapter("m.weight")
    (True, False)
    """
    return split_leaf(fqn, read_formats()) is not None


def explain_adapter_key(rules: CompiledRules, plan: ResolvedPlan, fqn: str) -> AdapterKey | None:
    """Explain a tensor of an adapter of the model that `plan` is of; None if it has not the name of one.

    Raises `UsageError` (RK721) if a flat name is that of several modules.
    """
    cut = split_leaf(fqn, read_formats())
    if cut is None:
        return None
    try:
        adapter = read_adapter(StateDictSpec({fqn: TensorSpec("F32", (1,))}), plan.source)
    except UsageError as error:
        if error.diagnostics[0].code != "RK720":
            raise
        return _explain_stranger(fqn, cut[0], plan.source)
    if not adapter.modules:
        return None
    (module,) = adapter.modules
    role: Role = next((role for role, own in module.tensors.items() if own == fqn), "opaque")
    moves = [move for move in plan.moves if module.weight in move.sources]
    gone = [each.rule.id for each in plan.dropped if each.fqn == module.weight]
    about = AdapterKey(
        fqn,
        ROLES.get(role) or f"a part of {_name_kind(fqn)}",
        adapter.style.format,
        module.weight,
        rules=tuple(dict.fromkeys([*(move.rule.id for move in moves), *gone])),
        weights=tuple(move.target for move in moves),
    )
    joined = dict.fromkeys([module.weight, *(source for move in moves for source in move.sources)])
    file = _ImaginedFile(fqn, role, adapter.style, module, {each: plan.source[each] for each in joined})
    return _follow(about, rules, plan.source, file)


def _explain_stranger(fqn: str, module: str, base: StateDictSpec) -> AdapterKey | None:
    """Explain a tensor whose module the model does not have; None if it may be no tensor of an adapter at all."""
    formats = read_formats()
    prefix = next((each for each in formats.prefixes if module.startswith(each.text)), None)
    if prefix is None and find_adapter_module(fqn) is None:
        return None
    name = module if prefix is None else module[len(prefix.text) :]
    # Compared with `_` for dots in every format, so that a name with a wrong separator is near.
    modules = {flatten(get_module(key)): get_module(key) for key in base}
    near = tuple(modules[each] for each in get_close_matches(flatten(name), modules, 3))
    return AdapterKey(fqn, "", "" if prefix is None else prefix.format, nearest=near)


def _name_kind(fqn: str) -> str:
    formats = read_formats()
    return next((kind.name for leaf, kind in formats.opaque.items() if fqn.endswith(f".{leaf}")), "an adapter")


# ------------------------------------------------------------------------------------------------ what becomes of it


@dataclass(frozen=True, slots=True)
class _ImaginedFile:
    """A file with this tensor, and adapters of all weights (`specs`) that are joined with that of its module."""

    fqn: str
    role: Role
    style: Style
    module: Module
    specs: Mapping[str, TensorSpec]

    @property
    def rank(self) -> int:
        """A LoRA rank that no dimension has, so that it cannot be taken for one."""
        sizes = {size for spec in self.specs.values() for size in spec.shape}
        return next(rank for rank in count(4) if rank not in sizes)

    def name(self, weight: str, role: Role) -> str | None:
        """Return the name of a tensor; None if the format has none."""
        if weight == self.module.weight and role == self.role:
            return self.fqn
        leaf = self.style.leaf(role)
        if leaf is None or weight != self.module.weight:
            return None if leaf is None else self.style.name(get_module(weight), leaf)
        return f"{self.module.name}.{leaf}"

    def make_header(self, base: StateDictSpec, is_stack: bool) -> StateDictSpec:
        """Return the header of the file; `is_stack` is whether weights of three dimensions are stacks of matrices."""
        roles: list[Role] = [self.role]
        if self.role in ("up", "down", "mid", "alpha", "magnitude"):
            roles = ["up", "down", *(("alpha",) if self.style.alpha == "tensor" else ()), *roles]
        tensors = {}
        for weight, spec in self.specs.items():
            if weight == self.module.weight or self.role in ("up", "down", "alpha", "magnitude"):
                shapes = self._list_shapes(base, weight, spec.shape, is_stack)
                own = {self.name(weight, role): TensorSpec("F32", shapes.get(role, (1,))) for role in roles}
                tensors.update({name: spec for name, spec in own.items() if name is not None})
        return StateDictSpec(tensors)

    def _list_shapes(
        self, base: StateDictSpec, weight: str, shape: tuple[int, ...], is_stack: bool
    ) -> dict[Role, tuple[int, ...]]:
        rows, ones = shape[:1], (1,) * (len(shape) - 2)
        bias = base.get(f"{get_module(weight)}.bias")
        of_bias = rows if bias is None else bias.shape
        shapes: dict[Role, tuple[int, ...]] = {
            "up": (*rows, self.rank, *ones),
            "down": (self.rank, *shape[1:]),
            "mid": (self.rank, self.rank, *shape[2:]),
            "alpha": (),
            "magnitude": rows,
            "diff": shape,
            "diff_bias": of_bias,
            "up_bias": of_bias,
        }
        if is_stack:
            shapes |= {"up": (*shape[:2], self.rank), "down": (*rows, self.rank, *shape[2:])}
        return shapes


def _follow(about: AdapterKey, rules: CompiledRules, base: StateDictSpec, file: _ImaginedFile) -> AdapterKey:
    """Return the explanation with what the derived rules make of the tensor."""
    shape = base[about.weight].shape
    if len(shape) < 2 and file.role in ("up", "down", "mid", "alpha"):
        return replace(about, reason="a LoRA is of matrices, and the weight has no columns")
    forms = [False] if len(shape) != 3 else [False, True] if about.weight.endswith(WEIGHT) else [True, False]
    reasons = []
    for is_stack in forms:
        header = file.make_header(base, is_stack)
        alpha = float(file.rank) if file.style.alpha == "config" else None
        try:
            built = build_adapter(rules, base, header, Options(alpha=alpha), lambda fqn: float(file.rank))
        except FailedCheck as error:
            reasons.append(error.diagnostics[0].title.rpartition("cannot follow: ")[2])
            continue
        derived = reduce(chain_rules, (compile_rules(read_text(text)) for text in built.texts))
        return _describe(about, make_plan(derived, header), file)
    return replace(about, reason=reasons[0])


def _describe(about: AdapterKey, plan: ResolvedPlan, file: _ImaginedFile) -> AdapterKey:
    moves = [move for move in plan.moves if about.key in move.sources]
    ops = [op.name for move in moves for op in move.ops if not isinstance(op, Join)]
    others = [fqn for move in moves for fqn in move.sources if fqn != about.key]
    return replace(
        about,
        targets=tuple(move.target for move in moves),
        others=tuple(dict.fromkeys(others)),
        ops=tuple(dict.fromkeys(ops)),
        alpha=_describe_alpha(plan, file, bool(others)) if moves else "",
    )


def _describe_alpha(plan: ResolvedPlan, file: _ImaginedFile, is_joined: bool) -> str:
    """Return the line on alpha; "" for what has none."""
    if file.role == "alpha":
        end = "; if those of joined weights differ, they are multiplied in first" if is_joined else ""
        return f"alpha / r is the factor of the update{end}"
    if file.role not in ("up", "down", "magnitude"):
        return ""
    if file.style.alpha == "config":
        return f"its alpha is in {CONFIG}, which is rewritten for the new modules"
    name = file.name(file.module.weight, "alpha")
    if file.style.alpha == "none" or name is None:
        return "no alpha: it is r, so the factor alpha / r is 1"
    targets = [move.target for move in plan.moves if name in move.sources]
    if is_joined:
        how = "joins the others if alpha / r is one number, else each is multiplied in first"
    elif len(targets) > 1:
        how = "is copied likewise"
    else:
        how = "stays" if targets == [name] else f"becomes {join_words(targets)}"
    return f"its alpha, {name}, {how}; without it, alpha is r"
