"""Derive the rules of an adapter from the rules of the weights: a rule file of literal names, finite and provable.

The rules are planned on the model's own header; each move whose sources have adapters gives the adapter of its target
(`push`). What is written is an ordinary rule file, so proofs, plans, checks, reports and byte moving are those of
weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from remapkit.adapters.factors import CannotFollow, OpText
from remapkit.adapters.formats import Role, Style, flatten, read_formats
from remapkit.adapters.names import Adapter, Module, get_module
from remapkit.adapters.push import Kind, Pushed, Side, Stored, push
from remapkit.diagnostics.diagnostic import Diagnostic, Label
from remapkit.diagnostics.wording import count_noun, join_words, list_names
from remapkit.plans.model import ResolvedPlan
from remapkit.plans.moves import Move
from remapkit.rulefile.yaml.emit import emit_flow, emit_scalar

BIAS = ".bias"


@dataclass(frozen=True, slots=True)
class Written:
    """A tensor of the new adapter: its name, and how it is made of tensors of the file."""

    name: str
    side: Side
    files: tuple[str, ...]
    """The tensor of the file that each part is."""
    rule: str
    is_matrix: bool = False
    """Whether it is one of the two matrices of an update."""


@dataclass(slots=True)
class Derived:
    """The tensors of the new adapter, those that are dropped, and what cannot follow."""

    written: list[Written] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)
    ranks: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    """The LoRA rank of each new module, and the weights whose adapters it is made of."""
    rules: dict[str, str] = field(default_factory=dict)
    """The rule that makes each new module."""
    added: dict[str, float] = field(default_factory=dict)
    """Alphas that come from no tensor of the file."""


@dataclass(slots=True)
class Deriver:
    """Derives the tensors of an adapter; `style` is how the result is named."""

    plan: ResolvedPlan
    adapter: Adapter
    style: Style
    found: Derived = field(default_factory=Derived)
    _refused: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _spans: dict[str, Move] = field(default_factory=dict)

    def derive(self) -> Derived:
        """Follow every move; problems are collected."""
        header = self.adapter.header
        stored = self._store()
        taken: set[str] = set()
        for move in self.plan.moves:
            self._spans.setdefault(move.rule.id, move)
            for kind, own in stored.items():
                if any(fqn in own for fqn in move.sources):
                    self._follow(move, kind, own)
            taken.update(move.sources)
            self._follow_opaque(move)
        modules = {module.weight: module for module in self.adapter.modules}
        gone = [module for weight, module in modules.items() if weight not in taken]
        self.found.dropped = [fqn for module in gone for fqn in (*module.tensors.values(), *module.opaque)]
        self.found.dropped += [fqn for fqn, key in self.adapter.whole.items() if key not in taken]
        self.found.dropped = [fqn for fqn in header if fqn in set(self.found.dropped)]
        self._check_names()
        for (rule, reason), names in self._refused.items():
            self.found.problems.append(self._explain(rule, reason, names))
        return self.found

    def _store(self) -> dict[tuple[Kind, str], dict[str, tuple[Stored, tuple[str, ...]]]]:
        """Return what the file has for each tensor of the model, by kind and role."""
        header = self.adapter.header
        stored: defaultdict[tuple[Kind, str], dict[str, tuple[Stored, tuple[str, ...]]]] = defaultdict(dict)
        for module in self.adapter.modules:
            own, bias = module.tensors, get_module(module.weight) + BIAS
            if "up" in own and "down" in own and "mid" not in own:
                names = own["up"], own["down"]
                stored["lora", "up"][module.weight] = Stored("lora", header[names[0]], header[names[1]]), names
            elif ("up" in own) != ("down" in own):
                lacking = "down" if "up" in own else "up"
                self._refuse("", f"its `{lacking}` matrix is missing", module.name)
            for role, kind, key in (
                ("magnitude", "rows", module.weight),
                ("diff", "delta", module.weight),
                ("diff_bias", "delta", bias),
                ("up_bias", "delta", bias),
            ):
                if (fqn := own.get(role)) is not None:  # type: ignore[call-overload]
                    stored[kind, role][key] = Stored(kind, header[fqn]), (fqn,)  # type: ignore[index, arg-type]
        for fqn, key in self.adapter.whole.items():
            stored["whole", "whole"][key] = Stored("whole", header[fqn]), (fqn,)
        return stored

    def _follow(self, move: Move, kind: tuple[Kind, str], own: Mapping[str, tuple[Stored, tuple[str, ...]]]) -> None:
        try:
            there = {fqn: own[fqn][0] for fqn in move.sources if fqn in own}
            made = push(move, self.plan.source, there, is_tall=self.style.leaf("magnitude") == "dora_scale")
        except CannotFollow as reason:
            self._refuse(move.rule.id, str(reason), move.target)
            return
        if made is None:
            return
        for role, side in self._list_sides(made, kind[1]):
            name = self._name(move, role)
            if name is not None:
                files = tuple(own[part.source][1][part.place] for part in side.parts)
                self.found.written.append(Written(name, side, files, move.rule.id, made.second is not None))
        if made.second is not None:
            self.found.ranks[get_module(move.target)] = made.rank, made.sources
            self.found.rules[get_module(move.target)] = move.rule.id

    def _list_sides(self, made: Pushed, role: str) -> Iterator[tuple[str, Side]]:
        yield role, made.first
        if made.second is not None:
            yield "down", made.second

    def _name(self, move: Move, role: str) -> str | None:
        """Return the name of a tensor of the new adapter; None, with a problem, if the format has none."""
        if role == "whole":
            return move.target if self.style.is_flat else self.style.prefix + move.target
        leaf = self.style.leaf(role)  # type: ignore[arg-type]
        if leaf is None:
            self._refuse(move.rule.id, f"{self.style.format} files have no `{role}`", move.target)
            return None
        of = move.target.removesuffix(BIAS) if role in ("up_bias", "diff_bias") else get_module(move.target)
        return self.style.name(of, leaf)

    def _follow_opaque(self, move: Move) -> None:
        """Rename what is no product of two matrices with its module, where nothing happens to the weight."""
        for module in self._modules_of(move):
            loose = [(fqn, fqn[len(module.name) + 1 :]) for fqn in module.opaque]
            if "mid" in module.tensors:
                loose += [
                    (module.tensors[role], self.style.leaf(role) or "") for role in _TUCKER if role in module.tensors
                ]
            if not loose:
                continue
            if move.ops or len(move.sources) > 1:
                kinds = {read_formats().opaque.get(leaf, "a LoRA with a `mid` matrix") for _, leaf in loose}
                names = join_words(sorted(kinds))
                self._refuse(move.rule.id, f"{names} follows renames, and this changes the weight", move.target)
                continue
            for fqn, leaf in loose:
                name = self.style.name(get_module(move.target), leaf)
                side = Side((), 0, (), self.adapter.header[fqn].shape)
                self.found.written.append(Written(name, side, (fqn,), move.rule.id))

    def _modules_of(self, move: Move) -> list[Module]:
        return [module for module in self.adapter.modules if module.weight in move.sources]

    def _refuse(self, rule: str, reason: str, name: str) -> None:
        self._refused.setdefault((rule, reason), []).append(name)

    def _explain(self, rule: str, reason: str, names: list[str]) -> Diagnostic:
        move = self._spans.get(rule)
        labels = (Label(move.rule.span),) if move is not None and move.rule.span is not None else ()
        where = f"{rule}: " if rule else ""
        title = f"{where}the adapter of {count_noun(len(names), 'tensor')} cannot follow: {reason}"
        help = ("merge the adapter into the weights of its model, and apply the rules to these",)
        return Diagnostic(
            "RK723", title, labels, notes=(list_names(names),), help=help, place=self.adapter.header.name
        )

    def _check_names(self) -> None:
        """Refuse names that are one name with `_` for dots."""
        if not self.style.is_flat:
            return
        flat: defaultdict[str, set[str]] = defaultdict(set)
        for move in self.plan.moves:
            flat[flatten(get_module(move.target))].add(get_module(move.target))
        for modules in flat.values():
            if len(modules) > 1 and any(module in self.found.ranks for module in modules):
                listed = join_words(sorted(modules))
                title = f"{self.style.format} files write `_` for dots, and {listed} would have one name"
                help = ("choose another format: --adapter-format diffusers",)
                self.found.problems.append(Diagnostic("RK724", title, help=help, place=self.adapter.header.name))


_TUCKER: tuple[Role, ...] = ("up", "down", "mid")


# ------------------------------------------------------------------------------------------------ the rule file


def write_rules(name: str, summary: str, found: Derived) -> str:
    """Return the text of a rule file that makes these tensors.

    Tensors that are made of the same parts are in one rule; it is split where they are its slices in order.
    """
    groups: defaultdict[object, list[Written]] = defaultdict(list)
    for each in found.written:
        parts = tuple((fqn, emit_flow(list(ops))) for fqn, ops in zip(each.files, _list_ops(each), strict=True))
        groups[parts, each.side.dim, each.side.merged].append(each)
    ids: Counter[str] = Counter()
    lines = ["remapkit: 1", f"name: {emit_scalar(name)}", f"summary: {emit_scalar(summary)}"]
    rules: list[str] = []
    keep: list[str] = []
    for group in groups.values():
        first = group[0]
        if len(group) == 1 and first.files == (first.name,) and not first.side.ops and not any(_list_ops(first)):
            keep.append(first.name)
            continue
        ids[first.rule] += 1
        rules.append("  - " + emit_flow({"id": f"{first.rule}.{ids[first.rule]}", **_write_group(group)}))
    if rules:
        lines += ["rules:", *rules]
    for section, names in (("keep", keep), ("drop", found.dropped)):
        if names:
            lines += [f"{section}:", *(f"  - {emit_flow(quote_key(fqn))}" for fqn in names)]
    if found.added:
        lines.append("add:")
    for fqn, value in found.added.items():
        fill = {"to": quote_key(fqn), "fill": value, "shape": [], "dtype": "F32"}
        lines.append("  - " + emit_flow(fill))
    return "\n".join(lines) + "\n"


def _list_ops(each: Written) -> Sequence[Sequence[OpText]]:
    return [part.ops for part in each.side.parts] or [()]


def _write_group(group: Sequence[Written]) -> dict[str, object]:
    """Return the fields of the rule that makes some tensors of the same parts."""
    first = group[0]
    sources = [_with_ops("path", fqn, ops) for fqn, ops in zip(first.files, _list_ops(first), strict=True)]
    fields: dict[str, object] = {}
    if len(sources) == 1:
        fields["path"] = quote_key(first.files[0])
    elif first.side.merged:
        fields["merge"] = sources
    else:
        fields["concat"] = {"dim": first.side.dim, "from": sources}
    common = _find_common([each.side.ops for each in group])
    if common:
        fields["ops"] = list(common)
    rest = [each.side.ops[len(common) :] for each in group]
    if len(group) == 1:
        return {**fields, "to": quote_key(first.name)}
    if (sizes := _find_split(rest)) is not None:
        dim, order, lengths = sizes
        into = [_with_ops("to", group[at].name, rest[at][1:]) for at in order]
        return {**fields, "split": {"dim": dim, "sizes": lengths, "into": into}}
    return {**fields, "copy": [_with_ops("to", each.name, ops) for each, ops in zip(group, rest, strict=True)]}


def _with_ops(field: str, fqn: str, ops: Sequence[OpText]) -> object:
    return {field: quote_key(fqn), "ops": list(ops)} if ops else quote_key(fqn)


def _find_common(all_ops: Sequence[tuple[OpText, ...]]) -> tuple[OpText, ...]:
    """Return the operations that all start with."""
    shortest = min(all_ops, key=len)
    for at, op in enumerate(shortest):
        if any(ops[at] != op for ops in all_ops):
            return shortest[:at]
    return shortest


def _find_split(rest: Sequence[tuple[OpText, ...]]) -> tuple[int, list[int], list[int]] | None:
    """Return the dimension, the order and the sizes, if each of these starts with a slice, and all make the whole.

    Whether the last slice reaches the end is not known here: the plan checks it against the tensor.
    """
    slices = []
    for ops in rest:
        first = ops[0] if ops else None
        if not isinstance(first, Mapping) or not isinstance(own := first.get("slice"), Mapping):
            return None
        slices.append((own["dim"], own["start"], own["stop"]))
    if len({dim for dim, _, _ in slices}) > 1:
        return None
    order = sorted(range(len(slices)), key=lambda at: slices[at][1])
    at = 0
    for number in order:
        if slices[number][1] != at:
            return None
        at = slices[number][2]
    return slices[0][0], order, [slices[number][2] - slices[number][1] for number in order]


_SPECIAL = frozenset("*?\\^$()[]| '\"{}")


def quote_key(fqn: str) -> str:
    """Return a key as the path of a rule file writes it.

    >>> quote_key("a.0.weight"), quote_key("a b")
    ('a.0.weight', "a{' '}b")
    """
    made, special = "", False
    for sign in fqn:
        is_special = sign in _SPECIAL or not sign.isprintable()
        if is_special != special:
            made += "{'" if is_special else "'}"
        special = is_special
        made += "''" if sign == "'" else sign
    return made + ("'}" if special else "")
